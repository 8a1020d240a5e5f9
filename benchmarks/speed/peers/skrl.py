"""skrl 2.1.1: its `PPO` agent, `RandomMemory` and `SequentialTrainer`; only timed from outside.

Environments: `gymnasium.vector.SyncVectorEnv` (SAME_STEP) in this process, behind skrl's own wrapper. TensorBoard and
checkpoints are off (write_interval=0, checkpoint_interval=0), and so is the progress bar.

Differences from the workload:
- the timed iterations are one `trainer.train()`: it re-reads the current observation, it does not reset;
- advantages are normalised over the rollout (W1 and W2 ask for the minibatch): less work, in skrl's favour;
- W3: `KLAdaptiveLR` looks at the mean KL once per epoch instead of once per minibatch, and the clipped value loss has
  no pessimistic maximum: less work, in skrl's favour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import skrl  # type: ignore[import-not-found, unused-ignore]
import torch
from gymnasium import spaces
from skrl.agents.torch.ppo import PPO, PPO_CFG  # type: ignore[import-not-found, unused-ignore]
from skrl.envs.wrappers.torch import Wrapper, wrap_env  # type: ignore[import-not-found, unused-ignore]
from skrl.memories.torch import RandomMemory  # type: ignore[import-not-found, unused-ignore]
from skrl.models.torch import (  # type: ignore[import-not-found, unused-ignore]
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    Model,
)
from skrl.resources.schedulers.torch import KLAdaptiveLR  # type: ignore[import-not-found, unused-ignore]
from skrl.trainers.torch import SequentialTrainer  # type: ignore[import-not-found, unused-ignore]

from benchmarks.speed.harness import Clock, Job, Trainer, mlp, vector_env
from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv
from benchmarks.speed.workloads import Workload

skrl.logger.setLevel("ERROR")


class Gaussian(GaussianMixin, Model):  # type: ignore[misc, unused-ignore]
    """Actor for continuous actions; actions are clipped to the bounds by the environment side, as skrl does."""

    def __init__(self, spaces_and_device: dict[str, Any], w: Workload) -> None:
        Model.__init__(self, **spaces_and_device)
        GaussianMixin.__init__(self, clip_actions=False, clip_log_std=True)
        self.net = mlp((self.num_observations, *w.hidden, self.num_actions), w.activation)
        self.log_std = torch.nn.Parameter(torch.full((self.num_actions,), float(np.log(w.init_std))))

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Categorical(CategoricalMixin, Model):  # type: ignore[misc, unused-ignore]
    """Actor for discrete actions."""

    def __init__(self, spaces_and_device: dict[str, Any], w: Workload) -> None:
        Model.__init__(self, **spaces_and_device)
        CategoricalMixin.__init__(self, unnormalized_log_prob=True)
        self.net = mlp((self.num_observations, *w.hidden, self.num_actions), w.activation)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):  # type: ignore[misc, unused-ignore]
    """Critic."""

    def __init__(self, spaces_and_device: dict[str, Any], w: Workload) -> None:
        Model.__init__(self, **spaces_and_device)
        DeterministicMixin.__init__(self, clip_actions=False)
        self.net = mlp((self.num_observations, *w.hidden, 1), w.activation)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class TensorWrapper(Wrapper):  # type: ignore[misc, unused-ignore]
    """W3's environment in skrl's shape: `[N, 1]` rewards and flags."""

    observation_space = spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
    state_space = None

    def step(self, actions: torch.Tensor) -> Any:
        step = self._env.step(actions)
        return step.obs, step.reward.unsqueeze(1), step.terminated.unsqueeze(1), step.truncated.unsqueeze(1), {}

    def state(self) -> None:
        return None

    def reset(self) -> Any:
        return self._env.observe(), {}

    def render(self, *args: Any, **kwargs: Any) -> None: ...

    def close(self) -> None: ...


class Skrl(Trainer):
    """`SequentialTrainer.train` in slices of whole iterations."""

    def __init__(self, job: Job) -> None:
        w = self.w = job.workload
        self.clock, self.steps = Clock(job.device), 0
        if w.env_id == "tensor":
            self.env = TensorWrapper(TensorEnv(w.num_envs, job.device, seed=job.seed))
        else:
            self.env = wrap_env(vector_env(w, job.seed), wrapper="gymnasium", verbose=False)
        common = {
            "observation_space": self.env.observation_space,
            "action_space": self.env.action_space,
            "device": job.device,
        }
        actor = Gaussian if isinstance(self.env.action_space, spaces.Box) else Categorical
        self.policy = actor(common, w)
        self.agent = PPO(
            models={"policy": self.policy, "value": Value(common, w)},
            memory=RandomMemory(memory_size=w.num_steps, num_envs=w.num_envs, device=job.device),
            observation_space=self.env.observation_space,
            action_space=self.env.action_space,
            device=job.device,
            cfg=self.config(),
        )
        self.agent.update = self.clock.timed(self.agent.update)
        self.trainer = SequentialTrainer(
            env=self.env,
            agents=self.agent,
            cfg={
                "timesteps": w.num_steps,
                "headless": True,
                "disable_progressbar": True,
                "close_environment_at_exit": False,
            },
        )

    def config(self) -> Any:
        w = self.w
        adaptive = w.desired_kl is not None
        return PPO_CFG(
            rollouts=w.num_steps,
            learning_epochs=w.num_epochs,
            mini_batches=w.num_minibatches,
            discount_factor=w.gamma,
            gae_lambda=w.gae_lambda,
            learning_rate=w.learning_rate,
            learning_rate_scheduler=KLAdaptiveLR if adaptive else None,
            learning_rate_scheduler_kwargs={"kl_threshold": w.desired_kl} if adaptive else {},
            grad_norm_clip=w.max_grad_norm,
            ratio_clip=w.clip_epsilon,
            value_clip=w.clip_epsilon if w.clip_value else 0.0,
            entropy_loss_scale=w.entropy_coef,
            value_loss_scale=w.value_coef,
            time_limit_bootstrap=True,
            experiment={"write_interval": 0, "checkpoint_interval": 0},
        )

    def run(self, iterations: int) -> None:
        self.trainer.cfg.timesteps = iterations * self.w.num_steps
        self.trainer.train()
        self.steps += iterations * self.w.steps_per_iteration

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        out = self.policy.net(torch.as_tensor(obs, dtype=torch.float32, device=self.agent.device))
        return np.asarray((out if isinstance(self.env.action_space, spaces.Box) else out.argmax(-1)).cpu())


def build(job: Job) -> Skrl:
    """The trainer."""
    return Skrl(job)
