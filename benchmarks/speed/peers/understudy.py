"""understudy: `PPO.iterate`, with the library's defaults where the workload says nothing; only its own clock is read.

Environments: `make_env(id, 8, backend="gymnasium")`: `gymnasium.make(id)` copies in this process, as for the peers
(variant "envpool": EnvPool's instead). W3: the tensor environment as a `VecEnv`;
W6: the picture book as one, and EnvPool's Pong. Observations are not normalised, as
for the peers. Nothing is logged to disk, as for the peers; episode statistics, the finiteness check and all training
statistics are computed, because `iterate` always computes them.

Variants: "eager" (nothing captured), "compile" (the captured code through torch.compile).

Differences from the workload: none. A time limit bootstraps from the value of the true final observation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

import understudy as us
from benchmarks.speed import frames
from benchmarks.speed.harness import Clock, Job, Trainer
from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv
from benchmarks.speed.workloads import Workload
from understudy.envs import Step, VecEnv


class TensorTask:
    """W3's environment as a `VecEnv`."""

    def __init__(self, env: TensorEnv) -> None:
        self.env, self.num_envs, self.device = env, env.num_envs, env.device
        self.observation_space = spaces.Dict({"policy": spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32)})
        self.action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def pack(self, obs: Tensor) -> TensorDict:
        return TensorDict({"policy": obs}, batch_size=[self.num_envs], device=self.device)

    def reset(self, seed: int | None = None) -> TensorDict:
        return self.pack(self.env.reset(seed))

    def step(self, action: Tensor) -> Step:
        s = self.env.step(action)
        return Step(self.pack(s.obs), s.reward, s.terminated, s.truncated, self.pack(s.final_obs), {})

    def close(self) -> None: ...


class FramesTask:
    """W6's picture book as a `VecEnv`."""

    device = torch.device("cpu")

    def __init__(self, env: frames.Frames) -> None:
        self.env, self.num_envs = env, env.num_envs
        self.observation_space = spaces.Dict({"policy": spaces.Box(0, 255, frames.SHAPE, np.uint8)})
        self.action_space: spaces.Space[Any] = spaces.Discrete(frames.ACTIONS)

    def pack(self, obs: np.ndarray) -> TensorDict:
        return TensorDict({"policy": torch.from_numpy(obs)}, batch_size=[self.num_envs])

    def reset(self, seed: int | None = None) -> TensorDict:
        return self.pack(self.env.reset())

    def step(self, action: Tensor) -> Step:
        s = self.env.step(action.numpy())
        signals = (torch.from_numpy(x) for x in (s.reward, s.terminated, s.truncated))
        return Step(self.pack(s.obs), *signals, self.pack(s.final_obs), {})

    def close(self) -> None: ...


class Understudy(Trainer):
    """`PPO.iterate` in a loop."""

    state: Tensor | None = None  # of a memory, in `act`

    def __init__(self, job: Job) -> None:
        w = job.workload
        self.clock = Clock(job.device)
        env: VecEnv
        if w.env_id == "tensor":
            env = TensorTask(TensorEnv(w.num_envs, job.device, seed=job.seed))
        elif w.env_id == "frames":
            env = FramesTask(frames.make(w.env_id, w.num_envs, job.seed))
        else:
            backend = "envpool" if job.variant == "envpool" or w.images else "gymnasium"
            env = us.make_env(w.env_id, w.num_envs, backend=backend, device=job.device, seed=job.seed)
        torch.manual_seed(job.seed)
        policy = us.ActorCritic(env.observation_space, env.action_space, policy_config(w))
        self.ppo = us.PPO(env, policy, ppo_config(w, job.variant), seed=job.seed)

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self.ppo.env_steps

    def gradient_steps(self) -> int:
        return int(self.ppo.optimizer.steps + self.ppo.optimizer.skipped)

    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            self.clock.update_s += self.ppo.iterate()["time/update"]

    def act(self, obs: np.ndarray) -> np.ndarray:
        action, self.state = self.ppo.policy.act(obs, self.state, deterministic=True)
        return np.asarray(action)

    def restart(self) -> None:
        self.state = None


def policy_config(w: Workload) -> us.PolicyConfig:
    """Separate actor and critic of the workload's widths."""
    return us.PolicyConfig(
        hidden_sizes=w.hidden,
        activation=w.activation,
        distribution=replace(us.PolicyConfig().distribution, init_std=w.init_std),
        normalize_observations=False,
        shared_trunk=w.images,
        memory="lstm" if w.lstm else "none",
        memory_size=w.lstm or us.PolicyConfig().memory_size,
    )


def ppo_config(w: Workload, variant: str) -> us.PPOConfig:
    """The workload in our words."""
    assert w.normalize_advantage in ("minibatch", "rollout")
    return us.PPOConfig(
        num_steps=w.num_steps,
        epochs=w.num_epochs,
        minibatches=w.num_minibatches,
        clip_epsilon=w.clip_epsilon,
        value_coef=w.value_coef,
        value_clip=w.clip_epsilon if w.clip_value else None,
        entropy_coef=w.entropy_coef,
        gamma=w.gamma,
        gae_lambda=w.gae_lambda,
        advantage_normalization="minibatch" if w.normalize_advantage == "minibatch" else "rollout",
        optimizer=us.OptimizerConfig(learning_rate=w.learning_rate, max_grad_norm=w.max_grad_norm),
        desired_kl=w.desired_kl,
        capture=variant if variant in ("eager", "compile", "cudagraph") else "trace",
    )


def build(job: Job) -> Understudy:
    """The trainer."""
    return Understudy(job)
