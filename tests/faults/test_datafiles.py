"""A short sample of `benchmarks/faults/datafiles`: damaged demonstrations and motions in every format."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from benchmarks.faults import mutate
from benchmarks.faults.datafiles import cases


def test_damaged_data_files_give_their_content_or_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))  # put back afterwards
    warnings.simplefilter("ignore")
    verdicts = mutate.run_cases(cases(tmp_path), 160, 17, tmp_path)
    assert [verdict for verdict in verdicts if verdict.outcome not in mutate.RIGHT] == []
    assert {verdict.outcome for verdict in verdicts} == set(mutate.RIGHT)
