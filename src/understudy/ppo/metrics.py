"""What an iteration did: ratios and explained variance as 0-D metrics, returns and lengths of finished episodes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from understudy.core import ranks
from understudy.core.check import nearest
from understudy.ppo.losses import check_same_shape, kl_k3
from understudy.types import Metrics


def ratio_statistics(
    log_ratio: Tensor,
    advantage: Tensor,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    valid: Tensor | None = None,
) -> Metrics:
    """How far the policy moved, over M minibatches of B samples: `[M, B]` (or `[M, T, B]`) each, 0-D metrics out.

    With r = exp(log_ratio) = new / old probability of the action:

    - `kl`: mean of (r - 1) - log r, an estimate of KL(old || new) in nats, never negative;
    - `clip_fraction`: share of samples with r outside [1 - clip_low, 1 + clip_high];
    - `active_clip_fraction`: share whose gradient the clip cuts: above and A > 0, or below and A < 0;
    - `ess`: effective sample size (sum r)^2 / (B sum r^2), a share, mean over minibatches;
    - `ratio_min`, `ratio_max`, `ratio_mean`.

    Only `valid` samples (bool, same shape) count; a minibatch without any is left out, and without any at all the
    ratio is taken as 1. Raises ValueError if the shapes differ or there is no minibatch dimension.
    """
    check_same_shape({"log_ratio": log_ratio, "advantage": advantage, "valid": log_ratio if valid is None else valid})
    if log_ratio.ndim < 2:
        raise ValueError(
            f"ratio_statistics takes [M, B] (M minibatches), got {tuple(log_ratio.shape)}; "
            "for one minibatch pass log_ratio.unsqueeze(0) and advantage.unsqueeze(0)"
        )
    log_ratio = log_ratio.detach().flatten(1)  # [M, B]
    advantage = advantage.detach().flatten(1)  # [M, B]
    weight = torch.ones_like(log_ratio) if valid is None else valid.flatten(1).to(log_ratio.dtype)  # [M, B]
    log_ratio = torch.where(weight > 0.0, log_ratio, 0.0)  # an invalid sample may be NaN
    ratio = log_ratio.exp()
    above, below = ratio > 1.0 + clip_high, ratio < 1.0 - clip_low
    cut = (above & (advantage > 0.0)) | (below & (advantage < 0.0))
    low = torch.where(weight > 0.0, ratio, torch.inf).amin()
    high = torch.where(weight > 0.0, ratio, -torch.inf).amax()
    known = weight.sum() > 0.0
    return {
        "kl": _mean(kl_k3(log_ratio), weight),
        "clip_fraction": _mean((above | below).to(ratio.dtype), weight),
        "active_clip_fraction": _mean(cut.to(ratio.dtype), weight),
        "ess": _effective_share(log_ratio, weight),
        "ratio_min": torch.where(known, low, 1.0),
        "ratio_max": torch.where(known, high, 1.0),
        "ratio_mean": torch.where(known, _mean(ratio, weight), 1.0),
    }


METRICS = {
    "ppo": (
        *("surrogate_loss", "value_loss", "entropy", "loss", "kl", "kl_exact", "kl_step", "explained_variance"),
        *("clip_fraction", "active_clip_fraction", "ess", "ratio_min", "ratio_max", "ratio_mean", "first_ratio_error"),
        *("grad_norm", "learning_rate", "skipped_steps"),
    ),
    "episode": ("return", "length", "finished", "success"),
    "evaluation": ("return", "return_std", "length"),
}
"""Metrics that are known before the first iteration, by the word before the slash."""


def check_metric(name: str, parts: Iterable[str], waiting: str) -> None:
    """Raise ValueError, with the nearest name, if no iteration with these parts logs the metric that is waited for.

    Names of a part's metrics, of the environment's and of times are known after the first iteration only.
    """
    group = name.partition("/")[0]
    known = [f"{prefix}/{metric}" for prefix, metrics in METRICS.items() for metric in metrics]
    known += [f"reward/{source}" for source in ("task", *parts)]
    if name not in known and group not in ("env", "time", *parts):
        raise ValueError(f"{waiting} waits for {name!r}, which is not logged; {nearest(name, known)}")


class MinibatchRecord(NamedTuple):
    """What one minibatch leaves for the statistics of its iteration."""

    statistics: Mapping[str, Tensor]  # 0-D each
    log_ratio: Tensor  # [B] or [T, B]
    advantage: Tensor  # [B] or [T, B], normalised
    mask: Tensor | None  # [B] or [T, B] bool; None: all samples count
    grad_norm: Tensor  # 0-D
    ran: (
        Tensor | None
    )  # 0-D bool, False after a stop: an accelerator computes those minibatches in vain; None: no stops


def update_statistics(
    records: Sequence[MinibatchRecord], clip_low: float | Tensor, clip_high: float | Tensor
) -> Metrics:
    """Means over the minibatches of an iteration that ran, and how far the policy moved."""
    log_ratio, advantage = torch.stack([r.log_ratio for r in records]), torch.stack([r.advantage for r in records])
    valid, ran = _stacked(r.mask for r in records), _stacked(r.ran for r in records)
    if ran is not None:
        counts = ran.view(-1, *[1] * (log_ratio.ndim - 1)).expand_as(log_ratio)
        valid = counts if valid is None else valid & counts
    metrics = mean_statistics([r.statistics for r in records], ran)
    metrics |= ratio_statistics(log_ratio, advantage, clip_low, clip_high, valid)
    metrics["first_ratio_error"] = torch.expm1(log_ratio[0]).abs().max()
    metrics["grad_norm"] = _mean_where(torch.stack([r.grad_norm for r in records]), ran)
    return metrics


def mean_statistics(steps: Sequence[Mapping[str, Tensor]], ran: Tensor | None = None) -> Metrics:
    """The means of named 0-D tensors over M steps, of those where `ran` `[M]` holds."""
    table = torch.stack([x for step in steps for x in step.values()]).view(len(steps), -1)  # [M, S]
    return dict(zip(steps[0], _mean_where(table, ran).unbind(0)))


_OVER_RANKS: Mapping[str, Callable[[list[float]], float]] = {
    "episode/finished": sum,
    "ppo/ratio_min": min,
    "ppo/ratio_max": max,
    "ppo/first_ratio_error": max,
}
"""How metrics of ranks become one, where that is not their mean."""


def over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """An iteration's metrics over all ranks, the same on each: means, a sum and extremes. NaN is no number to count."""
    if ranks.count() == 1:
        return metrics
    rows: list[dict[str, float]] = ranks.gather(metrics)
    together = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        known = [row[name] for row in rows if name in row and not math.isnan(row[name])]
        together[name] = _OVER_RANKS.get(name, fmean)(known) if known else math.nan
    return together


