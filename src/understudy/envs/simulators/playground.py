"""MuJoCo Playground (JAX): `playground:TASK`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from mujoco_playground import locomotion, registry, wrapper_torch
from mujoco_playground.config import locomotion_params

from understudy.envs.simulators import Built, Order, set_options


def tasks() -> Sequence[str]:
    """Names of all tasks that are registered."""
    return [*registry.ALL_ENVS]


def numbers(task: str) -> Any | None:
    """Its configuration of rsl_rl's runner, which it has for robots that walk."""
    return locomotion_params.rsl_rl_config(task).to_dict() if task in locomotion.ALL_ENVS else None


def build(order: Order) -> Built:
    """The task in its own wrapper for rsl_rl, with its domain randomisation."""
    cfg = registry.get_default_config(order.task)
    with cfg.unlocked():
        set_options(cfg, order.options, f"playground:{order.task}")
    env = wrapper_torch.RSLRLBraxWrapper(
        registry.load(order.task, config=cfg),
        order.num_envs,
        order.seed or 0,
        order.max_episode_steps or cfg.episode_length,
        1,
        randomization_fn=registry.get_domain_randomizer(order.task),
        device_rank=None if order.device.type == "cpu" else order.device.index or 0,
    )
    if order.device.type == "cpu":
        env.device = "cpu"  # which it only says of a GPU

    def reseed(seed: int) -> None:
        env.key_reset = jax.random.split(jax.random.PRNGKey(seed % 2**32), order.num_envs)

    return Built(env, reseed=reseed)
