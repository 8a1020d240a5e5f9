from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.runs.config import LoggingConfig
from understudy.runs.metrics import read_metrics
from understudy.training.loggers import TensorBoardSink, WandbSink, check_wandb, open_logger


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    # TensorBoard turns simple values into tensors while it reads
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_finite_metrics_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    first = TensorBoardSink(tmp_path, 0)
    first.log(10, {"a/x": 1.0, "b": math.nan})
    first.log(20, {"a/x": 2.0, "b": 0.5})
    first.close()
    assert read_events(tmp_path) == {"a/x": [(10, 1.0), (20, 2.0)], "b": [(20, 0.5)]}
    again = TensorBoardSink(tmp_path, 15)  # resumed from the checkpoint of step 15
    again.log(20, {"a/x": 3.0})
    again.close()
    assert read_events(tmp_path)["a/x"] == [(10, 1.0), (20, 3.0)]


def test_logger_writes_to_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = LoggingConfig(console=False, tensorboard=False)
    logger = open_logger(tmp_path, quiet, {}, first_step=0, total_steps=10)
    logger.log(10, {"x": 1.0})
    logger.note("nobody listens")
    logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10, "x": 1.0}]
    loud = open_logger(tmp_path, LoggingConfig(tensorboard=False), {}, first_step=0, total_steps=10)
    loud.log(10, {"episode/return": 1.0})
    loud.note("checkpoint written")
    loud.close()
    shown = capsys.readouterr().err
    assert "10 steps (100 %)" in shown
    assert "checkpoint written" in shown


def test_wandb_gets_config_and_finite_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class FakeRun:
        def log(self, metrics: dict[str, float], step: int) -> None:
            calls.append((step, metrics))

        def finish(self) -> None:
            calls.append("finish")

    def init(**settings: Any) -> FakeRun:
        calls.append(settings)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    sink = WandbSink(tmp_path / "my-run", "project", {"seed": 1})
    sink.log(5, {"a": 1.0, "b": math.inf})
    sink.close()
    assert calls[0]["config"] == {"seed": 1}
    assert (calls[0]["project"], calls[0]["id"], calls[0]["resume"]) == ("project", "my-run", "allow")
    assert calls[1:] == [(5, {"a": 1.0}), "finish"]


def test_missing_wandb_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"understudy\[wandb\]"):
        check_wandb()
