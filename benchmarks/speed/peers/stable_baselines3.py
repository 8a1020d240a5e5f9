"""stable-baselines3 2.9.2: `PPO.learn` itself, its own rollout buffer, policy and update; only timed from outside.

Environments: `DummyVecEnv` of `gymnasium.make(id)`, in this process, without `Monitor` (its fastest configuration);
log_interval=None, no callback. W3 and W6: their environments behind SB3's numpy `VecEnv`.

Differences from the workload, all in SB3's favour:
- no adaptive KL: W3 runs at a constant learning rate (no KL against the stored distribution is computed);
- the clipped value loss has no pessimistic maximum (one squared error instead of two);
- W5 is sb3-contrib 2.9.2's `RecurrentPPO`, whose minibatches are cut anywhere and padded, not whole environments;
- advantages can only be normalised per minibatch (W3 asks for the rollout): the same order of work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed import frames
from benchmarks.speed.harness import ACTIVATIONS, Clock, Job, Trainer, make_env
from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv


class TensorVecEnv(VecEnv):  # type: ignore[misc, unused-ignore]
    """W3's environment behind SB3's numpy interface."""

    def __init__(self, env: TensorEnv) -> None:
        self.env = env
        super().__init__(
            env.num_envs,
            spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32),
            spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32),
        )

    def reset(self) -> np.ndarray:
        return np.asarray(self.env.reset().cpu())

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = torch.as_tensor(actions, device=self.env.device)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        step = self.env.step(self._actions)
        done = np.asarray(step.truncated.cpu())
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            final_obs = np.asarray(step.final_obs.cpu())
            for i in np.flatnonzero(done):
                infos[i] = {"terminal_observation": final_obs[i], "TimeLimit.truncated": True}
        return np.asarray(step.obs.cpu()), np.asarray(step.reward.cpu()), done, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class FramesVecEnv(TensorVecEnv):
    """W6's frames."""

    def __init__(self, env: frames.Frames) -> None:
        self.frames = env
        box = spaces.Box(0, 255, frames.SHAPE, np.uint8)
        VecEnv.__init__(self, env.num_envs, box, spaces.Discrete(frames.ACTIONS))

    def reset(self) -> np.ndarray:
        return self.frames.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        step = self.frames.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(step.truncated):
            infos[i] = {"terminal_observation": step.final_obs[i], "TimeLimit.truncated": True}
        return step.obs, step.reward, step.terminated | step.truncated, infos


class SB3(Trainer):
    """`PPO.learn` in slices of whole iterations."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.clock = Clock(job.device)
        if w.env_id == "tensor":
            env: VecEnv = TensorVecEnv(TensorEnv(w.num_envs, job.device, seed=job.seed))
        elif w.images:
            env = FramesVecEnv(frames.make(w.env_id, w.num_envs, job.seed))
        else:
            env = DummyVecEnv([lambda: make_env(w.env_id) for _ in range(w.num_envs)])
        kind, policy, memory = PPO, "CnnPolicy" if w.images else "MlpPolicy", {}
        if w.lstm:
            from sb3_contrib import RecurrentPPO  # type: ignore[import-not-found, unused-ignore]

            kind, policy = RecurrentPPO, "MlpLstmPolicy"
            memory = {"lstm_hidden_size": w.lstm, "n_lstm_layers": 1, "enable_critic_lstm": True}
        self.model = kind(
            policy,
            env,
            learning_rate=w.learning_rate,
            n_steps=w.num_steps,
            batch_size=w.minibatch_size,
            n_epochs=w.num_epochs,
            gamma=w.gamma,
            gae_lambda=w.gae_lambda,
            clip_range=w.clip_epsilon,
            clip_range_vf=w.clip_epsilon if w.clip_value else None,
            normalize_advantage=True,
            ent_coef=w.entropy_coef,
            vf_coef=w.value_coef,
            max_grad_norm=w.max_grad_norm,
            policy_kwargs={
                "net_arch": {"pi": list(w.hidden), "vf": list(w.hidden)},
                "activation_fn": ACTIVATIONS[w.activation],
                "log_std_init": float(np.log(w.init_std)),
                **memory,
            },
            seed=job.seed,
            device=job.device,
            verbose=0,
        )
        self.model.train = self.clock.timed(self.model.train)
        self.started = False
        self.state: Any = None  # of a memory, in `act`

    @property
    def steps(self) -> int:  # type: ignore[override]
        return int(self.model.num_timesteps)

    def run(self, iterations: int) -> None:
        self.model.learn(
            iterations * self.w.steps_per_iteration, log_interval=None, reset_num_timesteps=not self.started
        )
        self.started = True

    def act(self, obs: np.ndarray) -> np.ndarray:
        started = np.full(len(obs), self.state is None)
        action, self.state = self.model.predict(obs, self.state, started, deterministic=True)
        return np.asarray(action)

    def restart(self) -> None:
        self.state = None


def build(job: Job) -> SB3:
    """The trainer."""
    return SB3(job)
