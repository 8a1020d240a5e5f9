"""The scripts before and after of docs/coming-from.md run: ours always, others' where their library is installed."""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "coming_from"
NEEDS = {"sb3": "stable_baselines3", "skrl": "skrl", "imitation": "imitation"}


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"coming_from_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("origin", NEEDS)
def test_a_script_trains_and_scores(
    origin: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if when == "before":
        pytest.importorskip(NEEDS[origin])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = script(f"{origin}_{when}").main(4096, 2)
    scores = found if isinstance(found, tuple) else (found,)
    assert all(math.isfinite(score) for score in scores)
    if origin == "imitation":
        assert scores[0] > 30  # five episodes of the expert are much, and 9 to 20 is chance
    assert f"{scores[-1]:.0f}" in capsys.readouterr().out
