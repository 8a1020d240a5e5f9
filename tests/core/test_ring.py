"""The ring of the newest data."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from understudy.core.ring import Ring


def units(first: int, count: int) -> TensorDict:
    x = torch.arange(first, first + count)
    return TensorDict({"x": x, "nested": {"y": x.float().unsqueeze(-1)}}, batch_size=[count])


def test_the_newest_overwrite_the_oldest() -> None:
    memory = Ring(10)
    for rollout in range(3):  # st_rl's example: T = 4, ratio 2.5, three rollouts
        memory.add(units(4 * rollout, 4))
    assert memory.data is not None
    assert memory.data["x"].tolist() == [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert torch.equal(memory.data["nested", "y"].squeeze(-1).long(), memory.data["x"])


def test_only_what_was_written_is_drawn_and_all_of_it() -> None:
    memory, generator = Ring(10), torch.Generator().manual_seed(0)
    memory.add(units(5, 4))
    drawn = memory.sample(4000, generator)
    counts = torch.bincount(drawn["x"], minlength=9)
    assert counts[:5].sum() == 0
    assert (counts[5:] - 1000).abs().max() < 120  # 4 standard deviations of a binomial (4000, 1/4)
    assert drawn["nested", "y"].shape == (4000, 1)


def test_state_survives() -> None:
    memory, other = Ring(5), Ring(5)
    memory.add(units(0, 3))
    other.load_state_dict(memory.state_dict(), torch.device("cpu"))
    for m in (memory, other):
        m.add(units(3, 3))
    assert memory.data is not None
    assert other.data is not None
    assert torch.equal(memory.data["x"], other.data["x"])
    fresh = Ring(5)
    fresh.load_state_dict(Ring(5).state_dict(), torch.device("cpu"))
    assert fresh.data is None


def test_what_it_refuses() -> None:
    memory = Ring(2)
    with pytest.raises(ValueError, match="empty"):
        memory.sample(1, torch.Generator())
    with pytest.raises(ValueError, match="3 units do not fit a ring of 2"):
        memory.add(units(0, 3))
