"""tianshou 2.0.1: `GAIL`, in the loop of `tianshou.py`; the discriminator is the `ContinuousCritic` of its example.

Differences from the workload: none (observations are not normalised, no gradient penalty, as for everyone).
"""

from __future__ import annotations

from typing import Any

import torch
from tianshou.algorithm import GAIL  # type: ignore[import-not-found, unused-ignore]
from tianshou.algorithm.optim import AdamOptimizerFactory  # type: ignore[import-not-found, unused-ignore]
from tianshou.utils.net.common import Net  # type: ignore[import-not-found, unused-ignore]
from tianshou.utils.net.continuous import ContinuousCritic  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed.harness import Job, make_demonstrations
from benchmarks.speed.peers.tianshou import Tianshou, buffer_of


class TianshouGail(Tianshou):
    """The same loop, with GAIL's update."""

    def __init__(self, job: Job) -> None:
        self.demonstrations = make_demonstrations(job.workload.episodes, job.seed)
        super().__init__(job)

    def build_algorithm(self, obs_space: Any, action_space: Any) -> Any:
        w = self.w
        net = Net(
            state_shape=obs_space.shape,
            action_shape=action_space.shape,
            hidden_sizes=list(w.disc_hidden),
            activation=torch.nn.Tanh,
            concat=True,
        )
        return GAIL(
            **self.arguments(obs_space, action_space),
            expert_buffer=buffer_of(self.demonstrations),
            disc_net=ContinuousCritic(preprocess_net=net),
            disc_optim=AdamOptimizerFactory(lr=w.learning_rate),
            disc_update_num=w.disc_updates,
        )


def build(job: Job) -> TianshouGail:
    """The trainer."""
    return TianshouGail(job)
