"""Policies that only act: functions of the user's own, and files that other programs exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key
from understudy.envs.actions import admit_actions
from understudy.nn.distributions import Point
from understudy.nn.protocol import Actor, Policy, PolicyConfig, PolicyOutput

Answer = tuple[Any, Tensor | None]
"""The action to execute `[N, *A]`, in whatever kind, and the state `[N, S]` after it."""
Function = Callable[[TensorDict, Tensor], Any]
"""From obs `[N]` and is_first `[N]`, the actions to execute `[N, *A]`."""
Run = Callable[[Mapping[Key, Tensor], Tensor | None], Answer]
"""Components `[N, *shape]` by key and state `[N, S]` -> the answer."""


class ActingPolicy(Policy):
    """A policy of which nothing is known but what it does: no density, no latents, no value, no weights to train.

    `run` answers with executed actions, which have to lie in `action_space` (real ones are clipped to it); it reads the
    components `keys` (None: all). Raises ValueError, which names `who`, where they do not.
    """

    has_critic = has_density = False

    def __init__(
        self,
        run: Run,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        state_size: int,
        who: str,
        keys: tuple[Key, ...] | None = None,
    ) -> None:
        groups = tuple(observation_space.spaces)
        config = PolicyConfig(
            actor_groups=groups,
            critic_groups=groups,
            normalize_observations=False,
            action_scaling="off",
            action_bound="none",
        )
        super().__init__(observation_space, action_space, config)
        if keys is not None:
            self.name_inputs(keys, keys)
        self.run, self.state_size, self.who = run, state_size, who

    def run_actor(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Actor:
        """The action as a distribution without a density, the next state, no latents."""
        inputs = {key: obs.get(key) for key in self.sensor_keys}
        batch = len(inputs[self.sensor_keys[0]])
        if self.recurrent:
            state = self.initial_state(batch) if state is None else state
            state = state if is_first is None or state is None else state.masked_fill(is_first.unsqueeze(-1), 0.0)
        answer, state = self.run(inputs, state)
        action = admit_actions(answer, self.action_space, batch, self.who).to(self.device)
        return Point(self.action_map.inverse(action)), state, {}

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> PolicyOutput:
        """As `run_actor`, with a value of 0."""
        distribution, state, latents = self.run_actor(obs, state, is_first)
        return PolicyOutput(distribution, torch.zeros(distribution.batch_shape, device=self.device), state, latents)


def function_policy(function: Function, env: Any, who: str) -> ActingPolicy:
    """A function of obs `[N]` and is_first `[N]` as the policy of an environment; its state tells where one starts."""

    def run(inputs: Mapping[Key, Tensor], state: Tensor | None) -> Answer:
        assert state is not None
        obs = TensorDict({}, batch_size=[len(state)], device=state.device)
        for key, x in inputs.items():
            obs[key] = x
        return function(obs, state[:, 0] == 0.0), torch.ones_like(state)

    return ActingPolicy(run, env.observation_space, env.action_space, 1, who)
