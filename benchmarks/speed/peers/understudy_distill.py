"""understudy: `PPO.iterate` with the part `Teacher` and PPO's own coefficients 0, as in the recipe `distill`.

The teacher is an untrained policy of the same size; the distance is the squared error of the mode, as in rsl_rl.

Differences from the workload: minibatches are drawn from all steps, each of as many rows as the steps of a gradient
length have. Returns, values and ratios of the student are computed, as `iterate` always computes them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

import understudy as us
from benchmarks.speed.harness import Clock, Job
from benchmarks.speed.peers.understudy import TensorTask, Understudy, policy_config, ppo_config
from benchmarks.speed.tensor_env import ACTION_DIM, TensorEnv
from understudy.parts import TeacherConfig


class UnderstudyDistill(Understudy):
    """The same loop, with the part."""

    def __init__(self, job: Job) -> None:
        w = job.workload
        self.clock = Clock(job.device)
        env = TensorTask(TensorEnv(w.num_envs, job.device, seed=job.seed))
        torch.manual_seed(job.seed)
        policy, self.teacher = (
            us.ActorCritic(env.observation_space, env.action_space, policy_config(w)).to(job.device) for _ in range(2)
        )
        with torch.no_grad():
            for weight in self.teacher.head.parameters():
                weight.mul_(30.0)  # a policy's last layer starts small: its actions would all be 0
        context = us.PartContext.of(env, policy, name="teacher", num_steps=w.num_steps, gamma=w.gamma, seed=job.seed)
        context = dataclasses.replace(context, load_policy=lambda _: self.teacher)
        mean = TeacherConfig(checkpoints=("teacher",), target="mse_sum", coef=1.0 / ACTION_DIM)
        config = dataclasses.replace(
            ppo_config(w, job.variant), surrogate_coef=0.0, value_coef=0.0, entropy_coef=0.0, value_clip=None
        )
        self.ppo = us.PPO(env, policy, config, {"teacher": mean.build(context)}, seed=job.seed)

    def target(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.teacher.act(obs, deterministic=True)[0])


def build(job: Job) -> UnderstudyDistill:
    """The trainer."""
    return UnderstudyDistill(job)
