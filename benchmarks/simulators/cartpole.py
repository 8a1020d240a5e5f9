"""mjlab's cartpole in tensors: thousands of steps a second on a CPU, so that many seeds can be compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

TASK = "cartpole in tensors"
_EPISODE, _SUBSTEPS, _TIMESTEP = 1000, 5, 0.01
_CART, _POLE, _HALF, _GRAVITY, _FORCE, _RAIL = 1.0, 0.1, 0.5, 9.81, 10.0, 1.8
_SPREAD = (0.1, 0.034, 0.01, 0.01)  # of the first state: position, angle, and their velocities
_GAUSSIAN = math.sqrt(-2.0 * math.log(0.1))


class Cartpole:
    """rsl_rl's interface: sizes, observations, rewards and episodes as in Mjlab-Cartpole-Balance, without its contacts.

    With `shows_final`, the true final observations are in `extras["final_obs"]`.
    """

    num_actions, max_episode_length = 1, _EPISODE

    def __init__(self, num_envs: int, seed: int, *, shows_final: bool) -> None:
        self.num_envs, self.device, self.shows_final = num_envs, torch.device("cpu"), shows_final
        self.cfg: dict[str, Any] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.state = torch.zeros(num_envs, 4)
        self._restart(torch.ones(num_envs, dtype=torch.bool))

    @property
    def unwrapped(self) -> Cartpole:
        return self

    def get_observations(self) -> TensorDict:
        position, angle, *velocities = self.state.unbind(-1)
        seen = torch.stack([position, angle.cos(), angle.sin(), *velocities], dim=-1)
        return TensorDict({"actor": seen, "critic": seen.clone()}, batch_size=[self.num_envs])

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        action = actions.squeeze(-1)
        self._move(_FORCE * action.clamp(-1.0, 1.0))
        reward = self._reward(action)
        self.episode_length_buf = self.episode_length_buf + 1
        ended = self.episode_length_buf >= _EPISODE
        extras: dict[str, Any] = {"time_outs": ended}
        if self.shows_final:
            extras["final_obs"] = self.get_observations()
        self._restart(ended)
        return self.get_observations(), reward, ended.long(), extras

    def _move(self, force: Tensor) -> None:
        """Barto, Sutton & Anderson (1983), by semi-implicit Euler; the rail's ends stop the cart."""
        position, angle, velocity, spin = self.state.unbind(-1)
        mass = _CART + _POLE
        for _ in range(_SUBSTEPS):
            sine, cosine = angle.sin(), angle.cos()
            push = (force + _POLE * _HALF * spin.square() * sine) / mass
            turn = (_GRAVITY * sine - cosine * push) / (_HALF * (4.0 / 3.0 - _POLE * cosine.square() / mass))
            velocity = velocity + _TIMESTEP * (push - _POLE * _HALF * turn * cosine / mass)
            spin = spin + _TIMESTEP * turn
            position, angle = position + _TIMESTEP * velocity, angle + _TIMESTEP * spin
            velocity = velocity.masked_fill((position.abs() > _RAIL) & (velocity * position > 0.0), 0.0)
            position = position.clamp(-_RAIL, _RAIL)
        self.state = torch.stack([position, angle, velocity, spin], dim=-1)

    def _reward(self, action: Tensor) -> Tensor:
        """dm_control's smooth reward, times the 0.05 s of a step: upright * centred * small control * slow."""
        position, angle, _, spin = self.state.unbind(-1)
        upright = (angle.cos() + 1.0) / 2.0
        centred = (1.0 + torch.exp(-0.5 * (position / 2.0 * _GAUSSIAN).square())) / 2.0
        gentle = (4.0 + (1.0 - 0.9 * action.square()).clamp(min=0.0)) / 5.0
        slow = (1.0 + torch.exp(-0.5 * (spin / 5.0 * _GAUSSIAN).square())) / 2.0
        return _SUBSTEPS * _TIMESTEP * upright * centred * gentle * slow

    def _restart(self, where: Tensor) -> None:
        if bool(where.any()):
            drawn = torch.rand(self.num_envs, 4, generator=self.generator) * 2.0 - 1.0
            self.state = torch.where(where.unsqueeze(-1), drawn * torch.tensor(_SPREAD), self.state)
            self.episode_length_buf = self.episode_length_buf.masked_fill(where, 0)
