"""GAIL in Tianshou 1.2: its policy, collector, buffers and trainer, with a scripted expert.

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


class Reach(gymnasium.Env[np.ndarray, np.ndarray]):
    """Go to the origin within 20 steps."""

    observation_space = gymnasium.spaces.Box(-5.0, 5.0, (2,))
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,))

    def reset(self, **options: Any) -> Any:
        super().reset(**options)
        self.place, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.place, {}

    def step(self, action: np.ndarray) -> Any:
        self.place, self.steps = (self.place + 0.1 * action).clip(-5, 5).astype(np.float32), self.steps + 1
        return self.place, -float(np.abs(self.place).sum()), False, self.steps == 20, {}


def expert(episodes: int) -> ReplayBuffer:
    """Straight to the origin; a buffer holds actions in [-1, 1], before `map_action`."""
    env, buffer = Reach(), ReplayBuffer(20 * episodes)
    for k in range(episodes):
        (obs, _), over = env.reset(seed=k), False
        while not over:
            act = np.clip(-3 * obs, -1, 1)
            obs_next, rew, _, over, _ = env.step(2 * act)
            buffer.add(Batch(obs=obs, act=act, rew=rew, terminated=False, truncated=over, obs_next=obs_next))
            obs = obs_next
    return buffer


def main(epochs: int = 30, steps: int = 800) -> Any:
    """Train; returns the policy."""
    np.random.seed(0)
    torch.manual_seed(0)
    envs, test_envs = (DummyVectorEnv([Reach for _ in range(4)]) for _ in range(2))
    envs.seed(0)
    test_envs.seed(4)
    actor = ActorProb(Net(2, hidden_sizes=[64, 64]), 2, unbounded=True)
    critic = Critic(Net(2, hidden_sizes=[64, 64]))
    disc_net = Critic(Net(2, action_shape=2, hidden_sizes=[64, 64], concat=True))
    policy = GAILPolicy(
        actor=actor,
        critic=critic,
        optim=torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3),
        dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
        action_space=Reach.action_space,
        expert_buffer=expert(50),
        disc_net=disc_net,
        disc_optim=torch.optim.Adam(disc_net.parameters(), lr=1e-3),
        disc_update_num=2,
        discount_factor=0.9,
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
        repeat_per_collect=5,
        episode_per_test=20,
        batch_size=64,
        show_progress=False,
    ).run()
    print(f"return {result.best_reward:.1f} ± {result.best_reward_std:.1f}")
    return policy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
