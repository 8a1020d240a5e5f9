"""Running normalisation that moves only when told to: between the updates, the statistics are constants.

Finite is not sane: one 1e30 among numbers of size 1 would give its entry a variance of 1e57 for good, and blind to it
whatever reads the normalised entry. Statistics leave such rows out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core import ranks
from understudy.core.sanity import ABSURD, median_log_size


class _Statistics(nn.Module):
    """Mean and (population) variance of everything sane that was seen, per entry of `shape`."""

    mean: Tensor  # [*shape] float64, 0 before the first update
    var: Tensor  # [*shape] float64, 1 before the first update
    count: Tensor  # 0-D float64, rows seen

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        super().__init__()
        self.eps, self.absurd, self.fresh = eps, ABSURD, True
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Absorb `x` `[..., *shape]`; rows that are not `valid` `[...]` or not sane are left out. No host sync.

        A row is not sane with an entry beyond `absurd` times its root mean square so far (the first time: its median
        size). Exact, whatever the split into batches (Chan, Golub & LeVeque 1979):
        delta = mean_b - mean,   n = count + n_b
        mean += delta n_b / n,   M2 = var count + M2_b + delta^2 count n_b / n,   var = M2 / n
        """
        mean, var, count = self.mean, self.var, self.count
        rows, keep = _rows(x, valid, mean.shape)
        sane = self._sane(rows.view(len(rows), mean.numel()))
        keep = sane if keep is None else keep & sane
        batch_count, batch_mean, batch_m2 = _moments(rows, keep)
        total = (count + batch_count).clamp(min=1.0)
        delta = batch_mean - mean
        m2 = var * count + batch_m2 + delta * delta * (count * batch_count / total)
        var.copy_(torch.where(count + batch_count > 0.0, m2 / total, var))
        mean.add_(delta * (batch_count / total))
        count.add_(batch_count)

    def _sane(self, rows: Tensor) -> Tensor:
        """Which of the rows `[R, C]` are to be absorbed."""
        if self.fresh:
            square = (2.0 * ranks.mean(median_log_size(rows))).exp()
        else:  # if all rows so far were left out, nothing is known
            square = torch.where(self.count > 0.0, torch.addcmul(self.var, self.mean, self.mean), torch.inf).view(-1)
        self.fresh = False
        return (rows * rows <= square.clamp(min=1.0) * self.absurd**2).all(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.fresh = not bool(self.count > 0.0)


class RunningMeanStd(_Statistics):
    """Statistics of rewards and returns: `()`, scalars, unless a shape is given."""

    def __init__(self, shape: Sequence[int] = (), eps: float = 1e-8) -> None:
        super().__init__(shape, eps)

    @property
    def std(self) -> Tensor:
        """`sqrt(var + eps)`, float32 `[*shape]`."""
        return (self.var + self.eps).sqrt().float()


class ObservationNormalizer(_Statistics):
    """`clip((x - mean) / sqrt(var + eps), -clip, clip)` of vectors `[..., D]`; only `update` moves the statistics.

    `forward` is one fused affine map and a clamp; before the first update it is the identity up to the clamp.
    """

    shift: Tensor  # [D] float32, -mean / std
    scale: Tensor  # [D] float32, 1 / std

    def __init__(self, size: int, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__((size,), eps)
        if clip <= 0.0 or eps <= 0.0:
            raise ValueError(f"clip and eps must be positive, got clip={clip}, eps={eps}")
        self.size, self.clip = size, clip
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D]`."""
        return torch.addcmul(self.shift, x, self.scale).clamp(-self.clip, self.clip)

    @property
    def limit(self) -> Tensor:
        """Largest size that is not absurd, float32 `[D]`."""
        return (torch.addcmul(self.var, self.mean, self.mean).clamp(min=1.0).sqrt() * self.absurd).float()

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Absorb `x` `[..., D]`; rows where `valid` `[...]` is False are left out. No host sync."""
        super().update(x, valid)
        scale = (self.var + self.eps).rsqrt()
        seen = self.count > 0.0  # all rows invalid so far: stay the identity
        self.scale.copy_(torch.where(seen, scale, 1.0))
        self.shift.copy_(torch.where(seen, -self.mean * scale, 0.0))


def _rows(x: Tensor, valid: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Rows `[R, *shape]` of `x`, float64 (sums of a million rows of any offset), and `valid` `[R]`."""
    leading = x.shape[: x.ndim - len(shape)]
    if x.shape != (*leading, *shape):
        raise ValueError(f"statistics of shape {tuple(shape)} cannot absorb x of shape {tuple(x.shape)}")
    if valid is not None and valid.shape != leading:
        raise ValueError(f"valid has shape {tuple(valid.shape)}, x {tuple(x.shape)}: valid must be {tuple(leading)}")
    return x.reshape(-1, *shape).double(), None if valid is None else valid.reshape(-1).bool()


def _moments(rows: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row count, mean and sum of squared deviations of the rows `[R, ...]` to keep, over all ranks."""
    shape = rows.shape[1:]
    drop = ~keep.view(-1, *[1] * len(shape))
    count = rows.shape[0] - drop.sum(dtype=rows.dtype).view(1)
    rows = rows.masked_fill(drop, 0.0)  # not a product: rows left out may hold NaN
    totals = ranks.total(torch.cat((rows.sum(0).view(-1), count)))
    count = totals[-1]
    mean = (totals[:-1] / count.clamp(min=1.0)).view(shape)
    deviation = (rows - mean).masked_fill(drop, 0.0)
    return count, mean, ranks.total((deviation * deviation).sum(0))
