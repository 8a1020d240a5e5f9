"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases. Plain numbers on the host, never tensors."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from understudy.runs.config import LoggingConfig
from understudy.runs.metrics import MetricsFile
from understudy.training.console import Console


class Sink(Protocol):
    """A place that metrics go to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one iteration, at `step` environment steps."""
        ...

    def close(self) -> None:
        """Write what is pending and free what is held."""
        ...


class TensorBoardSink:
    """TensorBoard event files; what an earlier start of the run wrote after `first_step` disappears from view.

    One event holds all metrics of an iteration: `SummaryWriter.add_scalar`, one event each, took 5 ms for 27 of them.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # slow to import, so only where it is used
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))
        if first_step:
            restart = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=restart))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write every finite metric."""
        values = [
            self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items() if math.isfinite(value)
        ]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """Weights & Biases; `check_wandb` first."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb  # an extra

        # the folder's name as id: a resumed run goes on in the same place
        self._run = wandb.init(
            project=project, name=folder.name, id=folder.name, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send every finite metric."""
        self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Logger:
    """All sinks of a run behind one `log(step, metrics)`."""

    def __init__(self, sinks: Sequence[Sink], console: Console | None) -> None:
        self._console = console
        self._sinks: list[Sink] = [*sinks, console] if console is not None else list(sinks)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one iteration's metrics everywhere."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def note(self, text: str) -> None:
        """A sentence for whoever watches (evaluation done, checkpoint written); only the console shows it."""
        if self._console is not None:
            self._console.note(text)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def check_wandb() -> None:
    """Raise ImportError that names the extra if Weights & Biases is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ImportError("logging to Weights & Biases needs: pip install 'understudy[wandb]'")


def open_logger(
    folder: Path, config: LoggingConfig, plain_config: Mapping[str, Any], *, first_step: int, total_steps: int
) -> Logger:
    """The sinks that `config` asks for, writing into a run's folder."""
    sinks: list[Sink] = []
    if config.wandb:
        sinks.append(WandbSink(folder, config.wandb_project, plain_config))
    sinks.append(MetricsFile(folder / "metrics.jsonl"))
    if config.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", first_step))
    console = Console(first_step=first_step, total_steps=total_steps) if config.console else None
    return Logger(sinks, console)
