"""Heads: the right family for each space, standard deviations that stay in range, noise and storage round trips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.nn.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    TanhGaussian,
)
from understudy.nn.heads import DistributionConfig, bound_std, make_head

BOX = spaces.Box(-2.0, 2.0, (3,), np.float32)

# name -> (space, config, family, action shape, dtype, P)
CASES: dict[str, tuple[Any, DistributionConfig, type[Distribution], tuple[int, ...], torch.dtype, int]] = {
    "gaussian": (BOX, DistributionConfig(), DiagGaussian, (3,), torch.float32, 6),
    "gaussian 2-D": (spaces.Box(-1.0, 1.0, (2, 2)), DistributionConfig(), DiagGaussian, (4,), torch.float32, 8),
    "gaussian 0-D": (spaces.Box(-1.0, 1.0, ()), DistributionConfig(), DiagGaussian, (1,), torch.float32, 2),
    "gaussian of state": (BOX, DistributionConfig(state_dependent_std=True), DiagGaussian, (3,), torch.float32, 6),
    "gaussian with floor": (BOX, DistributionConfig(min_std=0.2, max_std=2.0), DiagGaussian, (3,), torch.float32, 6),
    "tanh mean": (BOX, DistributionConfig(mean_activation="tanh"), DiagGaussian, (3,), torch.float32, 6),
    "tanh gaussian": (BOX, DistributionConfig(kind="tanh_gaussian"), TanhGaussian, (3,), torch.float32, 6),
    "beta": (BOX, DistributionConfig(kind="beta"), Beta, (3,), torch.float32, 6),
    "discrete": (spaces.Discrete(4, start=2), DistributionConfig(), Categorical, (), torch.int64, 4),
    "multi discrete": (spaces.MultiDiscrete([2, 3]), DistributionConfig(), MultiCategorical, (2,), torch.int64, 5),
    "multi discrete 2-D": (
        spaces.MultiDiscrete(np.array([[2], [3]])),
        DistributionConfig(),
        MultiCategorical,
        (2,),
        torch.int64,
        5,
    ),
    "multi binary": (spaces.MultiBinary(3), DistributionConfig(), Bernoulli, (3,), torch.int64, 3),
    "multi binary 2-D": (spaces.MultiBinary((2, 2)), DistributionConfig(), Bernoulli, (4,), torch.int64, 4),
}


def _latent(*leading: int) -> Tensor:
    return torch.randn(*leading, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leading", [(5,), (1,), (4, 5), (4, 1)])
def test_each_space_gets_its_family(case: str, leading: tuple[int, ...]) -> None:
    space, config, family, shape, dtype, size = CASES[case]
    head = make_head(space, 8, config)
    assert (tuple(head.action_shape), head.action_dtype, head.num_params) == (shape, dtype, size)
    assert head.bounded == (family in (TanhGaussian, Beta))
    p = head(_latent(*leading))
    assert type(p) is family
    noise = head.noise(*leading, generator=torch.Generator().manual_seed(1))
    assert noise is not None
    action = p.sample(noise)
    assert (action.shape, action.dtype) == ((*leading, *shape), dtype)
    assert p.mode().shape == action.shape
    assert p.log_prob(action).shape == p.entropy().shape == leading
    assert p.params.shape == (*leading, size)
    restored = head.from_params(p.params)
    assert type(restored) is family
    torch.testing.assert_close(restored.log_prob(action), p.log_prob(action))
    torch.testing.assert_close(p.kl(restored), torch.zeros(leading), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_one_index_into_the_noise_is_one_step(case: str) -> None:
    head = make_head(CASES[case][0], 8, CASES[case][1])
    p = head(_latent(5))
    rollout = head.noise(7, 5, generator=torch.Generator().manual_seed(1))
    assert rollout is not None
    assert p.sample(rollout[3]).shape == (5, *head.action_shape)
    again = head.noise(7, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rollout, again)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_first_policy_hardly_depends_on_the_state(case: str) -> None:
    head = make_head(CASES[case][0], 8, CASES[case][1])
    p, centre = head(_latent(50)), head(torch.zeros(50, 8))
    assert p.kl(centre).max() < 0.01
    weight = head.linear.weight
    torch.testing.assert_close(weight @ weight.T, 1e-4 * torch.eye(len(weight)))  # orthogonal rows of length head_gain
    if head.action_dtype == torch.float32:
        torch.testing.assert_close(centre.mode(), torch.zeros_like(centre.mode()))


def test_beta_starts_centred_with_both_halves_small() -> None:
    torch.manual_seed(0)
    p = make_head(BOX, 8, DistributionConfig(kind="beta"))(100.0 * torch.nn.functional.normalize(_latent(50), dim=-1))
    assert isinstance(p, Beta)
    for x in (p.alpha, p.beta):
        # latents of length 100 times rows of length 0.01: at most softplus(+-1) + 1 around softplus(0) + 1 = 1.693
        assert x.min() > 1.31
        assert x.max() < 2.32
    quiet = make_head(BOX, 8, DistributionConfig(kind="beta", head_gain=0.0))(_latent(50))
    assert isinstance(quiet, Beta)
    torch.testing.assert_close(quiet.alpha, torch.full((50, 3), 1.0 + math.log(2.0)))
    torch.testing.assert_close(quiet.mode(), torch.zeros(50, 3))


@pytest.mark.parametrize("state_dependent", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
def test_init_std_is_what_was_asked_for(kind: Any, state_dependent: bool) -> None:
    config = DistributionConfig(kind=kind, init_std=0.37, state_dependent_std=state_dependent, head_gain=0.0)
    p = make_head(BOX, 8, config)(_latent(5))
    assert isinstance(p, DiagGaussian | TanhGaussian)
    assert p.log_std.shape == ((5, 3) if state_dependent else (3,))
    torch.testing.assert_close(p.log_std.exp(), torch.full_like(p.log_std, 0.37))
    torch.testing.assert_close(p.mean, torch.zeros(5, 3))


def test_learned_and_fixed_std() -> None:
    learned, fixed = make_head(BOX, 8), make_head(BOX, 8, DistributionConfig(learn_std=False, init_std=0.5))
    assert {name for name, _ in learned.named_parameters()} == {"linear.weight", "linear.bias", "std.log_std"}
    assert {name for name, _ in fixed.named_parameters()} == {"linear.weight", "linear.bias"}
    assert "std.log_std" in fixed.state_dict()
    p = fixed(_latent(5))
    assert isinstance(p, DiagGaussian)
    assert p.log_std.exp().tolist() == pytest.approx([0.5] * 3)


def test_mean_activation_bounds_the_mean() -> None:
    head = make_head(BOX, 8, DistributionConfig(mean_activation="tanh", head_gain=100.0))
    assert head(_latent(50)).mode().abs().max() <= 1.0
    assert make_head(BOX, 8, DistributionConfig(head_gain=100.0))(_latent(50)).mode().abs().max() > 1.0


@pytest.mark.parametrize("state_dependent", [False, True])
def test_floor_and_ceiling_hold_whatever_the_parameters(state_dependent: bool) -> None:
    config = DistributionConfig(min_std=(0.1, 0.2, 0.3), max_std=1.5, state_dependent_std=state_dependent)
    head = make_head(BOX, 8, config)
    parameter = head.linear.bias if state_dependent else head.get_parameter("std.log_std")
    for value, expected in ((-50.0, [0.1, 0.2, 0.3]), (50.0, [1.5, 1.5, 1.5])):
        with torch.no_grad():
            parameter[-3:] = value
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                p = head(_latent(5))
            assert isinstance(p, DiagGaussian)
            rows = p.log_std.exp().expand(5, 3)
            torch.testing.assert_close(rows, torch.tensor([expected]).expand(5, 3))


def test_std_without_bounds_adds_no_op() -> None:
    head = make_head(BOX, 8)
    p = head(_latent(5))
    assert isinstance(p, DiagGaussian)
    assert p.log_std is head.get_parameter("std.log_std")


def test_a_std_at_its_floor_can_rise_again() -> None:
    low, high = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    x = torch.tensor([-2.0, -2.0, 0.0, 2.0, 2.0], requires_grad=True)
    #       below: descent up passes, down is dropped; inside passes; above: up is dropped, down passes
    upstream = torch.tensor([-3.0, 3.0, 5.0, -3.0, 3.0])
    y = bound_std(x, low, high)
    assert y.tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert gradient.tolist() == [-3.0, 0.0, 5.0, 0.0, 3.0]


def test_a_std_pushed_below_its_floor_recovers_in_training() -> None:
    head = make_head(BOX, 8, DistributionConfig(init_std=0.3, min_std=0.2))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)

    def train(sign: float, steps: int) -> list[float]:
        for _ in range(steps):
            p = head(torch.zeros(1, 8))
            optimizer.zero_grad()
            (sign * p.entropy().sum()).backward()
            optimizer.step()
        p = head(torch.zeros(1, 8))
        assert isinstance(p, DiagGaussian)
        return p.log_std.exp().tolist()

    assert train(+1.0, 50) == pytest.approx([0.2] * 3)
    assert min(train(-1.0, 10)) > 0.3


BAD: dict[str, tuple[Any, Callable[[], DistributionConfig], str]] = {
    "unknown kind": (BOX, lambda: DistributionConfig(kind="normal"), "policy.distribution.kind must be one of"),  # type: ignore[arg-type]
    "kind against space": (spaces.Discrete(2), lambda: DistributionConfig(kind="beta"), "does not fit"),
    "categorical on a Box": (BOX, lambda: DistributionConfig(kind="categorical"), "does not fit"),
    "space": (spaces.Text(4), DistributionConfig, "no action distribution covers a Text"),
    "tuple space": (spaces.Tuple([BOX]), DistributionConfig, "no action distribution covers"),
    "integer Box": (spaces.Box(0, 3, (2,), np.int64), DistributionConfig, "floating"),
    "empty Box": (spaces.Box(0, 1, (0,)), DistributionConfig, "not empty"),
    "init_std": (BOX, lambda: DistributionConfig(init_std=0.0), "init_std"),
    "floor above init": (BOX, lambda: DistributionConfig(min_std=2.0), "min_std"),
    "floor zero": (BOX, lambda: DistributionConfig(min_std=0.0), "min_std"),
    "ceiling below init": (BOX, lambda: DistributionConfig(max_std=0.5), "max_std"),
    "floor length": (BOX, lambda: DistributionConfig(min_std=(0.1, 0.1)), "give 1 or 3"),
    "fixed but state dependent": (
        BOX,
        lambda: DistributionConfig(state_dependent_std=True, learn_std=False),
        "state_dependent_std",
    ),
    "std of a beta": (BOX, lambda: DistributionConfig(kind="beta", min_std=0.1), "min_std would have no effect"),
    "std of a categorical": (
        spaces.Discrete(2),
        lambda: DistributionConfig(learn_std=False),
        "learn_std would have no",
    ),
    "activation": (BOX, lambda: DistributionConfig(mean_activation="tahn"), "did you mean tanh"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str) -> None:
    space, config, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make_head(space, 8, config())


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistributionConfig().init_std = 2.0  # type: ignore[misc]


def _loss_and_gradients(head: torch.nn.Module, latent: Tensor, action: Tensor, old: Tensor) -> tuple[Tensor, ...]:
    p = head(latent)
    loss = p.log_prob(action).mean() + 0.1 * p.kl(head.from_params(old)).mean()  # type: ignore[operator]
    if p.closed_form_entropy:
        loss = loss + 0.5 * p.entropy().mean()
    return loss, *torch.autograd.grad(loss, tuple(head.parameters()))


def _trace_inputs(case: str) -> tuple[torch.nn.Module, list[tuple[Tensor, Tensor, Tensor]]]:
    torch.manual_seed(0)
    head = make_head(CASES[case][0], 8, CASES[case][1])
    inputs = []
    for seed in range(2):
        latent = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
        p = head(latent + 1.0)
        inputs.append((latent, p.sample(), p.params.detach()))
    return head, inputs


@pytest.mark.parametrize("case", CASES)
def test_make_fx_replays_forward_and_backward(case: str) -> None:
    head, (first, second) = _trace_inputs(case)
    graph = make_fx(lambda *args: _loss_and_gradients(head, *args))(*first)
    for got, expected in zip(graph(*second), _loss_and_gradients(head, *second)):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)


def test_a_scalar_standard_deviation_is_learned_as_itself() -> None:
    """d log_prob / d std = (z^2 - 1) / std, not times std; below its floor it comes back."""
    config = DistributionConfig(std_type="scalar", init_std=0.5, head_gain=None)
    head = make_head(spaces.Box(-np.inf, np.inf, (1,), np.float32), 3, config)
    assert head.std is not None
    std = head.std.std
    assert isinstance(std, torch.nn.Parameter)
    assert head.std.log_std is None
    latent = torch.zeros(1, 3)
    distribution = head(latent)
    action = distribution.mode() + 1.0  # z = 2
    (gradient,) = torch.autograd.grad(distribution.log_prob(action).sum(), std)
    assert gradient.item() == pytest.approx((4.0 - 1.0) / 0.5)
    with torch.no_grad():
        std.fill_(-1.0)
    low = head(latent)
    assert low.entropy().item() == pytest.approx(math.log(1e-6) + 0.5 * math.log(2 * math.pi * math.e), rel=1e-5)
    (gradient,) = torch.autograd.grad(-low.entropy().sum(), std)
    assert gradient.item() < 0.0  # descent raises it
    assert head.std.fill(0.25)
    assert head(latent).entropy().item() == pytest.approx(math.log(0.25) + 0.5 * math.log(2 * math.pi * math.e))
    with pytest.raises(ValueError, match="drop std_type='scalar'"):
        DistributionConfig(std_type="scalar", state_dependent_std=True)
