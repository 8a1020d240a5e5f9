"""Distances between student and teacher, by hand in float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from understudy.nn.distributions import Categorical, DiagGaussian
from understudy.parts.shared.distillation import ActionTarget, MeanTarget, action_distance, before_tanh, vector_distance

STUDENT = torch.tensor([[0.5, -0.2], [0.0, 0.8]], dtype=torch.float64)
TEACHER = torch.tensor([[0.2, 0.2], [0.6, 0.0]], dtype=torch.float64)


def bce(m: float, y: float) -> float:
    p, q = (m + 1) / 2, (y + 1) / 2
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


TANH = (bce(0.5, 0.2) + bce(-0.2, 0.2), bce(0.0, 0.6) + bce(0.8, 0.0))  # 2 mean_d with D = 2
EXPECTED = {
    "real": (0.5, 1.0),  # differences (0.3, -0.4) and (-0.6, 0.8)
    "l1": (0.7, 1.4),
    "mse_sum": (0.25, 1.0),
    "tanh": TANH,
    "scaled_tanh": (TANH[0] * 0.35, TANH[1] * 0.7),
}


@pytest.mark.parametrize("kind", get_args(MeanTarget))
def test_vectors_by_hand(kind: MeanTarget) -> None:
    found = vector_distance(kind, STUDENT, TEACHER)
    torch.testing.assert_close(found, torch.tensor(EXPECTED[kind], dtype=torch.float64), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("kind", get_args(MeanTarget))
def test_the_gradient_leads_to_the_teacher(kind: MeanTarget) -> None:
    student = STUDENT.clone().requires_grad_()
    for _ in range(300):
        (gradient,) = torch.autograd.grad(vector_distance(kind, student, TEACHER).sum(), student)
        student = (student - 0.02 * gradient).detach().requires_grad_()
    assert (student - TEACHER).abs().max() < (0.12 if kind == "scaled_tanh" else 0.05)


def test_equal_vectors_have_a_finite_gradient() -> None:
    for kind in get_args(MeanTarget):
        student = TEACHER.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(vector_distance(kind, student, TEACHER).sum(), student)
        assert torch.isfinite(gradient).all()


def test_the_ends_of_the_interval_are_finite() -> None:
    ends, other = torch.tensor([[1.0, -1.0, 3.0]]), torch.tensor([[-1.0, 1.0, -3.0]])
    assert torch.isfinite(vector_distance("tanh", ends, other)).all()
    assert torch.isfinite(before_tanh(ends, other)).all()
    expected = abs(math.atanh(0.5) - math.atanh(0.2)) + 2 * math.atanh(0.2)
    assert float(before_tanh(STUDENT, TEACHER)[0]) == pytest.approx(expected, rel=1e-9)


def gaussian(mean: Tensor, std: float) -> DiagGaussian:
    return DiagGaussian(mean, torch.full_like(mean, math.log(std)))


def test_distributions_by_hand() -> None:
    student, teacher = gaussian(STUDENT, 0.5), gaussian(TEACHER, 0.25)
    for kind in get_args(MeanTarget):
        assert torch.equal(action_distance(kind, student, TEACHER), vector_distance(kind, STUDENT, TEACHER))
    # -log N(y; m, 0.5) in 2 dimensions: ||y - m||^2 / (2 * 0.25) + 2 log 0.5 + log 2 pi
    nll = [squared / 0.5 + 2 * math.log(0.5) + math.log(2 * math.pi) for squared in (0.25, 1.0)]
    assert action_distance("max_log_prob", student, TEACHER).tolist() == pytest.approx(nll, rel=1e-9)
    # per dimension log(s / t) + (t^2 + d^2) / (2 s^2) - 1/2 with t = 0.25 the teacher's
    kl = [2 * (math.log(2.0) - 0.5) + (2 * 0.0625 + squared) / 0.5 for squared in (0.25, 1.0)]
    assert action_distance("kl", student, TEACHER, teacher).tolist() == pytest.approx(kl, rel=1e-9)


def test_discrete_actions() -> None:
    student = Categorical(torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64))  # 1/4, 3/4
    teacher = Categorical(torch.tensor([[0.0, 0.0]], dtype=torch.float64))
    action = torch.tensor([0])
    assert float(action_distance("max_log_prob", student, action)) == pytest.approx(math.log(4.0), rel=1e-9)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(action_distance("kl", student, action, teacher)) == pytest.approx(expected, rel=1e-9)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        vector_distance("real", STUDENT, TEACHER[:1])
    with pytest.raises(ValueError, match="did you mean real"):
        vector_distance("reel", STUDENT, TEACHER)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs the teacher's distribution"):
        action_distance("kl", gaussian(STUDENT, 1.0), TEACHER)
    assert len(get_args(ActionTarget)) == 7
