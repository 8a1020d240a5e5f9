from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from understudy.tools.plot import curve, plot_learning_curves, smooth


def test_smooth_is_a_trailing_mean_that_skips_nan() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([1.0, math.nan, 5.0], 2) == [1.0, 1.0, 5.0]
    assert math.isnan(smooth([math.nan, 1.0], 3)[0])
    with pytest.raises(ValueError, match="window is 0"):
        smooth([1.0], 0)


def test_curve_leaves_out_rows_without_the_metric() -> None:
    rows = [{"step": 1.0, "r": 2.0}, {"step": 2.0, "r": math.nan}, {"step": 3.0}, {"step": 4.0, "r": 5.0}]
    assert curve(rows, "r") == ([1.0, 4.0], [2.0, 5.0])


def write(path: Path, values: list[float | None]) -> Path:
    lines = [{"step": 10 * i, "episode/return": v, "evaluation/return": v} for i, v in enumerate(values)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_draws_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {"one": write(tmp_path / "a.jsonl", [1.0, None, 3.0]), "two": write(tmp_path / "b.jsonl", [None, 2.0, 3.0])}
    output = plot_learning_curves(runs, tmp_path / "new" / "curve.png", title="CartPole-v1")
    assert output.read_bytes().startswith(b"\x89PNG")
    levels = plot_learning_curves(runs, tmp_path / "levels.png", title="CartPole-v1", levels={"optimum": 2.5})
    assert levels.read_bytes() != output.read_bytes()
    with pytest.raises(ValueError, match="'episode/retrun'"):
        plot_learning_curves(runs, tmp_path / "x.png", metric="episode/retrun")


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"understudy-rl\[plot\]"):
        plot_learning_curves({"a": tmp_path}, tmp_path / "x.png")
