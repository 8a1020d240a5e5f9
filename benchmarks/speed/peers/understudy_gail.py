"""understudy: `PPO.iterate` with the part `Gail`, without gradient penalty and replay, which the peers do not have.

The demonstrations are read from a file of the library's own; everything else is as in `understudy.py`.

Differences from the workload: none.
"""

from __future__ import annotations

import dataclasses

import torch

import understudy as us
from benchmarks.speed.harness import Clock, Job, make_demonstrations
from benchmarks.speed.peers.understudy import Understudy, policy_config, ppo_config
from benchmarks.speed.peers.understudy_bc import written
from understudy.parts import Gail, GailConfig
from understudy.parts.shared.discriminator import DiscriminatorConfig


class UnderstudyGail(Understudy):
    """The same loop, with the part."""

    def __init__(self, job: Job) -> None:
        w = job.workload
        self.clock = Clock(job.device)
        env = us.make_env(w.env_id, w.num_envs, backend="gymnasium", device=job.device, seed=job.seed)
        torch.manual_seed(job.seed)
        policy = us.ActorCritic(env.observation_space, env.action_space, policy_config(w))
        context = us.PartContext.of(env, policy, name="gail", num_steps=w.num_steps, gamma=w.gamma, seed=job.seed)
        self.gail: Gail = GailConfig(
            demonstrations=written(make_demonstrations(w.episodes, job.seed)),
            normalization="none",
            discriminator=DiscriminatorConfig(
                hidden_sizes=w.disc_hidden,
                activation="tanh",
                disc_update_num=w.disc_updates,
                optimizer=us.OptimizerConfig(learning_rate=w.learning_rate, max_grad_norm=None),
            ),
        ).build(context)
        config = dataclasses.replace(ppo_config(w, job.variant), reward_weight=0.0)
        self.ppo = us.PPO(env, policy, config, {"gail": self.gail}, seed=job.seed)

    def gradient_steps(self) -> int:
        optimizers = (self.ppo.optimizer, self.gail.discriminator.optimizer)
        return sum(int(optimizer.steps + optimizer.skipped) for optimizer in optimizers)

    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            times = self.ppo.iterate()
            self.clock.update_s += times["time/update"] + times["time/gail"]


def build(job: Job) -> UnderstudyGail:
    """The trainer."""
    return UnderstudyGail(job)
