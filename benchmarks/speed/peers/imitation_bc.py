"""imitation 1.0.1: `BC.train` itself, on SB3's `ActorCriticPolicy`; only timed from outside.

Installed without its dependencies beside stable-baselines3 2.9.2 and gymnasium 1.4: it asks for versions of 2023
(gymnasium 0.29, which has no HalfCheetah-v5). No progress bar, nothing logged to disk. Loss: its negative
log-likelihood with entropy bonus (1e-3, its default).

Differences from the workload: none.
"""

from __future__ import annotations

import numpy as np
from imitation.algorithms.bc import BC  # type: ignore[import-not-found, unused-ignore]
from imitation.util import logger  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3.common.policies import ActorCriticPolicy  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed.harness import ACTIVATIONS, Clock, Job, Trainer, make_demonstrations, make_env
from benchmarks.speed.peers.imitation_gail import transitions


class ImitationBC(Trainer):
    """`BC.train` in slices of whole epochs."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.clock, self.steps = Clock(job.device), 0
        env = make_env(w.env_id)
        self.policy = ActorCriticPolicy(
            env.observation_space,
            env.action_space,
            lambda _: w.learning_rate,
            net_arch=list(w.hidden),
            activation_fn=ACTIVATIONS[w.activation],
        )
        self.trainer = BC(
            observation_space=env.observation_space,
            action_space=env.action_space,
            rng=np.random.default_rng(job.seed),
            policy=self.policy,
            demonstrations=transitions(make_demonstrations(w.episodes, job.seed)),
            batch_size=w.minibatch_size,
            optimizer_kwargs={"lr": w.learning_rate},
            device=job.device,
            custom_logger=logger.configure(format_strs=[]),
        )

    def run(self, iterations: int) -> None:
        with self.clock.update():
            self.trainer.train(n_epochs=iterations, progress_bar=False)
        self.steps += iterations * self.w.steps_per_iteration

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.policy.predict(obs, deterministic=True)[0])


def build(job: Job) -> ImitationBC:
    """The trainer."""
    return ImitationBC(job)