def explained_variance(value: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - Var(target - value) / Var(target), 0-D; any shape, the same for all.

    1 is perfect, 0 no better than a constant; 0 also where the targets are constant (up to rounding), for
    which the quotient says nothing. Only `valid` elements (bool) count. Raises ValueError if the shapes differ.
    """
    check_same_shape({"value": value, "target": target, "valid": target if valid is None else valid})
    value, target = value.detach(), target.detach()
    weight = torch.ones_like(target) if valid is None else valid.to(target.dtype)
    target = torch.where(weight > 0.0, target, 0.0)
    error = torch.where(weight > 0.0, target - value, 0.0)
    variance = _variance(target, weight)
    # the mean of equal numbers may be off by an ulp: a variance below rounding is zero
    rounding = (4.0 * torch.finfo(target.dtype).eps) ** 2 * _mean(target * target, weight)
    varies = variance > rounding
    quotient = _variance(error, weight) / torch.where(varies, variance, 1.0)
    return torch.where(varies, 1.0 - quotient, 0.0)


def _effective_share(log_ratio: Tensor, weight: Tensor) -> Tensor:
    # scale by the largest ratio of each minibatch: r^2 overflows float32 at log r = 44, and the scale cancels
    counts = weight > 0.0
    largest = torch.where(counts, log_ratio, torch.finfo(log_ratio.dtype).min).amax(dim=1, keepdim=True)  # [M, 1]
    ratio = torch.where(counts, (log_ratio - largest).exp(), 0.0)  # [M, B]
    count = weight.sum(dim=1)  # [M]
    some = (count > 0.0).to(ratio.dtype)
    total, squares = ratio.sum(dim=1), (ratio * ratio).sum(dim=1)
    share = total * total / torch.where(some > 0.0, count * squares, 1.0)  # [M]
    return _mean(share, some)


def _stacked(column: Iterable[Tensor | None]) -> Tensor | None:
    there = [x for x in column if x is not None]
    return torch.stack(there) if there else None


def _mean_where(x: Tensor, ran: Tensor | None) -> Tensor:
    """The mean over the first dimension of x `[M, ...]`, of the rows where `ran` `[M]` holds."""
    if ran is None:
        return x.mean(0)
    known = torch.where(ran.view(-1, *[1] * (x.ndim - 1)), x, 0.0)
    return known.sum(0) / ran.sum()


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp_min(1.0)


def _variance(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - _mean(x, weight)
    return _mean(centred * centred, weight)


class EpisodeStatistics(nn.Module):
    """Carries the unfinished episodes from rollout to rollout and keeps the last 100 finished ones (host)."""

    def __init__(self, num_envs: int, device: torch.device, window: int = 100) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(2, num_envs, dtype=torch.float64, device=device))
        self.running: Tensor  # return and length so far
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)

    def finished(self, reward: Tensor, ended: Tensor, valid: Tensor) -> Tensor:
        """`[2, T, N]`: return and length of the episode that ended in that row, NaN where none did."""
        counts = valid.double()
        amounts = torch.stack((torch.where(valid, reward, 0.0).double(), counts))  # [2, T, N]
        total = amounts.cumsum(1) + self.running.unsqueeze(1)
        T = reward.shape[0]
        step = torch.arange(T, device=reward.device).unsqueeze(-1)
        last_end = torch.where(ended, step, -1).cummax(0).values  # [T, N], the latest end up to and including t
        before = torch.cat((torch.full_like(last_end[:1], -1), last_end[:-1]))
        start = torch.gather(total, 1, before.clamp_min(0).expand(2, -1, -1))
        start = torch.where(before >= 0, start, 0.0)
        current = total - start
        since_end = torch.gather(total, 1, last_end[-1:].clamp_min(0).expand(2, -1, -1))
        self.running.copy_((total[:, -1:] - torch.where(last_end[-1:] >= 0, since_end, 0.0)).squeeze(1))
        return torch.where(ended & (current[1] > 0.0), current, torch.nan)  # without a sound step it is no episode

    def record(self, returns: list[float], lengths: list[float]) -> None:
        """Add finished episodes (host numbers)."""
        self.returns.extend(returns)
        self.lengths.extend(lengths)

    def forget_unfinished(self) -> None:
        """The environments were reset: their current episodes will never finish."""
        self.running.zero_()

    def summary(self) -> dict[str, float]:
        """Mean over the window; NaN before the first episode ended."""
        count = len(self.returns)
        mean_return = sum(self.returns) / count if count else float("nan")
        mean_length = sum(self.lengths) / count if count else float("nan")
        return {"episode/return": mean_return, "episode/length": mean_length}
