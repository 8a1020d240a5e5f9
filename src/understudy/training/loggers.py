"""Loggers: they see every row of metrics, may add to it, and may end the training. Plain numbers, never tensors."""

from __future__ import annotations

import errno
import math
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from understudy.core.check import nearest
from understudy.core.extras import require
from understudy.core.files import write_atomic
from understudy.core.registry import Registry
from understudy.core.schedules import Condition
from understudy.ppo.metrics import check_metric
from understudy.runs.codec import to_plain
from understudy.runs.config import TrainConfig
from understudy.runs.folder import RunFolder
from understudy.runs.metrics import EPOCH, STEP, json_line, read_metrics

T = TypeVar("T")

Row = Mapping[str, float]
"""Metric -> number; NaN where there is none yet."""


class StopTraining(Exception):
    """Raised by a logger to end the training: the reason goes into `Run.stopped_by`.

    The other loggers still see the row. Then follow a checkpoint and an evaluation, as at any end; where the row lacks
    its numbers, they are in `Run.evaluation` and `evaluation.json` alone.
    """


class Phase(NamedTuple):
    """What is about to be logged. A training with offline epochs before PPO has two phases, any other has one."""

    kind: Literal["offline", "ppo"]
    """`step` counts epochs in the first, environment steps in the second."""
    folder: Path
    """The run's folder."""
    config: TrainConfig
    first_step: int
    """Where the phase starts: not 0 in a resumed run, which may log later steps a second time."""
    total_steps: int
    setting: str = ""
    """For people: device, copies and backend of the environment."""


@runtime_checkable
class Logger(Protocol):
    """Sees every row of metrics. Subclass it and write the methods that you need, or write a class with all four.

    A row passes through the loggers in this order: those given to `us.train`, those of `logging.loggers`, then the
    library's own, `metrics.jsonl` among them.
    """

    def start(self, phase: Phase) -> None:
        """Open what is needed, at the beginning of each phase."""
        return  # not abstract

    def log(self, step: int, metrics: Row) -> Row | None:
        """Take one row. The metrics that it returns join the row for the loggers after this one.

        Raise `StopTraining` to end the training. After any other error a checkpoint is written and the error raised.
        """
        return None

    def note(self, text: str) -> None:
        """Take a sentence for whoever watches: no video, demonstrations read."""
        return

    def close(self) -> None:
        """Write what is pending and free what is held, at the end of each phase, also of one that failed."""
        return


class FunctionLogger(Logger):
    """A function (step, metrics) as a logger."""

    def __init__(self, function: Callable[[int, Row], Row | None]) -> None:
        self.function = function

    def log(self, step: int, metrics: Row) -> Row | None:
        """Call it."""
        return self.function(step, metrics)


class StopWhen(Logger):
    """Ends the training when a metric gets where it should; raises ValueError if no row ever has that metric."""

    def __init__(self, condition: str) -> None:
        self.text, self.condition = condition, Condition.parse(condition)

    def start(self, phase: Phase) -> None:
        """Find out whether this phase has the metric in all of its rows."""
        name = self.condition.metric
        of_offline = name.startswith(("offline/", "dagger/")) and phase.config.offline is not None
        self.expected = not name.startswith("evaluation/") and of_offline == (phase.kind == "offline")

    def log(self, step: int, metrics: Row) -> None:
        """Look at the metric."""
        name = self.condition.metric
        if name not in metrics and self.expected:
            raise ValueError(f"stop_when waits for {name!r}, which is not logged; {nearest(name, metrics)}")
        if name in metrics and self.condition.holds(metrics[name]):
            raise StopTraining(self.text)


