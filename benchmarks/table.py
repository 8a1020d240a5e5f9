"""The program behind every table of many trainings: jobs, processes, resuming, report.

A question (`benchmarks/<question>/`) is a `Question`: it states its jobs, how one job is trained and tested, and what
the report says. The program does the rest. Jobs run several at a time, in processes of one thread each that end with
this one. A finished job's result goes at once into runs/<name>.jsonl and is never computed twice; an interrupted
training continues from its checkpoint. The report is results/<name>.md, .json and .png; a later call reads the .json,
so that a larger table takes over what a smaller one had, and a smaller table keeps the numbers of a larger one.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from benchmarks import where

if TYPE_CHECKING:
    from understudy.runs.config import TrainConfig
    from understudy.runs.folder import Run

FINISHED = "finished"
"""Empty file in the folder of a training that is complete."""

Result = Mapping[str, Any]
"""One row of <name>.json: the job's key, its fields, and what its training and test gave."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and its test; a question's jobs add what it is of."""

    @property
    def key(self) -> str:
        """What makes two jobs the same, as text."""
        return json.dumps(asdict(self), sort_keys=True)


AnyJob = TypeVar("AnyJob", bound=Job)


class Question(ABC, Generic[AnyJob]):
    """What a benchmark asks: its options, jobs, training and test, and its report.

    `--help` prints the docstring of the question's module.
    """

    jobs_per_process: int | None = None
    """1 gives the memory of each job back before the next one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.runs: Path = args.runs or self.home() / "runs"
        self.results: Path = args.output or self.home() / "results"
        self.elapsed = 0.0  # seconds that this call took
        self.failures: list[str] = []  # of this call

    @classmethod
    def home(cls) -> Path:
        """The question's folder."""
        return Path(inspect.getfile(cls)).resolve().parent

    @classmethod
    def program(cls) -> str:
        """`python -m benchmarks.<question>`."""
        return f"python -m {cls.__module__.rpartition('.')[0]}"

    @classmethod
    @abstractmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the question's own options, and set other defaults of the common ones."""

    @classmethod
    def settle(cls, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Fill in defaults that depend on other options; refuse what cannot be with `parser.error`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the files in results/ and runs/."""

    @property
    def store(self) -> Path:
        """JSON lines of what has finished on this machine."""
        return self.runs / f"{self.name}.jsonl"

    @abstractmethod
    def jobs(self) -> list[AnyJob]:
        """Everything that the table needs, in the order of its rows."""

    def stages(self, jobs: Sequence[AnyJob], known: dict[str, Result]) -> Iterator[Sequence[AnyJob]]:
        """Jobs that may run side by side; what the next ones need is made before they are yielded."""
        yield jobs

    @abstractmethod
    def work(self, job: AnyJob) -> dict[str, Any]:
        """Train and test, in a process of its own; what the result holds beside the job's fields."""

    @abstractmethod
    def describe(self, row: Result) -> str:
        """One line of progress."""

    @abstractmethod
    def report(self, results: Sequence[Result]) -> str:
        """The Markdown page."""

    @abstractmethod
    def draw(self, results: Sequence[Result], path: Path) -> None:
        """The page's picture."""

    @abstractmethod
    def words(self) -> list[str]:
        """The options that make the same page anywhere."""

    def finish(self) -> None:
        """What was asked for beside the report."""

    def key(self, row: Result) -> str:
        """The key of a row's job."""
        return str(row["key"])

    def pack(self, rows: list[Result]) -> Any:
        """The content of <name>.json."""
        return rows

    def unpack(self, content: Any) -> list[Result]:
        """The rows in the content of <name>.json."""
        return list(content)

    def picture(self) -> Path:
        """Where the picture goes."""
        return self.results / f"{self.name}.png"

    def command(self) -> str:
        """The command that makes the same page anywhere."""
        return f"{self.program()} {' '.join(self.words())}"

    def measured(
        self, results: Sequence[Result], *packages: str, lead: str = "", threads: str = ", one thread each"
    ) -> str:
        """The page's last line: machine, versions, revisions of the library, date, command."""
        machine, date = where.machine(), where.today()
        return (
            f"{lead}{machine['cpu']}, {machine['cores']} cores{threads}; {where.versions(*packages)}; "
            f"understudy {revisions(results)}; {date}; `{self.command()}`"
        )


# ---------------------------------------------------------------------- the program


def main(question: type[Question[Any]], words: Sequence[str] | None = None) -> None:
    """Train what is missing, write the report and print it; exits with 1 if a training failed."""
    where.threads(1)
    asked = question(parse(question, words))
    print(answer(asked))
    asked.finish()
    if asked.failures:
        sys.exit(f"{len(asked.failures)} trainings failed")


def parse(question: type[Question[Any]], words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that every table has, and the question's own."""
    raw = argparse.RawDescriptionHelpFormatter
    about = sys.modules[question.__module__].__doc__
    parser = argparse.ArgumentParser(prog=question.program(), description=about, formatter_class=raw)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--total-steps", type=int, help="environment steps of a training")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    parser.add_argument(
        "--known-only", "--report-only", action="store_true", help="train nothing, tabulate what there is"
    )
    parser.add_argument("--runs", type=Path, help="folder of what trainings leave; default: runs/ beside the program")
    parser.add_argument("--output", type=Path, help="folder of the report; default: results/ beside the program")
    question.options(parser)
    args = parser.parse_args(words)
    question.settle(parser, args)
    return args


def answer(question: Question[Any]) -> str:
    """Do the jobs without a result, unless told otherwise; write the report and return it."""
    started, jobs = time.perf_counter(), question.jobs()
    known = read_known(question)
    if not question.args.known_only:
        for stage in question.stages(jobs, known):
            run_missing(question, stage, known)
    question.elapsed = time.perf_counter() - started
    results = [known[job.key] for job in jobs if job.key in known]
    if not results:
        sys.exit("\n".join(question.failures) or "nothing is known yet: run without --known-only")
    report = question.report(results)
    write_report(question, report, results)
    question.draw(results, question.picture())
    return report


def read_known(question: Question[Any]) -> dict[str, Result]:
    """Results by key: those of the report that there is, and those since."""
    rows = list(read_table(question).values())
    rows += map(json.loads, question.store.read_text().splitlines()) if question.store.is_file() else []
    return {question.key(row): row for row in rows}


def read_table(question: Question[Any]) -> dict[str, Result]:
    """Results by key in <name>.json."""
    file = question.results / f"{question.name}.json"
    rows = question.unpack(json.loads(file.read_text())) if file.is_file() else []
    return {question.key(row): row for row in rows}


def write_report(question: Question[Any], report: str, results: Sequence[Result]) -> None:
    """<name>.md, and <name>.json with these results and those of a larger table that was there."""
    rows = read_table(question) | {question.key(row): row for row in results}
    content = json.dumps(question.pack(list(rows.values())))
    question.results.mkdir(parents=True, exist_ok=True)
    (question.results / f"{question.name}.md").write_text(report)
    (question.results / f"{question.name}.json").write_text(content + "\n")


def run_missing(question: Question[AnyJob], jobs: Sequence[AnyJob], known: dict[str, Result]) -> None:
    """Do the jobs without a result, several at a time; each result goes into `known` and, at once, into the store.

    A training that fails is reported and leaves the others alone; one that a signal ended ends all.
    """
    missing = [job for job in jobs if job.key not in known]
    if not missing:
        return
    question.store.parent.mkdir(parents=True, exist_ok=True)
    with processes(question) as pool, question.store.open("a") as file:
        futures = {pool.submit(do, question, job): job for job in missing}
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                job = futures[future]
                try:
                    row = known[job.key] = future.result()
                except BrokenExecutor:
                    raise
                except Exception as error:
                    text = f"{' '.join(map(str, asdict(job).values()))} failed: {error}"
                    question.failures.append(text)
                else:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    text = question.describe(row)
                print(f"{count}/{len(missing)} {text}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # no further trainings
            raise


def do(question: Question[AnyJob], job: AnyJob) -> Result:
    """One job's result, as it will be read back: in JSON's types."""
    import torch

    torch.set_num_threads(1)
    row: Result = json.loads(json.dumps({"key": job.key, **asdict(job), **question.work(job)}))
    return row


def processes(question: Question[Any]) -> ProcessPoolExecutor:
    """Processes that do jobs; they end with this one."""
    context, most = multiprocessing.get_context("spawn"), question.jobs_per_process
    return ProcessPoolExecutor(question.args.parallel, context, end_with_parent, max_tasks_per_child=most)


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended: or it trained on, for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# ---------------------------------------------------------------------- what questions share


def train_in(folder: Path, config: TrainConfig) -> Run | None:
    """Train in a folder, without console and TensorBoard; an interrupted training goes on, None: it was finished.

    Raises SystemExit if a signal ends the training.
    """
    from understudy.runs.config import LoggingConfig
    from understudy.training.loop import resume, train

    done = folder / FINISHED
    steps = [int(path.stem.removeprefix("step_")) for path in folder.glob("checkpoints/step_*.pt")]
    if done.exists() or 0 < config.total_steps <= max(steps, default=0):
        return None
    if steps:
        run = completed(resume(folder, total_steps=config.total_steps))
    else:
        shutil.rmtree(folder, ignore_errors=True)  # it ended before its first checkpoint
        quiet = LoggingConfig(console=False, tensorboard=False)
        run = completed(train(dataclasses.replace(config, run_dir=str(folder), logging=quiet)))
    done.touch()  # trainings without environment steps have no number that says so
    return run


def completed(run: Run) -> Run:
    """The run, unless a signal ended its training early: then SystemExit, for its score would be taken for a result."""
    if run.stopped_by is not None:
        raise SystemExit(f"{run.path.name} was stopped by {run.stopped_by}; start the benchmark again to continue")
    return run


def thin(points: Sequence[tuple[float, float]], most: int = 100, digits: int = 4) -> list[tuple[int, float]]:
    """At most about `most` evenly spread points, the last one always among them; NaN (no episode yet) left out."""
    kept = points[::-1][:: max(1, len(points) // most)][::-1]
    return [(int(step), round(value, digits)) for step, value in kept if value == value]


def curve(metrics: Sequence[Mapping[str, float]], name: str, most: int = 100, digits: int = 4) -> list[Any]:
    """One metric of a run against steps, thinned."""
    return thin([(row["step"], row[name]) for row in metrics if name in row], most, digits)


def cell(found: Sequence[float], digits: int = 0, separator: str = ",") -> str:
    """`mean ± standard deviation over seeds`, or a dash."""
    if not found:
        return "-"
    form = f"{separator}.{digits}f"
    mean = format(statistics.fmean(found), form)
    return mean if len(found) < 2 else f"{mean} ± {format(statistics.stdev(found), form)}"


def line(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def rule(columns: int) -> str:
    """The row below the head of a Markdown table."""
    return "|---" * columns + "|"


def revisions(results: Sequence[Result]) -> str:
    """The library's revisions that the results are of."""
    return ", ".join(sorted({row["revision"] for row in results}))


# ---------------------------------------------------------------------- pictures


def canvas(width: float, height: float, dpi: int = 110) -> Any:
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def band(curves: Sequence[Sequence[Sequence[float]]], points: int = 100) -> dict[str, list[float]]:
    """Mean, lowest and highest of several (step, value) curves on one grid of steps that all of them cover."""
    import numpy as np

    start, end = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
    grid = np.linspace(start, end, points)
    values = np.stack([np.interp(grid, *zip(*c)) for c in curves])
    return {
        "steps": grid.tolist(),
        "mean": values.mean(0).tolist(),
        "low": values.min(0).tolist(),
        "high": values.max(0).tolist(),
    }
