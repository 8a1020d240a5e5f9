"""The observations of one environment as a policy that was made for another one knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase

from understudy.core.spaces import Key, find_components, is_vector, size_of
from understudy.nn.protocol import Policy

_HINT = "set its place with groups={{{name!r}: ...}}, or train a teacher on this environment's observations"


class View:
    """Where a policy finds its observations among those of an environment, `space`; called, it gathers them.

    A component of the policy is the environment's component of the same name; `groups` renames (their group or
    group/component -> ours). "state+privileged" stands for vectors side by side, and so does a group that is cut into
    components. Raises ValueError, which names `who`, where nothing fits.
    """

    def __init__(
        self,
        policy: Policy,
        space: spaces.Dict,
        groups: Mapping[str, str] | None = None,
        who: str = "",
        hint: str = _HINT,
    ) -> None:
        self.places = {key: _find(key, policy, space, groups or {}, who, hint) for key in policy.sensor_keys}
        self.same = all(places == [key] for key, places in self.places.items())

    def __call__(self, obs: TensorDictBase) -> TensorDictBase:
        """The policy's components, and nothing else, of obs with any leading shape."""
        seen = TensorDict({}, batch_size=obs.batch_size, device=obs.device)
        for theirs, places in self.places.items():
            values: list[Any] = [obs.get(key) for key in places]
            seen[theirs] = values[0] if len(values) == 1 else torch.cat(values, dim=-1)
        return seen


def _find(key: Key, policy: Policy, space: spaces.Dict, groups: Mapping[str, str], who: str, hint: str) -> list[Key]:
    """The keys of one component of the policy in the environment; raises ValueError if none fits."""
    name, rest = "/".join(key), "/".join(key[1:])
    ours = groups.get(name) or "/".join(filter(None, (groups.get(key[0], key[0]), rest)))
    hint = hint.format(name=name)
    found: dict[Key, spaces.Space[Any]] = {}
    try:
        for one in [ours] if ours in space.spaces else ours.split("+"):
            found |= find_components(space, one)
    except ValueError as error:
        raise ValueError(f"{who} sees {name!r}: {error}; {hint}") from None
    expected = policy.component(key)
    fits = [x.shape for x in found.values()] == [expected.shape]
    if not fits and is_vector(expected) and all(map(is_vector, found.values())):
        fits = sum(map(size_of, found.values())) == size_of(expected)
    if not fits:
        raise ValueError(f"{who} sees {name!r} as {expected}, but {ours!r} is {found}; {hint}")
    return [*found]
