"""Gymnasium spaces as plain data, so that a checkpoint rebuilds its policy without its environment."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from gymnasium import spaces

from understudy.core.borders import check_unpacked
from understudy.core.check import In
from understudy.core.spaces import bounds_of, children, classes_of, kind_of, shape_of
from understudy.runs.codec import decode


def space_to_plain(space: spaces.Space[Any]) -> dict[str, Any]:
    """Numbers, strings, lists and dicts that `space_from_plain` turns back into an equal space.

    Covers Box, Discrete, MultiDiscrete, MultiBinary and Dict. Raises ValueError for any other space.
    """
    kind = kind_of(space)
    if kind is None:
        raise ValueError(
            f"cannot store a {type(space).__name__} space; use Box, Discrete, MultiDiscrete, MultiBinary or a Dict of "
            "them"
        )
    if kind == "dict":
        return {"space": kind, "spaces": {name: space_to_plain(inner) for name, inner in children(space).items()}}
    if kind == "multi_binary":
        return {"space": kind, "shape": list(shape_of(space))}
    plain = {"space": kind, "dtype": str(space.dtype)}
    classes = classes_of(space)
    if classes is None:
        # an image space holds one number 100,000 times over
        low, high = (x.flat[0].item() if x.size and (x == x.flat[0]).all() else x.tolist() for x in bounds_of(space))
        return plain | {"shape": list(shape_of(space)), "low": low, "high": high}
    if kind == "discrete":
        return plain | {"n": classes.counts[0], "start": classes.starts[0]}
    nvec, start = (np.reshape(x, shape_of(space)).tolist() for x in classes)
    return plain | {"nvec": nvec, "start": start}


class _Shaped(TypedDict):
    shape: tuple[Annotated[int, In(0)], ...]


class _Box(_Shaped):
    dtype: str
    low: Any
    high: Any


class _Discrete(TypedDict):
    dtype: NotRequired[str]
    n: Annotated[int, In(1)]
    start: int


class _MultiDiscrete(TypedDict):
    dtype: NotRequired[str]
    nvec: list[Any]
    start: list[Any]


class _Dict(TypedDict):
    spaces: dict[str, dict[str, Any]]


_DESCRIPTIONS: dict[str, Any] = {
    "dict": _Dict,
    "box": _Box,
    "discrete": _Discrete,
    "multi_discrete": _MultiDiscrete,
    "multi_binary": _Shaped,
}


def space_from_plain(plain: Mapping[str, Any], where: str = "space") -> spaces.Space[Any]:
    """The space that `space_to_plain` described. Raises ValueError for an unknown kind, and what does not fit it."""
    kind = plain.get("space")
    if kind not in _DESCRIPTIONS:
        raise ValueError(f"{where} is of the unknown kind {kind!r:.80}; this checkpoint was written by a newer version")
    plain = decode(_DESCRIPTIONS[kind], plain, where)
    if kind == "dict":
        # spaces.Dict sorts a plain dict, and a policy reads its components in the order of the space
        inner = ((name, space_from_plain(space, f"{where}.{name}")) for name, space in plain["spaces"].items())
        return spaces.Dict(OrderedDict(inner))
    dtype = np.dtype(plain.get("dtype", "int64"))
    if dtype.kind not in "biuf":
        raise ValueError(f"{where} has the dtype {dtype}, which is none of numbers")
    shape = tuple(plain.get("shape", ()))
    check_unpacked(where, 64, math.prod(shape) * dtype.itemsize)
    if kind == "multi_binary":
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "box":
        low, high = (np.broadcast_to(np.array(plain[side], dtype), shape).copy() for side in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "discrete":
        return spaces.Discrete(plain["n"], start=plain["start"], dtype=dtype.type)
    nvec, start = np.array(plain["nvec"], dtype), np.array(plain["start"], dtype)
    return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
