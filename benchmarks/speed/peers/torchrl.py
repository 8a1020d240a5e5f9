"""torchrl 0.14.1: `Collector`, `GAE`, `ClipPPOLoss`, `TensorDictReplayBuffer`, in the loop of its own PPO examples.

Environments: `GymWrapper` over `gymnasium.vector.SyncVectorEnv` (DISABLED autoreset, which it prefers), in this
process: measured faster here than `SerialEnv` of `GymEnv`. The update is the documented one: GAE once per rollout, then
epochs over a `LazyTensorStorage` buffer sampled without replacement, `loss.backward()`, one gradient norm, Adam.

Differences from the workload:
- advantages are normalised over the rollout by `GAE(average_gae=True)` in W3, by the loss per minibatch in W1 and W2;
- W3: TorchRL has no adaptive learning rate; the loop compares the loss's own `kl_approx` with the target once per
  minibatch (an estimate from log-probabilities instead of the closed form: less work, in TorchRL's favour).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torchrl.collectors import Collector  # type: ignore[import-not-found, unused-ignore]
from torchrl.data import (  # type: ignore[import-not-found, unused-ignore]
    Bounded,
    Composite,
    LazyTensorStorage,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.data.replay_buffers.samplers import (  # type: ignore[import-not-found, unused-ignore]
    SamplerWithoutReplacement,
)
from torchrl.envs import (  # type: ignore[import-not-found, unused-ignore]
    DoubleToFloat,
    EnvBase,
    ExplorationType,
    GymWrapper,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.modules import (  # type: ignore[import-not-found, unused-ignore]
    IndependentNormal,
    ProbabilisticActor,
    ValueOperator,
)
from torchrl.objectives import ClipPPOLoss  # type: ignore[import-not-found, unused-ignore]
from torchrl.objectives.value.advantages import GAE  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed.harness import Clock, Job, Trainer, make_env, mlp
from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv


class TensorRLEnv(EnvBase):  # type: ignore[misc, unused-ignore]
    """W3's environment as a batch-locked TorchRL environment; TorchRL resets the rows that ended (`_reset`)."""

    def __init__(self, env: TensorEnv) -> None:
        n = env.num_envs
        super().__init__(device=env.device, batch_size=[n])
        self.env = env
        self.observation_spec = Composite(
            observation=Unbounded(shape=(n, OBS_DIM), device=env.device), shape=(n,), device=env.device
        )
        self.action_spec = Bounded(-1.0, 1.0, shape=(n, ACTION_DIM), device=env.device)
        self.reward_spec = Unbounded(shape=(n, 1), device=env.device)
        flags = {
            key: Unbounded(shape=(n, 1), dtype=torch.bool, device=env.device)
            for key in ("done", "terminated", "truncated")
        }
        self.full_done_spec = Composite(**flags, shape=(n,), device=env.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        # the environment has already reset the rows that ended; a full reset only happens once, before the first step
        if tensordict is None or tensordict.get("_reset", None) is None:
            self.env.reset()
        flag = torch.zeros((self.env.num_envs, 1), dtype=torch.bool, device=self.device)
        return TensorDict(
            {"observation": self.env.observe(), "done": flag, "terminated": flag.clone(), "truncated": flag.clone()},
            batch_size=self.batch_size,
            device=self.device,
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step = self.env.step(tensordict["action"])
        return TensorDict(
            {
                "observation": step.final_obs,
                "reward": step.reward.unsqueeze(1),
                "done": step.truncated.unsqueeze(1),
                "terminated": step.terminated.unsqueeze(1),
                "truncated": step.truncated.unsqueeze(1),
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        self.env.generator.manual_seed(seed or 0)


def make_vector_env(job: Job) -> EnvBase:
    """Eight Gymnasium environments in this process, or W3's tensor environment."""
    w = job.workload
    if w.env_id == "tensor":
        return TensorRLEnv(TensorEnv(w.num_envs, job.device, seed=job.seed))
    envs = gym.vector.SyncVectorEnv(
        [lambda: make_env(w.env_id) for _ in range(w.num_envs)], autoreset_mode=gym.vector.AutoresetMode.DISABLED
    )
    env = GymWrapper(envs, categorical_action_encoding=True, device=job.device)
    env.set_seed(job.seed)
    if env.observation_spec["observation"].dtype == torch.float64:  # MuJoCo's
        env = TransformedEnv(env, DoubleToFloat(in_keys=["observation"]))
    return env


class TorchRL(Trainer):
    """The loop of TorchRL's PPO examples."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.device, self.clock, self.steps = job.device, Clock(job.device), 0
        env = make_vector_env(job)
        self.actor, critic = self.networks(env)
        self.advantage = GAE(
            gamma=w.gamma,
            lmbda=w.gae_lambda,
            value_network=critic,
            average_gae=w.normalize_advantage == "rollout",
        )
        self.loss = ClipPPOLoss(
            actor_network=self.actor,
            critic_network=critic,
            clip_epsilon=w.clip_epsilon,
            loss_critic_type="l2",
            entropy_coeff=w.entropy_coef,
            critic_coeff=w.value_coef,
            normalize_advantage=w.normalize_advantage == "minibatch",
            clip_value=w.clip_value,
            log_explained_variance=False,
        )
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=w.learning_rate, eps=1e-5)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(w.steps_per_iteration, device=job.device),
            sampler=SamplerWithoutReplacement(),
            batch_size=w.minibatch_size,
        )
        self.collector = Collector(
            env,
            self.actor,
            frames_per_batch=w.steps_per_iteration,
            total_frames=-1,
            device=job.device,
            auto_register_policy_transforms=False,
        )
        self.batches = iter(self.collector)

    def networks(self, env: EnvBase) -> tuple[Any, Any]:
        w = self.w
        obs_dim = env.observation_spec["observation"].shape[-1]
        critic = ValueOperator(mlp((obs_dim, *w.hidden, 1), w.activation), in_keys=["observation"]).to(self.device)
        self.continuous = env.action_spec.dtype.is_floating_point
        action_dim = env.action_spec.shape[-1] if self.continuous else env.action_spec.space.n
        self.net = mlp((obs_dim, *w.hidden, action_dim), w.activation)
        if self.continuous:
            scale = AddStateIndependentNormalScale(action_dim, scale_mapping="exp")
            module = TensorDictModule(
                torch.nn.Sequential(self.net, scale), in_keys=["observation"], out_keys=["loc", "scale"]
            )
            in_keys, dist = ["loc", "scale"], IndependentNormal
        else:
            module = TensorDictModule(self.net, in_keys=["observation"], out_keys=["logits"])
            in_keys, dist = ["logits"], torch.distributions.Categorical
        actor = ProbabilisticActor(
            module,
            in_keys=in_keys,
            spec=env.full_action_spec_unbatched.to(self.device),
            distribution_class=dist,
            return_log_prob=True,
            default_interaction_type=ExplorationType.RANDOM,
        ).to(self.device)
        return actor, critic

    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            data = next(self.batches)
            self.steps += data.numel()
            with self.clock.update():
                self.update(data)

    def update(self, data: TensorDictBase) -> None:
        w = self.w
        with torch.no_grad():
            data = self.advantage(data)
        flat = data.reshape(-1)
        self.buffer.empty()
        self.buffer.extend(flat)
        for _ in range(w.num_epochs):
            for batch in self.buffer:
                loss = self.loss(batch)
                if w.desired_kl is not None:
                    self.adapt(float(loss["kl_approx"]))
                total = loss["loss_objective"] + loss["loss_entropy"] + loss["loss_critic"]
                self.optimizer.zero_grad(set_to_none=True)
                total.backward()
                torch.nn.utils.clip_grad_norm_(self.loss.parameters(), w.max_grad_norm)
                self.optimizer.step()

    def adapt(self, kl: float) -> None:
        group, desired = self.optimizer.param_groups[0], self.w.desired_kl or 0.0
        if kl > 2.0 * desired:
            group["lr"] = max(1e-5, group["lr"] / 1.5)
        elif 0.0 < kl < desired / 2.0:
            group["lr"] = min(1e-2, group["lr"] * 1.5)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        out = self.net(torch.as_tensor(obs, dtype=torch.float32, device=self.device))
        return np.asarray((out if self.continuous else out.argmax(-1)).cpu())


def build(job: Job) -> TorchRL:
    """The trainer."""
    set_exploration_type(ExplorationType.RANDOM).__enter__()
    return TorchRL(job)
