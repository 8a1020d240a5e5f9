"""Every family against torch.distributions, against sums and integrals, and against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.nn.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    TanhGaussian,
    block_offsets,
)
from understudy.nn.noise import beta_noise, gumbel_noise, logistic_noise, standard_normal

NVEC = (2, 4, 3)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(seed))


def _exact(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _reference_gaussian(mean: Tensor, log_std: Tensor) -> td.Distribution:
    return td.Independent(td.Normal(mean, log_std.exp().expand_as(mean)), 1)


def _reference_tanh(mean: Tensor, log_std: Tensor) -> td.Distribution:
    return td.TransformedDistribution(_reference_gaussian(mean, log_std), [td.TanhTransform()])


def _reference_beta(alpha: Tensor, beta: Tensor, low: float = -1.0, high: float = 1.0) -> td.Distribution:
    transform = td.AffineTransform(low, high - low, event_dim=1)
    return td.TransformedDistribution(td.Independent(td.Beta(alpha, beta), 1), [transform])


def _concentration(seed: int) -> Tensor:
    return 1.0 + torch.rand(5, 3, dtype=torch.float64, generator=_generator(seed)) * 6.0


# family -> parameters of seed -> (ours, torch's)
PAIRS: dict[str, Callable[[int], tuple[Distribution, td.Distribution]]] = {
    "gaussian": lambda s: (
        DiagGaussian(_double(5, 3, seed=s), 0.4 * _double(3, seed=s + 9)),
        _reference_gaussian(_double(5, 3, seed=s), 0.4 * _double(3, seed=s + 9)),
    ),
    "gaussian, std of the state": lambda s: (
        DiagGaussian(_double(5, 3, seed=s), 0.4 * _double(5, 3, seed=s + 9)),
        _reference_gaussian(_double(5, 3, seed=s), 0.4 * _double(5, 3, seed=s + 9)),
    ),
    "tanh gaussian": lambda s: (
        TanhGaussian(_double(5, 3, seed=s), 0.4 * _double(3, seed=s + 9)),
        _reference_tanh(_double(5, 3, seed=s), 0.4 * _double(3, seed=s + 9)),
    ),
    "beta": lambda s: (
        Beta(_concentration(s), _concentration(s + 9), -2.0, 3.0),
        _reference_beta(_concentration(s), _concentration(s + 9), -2.0, 3.0),
    ),
    "categorical": lambda s: (
        Categorical(_double(5, 4, seed=s)),
        td.Categorical(logits=_double(5, 4, seed=s)),
    ),
    "multi categorical": lambda s: (MultiCategorical(_double(5, sum(NVEC), seed=s), NVEC), td.Normal(0.0, 1.0)),
    "bernoulli": lambda s: (
        Bernoulli(_double(5, 3, seed=s)),
        td.Independent(td.Bernoulli(logits=_double(5, 3, seed=s)), 1),
    ),
}
FAMILIES = list(PAIRS)
WITH_REFERENCE = [name for name in FAMILIES if name != "multi categorical"]


def _ours(family: str, seed: int = 0) -> Distribution:
    return PAIRS[family](seed)[0]


@pytest.mark.parametrize("family", WITH_REFERENCE)
def test_log_prob_equals_torch(family: str) -> None:
    ours, theirs = PAIRS[family](0)
    action = ours.sample(generator=_generator(1))
    expected = theirs.log_prob(action.double() if family == "bernoulli" else action)
    torch.testing.assert_close(ours.log_prob(action), expected, rtol=1e-9, atol=1e-9)
    assert ours.log_prob(action).shape == ours.batch_shape == (5,)


@pytest.mark.parametrize("family", ["gaussian", "gaussian, std of the state", "categorical", "bernoulli"])
def test_entropy_equals_torch(family: str) -> None:
    ours, theirs = PAIRS[family](0)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gaussian", "gaussian, std of the state", "categorical", "bernoulli"])
def test_kl_equals_torch(family: str) -> None:
    (p, torch_p), (q, torch_q) = PAIRS[family](0), PAIRS[family](1)
    torch.testing.assert_close(p.kl(q), td.kl_divergence(torch_p, torch_q), rtol=1e-9, atol=1e-9)


def test_beta_entropy_and_kl_equal_torch_plus_the_range() -> None:
    p, q = Beta(_concentration(0), _concentration(1), 0.0, 4.0), Beta(_concentration(2), _concentration(3), 0.0, 4.0)
    torch_p, torch_q = td.Beta(p.alpha, p.beta), td.Beta(q.alpha, q.beta)
    torch.testing.assert_close(p.entropy(), torch_p.entropy().sum(-1) + 3 * math.log(4.0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.kl(q), td.kl_divergence(torch_p, torch_q).sum(-1), rtol=1e-9, atol=1e-9)


def test_multi_categorical_is_the_sum_of_categoricals() -> None:
    logits, others = _double(5, sum(NVEC)), _double(5, sum(NVEC), seed=1)
    p, q = MultiCategorical(logits, NVEC), MultiCategorical(others, NVEC)
    action = p.sample(generator=_generator())
    blocks = [td.Categorical(logits=x) for x in logits.split(NVEC, -1)]
    other_blocks = [td.Categorical(logits=x) for x in others.split(NVEC, -1)]
    torch.testing.assert_close(p.log_prob(action), sum(b.log_prob(action[:, k]) for k, b in enumerate(blocks)))
    torch.testing.assert_close(p.entropy(), sum(b.entropy() for b in blocks))
    torch.testing.assert_close(p.kl(q), sum(td.kl_divergence(a, b) for a, b in zip(blocks, other_blocks)))
    torch.testing.assert_close(p.mode(), torch.stack([b.logits.argmax(-1) for b in blocks], -1))


def _grid(low: float, high: float, n: int = 400_001) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


def _one_dimensional(family: str, seed: int = 0) -> tuple[Distribution, Distribution, Tensor]:
    """Two distributions over `[n, 1]` (the parameters repeated along the grid) and the grid."""
    mean, other = (0.3, -0.4) if seed == 0 else (-1.1, 0.2)
    x = {"gaussian": _grid(-12.0, 12.0), "tanh": _grid(-1.0, 1.0)[1:-1], "beta": _grid(-2.0, 3.0)[1:-1]}[family]
    column = torch.zeros_like(x)[:, None]

    def make(a: float, b: float) -> Distribution:
        if family == "beta":
            return Beta(column + 3.0 + a, column + 3.0 + b, -2.0, 3.0)
        return (DiagGaussian if family == "gaussian" else TanhGaussian)(column + a, _exact([b]))

    return make(mean, -0.5), make(other, -0.2), x


@pytest.mark.parametrize("family", ["gaussian", "tanh", "beta"])
@pytest.mark.parametrize("seed", [0, 1])
def test_densities_by_numerical_integration(family: str, seed: int) -> None:
    p, q, x = _one_dimensional(family, seed)
    log_p, log_q = p.log_prob(x[:, None]), q.log_prob(x[:, None])
    density = log_p.exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-6)
    kl = torch.trapezoid(density * (log_p - log_q), x).item()
    assert p.kl(q)[0].item() == pytest.approx(kl, rel=1e-5)
    entropy = -torch.trapezoid(density * log_p, x).item()
    if p.closed_form_entropy:
        assert p.entropy()[0].item() == pytest.approx(entropy, rel=1e-5)
    else:  # the grid repeats one distribution 400,000 times: its mean is a large Monte Carlo sample
        assert p.entropy_mc(2, generator=_generator()).mean().item() == pytest.approx(entropy, abs=5e-3)


@pytest.mark.parametrize("family", ["categorical", "multi categorical", "bernoulli"])
def test_discrete_families_by_summation(family: str) -> None:
    p, q = _ours(family, 0), _ours(family, 1)
    choices = {"categorical": (4,), "multi categorical": NVEC, "bernoulli": (2, 2, 2)}[family]
    actions = torch.cartesian_prod(*[torch.arange(n) for n in choices])  # every action there is
    log_p = torch.stack([p.log_prob(a.expand(5, *a.shape).contiguous()) for a in actions])
    log_q = torch.stack([q.log_prob(a.expand(5, *a.shape).contiguous()) for a in actions])
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(p.entropy(), -(log_p.exp() * log_p).sum(0))
    torch.testing.assert_close(p.kl(q), (log_p.exp() * (log_p - log_q)).sum(0))
    best = torch.stack([p.mode().reshape(5, -1)] * len(actions)) == actions.reshape(len(actions), 1, -1)
    torch.testing.assert_close(best.all(-1).int().argmax(0), log_p.argmax(0))


def test_hand_computed_gaussian() -> None:
    p = DiagGaussian(_exact([[1.0, -1.0]]), _exact([0.0, math.log(2.0)]))
    q = DiagGaussian(_exact([[0.0, -1.0]]), _exact([math.log(2.0), 0.0]))
    # z = (1, 1): -(1 + 1) / 2 - log 2 - log(2 pi)
    assert p.log_prob(_exact([[2.0, 1.0]])).item() == pytest.approx(-3.531024246969291, rel=1e-12)
    assert p.entropy().item() == pytest.approx(math.log(2.0) + 1.0 + math.log(2.0 * math.pi), rel=1e-12)
    # log 2 + (1 + 1) / 8 - 1/2  and  -log 2 + 4 / 2 - 1/2
    assert p.kl(q).item() == pytest.approx(1.25, rel=1e-12)


def test_hand_computed_tanh_gaussian() -> None:
    p = TanhGaussian(torch.zeros(1, 1).double(), torch.zeros(1).double())
    # a = tanh(1): log N(1; 0, 1) - log(1 - tanh(1)^2) = -1/2 - log(2 pi)/2 + 2 log cosh(1)
    action = _exact([[math.tanh(1.0)]])
    assert p.log_prob(action).item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 0.5 + 2 * math.log(math.cosh(1.0)))
    assert p.mode().item() == 0.0


def test_hand_computed_beta() -> None:
    p = Beta(_exact([[2.0]]), _exact([[2.0]]))
    q = Beta(_exact([[1.0]]), _exact([[1.0]]))
    # density 6 x (1 - x) / 2 on [-1, 1]; at a = 0: 6/8
    assert p.log_prob(torch.zeros(1, 1).double()).item() == pytest.approx(math.log(0.75), rel=1e-12)
    assert p.entropy().item() == pytest.approx(5.0 / 3.0 - math.log(6.0) + math.log(2.0), rel=1e-12)
    assert p.kl(q).item() == pytest.approx(math.log(6.0) - 5.0 / 3.0, rel=1e-12)  # against the uniform
    assert q.mode().item() == 0.0  # flat: the centre, not 0/0
    skewed = Beta(_exact([[3.0]]), _exact([[2.0]]), 0.0, 3.0)
    assert skewed.mode().item() == pytest.approx(2.0, rel=1e-12)


def test_hand_computed_discrete() -> None:
    logits = _exact([[math.log(0.5), math.log(0.25), math.log(0.25)]]) + 7.0
    p, uniform = Categorical(logits), Categorical(torch.zeros(1, 3).double())
    assert p.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.25), rel=1e-12)
    assert p.entropy().item() == pytest.approx(1.5 * math.log(2.0), rel=1e-12)
    assert p.kl(uniform).item() == pytest.approx(math.log(3.0) - 1.5 * math.log(2.0), rel=1e-12)
    bits = Bernoulli(_exact([[math.log(3.0), 0.0]]))  # p = 3/4, 1/2
    assert bits.log_prob(torch.tensor([[1, 0]])).item() == pytest.approx(math.log(0.375), rel=1e-12)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) + math.log(2.0)
    assert bits.entropy().item() == pytest.approx(entropy, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_is_zero_with_itself_and_positive_else(family: str) -> None:
    torch.testing.assert_close(_ours(family).kl(_ours(family)), torch.zeros(5, dtype=torch.float64))
    assert (_ours(family, 0).kl(_ours(family, 1)) > 0).all()


def test_small_kl_survives_float32() -> None:
    mean, log_std = torch.zeros(1, 4), torch.full((1, 4), 0.3)
    p, q = DiagGaussian(mean, log_std), DiagGaussian(mean, log_std + 1e-3)
    delta = -2e-3  # 4 dimensions of (e^delta - 1 - delta) / 2
    assert p.kl(q).item() == pytest.approx(2 * (math.exp(delta) - 1 - delta), rel=1e-3)


@pytest.mark.parametrize("family", ["gaussian", "gaussian, std of the state", "tanh gaussian"])
def test_state_independent_std_equals_expanded(family: str) -> None:
    p = _ours(family)
    assert isinstance(p, DiagGaussian | TanhGaussian)
    expanded = type(p)(*p.params.chunk(2, -1))
    action = p.sample(generator=_generator(1))
    torch.testing.assert_close(p.log_prob(action), expanded.log_prob(action))
    torch.testing.assert_close(p.kl(_ours(family, 1)), expanded.kl(_ours(family, 1)))  # type: ignore[arg-type]
    torch.testing.assert_close(p.mode(), expanded.mode())
    assert p.params.shape == (5, 6)


def test_entropy_mc_agrees_and_has_gradient() -> None:
    log_std = torch.tensor([0.2, -0.3], dtype=torch.float64, requires_grad=True)
    p = DiagGaussian(torch.zeros(2000, 2, dtype=torch.float64), log_std)
    estimate = p.entropy_mc(4, generator=_generator())
    assert estimate.shape == (2000,)
    assert estimate.mean().item() == pytest.approx(p.entropy()[0].item(), abs=0.05)
    (gradient,) = torch.autograd.grad(estimate.mean(), log_std)
    torch.testing.assert_close(gradient, torch.ones(2, dtype=torch.float64))  # dH / d log_std = 1, exactly


def test_tanh_entropy_mc_equals_minus_log_prob_and_has_gradient() -> None:
    mean = torch.full((4000, 1), 0.4, dtype=torch.float64, requires_grad=True)
    p = TanhGaussian(mean, torch.tensor([-0.2], dtype=torch.float64))
    estimate = p.entropy_mc(3, generator=_generator(0))
    plain = -torch.stack([p.log_prob(p.sample(generator=_generator(s))) for s in range(3)]).mean()
    assert estimate.mean().item() == pytest.approx(plain.item(), abs=0.03)
    (gradient,) = torch.autograd.grad(estimate.sum(), mean)
    # d/dm E[log(1 - tanh(u)^2)] = -2 E[tanh(u)], from the distribution's own samples
    assert gradient.mean().item() == pytest.approx(-2.0 * p.sample(generator=_generator(5)).mean().item(), abs=0.03)


def test_entropy_mc_without_reparametrisation_is_exact() -> None:
    torch.testing.assert_close(_ours("categorical").entropy_mc(2), _ours("categorical").entropy())
    with pytest.raises(ValueError, match="at least one"):
        _ours("gaussian").entropy_mc(0)


NOISE = dict(zip(FAMILIES, [standard_normal] * 3 + [beta_noise, gumbel_noise, gumbel_noise, logistic_noise]))


def _draw(p: Distribution, family: str, n: int) -> Tensor:
    width = {"beta": 3, "categorical": 4, "multi categorical": sum(NVEC)}.get(family, 3)
    noise = NOISE[family]((n, 5, width), like=torch.zeros(1, dtype=torch.float64), generator=_generator(3))
    return torch.stack([p.sample(noise[i]) for i in range(n)])


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_from_noise_have_the_right_moments(family: str) -> None:
    p, theirs = PAIRS[family](0)
    n = 4000
    draws = _draw(p, family, n)
    tolerance = 5.0 / math.sqrt(n)
    if family in ("categorical", "multi categorical"):
        nvec = NVEC if isinstance(p, MultiCategorical) else (4,)
        for k, log_p in enumerate(p.log_p.split(nvec, -1)):  # type: ignore[attr-defined]
            taken = draws[..., k] if family == "multi categorical" else draws
            frequency = torch.nn.functional.one_hot(taken, nvec[k]).double().mean(0)
            torch.testing.assert_close(frequency, log_p.exp(), rtol=0.0, atol=tolerance)
        return
    if family == "tanh gaussian":
        draws, theirs = draws.atanh(), _reference_gaussian(p.mean, p.log_std)  # type: ignore[attr-defined]
    if family == "beta":
        draws, theirs = (draws + 2.0) / 5.0, td.Independent(td.Beta(p.alpha, p.beta), 1)  # type: ignore[attr-defined]
    std = theirs.variance.sqrt()
    assert ((draws.double().mean(0) - theirs.mean).abs() < tolerance * std).all()
    torch.testing.assert_close(draws.double().std(0), std, rtol=0.12, atol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_is_a_function_of_its_source(family: str) -> None:
    p = _ours(family)
    torch.testing.assert_close(p.sample(generator=_generator(7)), p.sample(generator=_generator(7)), rtol=0, atol=0)
    assert not torch.equal(_draw(p, family, 20)[3], _draw(p, family, 20)[4])
    assert torch.equal(_draw(p, family, 2), _draw(p, family, 2))


@pytest.mark.parametrize("family", ["gaussian", "tanh gaussian"])
def test_sample_has_no_gradient_and_rsample_has(family: str) -> None:
    mean, log_std = torch.zeros(5, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    p = (DiagGaussian if family == "gaussian" else TanhGaussian)(mean, log_std)
    noise = torch.randn(5, 3, generator=_generator())
    assert not p.sample(noise).requires_grad
    grads = torch.autograd.grad(p.rsample(noise).sum(), (mean, log_std))
    jacobian = torch.ones(5, 3) if family == "gaussian" else 1.0 - noise.tanh() ** 2
    torch.testing.assert_close(grads[0], jacobian)
    torch.testing.assert_close(grads[1], (jacobian * noise).sum(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_refuses_other_shapes(family: str) -> None:
    p = _ours(family)
    action = p.sample()
    for wrong in (
        action.unsqueeze(-1),
        action[:1],
        action.unsqueeze(0),
        action[..., :1] if action.ndim > 1 else action[0],
    ):
        with pytest.raises(ValueError, match="broadcast"):
            p.log_prob(wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_environment_and_sequences(family: str) -> None:
    full = _ours(family)
    action = full.sample(generator=_generator(2))
    for lead in ((1,), (5, 1), (1, 5)):
        p = _rebuild(full, _lead(full.params, lead))
        assert p.batch_shape == lead
        torch.testing.assert_close(
            p.log_prob(_lead(action, lead)).reshape(-1), full.log_prob(action)[: math.prod(lead)]
        )
        assert p.entropy().shape == lead
        assert p.kl(p).shape == lead
        assert p.sample().shape == (*lead, *action.shape[1:])
        assert p.mode().dtype == action.dtype


def _lead(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    return x[: math.prod(lead)].reshape(*lead, *x.shape[1:])


def _rebuild(p: Distribution, params: Tensor) -> Distribution:
    if isinstance(p, MultiCategorical):
        return MultiCategorical(params, p.nvec, block_offsets(p.nvec))
    if isinstance(p, Beta):
        alpha, beta = params.chunk(2, -1)
        return Beta(alpha, beta, p.low, p.high)
    if isinstance(p, DiagGaussian | TanhGaussian):
        return type(p)(*params.chunk(2, -1))
    assert isinstance(p, Categorical | Bernoulli)
    return type(p)(params)


@pytest.mark.parametrize("family", FAMILIES)
def test_params_restore_the_distribution(family: str) -> None:
    p = _ours(family)
    again = _rebuild(p, p.params)
    action = p.sample(generator=_generator(2))
    torch.testing.assert_close(again.log_prob(action), p.log_prob(action), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again.mode(), p.mode(), rtol=0.0, atol=0.0)


def test_kl_refuses_other_families_and_shapes() -> None:
    gaussian = DiagGaussian(torch.zeros(5, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="one family"):
        gaussian.kl(TanhGaussian(torch.zeros(5, 3), torch.zeros(3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one family"):
        gaussian.kl(DiagGaussian(torch.zeros(1, 3), torch.zeros(3)))
    two = torch.full((5, 1), 2.0)
    with pytest.raises(ValueError, match="range"):
        Beta(two, two).kl(Beta(two, two, 0.0, 1.0))
    with pytest.raises(ValueError, match="nvec"):
        MultiCategorical(torch.zeros(5, 5), (2, 3)).kl(MultiCategorical(torch.zeros(5, 5), (3, 2)))


def test_constructors_refuse_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="log_std"):
        DiagGaussian(torch.zeros(5, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="one shape"):
        Beta(torch.ones(5, 3), torch.ones(3))
    with pytest.raises(ValueError, match="low < high"):
        Beta(torch.ones(5, 3), torch.ones(5, 3), 1.0, 1.0)
    with pytest.raises(ValueError, match="sum"):
        MultiCategorical(torch.zeros(5, 4), (2, 3))


EXTREMES: dict[str, Callable[[Tensor], tuple[Distribution, Tensor]]] = {
    # a leaf [2, 6] and the distribution at its end of the number range, with an action there
    "gaussian, tiny std": lambda x: (DiagGaussian(x[:, :3], x[:, 3:] - 15.0), torch.zeros(2, 3)),
    "gaussian, huge std": lambda x: (DiagGaussian(x[:, :3] + 1e4, x[:, 3:] + 15.0), torch.zeros(2, 3)),
    "tanh, saturated": lambda x: (TanhGaussian(x[:, :3] + 50.0, x[:, 3:]), torch.tensor([[1.0] * 3, [-1.0] * 3])),
    "tanh, tiny std": lambda x: (TanhGaussian(x[:, :3], x[:, 3:] - 10.0), torch.full((2, 3), 0.999)),
    "beta, flat": lambda x: (Beta(x[:, :3] * 0.0 + 1.0, x[:, 3:] * 0.0 + 1.0), torch.tensor([[1.0] * 3, [-1.0] * 3])),
    "beta, sharp": lambda x: (Beta(x[:, :3] + 1e5, x[:, 3:] + 1e5), torch.tensor([[1.0] * 3, [-1.0] * 3])),
    "categorical, certain": lambda x: (Categorical(x * torch.tensor([1e4, -1e4, 1, 1, 1, 1])), torch.tensor([1, 5])),
    "categorical, masked": lambda x: (
        Categorical(x.masked_fill(x > 0.5, torch.finfo(x.dtype).min)),
        torch.tensor([1, 0]),
    ),
    "multi, certain": lambda x: (MultiCategorical(x * 1e4, (2, 4)), torch.zeros(2, 2, dtype=torch.int64)),
    "bernoulli, certain": lambda x: (Bernoulli(x * 1e4), torch.ones(2, 6, dtype=torch.int64)),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_parameters_stay_finite(case: str) -> None:
    leaf = torch.linspace(-1.0, 1.0, 12).reshape(2, 6).requires_grad_()
    p, action = EXTREMES[case](leaf)
    entropy = p.entropy() if p.closed_form_entropy else p.entropy_mc(4, generator=_generator())
    for result in (p.log_prob(action), entropy, p.kl(p), p.log_prob(p.sample(generator=_generator()))):
        assert result.isfinite().all(), result
        (gradient,) = torch.autograd.grad(result.sum(), leaf, retain_graph=True)
        assert gradient.isfinite().all(), gradient
    assert p.mode().double().isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_and_replays_on_other_numbers(family: str) -> None:
    def f(params: Tensor, action: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        p, q = _rebuild(template, params), _rebuild(template, other)
        total = p.log_prob(action).sum() + p.entropy().sum() if p.closed_form_entropy else p.log_prob(action).sum()
        return (*torch.autograd.grad(total, params), p.log_prob(action), p.kl(q), p.mode())

    template = _ours(family)
    first, second, third = template.params, _ours(family, 1).params, _ours(family, 2).params
    graph = make_fx(f)(first.clone().requires_grad_(), template.sample(generator=_generator(1)), second)
    action = template.sample(generator=_generator(4))
    replay = graph(second.clone().requires_grad_(), action, third)
    for got, expected in zip(replay, f(second.clone().requires_grad_(), action, third)):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
