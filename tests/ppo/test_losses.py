from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.ppo.losses import (
    ValueLossKind,
    bounded_surrogate,
    bounded_value_loss,
    check_same_shape,
    clipped_surrogate,
    kl_k3,
    normalize,
    policy_gradient,
    surrogate_bounds,
    value_floor,
    value_loss,
)

F64 = torch.float64
KINDS: tuple[ValueLossKind, ...] = ("l1", "l2", "smooth_l1")


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def naive_surrogate(log_ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None) -> Tensor:
    ratio = log_ratio.exp()
    gain = torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        gain = torch.where(advantage < 0, torch.max(gain, dual * advantage), gain)
    return -gain


def naive_value(value: Tensor, target: Tensor, old: Tensor, clip: float, kind: str) -> Tensor:
    error = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[kind]
    near = old + (value - old).clamp(-clip, clip)
    return torch.max(error(value, target, reduction="none"), error(near, target, reduction="none"))


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    weight = random(*at.shape, seed=99)  # each sample its own, so that no sample's gradient can hide in another's
    return torch.autograd.grad((function(at) * weight).sum(), at)[0]


# ---- the clipped surrogate

LOG_RATIO = vector(0.4, -0.4, -0.05, 0.0)  # the four-sample vector: log-probs -.6 -.9 -2.05 -.1 against -1 -.5 -2 -.1
ADVANTAGE = vector(1.0, -1.0, 2.0, -0.5)


def test_surrogate_by_hand() -> None:
    # exp(.4) = 1.49 is cut to 1.2; exp(-.4) = .670 to .8 (A < 0); exp(-.05) * 2 and 1 * -.5 are inside
    loss = clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, 0.2)
    close(loss, vector(-1.2, 0.8, -2 * math.exp(-0.05), 0.5))
    close(loss.mean(), torch.tensor(-0.450615, dtype=F64))


def test_surrogate_normalized_by_hand() -> None:
    loss = clipped_surrogate(LOG_RATIO, normalize(ADVANTAGE), 0.2, 0.2).mean()
    torch.testing.assert_close(loss, torch.tensor(-0.058238, dtype=F64), rtol=1e-5, atol=0.0)


def test_surrogate_asymmetric_by_hand() -> None:
    ratios = vector(1.5, 1.25, 0.5, 0.85, 1.5, 0.5)
    advantage = vector(1.0, 1.0, -1.0, -1.0, -1.0, 1.0)  # the last two: the clip does not cut a loss that grows
    expected = vector(-1.28, -1.25, 0.9, 0.9, 1.5, -0.5)
    close(clipped_surrogate(ratios.log(), advantage, 0.1, 0.28), expected)


def test_dual_clip_by_hand() -> None:
    ratios, advantage = vector(5.0, 2.0, 5.0, 0.5), vector(-2.0, -2.0, 2.0, -2.0)
    close(clipped_surrogate(ratios.log(), advantage, 0.2, 0.2), vector(10.0, 4.0, -2.4, 1.6))
    close(clipped_surrogate(ratios.log(), advantage, 0.2, 0.2, 3.0), vector(6.0, 4.0, -2.4, 1.6))


@pytest.mark.parametrize("dual", [None, 1.5, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.3), (0.3, 0.0)])
def test_surrogate_and_gradient_equal_the_naive_formula(low: float, high: float, dual: float | None) -> None:
    log_ratio, advantage = random(400, seed=1), random(400, seed=2)
    advantage[::17] = 0.0
    loss = clipped_surrogate(log_ratio, advantage, low, high, dual)
    close(loss, naive_surrogate(log_ratio, advantage, low, high, dual))
    close(
        gradient(lambda x: clipped_surrogate(x, advantage, low, high, dual), log_ratio),
        gradient(lambda x: naive_surrogate(x, advantage, low, high, dual), log_ratio),
    )


