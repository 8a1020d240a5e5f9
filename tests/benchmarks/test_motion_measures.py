"""Measures of motions against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.motion.measures import (
    contact_timing,
    energy_distance,
    frechet_distance,
    gait_cycle,
    gait_frequency,
    gait_phase,
    motion_distance,
    windows,
)


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_energy_distance() -> None:
    # 2 E|x-y| = 2 (1 + 1)/2, E|x-x'| = (0 + 2 + 2 + 0)/4, E|y-y'| = 0
    assert energy_distance(column(0.0, 2.0), column(1.0)) == pytest.approx(1.0, rel=1e-12)
    # 2 (3 + 4 + 1 + 2)/4 - (0 + 2 + 2 + 0)/4 - (0 + 1 + 1 + 0)/4
    assert energy_distance(column(0.0, 2.0), column(3.0, 4.0)) == pytest.approx(3.5, rel=1e-12)
    # in two dimensions lengths are Euclidean: 2 * 5
    assert energy_distance(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])) == pytest.approx(10.0, rel=1e-12)
    assert energy_distance(column(1.0, 2.0, 5.0), column(5.0, 1.0, 2.0)) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance() -> None:
    # means 1 and 4; variances 2 and 8 (n - 1): 9 + 2 + 8 - 2 sqrt(16)
    assert frechet_distance(column(0.0, 2.0), column(2.0, 6.0)) == pytest.approx(11.0, rel=1e-12)
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])  # variances 2/3 and 8/3, uncorrelated
    turned = rows[:, ::-1]  # 2 (2/3 + 8/3) - 2 (sqrt(2/3 * 8/3) + sqrt(8/3 * 2/3)), means 0
    assert frechet_distance(rows, turned) == pytest.approx(20 / 3 - 16 / 3, rel=1e-12)
    # covariances that do not commute; of a 2 x 2 root tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)), S_a S_b = [2 1; 2 2]
    a, b = np.diag([1.0, 2.0]), np.array([[2.0, 1.0], [1.0, 1.0]])
    distance = frechet_distance(with_covariance(a), with_covariance(b))
    assert distance == pytest.approx(3.0 + 3.0 - 2.0 * np.sqrt(4.0 + 2.0 * np.sqrt(2.0)), rel=1e-9)


def with_covariance(cov: np.ndarray) -> np.ndarray:
    """Rows of mean 0 whose covariance is exactly `cov`."""
    rows = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * np.sqrt(3 / 4)
    return rows @ np.linalg.cholesky(cov).T


def test_motion_distance_counts_in_deviations_of_the_reference() -> None:
    reference = [np.array([[0.0, 0.0], [2.0, 10.0]])]  # deviations 1 and 5
    own = [np.array([[1.0, 5.0], [3.0, 15.0]])]
    # windows of one frame: (0, 0), (2, 2) against (1, 1), (3, 3)
    r = np.sqrt(2.0)
    assert motion_distance(own, reference, window=1).energy == pytest.approx(2 * (r + 3 * r + r + r) / 4 - r - r)
    assert motion_distance(own, reference, window=1).frechet == pytest.approx(2.0)  # the means alone differ
    rng = np.random.default_rng(0)
    clip = rng.normal(size=(5000, 3))
    assert motion_distance([clip], [clip * 1.0], seed=3).energy < 0.02  # two draws of one distribution
    assert motion_distance([clip + 1.0], [clip]).energy > 0.5
    # the same frames in another order: only windows see it
    smooth = np.sin(np.linspace(0.0, 40.0, 600))[:, None]
    shuffled = rng.permutation(smooth)
    assert motion_distance([shuffled], [smooth], window=1).energy == pytest.approx(0.0, abs=1e-9)
    assert motion_distance([shuffled], [smooth], window=2).energy > 0.1


def test_windows_stay_inside_an_episode() -> None:
    frames = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]])
    assert windows(frames, 2).tolist() == [[0.0, 10.0, 1.0, 11.0], [1.0, 11.0, 2.0, 12.0]]
    with pytest.raises(ValueError, match="3 frames have no window of 4"):
        windows(frames, 4)


def test_frequency_and_phase_of_a_swing() -> None:
    t = np.arange(1000) * 0.05
    swing = np.stack((2.0 + np.cos(2 * np.pi * 2.5 * t), 0.2 * np.sin(2 * np.pi * 2.5 * t)), axis=1)
    assert gait_frequency(swing, 0.05) == pytest.approx(2.5, abs=0.02)
    drifts = swing + 3.0 * np.sin(2 * np.pi * 0.1 * t)[:, None]  # a posture that follows the joystick
    assert gait_frequency(drifts, 0.05) == pytest.approx(0.1, abs=0.02)
    assert gait_frequency(drifts, 0.05, lowest=0.8) == pytest.approx(2.5, abs=0.02)
    phase = gait_phase(swing[:, 0], 0.05, 2.5)
    assert phase[:4] == pytest.approx([0.0, 0.125, 0.25, 0.375], abs=1e-9)  # 0 at the largest angle
    mean, deviation = gait_cycle(swing[:, :1], (phase + 1e-6) % 1.0, bins=8)  # one frame in every part of the cycle
    assert mean[:, 0] == pytest.approx(2.0 + np.cos(2 * np.pi * np.arange(8) / 8))
    assert deviation == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(gait_cycle(swing[:2], phase[:2], bins=8)[0][5]).all()


def test_a_movement_at_twice_the_gait_s_frequency_is_no_gait() -> None:
    t = np.arange(1000) * 0.05
    step, double = np.sin(2 * np.pi * 2.33 * t), np.sin(2 * np.pi * 4.66 * t)
    for share, expected in ((1.1, 2.33), (2.0, 4.66)):  # powers 1.21 and 4 times the gait's own: P(f) + P(2 f) / 2
        assert gait_frequency((step + share * double)[:, None], 0.05) == pytest.approx(expected, abs=0.02)
    assert gait_frequency(double[:, None], 0.05) == pytest.approx(4.66, abs=0.02)


def test_contact_timing_of_a_trot() -> None:
    cycle = np.arange(20) / 20.0
    stands = [np.tile((cycle - start) % 1.0 < duty - 1e-9, 3) for start, duty in ((0.1, 0.6), (0.6, 0.6), (0.95, 0.5))]
    contact = np.stack(stands, axis=1)
    timing = contact_timing([contact])
    assert timing.duty_factor == pytest.approx([0.6, 0.6, 0.5])
    assert timing.phase == pytest.approx([0.0, 0.5, 0.85])
    slower = contact.repeat(2, axis=0)  # the same gait at half the speed
    assert contact_timing([contact, slower]).phase == pytest.approx([0.0, 0.5, 0.85])
    # a pause, in which foot 1 lands late, is no stride
    pause = np.concatenate((contact[:50], np.ones((60, 3), dtype=bool), contact[50:], contact))
    pause[70:90, 1] = False
    assert contact_timing([pause]).phase == pytest.approx([0.0, 0.5, 0.85])
    # foot 0 leaves the ground for two frames in each stance
    bounces = contact.copy()
    bounces[[6, 7, 26, 27, 46, 47], 0] = False
    assert contact_timing([bounces], bounce=2).phase == pytest.approx([0.0, 0.5, 0.85])
    assert contact_timing([bounces], bounce=1).phase[1] != pytest.approx(0.5)
    never = contact_timing([np.stack((stands[0], np.zeros(60, dtype=bool)), axis=1)])
    assert never.duty_factor[1] == 0.0
    assert np.isnan(never.phase[1])
    assert np.isnan(contact_timing([np.ones((9, 2), dtype=bool)]).phase).all()


def test_what_cannot_be_measured() -> None:
    a = np.zeros((4, 2))
    for wrong in (np.zeros((4, 3)), np.zeros(4), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="compare rows"):
            energy_distance(a, wrong)
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(a, a[:1])
    with pytest.raises(ValueError, match="feature 1 is constant in the reference"):
        motion_distance([a], [np.array([[0.0, 1.0], [1.0, 1.0]])])
    with pytest.raises(ValueError, match="a frequency needs frames"):
        gait_frequency(a, 0.05)
    with pytest.raises(ValueError, match="a positive frequency"):
        gait_phase(a, 0.05, 1.0)
    with pytest.raises(ValueError, match="one phase for each frame"):
        gait_cycle(a, np.zeros(3))
    for wrong in ([], [np.zeros(4, dtype=bool)], [np.zeros((4, 2), dtype=bool), np.zeros((4, 3), dtype=bool)]):
        with pytest.raises(ValueError, match=r"contacts must be \[F, feet\]"):
            contact_timing(wrong)
