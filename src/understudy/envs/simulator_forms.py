"""What simulators return, in any of the forms in use: observations as a TensorDict of groups, and their spaces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import check_action_space
from understudy.envs.observations import DEFAULT_GROUP
from understudy.types import EnvError

ACTOR_NAMES = ("actor", "state")
"""Groups that stand for "policy" where there is none: rsl_rl's from version 4 on, MuJoCo Playground's."""
CRITIC_NAMES = ("privileged_state",)
"""Groups that stand for "critic" where there is none."""
REFERENCES = ("ref_obs", "ref_motion")
"""st_rl's style features and reference motion, which come in `extras` whatever the form of the observations."""


def conventional_groups(names: Iterable[str]) -> dict[str, str]:
    """Group -> the simulator's name of it: the library's words for actor and critic, all else as it is called."""
    groups = {name: name for name in names}
    for ours, theirs in ((DEFAULT_GROUP, ACTOR_NAMES), ("critic", CRITIC_NAMES)):
        found = next((name for name in theirs if name in groups), None)
        if ours not in groups and found is not None:
            groups = {ours if name == found else name: source for name, source in groups.items()}
    return groups


def as_groups(raw: Any, extras: Any = None) -> TensorDict:
    """Observations in any of the forms in use, as a TensorDict `[rows]` of groups.

    A TensorDict, a mapping of groups, or a tensor, which is "policy"; each also in a tuple with `extras`. Beside a
    tensor `extras["observations"]` holds further groups; legged_gym puts the critic's tensor in place of `extras`.
    """
    if isinstance(raw, tuple):
        raw, extras = (*raw, None)[:2]
    beside = {"critic": extras} if isinstance(extras, Tensor) else _beside(extras)
    if isinstance(raw, Tensor):
        raw = {DEFAULT_GROUP: raw, **{name: x for name, x in beside.items() if name != DEFAULT_GROUP}}
    elif isinstance(raw, TensorDict | Mapping) and (further := [name for name in REFERENCES if name in beside]):
        raw = dict(raw.items()) | {name: beside[name] for name in further}
    if isinstance(raw, TensorDict):
        return raw
    if isinstance(raw, Mapping):
        leaf: Any = raw
        while isinstance(leaf, Mapping | TensorDict):
            leaf = next(iter(leaf.values()))
        if not isinstance(leaf, Tensor):
            raise EnvError(f"the simulator's observations hold a {type(leaf).__name__}; expected tensors")
        return TensorDict({**raw}, batch_size=[leaf.shape[0]])
    raise EnvError(f"the simulator's observations are a {type(raw).__name__}; expected a TensorDict or a tensor")


def _beside(extras: Any) -> dict[str, Tensor]:
    """Observations in `extras`: those under "observations", and the reference motion beside them."""
    if not isinstance(extras, Mapping):
        return {}
    inner = extras.get("observations")
    found = dict(inner) if isinstance(inner, Mapping) else {}
    found |= {name: extras[name] for name in REFERENCES if name in extras}
    return {name: x for name, x in found.items() if x is not None}


def paths(obs: TensorDict) -> set[tuple[str, ...]]:
    """The keys of all tensors, each as a tuple."""
    return {key if isinstance(key, tuple) else (key,) for key in obs.keys(include_nested=True, leaves_only=True)}


def tree_space(obs: TensorDict) -> spaces.Dict:
    """The space of a TensorDict's rows: unbounded Boxes, images (uint8) from 0 to 255."""
    return spaces.Dict(  # an OrderedDict, or spaces.Dict would sort it
        OrderedDict(
            (name, tree_space(value) if isinstance(value, TensorDict) else _tensor_space(value))
            for name, value in obs.items()
        )
    )


def _tensor_space(value: Any) -> spaces.Box:
    shape = tuple(value.shape[1:])
    if value.dtype.is_floating_point:
        return unbounded(shape)  # whatever its width: the policy computes in float32
    dtype: Any = torch.empty(0, dtype=value.dtype).numpy().dtype.type
    if dtype == np.bool_:
        return spaces.Box(0, 1, shape, dtype)
    return spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype)


def action_space_of(space: Any) -> spaces.Space[Any]:
    """A simulator's space of actions; mjlab's Box has shape and bounds, but is not Gymnasium's."""
    if isinstance(space, spaces.Space):
        return check_action_space(space)
    return spaces.Box(np.float32(space.low), np.float32(space.high), tuple(space.shape), np.float32)


def unbounded(shape: tuple[int, ...]) -> spaces.Box:
    """A Box without bounds."""
    return spaces.Box(-np.inf, np.inf, shape, np.float32)
