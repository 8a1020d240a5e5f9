"""ManiSkill: `maniskill:TASK`, one copy on a CPU, thousands on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import mani_skill.envs  # noqa: F401  # registers the tasks
from mani_skill.utils.registration import REGISTERED_ENVS
from mani_skill.utils.wrappers.flatten import FlattenRGBDObservationWrapper
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

from understudy.envs.simulators import Built, Order

VECTOR = ("ignore_terminations",)
"""Options of the wrapper that resets, as opposed to those of the task."""


def tasks() -> Sequence[str]:
    """Names of all tasks that are registered."""
    return [*REGISTERED_ENVS]


def numbers(task: str) -> None:
    """ManiSkill registers no runner's configuration."""


def build(order: Order) -> Built:
    """The task with partial resets and its own statistics of episodes."""
    if order.num_envs > 1 and order.device.type == "cpu":
        raise ValueError(f"maniskill:{order.task} steps one copy on a CPU (--env.num-envs 1): more need a GPU")
    options = {"obs_mode": "state", **order.options}
    vector = {name: options.pop(name) for name in VECTOR if name in options}
    if order.max_episode_steps is not None:
        options["max_episode_steps"] = order.max_episode_steps
    backend = "physx_cpu" if order.device.type == "cpu" else "physx_cuda"
    options = {"sim_backend": backend, "render_mode": "rgb_array" if order.render else None, **options}
    try:
        env = gym.make(order.task, num_envs=order.num_envs, **options)
    except TypeError as error:
        raise ValueError(f"maniskill:{order.task} refuses the options {dict(order.options)}: {error}") from error
    groups = None
    if any(kind in str(options["obs_mode"]) for kind in ("rgb", "depth")):
        env = FlattenRGBDObservationWrapper(env, depth="depth" in str(options["obs_mode"]))
        groups = {"policy": [*env.observation_space.spaces]}
    return Built(ManiSkillVectorEnv(env, order.num_envs, record_metrics=True, **vector), groups)
