"""Observation groups: how an environment's observation becomes the named tensors that a policy asks for."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step

Groups = Mapping[str, str | Sequence[str]]
"""Group name -> an environment's observation key (`"state"`, nested: `"robot.joints"`), or several as components."""

DEFAULT_GROUP = "policy"
"""The group of an observation that has no names."""

Source = tuple[str, ...]

# torch has no (or barely any) unsigned 16 to 64 bit types; policies compute in float32
_TENSOR_DTYPE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float64): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.uint16): np.dtype(np.int32),
    np.dtype(np.uint32): np.dtype(np.int64),
    np.dtype(np.uint64): np.dtype(np.int64),
}
_ALIGNMENT = 64  # bytes: one cache line, and enough for any vectorised load


class Leaf(NamedTuple):
    """One tensor of the observation: where it goes, where it comes from, and its space (per environment)."""

    key: tuple[str, ...]  # (group,) or (group, component)
    source: Source  # keys into the environment's observation; () is the observation itself
    env_shape: tuple[int, ...]  # as the environment gives it; a scalar Box, (), becomes a (1,) tensor
    space: spaces.Space[Any]


def observation_leaves(space: spaces.Space[Any], groups: Groups | None = None) -> tuple[Leaf, ...]:
    """The tensors that an observation space is made of, sorted into groups.

    Without `groups`: a plain space is group "policy"; a Dict space is group "policy" with its keys as components,
    unless it has a key "policy": then its keys are the groups. With `groups`, each group names one key of the
    environment's Dict (a Dict under that key becomes its components) or a sequence of keys, its components. "a+b"
    is short for ("a", "b"); a plain space has the one key "policy".

    float64 becomes float32; Discrete stays an int64 index (with its `start`). Raises ValueError for an unknown key
    (naming the nearest), an empty group, and spaces that have no fixed-size tensor (Tuple, Text, Sequence, Graph).
    """
    entries = _entries(space)
    if groups is None:
        keys = [name for name, (source, _) in entries.items() if len(source) <= 1]
        named = isinstance(space, spaces.Dict) and DEFAULT_GROUP not in keys
        groups = {DEFAULT_GROUP: keys} if named else {key: key for key in keys}
    leaves = [leaf for group, members in groups.items() for leaf in _group_leaves(group, members, entries)]
    if not leaves:
        raise ValueError("no observation group: name at least one, e.g. groups={'policy': 'state'}")
    return tuple(leaves)


def leaves_space(leaves: Sequence[Leaf]) -> spaces.Dict:
    """The observation space of a `VecEnv` (per environment): group -> space, or Dict of components."""
    tree: OrderedDict[str, Any] = OrderedDict()  # spaces.Dict sorts a plain dict; the order given is the one to keep
    for leaf in leaves:
        if len(leaf.key) == 1:
            tree[leaf.key[0]] = leaf.space
        else:
            tree.setdefault(leaf.key[0], OrderedDict())[leaf.key[1]] = leaf.space
    return spaces.Dict(
        OrderedDict((name, spaces.Dict(sub) if isinstance(sub, OrderedDict) else sub) for name, sub in tree.items())
    )


