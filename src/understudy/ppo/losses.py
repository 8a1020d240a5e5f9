"""PPO's losses as pure functions: tensors in, one number per sample out. The core and `ClipPPOLoss` both run these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.core.check import nearest

ValueLossKind = Literal["l1", "l2", "smooth_l1"]


class SurrogateBounds(NamedTuple):
    """What `bounded_surrogate` needs to know of the advantage; constant over an iteration, so computed once."""

    cost: Tensor  # [...] = -A: the loss of a sample per unit of ratio
    floor: Tensor  # [...], the least the loss can be: the objective stops paying here
    ceiling: Tensor | None  # [...], the most it can be (dual clip only)


def clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    dual_clip: float | Tensor | None = None,
) -> Tensor:
    """PPO's clipped loss per sample (arXiv:1707.06347, eq. 7), any shape, the same for all: `[B]` or `[T, B]`.

        r = exp(log_ratio),   L = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

    With `dual_clip` c > 1, where A < 0: L = -max(min(...), c A) (arXiv:1912.09729, eq. 5). Lower and upper clip may
    differ (arXiv:2503.14476). A sample at a bound or beyond it in the direction that the clip cuts has gradient zero,
    exactly; `advantage` is a constant. Raises ValueError on differing shapes, negative clips or c <= 1.
    """
    check_same_shape({"log_ratio": log_ratio, "advantage": advantage})
    cost, floor, ceiling = surrogate_bounds(advantage, clip_low, clip_high, dual_clip)
    return bounded_surrogate(log_ratio, cost, floor, ceiling)


def surrogate_bounds(
    advantage: Tensor,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    dual_clip: float | Tensor | None = None,
) -> SurrogateBounds:
    """The part of `clipped_surrogate` that does not depend on the policy: any shape in, the same shape out.

    Because 1 - clip_low <= 1 + clip_high, both signs of A need one expression and no branch:

        floor = -max((1 + clip_high) A, (1 - clip_low) A),   ceiling = -min(c A, 0)

    Raises ValueError on negative clips, c <= 1, or an advantage that requires grad.
    """
    _check_clip("clip_low", clip_low)
    _check_clip("clip_high", clip_high)
    _check_constant("advantage", advantage)
    cost = -advantage
    # addcmul keeps a clip that is a 0-D tensor (a schedule) to one operation each; cost * (1 +- clip) would take two
    if isinstance(clip_high, Tensor):
        upper = torch.addcmul(cost, cost, clip_high)
    else:
        upper = cost * (1.0 + clip_high)
    if isinstance(clip_low, Tensor):
        lower = torch.addcmul(cost, cost, clip_low, value=-1.0)
    else:
        lower = cost * (1.0 - clip_low)
    floor = torch.minimum(lower, upper)
    if dual_clip is None:
        return SurrogateBounds(cost, floor, None)
    if not isinstance(dual_clip, Tensor) and dual_clip <= 1.0:
        raise ValueError(f"dual_clip must be greater than 1 (3 is usual) or None, got {dual_clip}")
    # where A >= 0 the loss is never above 0, so a ceiling of 0 leaves it alone
    return SurrogateBounds(cost, floor, torch.relu(cost) * dual_clip)


def bounded_surrogate(log_ratio: Tensor, cost: Tensor, floor: Tensor, ceiling: Tensor | None = None) -> Tensor:
    """`clipped_surrogate` from precomputed `SurrogateBounds`: clamp(exp(log_ratio) * cost, floor, ceiling).

    Four operations forward and two backward. Raises ValueError on differing shapes.
    """
    shapes = {"log_ratio": log_ratio, "cost": cost, "floor": floor}
    check_same_shape(shapes if ceiling is None else {**shapes, "ceiling": ceiling})
    loss, _ = _BoundedSurrogate.apply(log_ratio, cost, floor, ceiling)
    return loss


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """The plain policy-gradient loss per sample, -log_prob * A (A2C, arXiv:1602.01783); any shape, the same for both.

    Raises ValueError on differing shapes or an advantage that requires grad.
    """
    check_same_shape({"log_prob": log_prob, "advantage": advantage})
    _check_constant("advantage", advantage)
    return log_prob * -advantage  # negated on the constant side: one operation less in the backward pass


Surrogate = Callable[[Mapping[Any, Tensor]], Tensor]
"""From a minibatch's named tensors, `new_log_prob`, `log_ratio`, `clip_low` and `clip_high` among them, a loss for each
sample, `[B]` (`[T, B]` for a recurrent policy)."""

SURROGATES: dict[str, Surrogate] = {
    "clip": lambda batch: bounded_surrogate(batch["log_ratio"], batch["cost"], batch["floor"], batch.get("ceiling")),
    "a2c": lambda batch: policy_gradient(batch["new_log_prob"], batch["advantage"]),
}
"""The library's own, by their names in `ppo.surrogate`; one of the user's is named "module:function"."""


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor | None = None,
    clip: float | Tensor | None = None,
    kind: ValueLossKind = "l2",
) -> Tensor:
    """The critic's loss per sample; any shape, the same for all.

    "l1" is |v - t|, "l2" is (v - t)^2 without a half, "smooth_l1" is Huber's with threshold 1. With `clip` c (in value
    units) it is the pessimistic maximum (arXiv:1811.02553, appendix A.2):

        L = max(l(v, t), l(v_old + clip(v - v_old, -c, c), t))

    Gradient zero where the second term wins, exactly; `target` and `old_value` are constants. Raises ValueError on
    differing shapes, an unknown kind, a negative clip, or a clip without `old_value`.
    """
    check_same_shape({"value": value, "target": target})
    _check_constant("target", target)
    if clip is None:
        return _error(value, target, kind)
    if old_value is None:
        raise ValueError("a clipped value loss needs old_value (the critic's value when collecting), or clip=None")
    return bounded_value_loss(value, target, value_floor(target, old_value, clip, kind), kind)


def value_floor(target: Tensor, old_value: Tensor, clip: float | Tensor, kind: ValueLossKind = "l2") -> Tensor:
    """The part of the clipped `value_loss` that does not depend on the critic: any shape in, the same shape out.

    The pessimistic maximum equals max(l(v, t), min of l(u, t) over |u - v_old| <= c): the clipped term only ever wins
    where v has passed the end of the interval on its way to t, and that end is the point of the interval nearest to t.
    This returns that minimum. Raises ValueError on differing shapes, an unknown kind or a negative clip.
    """
    check_same_shape({"target": target, "old_value": old_value})
    _check_constant("target", target)
    _check_constant("old_value", old_value)
    _check_clip("clip", clip)
    bound: Any = clip
    nearest = old_value + torch.clamp(target - old_value, -bound, bound)
    return _error(nearest, target, kind)


def bounded_value_loss(value: Tensor, target: Tensor, floor: Tensor, kind: ValueLossKind = "l2") -> Tensor:
    """The clipped `value_loss` from a precomputed `value_floor`: max(l(v, t), floor), gradient zero below the floor.

    Raises ValueError on differing shapes or an unknown kind.
    """
    check_same_shape({"value": value, "target": target, "floor": floor})
    loss, _ = _Floored.apply(_error(value, target, kind), floor)
    return loss


def normalize(
    advantage: Tensor,
    valid: Tensor | None = None,
    eps: float = 1e-8,
    dims: int | Sequence[int] | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(A - mean) / (std + eps) over `dims` (None = all of them), std unbiased; any shape in, the same shape out.

    `[T, N]` with dims=None normalises a rollout, `[M, B]` with dims=1 each minibatch. Where only one element is
    reduced (statistics are undefined) it is returned unchanged. With a `valid` mask (bool, same shape) only valid
    elements count and the others become 0. With `total`, which adds up what several processes have (`ranks.total`),
    the statistics are those of all their elements. Raises ValueError if the shapes differ.
    """
    axes = tuple(range(advantage.ndim)) if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    if total is not None:
        valid = torch.ones_like(advantage, dtype=torch.bool) if valid is None else valid
    elif prod([advantage.shape[axis] for axis in axes]) <= 1:
        return advantage
    if valid is None:
        std, mean = torch.std_mean(advantage, dim=axes, keepdim=True)
        return (advantage - mean) / (std + eps)
    check_same_shape({"advantage": advantage, "valid": valid})
    known = torch.where(valid, advantage, 0.0)  # not a product: an invalid element may be NaN
    add = total or (lambda x: x)
    count = add(valid.sum(dim=axes, keepdim=True))
    mean = add(known.sum(dim=axes, keepdim=True)) / count.clamp_min(1)
    centred = torch.where(valid, advantage - mean, 0.0)
    variance = add((centred * centred).sum(dim=axes, keepdim=True)) / (count - 1).clamp_min(1)
    return torch.where(count > 1, centred / (variance.sqrt() + eps), known)


