"""Recurrent networks of a user's own: from a function of one step to whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Any, Tensor], tuple[Any, Tensor]]
"""From x `[B, ...]` and the state `[B, S]` before it to y `[B, ...]` and the state after it."""


def unroll(step: Step, x: Any, state: Tensor, is_first: Tensor | None = None) -> tuple[Any, Tensor]:
    """One step, or T steps in a row where is_first is `[T, B]`; the state is all zeros wherever an episode starts.

    x `[B, ...]` or `[T, B, ...]`, state `[B, S]`; returns y with the leading shape of x, and the last state.
    `is_first=None`: one step of running episodes. Use it to write `forward` of a recurrent network:

        def forward(self, x, state, is_first):
            return unroll(self.step, x, state, is_first)
    """
    if is_first is None:
        return step(x, state)
    if is_first.ndim == 1:
        return step(x, _restarted(state, is_first))
    rows = []
    for now, first in zip(x.unbind(0), is_first.unbind(0)):
        y, state = step(now, _restarted(state, first))
        rows.append(y)
    return torch.stack(rows), state


def _restarted(state: Tensor, is_first: Tensor) -> Tensor:
    # filled, not multiplied: not even a NaN survives
    return state.masked_fill(is_first.unsqueeze(-1), 0.0)
