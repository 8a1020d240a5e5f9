"""A plain single-file PPO, the way a reader of the paper writes it down: the floor that every library starts from.

Own code, in the manner of the single-file implementations: `torch.distributions`, one forward of actor and critic per
step, a Python loop for GAE, shuffled index minibatches, clip, value clip, entropy bonus, Adam, one gradient norm.
Environments: `gymnasium.vector.SyncVectorEnv` (SAME_STEP) in this process.

Differences from the workload: none in the amount of work. A time limit is treated as a termination (`done`), as such
files do. In W3 the learning rate follows the KL of each minibatch (one comparison on the host, as in rsl_rl).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from benchmarks.speed import frames
from benchmarks.speed.harness import Clock, Job, Trainer, mlp, nature_cnn, vector_env
from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv
from benchmarks.speed.workloads import Workload


class Agent(nn.Module):
    """Separate actor and critic; a learned log standard deviation when actions are continuous."""

    def __init__(self, obs_dim: int, action_dim: int, continuous: bool, workload: Workload) -> None:
        super().__init__()
        self.continuous = continuous
        self.trunk = nature_cnn() if workload.images else None  # shared
        self.critic = mlp((obs_dim, *workload.hidden, 1), workload.activation)
        self.actor = mlp((obs_dim, *workload.hidden, action_dim), workload.activation)
        if continuous:
            self.log_std = nn.Parameter(torch.zeros(1, action_dim))

    def features(self, obs: Tensor) -> Tensor:
        return obs if self.trunk is None else self.trunk(obs / 255.0)

    def distribution(self, features: Tensor) -> Any:
        out = self.actor(features)
        return Normal(out, self.log_std.expand_as(out).exp()) if self.continuous else Categorical(logits=out)

    def action_and_value(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Any]:
        features = self.features(obs)
        dist = self.distribution(features)
        if action is None:
            action = dist.sample()
        log_prob, entropy = dist.log_prob(action), dist.entropy()
        if self.continuous:
            log_prob, entropy = log_prob.sum(1), entropy.sum(1)
        return action, log_prob, entropy, self.critic(features).squeeze(-1), dist


class GymStepper:
    """numpy environments behind tensors."""

    def __init__(self, job: Job) -> None:
        self.envs = vector_env(job.workload, job.seed)
        space = self.envs.single_action_space
        self.continuous = isinstance(space, gym.spaces.Box)
        self.obs_dim = int(np.prod(self.envs.single_observation_space.shape or ()))
        self.obs_shape = (self.obs_dim,)
        self.action_dim = int(space.shape[0]) if isinstance(space, gym.spaces.Box) else int(space.n)  # type: ignore[attr-defined]
        self.low = getattr(space, "low", None)
        self.high = getattr(space, "high", None)

    def reset(self) -> Tensor:
        return torch.as_tensor(self.envs.reset()[0], dtype=torch.float32)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = action.numpy()
        if self.continuous:
            a = np.clip(a, self.low, self.high)
        obs, reward, terminated, truncated, _ = self.envs.step(a)
        done = np.logical_or(terminated, truncated)
        return (
            torch.as_tensor(obs, dtype=torch.float32),
            torch.as_tensor(reward, dtype=torch.float32),
            torch.as_tensor(done, dtype=torch.float32),
        )


class TensorStepper:
    """W3's environment."""

    def __init__(self, job: Job) -> None:
        self.env = TensorEnv(job.workload.num_envs, job.device, seed=job.seed)
        self.continuous, self.obs_dim, self.action_dim = True, OBS_DIM, ACTION_DIM
        self.obs_shape = (OBS_DIM,)

    def reset(self) -> Tensor:
        return self.env.reset()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = self.env.step(action)
        return step.obs, step.reward, (step.terminated | step.truncated).float()


class FramesStepper:
    """W6's frames; they are kept as floats, as in the single-file implementations."""

    continuous, obs_dim, obs_shape, action_dim = False, 512, frames.SHAPE, frames.ACTIONS

    def __init__(self, job: Job) -> None:
        self.env = frames.make(job.workload.env_id, job.workload.num_envs, job.seed)

    def reset(self) -> Tensor:
        return torch.as_tensor(self.env.reset(), dtype=torch.float32)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = self.env.step(action.numpy())
        done = torch.as_tensor(step.terminated | step.truncated, dtype=torch.float32)
        return torch.as_tensor(step.obs, dtype=torch.float32), torch.as_tensor(step.reward), done


