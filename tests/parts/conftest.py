"""Short recordings of scripted experts, for the tests of parts that learn from demonstrations."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.parts.harness import record, steer

from understudy.tasks.point_mass import PointMass


@pytest.fixture
def point_mass(tmp_path: Path) -> Path:
    """Eight episodes on PointMass."""
    return record(PointMass(4, max_episode_steps=30), steer, 8, tmp_path / "point_mass.npz")
