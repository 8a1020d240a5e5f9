"""Short recordings of scripted experts, for the tests of parts that learn from demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensordict import TensorDict
from torch import Tensor

from understudy.data.demonstrations.write import write_npz
from understudy.tools.record import record_episodes


def steer(obs: TensorDict) -> Tensor:
    """PointMass: accelerate towards the goal and brake."""
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


def record(env: Any, act: Callable[[TensorDict], Tensor], episodes: int, path: Path) -> Path:
    """At least so many whole episodes of `act`, as a file of demonstrations."""
    recorded = record_episodes(env, lambda obs, _: act(obs), episodes, seed=0)
    write_npz(path.with_suffix(".npz"), recorded, {})
    return path.with_suffix(".npz")


@pytest.fixture
def scripted_expert() -> Callable[[TensorDict], Tensor]:
    return steer


@pytest.fixture
def record_expert() -> Callable[..., Path]:
    return record
