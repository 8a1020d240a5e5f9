"""A simulator with rsl_rl's interface and st_rl's observation groups, whose every number is fixed by a seed."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

SIZES = {"policy": 5, "critic": 7, "ref_obs": 6, "ref_motion": 6}


class Simulator:
    """Episodes of 9 steps, started at different times; the reward is for actions near a linear map of "policy"."""

    num_actions, device, max_episode_length, step_dt, cfg = 2, "cpu", 9, 0.02, None

    def __init__(
        self, num_envs: int = 4, sizes: dict[str, int] | None = None, seed: int = 0, *, gives_final: bool = True
    ) -> None:
        self.num_envs, self.sizes, self.gives_final = num_envs, sizes or SIZES, gives_final
        self.generator = torch.Generator().manual_seed(seed)
        self.episode_length_buf = torch.arange(num_envs) % self.max_episode_length
        self.map = torch.randn(next(iter(self.sizes.values())), self.num_actions, generator=self.generator)
        self.draw()

    @property
    def unwrapped(self) -> Any:
        return self

    def draw(self) -> None:
        rows = {name: torch.randn(self.num_envs, size, generator=self.generator) for name, size in self.sizes.items()}
        self.obs = TensorDict(rows, batch_size=[self.num_envs])

    def get_observations(self) -> TensorDict:
        return self.obs

    def reset(self) -> tuple[TensorDict, dict[str, Any]]:
        return self.obs, {}

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        target = next(iter(self.obs.values())) @ self.map
        reward = -(actions - target).square().mean(-1)
        self.episode_length_buf = self.episode_length_buf + 1
        late = self.episode_length_buf >= self.max_episode_length
        fell = actions[:, 0] > 2.0
        dones = (late | fell).long()
        self.episode_length_buf = torch.where(dones.bool(), 0, self.episode_length_buf)
        extras = {"time_outs": late & ~fell, "log": {"Episode_Reward/near": reward.mean()}}
        self.draw()
        if self.gives_final:
            extras["final_obs"] = self.obs
            self.draw()
        return self.obs, reward, dones, extras
