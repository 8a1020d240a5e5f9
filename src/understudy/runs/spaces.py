"""Gymnasium spaces as plain data, so that a checkpoint rebuilds its policy without its environment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces


def space_to_plain(space: spaces.Space[Any]) -> dict[str, Any]:
    """Numbers, strings, lists and dicts that `space_from_plain` turns back into an equal space.

    Covers Box, Discrete, MultiDiscrete, MultiBinary and Dict. Raises ValueError for any other space.
    """
    if isinstance(space, spaces.Dict):
        return {"space": "dict", "spaces": {name: space_to_plain(inner) for name, inner in space.spaces.items()}}
    if isinstance(space, spaces.Box):
        return {
            "space": "box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bound_to_plain(space.low),
            "high": _bound_to_plain(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {"space": "discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "space": "multi_discrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"space": "multi_binary", "shape": list(space.shape)}
    raise ValueError(
        f"cannot store a {type(space).__name__} space; use Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them"
    )


def space_from_plain(plain: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space that `space_to_plain` described. Raises ValueError for an unknown kind."""
    kind = plain["space"]
    if kind == "dict":
        # spaces.Dict sorts a plain dict, and a policy reads its components in the order of the space
        return spaces.Dict(OrderedDict((name, space_from_plain(inner)) for name, inner in plain["spaces"].items()))
    if kind == "box":
        shape, dtype = tuple(plain["shape"]), np.dtype(plain["dtype"])
        low, high = (_bound_from_plain(plain[side], shape, dtype) for side in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "discrete":
        dtype = np.dtype(plain["dtype"])
        return spaces.Discrete(plain["n"], start=plain["start"], dtype=dtype.type)
    if kind == "multi_discrete":
        dtype = np.dtype(plain["dtype"])
        nvec, start = np.array(plain["nvec"], dtype), np.array(plain["start"], dtype)
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
    if kind == "multi_binary":
        shape = tuple(plain["shape"])
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    raise ValueError(f"unknown kind of space {kind!r}; this checkpoint was written by a newer version")


def _bound_to_plain(bound: np.ndarray) -> Any:
    # an image space holds one number 100,000 times over
    first = bound.reshape(-1)[:1]
    return first.tolist()[0] if first.size and bool((bound == first).all()) else bound.tolist()


def _bound_from_plain(plain: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.broadcast_to(np.array(plain, dtype), shape).copy()
