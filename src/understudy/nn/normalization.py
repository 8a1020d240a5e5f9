"""Running normalisation that moves only when told to: between the updates, the statistics are constants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn


class _Statistics(nn.Module):
    """Mean and (population) variance of everything seen, per entry of `shape`."""

    mean: Tensor  # [*shape] float64, 0 before the first update
    var: Tensor  # [*shape] float64, 1 before the first update
    count: Tensor  # 0-D float64, rows seen

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Absorb `x` `[..., *shape]`; rows where `valid` `[...]` is False are left out. No host sync.

        Exact, whatever the split into batches (Chan, Golub & LeVeque 1979):
        delta = mean_b - mean,   n = count + n_b
        mean += delta n_b / n,   M2 = var count + M2_b + delta^2 count n_b / n,   var = M2 / n
        """
        mean, var, count = self.mean, self.var, self.count
        batch_count, batch_mean, batch_m2 = _moments(x, valid, mean.shape)
        total = (count + batch_count).clamp(min=1.0)
        delta = batch_mean - mean
        m2 = var * count + batch_m2 + delta * delta * (count * batch_count / total)
        var.copy_(torch.where(count + batch_count > 0.0, m2 / total, var))
        mean.add_(delta * (batch_count / total))
        count.add_(batch_count)


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

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Absorb `x` `[..., D]`; rows where `valid` `[...]` is False are left out. No host sync."""
        super().update(x, valid)
        scale = (self.var + self.eps).rsqrt()
        seen = self.count > 0.0  # all rows invalid so far: stay the identity
        self.scale.copy_(torch.where(seen, scale, 1.0))
        self.shift.copy_(torch.where(seen, -self.mean * scale, 0.0))


def _moments(x: Tensor, valid: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Row count, mean and sum of squared deviations of the valid rows, over all ranks."""
    leading = x.shape[: x.ndim - len(shape)]
    if x.shape != (*leading, *shape):
        raise ValueError(f"statistics of shape {tuple(shape)} cannot absorb x of shape {tuple(x.shape)}")
    if valid is not None and valid.shape != leading:
        raise ValueError(f"valid has shape {tuple(valid.shape)}, x {tuple(x.shape)}: valid must be {tuple(leading)}")
    rows = x.reshape(-1, *shape).double()  # float64: sums of a million rows of any offset
    drop = None if valid is None else ~valid.bool().reshape(-1, *[1] * len(shape))
    if drop is None:
        count = torch.full((1,), rows.shape[0], dtype=rows.dtype, device=rows.device)
    else:
        count = rows.shape[0] - drop.sum(dtype=rows.dtype).view(1)
        rows = rows.masked_fill(drop, 0.0)  # not a product: invalid rows may hold NaN
    totals = _sum_over_ranks(torch.cat((rows.sum(0).view(-1), count)))
    count = totals[-1]
    mean = (totals[:-1] / count.clamp(min=1.0)).view(shape)
    deviation = rows - mean
    if drop is not None:
        deviation = deviation.masked_fill(drop, 0.0)
    return count, mean, _sum_over_ranks((deviation * deviation).sum(0))


def _sum_over_ranks(x: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
    return x
