"""Isaac Lab: `isaaclab:TASK`. Isaac Sim starts with the first environment, headless, once per process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from isaaclab.app import AppLauncher

from understudy.envs.simulators import Built, Order, set_options

ENV, RUNNER = "env_cfg_entry_point", "rsl_rl_cfg_entry_point"
"""Where a task's registration names its configurations."""


_APP: list[Any] = []
"""Isaac Sim, once it runs."""


def prepare(order: Order) -> None:
    """Start Isaac Sim, before anything of it is imported; it runs until the process ends."""
    if not _APP:
        _APP.append(AppLauncher(headless=True, device=str(order.device), enable_cameras=order.render).app)
        import isaaclab_tasks  # noqa: F401  # registers the tasks


def tasks() -> Sequence[str]:
    """Names of all tasks that are registered."""
    return [name for name, spec in gym.registry.items() if ENV in spec.kwargs]


def numbers(task: str) -> Any | None:
    """The task's configuration of rsl_rl's runner, if it has one."""
    from isaaclab_tasks.utils import load_cfg_from_registry

    return load_cfg_from_registry(task, RUNNER) if RUNNER in gym.spec(task).kwargs else None


def build(order: Order) -> Built:
    """The task's environment, wrapped as rsl_rl's scripts have it."""
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper
    from isaaclab_tasks.utils import parse_env_cfg

    id = f"isaaclab:{order.task}"
    cfg = parse_env_cfg(order.task, device=str(order.device), num_envs=order.num_envs)
    cfg.seed = order.seed
    set_options(cfg, order.options, id)
    if order.max_episode_steps is not None:
        cfg.episode_length_s = order.max_episode_steps * cfg.sim.dt * cfg.decimation
    env = gym.make(order.task, cfg=cfg, render_mode="rgb_array" if order.render else None)
    runner = numbers(order.task)
    return Built(RslRlVecEnvWrapper(env, clip_actions=None if runner is None else runner.clip_actions))