def test_gradient_is_minus_advantage_at_ratio_one() -> None:
    close(
        gradient(lambda x: clipped_surrogate(x, ADVANTAGE, 0.2, 0.2), vector(0, 0, 0, 0)),
        -ADVANTAGE * random(4, seed=99),
    )


def test_surrogate_accepts_buffers_and_any_dtype() -> None:
    low, high, dual = (torch.tensor(x) for x in (0.2, 0.3, 3.0))
    expected = clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, 0.3, 3.0)
    loss = clipped_surrogate(LOG_RATIO, ADVANTAGE, low, high, dual)
    assert loss.dtype == F64
    close(loss, expected)
    single = clipped_surrogate(LOG_RATIO.float(), ADVANTAGE.float(), low, high, dual)
    torch.testing.assert_close(single, expected.float())


def test_surrogate_of_sequences_and_of_one_sample() -> None:
    log_ratio, advantage = random(3, 5), random(3, 5, seed=1)
    flat = clipped_surrogate(log_ratio.flatten(), advantage.flatten(), 0.2, 0.2)
    assert torch.equal(clipped_surrogate(log_ratio, advantage, 0.2, 0.2).flatten(), flat)
    assert clipped_surrogate(log_ratio[:1, 0], advantage[:1, 0], 0.2, 0.2).shape == (1,)


def test_bounds_may_be_computed_ahead() -> None:
    bounds = surrogate_bounds(ADVANTAGE, 0.2, 0.3, 3.0)
    close(bounds.cost, -ADVANTAGE)
    close(bounds.floor, vector(-1.3, 0.8, -2.6, 0.4))
    assert bounds.ceiling is not None
    close(bounds.ceiling, vector(0.0, 3.0, 0.0, 1.5))
    whole = clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, 0.3, 3.0)
    assert torch.equal(bounded_surrogate(LOG_RATIO, *bounds), whole)


def test_a_nan_is_never_a_silent_zero() -> None:
    log_ratio = vector(float("nan"), 0.0, 1.0).requires_grad_()
    for dual in (None, 3.0):
        loss = clipped_surrogate(log_ratio, vector(1.0, 1.0, 1.0), 0.2, 0.2, dual)
        (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
        assert slope.isnan().tolist() == [True, False, False]


def test_overflow_is_cut_where_the_clip_cuts() -> None:
    log_ratio = vector(1000.0, 1000.0).requires_grad_()  # exp is infinite
    loss = clipped_surrogate(log_ratio, vector(1.0, -1.0), 0.2, 0.2, 3.0)
    close(loss, vector(-1.2, 3.0))
    close(torch.autograd.grad(loss.sum(), log_ratio)[0], vector(0.0, 0.0))


def test_surrogate_refuses() -> None:
    with pytest.raises(ValueError, match=r"log_ratio \(4,\), advantage \(4, 1\)"):
        clipped_surrogate(LOG_RATIO, ADVANTAGE.unsqueeze(1), 0.2, 0.2)
    with pytest.raises(ValueError, match=r"advantage requires grad.*detach"):
        clipped_surrogate(LOG_RATIO, ADVANTAGE.clone().requires_grad_(), 0.2, 0.2)
    with pytest.raises(ValueError, match="clip_low must not be negative"):
        clipped_surrogate(LOG_RATIO, ADVANTAGE, -0.2, 0.2)
    with pytest.raises(ValueError, match="clip_high must not be negative"):
        clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, -0.2)
    with pytest.raises(ValueError, match="dual_clip must be greater than 1"):
        clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, 0.2, 1.0)
    with pytest.raises(ValueError, match="ceiling"):
        bounded_surrogate(LOG_RATIO, ADVANTAGE, ADVANTAGE, ADVANTAGE[:1])


# ---- the plain policy gradient


