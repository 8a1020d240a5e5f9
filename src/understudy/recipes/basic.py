"""PPO and A2C with no expert: the plain algorithms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from understudy.core.check import checked
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.envs.simulators import simulator_of
from understudy.nn.protocol import PolicyConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.runs.config import TrainConfig


@checked
def ppo(
    env_id: str = "CartPole-v1",
    *,
    num_envs: int = 8,
    memory: Literal["none", "lstm", "gru"] = "none",
    total_steps: int = 100_000,
    seed: int = 0,
) -> TrainConfig:
    """PPO for any task (--env.id), fitted to the number of environments and of steps."""
    # rollouts of 1,024 steps, from 32 environments on of 32 each; in 16s, so that 16 minibatches divide them
    steps = 16 * max(2, math.ceil(64 / num_envs))
    return TrainConfig(
        recipe="ppo",
        env=EnvConfig(id=env_id, num_envs=num_envs),
        policy=unbounded(PolicyConfig(memory=memory), env_id),
        ppo=PPOConfig(
            num_steps=steps,
            epochs=10,
            # a recurrent policy trains on whole environments
            minibatches=16 if memory == "none" else math.gcd(num_envs, 16),
            reward_normalization=True,
            optimizer=OptimizerConfig(learning_rate=Schedule(kind="linear", start=first_learning_rate(total_steps))),
        ),
        total_steps=total_steps,
        seed=seed,
    )


def unbounded(policy: PolicyConfig, env_id: str) -> PolicyConfig:
    """The policy, whose actions go out as they are where a simulator has no bounds for them."""
    simulator = simulator_of(env_id)
    as_they_are = simulator is not None and simulator[0].unbounded
    return replace(policy, action_bound="none", action_scaling="off") if as_they_are else policy


def first_learning_rate(total_steps: int) -> float:
    """3e-4 from a million steps on; fewer have to be larger, by the square root, up to 1e-3."""
    return min(1e-3, 3e-4 * math.sqrt(max(1.0, 1e6 / max(total_steps, 1))))


@checked
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


@checked
def cartpole(*, total_steps: int = 100_000, seed: int = 0) -> TrainConfig:
    """CartPole-v1 to its maximum of 500 in seconds."""
    optimizer = OptimizerConfig(learning_rate=Schedule(kind="linear", start=1e-3))
    config = PPOConfig(num_steps=128, epochs=10, minibatches=4, gae_lambda=0.95, optimizer=optimizer)
    return replace(ppo(total_steps=total_steps, seed=seed), recipe="cartpole", ppo=config)
