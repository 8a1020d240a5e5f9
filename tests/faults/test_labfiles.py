"""A short sample of `benchmarks/faults/labfiles`: damaged demonstrations of labs' programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.faults import mutate
from benchmarks.faults.labfiles import cases


def test_damaged_files_of_labs_give_their_content_or_one_error(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    verdicts = mutate.run_cases(cases(tmp_path), 70, 17, tmp_path)
    assert [verdict for verdict in verdicts if verdict.outcome not in mutate.RIGHT] == []
    assert {verdict.outcome for verdict in verdicts} == set(mutate.RIGHT)
