"""PPO and A2C with no expert: the plain algorithms."""

from __future__ import annotations

from dataclasses import replace

from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.runs.config import TrainConfig


def ppo(env_id: str = "CartPole-v1", *, total_steps: int = 100_000, seed: int = 0) -> TrainConfig:
    """PPO with its default settings; choose the task with --env.id."""
    return TrainConfig(recipe="ppo", env=EnvConfig(id=env_id), total_steps=total_steps, seed=seed, torch_threads=1)


def a2c(env_id: str = "CartPole-v1", *, total_steps: int = 500_000, seed: int = 0) -> TrainConfig:
    """A2C: short rollouts, one full-batch policy-gradient step each; the same core as PPO."""
    config = PPOConfig(
        surrogate="a2c",
        num_steps=5,
        epochs=1,
        minibatches=1,
        gae_lambda=1.0,
        advantage_normalization="none",
        optimizer=OptimizerConfig(kind="rmsprop", learning_rate=Schedule(kind="linear", start=7e-4)),
    )
    return replace(ppo(env_id, total_steps=total_steps, seed=seed), recipe="a2c", ppo=config)


def cartpole(*, total_steps: int = 100_000, seed: int = 0) -> TrainConfig:
    """CartPole-v1 to its maximum of 500 in seconds."""
    optimizer = OptimizerConfig(learning_rate=Schedule(kind="linear", start=1e-3))
    config = PPOConfig(num_steps=128, epochs=10, minibatches=4, gae_lambda=0.95, optimizer=optimizer)
    return replace(ppo(total_steps=total_steps, seed=seed), recipe="cartpole", ppo=config)
