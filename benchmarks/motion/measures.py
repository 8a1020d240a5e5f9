"""How alike two motions are, and how a gait steps: the numbers behind tables and pictures of motion priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from understudy.data.motions.fields import Array

_MOST_ROWS = 2000  # of each side; the error of the energy distance falls with the root of it, the work grows squared


# ------------------------------------------------------------------------------------------- distributions


def energy_distance(a: Array, b: Array) -> float:
    """Energy distance of two samples, rows `[n, D]` and `[m, D]`; at least 0, and 0 only for equal distributions.

    2 E|x - y| - E|x - x'| - E|y - y'|, means over all pairs of rows (Székely & Rizzo 2013, J. Stat. Plan. Inference
    143, eq. 5). It asks for no density and no shape, and works with few rows. Raises ValueError for other shapes.
    """
    _check_pair(a, b)
    return 2.0 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


def frechet_distance(a: Array, b: Array) -> float:
    """Fréchet distance of the normal distributions fitted to rows `[n, D]` and `[m, D]`, squared as in FID.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), means m and covariances S (Dowson & Landau 1982;
    Heusel et al. 2017, arXiv:1706.08500, eq. 6). Raises ValueError for other shapes and fewer than two rows.
    """
    _check_pair(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least 2 rows, got {len(a)} and {len(b)}")
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    # S_a S_b has the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0.0, None)).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)


class MotionDistance(NamedTuple):
    """How far a motion is from a reference, in standard deviations of the reference's features."""

    energy: float
    frechet: float


def motion_distance(own: Sequence[Array], reference: Sequence[Array], window: int = 2, seed: int = 0) -> MotionDistance:
    """Distances between the windows of H frames in episodes `own` and in clips `reference`, arrays `[F, D]`.

    Every feature is divided by its standard deviation in the reference. At most 2,000 windows of each side, drawn
    with `seed`, are compared. Raises ValueError for no windows, other shapes, and features that the reference never
    changes, whose distance has no unit.
    """
    scale = np.concatenate(list(reference)).std(0)
    constant = np.flatnonzero(scale < 1e-8)
    if len(constant):
        raise ValueError(f"feature {constant[0]} is constant in the reference: leave it out, its distance has no unit")
    rng = np.random.default_rng(seed)
    rows = [_drawn(np.concatenate([windows(x / scale, window) for x in side]), rng) for side in (own, reference)]
    return MotionDistance(energy_distance(*rows), frechet_distance(*rows))


def windows(frames: Array, length: int) -> Array:
    """All windows of `length` = H frames in frames `[F, D]`, flattened, oldest frame first: `[F - H + 1, H D]`."""
    if frames.ndim != 2:
        raise ValueError(f"frames must be [F, D], got {frames.shape}")
    if not 1 <= length <= len(frames):
        raise ValueError(f"{len(frames)} frames have no window of {length}")
    return np.concatenate([frames[k : len(frames) - length + 1 + k] for k in range(length)], axis=1)


def _drawn(rows: Array, rng: np.random.Generator) -> Array:
    return rows if len(rows) <= _MOST_ROWS else rows[rng.choice(len(rows), _MOST_ROWS, replace=False)]


def _mean_distance(a: Array, b: Array) -> float:
    # row by row: |a|^2 + |b|^2 - 2 a b would lose small distances to rounding
    return float(np.mean([np.linalg.norm(b - row, axis=1).mean() for row in a]))


