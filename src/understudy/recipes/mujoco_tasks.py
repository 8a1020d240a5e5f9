"""PPO on Gymnasium's MuJoCo tasks (extra `mujoco`)."""

from __future__ import annotations

import dataclasses

from understudy.core.check import checked
from understudy.core.schedules import Schedule
from understudy.envs.makers import is_simulator
from understudy.envs.registry import EnvConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.protocol import PolicyConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.recipes.basic import ppo, unbounded
from understudy.runs.config import EvaluationConfig, TrainConfig


@checked
def mujoco(env_id: str = "HalfCheetah-v5", *, total_steps: int = 1_000_000, seed: int = 0) -> TrainConfig:
    """PPO for Hopper-v5, HalfCheetah-v5, Walker2d-v5: one set of numbers for all three; choose with --env.id."""
    return dataclasses.replace(
        ppo(env_id, total_steps=total_steps, seed=seed),
        recipe="mujoco",
        # the backend is named: EnvPool's MuJoCo is another version, and scores differ across versions
        env=EnvConfig(id=env_id, num_envs=8, backend="auto" if is_simulator(env_id) else "gymnasium"),
        policy=unbounded(PolicyConfig(distribution=DistributionConfig(init_std=0.55)), env_id),
        ppo=PPOConfig(
            num_steps=256,
            epochs=10,
            minibatches=32,
            gae_lambda=0.9,
            value_coef=0.25,
            value_normalization="scale",
            recompute_advantage=True,
            optimizer=OptimizerConfig(learning_rate=Schedule(kind="linear", start=3e-4), eps=1e-8),
        ),
    )


@checked
def demo_mujoco(*, total_steps: int = 150_000, seed: int = 0) -> TrainConfig:
    """What `make demo-mujoco` runs: HalfCheetah-v5 learns to run in about a minute on two cores."""
    config = mujoco("HalfCheetah-v5", total_steps=total_steps, seed=seed)
    # in a hurry: a large learning rate, a short horizon and little exploration noise from the start
    return dataclasses.replace(
        config,
        recipe="demo-mujoco",
        policy=PolicyConfig(distribution=DistributionConfig(init_std=0.5)),
        ppo=dataclasses.replace(
            config.ppo,
            num_steps=128,
            minibatches=16,
            gamma=0.98,
            gae_lambda=0.92,
            value_coef=0.5,
            value_normalization="none",
            recompute_advantage=False,
            reward_normalization=True,
            optimizer=OptimizerConfig(learning_rate=Schedule(kind="linear", start=1e-3)),
        ),
        evaluation=EvaluationConfig(interval=max(total_steps // 5, 1), episodes=5),
    )
