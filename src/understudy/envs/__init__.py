"""Environments: the `VecEnv` contract, its adapters, and the doors to them. A backend is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.envs.actions import ActionMap
    from understudy.envs.base import StatefulEnv, Step, VecEnv
    from understudy.envs.envpool import EnvPoolAdapter
    from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
    from understudy.envs.registry import EnvConfig, as_vec_env, list_envs, make_env, make_render_env, register_env
    from understudy.envs.regrouped import with_groups
    from understudy.envs.simulator import SimulatorAdapter

_HOMES = {
    "ActionMap": "actions",
    "EnvConfig": "registry",
    "EnvPoolAdapter": "envpool",
    "GymnasiumVectorAdapter": "gymnasium",
    "InProcessVectorEnv": "gymnasium",
    "SimulatorAdapter": "simulator",
    "StatefulEnv": "base",
    "Step": "base",
    "VecEnv": "base",
    "as_vec_env": "registry",
    "list_envs": "registry",
    "make_env": "registry",
    "make_render_env": "registry",
    "register_env": "registry",
    "with_groups": "regrouped",
}
"""Public name -> file."""

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return vars(import_module(f"understudy.envs.{_HOMES[name]}"))[name]
    raise AttributeError(f"module 'understudy.envs' has no attribute {name!r}")
