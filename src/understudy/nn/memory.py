"""LSTM and GRU memories that restart where an episode starts, with hand-written backward passes over whole sequences.

Autograd would walk back through every small operation of every step. Here the factors of the chain rule are computed
for all steps at once, and the walk back keeps only what truly goes from step to step: one matrix product and four to
six elementwise operations. The weights' gradients are one matrix product at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.devices import check_memory
from understudy.nn.fused_lstm import fused_lstm, worthwhile


class Memory(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) that restarts where an episode starts.

    The state is packed into one tensor `[B, S]`: h of every layer, then (LSTM) c of every layer. Parameters are named,
    ordered and initialised as in `nn.LSTM` and `nn.GRU`, so their state dicts fit.
    `is_first` clears the state *before* the step is taken, by filling, so that not even a NaN survives.
    """

    def __init__(self, kind: Literal["lstm", "gru"], in_features: int, hidden_size: int, layers: int = 1) -> None:
        super().__init__()
        self.kind, self.hidden_size, self.layers = kind, hidden_size, layers
        self.out_features = hidden_size
        self.state_size = layers * hidden_size * (2 if kind == "lstm" else 1)
        gates = (4 if kind == "lstm" else 3) * hidden_size
        weights = gates * (in_features + hidden_size * (2 * layers - 1))
        check_memory(16.0 * weights, f"a memory of {weights:,} weights", "memory_size or memory_layers")
        bound = 1.0 / math.sqrt(hidden_size)
        for i in range(layers):
            size = in_features if i == 0 else hidden_size
            for name, shape in (
                (f"weight_ih_l{i}", (gates, size)),
                (f"weight_hh_l{i}", (gates, hidden_size)),
                (f"bias_ih_l{i}", (gates,)),
                (f"bias_hh_l{i}", (gates,)),
            ):
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def step(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x `[B, F]`, state `[B, S]`, is_first `[B]` bool to (y `[B, H]`, new state `[B, S]`)."""
        _check(x.shape[:-1], state.shape[:-1], is_first.shape)
        parts = state.masked_fill(is_first.unsqueeze(-1), 0.0).split(self.hidden_size, dim=-1)
        ended = []
        for i in range(self.layers):
            ended.append(self._cell(i, F.linear(x, *self.input_weights(i)), parts[i :: self.layers]))
            x = ended[-1][0]
        return x, _pack(ended)

    def sequence(
        self, x: Tensor, state: Tensor, is_first: Tensor, projected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """T steps: x `[T, B, F]`, state `[B, S]` before them, is_first `[T, B]` to (y `[T, B, H]`, state `[B, S]`).

        `projected`: x times `input_weights`, where the caller had a shorter way to it.
        """
        _check(x.shape[:-1], (x.shape[0], *state.shape[:-1]), is_first.shape)
        restart = is_first.unsqueeze(-1)
        parts = state.split(self.hidden_size, dim=-1)
        ended: list[tuple[Tensor, ...]] = []
        for i in range(self.layers):
            layer = parts[i :: self.layers]
            if self.kind == "lstm" and (projected is None or i > 0) and worthwhile(x):
                weight, bias = self.input_weights(i)
                x, c = fused_lstm(x, *layer, weight, self.get_parameter(f"weight_hh_l{i}"), bias, restart)
                ended.append((x[-1], c))
                continue
            inputs = projected if projected is not None and i == 0 else F.linear(x, *self.input_weights(i))
            weight = self.get_parameter(f"weight_hh_l{i}")
            if self.kind == "lstm":
                x, c = _LSTMSequence.apply(inputs, layer[0], layer[1], weight, restart)
                ended.append((x[-1], c))
            else:
                bias = self.get_parameter(f"bias_hh_l{i}")
                x = _GRUSequence.apply(inputs, layer[0], weight, bias, restart)
                ended.append((x[-1],))
        return x, _pack(ended)

    def input_weights(self, i: int = 0) -> tuple[Tensor, Tensor]:
        """Weight `[gates, F]` and bias `[gates]` that layer i applies to its inputs."""
        bias: Tensor = self.get_parameter(f"bias_ih_l{i}")
        if self.kind == "lstm":  # the GRU's reset gate multiplies the hidden bias: there it cannot be merged
            bias = bias + self.get_parameter(f"bias_hh_l{i}")
        return self.get_parameter(f"weight_ih_l{i}"), bias

    def _cell(self, i: int, inputs: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step of layer i from its input products `[B, gates]` and state parts (h,) or (h, c), `[B, H]` each."""
        h, weight = parts[0], self.get_parameter(f"weight_hh_l{i}").t()
        if self.kind == "lstm":
            h, c, *_ = _lstm_cell(torch.addmm(inputs, h, weight), parts[1])
            return h, c
        return _gru_cell(inputs, torch.addmm(self.get_parameter(f"bias_hh_l{i}"), h, weight), h)[:1]


class Changes(nn.Module):
    """What a memory reads beside its inputs: how they changed since the last step, times a gain (finite differences).

    A memory can find velocities in positions, but as differences of nearly equal numbers: that takes it many times as
    many gradient steps. The state `[B, F + 1]` holds the last inputs and whether there were any: without, or where an
    episode starts, the change is 0.
    """

    def __init__(self, features: int, gain: float) -> None:
        super().__init__()
        self.gain, self.out_features, self.state_size = gain, 2 * features, features + 1

    def forward(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """x `[B, F]` or `[T, B, F]`, state `[B, F + 1]`, is_first `[B]` or `[T, B]` to (`[..., 2 F]`, new state)."""
        last, there = state[:, :-1], state[:, -1:] > 0.0
        if x.ndim == 3:
            last = torch.cat((last.unsqueeze(0), x[:-1]))
            there = torch.cat((there.unsqueeze(0), torch.ones_like(is_first[1:]).unsqueeze(-1)))
        # torch.where, not a product: what came before a start may be NaN
        change = torch.where(there & ~is_first.unsqueeze(-1), self.gain * (x - last), 0.0)
        newest = x if x.ndim == 2 else x[-1]
        return torch.cat((x, change), dim=-1), torch.cat((newest, torch.ones_like(newest[:, :1])), dim=-1)


def _lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """`c' = f c + i g`, `h' = o tanh(c')` from gates `[B, 4H]` before activation, order i, f, g, o.

    Returns h', c', and what the way back needs: (i, f) `[B, 2H]`, g, o, tanh(c').
    """
    size = c.shape[-1]
    both, g, o = gates.split((2 * size, size, size), dim=-1)
    both, g, o = both.sigmoid(), g.tanh(), o.sigmoid()
    i, f = both.split(size, dim=-1)
    c = torch.addcmul(i * g, f, c)
    squashed = c.tanh()
    return o * squashed, c, both, g, o, squashed


def _gru_cell(inputs: Tensor, hidden: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """`n = tanh(W x + r (U h))`, `h' = (1 - z) n + z h`; inputs and hidden `[B, 3H]` in the order r, z, n.

    Returns h', and what the way back needs: (r, z) `[B, 2H]`, n, U h.
    """
    size = h.shape[-1]
    input_rz, input_n = inputs.split((2 * size, size), dim=-1)
    hidden_rz, hidden_n = hidden.split((2 * size, size), dim=-1)
    both = (input_rz + hidden_rz).sigmoid()
    r, z = both.split(size, dim=-1)
    n = torch.addcmul(input_n, r, hidden_n).tanh()
    return torch.lerp(n, h, z), both, n, hidden_n


class _LSTMSequence(torch.autograd.Function):
    """One LSTM layer over T steps; restarts before a step where `restart` `[T, B, 1]` is True."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, h: Tensor, c: Tensor, weight: Tensor, restart: Tensor
    ) -> tuple[Tensor, Tensor]:
        zero, transposed = torch.zeros_like(h), weight.t().contiguous()  # read once for each step
        steps = []
        for x, first in zip(inputs.unbind(0), restart.unbind(0)):
            # `where` is `masked_fill` at half the cost: no copy comes first
            before, c_before = torch.where(first, zero, h), torch.where(first, zero, c)
            h, c, *rest = _lstm_cell(torch.addmm(x, before, transposed), c_before)
            steps.append((h, before, c_before, *rest))
        out, *saved = (torch.stack(column) for column in zip(*steps))
        ctx.save_for_backward(*saved, weight, restart)
        return out, c

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        h, c, both, g, o, squashed, weight, restart = ctx.saved_tensors
        i, f = both.chunk(2, dim=-1)
        keep = (~restart).to(h.dtype)
        to_cell = _through_tanh(o, squashed)  # d c' / d h'
        to_gates = torch.cat(  # d c' / d (i, f, g) and d h' / d o, before their activations
            (_through_sigmoid(g, i), _through_sigmoid(c, f), _through_tanh(i, g), _through_sigmoid(squashed, o)), dim=-1
        )
        d_h, d_gates = torch.zeros_like(h[0]), []
        last = torch.zeros_like(keep[0])  # nothing comes back from behind the last step
        steps = zip(d_out.unbind(0), to_cell.unbind(0), to_gates.unbind(0), (f * keep).unbind(0), keep.unbind(0))
        for d, cell, gates, forget, kept in reversed(list(steps)):
            d_h = torch.addcmul(d, d_h, last)
            d_c = torch.addcmul(d_c, d_h, cell)
            d_gates.append(torch.cat((d_c, d_c, d_c, d_h), dim=-1) * gates)
            d_h, d_c, last = d_gates[-1] @ weight, d_c * forget, kept
        stacked = torch.stack(d_gates[::-1])
        d_weight = stacked.flatten(0, 1).t() @ h.flatten(0, 1)
        return stacked, d_h * last, d_c, d_weight, None


class _GRUSequence(torch.autograd.Function):
    """One GRU layer over T steps; restarts before a step where `restart` `[T, B, 1]` is True."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, h: Tensor, weight: Tensor, bias: Tensor, restart: Tensor) -> Tensor:
        zero, transposed = torch.zeros_like(h), weight.t().contiguous()  # read once for each step
        steps = []
        for x, first in zip(inputs.unbind(0), restart.unbind(0)):
            before = torch.where(first, zero, h)
            h, *rest = _gru_cell(x, torch.addmm(bias, before, transposed), before)
            steps.append((h, before, *rest))
        out, *saved = (torch.stack(column) for column in zip(*steps))
        ctx.save_for_backward(*saved, weight, restart)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        h, both, n, hidden_n, weight, restart = ctx.saved_tensors
        r, z = both.chunk(2, dim=-1)
        keep = (~restart).to(h.dtype)
        to_n = _through_tanh(1.0 - z, n)  # d h' / d (inputs of n)
        to_hidden = torch.cat((_through_sigmoid(to_n * hidden_n, r), _through_sigmoid(h - n, z), to_n * r), dim=-1)
        d_h, d_outs, d_hidden = torch.zeros_like(h[0]), [], []
        last = torch.zeros_like(keep[0])
        steps = zip(d_out.unbind(0), to_hidden.unbind(0), z.unbind(0), keep.unbind(0))
        for d, factor, update, kept in reversed(list(steps)):
            d_h = torch.addcmul(d, d_h, last)
            d_outs.append(d_h)
            d_hidden.append(d_h.repeat(1, 3) * factor)
            d_h, last = torch.addmm(d_h * update, d_hidden[-1], weight), kept
        stacked, size = torch.stack(d_hidden[::-1]), h.shape[-1]
        d_inputs = torch.cat((stacked[..., : 2 * size], torch.stack(d_outs[::-1]) * to_n), dim=-1)
        flat = stacked.flatten(0, 1)
        return d_inputs, d_h * last, flat.t() @ h.flatten(0, 1), flat.sum(0), None


def _through_sigmoid(gradient: Tensor, y: Tensor) -> Tensor:
    """`gradient y (1 - y)`, in one pass: back through `y = sigmoid(x)`."""
    return torch.ops.aten.sigmoid_backward(gradient, y)


def _through_tanh(gradient: Tensor, y: Tensor) -> Tensor:
    """`gradient (1 - y^2)`, in one pass: back through `y = tanh(x)`."""
    return torch.ops.aten.tanh_backward(gradient, y)


def _pack(layers: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """`[B, S]`: h of every layer, then c of every layer."""
    parts = [part for kind in zip(*layers) for part in kind]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _check(steps: Sequence[int], state: Sequence[int], is_first: Sequence[int]) -> None:
    if not tuple(steps) == tuple(state) == tuple(is_first):
        raise ValueError(
            f"memory inputs disagree: x leads with {tuple(steps)}, state with {tuple(state)}, is_first is "
            f"{tuple(is_first)}; a step takes x [B, F], state [B, S], is_first [B], a sequence has T before B"
        )
