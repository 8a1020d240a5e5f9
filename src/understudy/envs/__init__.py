"""Environments: the `VecEnv` contract, its adapters, and the doors to them. EnvPool is imported on first use."""

from understudy.envs.actions import ActionMap
from understudy.envs.base import StatefulEnv, Step, VecEnv
from understudy.envs.envpool import EnvPoolAdapter
from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
from understudy.envs.registry import EnvConfig, as_vec_env, list_envs, make_env, make_render_env, register_env
from understudy.envs.regrouped import with_groups
from understudy.envs.simulator import SimulatorAdapter

__all__ = [
    "ActionMap",
    "EnvConfig",
    "EnvPoolAdapter",
    "GymnasiumVectorAdapter",
    "InProcessVectorEnv",
    "SimulatorAdapter",
    "StatefulEnv",
    "Step",
    "VecEnv",
    "as_vec_env",
    "list_envs",
    "make_env",
    "make_render_env",
    "register_env",
    "with_groups",
]
