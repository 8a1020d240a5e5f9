"""Environments: the `VecEnv` contract and its adapters."""

from understudy.envs.actions import ActionMap
from understudy.envs.base import StatefulEnv, Step, VecEnv
from understudy.envs.envpool import EnvPoolAdapter
from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
from understudy.envs.registry import EnvConfig, EnvEntry, Task, list_envs, make_env, make_render_env
from understudy.envs.segments import with_segments
from understudy.envs.simulator import SimulatorAdapter

__all__ = [
    "ActionMap",
    "EnvConfig",
    "EnvEntry",
    "EnvPoolAdapter",
    "GymnasiumVectorAdapter",
    "InProcessVectorEnv",
    "SimulatorAdapter",
    "StatefulEnv",
    "Step",
    "Task",
    "VecEnv",
    "list_envs",
    "make_env",
    "make_render_env",
    "with_segments",
]
