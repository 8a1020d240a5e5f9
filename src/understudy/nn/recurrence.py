"""Recurrent networks of a user's own: from a function of one step to whole sequences, and a check that both agree."""

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


Run = Callable[[Any, Tensor, Tensor], tuple[Tensor, Any]]
"""From x, state and is_first, of one step or of a sequence, to y and the next state."""


def check_recurrence(who: str, run: Run, x: Any, size: int, device: torch.device) -> None:
    """Raise ValueError unless `run` treats a sequence as its steps and forgets the past where an episode starts.

    x `[3, 2, ...]`: three steps of two environments, of which the second starts an episode at the second step.
    """
    is_first = torch.tensor([[False, False], [False, True], [False, False]], device=device)
    zeros = torch.zeros(2, size, device=device)
    whole, last = run(x, zeros, is_first)
    state, fresh = zeros, zeros
    for t in range(3):
        y, state = run(x[t], state, is_first[t])
        if state.shape != zeros.shape or whole.shape[:2] != (3, 2) or y.shape != whole.shape[1:]:
            raise ValueError(
                f"{who} gives {tuple(y.shape)} and a state {tuple(state.shape)} for a step of two environments, "
                f"{tuple(whole.shape)} for three steps of them; the state must be {tuple(zeros.shape)}"
            )
        if not torch.allclose(y, whole[t], atol=1e-4):
            raise ValueError(f"{who} gives other results for a sequence [T, B] than for its steps: see `us.nn.unroll`")
        if t:
            y, fresh = run(x[t], fresh, torch.zeros_like(is_first[t]))
    if not torch.allclose(state, last, atol=1e-4):
        raise ValueError(f"{who} ends a sequence [T, B] in another state than its steps: see `us.nn.unroll`")
    if not torch.allclose(y[1], whole[-1, 1], atol=1e-4):
        raise ValueError(f"{who} remembers what came before is_first: clear the state there, see `us.nn.unroll`")