class MetricsFile(Logger):
    """`metrics.jsonl`: one line per row; it is on its way to the disk when `log` returns."""

    def start(self, phase: Phase) -> None:
        """Open the file, to append."""
        self.path = RunFolder(phase.folder).metrics
        self.file = self.path.open("ab", buffering=0)  # of bytes that a full disk refuses, none wait for `close`

    def log(self, step: int, metrics: Row) -> None:
        """Append a line; NaN and infinities, which JSON does not have, become null. Raises OSError with the path."""
        line = (json_line({STEP: step, **metrics}) + "\n").encode()
        with _writing(self.path):
            self.path.stat()  # a deleted file takes lines that nobody will read
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard(Logger):
    """TensorBoard event files; what an earlier start of the run wrote after `first_step` disappears from view.

    One event holds all metrics of a row: `SummaryWriter.add_scalar`, one event each, took 5 ms for 27 of them. Events
    are written at once, by this thread: an error in TensorBoard's own is a traceback, and the training goes on.
    """

    resumes = True  # until it has started

    def start(self, phase: Phase) -> None:
        """Open an event file in the run's folder."""
        # importing it takes a second, so only where it is used
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        folder, metrics = RunFolder(phase.folder).tensorboard, RunFolder(phase.folder).metrics
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
        with _writing(self.path):
            folder.mkdir(exist_ok=True)
            self.file = self.path.open("xb", buffering=0)
        self.records = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        if self.resumes:
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=phase.first_step + 1, session_log=restart)  # what is at `first_step` stays
            for row in read_metrics(metrics) if metrics.exists() else ():
                if EPOCH in row and row[STEP] > phase.first_step:  # an epoch is not a step
                    self.log(int(row.pop(STEP)), row)
        self.resumes = False

    def log(self, step: int, metrics: Row) -> None:
        """Write every finite metric. Raises OSError with the path."""
        values = [self.summary.Value(tag=name, simple_value=x) for name, x in finite(metrics).items()]
        self._write(step=step, summary=self.summary(value=values))

    def close(self) -> None:
        """Close the event file."""
        self.file.close()

    def _write(self, **content: Any) -> None:
        with _writing(self.path):
            self.records.write(self.event(wall_time=time.time(), **content).SerializeToString())


