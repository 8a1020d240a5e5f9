"""Finite is not sane: which numbers are faults and no measurements, beside the usual size of their entry."""

from __future__ import annotations

import torch
from torch import Tensor

ABSURD = 1e6
"""A number larger than this many times the usual size of its entry, and than this, is a fault and no measurement."""

BEYOND_USE = 1e18
"""Size from which a number is absurd where no usual size is known: float32 cannot hold its square."""


def without_faults(x: Tensor, limit: float | Tensor = BEYOND_USE) -> Tensor:
    """Floats with 0 in place of NaN, infinity and what is larger than `limit`; integers as they are. Any shape."""
    return torch.where(x.abs() <= limit, x, 0.0) if x.is_floating_point() else x


def log_sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """log max(|x|, 1) of rows `[R, C]` and where they are not 0; NaN and infinity are taken for 0."""
    sizes = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).abs()
    return sizes.clamp(min=1.0).log(), sizes > 0.0


def median_log_size(x: Tensor) -> Tensor:
    """The median of `log_sizes` over the rows `[R, C]` that are not 0, `[C]`; 0 where all are."""
    logs, there = log_sizes(x)
    return torch.where(there, logs, torch.nan).nanmedian(0).values.nan_to_num(0.0)


def absurd(x: Tensor) -> Tensor:
    """Which finite numbers of data `[R, C]` are more than `ABSURD` times the median size of their column."""
    low, high = x.aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    if max(-float(low), float(high)) <= ABSURD:  # as almost always: nothing else is computed
        return torch.zeros_like(x, dtype=torch.bool)
    return x.abs() > median_log_size(x).exp() * ABSURD