class PlainPPO(Trainer):
    """The training loop."""

    def __init__(self, job: Job) -> None:
        self.w, self.device = job.workload, job.device
        self.clock, self.steps = Clock(job.device), 0
        self.env = stepper(job)
        self.agent = Agent(self.env.obs_dim, self.env.action_dim, self.env.continuous, self.w).to(self.device)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=self.w.learning_rate, eps=1e-5)
        t, n = self.w.num_steps, self.w.num_envs
        action_shape = (self.env.action_dim,) if self.env.continuous else ()
        self.obs = torch.zeros((t, n, *self.env.obs_shape), device=self.device)
        self.actions = torch.zeros((t, n, *action_shape), device=self.device)
        self.log_probs = torch.zeros((t, n), device=self.device)
        self.rewards, self.dones, self.values = (torch.zeros_like(self.log_probs) for _ in range(3))
        self.means = torch.zeros((t, n, self.env.action_dim), device=self.device)
        self.stds = torch.zeros((t, n, self.env.action_dim), device=self.device)
        self.next_obs = self.env.reset()
        self.next_done = torch.zeros(n, device=self.device)

    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            self.collect()
            with self.clock.update():
                self.update()

    def collect(self) -> None:
        for t in range(self.w.num_steps):
            self.obs[t], self.dones[t] = self.next_obs, self.next_done
            with torch.no_grad():
                action, self.log_probs[t], _, self.values[t], dist = self.agent.action_and_value(self.next_obs)
            self.actions[t] = action
            if self.w.desired_kl is not None:
                self.means[t], self.stds[t] = dist.mean, dist.stddev
            self.next_obs, self.rewards[t], self.next_done = self.env.step(action)
            self.steps += self.w.num_envs

    @torch.no_grad()
    def advantages(self) -> tuple[Tensor, Tensor]:
        next_value = self.agent.critic(self.agent.features(self.next_obs)).squeeze(-1)
        advantages, last = torch.zeros_like(self.rewards), torch.zeros_like(next_value)
        for t in reversed(range(self.w.num_steps)):
            alive = 1.0 - (self.next_done if t == self.w.num_steps - 1 else self.dones[t + 1])
            following = next_value if t == self.w.num_steps - 1 else self.values[t + 1]
            delta = self.rewards[t] + self.w.gamma * following * alive - self.values[t]
            advantages[t] = last = delta + self.w.gamma * self.w.gae_lambda * alive * last
        return advantages, advantages + self.values

    def update(self) -> None:
        advantages, returns = self.advantages()
        if self.w.normalize_advantage == "rollout":
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        flat = {
            "obs": self.obs.flatten(0, 1),
            "action": self.actions.flatten(0, 1),
            "log_prob": self.log_probs.flatten(),
            "advantage": advantages.flatten(),
            "target": returns.flatten(),
            "value": self.values.flatten(),
            "mean": self.means.flatten(0, 1),
            "std": self.stds.flatten(0, 1),
        }
        index = np.arange(self.w.steps_per_iteration)
        for _ in range(self.w.num_epochs):
            np.random.shuffle(index)  # noqa: NPY002 (the global generator, as such files use it)
            for start in range(0, len(index), self.w.minibatch_size):
                rows = torch.as_tensor(index[start : start + self.w.minibatch_size], device=self.device)
                self.gradient_step({name: x[rows] for name, x in flat.items()})

    def gradient_step(self, b: dict[str, Tensor]) -> None:
        w = self.w
        _, log_prob, entropy, value, dist = self.agent.action_and_value(b["obs"], b["action"])
        if w.desired_kl is not None:
            self.adapt(b, dist)
        log_ratio = log_prob - b["log_prob"]
        ratio = log_ratio.exp()
        with torch.no_grad():  # the statistics such files log
            ((ratio - 1) - log_ratio).mean()
            ((ratio - 1.0).abs() > w.clip_epsilon).float().mean().item()
        advantage = b["advantage"]
        if w.normalize_advantage == "minibatch":
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = ratio.clamp(1 - w.clip_epsilon, 1 + w.clip_epsilon)
        policy_loss = torch.max(-advantage * ratio, -advantage * clipped).mean()
        value_loss = (value - b["target"]) ** 2
        if w.clip_value:
            near = b["value"] + (value - b["value"]).clamp(-w.clip_epsilon, w.clip_epsilon)
            value_loss = torch.max(value_loss, (near - b["target"]) ** 2)
        loss = policy_loss + w.value_coef * value_loss.mean() - w.entropy_coef * entropy.mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.agent.parameters(), w.max_grad_norm)
        self.optimizer.step()

    @torch.no_grad()
    def adapt(self, b: dict[str, Tensor], dist: Normal) -> None:
        kl = torch.distributions.kl_divergence(Normal(b["mean"], b["std"]), dist).sum(1).mean().item()
        group, desired = self.optimizer.param_groups[0], self.w.desired_kl or 0.0
        if kl > 2.0 * desired:
            group["lr"] = max(1e-5, group["lr"] / 1.5)
        elif 0.0 < kl < desired / 2.0:
            group["lr"] = min(1e-2, group["lr"] * 1.5)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        out = self.agent.actor(self.agent.features(torch.as_tensor(obs, dtype=torch.float32, device=self.device)))
        return np.asarray((out if self.env.continuous else out.argmax(-1)).cpu())


def stepper(job: Job) -> Any:
    """The environment of the workload."""
    if job.workload.images:
        return FramesStepper(job)
    return TensorStepper(job) if job.workload.env_id == "tensor" else GymStepper(job)


def build(job: Job) -> PlainPPO:
    """The trainer."""
    return PlainPPO(job)
