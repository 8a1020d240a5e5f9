"""A task with rsl_rl's interface, as GPU simulators have it: drive points to the origin, within 50 steps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor


class Points:
    """The actor sees where its point is, with noise; the critic sees it as it is, and how fast it moves."""

    num_actions, max_episode_length, device, step_dt = 2, 50, "cpu", 0.05
    cfg: ClassVar[dict[str, Any]] = {}

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.position, self.speed = torch.zeros(num_envs, 2), torch.zeros(num_envs, 2)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.reset()

    def reset(self) -> tuple[TensorDict, dict[str, Any]]:
        """Start everywhere anew."""
        self._restart(torch.ones(self.num_envs, dtype=torch.bool))
        return self.get_observations(), {}

    def get_observations(self) -> TensorDict:
        """What is seen now."""
        seen = torch.cat((self.position, self.speed), dim=-1)
        noisy = seen + 0.02 * torch.randn_like(seen)
        return TensorDict({"policy": noisy, "critic": seen}, batch_size=[self.num_envs])

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """One step of 50 ms; episodes that end begin again."""
        self.speed = (self.speed + self.step_dt * 4.0 * actions.clamp(-1.0, 1.0)) * 0.98
        self.position = self.position + self.step_dt * self.speed
        self.episode_length_buf = self.episode_length_buf + 1
        distance = self.position.norm(dim=-1)
        late, away = self.episode_length_buf >= self.max_episode_length, distance > 3.0
        reward = torch.exp(-2.0 * distance) - 2.0 * away.float()
        extras = {"time_outs": late & ~away, "log": {"Metrics/distance": distance.mean()}}
        self._restart(late | away)
        return self.get_observations(), reward, (late | away).long(), extras

    def close(self) -> None:
        """Nothing to free."""

    def _restart(self, ended: Tensor) -> None:
        somewhere = 3.0 * torch.rand(self.num_envs, 2) - 1.5
        self.position = torch.where(ended.unsqueeze(-1), somewhere, self.position)
        self.speed = torch.where(ended.unsqueeze(-1), 0.0, self.speed)
        self.episode_length_buf = torch.where(ended, 0, self.episode_length_buf)


def train_cfg() -> dict[str, Any]:
    """A configuration of rsl_rl 5, as mjlab and Isaac Lab have one for each task."""
    return {
        "seed": 1,
        "num_steps_per_env": 24,
        "max_iterations": 40,
        "save_interval": 20,
        "obs_groups": {"actor": ["policy"], "critic": ["critic"]},
        "actor": {
            "class_name": "MLPModel",
            "hidden_dims": [64, 64],
            "activation": "elu",
            "obs_normalization": True,
            "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "log"},
        },
        "critic": {"class_name": "MLPModel", "hidden_dims": [64, 64], "activation": "elu", "obs_normalization": True},
        "algorithm": {
            "class_name": "PPO",
            "num_learning_epochs": 5,
            "num_mini_batches": 4,
            "learning_rate": 1e-3,
            "schedule": "adaptive",
            "desired_kl": 0.01,
            "entropy_coef": 0.005,
            "gamma": 0.97,
            "rnd_cfg": None,
        },
    }
