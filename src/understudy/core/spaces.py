"""Observation and action spaces: how to find what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from gymnasium import spaces

Key = tuple[str, ...]
"""Where a component lies in the observation TensorDict: `(group,)` or `(group, component)`."""


def find_components(space: spaces.Dict, name: str) -> dict[Key, spaces.Space[Any]]:
    """The components of a group ("policy") or one of them ("policy/height"), by key; ValueError if there is none."""
    key = tuple(name.split("/"))
    found: spaces.Space[Any] = space
    for part in key:
        found = lookup(found.spaces if isinstance(found, spaces.Dict) else {}, part, "observation group")
    if isinstance(found, spaces.Dict):
        return {(*key, child): component for child, component in found.spaces.items()}
    return {key: found}


def lookup(mapping: Mapping[str, Any], name: str, what: str) -> Any:
    """`mapping[name]`. Raises ValueError, with the nearest names, if `what` has no such name."""
    if name not in mapping:
        near = get_close_matches(name, mapping.keys(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {name!r} does not exist: there is {sorted(mapping)}{hint}")
    return mapping[name]
