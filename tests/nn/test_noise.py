"""Noise: the laws it follows, and the gamma sampler with its fixed number of proposals."""

from __future__ import annotations

import math

import pytest
import torch

from understudy.nn.distributions import Beta, TanhGaussian
from understudy.nn.noise import (
    GAMMA_PROPOSALS,
    beta_noise,
    gamma,
    gumbel_noise,
    inside,
    logistic_noise,
    standard_normal,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_follows_its_distribution_function() -> None:
    n, like = 100_000, torch.zeros(1, dtype=torch.float64)
    rank = torch.arange(1, n + 1) / n
    laws = {
        standard_normal: lambda x: 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
        gumbel_noise: lambda x: torch.exp(-torch.exp(-x)),
        logistic_noise: torch.sigmoid,
    }
    for draw, cdf in laws.items():
        x = draw((n,), like=like, generator=_generator()).sort().values
        assert x.dtype == torch.float64
        assert (cdf(x) - rank).abs().max() < 2.0 / math.sqrt(n)  # Kolmogorov-Smirnov, p < 1e-3
        assert draw((n,), like=torch.zeros(1)).isfinite().all()


def test_inside_keeps_one_epsilon_from_the_ends() -> None:
    eps = torch.finfo(torch.float32).eps
    assert inside(torch.tensor([-3.0, 0.5, 1.0]), 0.0, 1.0).tolist() == [eps, 0.5, 1.0 - eps]


@pytest.mark.parametrize("concentration", [1.0, 1.3, 40.0, 3000.0])
def test_beta_samples_follow_the_distribution_function(concentration: float) -> None:
    n = 200_000
    p = Beta(torch.full((n, 1), concentration).double(), torch.full((n, 1), 2.0).double(), 0.0, 1.0)
    x = p.sample(generator=_generator()).squeeze(-1).sort().values
    # for beta = 2 the distribution function is x^a (1 + a (1 - x))
    cdf = x**concentration * (1.0 + concentration * (1.0 - x))
    assert (cdf - torch.arange(1, n + 1) / n).abs().max() < 2.0 / math.sqrt(n)  # Kolmogorov-Smirnov, p < 1e-3


def test_gamma_proposals_almost_never_run_out() -> None:
    n = 1_000_000
    noise = beta_noise((n, 1), like=torch.zeros(1), generator=_generator())
    assert noise.shape == (n, 1, 4 * GAMMA_PROPOSALS)
    normal, uniform = noise[..., :GAMMA_PROPOSALS], noise[..., -GAMMA_PROPOSALS:]
    draws = gamma(torch.ones(n, 1), normal, uniform)  # the worst case: acceptance grows with the concentration
    assert (draws == torch.ones(n, 1) - 1.0 / 3.0).float().mean() < 3e-5  # the value where all proposals failed
    refused = gamma(torch.ones(1, 1), torch.zeros(1, 1, 2) - 10.0, torch.full((1, 1, 2), 0.5))
    assert refused.item() == pytest.approx(2.0 / 3.0)


def test_bounded_families_stay_strictly_inside() -> None:
    tanh = TanhGaussian(torch.full((100, 1), 30.0), torch.zeros(1))
    beta = Beta(torch.full((100, 1), 1e6), torch.full((100, 1), 1.0))
    for p in (tanh, beta):
        for action in (p.sample(), p.mode()):
            assert (action.abs() < 1.0).all()
    low = Beta(torch.full((100, 1), 1.0), torch.full((100, 1), 1e6), 2.0, 5.0).sample()
    assert ((low > 2.0) & (low < 5.0)).all()
