"""From an object of the user's own to a `VecEnv`."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from understudy.envs.base import VecEnv
from understudy.envs.gate import check_vec_env
from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
from understudy.envs.observations import Groups, Segments
from understudy.envs.regrouped import with_groups
from understudy.envs.simulator import Simulator, SimulatorAdapter, TorchVectorEnv


@runtime_checkable
class _ResetsByItself(Protocol):
    """Mark of ManiSkill's environments, which reset only in its vector environment."""

    elapsed_steps: Any


def as_vec_env(
    env: Any,
    device: torch.device | str = "cpu",
    *,
    groups: Groups | None = None,
    segments: Segments | None = None,
) -> VecEnv:
    """A `VecEnv` of an environment that somebody has built.

    Takes a `VecEnv`, a Gymnasium vector environment (any autoreset mode), one Gymnasium environment (one copy), a
    simulator with rsl_rl's interface (`num_envs`, `num_actions`, `device`, `get_observations`, `step`), or one that
    takes and gives tensors in Gymnasium's form (ManiSkill's vector environment; mjlab's and Isaac Lab's environments).
    `device` is where Gymnasium's observations go; a `VecEnv` and a simulator stay on their own.

    Raises ValueError that says what is missing for anything else, and for spaces that cannot become tensors.
    """
    inner = env.unwrapped if isinstance(env, gym.Env | VectorEnv) else env
    if isinstance(inner, VectorEnv):
        return with_groups(GymnasiumVectorAdapter(env, device, groups), segments=segments)
    if isinstance(env, Simulator) or isinstance(inner, TorchVectorEnv):
        if isinstance(inner, _ResetsByItself) and not isinstance(env, VectorEnv):
            raise ValueError(f"{type(inner).__name__} does not reset ended copies: wrap it in ManiSkillVectorEnv")
        return with_groups(SimulatorAdapter(env, groups), segments=segments)
    if isinstance(env, gym.Env):
        return with_groups(InProcessVectorEnv([lambda: env], device, groups), segments=segments)
    check_vec_env(env)
    return with_groups(env, groups, segments)
