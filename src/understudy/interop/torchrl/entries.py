"""The entries of a TensorDict: names, padding, one number per sample."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from understudy.core.check import nearest

MASKS: tuple[NestedKey, ...] = (("collector", "mask"), "shifted_valid")
"""Entries of TorchRL's that are False in rows of padding."""

SHAPE = "give the tensordict its batch size, and every per-sample entry that shape, with or without a trailing 1"


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


def after(key: NestedKey) -> NestedKey:
    """The entry of the step that follows."""
    return ("next", *((key,) if isinstance(key, str) else key))


def head_key(key: NestedKey) -> NestedKey:
    """Where the log-prob of a head of a composite action is stored."""
    return f"{key}_log_prob" if isinstance(key, str) else (*key[:-1], f"{key[-1]}_log_prob")


def listed(key: NestedKey | list[NestedKey]) -> list[NestedKey]:
    """One key or several, as a list."""
    return key if isinstance(key, list) else [key]
