"""understudy: `OfflineTraining.epoch`, what `understudy train bc` runs; its validation split is switched off.

The demonstrations are read from a file of the library's own. Loss: the squared error of the mode, the default for
continuous actions (variant "nll": the negative log-likelihood). The policy has a critic too, whose parameters every
optimizer step passes over.

Differences from the workload: none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import understudy as us
from benchmarks.speed.harness import Clock, Demonstrations, Job, Trainer, make_demonstrations
from benchmarks.speed.peers.understudy import policy_config
from understudy.data.demonstrations.write import Episode, write_npz
from understudy.parts import BehaviorCloningConfig
from understudy.runs.config import OfflineConfig
from understudy.training.offline import OfflineTraining


class UnderstudyBC(Trainer):
    """Epochs of behaviour cloning."""

    def __init__(self, job: Job) -> None:
        w = job.workload
        self.clock, self.rows = Clock(job.device), w.minibatch_size
        env = us.make_env(w.env_id, 1, backend="gymnasium", device=job.device, seed=job.seed)
        torch.manual_seed(job.seed)
        policy = us.ActorCritic(env.observation_space, env.action_space, policy_config(w))
        context = us.PartContext.of(env, policy, name="bc", num_steps=1, gamma=w.gamma, seed=job.seed)
        config = BehaviorCloningConfig(
            demonstrations=written(make_demonstrations(w.episodes, job.seed)),
            loss="nll" if job.variant == "nll" else "mse",
            batch_size=w.minibatch_size,
        )
        optimizer = us.OptimizerConfig(learning_rate=w.learning_rate, max_grad_norm=None)
        self.ppo = us.PPO(env, policy, us.PPOConfig(optimizer=optimizer), {"bc": config.build(context)}, seed=job.seed)
        offline = OfflineConfig(epochs=1_000, learning_rate=w.learning_rate, validation_fraction=0.0)
        self.training = OfflineTraining(self.ppo, offline)

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self.gradient_steps() * self.rows

    def gradient_steps(self) -> int:
        return int(self.ppo.optimizer.steps + self.ppo.optimizer.skipped)

    def run(self, iterations: int) -> None:
        with self.clock.update():
            for _ in range(iterations):
                self.training.epoch()

    def act(self, obs: np.ndarray) -> np.ndarray:
        action, _ = self.ppo.policy.act(obs, deterministic=True)
        return np.asarray(action)


def written(demonstrations: Demonstrations) -> str:
    """A file with these episodes."""
    path = Path(tempfile.mkdtemp()) / "demonstrations.npz"
    episodes = [
        Episode(
            observations={("policy",): obs},
            actions=actions,
            rewards=np.zeros(len(actions)),
            terminated=False,
            truncated=True,
        )
        for obs, actions in zip(demonstrations.obs, demonstrations.actions)
    ]
    write_npz(path, episodes, {})
    return str(path)


def build(job: Job) -> UnderstudyBC:
    """The trainer."""
    return UnderstudyBC(job)
