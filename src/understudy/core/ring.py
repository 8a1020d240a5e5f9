"""Keep the newest data and draw from them uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict


class Ring:
    """A ring of `capacity` units, drawn as a whole: the newest overwrite the oldest."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.cursor, self.written = capacity, 0, 0
        self.data: TensorDict | None = None  # [capacity], allocated with the first units' names, shapes and types

    def add(self, units: TensorDict) -> None:
        """Copy units `[U]`, oldest first. Raises ValueError if there are more than the capacity."""
        count = units.batch_size[0]
        if count > self.capacity:
            raise ValueError(f"{count} units do not fit a ring of {self.capacity}: choose among them first")
        if self.data is None:
            empty: Any = torch.zeros_like(units[:1])
            self.data = empty.expand(self.capacity).clone()
        assert self.data is not None
        places = (torch.arange(count, device=units.device) + self.cursor) % self.capacity
        self.data[places] = units
        self.cursor = (self.cursor + count) % self.capacity
        self.written = min(self.written + count, self.capacity)

    def sample(self, count: int, generator: torch.Generator) -> TensorDict:
        """`count` written units `[count]`, uniformly, with replacement. Raises ValueError for an empty ring."""
        if self.data is None:
            raise ValueError("the ring is empty: add units first")
        rows = torch.randint(self.written, (count,), generator=generator, device=generator.device)
        drawn: TensorDict = self.data[rows]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, for a checkpoint."""
        data = None if self.data is None else self.data.to_dict()
        return {"data": data, "cursor": self.cursor, "written": self.written}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore the result of `state_dict`. Raises ValueError for places outside of the ring."""
        if not (0 <= state["cursor"] < self.capacity and 0 <= state["written"] <= self.capacity):
            raise ValueError(f"a ring of {self.capacity} units cannot be at unit {state['cursor']}")
        data = state["data"]
        self.data = None if data is None else TensorDict(data, batch_size=[self.capacity], device=device)
        self.cursor, self.written = state["cursor"], state["written"]
