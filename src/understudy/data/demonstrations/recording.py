"""`Recording`: an open file of whole trajectories, the same for every format; several of them as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from understudy.core.borders import parsing
from understudy.core.check import nearest

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
    success: np.ndarray | None = None
    """Whether each trajectory reached its goal, `[K]` bool; None: the file does not tell."""
    subsets: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Trajectories by the name of a list that the file keeps of them (`train`, `valid`)."""
    kind: str = ""
    """Name of the format."""
    numbers: Sequence[int] = ()
    """Numbers of the trajectories in the file, where some are left out."""

    def number(self, trajectory: int) -> int:
        """The number in the file of a trajectory."""
        return self.numbers[trajectory] if self.numbers else int(trajectory)

    def subset(self, name: str) -> np.ndarray:
        """Trajectories of the file's list `name`. Raises ValueError where it has no such list."""
        if name not in self.subsets:
            has = nearest(name, self.subsets) if self.subsets else "it lists none: leave subset out"
            raise ValueError(f"{self.source} has no list of trajectories {name!r} (subset); {has}")
        return self.subsets[name]

    def select(self, trajectories: np.ndarray) -> Recording:
        """These trajectories only, in this order."""
        chosen = [int(k) for k in trajectories]
        return replace(
            self,
            lengths=self.lengths[chosen],
            success=None if self.success is None else self.success[chosen],
            subsets={},
            numbers=[self.number(k) for k in chosen],
            read=lambda k, name: self.read(chosen[k], name),
            read_observations=lambda k, place: self.read_observations(chosen[k], place),
        )

    def joined(self, names: Sequence[str]) -> Recording:
        """The observations of these names, one after another, as one vector without a name.

        Raises ValueError for a name that the file does not have, and for observations that are no vectors.
        """
        places = {"/".join(place): place for place in self.shapes}
        for name in names:
            if name not in places:
                raise ValueError(f"{self.source} has no observation {name!r}; {nearest(name, places)}")
            if len(shape := self.shapes[places[name]]) > 1:
                raise ValueError(f"{self.source}: observation {name!r} has shape {shape}: only vectors can be joined")
        chosen = [places[name] for name in names]

        def read_observations(trajectory: int, _: Place) -> np.ndarray:
            vectors = [self.read_observations(trajectory, place) for place in chosen]
            return np.concatenate([x.reshape(len(x), -1) for x in vectors], axis=1)

        size = sum(self.shapes[place][0] if self.shapes[place] else 1 for place in chosen)
        return replace(self, shapes={(): (size,)}, read_observations=read_observations)


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
        kind=parts[0].kind,
    )
