"""What an evaluation found: part of a run, and of its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Undiscounted returns of whole episodes, in the task's own reward units."""

    mean_return: float
    std_return: float  # population standard deviation over episodes
    min_return: float
    max_return: float
    mean_length: float  # steps
    episodes: int
    deterministic: bool
    seed: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    broken_steps: int = 0  # steps with a NaN, infinite or absurd number, which counts as 0
    video: str | None = None  # path of the film, if one was made
    video_error: str | None = None  # why filming failed, if it did

    @classmethod
    def of(cls, episodes: Sequence[tuple[float, int]], deterministic: bool, seed: int) -> EvaluationResult:
        """The numbers of these episodes, each (return, length)."""
        returns, lengths = zip(*episodes)
        return cls(
            mean_return=float(np.mean(returns)),
            std_return=float(np.std(returns)),
            min_return=min(returns),
            max_return=max(returns),
            mean_length=float(np.mean(lengths)),
            episodes=len(returns),
            deterministic=deterministic,
            seed=seed,
            returns=returns,
            lengths=lengths,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; non-finite numbers as None."""
        plain = dataclasses.asdict(self)
        for name, value in plain.items():
            if isinstance(value, tuple):
                plain[name] = [x if math.isfinite(x) else None for x in value]
            elif isinstance(value, float) and not math.isfinite(value):
                plain[name] = None
        return plain

    def sentence(self) -> str:
        """One line for people."""
        how = "deterministic" if self.deterministic else "sampled"
        broken = f"; {self.broken_steps} steps held broken numbers, taken for 0" if self.broken_steps else ""
        return (
            f"return {self.mean_return:.1f} ± {self.std_return:.1f} "
            f"({self.episodes} {how} episodes of {self.mean_length:.0f} steps on average{broken})"
        )

    def metrics(self) -> dict[str, float]:
        """The numbers that a training logs."""
        return {
            "evaluation/return": self.mean_return,
            "evaluation/return_std": self.std_return,
            "evaluation/length": self.mean_length,
        }
