"""Observation and action spaces: sizes, dtypes, bounds and blanks of one space; the components and keys of a Dict.

The only file that asks which class a Gymnasium space has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core.check import nearest

Key = tuple[str, ...]
"""Place of a component in the observation TensorDict: `(group,)` or `(group, component)`."""

Kind = Literal["dict", "box", "discrete", "multi_discrete", "multi_binary"]

_CLASSES: dict[Kind, type[spaces.Space[Any]]] = {
    "dict": spaces.Dict,
    "box": spaces.Box,
    "discrete": spaces.Discrete,
    "multi_discrete": spaces.MultiDiscrete,
    "multi_binary": spaces.MultiBinary,
}
# torch has no (or barely any) unsigned 16 to 64 bit types; policies compute in float32
_TENSOR_DTYPE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float64): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.uint16): np.dtype(np.int32),
    np.dtype(np.uint32): np.dtype(np.int64),
    np.dtype(np.uint64): np.dtype(np.int64),
}

HUGE = 1e10
"""A bound of a Box of floats from here on is none; nor is the largest number of float16, int32 or int64."""
_LARGEST = (float(np.finfo(np.float16).max), 2.0**31 - 1, 2.0**31)


# ---------------------------------------------------------------------------------------------- one space


def kind_of(space: spaces.Space[Any]) -> Kind | None:
    """Kind of a space that tensors can hold; None for all others (Tuple, Text, Sequence, Graph)."""
    return next((kind for kind, known in _CLASSES.items() if isinstance(space, known)), None)


def is_box(space: spaces.Space[Any]) -> bool:
    """Whether the space is a Box."""
    return isinstance(space, spaces.Box)


def is_discrete(space: spaces.Space[Any]) -> bool:
    """Whether the space is a Discrete."""
    return isinstance(space, spaces.Discrete)


def is_real(space: spaces.Space[Any]) -> bool:
    """Whether the space is a Box of floating numbers."""
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def is_vector(space: spaces.Space[Any]) -> bool:
    """Whether the space is a Box of one dimension, bytes excepted: those are pixels."""
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype != np.uint8


def shape_of(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Shape of one value; `()` for Discrete."""
    assert space.shape is not None, space
    return space.shape


def size_of(space: spaces.Space[Any]) -> int:
    """Number of entries of one value."""
    return math.prod(shape_of(space))


def array_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """Dtype of the arrays whose memory tensors share: float32 for floats, integers as torch has them."""
    dtype = np.dtype(space.dtype)
    return _TENSOR_DTYPE.get(dtype, dtype)


def tensor_dtype(space: spaces.Space[Any]) -> torch.dtype:
    """Dtype of the space's tensors."""
    return torch.from_numpy(np.empty(0, array_dtype(space))).dtype


class Classes(NamedTuple):
    """Integers that a space allows, for each of its entries, flat."""

    counts: list[int]
    starts: list[int]


