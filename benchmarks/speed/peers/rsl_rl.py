"""rsl-rl-lib 5.5.1: `OnPolicyRunner.learn` itself; only timed from outside.

Environments: W3's tensor environment, and `gymnasium.vector.SyncVectorEnv` (SAME_STEP) in W2, behind rsl_rl's `VecEnv`.
No log folder (its episode statistics and TensorBoard are off); `check_for_nan` keeps its default, on.

Differences from the workload:
- W1 cannot run: rsl_rl has no distribution for discrete actions;
- the permutation is drawn once per update, not once per epoch; actor and critic gradients are clipped separately; time
  limits bootstrap with V(s_t): all as rsl_rl does it, the same number of gradient steps on the same samples;
- its KL is measured only where the workload adapts the learning rate (W3).
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from rsl_rl.env import VecEnv  # type: ignore[import-not-found, unused-ignore]
from rsl_rl.runners import OnPolicyRunner  # type: ignore[import-not-found, unused-ignore]
from tensordict import TensorDict
from torch import Tensor

from benchmarks.speed.harness import Clock, Job, Trainer, vector_env
from benchmarks.speed.tensor_env import ACTION_DIM, TensorEnv


class TensorRslEnv(VecEnv):  # type: ignore[misc, unused-ignore]
    """W3's environment as rsl_rl speaks to simulators."""

    def __init__(self, env: TensorEnv) -> None:
        self.env, self.num_envs, self.num_actions, self.device = env, env.num_envs, ACTION_DIM, env.device
        self.max_episode_length, self.cfg = env.max_length, None
        self.episode_length_buf = env.age

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": self.env.observe()}, batch_size=[self.num_envs], device=self.device)

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        step = self.env.step(actions)
        obs = TensorDict({"policy": step.obs}, batch_size=[self.num_envs], device=self.device)
        return obs, step.reward, (step.terminated | step.truncated).long(), {"time_outs": step.truncated}


class GymRslEnv(VecEnv):  # type: ignore[misc, unused-ignore]
    """Gymnasium environments with continuous actions."""

    def __init__(self, job: Job) -> None:
        self.envs = vector_env(job.workload, job.seed)
        self.num_envs, self.device, self.cfg = self.envs.num_envs, torch.device("cpu"), None
        space: Any = self.envs.single_action_space
        self.low, self.high, self.num_actions = space.low, space.high, int(space.shape[0])
        self.max_episode_length = 1000
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self.obs = self.pack(self.envs.reset(seed=job.seed)[0])

    def pack(self, obs: np.ndarray) -> TensorDict:
        return TensorDict({"policy": torch.as_tensor(obs, dtype=torch.float32)}, batch_size=[self.num_envs])

    def get_observations(self) -> TensorDict:
        return self.obs

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        clipped = np.clip(actions.numpy(), self.low, self.high)
        obs, reward, terminated, truncated, _ = self.envs.step(clipped)
        self.obs = self.pack(obs)
        done = torch.as_tensor(np.logical_or(terminated, truncated)).long()
        extras = {"time_outs": torch.as_tensor(truncated)}
        return self.obs, torch.as_tensor(reward, dtype=torch.float32), done, extras


class RslRl(Trainer):
    """`OnPolicyRunner.learn` in slices of whole iterations."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.device, self.clock, self.steps = job.device, Clock(job.device), 0
        if w.env_id == "tensor":
            env: VecEnv = TensorRslEnv(TensorEnv(w.num_envs, job.device, seed=job.seed))
        else:
            env = GymRslEnv(job)
        with contextlib.redirect_stdout(io.StringIO()):
            self.runner = OnPolicyRunner(env, self.config(), log_dir=None, device=job.device)
        self.runner.alg.update = self.clock.timed(self.runner.alg.update)
        self.runner.logger.log = lambda **_: None  # it would print a table per iteration

    def config(self) -> dict[str, Any]:
        w = self.w
        network = {"class_name": "MLPModel", "hidden_dims": list(w.hidden), "activation": w.activation}
        if w.lstm:
            network |= {"class_name": "RNNModel", "rnn_type": "lstm", "rnn_hidden_dim": w.lstm, "rnn_num_layers": 1}
        return {
            "num_steps_per_env": w.num_steps,
            "save_interval": 10**9,
            "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": {
                **network,
                "distribution_cfg": {
                    "class_name": "GaussianDistribution",
                    "init_std": w.init_std,
                    "std_type": "scalar",
                },
            },
            "critic": network,
            "algorithm": {
                "class_name": "PPO",
                "num_learning_epochs": w.num_epochs,
                "num_mini_batches": w.num_minibatches,
                "clip_param": w.clip_epsilon,
                "gamma": w.gamma,
                "lam": w.gae_lambda,
                "value_loss_coef": w.value_coef,
                "entropy_coef": w.entropy_coef,
                "learning_rate": w.learning_rate,
                "max_grad_norm": w.max_grad_norm,
                "use_clipped_value_loss": w.clip_value,
                "schedule": "adaptive" if w.desired_kl is not None else "fixed",
                "desired_kl": w.desired_kl,
                "normalize_advantage_per_mini_batch": w.normalize_advantage == "minibatch",
            },
        }

    def run(self, iterations: int) -> None:
        self.restart()  # the check may have left a state of one environment
        self.runner.learn(iterations)
        self.steps += iterations * self.w.steps_per_iteration

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        return np.asarray(self.runner.alg.actor(TensorDict({"policy": x}, batch_size=[len(x)])).cpu())

    def restart(self) -> None:
        if self.w.lstm:
            self.runner.alg.actor.rnn.hidden_state = None


def build(job: Job) -> RslRl:
    """The trainer."""
    return RslRl(job)
