"""The training script of examples/coming_from around rsl_rl's runner, and the same around ours."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "coming_from"


@pytest.mark.filterwarnings("ignore:the environment does not give final observations")
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_script_trains_and_plays(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if when == "before":
        pytest.importorskip("rsl_rl.runners")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert 0.0 < importlib.import_module(f"rsl_rl_{when}").main(3, 16) < 1.0


def test_one_import_is_all_that_differs() -> None:
    texts = [(FOLDER / f"rsl_rl_{name}.py").read_text() for name in ("before", "after")]
    before, after = ([line for line in text.splitlines() if line] for text in texts)
    body = before.index("def main(iterations: int = 40, num_envs: int = 64) -> float:")
    assert before[body:] == after[after.index(before[body]) :]
    assert "from understudy.interop.rsl_rl import Runner as OnPolicyRunner" in after
