"""What policies report of an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np


@dataclass(kw_only=True)
class SequenceSummaryStats:
    """Mean, standard deviation, greatest and least of what each gradient step reported."""

    mean: float
    std: float
    max: float
    min: float

    @classmethod
    def from_sequence(cls, sequence: Sequence[float] | np.ndarray) -> SequenceSummaryStats:
        """Of these numbers; all 0 where there are none."""
        x = np.asarray(sequence, dtype=np.float64) if len(sequence) else np.zeros(1)
        return cls(mean=float(x.mean()), std=float(x.std()), max=float(x.max()), min=float(x.min()))


@dataclass(kw_only=True)
class TrainingStats:
    """What one `update` reports."""

    train_time: float = 0.0
    """Seconds."""
    smoothed_loss: dict[str, float] = field(default_factory=dict)
    """Tianshou's trainer writes its moving averages here."""

    def get_loss_stats_dict(self) -> dict[str, float]:
        """The numbers to log, means of the sequences."""
        found = {x.name: self.__dict__[x.name] for x in fields(self) if x.name not in ("train_time", "smoothed_loss")}
        return {name: x.mean if isinstance(x, SequenceSummaryStats) else x for name, x in found.items()}


@dataclass(kw_only=True)
class ImitationTrainingStats(TrainingStats):
    """Of `ImitationPolicy`."""

    loss: float = 0.0


@dataclass(kw_only=True)
class PPOTrainingStats(TrainingStats):
    """Of `PPOPolicy`: over its gradient steps."""

    loss: SequenceSummaryStats
    clip_loss: SequenceSummaryStats
    vf_loss: SequenceSummaryStats
    ent_loss: SequenceSummaryStats
    """The entropy itself, as there."""
    gradient_steps: int = 0


@dataclass(kw_only=True)
class GailTrainingStats(PPOTrainingStats):
    """Of `GAILPolicy`: PPO's, and the discriminator's over its own gradient steps."""

    disc_loss: SequenceSummaryStats
    acc_pi: SequenceSummaryStats
    """Share of the policy's transitions that the discriminator takes for the policy's."""
    acc_exp: SequenceSummaryStats
    """Share of the expert's transitions that it takes for the expert's."""


def summaries(told: list[tuple[float, ...]], *names: str) -> dict[str, Any]:
    """Of each name the numbers of all gradient steps, which `told` holds step by step."""
    columns = np.array(told).reshape(-1, len(names)).T
    return {name: SequenceSummaryStats.from_sequence(column) for name, column in zip(names, columns)}
