"""Returns and lengths of episodes, against a loop that adds up one step after another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from understudy.ppo.metrics import EpisodeStatistics

CPU = torch.device("cpu")


def finished(statistics: EpisodeStatistics, reward: Tensor, ended: Tensor, valid: Tensor | None = None) -> list[tuple]:
    """(step, environment, return, length) of the episodes that ended."""
    out = statistics.finished(reward, ended, torch.ones_like(ended) if valid is None else valid)
    return [(t, n, float(out[0, t, n]), float(out[1, t, n])) for t, n in (~torch.isnan(out[1])).nonzero().tolist()]


def test_by_hand_over_two_rollouts() -> None:
    statistics = EpisodeStatistics(2, CPU)
    reward = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    ended = torch.tensor([[0, 0], [1, 0], [1, 0], [0, 0]]).bool()
    assert finished(statistics, reward, ended) == [(1, 0, 3.0, 2.0), (2, 0, 3.0, 1.0)]
    assert statistics.running.tolist() == [[4.0, 100.0], [1.0, 4.0]]
    ended = torch.tensor([[0, 1], [0, 0], [0, 0], [1, 1]]).bool()
    assert finished(statistics, reward, ended) == [(0, 1, 110.0, 5.0), (3, 0, 14.0, 5.0), (3, 1, 90.0, 3.0)]
    assert statistics.running.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    statistics = EpisodeStatistics(3, CPU)
    total, length = [0.0] * 3, [0.0] * 3
    for T in (1, 7, 16, 1, 30):
        reward = torch.randn(T, 3, generator=generator)
        ended = torch.rand(T, 3, generator=generator) < 0.2
        valid = torch.rand(T, 3, generator=generator) < 0.8
        expected = []
        for t in range(T):
            for n in range(3):
                total[n] += float(reward[t, n]) * bool(valid[t, n])
                length[n] += bool(valid[t, n])
                if ended[t, n]:
                    if length[n]:  # an episode without one sound step has no return
                        expected.append((t, n, total[n], length[n]))
                    total[n] = length[n] = 0.0
        found = finished(statistics, reward, ended, valid)
        assert [row[:2] for row in found] == [row[:2] for row in expected]
        for a, b in zip(found, expected):
            assert math.isclose(a[2], b[2], abs_tol=1e-6)
            assert a[3] == b[3]
    torch.testing.assert_close(statistics.running, torch.tensor([total, length], dtype=torch.float64))


def test_an_invalid_row_may_hold_nan() -> None:
    statistics = EpisodeStatistics(1, CPU)
    reward = torch.tensor([[1.0], [math.nan], [2.0], [5.0]])
    valid = torch.tensor([[True], [False], [True], [True]])
    ended = torch.tensor([[False], [False], [True], [False]])
    assert finished(statistics, reward, ended, valid) == [(2, 0, 3.0, 2.0)]
    assert statistics.running.tolist() == [[5.0], [1.0]]


def test_sums_do_not_lose_small_rewards_in_long_episodes() -> None:
    statistics = EpisodeStatistics(1, CPU)
    for _ in range(100):
        finished(statistics, torch.full((1000, 1), 0.1), torch.zeros(1000, 1, dtype=torch.bool))
    assert math.isclose(float(statistics.running[0, 0]), 100_000 * float(torch.tensor(0.1)), rel_tol=1e-9)


def test_the_window_forgets() -> None:
    statistics = EpisodeStatistics(1, CPU, window=3)
    assert all(math.isnan(x) for x in statistics.summary().values())
    statistics.record([1.0, 2.0], [10.0, 20.0])
    assert statistics.summary() == {"episode/return": 1.5, "episode/length": 15.0}
    statistics.record([3.0, 4.0], [30.0, 40.0])
    assert statistics.summary() == {"episode/return": 3.0, "episode/length": 30.0}


def test_unfinished_episodes_are_forgotten_at_a_reset() -> None:
    statistics = EpisodeStatistics(1, CPU)
    finished(statistics, torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool))
    statistics.forget_unfinished()
    assert finished(statistics, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)) == [(0, 0, 1.0, 1.0)]
