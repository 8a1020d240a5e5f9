from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy.tools.plot import curve, group_seeds, plot_learning_curves, smooth


def test_smooth_is_a_trailing_mean_that_skips_nan() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([1.0, math.nan, 5.0], 2) == [1.0, 1.0, 5.0]
    assert math.isnan(smooth([math.nan, 1.0], 3)[0])
    with pytest.raises(ValueError, match="window is 0"):
        smooth([1.0], 0)


def test_curve_leaves_out_rows_without_the_metric() -> None:
    rows = [{"step": 1.0, "r": 2.0}, {"step": 2.0, "r": math.nan}, {"step": 3.0}, {"step": 4.0, "r": 5.0}]
    assert curve(rows, "r") == ([1.0, 4.0], [2.0, 5.0], False)


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
    with pytest.raises(ValueError, match="'episode/retrun'; did you mean episode/return") as wrong:
        plot_learning_curves(runs, tmp_path / "x.png", metric="episode/retrun")
    assert str(wrong.value).endswith("There is: episode/return, evaluation/return")


class Drawn:
    """What was drawn into the last figure, instead of the picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        figures = pytest.importorskip("matplotlib.figure")
        monkeypatch.setattr(figures.Figure, "savefig", lambda figure, _: vars(self).update(figure=figure))

    @property
    def axes(self) -> Any:
        (axes,) = self.figure.axes
        return axes

    @property
    def legend(self) -> list[str]:
        return [text.get_text() for text in self.figure.legends[0].get_texts()]


def rows_of(path: Path, rows: list[dict[str, float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluations_are_drawn_beside_returns_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    path = rows_of(
        tmp_path / "a.jsonl",
        [{"step": s, "ppo/entropy": 0.1, "episode/return": 1.0, "evaluation/return": 500.0} for s in range(3)],
    )
    plot_learning_curves({"a": path}, tmp_path / "x.png", metric="ppo/entropy")
    assert max(max(line.get_ydata()) for line in drawn.axes.lines) == pytest.approx(0.1)
    assert drawn.axes.get_ylabel().startswith("ppo/entropy")
    assert drawn.legend == ["a"]
    plot_learning_curves({"a": path}, tmp_path / "x.png")
    assert drawn.legend == ["a", "evaluation"]


def test_epochs_are_called_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    offline = [{"step": s, "offline/epoch": s, "offline/bc/loss": 1.0, "evaluation/return": 5.0} for s in (1, 2, 3)]
    online = [{"step": 1000 * s, "ppo/loss": 1.0, "evaluation/return": 6.0} for s in range(3)]
    cloned, both = rows_of(tmp_path / "a.jsonl", offline), rows_of(tmp_path / "b.jsonl", offline + online)
    plot_learning_curves({"a": cloned, "b": both}, tmp_path / "x.png", metric="offline/bc/loss")
    assert drawn.axes.get_xlabel() == "epochs"
    plot_learning_curves({"b": both}, tmp_path / "x.png", metric="evaluation/return")
    assert drawn.axes.get_xlabel() == "environment steps"
    assert drawn.axes.lines[0].get_ydata() == pytest.approx([6.0] * 3)
    with pytest.raises(ValueError, match="for epochs, others for environment steps"):
        plot_learning_curves({"a": cloned, "b": both}, tmp_path / "x.png", metric="evaluation/return")


def test_seeds_are_one_curve_in_a_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    runs = []
    for seed, (recipe, value) in enumerate([("ppo", 1.0), ("ppo", 3.0), ("a2c", 7.0)]):
        runs.append(tmp_path / f"{recipe}-CartPole-v1-20260101-12000{seed}")
        rows_of(runs[-1] / "metrics.jsonl", [{"step": s, "episode/return": value} for s in range(3)])
        config = {"seed": seed, "run_dir": None, "recipe": recipe, "env": {"id": "my_module:Mine-v0"}}  # not imported
        (runs[-1] / "config.yaml").write_text(yaml.safe_dump(config))
    groups = group_seeds(runs)
    assert groups == {"ppo on my_module:Mine-v0, 2 seeds": runs[:2], runs[2].name: runs[2:]}
    curves = {label: [run / "metrics.jsonl" for run in group] for label, group in groups.items()}
    plot_learning_curves(curves, tmp_path / "x.png")
    assert drawn.legend == list(groups)
    assert list(drawn.axes.lines[0].get_ydata()) == [2.0] * 3
    (band,) = drawn.axes.collections
    assert (band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) == (1.0, 3.0)


def test_the_legend_lies_inside_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    path = write(tmp_path / "a.jsonl", [1.0, 2.0])
    runs = {f"estimator-tppo-HalfCheetah-v5-20260101-12000{i}": path for i in range(6)}
    plot_learning_curves(runs, tmp_path / "x.png")
    drawn.figure.draw_without_rendering()
    box, picture = drawn.figure.legends[0].get_window_extent(), drawn.figure.bbox
    assert box.x0 >= picture.x0
    assert box.x1 <= picture.x1
    assert drawn.axes.get_window_extent().height > picture.height / 3


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"understudy-rl\[plot\]"):
        plot_learning_curves({"a": tmp_path}, tmp_path / "x.png")
