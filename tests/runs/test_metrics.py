from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from understudy.envs.registry import EnvConfig
from understudy.runs.config import TrainConfig
from understudy.runs.metrics import drop_after, read_metrics
from understudy.training.loggers import MetricsFile, Phase


def opened(folder: Path) -> MetricsFile:
    file = MetricsFile()
    file.start(Phase("ppo", folder, TrainConfig(env=EnvConfig(id="PointMass"), total_steps=1), 0, 1))
    return file


def test_lines_are_strict_json_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = opened(tmp_path)
    file.log(10, {"episode/return": math.nan, "ppo/kl": 0.5, "ppo/ratio": math.inf})
    text = path.read_text()  # before close: every line is flushed
    file.close()
    assert json.loads(text) == {"step": 10, "episode/return": None, "ppo/kl": 0.5, "ppo/ratio": None}
    rows = read_metrics(path)
    assert rows[0]["step"] == 10
    assert math.isnan(rows[0]["episode/return"])


def test_half_a_last_line_is_left_out_but_damage_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_resuming_drops_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_after(path, 5)  # no file yet: nothing to do
    file = opened(tmp_path)
    for step in (10, 20, 30):
        file.log(step, {"x": math.nan if step == 10 else 1.0})
    file.close()
    drop_after(path, 20)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [10, 20]
    assert math.isnan(rows[0]["x"])
    again = opened(tmp_path)
    again.log(30, {"x": 2.0})
    again.close()
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30]
