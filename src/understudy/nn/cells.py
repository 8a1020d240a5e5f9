"""A linear layer on a grid of embedded categories, at the price of the few kinds of cells that occur.

A grid world's view has dozens of cells, but few kinds of them: unseen, floor, wall, lava, goal. Multiplying every
cell's embedding by its own block of the weight repeats the same products in every row of a batch. Here each kind is
multiplied once per position, and a row of the batch picks one product per position: a one-hot matrix product, a
fraction as wide. As operators of their own, they may look at which kinds there are although the code around them is
recorded (`ppo/capture.py`); that look is free on a CPU, not on an accelerator, where the plain product is fast anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_KINDS, MIN_ROWS = 65_536, 256
"""Cells that can be of more kinds, and smaller batches, take the plain way."""


def worthwhile(cells: Tensor, kinds: int) -> bool:
    """Whether `cell_linear` is the shorter way for cells `[N, L]` of so many kinds."""
    return cells.device.type == "cpu" and cells.shape[1] > 1 and kinds <= MAX_KINDS and len(cells) >= MIN_ROWS


@torch.library.custom_op("understudy::cell_linear", mutates_args=())
def cell_linear(cells: Tensor, embedded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`y = b + sum_l W[:, l] E[c_l]`: `F.linear(embedded[cells].flatten(-2), weight, bias)`.

    cells `[N, L]` int64, every cell's kind; embedded `[K, F]`, every kind's; weight `[G, L * F]`; returns `[N, G]`.
    """
    kinds, picked = _picked(cells, embedded)
    if kinds is None:
        return F.linear(embedded[cells].flatten(-2), weight, bias)
    table = weight.view(-1, embedded.shape[-1]) @ embedded[kinds].t()  # [G * L, kinds]
    return F.linear(picked, table.view(len(weight), -1), bias)


@torch.library.custom_op("understudy::cell_linear_backward", mutates_args=())
def _backward(d_out: Tensor, cells: Tensor, embedded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kinds, picked = _picked(cells, embedded)
    d_embedded, size = torch.zeros_like(embedded), embedded.shape[-1]
    if kinds is None:
        d_input = (d_out @ weight).view(*cells.shape, size)
        d_embedded.index_put_((cells,), d_input, accumulate=True)
        return d_embedded, d_out.t() @ embedded[cells].flatten(-2), d_out.sum(0)
    d_table = (d_out.t() @ picked).view(-1, len(kinds))  # [G * L, kinds]
    d_embedded[kinds] = d_table.t() @ weight.view(-1, size)
    return d_embedded, (d_table @ embedded[kinds]).view_as(weight), d_out.sum(0)


def _picked(cells: Tensor, embedded: Tensor) -> tuple[Tensor | None, Tensor]:
    """The kinds that occur and, one-hot, which of them every cell is, `[N, L * kinds]`; None if they are too many."""
    count, size = embedded.shape
    kinds = torch.bincount(cells.flatten(), minlength=count).nonzero().squeeze(-1)
    if 2 * len(kinds) > size:  # the one-hot product would hardly be narrower than the plain one
        return None, embedded
    rows = embedded.new_zeros(count, len(kinds))
    rows[kinds, torch.arange(len(kinds))] = 1.0
    return kinds, F.embedding(cells, rows).flatten(-2)  # `rows[cells]` at a quarter of the time


@cell_linear.register_fake
def _(cells: Tensor, embedded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight.new_empty(cells.shape[0], weight.shape[0])


@_backward.register_fake
def _(d_out: Tensor, cells: Tensor, embedded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(embedded), torch.empty_like(weight), weight.new_empty(weight.shape[0])


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return None, *_backward(d_out.contiguous(), *ctx.saved_tensors)


cell_linear.register_autograd(_gradients, setup_context=_remember)
