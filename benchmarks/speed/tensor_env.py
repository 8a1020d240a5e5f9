"""W3's environment: N copies of a small linear system, stepped as one batch of tensors on any device.

    x' = x A + clip(a) B + 0.05 noise,     observation = tanh(x) [N, 48],     reward = 1 - mean(x'^2) - 0.01 mean(a^2)

`A` is a rotation: left alone, `x` stays as large as it starts (reward about 0) and slowly grows with the noise; actions
can push it to zero (reward 1), which is what is learned. Episodes end by time-out only, each after a length drawn from
[min_length, max_length]. A step is about 6 kFLOP per environment: the environment is not what W3 measures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

OBS_DIM = 48
ACTION_DIM = 12


class TensorStep(NamedTuple):
    """One step of N copies. `obs` already starts the next episode where `truncated`; `final_obs` never does."""

    obs: Tensor  # [N, 48]
    reward: Tensor  # [N]
    terminated: Tensor  # [N] bool, always False
    truncated: Tensor  # [N] bool
    final_obs: Tensor  # [N, 48]


class TensorEnv:
    """N linear systems on one device; deterministic in its seed."""

    def __init__(
        self, num_envs: int, device: str = "cpu", *, seed: int = 0, min_length: int = 20, max_length: int = 200
    ) -> None:
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.min_length, self.max_length = min_length, max_length
        # the system is the same for every seed and device: only noise and lengths are drawn from `seed`
        fixed = torch.Generator().manual_seed(0)
        q, _ = torch.linalg.qr(torch.randn(OBS_DIM, OBS_DIM, generator=fixed))
        self.a = q.contiguous().to(self.device)
        self.b = (torch.randn(ACTION_DIM, OBS_DIM, generator=fixed) * 0.1).to(self.device)
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.x = self._draw()
        self.length = self._draw_length()
        self.age = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def _draw(self) -> Tensor:
        return torch.randn(self.num_envs, OBS_DIM, generator=self.generator, device=self.device)

    def _draw_length(self) -> Tensor:
        return torch.randint(
            self.min_length,
            self.max_length + 1,
            (self.num_envs,),
            generator=self.generator,
            device=self.device,
        )

    def observe(self) -> Tensor:
        """The current observation, `[N, 48]`."""
        return torch.tanh(self.x)

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> Tensor:
        """Start every copy afresh."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.x = self._draw()
        self.length = self._draw_length()
        self.age = torch.zeros_like(self.age)
        return self.observe()

    @torch.no_grad()
    def step(self, action: Tensor) -> TensorStep:
        """Apply actions `[N, 12]`; no host sync."""
        action = action.clamp(-1.0, 1.0)
        x = self.x @ self.a + action @ self.b + 0.05 * self._draw()
        reward = 1.0 - x.square().mean(1) - 0.01 * action.square().mean(1)
        age = self.age + 1
        truncated = age >= self.length
        final_obs = torch.tanh(x)
        self.x = torch.where(truncated.unsqueeze(1), self._draw(), x)
        self.age = torch.where(truncated, torch.zeros_like(age), age)
        self.length = torch.where(truncated, self._draw_length(), self.length)
        return TensorStep(self.observe(), reward, torch.zeros_like(truncated), truncated, final_obs)
