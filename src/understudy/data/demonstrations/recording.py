"""`Recording`: an open file of whole trajectories, the same for every format; several of them as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from understudy.core.borders import parsing

Place = tuple[str, ...]
"""Where an observation lies in a file: `()` for a plain array, `("policy", "joints")` under nested names."""

Counts = TypeVar("Counts", np.ndarray, torch.Tensor)

SIGNALS = ("actions", "rewards", "terminations", "truncations")


def first_rows(lengths: Counts) -> Counts:
    """The first row of each of K sequences that lie one after another, `[K]`, from their lengths `[K]`."""
    return lengths.cumsum(0) - lengths


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An open file of K whole trajectories; trajectory k has `lengths[k]` transitions.

    A format's reader makes one of these; `check` compares every number with the environment's spaces.
    """

    source: str
    lengths: np.ndarray  # [K] int64
    shapes: dict[Place, tuple[int, ...]]  # of one observation
    metadata: dict[str, Any]  # about the recording: "env", "score", "seed", ...
    signals: Set[str]  # those of `SIGNALS` that the file holds
    read: Callable[[int, str], np.ndarray]
    """One of the signals of a trajectory, `[T, ...]`."""
    read_observations: Callable[[int, Place], np.ndarray]
    """Observations of a trajectory, `[T + 1, ...]`, the final one included."""
    remarks: Sequence[str] = ()
    """What the file lacks and how the gap was filled, each a sentence to log."""
    raw_actions: bool = False
    """Whether the actions are a policy's, before they were bounded and scaled for the environment."""


def read_metadata(source: str, text: str | bytes) -> dict[str, Any]:
    """Metadata from JSON text. Raises ValueError unless it is a dictionary, whose `env` is a name."""
    with parsing(f"{source}: the metadata", "remove them, or write them as JSON text"):
        metadata = json.loads(text)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("env", ""), str):
            raise ValueError("expected a dictionary, whose env is text")
    return metadata


def chain(source: str, parts: Sequence[Recording]) -> Recording:
    """The trajectories of several recordings, one after another. Raises ValueError where their observations differ."""
    for part in parts[1:]:
        if part.shapes != parts[0].shapes:
            raise ValueError(f"{part.source} has observations {part.shapes}, {parts[0].source} has {parts[0].shapes}")
    places = [(part, k) for part in parts for k in range(len(part.lengths))]

    def read(trajectory: int, name: str) -> np.ndarray:
        part, k = places[trajectory]
        return part.read(k, name)

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        part, k = places[trajectory]
        return part.read_observations(k, place)

    return Recording(
        source=source,
        lengths=np.concatenate([part.lengths for part in parts]),
        shapes=parts[0].shapes,
        metadata=dict(parts[0].metadata),
        signals=set.intersection(*(set(part.signals) for part in parts)),
        read=read,
        read_observations=read_observations,
        remarks=[f"{part.source} {remark}" for part in parts for remark in part.remarks],
    )
