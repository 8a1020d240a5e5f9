"""tianshou 2.0.1: `Collector`, `VectorReplayBuffer` and `PPO.update`, in the order of its `OnPolicyTrainer`.

Environments: `DummyVectorEnv` of `gymnasium.make(id)`, in this process; W3's tensor environment behind the same
interface. The trainer's progress bars, logging and test collection are left out (in tianshou's favour). The large
`max_batchsize` makes its value and log-prob passes over the rollout one batch, as elsewhere.

Differences from the workload:
- W3: no adaptive KL (a constant learning rate, no KL computed), and advantages can only be normalised per minibatch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tianshou.algorithm import PPO  # type: ignore[import-not-found, unused-ignore]
from tianshou.algorithm.modelfree.reinforce import (  # type: ignore[import-not-found, unused-ignore]
    DiscreteActorPolicy,
    ProbabilisticActorPolicy,
)
from tianshou.algorithm.optim import AdamOptimizerFactory  # type: ignore[import-not-found, unused-ignore]
from tianshou.data import (  # type: ignore[import-not-found, unused-ignore]
    Collector,
    CollectStats,
    ReplayBuffer,
    VectorReplayBuffer,
)
from tianshou.env import BaseVectorEnv, DummyVectorEnv  # type: ignore[import-not-found, unused-ignore]
from tianshou.env.atari.atari_network import (  # type: ignore[import-not-found, unused-ignore]
    DQNet,
    ScaledObsInputActionReprNet,
)
from tianshou.utils.net.common import Net  # type: ignore[import-not-found, unused-ignore]
from tianshou.utils.net.continuous import (  # type: ignore[import-not-found, unused-ignore]
    ContinuousActorProbabilistic,
    ContinuousCritic,
)
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic  # type: ignore[import-not-found, unused-ignore]
from tianshou.utils.torch_utils import (  # type: ignore[import-not-found, unused-ignore]
    policy_within_training_step,
    torch_train_mode,
)

from benchmarks.speed import frames
from benchmarks.speed.harness import ACTIVATIONS, Clock, Demonstrations, Job, Trainer, make_env
from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv


class TensorVectorEnv(BaseVectorEnv):  # type: ignore[misc, unused-ignore]
    """W3's environment in tianshou's shape: it resets the rows that ended only when tianshou asks for it."""

    def __init__(self, env: TensorEnv) -> None:
        self.env, self.env_num, self.is_async, self.is_closed = env, env.num_envs, False, False
        self.restarted = env.observe().cpu().numpy()

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        space = {"observation_space": (OBS_DIM,), "action_space": (ACTION_DIM,)}[key]
        return [spaces.Box(-1.0, 1.0, space, np.float32)] * self.env_num

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self.env_num) if env_id is None else np.asarray(env_id)
        return self.restarted[rows], np.array([{} for _ in rows], dtype=object)

    def step(self, action: np.ndarray, id: Any = None) -> tuple[np.ndarray, ...]:
        step = self.env.step(torch.as_tensor(action, device=self.env.device))
        self.restarted = step.obs.cpu().numpy()
        infos = np.array([{} for _ in range(self.env_num)], dtype=object)
        rest = (step.reward, step.terminated, step.truncated)
        return (step.final_obs.cpu().numpy(), *(x.cpu().numpy() for x in rest), infos)

    def close(self) -> None: ...


class FramesVectorEnv(TensorVectorEnv):
    """W6's frames in the same shape."""

    def __init__(self, env: frames.Frames) -> None:
        self.frames, self.env_num, self.is_async, self.is_closed = env, env.num_envs, False, False
        self.restarted = env.reset()

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        space = {
            "observation_space": spaces.Box(0, 255, frames.SHAPE, np.uint8),
            "action_space": spaces.Discrete(frames.ACTIONS),
        }[key]
        return [space] * self.env_num

    def step(self, action: np.ndarray, id: Any = None) -> tuple[np.ndarray, ...]:
        step = self.frames.step(np.asarray(action))
        self.restarted = step.obs
        infos = np.array([{} for _ in range(self.env_num)], dtype=object)
        return step.final_obs, step.reward, step.terminated, step.truncated, infos


def gaussian(loc_scale: tuple[torch.Tensor, torch.Tensor]) -> torch.distributions.Distribution:
    """The distribution of tianshou's MuJoCo examples."""
    loc, scale = loc_scale
    return torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)


