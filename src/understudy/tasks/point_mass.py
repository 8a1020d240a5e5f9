"""PointMass: thousands of copies of a point that flies to a goal against a wind that only the critic can see."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step


class PointMass:
    """Fly to a goal against a wind that only the critic sees.

    A `VecEnv` in torch, on any device, without a loop or a host sync; its state can be saved.
    Group "policy" is position - goal, velocity (m, m/s; 4 numbers); group "critic" adds the wind (m/s^2; 6 numbers).
    The action is an acceleration in [-1, 1]^2, the reward -distance per step and +10 for arriving (within 0.2 m),
    which terminates; leaving the 4 m square terminates with -10; time limit 100 steps of 0.1 s.
    """

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", *, max_episode_steps: int = 100) -> None:
        if num_envs < 1 or max_episode_steps < 1:
            raise ValueError(f"PointMass needs at least one copy and one step, got {num_envs} and {max_episode_steps}")
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), max_episode_steps
        self.observation_space = spaces.Dict({"policy": _box(4), "critic": _box(6)})
        self.action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.generator = torch.Generator(device=self.device)
        self.position = torch.zeros(num_envs, 2, device=self.device)
        self.velocity, self.goal, self.wind = (torch.zeros_like(self.position) for _ in range(3))
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(self, seed: int | None = None) -> TensorDict:
        """Fresh episodes everywhere."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self._restart(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self.observe()

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
        groups = {"policy": seen, "critic": torch.cat((seen, self.wind), dim=-1)}
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that `step` depends on."""
        return {
            "position": self.position,
            "velocity": self.velocity,
            "goal": self.goal,
            "wind": self.wind,
            "steps": self.steps,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.position, self.velocity, self.goal, self.wind, self.steps = (
            state[name].to(self.device, copy=True) for name in ("position", "velocity", "goal", "wind", "steps")
        )
        self.generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        """Nothing to free."""

    def _restart(self, ended: Tensor) -> None:
        """New position, goal and wind where an episode ended; drawn for all, so that nothing waits for a count."""
        drawn = torch.rand(3, self.num_envs, 2, generator=self.generator, device=self.device) * 2.0 - 1.0
        mask = ended.unsqueeze(-1)
        self.position = torch.where(mask, drawn[0] * 1.5, self.position)
        self.goal = torch.where(mask, drawn[1] * 1.5, self.goal)
        self.wind = torch.where(mask, drawn[2] * 0.5, self.wind)
        self.velocity = torch.where(mask, 0.0, self.velocity)
        self.steps = torch.where(ended, 0, self.steps)


def _box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
