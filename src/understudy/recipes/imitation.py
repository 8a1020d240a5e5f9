"""Behaviour cloning and DAgger: imitate recorded demonstrations, or an expert that can be asked."""

from __future__ import annotations

import dataclasses

from understudy.core.schedules import Schedule
from understudy.data.demonstrations.read import open_recording
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts.advisor import AdvisorConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.ppo.part import PartConfig
from understudy.runs.config import DaggerConfig, OfflineConfig, TrainConfig


def bc(env_id: str = "Hopper-v5", *, demonstrations: str = "", total_steps: int = 0, seed: int = 0) -> TrainConfig:
    """Behaviour cloning from demonstrations, without environment steps (--total-steps N: PPO goes on from there)."""

    return TrainConfig(
        recipe="bc",
        env=EnvConfig(id=env_id),
        policy=PolicyConfig(hidden_sizes=(256, 256), activation="relu"),
        parts={"bc": BehaviorCloningConfig(demonstrations=demonstrations, coef=Schedule(kind="linear", start=1.0))},
        offline=OfflineConfig(epochs=100, learning_rate=Schedule(kind="linear", start=1e-3, end=0.0)),
        total_steps=total_steps,
        seed=seed,
        torch_threads=1,
    )


def dagger(env_id: str = "Hopper-v5", *, expert: str = "", total_steps: int = 0, seed: int = 0) -> TrainConfig:
    """DAgger: clone an expert that is asked about the learner's own states (--offline.dagger.expert RUN)."""

    config = bc(env_id, total_steps=total_steps, seed=seed)
    assert config.offline is not None
    rounds = DaggerConfig(expert=expert, steps_per_round=2000)
    return dataclasses.replace(
        config,
        recipe="dagger",
        offline=dataclasses.replace(config.offline, epochs=20, dagger=rounds),
    )


def takes_demonstrations(config: TrainConfig) -> bool:
    """Whether a part of this configuration learns from demonstrations."""
    return any(_learns(part) for part in config.parts.values())


def with_demonstrations(config: TrainConfig, source: str) -> TrainConfig:
    """`config` with these demonstrations for every part that learns from some, in the environment they were made in.

    Where some parts have no other teacher, the others (ADVISOR with an expert in the environment) stay as they are.
    Raises ValueError if no part does, or as `open_recording` where nothing can be read from `source`.
    """

    if not takes_demonstrations(config):
        raise ValueError(
            f"recipe {config.recipe} takes no --demonstrations: none of its parts "
            f"({', '.join(config.parts) or 'it has none'}) learns from any"
        )
    with open_recording(source) as recording:
        env_id = str(recording.metadata.get("env", config.env.id))
    needy = [name for name, part in config.parts.items() if _learns(part) and not _has_an_expert(part)]
    takers = needy or [name for name, part in config.parts.items() if _learns(part)]
    parts = {
        name: dataclasses.replace(part, **{"demonstrations": source}) if name in takers else part
        for name, part in config.parts.items()
    }
    return dataclasses.replace(config, parts=parts, env=dataclasses.replace(config.env, id=env_id))


def _has_an_expert(part: PartConfig) -> bool:

    return isinstance(part, AdvisorConfig) and part.use_rollout_labels


def _learns(part: PartConfig) -> bool:
    return any(field.name == "demonstrations" for field in dataclasses.fields(part))
