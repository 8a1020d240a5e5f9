"""Behaviour cloning and DAgger: imitate recorded demonstrations, or an expert that can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.recipes.registry import recipe

if TYPE_CHECKING:
    from understudy.train.config import TrainConfig


@recipe
def bc(env_id: str = "Hopper-v5", *, demonstrations: str = "", total_steps: int = 0, seed: int = 0) -> TrainConfig:
    """Behaviour cloning from demonstrations, without environment steps (--total-steps N: PPO goes on from there)."""
    from understudy.envs.registry import EnvConfig
    from understudy.nn.policy import PolicyConfig
    from understudy.parts.behavior_cloning import BehaviorCloningConfig
    from understudy.ppo.schedules import Schedule
    from understudy.train.config import OfflineConfig, TrainConfig

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
