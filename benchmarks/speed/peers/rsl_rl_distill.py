"""rsl-rl-lib 5.5.1: `DistillationRunner.learn` itself; only timed from outside.

The teacher is an untrained network of the student's size. Everything else is as in `rsl_rl.py`.

Differences from the workload: gradients are of consecutive steps of all environments, in order, as rsl_rl does it, the
same number of gradient steps on the same samples. It has no critic, and computes no returns.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from rsl_rl.runners import DistillationRunner  # type: ignore[import-not-found, unused-ignore]
from tensordict import TensorDict

from benchmarks.speed.harness import Clock, Job
from benchmarks.speed.peers.rsl_rl import RslRl, TensorRslEnv
from benchmarks.speed.tensor_env import TensorEnv


class RslRlDistill(RslRl):
    """`DistillationRunner.learn` in slices of whole iterations."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.device, self.clock, self.steps = job.device, Clock(job.device), 0
        env = TensorRslEnv(TensorEnv(w.num_envs, job.device, seed=job.seed))
        with contextlib.redirect_stdout(io.StringIO()):
            self.runner = DistillationRunner(env, self.config(), log_dir=None, device=job.device)
        self.runner.alg.teacher_loaded = True
        self.runner.alg.update = self.clock.timed(self.runner.alg.update)
        self.runner.logger.log = lambda **_: None

    def config(self) -> dict[str, Any]:
        w, known = self.w, super().config()
        return known | {
            "obs_groups": {"student": ["policy"], "teacher": ["policy"]},
            "student": known["actor"],
            "teacher": known["critic"],
            "algorithm": {
                "class_name": "Distillation",
                "num_learning_epochs": w.num_epochs,
                "gradient_length": w.num_steps // w.num_minibatches,
                "learning_rate": w.learning_rate,
                "max_grad_norm": w.max_grad_norm,
                "loss_type": "mse",
            },
        }

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.answer(self.runner.alg.student, obs)

    @torch.no_grad()
    def target(self, obs: np.ndarray) -> np.ndarray:
        return self.answer(self.runner.alg.teacher, obs)

    def answer(self, network: Any, obs: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        return np.asarray(network(TensorDict({"policy": x}, batch_size=[len(x)])).cpu())


def build(job: Job) -> RslRlDistill:
    """The trainer."""
    return RslRlDistill(job)
