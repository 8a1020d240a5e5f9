"""GAIL in Tianshou 1.2: its policy, collector, buffers and trainer, on Pendulum with a scripted expert.

python examples/coming_from/tianshou_before.py
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import torch
from tianshou.data import Batch, Collector, ReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.policy import GAILPolicy
from tianshou.trainer import OnpolicyTrainer
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ActorProb, Critic
from torch.distributions import Independent, Normal


def expert(steps: int) -> ReplayBuffer:
    """Swing up by energy, then balance."""
    env, buffer = gymnasium.make("Pendulum-v1"), ReplayBuffer(steps)
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        cos, sin, speed = obs
        energy = speed**2 / 2 + 15 * cos - 15
        torque = -8 * sin - 2 * speed if cos > 0.9 else -energy * speed
        action = np.clip([torque / 2], -1, 1).astype(np.float32)
        obs_next, reward, terminated, truncated, _ = env.step(2 * action)
        buffer.add(
            Batch(obs=obs, act=action, rew=reward, terminated=terminated, truncated=truncated, obs_next=obs_next)
        )
        obs = env.reset()[0] if truncated else obs_next
    return buffer


def main(epochs: int = 30, steps: int = 2000) -> Any:
    """Train; returns the policy."""
    np.random.seed(0)
    torch.manual_seed(0)
    envs, test_envs = (DummyVectorEnv([lambda: gymnasium.make("Pendulum-v1") for _ in range(4)]) for _ in range(2))
    envs.seed(0)
    test_envs.seed(4)
    actor = ActorProb(Net(3, hidden_sizes=[64, 64]), 1, unbounded=True)
    critic = Critic(Net(3, hidden_sizes=[64, 64]))
    disc_net = Critic(Net(3, action_shape=1, hidden_sizes=[64, 64], concat=True))
    policy = GAILPolicy(
        actor=actor,
        critic=critic,
        optim=torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3),
        dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
        action_space=gymnasium.make("Pendulum-v1").action_space,
        expert_buffer=expert(2000),
        disc_net=disc_net,
        disc_optim=torch.optim.Adam(disc_net.parameters(), lr=1e-3),
        disc_update_num=2,
        gae_lambda=0.95,
        discount_factor=0.95,
        reward_normalization=True,
        max_grad_norm=0.5,
    )
    train = Collector(policy, envs, VectorReplayBuffer(steps, 4))
    test = Collector(policy, test_envs)
    train.reset()
    test.reset()
    result = OnpolicyTrainer(
        policy=policy,
        train_collector=train,
        test_collector=test,
        max_epoch=epochs,
        step_per_epoch=steps,
        step_per_collect=steps,
        repeat_per_collect=10,
        episode_per_test=4,
        batch_size=64,
        show_progress=False,
    ).run()
    print(f"return {result.best_reward:.0f} ± {result.best_reward_std:.0f}")
    return policy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
