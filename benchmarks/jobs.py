"""Tables of many trainings: results are kept by job, so that what was interrupted goes on, and a larger table takes
over what a smaller one had."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from understudy.runs.folder import Run

Result = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class KeyedJob:
    """One training and its test; subclasses add what it is of."""

    @property
    def key(self) -> str:
        """What makes two jobs the same, as text."""
        return json.dumps(asdict(self), sort_keys=True)


AnyJob = TypeVar("AnyJob", bound=KeyedJob)


def one_thread_each() -> None:
    """For this process and those that it starts; before torch is imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"


def read_known(committed: Path, store: Path) -> dict[str, Result]:
    """Results by key: those of a committed table (JSON, its rows or {"runs": rows}) and those since (JSON lines)."""
    table = json.loads(committed.read_text()) if committed.is_file() else []
    rows = list(table["runs"] if isinstance(table, dict) else table)
    rows += map(json.loads, store.read_text().splitlines()) if store.is_file() else []
    return {row["key"]: row for row in rows}


def run_missing(
    jobs: Sequence[AnyJob],
    known: dict[str, Result],
    work: Callable[[AnyJob], Result],
    *,
    store: Path,
    parallel: int,
    describe: Callable[[Result], str],
    after: Callable[[], None] = lambda: None,
    jobs_per_process: int | None = None,
) -> None:
    """Do the jobs without a result, several at a time, in processes that stay; then call `after`, each time.

    Each result goes into `known` and, at once, into the file `store`. `jobs_per_process` 1 gives the memory of each
    job back before the next one.
    """
    missing = [job for job in jobs if job.key not in known]
    if not missing:
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    with processes(parallel, jobs_per_process) as pool, store.open("a") as file:
        futures = {pool.submit(work, job): job for job in missing}
        for count, future in enumerate(as_completed(futures), start=1):
            row = known[futures[future].key] = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{count}/{len(missing)} {describe(row)}", file=sys.stderr, flush=True)
            after()


def processes(parallel: int, jobs_per_process: int | None = None) -> ProcessPoolExecutor:
    """Processes that do jobs; they end with this one, and after so many jobs (None: all that there are)."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(parallel, context, end_with_parent, max_tasks_per_child=jobs_per_process)


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended: or it trained on, for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def completed(run: Run) -> Run:
    """The run, unless a signal ended its training early: then SystemExit, for its score would be taken for a result."""
    if run.stopped_by is not None:
        raise SystemExit(f"{run.path.name} was stopped by {run.stopped_by}; start the benchmark again to continue")
    return run


def write_report(output: Path, name: str, report: str, results: Sequence[Result]) -> None:
    """<name>.md, and <name>.json, from which the next call continues."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.md").write_text(report)
    (output / f"{name}.json").write_text(json.dumps(results) + "\n")


def thin(points: Sequence[tuple[float, float]], most: int = 100, digits: int = 4) -> list[tuple[int, float]]:
    """At most about `most` evenly spread points, the last one always among them; NaN (no episode yet) left out."""
    kept = points[::-1][:: max(1, len(points) // most)][::-1]
    return [(int(step), round(value, digits)) for step, value in kept if value == value]


def cell(found: Sequence[float], digits: int = 0) -> str:
    """`mean ± standard deviation over seeds`, or a dash."""
    if not found:
        return "-"
    mean = f"{statistics.fmean(found):,.{digits}f}"
    return mean if len(found) < 2 else f"{mean} ± {statistics.stdev(found):,.{digits}f}"