def test_policy_gradient_by_hand() -> None:
    log_prob, advantage = vector(-0.5, -2.0), vector(3.0, -1.0)
    close(policy_gradient(log_prob, advantage), vector(1.5, -2.0))
    close(gradient(lambda x: policy_gradient(x, advantage), log_prob), -advantage * random(2, seed=99))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        policy_gradient(log_prob, advantage.unsqueeze(1))
    with pytest.raises(ValueError, match="requires grad"):
        policy_gradient(log_prob, advantage.requires_grad_())


# ---- the value loss


def test_value_loss_by_hand() -> None:
    value, target = vector(1.0, 0.0, 3.0), vector(0.5, 2.0, 3.0)
    close(value_loss(value, target, kind="l1"), vector(0.5, 2.0, 0.0))
    close(value_loss(value, target, kind="l2"), vector(0.25, 4.0, 0.0))
    close(value_loss(value, target, kind="smooth_l1"), vector(0.125, 1.5, 0.0))


def test_clipped_value_loss_by_hand() -> None:
    # old 0, clip .2, target 1: within; passed the end towards the target (.2 counts); away from it (-.5 counts);
    # past the target so far that the unclipped error is the larger again
    value, target, old = vector(0.1, 0.7, -0.5, 2.5), vector(1, 1, 1, 1), vector(0, 0, 0, 0)
    close(value_loss(value, target, old, 0.2, "l2"), vector(0.81, 0.64, 2.25, 2.25))
    close(value_loss(value, target, old, 0.2, "l1"), vector(0.9, 0.8, 1.5, 1.5))
    close(value_loss(value, target, old, 0.2, "smooth_l1"), vector(0.405, 0.32, 1.0, 1.0))
    slope = gradient(lambda x: value_loss(x, target, old, 0.2, "l2"), value) / random(4, seed=99)
    close(slope, vector(-1.8, 0.0, -3.0, 3.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [0.05, 0.5, 2.0])
def test_clipped_value_loss_and_gradient_equal_the_naive_formula(kind: ValueLossKind, clip: float) -> None:
    value, target, old = random(500, seed=1), random(500, seed=2), random(500, seed=3)
    close(value_loss(value, target, old, clip, kind), naive_value(value, target, old, clip, kind))
    close(value_loss(value, target, old, torch.tensor(clip), kind), naive_value(value, target, old, clip, kind))
    inside = (value - old).abs() < clip
    assert inside.any()
    assert not inside.all()
    # where both terms tie (inside the interval) rounding must not cost half the gradient
    close(
        gradient(lambda x: value_loss(x, target, old, clip, kind), value),
        gradient(lambda x: naive_value(x, target, old, clip, kind), value),
    )


def test_value_loss_at_the_old_value_has_its_full_gradient() -> None:
    old, target = random(300, seed=4).float(), random(300, seed=5).float()
    slope = gradient(lambda x: value_loss(x, target, old, 0.2, "l2"), old)
    torch.testing.assert_close(slope, gradient(lambda x: value_loss(x, target, kind="l2"), old))


def test_value_floor_may_be_computed_ahead() -> None:
    value, target, old = random(9, seed=1), random(9, seed=2), random(9, seed=3)
    floor = value_floor(target, old, 0.2, "l1")
    assert torch.equal(bounded_value_loss(value, target, floor, "l1"), value_loss(value, target, old, 0.2, "l1"))


def test_value_loss_refuses() -> None:
    value, target = vector(1.0, 2.0), vector(1.0, 2.0)
    with pytest.raises(ValueError, match=r"value \(2,\), target \(2, 1\)"):
        value_loss(value, target.unsqueeze(1))
    with pytest.raises(ValueError, match=r"old_value \(2, 1\)"):
        value_loss(value, target, target.unsqueeze(1), 0.2)
    with pytest.raises(ValueError, match="needs old_value"):
        value_loss(value, target, clip=0.2)
    with pytest.raises(ValueError, match="clip must not be negative"):
        value_loss(value, target, target, -0.2)
    with pytest.raises(ValueError, match="did you mean smooth_l1"):
        value_loss(value, target, kind="smoothl1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target requires grad"):
        value_loss(value, target.clone().requires_grad_())
    with pytest.raises(ValueError, match="old_value requires grad"):
        value_loss(value, target, target.clone().requires_grad_(), 0.2)


# ---- normalisation


def test_normalize_by_hand() -> None:
    # (1, -1, 2, -.5) has mean .375 and unbiased variance (.390625+1.890625+2.640625+.765625)/3
    std = math.sqrt(5.6875 / 3)
    close(normalize(ADVANTAGE), (ADVANTAGE - 0.375) / std)


def test_normalize_each_minibatch() -> None:
    rows = torch.stack([ADVANTAGE, 3 * ADVANTAGE + 7])
    close(normalize(rows, dims=1), normalize(ADVANTAGE).expand(2, 4))
    whole = normalize(rows)
    close(torch.stack([whole.mean(), whole.std()]), vector(0.0, 1.0))
    assert not torch.allclose(whole[0], normalize(ADVANTAGE))


def test_normalize_leaves_one_element_unchanged() -> None:
    assert torch.equal(normalize(vector(3.0)), vector(3.0))
    column = random(5, 1)
    assert torch.equal(normalize(column, dims=1), column)
    assert torch.equal(normalize(column, dims=1, valid=torch.ones(5, 1).bool()), column)


def test_normalize_of_equal_numbers_is_zero() -> None:
    assert torch.equal(normalize(torch.full((8,), 2.0)), torch.zeros(8))


def test_normalize_with_a_mask() -> None:
    nan = float("nan")
    padded = torch.stack([vector(1.0, nan, -1.0, 2.0, -0.5), vector(nan, nan, 5.0, nan, nan), vector(*[nan] * 5)])
    out = normalize(padded, padded.isfinite(), dims=1)
    close(out[0], torch.cat([normalize(ADVANTAGE)[:1], vector(0.0), normalize(ADVANTAGE)[1:]]))
    close(out[1], vector(0.0, 0.0, 5.0, 0.0, 0.0))  # one valid element: unchanged
    close(out[2], vector(0.0, 0.0, 0.0, 0.0, 0.0))
    close(normalize(ADVANTAGE, torch.ones(4).bool()), normalize(ADVANTAGE))
    with pytest.raises(ValueError, match=r"valid \(4, 1\)"):
        normalize(ADVANTAGE, torch.ones(4, 1).bool())


def test_normalize_eps() -> None:
    close(normalize(vector(1.0, 3.0), eps=1.0), vector(-1.0, 1.0) / (math.sqrt(2.0) + 1.0))


# ---- KL and the shape guard


def test_kl_k3_by_hand() -> None:
    close(kl_k3(LOG_RATIO), vector(math.exp(0.4) - 1.4, math.exp(-0.4) - 0.6, math.exp(-0.05) - 0.95, 0.0))
    close(kl_k3(LOG_RATIO).mean(), torch.tensor(0.04084354, dtype=F64))


def test_kl_k3_keeps_its_digits_near_zero() -> None:
    tiny = torch.tensor([1e-3, -1e-3])  # float32: exp(x) - 1 - x would keep one digit of x^2 / 2
    torch.testing.assert_close(kl_k3(tiny), torch.tensor([5.0017e-7, 4.9983e-7]), rtol=1e-3, atol=0.0)
    assert (kl_k3(random(100).float() * 0.1) >= 0).all()


def test_check_same_shape() -> None:
    check_same_shape({})
    check_same_shape({"a": torch.zeros(2, 3), "b": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"a \(2,\), b \(2, 1\).*squeeze"):
        check_same_shape({"a": torch.zeros(2), "b": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match=r"a \(1,\), b \(\)"):
        check_same_shape({"a": torch.zeros(1), "b": torch.zeros(())})


# ---- differentiated twice, traced, compiled, vectorised


def everything(log_ratio: Tensor, advantage: Tensor, value: Tensor, old: Tensor, clip: Tensor) -> Tensor:
    loss = clipped_surrogate(log_ratio, normalize(advantage), clip, 0.3, 3.0)
    loss = loss + clipped_surrogate(log_ratio, advantage, 0.2, clip) + policy_gradient(log_ratio, advantage)
    for kind in KINDS:
        loss = loss + value_loss(value, advantage, old, clip, kind) + value_loss(value, advantage, kind=kind)
    return loss + kl_k3(log_ratio)


def inputs(seed: int) -> tuple[Tensor, ...]:
    log_ratio, advantage, value, old = random(4, 32, seed=seed)
    return log_ratio.requires_grad_(), advantage, value.requires_grad_(), old, torch.tensor(0.2)


def gradients(*args: Tensor) -> list[Tensor]:
    loss = everything(*args)
    return [loss, *torch.autograd.grad(loss.mean(), (args[0], args[2]))]


@pytest.mark.parametrize("dual", [None, 3.0])
def test_second_derivatives(dual: float | None) -> None:
    log_ratio, advantage, value, old, _ = inputs(3)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, advantage, 0.2, 0.3, dual), log_ratio)
    assert torch.autograd.gradgradcheck(lambda x: clipped_surrogate(x, advantage, 0.2, 0.3, dual), log_ratio)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, advantage, old, 0.2, "l2"), value)
    assert torch.autograd.gradgradcheck(lambda x: value_loss(x, advantage, old, 0.2, "l2"), value)


