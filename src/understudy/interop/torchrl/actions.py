"""Distributions and actions of torch and TorchRL as this library has them, of one or several heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch import distributions as D

from understudy.core.spaces import bounds_of, classes_of, is_box, shape_of, size_of
from understudy.interop.torchrl.entries import key_name, stored
from understudy.nn.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    TanhGaussian,
)
from understudy.nn.heads import Kind

Heads = Mapping[NestedKey, spaces.Space[Any]]
"""What an actor samples: the entry of each head, and its space."""

KINDS: dict[type, Kind] = {
    DiagGaussian: "gaussian",
    TanhGaussian: "tanh_gaussian",
    Categorical: "categorical",
    MultiCategorical: "multi_categorical",
    Bernoulli: "bernoulli",
}


def heads_of(distribution: D.Distribution, key: NestedKey) -> dict[NestedKey, Any]:
    """The distributions of a composite action by entry; `key` is the entry of a single one."""
    return dict(distribution.dists) if isinstance(distribution, CompositeDistribution) else {key: distribution}


def as_distribution(distribution: D.Distribution, batch_shape: torch.Size | None = None) -> Distribution:
    """A distribution of torch's or TorchRL's as one of this library's, differentiable; ValueError for other families.

    Normals, categoricals (one-hot ones, too), Bernoullis and TorchRL's `TanhNormal`, under `Independent` or not;
    several of them in a `CompositeDistribution`, if they are of one kind. Dimensions behind `batch_shape` (None: its
    own) are those of the action.
    """
    batch = distribution.batch_shape if batch_shape is None else batch_shape
    if isinstance(distribution, CompositeDistribution):
        return _joined({key: as_distribution(head, batch) for key, head in distribution.dists.items()})
    base: Any = distribution
    while isinstance(base, D.Independent):
        base = base.base_dist

    def vector(x: Tensor) -> Tensor:
        return x.unsqueeze(-1) if x.shape == batch else x.flatten(len(batch))

    if isinstance(base, D.Normal):
        return DiagGaussian(vector(base.loc), vector(base.scale.log()))
    if isinstance(base, (D.Categorical, D.OneHotCategorical)):
        choices = base.logits.shape[len(batch) : -1]
        return (
            MultiCategorical(vector(base.logits), choices.numel() * base.logits.shape[-1:])
            if choices
            else Categorical(base.logits)
        )
    if isinstance(base, D.Bernoulli):
        return Bernoulli(vector(base.logits))
    if type(base).__name__ == "TanhNormal":  # TorchRL's, which need not be installed
        return TanhGaussian(vector(base.loc), vector(base.scale.log()))
    raise ValueError(
        f"parts know Normal, Categorical, OneHotCategorical, Bernoulli and TanhNormal, not {type(base).__name__}"
    )


def _joined(heads: Mapping[NestedKey, Distribution]) -> Distribution:
    """The distribution of all heads together, as of independent choices."""
    found = list(heads.values())
    if all(isinstance(head, Categorical | MultiCategorical) for head in found):
        counts = [head.nvec if isinstance(head, MultiCategorical) else head.params.shape[-1:] for head in found]
        return MultiCategorical(torch.cat([head.params for head in found], -1), [n for block in counts for n in block])
    if all(isinstance(head, Bernoulli) for head in found):
        return Bernoulli(torch.cat([head.params for head in found], -1))
    for kind in (DiagGaussian, TanhGaussian):
        gaussians = [head for head in found if isinstance(head, kind)]
        if len(gaussians) == len(found):
            return kind(torch.cat([x.mean for x in gaussians], -1), torch.cat([x.log_std for x in gaussians], -1))
    kinds = ", ".join(f"{key_name(key)} ({type(head).__name__})" for key, head in heads.items())
    raise ValueError(
        f"parts know actions of one kind, the actor's heads are {kinds}: give the part an actor of "
        "the same modules that ends with heads of one kind"
    )


def space_of(found: Any, distribution: Distribution) -> spaces.Space[Any]:
    """The actions of a head: `distribution` is `as_distribution(found)`."""
    size = distribution.params.shape[-1]
    if isinstance(distribution, Categorical):
        return spaces.Discrete(size)
    if isinstance(distribution, MultiCategorical):
        return spaces.MultiDiscrete([*distribution.nvec])
    if isinstance(distribution, Bernoulli):
        return spaces.MultiBinary(size)
    low, high = (-np.inf, np.inf) if isinstance(distribution, DiagGaussian) else (found.low, found.high)
    low, high = (np.broadcast_to(np.asarray(x, np.float32), (size // 2,)).copy() for x in (low, high))
    return spaces.Box(low, high, dtype=np.float32)


def joined_space(heads: Sequence[spaces.Space[Any]]) -> spaces.Space[Any]:
    """The space of all heads together: of one kind, as `as_distribution` has made sure."""
    if len(heads) == 1:
        return heads[0]
    classes = [classes_of(space) for space in heads]
    if classes[0] is not None:
        return spaces.MultiDiscrete([n for found in classes if found is not None for n in found.counts])
    if not is_box(heads[0]):
        return spaces.MultiBinary(sum(map(size_of, heads)))
    low, high = (np.concatenate(side) for side in zip(*map(bounds_of, heads)))
    return spaces.Box(low, high, dtype=np.float32)


def joined_entry(batch: TensorDictBase, heads: Heads, mend: str) -> Tensor:
    """The action that a batch holds in the entries of its heads, in the space of all of them together."""
    found = [fitted(stored(batch, key, mend), space, batch.ndim, key_name(key)) for key, space in heads.items()]
    if len(found) == 1:
        return found[0]
    return torch.cat([x.reshape(*batch.shape, -1) for x in found], -1)


def fitted(x: Tensor, space: spaces.Space[Any], batch_dims: int, name: str) -> Tensor:
    """An entry as its space has it: one-hot choices as numbers, numbers for each sample without a trailing 1.

    Raises ValueError for an entry of another size.
    """
    classes, size, shape = classes_of(space), size_of(space), shape_of(space)
    flat = x.flatten(batch_dims) if x.ndim > batch_dims else x.unsqueeze(-1)
    if classes is not None and flat.shape[-1] == sum(classes.counts) != size:
        flat = torch.stack([block.long().argmax(-1) for block in flat.split(classes.counts, -1)], -1)
    if flat.shape[-1] != size:
        raise ValueError(f"{name!r} is {tuple(x.shape[batch_dims:])} for each sample, but its space is {space}")
    x = flat.reshape(*x.shape[:batch_dims], *shape)
    return x.long() if x.dtype == torch.bool and not is_box(space) else x
