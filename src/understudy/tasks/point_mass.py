"""PointMass: thousands of copies of a point that flies to a goal against a wind that only the critic can see."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step
from understudy.tasks.batched import BatchedTask


class PointMass(BatchedTask):
    """Fly to a goal against a wind that only the critic sees.

    Group "policy" is position - goal, velocity (m, m/s; 4 numbers); group "critic" adds the wind (m/s^2; 6 numbers).
    The action is an acceleration in [-1, 1]^2, the reward -distance per step and +10 for arriving (within 0.2 m),
    which terminates; leaving the 4 m square terminates with -10; time limit 100 steps of 0.1 s.
    """

    STATE = ("position", "velocity", "goal", "wind", "steps")

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", *, max_episode_steps: int = 100) -> None:
        groups = {"policy": _box(4), "critic": _box(6)}
        action = spaces.Box(-1.0, 1.0, (2,), np.float32)
        super().__init__(num_envs, device, max_episode_steps, groups, action)
        self.position = torch.zeros(num_envs, 2, device=self.device)
        self.velocity, self.goal, self.wind = (torch.zeros_like(self.position) for _ in range(3))
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def step(self, action: Tensor) -> Step:
        """Accelerate for 0.1 s, action `[N, 2]`."""
        self.velocity = 0.95 * self.velocity + 0.1 * (action.clamp(-1.0, 1.0) * 2.0 + self.wind)
        self.position = self.position + 0.1 * self.velocity
        self.steps = self.steps + 1
        distance = torch.linalg.vector_norm(self.position - self.goal, dim=-1)
        arrived = distance < 0.2
        lost = self.position.abs().amax(-1) > 2.0
        terminated = arrived | lost
        truncated = (self.steps >= self.max_episode_steps) & ~terminated
        reward = 10.0 * arrived - 10.0 * (lost & ~arrived) - distance
        final = self.observe()
        self._restart(terminated | truncated)
        return Step(self.observe(), reward, terminated, truncated, final, {"arrived": arrived.float()})

    def observe(self) -> TensorDict:
        """The current observation `[N]`."""
        seen = torch.cat((self.position - self.goal, self.velocity), dim=-1)
        return self._groups({"policy": seen, "critic": torch.cat((seen, self.wind), dim=-1)})

    def _restart(self, ended: Tensor) -> None:
        drawn = torch.rand(3, self.num_envs, 2, generator=self.generator, device=self.device) * 2.0 - 1.0
        mask = ended.unsqueeze(-1)
        self.position = torch.where(mask, drawn[0] * 1.5, self.position)
        self.goal = torch.where(mask, drawn[1] * 1.5, self.goal)
        self.wind = torch.where(mask, drawn[2] * 0.5, self.wind)
        self.velocity = torch.where(mask, 0.0, self.velocity)
        self.steps = torch.where(ended, 0, self.steps)


def _box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
