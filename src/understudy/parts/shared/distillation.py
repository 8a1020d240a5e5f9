"""Distances between a student's and a teacher's actions or latents: pure, per row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from understudy.core.check import fit
from understudy.nn.distributions import Distribution

MeanTarget = Literal["real", "l1", "mse_sum", "tanh", "scaled_tanh"]
"""Distances of two vectors."""

ActionTarget = Literal["real", "l1", "mse_sum", "tanh", "scaled_tanh", "kl", "max_log_prob"]
"""Distances of a student's action distribution and a teacher's action or distribution."""

_EDGE = 1e-6  # vectors in (-1, 1) are kept this far from the ends, where logarithms are finite


def vector_distance(kind: MeanTarget, student: Tensor, teacher: Tensor) -> Tensor:
    """The distance `[...]` of m = student and y = teacher, `[..., D]` each (st_rl's `distill_target`).

        real ||m - y||_2     l1 ||m - y||_1     mse_sum ||m - y||_2^2
        tanh 2 mean_d BCE((m + 1) / 2, (y + 1) / 2)     scaled_tanh that times ||m - y||_1 / D

    The last two are for vectors in [-1, 1] and clamp to that. BCE(p, q) = -q log p - (1 - q) log(1 - p). Raises
    ValueError if the shapes differ or the kind is unknown.
    """
    fit(MeanTarget, kind, "distance")
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape")
    difference = student - teacher
    if kind == "real":
        return torch.linalg.vector_norm(difference, dim=-1)
    if kind == "l1":
        return difference.abs().sum(-1)
    if kind == "mse_sum":
        return difference.square().sum(-1)
    entropy = 2.0 * _cross_entropy(student, teacher).mean(-1)
    return entropy if kind == "tanh" else entropy * difference.abs().mean(-1)


def action_distance(
    kind: ActionTarget, student: Distribution, action: Tensor, teacher: Distribution | None = None
) -> Tensor:
    """The distance `[...]` between a student's distribution and the teacher's action `[..., D]` or distribution.

        max_log_prob -log pi(y)     kl KL(teacher || student)     others: `vector_distance` from the student's mode

    Raises ValueError for "kl" without the teacher's distribution.
    """
    if kind == "max_log_prob":
        return -student.log_prob(action)
    if kind == "kl":
        if teacher is None:
            raise ValueError("the target 'kl' needs the teacher's distribution")
        return teacher.kl(student)
    return vector_distance(kind, student.mode(), action)


def before_tanh(student: Tensor, teacher: Tensor) -> Tensor:
    """||atanh(m) - atanh(y)||_1 `[...]` of vectors in [-1, 1], finite at the ends too."""
    return (_inside(student).atanh() - _inside(teacher).atanh()).abs().sum(-1)


def _cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """BCE `[..., D]`; written out: torch's asserts on the device."""
    p, q = (_inside(student) + 1.0) / 2.0, (teacher.clamp(-1.0, 1.0) + 1.0) / 2.0
    return -(q * p.log() + (1.0 - q) * torch.log1p(-p))


def _inside(x: Tensor) -> Tensor:
    return x.clamp(_EDGE - 1.0, 1.0 - _EDGE)
