"""A plain loop over tensors: a shuffled index per epoch, minibatches by indexing, squared error, `torch.optim.Adam`.

Differences from the workload: none; there is no critic and no standard deviation.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.speed.harness import Clock, Job, Trainer, make_demonstrations, mlp


class PlainBC(Trainer):
    """What a reader writes down."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.clock, self.steps = Clock(job.device), 0
        obs, actions = make_demonstrations(w.episodes, job.seed).pairs()
        self.obs, self.actions = (torch.as_tensor(x, device=job.device) for x in (obs, actions))
        self.actor = mlp((obs.shape[1], *w.hidden, actions.shape[1]), w.activation).to(job.device)
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=w.learning_rate)

    def run(self, iterations: int) -> None:
        with self.clock.update():
            for _ in range(iterations):
                order = torch.randperm(len(self.obs), device=self.obs.device)[: self.w.steps_per_iteration]
                for rows in order.split(self.w.minibatch_size):
                    loss = torch.nn.functional.mse_loss(self.actor(self.obs[rows]), self.actions[rows])
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    self.steps += len(rows)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.actor(torch.as_tensor(obs, device=self.obs.device)).cpu())


def build(job: Job) -> PlainBC:
    """The trainer."""
    return PlainBC(job)
