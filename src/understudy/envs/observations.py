"""Observation groups: from an environment's observation to the named tensors that a policy asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from understudy.core.check import nearest
from understudy.core.spaces import Key, array_dtype, bounds_of, children, is_box, is_real, is_vector, kind_of, shape_of
from understudy.types import EnvError

Groups = Mapping[str, str | Sequence[str]]
"""Group name -> an environment's observation key (`"state"`, nested: `"robot.joints"`), or several as components."""

Segments = Mapping[str, Mapping[str, int]]
"""Group -> segment -> number of entries, in the order in which they lie: `{"policy": {"position": 5, "speed": 6}}`."""

DEFAULT_GROUP = "policy"
"""The group of an observation that has no names."""


class Leaf(NamedTuple):
    """One tensor of the observation: where it goes, where it comes from, and its space (per environment)."""

    key: Key  # (group,) or (group, component)
    source: Key  # keys into the environment's observation; () is the observation itself
    env_shape: tuple[int, ...]  # as the environment gives it; a scalar Box, (), becomes a (1,) tensor
    space: spaces.Space[Any]
    span: slice | None = None  # the entries of a flat vector that are meant; None: all

    def of(self, value: Tensor) -> Tensor:
        """This leaf of the source's tensor `[N, *env_shape]`: a view, unless floats have to become float32."""
        value = value.float() if value.is_floating_point() else value
        if self.span is not None:
            return value[:, self.span]
        return value.unsqueeze(-1) if shape_of(self.space) and not self.env_shape else value


def observation_leaves(space: spaces.Space[Any], groups: Groups | None = None) -> tuple[Leaf, ...]:
    """The tensors that an observation space is made of, sorted into groups.

    Without `groups`: a plain space is group "policy"; a Dict space is group "policy" with its keys as components,
    unless it has a key "policy": then its keys are the groups. With `groups`, each group names one key of the
    environment's Dict (a Dict under that key becomes its components) or a sequence of keys, its components. "a+b"
    is short for ("a", "b"); a plain space has the one key "policy".

    float64 becomes float32; Discrete stays an integer index (with its `start`). Raises ValueError for an unknown key
    (naming the nearest), an empty group, and spaces that have no fixed-size tensor (Tuple, Text, Sequence, Graph).
    """
    entries = _entries(space)
    if groups is None:
        keys = [name for name, (source, _) in entries.items() if len(source) <= 1]
        named = kind_of(space) == "dict" and DEFAULT_GROUP not in keys
        groups = {DEFAULT_GROUP: keys} if named else {key: key for key in keys}
    leaves = [leaf for group, members in groups.items() for leaf in _group_leaves(group, members, entries)]
    if not leaves:
        raise ValueError("no observation group: name at least one, e.g. groups={'policy': 'state'}")
    return tuple(leaves)


def group_leaves(space: spaces.Dict, groups: Groups | None = None) -> tuple[Leaf, ...]:
    """`observation_leaves` of a space that is sorted already: without `groups`, its keys are the groups."""
    return observation_leaves(space, {name: name for name in children(space)} if groups is None else groups)


def segmented(leaves: Sequence[Leaf], segments: Segments) -> tuple[Leaf, ...]:
    """Leaves with the vectors of some groups cut into named components.

    Raises ValueError for a group that does not exist or holds no flat vector, and for sizes that do not add up.
    """
    groups = [leaf.key[0] for leaf in leaves]
    for group in segments:
        if group not in groups:
            raise ValueError(f"segments name the group {group!r}, which does not exist; {nearest(group, groups)}")
    return tuple(part for leaf in leaves for part in (_cut(leaf, segments) if leaf.key[0] in segments else [leaf]))


def leaves_space(leaves: Sequence[Leaf]) -> spaces.Dict:
    """The observation space of a `VecEnv` (per environment): group -> space, or Dict of components."""
    tree = spaces.Dict()  # filled key by key: it would sort a dict, and the order given is the one to keep
    for leaf in leaves:
        group, *component = leaf.key
        if component:
            tree.spaces.setdefault(group, spaces.Dict()).spaces[component[0]] = leaf.space  # type: ignore[attr-defined]
        else:
            tree.spaces[group] = leaf.space
    return tree


def regroup(obs: TensorDictBase, leaves: Sequence[Leaf]) -> TensorDict:
    """The leaves of an observation `[N]`, under their group keys."""
    tree = TensorDict({}, batch_size=obs.batch_size, device=obs.device)
    for leaf in leaves:
        value = obs.get(leaf.source, None)
        if value is None:
            raise EnvError(
                f"the observation lacks {'/'.join(leaf.source)!r}, which it had before: give it at every step"
            )
        tree.set(leaf.key, leaf.of(value))
    return tree


