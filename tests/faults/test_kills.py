"""A short part of `benchmarks.faults.kills`."""

from __future__ import annotations

import random

import pytest
from benchmarks.faults import kills


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> kills.Campaign:
    return kills.Campaign(tmp_path_factory.mktemp("kills"), ["dagger"])


@pytest.mark.parametrize("what", ["SIGKILL twice", "full disk", "folder deleted"])
def test_a_disturbed_training_goes_on(what: str, campaign: kills.Campaign) -> None:
    moment, complaint = campaign.judge("dagger", what, random.Random(f"short/{what}"))
    assert complaint == "", moment