def classes_of(space: spaces.Space[Any]) -> Classes | None:
    """Counts and least values of a Discrete or MultiDiscrete space; None for any other."""
    if isinstance(space, spaces.Discrete):
        return Classes([int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return Classes(space.nvec.flatten().tolist(), np.asarray(space.start).flatten().tolist())
    return None


def bounds_of(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value, arrays of the space's shape."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    classes = classes_of(space)
    if classes is None:  # MultiBinary
        return np.zeros(shape_of(space), np.int64), np.ones(shape_of(space), np.int64)
    count, start = (np.asarray(x, np.int64).reshape(shape_of(space)) for x in classes)
    return start, start + count - 1


def limits_of(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """`bounds_of` in float64, where bounds that only stand for "none" are infinite: see `HUGE`."""
    low, high = (np.asarray(side, np.float64) for side in bounds_of(space))
    if not is_real(space):
        return low, high
    none = [(np.abs(side) >= HUGE) | np.isin(np.abs(side), _LARGEST) for side in (low, high)]
    return np.where(none[0] & (low < 0), -np.inf, low), np.where(none[1] & (high > 0), np.inf, high)


def blank(space: spaces.Space[Any], batch: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Tensor `[*batch, *shape]` with nothing in it: zeros, or the least class of Discrete and MultiDiscrete."""
    zeros = torch.zeros((*batch, *shape_of(space)), dtype=tensor_dtype(space), device=device)
    if classes_of(space) is None:
        return zeros
    return zeros + torch.as_tensor(bounds_of(space)[0], dtype=zeros.dtype, device=device)


def same_values(space: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether two spaces hold the same values in the same shape; the bounds of Boxes are not compared."""
    if kind_of(space) != kind_of(other) or space.shape != other.shape:
        return False
    return is_box(space) or all(map(np.array_equal, bounds_of(space), bounds_of(other)))


def check_action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space, if its actions can be tensors (Box, Discrete, MultiDiscrete, MultiBinary); else ValueError."""
    if kind_of(space) in (None, "dict"):
        raise ValueError(
            f"no action distribution covers a {type(space).__name__} action space: flatten it into one Box, "
            "MultiDiscrete or MultiBinary with gymnasium.wrappers.TransformAction"
        )
    return space


# ------------------------------------------------------------------------------------- components and keys


def children(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """Spaces by name in a Dict; empty for any other space."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {}


def component(space: spaces.Space[Any], key: Iterable[str], what: str = "observation") -> spaces.Space[Any]:
    """The space under a key. Raises ValueError with the nearest name if there is none."""
    for name in key:
        space = lookup(children(space), name, what)
    return space


def find_components(space: spaces.Dict, name: str) -> dict[Key, spaces.Space[Any]]:
    """The components of a group ("policy") or one of them ("policy/height"), by key; ValueError if there is none."""
    # any string may be a name, with "/" in it too: the longest group that fits
    cuts = [i for i, letter in enumerate(name) if letter == "/"]
    keys: list[Key] = [(name,), *((name[:i], name[i + 1 :]) for i in reversed(cuts))]
    there = (key for key in keys if key[0] in space.spaces and (len(key) == 1 or key[1] in children(space[key[0]])))
    key = next(there, tuple(name.split("/")))
    found = component(space, key, "observation group")
    if isinstance(found, spaces.Dict):
        return {(*key, child): inner for child, inner in found.spaces.items()}
    return {key: found}


def component_keys(space: spaces.Space[Any], prefix: Key = ()) -> tuple[Key, ...]:
    """Every leaf of an observation space, as TensorDict keys."""
    if not isinstance(space, spaces.Dict):
        return (prefix,)
    return tuple(key for name, child in space.spaces.items() for key in component_keys(child, (*prefix, name)))


def module_name(key: Key) -> str:
    """A component's name in an `nn.ModuleDict`: "group/component", what torch does not allow in it escaped."""
    pieces = [name.replace("%", "%25").replace(".", "%2E").replace("/", "%2F") or "%" for name in key]
    return "/".join(pieces) + ("%" if "/".join(pieces) in _RESERVED else "")


def key_of(name: str) -> Key:
    """The component that `module_name` named."""
    return tuple(unquote(piece.removesuffix("%")) for piece in name.split("/"))


_RESERVED = frozenset(dir(nn.ModuleDict()))


def unflatten(keys: Iterable[Key], leaves: Iterable[Tensor], batch_size: Sequence[int]) -> TensorDict:
    """A TensorDict from leaves, in the order of `keys`."""
    obs = TensorDict({}, batch_size=batch_size)
    for key, leaf in zip(keys, leaves):
        obs[key] = leaf
    return obs


def lookup(mapping: Mapping[str, Any], name: str, what: str) -> Any:
    """`mapping[name]`. Raises ValueError, with the nearest names, if `what` has no such name."""
    if name not in mapping:
        raise ValueError(f"{what} {name!r} does not exist; {nearest(name, mapping)}")
    return mapping[name]
