"""One LSTM layer over a sequence through oneDNN, for small batches on a CPU: a third of the loop's time.

oneDNN's kernel knows no episodes, so the sequence is cut where any of them starts. As operators of their own, these may
look at where that is although the code around them is recorded (`core/capture.py`). The way back runs forward again:
what oneDNN keeps for it has a size of its own choosing, which recorded code could not hand on.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MAX_ROWS = 8
"""Larger batches are matrix products above all, where running forward twice costs more than the loop's overhead."""
_LSTM_MODE = 2  # of aten's cell kinds
_X86 = platform.machine().lower() in ("x86_64", "amd64")


def worthwhile(x: Tensor) -> bool:
    """Whether `fused_lstm` is the shorter way for inputs `[T, B, F]`."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] <= MAX_ROWS and x.numel() > 0
    return fits and _X86 and torch.backends.mkldnn.is_available()


@torch.library.custom_op("understudy::fused_lstm", mutates_args=())
def fused_lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, restart: Tensor
) -> tuple[Tensor, Tensor]:
    """x `[T, B, F]`, h and c `[B, H]` before it, restart `[T, B, 1]` bool to all h `[T, B, H]` and the last c.

    `bias` is the sum of both of `nn.LSTM`'s; gates in its order. The state is zero wherever `restart` is True.
    """
    outputs = []
    for start, end in _blocks(restart):
        h, c = _restarted(h, c, restart[start])
        y, h, c, _ = _layer(x[start:end], h, c, weight_ih, weight_hh, bias, train=False)
        outputs.append(y)
    return torch.cat(outputs), c.clone()


@torch.library.custom_op("understudy::fused_lstm_backward", mutates_args=())
def _backward(
    d_out: Tensor,
    d_c: Tensor,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    restart: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = []
    for start, end in _blocks(restart):
        h, c = _restarted(h, c, restart[start])
        y, h_after, c_after, workspace = _layer(x[start:end], h, c, weight_ih, weight_hh, bias, train=True)
        kept.append((start, end, h, c, y, h_after, c_after, workspace))
        h, c = h_after, c_after
    d_h, d_x, zero = torch.zeros_like(d_c), torch.empty_like(x), torch.zeros_like(bias)
    sums = [torch.zeros_like(weight_ih), torch.zeros_like(weight_hh), torch.zeros_like(bias)]
    for start, end, h, c, y, h_after, c_after, workspace in reversed(kept):
        states, gradients = (h, c, y, h_after, c_after), (d_out[start:end].contiguous(), d_h, d_c)
        d_x[start:end], *found, d_h, d_c = torch.ops.aten.mkldnn_rnn_layer_backward(
            x[start:end], weight_ih, weight_hh, bias, zero, *states, *gradients,
            False, _LSTM_MODE, y.shape[-1], 1, True, True, False, [], False, workspace,
        )  # fmt: skip
        d_h, d_c = _restarted(d_h.view_as(h), d_c.view_as(c), restart[start])
        for total, one in zip(sums, found):  # the second bias's gradient is the first's
            total += one
    return d_x, d_h.clone(), d_c.clone(), sums[0], sums[1], sums[2]


def _layer(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """oneDNN's kernel: outputs, last h and c, and what its way back needs."""
    layer: Any = torch.ops.aten.mkldnn_rnn_layer
    size, zero = h.shape[-1], torch.zeros_like(bias)
    with torch.set_grad_enabled(train):  # which alone decides whether anything is kept
        y, h_after, c_after, workspace = layer(
            x.contiguous(), weight_ih, weight_hh, bias, zero, h, c,
            False, [], _LSTM_MODE, size, 1, True, False, False, train,
        )  # fmt: skip
    return y, h_after.view_as(h), c_after.view_as(c), workspace


def _blocks(restart: Tensor) -> Iterator[tuple[int, int]]:
    """Stretches of steps in which no episode starts after the first step."""
    starts = [0, *(restart[1:].flatten(1).any(1).nonzero().flatten() + 1).tolist()]
    return zip(starts, [*starts[1:], len(restart)])


def _restarted(h: Tensor, c: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Zero rows where an episode starts: chosen, not multiplied, so that not even a NaN survives."""
    return torch.where(first, 0.0, h), torch.where(first, 0.0, c)


@fused_lstm.register_fake
def _(x: Tensor, h: Tensor, c: Tensor, *_weights: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:2], h.shape[-1]), torch.empty_like(c)


@_backward.register_fake
def _(d_out: Tensor, d_c: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in inputs[:6])


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_out: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out, d_c, *ctx.saved_tensors), None


fused_lstm.register_autograd(_gradients, setup_context=_remember)