def test_traced_once_and_replayed_on_other_numbers() -> None:
    traced = make_fx(lambda *args: gradients(*args))(*inputs(1))
    fresh = inputs(2)
    for actual, expected in zip(traced(*fresh), gradients(*fresh)):
        assert torch.equal(actual, expected)
    smaller = (*fresh[:4], torch.tensor(0.1))  # the clip is read from its buffer, not baked in
    for actual, expected in zip(traced(*smaller), gradients(*smaller)):
        assert torch.equal(actual, expected)


def test_the_traced_step_is_short() -> None:
    log_ratio, advantage, value, old, _ = inputs(1)
    bounds, floor = surrogate_bounds(advantage, 0.2, 0.2), value_floor(advantage, old, 0.2)

    def step(log_ratio: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        loss = bounded_surrogate(log_ratio, *bounds) + bounded_value_loss(value, advantage, floor)
        return torch.autograd.grad(loss, (log_ratio, value), torch.ones_like(loss))

    nodes = [n for n in make_fx(step)(log_ratio, value).graph.nodes if n.op == "call_function"]
    names = [n.target.overloadpacket.__name__ for n in nodes]
    work = [name for name in names if name not in ("detach", "ones_like")]
    # exp, mul, maximum, sub; mse, maximum, sub; the sum; then threshold and product, threshold and mse backward
    assert len(work) <= 12, work


def test_compiled_without_graph_break() -> None:
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    args = inputs(1)
    loss = compiled(*args)
    slopes = torch.autograd.grad(loss.mean(), (args[0], args[2]))
    for actual, expected in zip([loss, *slopes], gradients(*inputs(1))):
        close(actual, expected)


def test_per_sample_gradients() -> None:
    log_ratio, advantage, value, old, _ = (x.detach() for x in inputs(1))
    slope = torch.func.vmap(torch.func.grad(lambda x, a: clipped_surrogate(x, a, 0.2, 0.3)))(log_ratio, advantage)
    x = log_ratio.clone().requires_grad_()
    close(slope, torch.autograd.grad(clipped_surrogate(x, advantage, 0.2, 0.3).sum(), x)[0])
    slope = torch.func.vmap(torch.func.grad(lambda v, t, o: value_loss(v, t, o, 0.2)))(value, advantage, old)
    x = value.clone().requires_grad_()
    close(slope, torch.autograd.grad(value_loss(x, advantage, old, 0.2).sum(), x)[0])
