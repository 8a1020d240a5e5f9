"""What modules of `tensordict.nn` and the entries of a TensorDict are to this library."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Distribution

from understudy.core.check import nearest

Actor = ProbabilisticTensorDictSequential | ProbabilisticTensorDictModule

MASKS: tuple[NestedKey, ...] = (("collector", "mask"), "shifted_valid")
"""Entries of TorchRL's that are False in rows of padding."""

SHAPE = "give the tensordict its batch size, and every per-sample entry that shape, with or without a trailing 1"


def distribution_of(actor: Any, batch: TensorDictBase) -> Distribution:
    """`actor.get_dist`, also where its last module is a sequence: there tensordict would run only what comes before."""
    if isinstance(actor, ProbabilisticTensorDictSequential) and not actor.return_composite:
        last = list(actor.module.values() if isinstance(actor.module, nn.ModuleDict) else actor.module)[-1]
        if isinstance(last, ProbabilisticTensorDictSequential):
            return distribution_of(last, actor.get_dist_params(batch))
    return actor.get_dist(batch)


def mask_of(batch: TensorDictBase) -> Tensor | None:
    """Where rows are no padding, `[B]` bool; None: everywhere."""
    found = [number(batch, key, "").bool() for key in MASKS if batch.get(key, None) is not None]
    return torch.stack(found).all(0) if found else None


def key_name(key: NestedKey) -> str:
    """A nested key as a module's name."""
    return key if isinstance(key, str) else "/".join(map(str, key))


def stored(batch: TensorDictBase, key: NestedKey, mend: str) -> Tensor:
    """An entry that collection stored; ValueError if it is missing or has a gradient."""
    x = batch.get(key, None)
    if x is None:
        hint = nearest(str(key), map(str, batch.keys(True, True)))
        raise ValueError(f"the batch has no {key!r} ({hint}): {mend}")
    if x.requires_grad:
        raise ValueError(f"{key!r} requires grad, but it is data from collection: detach it")
    return x


def number(batch: TensorDictBase, key: NestedKey, mend: str) -> Tensor:
    """A stored number per sample, `[B]`."""
    return per_sample(stored(batch, key, mend), repr(key), batch.batch_size)


def per_sample(x: Tensor, name: str, batch_size: torch.Size, mend: str = SHAPE) -> Tensor:
    """`[B]` from `[B]` or `[B, 1]`, told apart by the batch size; ValueError for any other shape."""
    if x.shape == batch_size:
        return x
    if x.shape == (*batch_size, 1):
        return x.squeeze(-1)
    raise ValueError(f"{name} has shape {tuple(x.shape)}, but the batch size is {tuple(batch_size)}: {mend}")


def check_actor(actor: Any) -> None:
    """Raise ValueError unless `actor` samples an action."""
    if not isinstance(actor, (ProbabilisticTensorDictSequential, ProbabilisticTensorDictModule)):
        raise ValueError(
            f"actor must be a ProbabilisticTensorDictSequential or -Module, got {type(actor).__name__}: "
            "end it with tensordict.nn.ProbabilisticTensorDictModule"
        )


def check_critic(critic: Any) -> None:
    """Raise ValueError unless `critic` is a tensordict module."""
    if not isinstance(critic, TensorDictModuleBase):
        raise ValueError(
            f"critic must be a tensordict.nn module, got {type(critic).__name__}: "
            "wrap it in TensorDictModule(critic, in_keys=[...], out_keys=['state_value'])"
        )
