"""Flat observation vectors with named segments: each segment becomes a component of its group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import StatefulEnv, Step, VecEnv
from understudy.envs.observations import nearest

Segments = Mapping[str, Mapping[str, int]]
"""Group -> segment -> number of entries, in the order in which they lie: `{"policy": {"position": 5, "speed": 6}}`."""


def with_segments(env: VecEnv, segments: Segments) -> VecEnv:
    """The environment with the vectors of some groups cut into named components; views, nothing is copied.

    Raises ValueError for a group that does not exist or is no vector, and for sizes that do not add up.
    """
    if not segments:
        return env
    return StatefulSegmentedEnv(env, segments) if isinstance(env, StatefulEnv) else SegmentedEnv(env, segments)


class SegmentedEnv:
    """A `VecEnv` around another one, see `with_segments`."""

    def __init__(self, env: VecEnv, segments: Segments) -> None:
        self.env, self.num_envs, self.device = env, env.num_envs, env.device
        self.action_space: spaces.Space[Any] = env.action_space
        self.spans = {group: _spans(env.observation_space, group, sizes) for group, sizes in segments.items()}
        groups = OrderedDict(env.observation_space.spaces)
        for group, spans in self.spans.items():
            whole = groups[group]
            assert isinstance(whole, spaces.Box)
            parts = {name: spaces.Box(whole.low[s], whole.high[s], dtype=np.float32) for name, s in spans.items()}
            groups[group] = spaces.Dict(OrderedDict(parts))
        self.observation_space = spaces.Dict(groups)

    def reset(self, seed: int | None = None) -> TensorDict:
        """As the environment's."""
        return self._cut(self.env.reset(seed))

    def step(self, action: Tensor) -> Step:
        """As the environment's."""
        step = self.env.step(action)
        final = None if step.final_obs is None else self._cut(step.final_obs)
        return step._replace(obs=self._cut(step.obs), final_obs=final)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _cut(self, obs: TensorDict) -> TensorDict:
        cut = obs.clone(recurse=False)  # the environment's own TensorDict stays whole
        for group, spans in self.spans.items():
            whole = obs.get(group)
            parts = {name: whole[:, span] for name, span in spans.items()}
            cut[group] = TensorDict(parts, batch_size=obs.batch_size, device=obs.device)
        return cut


class StatefulSegmentedEnv(SegmentedEnv):
    """The same around an environment whose state can be saved."""

    env: Any  # both a VecEnv and a StatefulEnv

    def state_dict(self) -> dict[str, Tensor]:
        """As the environment's."""
        state: dict[str, Tensor] = self.env.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """As the environment's."""
        self.env.load_state_dict(state)

    def observe(self) -> TensorDict:
        """As the environment's."""
        return self._cut(self.env.observe())


def _spans(space: spaces.Dict, group: str, sizes: Mapping[str, int]) -> dict[str, slice]:
    if group not in space.spaces:
        raise ValueError(
            f"segments name the group {group!r}, which does not exist; {nearest(group, list(space.spaces))}"
        )
    whole = space[group]
    if not isinstance(whole, spaces.Box) or len(whole.shape) != 1 or not np.issubdtype(whole.dtype, np.floating):
        raise ValueError(f"segments are of a vector, but {group!r} is {whole}")
    ends = list(accumulate(sizes.values()))
    if not ends or min(sizes.values()) < 1 or ends[-1] != whole.shape[0]:
        raise ValueError(
            f"the segments {dict(sizes)} of {group!r} add up to {ends[-1] if ends else 0} entries, the vector has "
            f"{whole.shape[0]}: name all of them, each with at least one"
        )
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
