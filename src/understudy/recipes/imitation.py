"""Behaviour cloning and DAgger: imitate recorded demonstrations, or an expert that can be asked."""

from __future__ import annotations

import dataclasses

from understudy.core.check import checked
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.nn.protocol import PolicyConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.runs.config import DaggerConfig, OfflineConfig, TrainConfig


@checked
def bc(env_id: str = "Hopper-v5", *, demonstrations: str = "", total_steps: int = 0, seed: int = 0) -> TrainConfig:
    """Behaviour cloning from demonstrations, without environment steps (--total-steps N: PPO goes on from there)."""
    return TrainConfig(
        recipe="bc",
        env=EnvConfig(id=env_id),
        policy=PolicyConfig(hidden_sizes=(256, 256), activation="relu"),
        parts={"bc": BehaviorCloningConfig(demonstrations=demonstrations, coef=Schedule(kind="linear", start=1.0))},
        offline=OfflineConfig(epochs=100, learning_rate=Schedule(kind="linear", start=1e-3)),
        total_steps=total_steps,
        seed=seed,
    )


@checked
def dagger(env_id: str = "Hopper-v5", *, expert: str = "", total_steps: int = 0, seed: int = 0) -> TrainConfig:
    """DAgger: clone an expert that is asked about the learner's own states (--offline.dagger.expert RUN)."""
    config = bc(env_id, total_steps=total_steps, seed=seed)
    assert config.offline is not None
    rounds = DaggerConfig(expert=expert, steps_per_round=2000)
    offline = dataclasses.replace(config.offline, epochs=20, dagger=rounds)
    return dataclasses.replace(config, recipe="dagger", offline=offline)