def kl_k3(log_ratio: Tensor) -> Tensor:
    """The low-variance estimate of KL(old || new) per sample, (r - 1) - log r >= 0; any shape.

    `log_ratio` = log new - log old, on samples of the old policy (Schulman 2020, joschu.net/blog/kl-approx.html, k3).
    """
    return torch.expm1(log_ratio) - log_ratio  # expm1: the difference is of second order, r - 1 would lose it


def check_same_shape(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming every shape, unless all have one shape: `[B]` against `[B, 1]` would make `[B, B]`."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"these tensors must have one shape, got {listed}; they would broadcast into a wrong result: "
            "squeeze a trailing 1 (x.squeeze(-1)) or expand on purpose first"
        )


def check_kind(kind: str) -> None:
    """Raise ValueError, with the nearest name, unless `kind` is one of "l1", "l2", "smooth_l1"."""
    known = get_args(ValueLossKind)
    if kind not in known:
        raise ValueError(f"the value loss must be one of {', '.join(known)}, got {kind!r}; {nearest(kind, known)}")


def _error(value: Tensor, target: Tensor, kind: ValueLossKind) -> Tensor:
    check_kind(kind)
    if kind == "l2":
        return F.mse_loss(value, target, reduction="none")
    if kind == "l1":
        return F.l1_loss(value, target, reduction="none")
    return F.smooth_l1_loss(value, target, reduction="none")


