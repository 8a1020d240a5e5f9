"""understudy: PPO plus any combination of expert signals: teachers, demonstrations, motion clips, privileged state."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from understudy.version import __version__

if TYPE_CHECKING:
    from understudy import data, envs, interop, nn, parts, ppo, recipes, runs, tools, training
    from understudy.core.schedules import Schedule
    from understudy.data.motions.library import MotionsConfig
    from understudy.envs.check_env import check_env
    from understudy.envs.makers import register_env
    from understudy.envs.registry import EnvConfig, make_env
    from understudy.interop.torchrl.clip_ppo_loss import ClipPPOLoss
    from understudy.nn.estimator import EstimatorHeadConfig
    from understudy.nn.heads import DistributionConfig
    from understudy.nn.networks import CNNConfig, EncoderConfig
    from understudy.nn.policy import ActorCritic
    from understudy.nn.protocol import Policy, PolicyConfig, PolicyOutput
    from understudy.parts.shared.discriminator import DiscriminatorConfig
    from understudy.parts.shared.expert_labels import ExpertLabelsConfig
    from understudy.ppo.config import PPOConfig
    from understudy.ppo.lr_scheduler import LRSchedulerConfig
    from understudy.ppo.optim import OptimizerConfig, gradient_step
    from understudy.ppo.part import (
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
    from understudy.ppo.ppo import PPO
    from understudy.ppo.returns import gae
    from understudy.runs.config import (
        CheckpointConfig,
        DaggerConfig,
        EvaluationConfig,
        LoggingConfig,
        OfflineConfig,
        StartConfig,
        TrainConfig,
    )
    from understudy.runs.folder import Run, load
    from understudy.tools.evaluate import evaluate
    from understudy.training.loggers import Logger, StopTraining
    from understudy.training.loop import resume, train

_HOMES = {
    "ActorCritic": "nn.policy",
    "CNNConfig": "nn.networks",
    "CheckpointConfig": "runs.config",
    "ClipPPOLoss": "interop.torchrl.clip_ppo_loss",
    "DaggerConfig": "runs.config",
    "DiscriminatorConfig": "parts.shared.discriminator",
    "DistributionConfig": "nn.heads",
    "EncoderConfig": "nn.networks",
    "EnvConfig": "envs.registry",
    "EstimatorHeadConfig": "nn.estimator",
    "EvaluationConfig": "runs.config",
    "ExpertLabelsConfig": "parts.shared.expert_labels",
    "LRSchedulerConfig": "ppo.lr_scheduler",
    "Labels": "ppo.part",
    "Logger": "training.loggers",
    "LoggingConfig": "runs.config",
    "Losses": "ppo.part",
    "MotionsConfig": "data.motions.library",
    "OfflineConfig": "runs.config",
    "OptimizerConfig": "ppo.optim",
    "Overrides": "ppo.part",
    "PPO": "ppo.ppo",
    "PPOConfig": "ppo.config",
    "Part": "ppo.part",
    "PartConfig": "ppo.part",
    "PartContext": "ppo.part",
    "Policy": "nn.protocol",
    "PolicyConfig": "nn.protocol",
    "PolicyOutput": "nn.protocol",
    "Rewards": "ppo.part",
    "Run": "runs.folder",
    "Schedule": "core.schedules",
    "StartConfig": "runs.config",
    "StopTraining": "training.loggers",
    "TrainConfig": "runs.config",
    "Updates": "ppo.part",
    "Weights": "ppo.part",
    "check_env": "envs.check_env",
    "evaluate": "tools.evaluate",
    "gae": "ppo.returns",
    "gradient_step": "ppo.optim",
    "load": "runs.folder",
    "make_env": "envs.registry",
    "register_env": "envs.makers",
    "resume": "training.loop",
    "train": "training.loop",
}
"""Public name -> module. Loaded on first use: `understudy --help` should not wait for torch."""

_ROOMS = ("data", "envs", "interop", "nn", "parts", "ppo", "recipes", "runs", "tools", "training")

__all__ = [
    "PPO",
    "ActorCritic",
    "CNNConfig",
    "CheckpointConfig",
    "ClipPPOLoss",
    "DaggerConfig",
    "DiscriminatorConfig",
    "DistributionConfig",
    "EncoderConfig",
    "EnvConfig",
    "EstimatorHeadConfig",
    "EvaluationConfig",
    "ExpertLabelsConfig",
    "LRSchedulerConfig",
    "Labels",
    "Logger",
    "LoggingConfig",
    "Losses",
    "MotionsConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "Overrides",
    "PPOConfig",
    "Part",
    "PartConfig",
    "PartContext",
    "Policy",
    "PolicyConfig",
    "PolicyOutput",
    "Rewards",
    "Run",
    "Schedule",
    "StartConfig",
    "StopTraining",
    "TrainConfig",
    "Updates",
    "Weights",
    "__version__",
    "check_env",
    "data",
    "envs",
    "evaluate",
    "gae",
    "gradient_step",
    "interop",
    "load",
    "make_env",
    "nn",
    "parts",
    "ppo",
    "recipes",
    "register_env",
    "resume",
    "runs",
    "tools",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"understudy.{name}")
    if name in _HOMES:
        return vars(import_module(f"understudy.{_HOMES[name]}"))[name]
    raise AttributeError(f"module 'understudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
