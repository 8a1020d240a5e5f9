"""A sample of the campaign of broken numbers (benchmarks/faults/injections.py)."""

from __future__ import annotations

import pytest
from benchmarks.faults.injections import VALUES, trial, with_parts


@pytest.mark.parametrize("seed", range(1000, 1008))
def test_trainings_hold(seed: int) -> None:
    outcome = trial(seed, "parts")
    assert not outcome.finding, outcome


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_every_kind_of_number_is_named(where: str) -> None:
    for i, value in enumerate(VALUES):
        outcome = with_parts((), "none", where, value, seed=i, iterations=6)
        assert outcome.injected
        assert not outcome.finding, outcome