def _check_pair(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise ValueError(f"compare rows [n, D] with rows [m, D], got {a.shape} and {b.shape}")


# ---------------------------------------------------------------------------------------------------- gaits


def gait_frequency(frames: Array, frame_time: float, lowest: float = 0.0) -> float:
    """Frequency (Hz) of the gait in frames `[F, D]`: where the power P of all columns together, Hann-windowed, is most.

    The frequency f with the largest P(f) + P(2 f) / 2, as the legs of one cycle often move a body twice (subharmonic
    summation, Hermes 1988). Columns count equally (each divided by its standard deviation). The resolution is
    1 / (F frame_time). Power below `lowest` (Hz) is no gait: a robot that is told to go faster and slower changes its
    posture with that.
    """
    if frames.ndim != 2 or len(frames) < 8:
        raise ValueError(f"a frequency needs frames [F, D], F at least 8, got {frames.shape}")
    centred = frames - frames.mean(0)
    scaled = centred / np.maximum(frames.std(0), 1e-8)
    power = np.square(np.abs(np.fft.rfft(scaled * np.hanning(len(frames))[:, None], axis=0))).sum(1)
    power[:2] = 0.0  # the window spreads the mean over the first bins
    power[np.fft.rfftfreq(len(frames), frame_time) < lowest] = 0.0
    twice = np.pad(power, (1, len(power) + 2))  # bins 2 k - 1 to 2 k + 1, as 2 f may lie beside twice the bin of f
    octave = np.maximum.reduce([twice[k : k + 2 * len(power) : 2] for k in range(3)])
    score = np.where(power > 0.0, power + 0.5 * octave, 0.0)
    return float(score.argmax() / (len(frames) * frame_time))


def gait_phase(signal: Array, frame_time: float, frequency: float) -> Array:
    """Where in the gait cycle each frame is, `[F]` in [0, 1): the phase of a joint's swing `[F]` near `frequency`.

    The angle of the analytic signal (Gabor 1946) within half an octave's reach, [f / 2, 3 f / 2]: 0 where the joint's
    angle is largest. It follows a gait whose speed varies, and tells phases finer than the frames.
    """
    if signal.ndim != 1 or not frequency > 0.0:
        raise ValueError(f"a phase needs one signal [F] and a positive frequency, got {signal.shape} and {frequency}")
    spectrum = np.fft.fft(signal - signal.mean())
    hertz = np.fft.fftfreq(len(signal), frame_time)
    near = (hertz > 0.5 * frequency) & (hertz < 1.5 * frequency)  # positive frequencies only: the analytic signal
    angle = np.angle(np.fft.ifft(np.where(near, spectrum, 0.0)))
    return np.asarray((angle / (2.0 * np.pi)) % 1.0, dtype=np.float64)


def gait_cycle(frames: Array, phase: Array, bins: int = 20) -> tuple[Array, Array]:
    """Mean and standard deviation of frames `[F, D]` in each of `bins` equal parts of the cycle, `[bins, D]` both.

    NaN in a part that no frame falls into.
    """
    if phase.shape != frames.shape[:1]:
        raise ValueError(f"phases are {phase.shape}, frames {frames.shape}: one phase for each frame")
    place = np.minimum((phase * bins).astype(np.int64), bins - 1)
    mean, deviation = np.full((2, bins, frames.shape[1]), np.nan)
    for k in np.unique(place):
        mean[k], deviation[k] = frames[place == k].mean(0), frames[place == k].std(0)
    return mean, deviation


class ContactTiming(NamedTuple):
    """When feet stand (Hildebrand 1965, Science 150): of each foot, in shares of a stride."""

    duty_factor: Array  # [feet], share of the time on the ground
    phase: Array  # [feet], touch-down after that of foot 0, in [0, 1); NaN for a foot that never lands in a stride


def contact_timing(episodes: Sequence[NDArray[np.bool_]], bounce: int = 0) -> ContactTiming:
    """Duty factor and phase of each foot from the contacts `[F, feet]` of every episode.

    A foot that leaves the ground for up to `bounce` frames bounces and has not stepped. A stride goes from one
    touch-down of foot 0 to its next; those more than twice as long as the median are pauses and left out. A foot's
    phase is the circular mean of the shares of a stride at which it lands. Raises ValueError for other shapes.
    """
    if not episodes or any(x.ndim != 2 or x.shape[1] != episodes[0].shape[-1] for x in episodes):
        raise ValueError(f"contacts must be [F, feet] in every episode, got {[x.shape for x in episodes]}")
    landings = [[_landings(foot, bounce) for foot in x.T] for x in episodes]  # [episodes][feet]
    strides = np.concatenate([np.diff(feet[0]) for feet in landings])
    longest = 2.0 * np.median(strides) if len(strides) else 0.0
    shares = [
        np.concatenate([_shares_of_stride(feet[0], feet[k], longest) for feet in landings])
        for k in range(episodes[0].shape[1])
    ]
    phase = np.array([_circular_mean(x) % 1.0 for x in shares])
    return ContactTiming(np.concatenate(list(episodes)).mean(0), phase)


def _landings(contact: NDArray[np.bool_], bounce: int) -> NDArray[np.int64]:
    """Frames before which a foot `[F]` lands, after more than `bounce` frames in the air."""
    lands, lifts = (np.flatnonzero(x) for x in (contact[1:] & ~contact[:-1], contact[:-1] & ~contact[1:]))
    lifts = np.concatenate(([-1 - bounce], lifts))  # one that begins in the air steps
    return lands[lands - lifts[np.searchsorted(lifts, lands) - 1] > bounce]


def _shares_of_stride(first: NDArray[np.int64], other: NDArray[np.int64], longest: float) -> Array:
    """Where in the strides between the frames `first` the frames `other` lie, in [0, 1)."""
    place = np.searchsorted(first, other, side="right") - 1
    inside = (place >= 0) & (place < len(first) - 1)
    place, other = place[inside], other[inside]
    stride = first[place + 1] - first[place]
    return np.asarray((other - first[place]) / stride)[stride <= longest]


def _circular_mean(phase: Array) -> float:
    if not len(phase):
        return float("nan")
    return float(np.angle(np.exp(2j * np.pi * phase).mean()) / (2.0 * np.pi))
