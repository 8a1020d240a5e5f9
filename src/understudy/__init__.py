"""understudy: PPO plus any combination of expert signals: teachers, demonstrations, motion clips, privileged state."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy import parts, recipes
    from understudy.envs.registry import EnvConfig, make_env
    from understudy.nn.policy import ActorCritic, PolicyConfig
    from understudy.parts.part import (
        Labels,
        Losses,
        Overrides,
        Part,
        PartConfig,
        PartContext,
        Rewards,
        Updates,
        Weights,
    )
    from understudy.ppo.clip_ppo_loss import ClipPPOLoss
    from understudy.ppo.config import PPOConfig
    from understudy.ppo.gae import gae
    from understudy.ppo.optim import OptimizerConfig, gradient_step
    from understudy.ppo.ppo import PPO
    from understudy.ppo.schedules import Schedule
    from understudy.train.config import TrainConfig
    from understudy.train.loop import train
    from understudy.train.run import Run, load

try:
    __version__ = version("understudy")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_HOMES = {
    "ActorCritic": "nn.policy",
    "ClipPPOLoss": "ppo.clip_ppo_loss",
    "EnvConfig": "envs.registry",
    "Labels": "parts.part",
    "Losses": "parts.part",
    "OptimizerConfig": "ppo.optim",
    "Overrides": "parts.part",
    "PPO": "ppo.ppo",
    "PPOConfig": "ppo.ppo",
    "Part": "parts.part",
    "PartConfig": "parts.part",
    "PartContext": "parts.part",
    "PolicyConfig": "nn.policy",
    "Rewards": "parts.part",
    "Run": "train.run",
    "Schedule": "ppo.schedules",
    "TrainConfig": "train.config",
    "Updates": "parts.part",
    "Weights": "parts.part",
    "gae": "ppo.gae",
    "gradient_step": "ppo.optim",
    "load": "train.run",
    "make_env": "envs.registry",
}
"""Public name -> module. Loaded on first use: `understudy --help` should not wait for torch."""

_ROOMS = ("data", "envs", "nn", "parts", "ppo", "recipes", "train")

__all__ = [
    "PPO",
    "ActorCritic",
    "ClipPPOLoss",
    "EnvConfig",
    "Labels",
    "Losses",
    "OptimizerConfig",
    "Overrides",
    "PPOConfig",
    "Part",
    "PartConfig",
    "PartContext",
    "PolicyConfig",
    "Rewards",
    "Run",
    "Schedule",
    "TrainConfig",
    "Updates",
    "Weights",
    "__version__",
    "gae",
    "gradient_step",
    "load",
    "make_env",
    "parts",
    "recipes",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"understudy.{name}")
    if name in _HOMES:
        return vars(import_module(f"understudy.{_HOMES[name]}"))[name]
    raise AttributeError(f"module 'understudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, *_ROOMS))