class Tianshou(Trainer):
    """Collect, update, reset the buffer: `OnPolicyTrainer`'s training step."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.device, self.clock = job.device, Clock(job.device)
        if w.env_id == "tensor":
            env: BaseVectorEnv = TensorVectorEnv(TensorEnv(w.num_envs, job.device, seed=job.seed))
        elif w.images:
            env = FramesVectorEnv(frames.make(w.env_id, w.num_envs, job.seed))
        else:
            env = DummyVectorEnv([lambda: make_env(w.env_id) for _ in range(w.num_envs)])
            env.seed(job.seed)
        self.algorithm = self.build_algorithm(env.observation_space[0], env.action_space[0]).to(job.device)
        buffer = VectorReplayBuffer(w.steps_per_iteration, w.num_envs)
        self.collector: Any = Collector[CollectStats](self.algorithm, env, buffer)
        self.collector.reset()

    def build_algorithm(self, obs_space: Any, action_space: Any) -> Any:
        return PPO(**self.arguments(obs_space, action_space))

    def arguments(self, obs_space: Any, action_space: Any) -> dict[str, Any]:
        w = self.w
        self.continuous = isinstance(action_space, spaces.Box)
        act = ACTIVATIONS[w.activation]

        def net() -> Any:
            if w.images:  # as its Atari examples build it; `DiscreteCritic` shares it with the actor
                size = {"features_only": True, "output_dim_added_layer": 512}
                return ScaledObsInputActionReprNet(DQNet(*obs_space.shape, action_shape=action_space.n, **size))
            return Net(state_shape=obs_space.shape, hidden_sizes=list(w.hidden), activation=act)

        if self.continuous:
            self.actor = ContinuousActorProbabilistic(
                preprocess_net=net(), action_shape=action_space.shape, unbounded=True
            )
            policy: Any = ProbabilisticActorPolicy(
                actor=self.actor,
                dist_fn=gaussian,
                action_space=action_space,
                action_scaling=True,
                action_bound_method="clip",
            )
            critic = ContinuousCritic(preprocess_net=net())
        else:
            trunk = net()
            self.actor = DiscreteActor(preprocess_net=trunk, action_shape=action_space.n, softmax_output=False)
            policy = DiscreteActorPolicy(actor=self.actor, action_space=action_space)
            critic = DiscreteCritic(preprocess_net=trunk if w.images else net())
        return {
            "policy": policy,
            "critic": critic,
            "optim": AdamOptimizerFactory(lr=w.learning_rate),
            "eps_clip": w.clip_epsilon,
            "value_clip": w.clip_value,
            "advantage_normalization": True,
            "vf_coef": w.value_coef,
            "ent_coef": w.entropy_coef,
            "max_grad_norm": w.max_grad_norm,
            "gae_lambda": w.gae_lambda,
            "max_batchsize": w.steps_per_iteration,
            "gamma": w.gamma,
        }

    @property
    def steps(self) -> int:  # type: ignore[override]
        return int(self.collector.collect_step)

    def run(self, iterations: int) -> None:
        policy = self.algorithm.policy
        for _ in range(iterations):
            with policy_within_training_step(policy):
                with torch_train_mode(self.algorithm, enabled=False):
                    self.collector.collect(n_step=self.w.steps_per_iteration)
                with torch_train_mode(self.algorithm, enabled=True), self.clock.update():
                    self.algorithm.update(
                        buffer=self.collector.buffer, batch_size=self.w.minibatch_size, repeat=self.w.num_epochs
                    )
                self.collector.reset_buffer(keep_statistics=True)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        out, _ = self.actor(obs)
        return np.asarray((out[0] if self.continuous else out.argmax(-1)).cpu())


def buffer_of(demonstrations: Demonstrations) -> Any:
    """The episodes in tianshou's shape."""
    obs, actions = demonstrations.pairs()
    ends = np.zeros(demonstrations.actions.shape[:2], dtype=bool)
    ends[:, -1] = True
    over = ends.reshape(-1)
    never, nothing = np.zeros_like(over), np.zeros(len(over))
    return ReplayBuffer.from_data(obs, actions, nothing, never, over, over, demonstrations.next_obs())


def build(job: Job) -> Tianshou:
    """The trainer."""
    return Tianshou(job)
