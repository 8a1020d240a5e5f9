"""The newest data of several rollouts (DAgger's aggregation), drawn from uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict


class RolloutMemory:
    """A ring of `capacity` units: the newest overwrite the oldest, and only what was written is ever drawn.

    A unit is what is drawn as a whole: a transition, or one environment's share of a rollout.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.cursor, self.written = capacity, 0, 0
        self.data: TensorDict | None = None  # [capacity], allocated like the first units

    def add(self, units: TensorDict) -> None:
        """Copy units `[U]`, oldest first. Raises ValueError if there are more than the capacity."""
        count = units.batch_size[0]
        if count > self.capacity:
            raise ValueError(f"{count} units do not fit a memory of {self.capacity}")
        if self.data is None:
            empty: Any = torch.zeros_like(units[:1])
            self.data = empty.expand(self.capacity).clone()
        assert self.data is not None
        places = (torch.arange(count, device=units.device) + self.cursor) % self.capacity
        self.data[places] = units
        self.cursor = (self.cursor + count) % self.capacity
        self.written = min(self.written + count, self.capacity)

    def sample(self, count: int, generator: torch.Generator) -> TensorDict:
        """`count` units `[count]`, uniformly, with replacement. Raises ValueError if there is none."""
        if self.data is None:
            raise ValueError("the memory is empty: add a rollout first")
        rows = torch.randint(self.written, (count,), generator=generator, device=generator.device)
        drawn: TensorDict = self.data[rows]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, for a checkpoint."""
        data = None if self.data is None else self.data.to_dict()
        return {"data": data, "cursor": self.cursor, "written": self.written}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        data = state["data"]
        self.data = None if data is None else TensorDict(data, batch_size=[self.capacity], device=device)
        self.cursor, self.written = state["cursor"], state["written"]