class StepBuffers:
    """The memory of a CPU environment's step, allocated once: numpy arrays to write, tensors on `device` to hand out.

    On the CPU both are the same memory. On another device the arrays of one step lie in one (pinned) block and
    `publish` is one copy for it and one for the final observations, which waits: the arrays are rewritten next step.
    """

    def __init__(self, leaves: Sequence[Leaf], num_envs: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.num_envs = num_envs
        fields: dict[Source, tuple[tuple[int, ...], np.dtype[Any]]] = {
            leaf.source: ((num_envs, *leaf.env_shape), _array_dtype(leaf.space)) for leaf in leaves
        }
        flags: dict[Source, tuple[tuple[int, ...], np.dtype[Any]]] = {
            ("reward",): ((num_envs,), np.dtype(np.float32)),
            ("terminated",): ((num_envs,), np.dtype(np.bool_)),
            ("truncated",): ((num_envs,), np.dtype(np.bool_)),
        }
        self._observations = _Block(fields, self.device)
        self._finals = _Block(fields, self.device)
        self._flags = _Block(flags, self.device)
        self.obs_arrays, self.final_arrays = self._observations.arrays, self._finals.arrays
        self.obs = self._tree(leaves, self._observations.tensors)
        self.final_obs = self._tree(leaves, self._finals.tensors)
        self.reward_array, self.terminated_array, self.truncated_array = self._flags.arrays.values()
        self.reward, self.terminated, self.truncated = self._flags.tensors.values()
        self.shared = self.device.type == "cpu"  # arrays and tensors are the same memory: nothing to publish

    def step(self) -> Step:
        """The `Step` of these tensors: the same object serves every step, since the tensors are the same."""
        return Step(self.obs, self.reward, self.terminated, self.truncated, self.final_obs, {})

    def publish(self, ended: bool) -> None:
        """Bring what was written to the arrays to the device; `ended`: final observations were written too."""
        if self.shared:
            return
        self._flags.publish()
        if ended:
            self._finals.publish()
        self._observations.publish()

    def _tree(self, leaves: Sequence[Leaf], tensors: Mapping[Source, Tensor]) -> TensorDict:
        """The tensors under their group keys; leaves of one source share memory."""
        tree = TensorDict({}, batch_size=[self.num_envs], device=self.device)
        for leaf in leaves:
            value = tensors[leaf.source]
            tree.set(leaf.key, value.unsqueeze(-1) if leaf.space.shape == (1,) and leaf.env_shape == () else value)
        return tree


class _Block:
    """Arrays that lie in one piece of host memory, and their twins on the device (the same memory on the CPU)."""

    def __init__(self, fields: Mapping[Source, tuple[tuple[int, ...], np.dtype[Any]]], device: torch.device) -> None:
        size, offsets = 0, {}
        for name, (shape, dtype) in fields.items():
            offsets[name] = size
            size += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = self._host if device.type == "cpu" else torch.zeros(size, dtype=torch.uint8, device=device)
        self.arrays: dict[Source, np.ndarray] = {}
        self.tensors: dict[Source, Tensor] = {}
        for name, (shape, dtype) in fields.items():
            span = slice(offsets[name], offsets[name] + int(np.prod(shape)) * dtype.itemsize)
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            self.arrays[name] = self._host[span].view(kind).view(shape).numpy()
            self.tensors[name] = self._device[span].view(kind).view(shape)

    def publish(self) -> None:
        self._device.copy_(self._host)


def row_writers(arrays: Mapping[Source, np.ndarray]) -> list[Callable[[Any], None]]:
    """One function per row that writes one environment's observation there."""
    num_envs = len(next(iter(arrays.values())))
    return [_row_writer({source: array[row : row + 1] for source, array in arrays.items()}) for row in range(num_envs)]


def _row_writer(arrays: Mapping[Source, np.ndarray]) -> Callable[[Any], None]:
    # bound once, views taken once: this runs for every environment and step
    puts = [
        (source, partial(array[0].__setitem__ if array.ndim > 1 else array.__setitem__, ...))
        for source, array in arrays.items()
    ]
    if list(arrays) == [()]:
        return puts[0][1]
    if all(len(source) == 1 for source in arrays):
        flat = [(source[0], put) for source, put in puts]

        def write_flat(obs: Any) -> None:
            for key, put in flat:
                put(obs[key])

        return write_flat

    def write_nested(obs: Any) -> None:
        for source, put in puts:
            put(pick(obs, source))

    return write_nested


def write_batch(arrays: Mapping[Source, np.ndarray], obs: Any, rows: Any = None) -> None:
    """Write a batched observation into all rows (checked: same shape), or row by row into the named `rows`."""
    for source, array in arrays.items():
        value = np.asarray(pick(obs, source))
        target = array.shape if rows is None else (len(rows), *array.shape[1:])
        if value.shape != target:  # numpy would broadcast
            raise ValueError(f"observation {'.'.join(source) or 'array'} has shape {value.shape}, expected {target}")
        array[... if rows is None else rows] = value


def check_row(leaves: Sequence[Leaf], obs: Any) -> None:
    """Raise ValueError where one environment's observation has another shape than its space (numpy would broadcast)."""
    for leaf in leaves:
        shape = np.shape(pick(obs, leaf.source))
        if shape != leaf.env_shape:
            name = ".".join(leaf.source) or "the observation"
            raise ValueError(f"{name} has shape {shape}, but its space says {leaf.env_shape}: correct one of them")


def pick(obs: Any, source: Source) -> Any:
    """Follow `source` into nested observation dicts."""
    for key in source:
        obs = obs[key]
    return obs


def component_keys(space: spaces.Dict, prefix: Source = ()) -> tuple[Source, ...]:
    """Every leaf of an observation space, as TensorDict keys."""
    keys: list[Source] = []
    for name, child in space.spaces.items():
        keys += component_keys(child, (*prefix, name)) if isinstance(child, spaces.Dict) else [(*prefix, name)]
    return tuple(keys)


def unflatten(keys: Iterable[Source], leaves: Iterable[Tensor], batch_size: Sequence[int]) -> TensorDict:
    """A TensorDict from leaves, in the order of `keys`."""
    obs = TensorDict({}, batch_size=batch_size)
    for key, leaf in zip(keys, leaves):
        obs[key] = leaf
    return obs


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the names nearest to a misspelt one, or all of them if there are few."""
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in difflib.get_close_matches(name.lower(), list(lower), n=5, cutoff=0.5)]
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"known: {', '.join(sorted(known))}" if len(known) <= 20 else ""


def _entries(space: spaces.Space[Any]) -> dict[str, tuple[Source, spaces.Space[Any]]]:
    """Dotted name -> (source, space), for every level of a Dict space; a plain space is the one entry "policy"."""
    if not isinstance(space, spaces.Dict):
        return {DEFAULT_GROUP: ((), space)}
    entries: dict[str, tuple[Source, spaces.Space[Any]]] = {}

    def visit(prefix: Source, node: spaces.Dict) -> None:
        for key, sub in node.spaces.items():
            entries[".".join((*prefix, key))] = ((*prefix, key), sub)
            if isinstance(sub, spaces.Dict):
                visit((*prefix, key), sub)

    visit((), space)
    return entries


def _group_leaves(
    group: str, members: str | Sequence[str], entries: Mapping[str, tuple[Source, spaces.Space[Any]]]
) -> list[Leaf]:
    if isinstance(members, str) and members not in entries and "+" in members:
        members = members.split("+")
    if isinstance(members, str):
        source, space = _entry(group, members, entries)
        if not isinstance(space, spaces.Dict):
            return [_leaf((group,), source, space)]
        members = [f"{members}.{key}" for key in space.spaces]
        prefix = len(source)
    else:
        prefix = 0
    if not members:
        raise ValueError(f"observation group {group!r} is empty: give it at least one key")
    leaves = []
    for member in members:
        source, space = _entry(group, member, entries)
        if isinstance(space, spaces.Dict):
            inner = ", ".join(f"{member}.{key}" for key in space.spaces)
            raise ValueError(
                f"{member!r} in observation group {group!r} is itself a Dict, and groups hold one level of components: "
                f"name its parts ({inner}) in groups={{{group!r}: [...]}}"
            )
        # "." is not allowed in a torch module's name, and components have encoders named after them
        leaves.append(_leaf((group, "_".join(source[prefix:]).replace(".", "_")), source, space))
    if len({leaf.key for leaf in leaves}) < len(leaves):
        raise ValueError(f"observation group {group!r} names a component twice: {list(members)}")
    return leaves


def _entry(
    group: str, key: str, entries: Mapping[str, tuple[Source, spaces.Space[Any]]]
) -> tuple[Source, spaces.Space[Any]]:
    if key not in entries:
        raise ValueError(
            f"observation group {group!r} asks for {key!r}, which the environment lacks: {nearest(key, list(entries))}"
        )
    return entries[key]


def _leaf(key: tuple[str, ...], source: Source, space: spaces.Space[Any]) -> Leaf:
    name = ".".join(source) or "the observation"
    if isinstance(space, spaces.Box):
        return Leaf(key, source, space.shape, _tensor_box(space))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        shape = space.shape
        assert shape is not None
        return Leaf(key, source, shape, space)
    if isinstance(space, spaces.Tuple):
        advice = "turn it into a Dict of named parts with gymnasium.wrappers.TransformObservation"
    else:
        advice = "drop it with gymnasium.wrappers.FilterObservation, choose other groups, or encode it as a Box"
    raise ValueError(f"{name} is a {type(space).__name__} space, which has no fixed-size tensor: {advice}")


def _tensor_box(space: spaces.Box) -> spaces.Box:
    """The Box of the tensor: float32 for floats, at least one dimension."""
    own = np.dtype(space.dtype)
    dtype: np.dtype[Any] = _TENSOR_DTYPE.get(own, own)
    if dtype == own and space.shape:
        return space
    low, high = np.atleast_1d(space.low), np.atleast_1d(space.high)
    if dtype == np.float32:
        limit = np.finfo(np.float32).max  # beyond it lies infinity, without a warning on the way
        low = np.where(low < -limit, -np.inf, np.where(low > limit, limit, low))
        high = np.where(high > limit, np.inf, np.where(high < -limit, -limit, high))
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _array_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    if isinstance(space, spaces.Box):
        return np.dtype(space.dtype)
    return np.dtype(np.int8) if isinstance(space, spaces.MultiBinary) else np.dtype(np.int64)