def _check_clip(name: str, clip: float | Tensor) -> None:
    if not isinstance(clip, Tensor) and clip < 0.0:
        raise ValueError(f"{name} must not be negative, got {clip}")


def _check_constant(name: str, x: Tensor) -> None:
    if x.requires_grad:
        raise ValueError(f"{name} requires grad, but the loss takes it as a constant: pass {name}.detach()")


# Both functions below spell out a gradient that autograd would make from several mask and fill operations: what
# `threshold_backward` lets through is the gradient of the samples whose slack (distance to the bound) is positive.
# Their backward passes are made of differentiable operations, so they may be differentiated twice, traced, compiled.


class _BoundedSurrogate(torch.autograd.Function):
    """clamp(exp(log_ratio) * cost, floor, ceiling); d/dlog_ratio is the loss itself where no bound cuts, else 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_ratio: Tensor, cost: Tensor, floor: Tensor, ceiling: Tensor | None) -> tuple[Tensor, Tensor]:
        free = log_ratio.exp() * cost
        if ceiling is None:
            return torch.maximum(free, floor), free - floor
        return torch.clamp(free, floor, ceiling), (free - floor) * (ceiling - free)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        loss, slack = ctx.saved_tensors
        if grads[0] is None:
            return None, None, None, None
        # a NaN ratio gives a NaN loss and so a NaN gradient: never a silent zero
        return torch.ops.aten.threshold_backward(grads[0], slack, 0.0) * loss, None, None, None


class _Floored(torch.autograd.Function):
    """max(x, floor); the gradient goes to x where x > floor, else nowhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
        return torch.maximum(x, floor), x - floor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (slack,) = ctx.saved_tensors
        if grads[0] is None:
            return None, None
        return torch.ops.aten.threshold_backward(grads[0], slack, 0.0), None