_Entries = dict[str, tuple[Key, spaces.Space[Any]]]


def _entries(space: spaces.Space[Any], prefix: Key = ()) -> _Entries:
    """Dotted name -> (source, space), for every level of a Dict space; a plain space is the one entry "policy"."""
    if kind_of(space) != "dict":
        return {} if prefix else {DEFAULT_GROUP: ((), space)}
    if unnamed := [name for name in children(space) if not isinstance(name, str)]:
        raise ValueError(f"a name in the environment's Dict space must be text, got {unnamed[0]!r}: rename it")
    level = {(*prefix, name): child for name, child in children(space).items()}
    entries: _Entries = {".".join(source): (source, child) for source, child in level.items()}
    for source, child in level.items():
        entries = {**_entries(child, source), **entries} if children(child) else entries  # the outer name wins
    return entries


def _group_leaves(group: str, members: str | Sequence[str], entries: _Entries) -> list[Leaf]:
    if isinstance(members, str) and members not in entries and "+" in members:
        members = members.split("+")
    if isinstance(members, str):
        source, space = _entry(group, members, entries)
        if kind_of(space) != "dict":
            return [_leaf((group,), source, space)]
        found = {key: ((*source, key), child) for key, child in children(space).items()}
    else:
        found = {member: _entry(group, member, entries) for member in members}
    if not found:
        raise ValueError(f"observation group {group!r} is empty: give it at least one key")
    leaves = []
    for member, (source, space) in found.items():
        if kind_of(space) == "dict":
            inner = ", ".join(".".join((*source, key)) for key in children(space))
            raise ValueError(
                f"{member!r} in observation group {group!r} is itself a Dict, and groups hold one level of components: "
                f"name its parts ({inner}) in groups={{{group!r}: [...]}}"
            )
        leaves.append(_leaf((group, member if isinstance(members, str) else "_".join(source)), source, space))
    if len({leaf.key for leaf in leaves}) < (len(leaves) if isinstance(members, str) else len(members)):
        raise ValueError(f"observation group {group!r} names a component twice: {list(members)}")
    return leaves


def _entry(group: str, key: str, entries: _Entries) -> tuple[Key, spaces.Space[Any]]:
    if key not in entries:
        raise ValueError(
            f"observation group {group!r} asks for {key!r}, which the environment lacks: {nearest(key, entries)}"
        )
    return entries[key]


def _leaf(key: Key, source: Key, space: spaces.Space[Any]) -> Leaf:
    if kind_of(space) is not None:
        return Leaf(key, source, shape_of(space), _tensor_box(space) if is_box(space) else space)
    raise ValueError(
        f"{'.'.join(source) or 'the observation'} is a {type(space).__name__} space, which has no fixed-size tensor: "
        "drop it with gymnasium.wrappers.FilterObservation, choose other groups, or turn it into a Box (a Tuple: into "
        "a Dict of named parts) with gymnasium.wrappers.TransformObservation"
    )


def _tensor_box(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The Box of the tensor: float32 for floats, at least one dimension."""
    dtype = array_dtype(space)
    if dtype == space.dtype and space.shape:
        return space
    low, high = map(np.atleast_1d, bounds_of(space))
    if dtype == np.float32:
        limit = np.finfo(np.float32).max  # beyond it lies infinity, without a warning on the way
        low = np.where(low < -limit, -np.inf, np.where(low > limit, limit, low))
        high = np.where(high > limit, np.inf, np.where(high < -limit, -limit, high))
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _cut(leaf: Leaf, segments: Segments) -> list[Leaf]:
    """The segments of a group's one vector, as leaves."""
    group, whole = leaf.key[0], leaf.space
    if len(leaf.key) > 1 or not (is_vector(whole) and is_real(whole)):
        raise ValueError(f"segments are of a vector, but {group!r} is {whole if len(leaf.key) == 1 else 'a Dict'}")
    sizes = segments[group]
    ends = list(accumulate(sizes.values()))
    if not ends or min(sizes.values()) < 1 or ends[-1] != len(bounds_of(whole)[0]):
        raise ValueError(
            f"the segments {dict(sizes)} of {group!r} add up to {ends[-1] if ends else 0} entries, the vector has "
            f"{len(bounds_of(whole)[0])}: name all of them, each with at least one"
        )
    low, high = bounds_of(whole)
    spans = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
    parts = {name: spaces.Box(low[span], high[span], dtype=np.float32) for name, span in spans.items()}
    return [Leaf((group, name), leaf.source, leaf.env_shape, parts[name], span) for name, span in spans.items()]