class WeightsAndBiases(Logger):
    """Weights & Biases. Raises ImportError that names the extra where it is not installed."""

    def __init__(self) -> None:
        require("logging to Weights & Biases", "wandb", extra="wandb")

    def start(self, phase: Phase) -> None:
        """Start a run that is called as the folder, or continue the one that the folder remembers."""
        import wandb  # an extra

        memory = phase.folder / "wandb_run_id"
        if not memory.is_file():  # names of folders are neither valid ids nor unique
            write_atomic(memory, secrets.token_hex(8).encode())
        self.run = wandb.init(
            project=phase.config.logging.wandb_project,
            name=phase.folder.name,
            id=memory.read_text(),
            dir=str(phase.folder),
            config=to_plain(phase.config),
            resume="allow",
        )

    def log(self, step: int, metrics: Row) -> None:
        """Send every finite metric."""
        self.run.log(finite(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow(Logger):
    """MLflow, at the place that its own settings name. Raises ImportError that names the extra if it is missing."""

    def __init__(self) -> None:
        require("logging to MLflow", "mlflow", extra="mlflow")

    def start(self, phase: Phase) -> None:
        """Start a run that is called as the folder, or continue the one that the folder remembers."""
        import mlflow  # an extra

        self.mlflow, memory = mlflow, phase.folder / "mlflow_run_id"
        if memory.is_file():
            mlflow.start_run(run_id=memory.read_text())
            return
        mlflow.set_experiment(phase.config.logging.mlflow_experiment)
        write_atomic(memory, mlflow.start_run(run_name=phase.folder.name).info.run_id.encode())
        mlflow.log_params(flat(to_plain(phase.config)))

    def log(self, step: int, metrics: Row) -> None:
        """Send every finite metric."""
        self.mlflow.log_metrics(finite(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


LOGGERS: Registry[Callable[[], Logger]] = Registry(
    "logger",
    "understudy.loggers",
    {
        "console": "understudy.training.console:Console",
        "metrics": "understudy.training.loggers:MetricsFile",
        "mlflow": "understudy.training.loggers:MLflow",
        "rsl-rl": "understudy.interop.rsl_rl.names:PageNames",
        "tensorboard": "understudy.training.loggers:TensorBoard",
        "wandb": "understudy.training.loggers:WeightsAndBiases",
    },
)
"""Loggers by name: functions without arguments that make one. Packages announce theirs as `understudy.loggers`."""


class Loggers:
    """All loggers of a training behind one `log(step, metrics)`.

    `own` are the caller's, loggers or functions. Raises ValueError for what is neither, an unknown name and a
    reference that leads nowhere, ImportError for a missing extra.
    """

    def __init__(self, config: TrainConfig, own: Iterable[Any] = ()) -> None:
        chosen = config.logging
        if not isinstance(own, Iterable):
            raise ValueError(f"loggers must be a list of loggers, got one {type(own).__name__}: write loggers=[...]")
        self.stopped_by: str | None = None
        switches = {"wandb": chosen.wandb, "mlflow": chosen.mlflow, "metrics": True}
        switches |= {"tensorboard": chosen.tensorboard, "console": chosen.console}
        switched = [name for name, on in switches.items() if on and name not in chosen.loggers]
        stops = [] if config.stop_when is None else [StopWhen(config.stop_when)]
        made = [LOGGERS.find(name)() for name in (*chosen.loggers, *switched)]
        if config.stop_when is not None and not own and not chosen.loggers:  # loggers add metrics of their own
            names = (*config.parts, *(("offline", "dagger") if config.offline is not None else ()))
            check_metric(Condition.parse(config.stop_when).metric, names, "stop_when")
        given = [*own, *made[: len(chosen.loggers)], *stops, *made[len(chosen.loggers) :]]
        self.loggers = [_as_logger(each) for each in given]

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Start all loggers, and close them at the end."""
        with ExitStack() as started:
            for logger in self.loggers:
                self._call(logger, logger.start, phase)
                started.callback(self._call, logger, logger.close)
            yield

    def log(self, step: int, metrics: Row) -> None:
        """Pass a row through all loggers, also after one that failed, whose error is raised in the end."""
        row, failures = dict(metrics), []
        for logger in self.loggers:
            try:
                row |= self._call(logger, _added, logger, step, row) or {}
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def note(self, text: str) -> None:
        """Pass a sentence to all loggers."""
        for logger in self.loggers:
            self._call(logger, logger.note, text)

    def _call(self, logger: Logger, call: Callable[..., T], *arguments: Any) -> T | None:
        """Call, and name the logger in what it raises; where it asks to stop, `stopped_by` says why from now on."""
        try:
            return call(*arguments)
        except StopTraining as stop:
            self.stopped_by = self.stopped_by or str(stop) or type(logger).__qualname__
            return None
        except Exception as error:
            own = logger.function if isinstance(logger, FunctionLogger) else type(logger).__qualname__
            error.add_note(f"Raised by the logger {own}.")
            raise


def finite(metrics: Row) -> dict[str, float]:
    """The metrics that are finite."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def _as_logger(given: Any) -> Logger:
    if not isinstance(given, type):
        if isinstance(given, Logger):
            return given
        if callable(given):
            return FunctionLogger(given)
    raise ValueError(f"{given!r} is not a logger: give an instance of us.Logger, or a function of step and metrics")


def _added(logger: Logger, step: int, row: dict[str, float]) -> dict[str, float]:
    """The metrics that a logger adds to a row. Raises ValueError for anything else, and for taken names."""
    returned = logger.log(step, MappingProxyType(row))
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise ValueError(f"a logger returned {returned!r:.80}: return metrics by name (a dict), or None")
    try:
        added = {str(name): float(value) for name, value in returned.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"a logger returned metrics that are not numbers: {returned!r:.80}") from error
    if taken := sorted(added.keys() & {STEP, *row}):
        raise ValueError(f"a logger returned {', '.join(taken)}, which the row already has: choose other names")
    return added


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file in an error of the disk."""
    try:
        yield
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror or error}") from error
