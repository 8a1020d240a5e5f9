"""tianshou 2.0.1: `OfflineImitationLearning.update` on batches from a `ReplayBuffer`, as its `OfflineTrainer` does.

Loss: squared error. The trainer's progress bars, logging and test collection are left out (in tianshou's favour).

Differences from the workload:
- every minibatch is drawn with replacement, so that an epoch does not visit every pair (the same amount of work).
"""

from __future__ import annotations

import numpy as np
import torch
from tianshou.algorithm.imitation.imitation_base import (  # type: ignore[import-not-found, unused-ignore]
    ImitationPolicy,
    OfflineImitationLearning,
)
from tianshou.algorithm.optim import AdamOptimizerFactory  # type: ignore[import-not-found, unused-ignore]
from tianshou.utils.net.common import Net  # type: ignore[import-not-found, unused-ignore]
from tianshou.utils.net.continuous import (  # type: ignore[import-not-found, unused-ignore]
    ContinuousActorDeterministic,
)
from tianshou.utils.torch_utils import policy_within_training_step  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed.harness import ACTIVATIONS, Clock, Job, Trainer, make_demonstrations, make_env
from benchmarks.speed.peers.tianshou import buffer_of


class TianshouBC(Trainer):
    """`update` once per minibatch."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.clock, self.steps = Clock(job.device), 0
        env = make_env(w.env_id)
        net = Net(
            state_shape=env.observation_space.shape,
            hidden_sizes=list(w.hidden),
            activation=ACTIVATIONS[w.activation],
        )
        self.actor = ContinuousActorDeterministic(preprocess_net=net, action_shape=env.action_space.shape)
        self.algorithm = OfflineImitationLearning(
            policy=ImitationPolicy(actor=self.actor, action_space=env.action_space),
            optim=AdamOptimizerFactory(lr=w.learning_rate),
        ).to(job.device)
        self.buffer = buffer_of(make_demonstrations(w.episodes, job.seed))

    def run(self, iterations: int) -> None:
        with policy_within_training_step(self.algorithm.policy), self.clock.update():
            for _ in range(iterations * self.w.num_minibatches):
                self.algorithm.update(buffer=self.buffer, sample_size=self.w.minibatch_size)
                self.steps += self.w.minibatch_size

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.actor(obs)[0].cpu())


def build(job: Job) -> TianshouBC:
    """The trainer."""
    return TianshouBC(job)
