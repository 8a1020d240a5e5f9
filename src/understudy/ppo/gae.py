"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float | Tensor = 0.99,
    gae_lambda: float | Tensor = 0.95,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of a rollout, `[T, N]` each, from `[T, N]` inputs.

    `next_value` is V of the *true* next observation: at a time limit, that of the final observation.

        delta_t = r_t + gamma * (1 - terminated_t) * V(s'_t) - V(s_t)
        A_t     = delta_t + gamma * lambda * (1 - terminated_t)(1 - truncated_t) * A_{t+1},   A_T = 0
        target  = A + V

    `terminated` kills the bootstrap; both flags cut the recursion (arXiv:1506.02438, eq. 16; time limits as in
    arXiv:1712.00378). Raises ValueError if the shapes differ or are not `[T, N]`.
    """
    shape = reward.shape
    others = {"value": value, "next_value": next_value, "terminated": terminated, "truncated": truncated}
    wrong = {name: tuple(x.shape) for name, x in others.items() if x.shape != shape}
    if wrong or reward.ndim != 2:
        raise ValueError(
            f"gae takes [T, N] tensors of one shape, got reward {tuple(shape)} and {wrong or 'equal others'}; "
            "a trailing [.., 1] or a flat [T] would broadcast into a wrong result: squeeze or unsqueeze it first"
        )
    alive = ~terminated.bool()
    delta = reward + gamma * next_value * alive - value  # [T, N]
    carry = (alive & ~truncated.bool()).to(delta.dtype) * (gamma * gae_lambda)  # [T, N]
    advantage = torch.empty_like(delta)
    last = delta.new_zeros(shape[1:])
    # unbind once: indexing [t] three times per step costs more than the arithmetic
    for out, d, c in zip(reversed(advantage.unbind(0)), reversed(delta.unbind(0)), reversed(carry.unbind(0))):
        last = torch.addcmul(d, c, last)
        out.copy_(last)
    return advantage, advantage + value
