"""Environments: the `VecEnv` contract, its adapters, and the doors to them. A backend is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.envs.actions import ActionMap
    from understudy.envs.base import StatefulEnv, Step, VecEnv
    from understudy.envs.envpool import EnvPoolAdapter
    from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
    from understudy.envs.makers import register_env
    from understudy.envs.objects import as_vec_env
    from understudy.envs.processes import process_vector_env
    from understudy.envs.registry import EnvConfig, list_envs, make_env, make_render_env
    from understudy.envs.regrouped import with_groups
    from understudy.envs.simulator import SimulatorAdapter

__all__ = ["ActionMap", "StatefulEnv", "Step", "VecEnv"]
__all__ += ["EnvPoolAdapter", "GymnasiumVectorAdapter", "InProcessVectorEnv", "SimulatorAdapter", "process_vector_env"]
__all__ += ["EnvConfig", "as_vec_env", "list_envs", "make_env", "make_render_env", "register_env", "with_groups"]

_FILES = {
    "actions": ("ActionMap",),
    "base": ("StatefulEnv", "Step", "VecEnv"),
    "envpool": ("EnvPoolAdapter",),
    "gymnasium": ("GymnasiumVectorAdapter", "InProcessVectorEnv"),
    "makers": ("register_env",),
    "objects": ("as_vec_env",),
    "processes": ("process_vector_env",),
    "registry": ("EnvConfig", "list_envs", "make_env", "make_render_env"),
    "regrouped": ("with_groups",),
    "simulator": ("SimulatorAdapter",),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return vars(import_module(f"understudy.envs.{file}"))[name]
    raise AttributeError(f"module 'understudy.envs' has no attribute {name!r}")
