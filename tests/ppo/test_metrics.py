from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from understudy.ppo.metrics import explained_variance, ratio_statistics

F64 = torch.float64
NAN = float("nan")
# log-probs -.6 -.9 -2.05 -.1 now, -1 -.5 -2 -.1 then; clip .2
LOG_RATIO = torch.tensor([[0.4, -0.4, -0.05, 0.0]], dtype=F64)
ADVANTAGE = torch.tensor([[1.0, -1.0, 2.0, -0.5]], dtype=F64)
EXPECTED = {
    "kl": 0.04084354,
    "clip_fraction": 0.5,
    "active_clip_fraction": 0.5,
    "ess": 0.92363143,
    "ratio_min": math.exp(-0.4),
    "ratio_max": 1.4918247,
    "ratio_mean": 1.02834354,
}


def check(actual: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert set(actual) == set(expected)
    for name, number in expected.items():
        assert actual[name].shape == (), name
        assert float(actual[name]) == pytest.approx(number, rel=1e-6), name


def test_the_four_sample_vector() -> None:
    check(ratio_statistics(LOG_RATIO, ADVANTAGE, 0.2, 0.2), EXPECTED)


def test_clips_may_be_buffers() -> None:
    check(ratio_statistics(LOG_RATIO, ADVANTAGE, torch.tensor(0.2), torch.tensor(0.2)), EXPECTED)


def test_active_clip_needs_the_sign_of_the_advantage() -> None:
    # both ratios are outside, but a loss that grows is not cut
    out = ratio_statistics(LOG_RATIO, -ADVANTAGE, 0.2, 0.2)
    check(out, {**EXPECTED, "active_clip_fraction": 0.0})
    out = ratio_statistics(LOG_RATIO, ADVANTAGE, 0.2, 0.5)  # exp(.4) = 1.49 is inside now
    check(out, {**EXPECTED, "clip_fraction": 0.25, "active_clip_fraction": 0.25})
    out = ratio_statistics(LOG_RATIO, ADVANTAGE, 0.5, 0.2)
    check(out, {**EXPECTED, "clip_fraction": 0.25, "active_clip_fraction": 0.25})


def test_effective_sample_size_is_taken_per_minibatch() -> None:
    # equal ratios within each row: 1 per row whatever the level; all rows at once would give less
    rows = torch.tensor([[0.3, 0.3], [-0.3, -0.3]], dtype=F64)
    assert float(ratio_statistics(rows, rows, 0.2, 0.2)["ess"]) == pytest.approx(1.0)
    mixed = torch.cat([rows, torch.tensor([[0.0, math.log(3.0)]])])  # (1 + 3)^2 / (2 * (1 + 9)) = .8
    assert float(ratio_statistics(mixed, mixed, 0.2, 0.2)["ess"]) == pytest.approx(2.8 / 3)


def test_effective_sample_size_survives_large_ratios() -> None:
    rows = torch.tensor([[80.0, 80.0, 0.0, 0.0]])  # float32: exp(160) overflows
    assert float(ratio_statistics(rows, rows, 0.2, 0.2)["ess"]) == pytest.approx(0.5)


def test_sequences_are_flattened() -> None:
    log_ratio, advantage = LOG_RATIO.reshape(1, 2, 2), ADVANTAGE.reshape(1, 2, 2)
    check(ratio_statistics(log_ratio, advantage, 0.2, 0.2), EXPECTED)


def test_only_valid_samples_count() -> None:
    log_ratio = torch.cat([LOG_RATIO, torch.full((1, 4), NAN)], dim=1)
    advantage = torch.cat([torch.full((1, 4), NAN), ADVANTAGE], dim=1)
    log_ratio = torch.cat([log_ratio, torch.full((1, 8), 50.0)])
    advantage = torch.cat([advantage.roll(4, 1), torch.full((1, 8), NAN)])
    valid = torch.tensor([[True] * 4 + [False] * 4, [False] * 8])
    check(ratio_statistics(log_ratio, advantage, 0.2, 0.2, valid), EXPECTED)


def test_nothing_valid_is_no_movement() -> None:
    out = ratio_statistics(LOG_RATIO, ADVANTAGE, 0.2, 0.2, torch.zeros(1, 4).bool())
    ones, zeros = ("ratio_min", "ratio_max", "ratio_mean"), ("kl", "clip_fraction", "active_clip_fraction", "ess")
    check(out, dict.fromkeys(ones, 1.0) | dict.fromkeys(zeros, 0.0))


def test_statistics_are_detached() -> None:
    out = ratio_statistics(LOG_RATIO.clone().requires_grad_(), ADVANTAGE, 0.2, 0.2)
    assert not any(x.requires_grad for x in out.values())
    assert not explained_variance(ADVANTAGE.clone().requires_grad_(), ADVANTAGE).requires_grad


def test_ratio_statistics_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 1\)"):
        ratio_statistics(LOG_RATIO, ADVANTAGE.unsqueeze(-1), 0.2, 0.2)
    with pytest.raises(ValueError, match=r"valid \(4,\)"):
        ratio_statistics(LOG_RATIO, ADVANTAGE, 0.2, 0.2, torch.ones(4).bool())
    with pytest.raises(ValueError, match=r"\[M, B\].*unsqueeze"):
        ratio_statistics(LOG_RATIO[0], ADVANTAGE[0], 0.2, 0.2)


def explained(value: list[float], target: list[float], valid: list[bool] | None = None) -> float:
    mask = None if valid is None else torch.tensor(valid)
    out = explained_variance(torch.tensor(value, dtype=F64), torch.tensor(target, dtype=F64), mask)
    assert out.shape == ()
    return float(out)


def test_explained_variance_by_hand() -> None:
    assert explained([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0
    assert explained([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]) == 0.0
    assert explained([8.0, 9.0, 10.0], [1.0, 2.0, 3.0]) == 1.0  # a constant error is not a variance
    assert explained([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(0.0)
    assert explained([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(-3.0)
    # errors 0, 0, 0, 1: variance 3/16; targets 0, 1, 2, 3: variance 5/4
    assert explained([0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0]) == pytest.approx(1 - 0.15)


def test_explained_variance_of_constant_targets_is_zero() -> None:
    assert explained([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]) == 0.0
    for number in (0.1, 1 / 3, 1e6 / 7):  # means of equal numbers are off by an ulp
        target = torch.full((777,), number)
        assert float(explained_variance(torch.randn(777), target)) == 0.0
    assert explained([1.0], [2.0]) == 0.0


def test_explained_variance_of_nearly_constant_targets_is_kept() -> None:
    target = torch.linspace(1000.0, 1000.1, 64)
    assert float(explained_variance(target, target)) == 1.0


def test_explained_variance_with_a_mask() -> None:
    value, target = [0.0, NAN, 1.0, 2.0, 7.0, 2.0], [0.0, 5.0, 1.0, 2.0, NAN, 3.0]
    assert explained(value, target, [True, False, True, True, False, True]) == pytest.approx(0.85)
    assert explained(value, target, [False] * 6) == 0.0


def test_explained_variance_refuses_a_trailing_one() -> None:
    with pytest.raises(ValueError, match=r"value \(3, 1\), target \(3,\)"):
        explained_variance(torch.zeros(3, 1), torch.zeros(3))
