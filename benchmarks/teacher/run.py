"""Teachers and students: every way to learn without velocities, over several seeds, beside the teacher that has them.

    python benchmarks/teacher/run.py --table hidden-velocity --seeds 0 1 2
    python benchmarks/teacher/run.py --table go1 --seeds 0 1 2 --methods estimator-tppo

Each seed has a teacher of its own, trained first; its run stays in runs/teachers/. Trainings run in processes that
stay, with one thread each. Finished ones (runs/<table>.jsonl, and what results/<table>.json has) are not repeated, so
an interrupted table continues, and a larger one takes over what a smaller one had (--known-only: the table so far).
Writes results/<table>.md, .json and .png.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
sys.path.append(str(HERE.parent / "speed"))
sys.path.append(str(HERE.parents[1] / "src"))  # used where the library is not installed

from jobs import KeyedJob, Result, cell, completed, one_thread_each, read_known, run_missing, write_report  # noqa: E402

METHODS = {
    "teacher": "teacher, sees everything",
    "ppo": "PPO alone",
    "estimator-ppo": "PPO, velocity estimated",
    "distill": "distillation alone",
    "tppo": "TPPO",
    "estimator-tppo": "TPPO, velocity estimated",
}
TASKS = {"hidden-velocity": ("Hopper-v5", "HalfCheetah-v5"), "go1": ("Go1JoystickFlatTerrain-v1",)}
STEPS = {"hidden-velocity": 500_000, "go1": 1_500_000}
TEACHER_STEPS = {"hidden-velocity": 1_000_000, "go1": 3_000_000}
EPISODES = {"hidden-velocity": 50, "go1": 200}
SHARE = 0.9
"""Of the teacher's return: what a student is to reach, and how soon."""
GO1_CAUTION = (
    "Episodes of the Go1 differ by 25 in return, as some commands make it fall: 200 episodes leave an error of about 2 "
    "in each test. Evaluations while training are ten episodes, always with the same commands, and are not comparable "
    "with the tests: neither curves nor first times say when a share of the teacher's test was reached."
)
EVALUATIONS = 40
"""How often a training is scored, evenly spread, 10 episodes each."""


@dataclass(frozen=True, kw_only=True)
class Job(KeyedJob):
    """One training and its test."""

    table: str
    method: str
    task: str
    seed: int
    total_steps: int
    teacher_steps: int
    episodes: int

    @property
    def teacher(self) -> Path:
        """Where the run of this job's teacher is, or will be."""
        return HERE / "runs" / "teachers" / f"{self.task}-{self.teacher_steps}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=tuple(TASKS), required=True)
    parser.add_argument("--tasks", nargs="+", help="default: all of the table")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--total-steps", type=int, help=f"of a student; default: {STEPS}")
    parser.add_argument("--teacher-steps", type=int, help=f"of a teacher; default: {TEACHER_STEPS}")
    parser.add_argument("--episodes", type=int, help=f"test episodes of a finished policy; default: {EPISODES}")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    parser.add_argument("--known-only", action="store_true", help="train nothing, tabulate what there is")
    args = parser.parse_args()
    args.episodes = args.episodes or EPISODES[args.table]
    one_thread_each()
    started = time.perf_counter()
    results = run_all(make_jobs(args), args.table, args.parallel, args.known_only)
    report = table(results) + footer(args, results, time.perf_counter() - started)
    write_report(HERE / "results", args.table, report, results)
    plot(results, HERE / "results" / f"{args.table}.png")
    print(report)


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Seed by seed, so that an interrupted table has every cell before any cell has two seeds; the teacher first."""
    teacher_steps = args.teacher_steps or TEACHER_STEPS[args.table]
    return [
        Job(
            table=args.table,
            method=method,
            task=task,
            seed=seed,
            total_steps=teacher_steps if method == "teacher" else args.total_steps or STEPS[args.table],
            teacher_steps=teacher_steps,
            episodes=args.episodes,
        )
        for seed in args.seeds
        for task in args.tasks or TASKS[args.table]
        for method in dict.fromkeys(("teacher", *args.methods))
    ]


# ---------------------------------------------------------------------- running


def run_all(jobs: Sequence[Job], name: str, parallel: int, known_only: bool = False) -> list[Result]:
    """The results of all jobs, from earlier runs where they are there, or of those that have one."""
    store = HERE / "runs" / f"{name}.jsonl"
    known = read_known(HERE / "results" / f"{name}.json", store)
    if known_only:
        return [known[job.key] for job in jobs if job.key in known]
    students = [job for job in jobs if job.method != "teacher" and job.key not in known]
    asked = {job.teacher for job in students if "tppo" in job.method or job.method == "distill"}
    # a result alone teaches nobody: where its run is gone, the teacher is trained again
    lost = {path for path in asked if not (path / "evaluation.json").is_file()}
    teachers = [job for job in jobs if job.method == "teacher" and (job.key not in known or job.teacher in lost)]
    for job in teachers:
        known.pop(job.key, None)
    for missing in (teachers, students):
        run_missing(missing, known, train_and_test, store=store, parallel=parallel, describe=describe)
    return [known[job.key] for job in jobs]


def describe(row: Result) -> str:
    """One line of progress."""
    return f"{row['method']} {row['task']} seed {row['seed']}: {row['test_return']:.1f}"


def train_and_test(job: Job) -> dict[str, Any]:
    """Train one policy, unless it is a teacher that is there already; then test its mode on fresh episodes."""
    import tables
    import torch

    from understudy.runs.folder import RunFolder, read_policy
    from understudy.runs.metrics import read_metrics
    from understudy.tools.evaluate import evaluate
    from understudy.tools.play import evaluation_seed

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = job.teacher if job.method == "teacher" else Path(folder) / "run"
        if not (path / "evaluation.json").is_file():  # which comes last
            train_in(path, job)
        policy, config = read_policy(path)
        metrics = read_metrics(RunFolder(path).metrics)
    result = evaluate(policy, env=config.env, episodes=job.episodes, seed=evaluation_seed(job.seed + 1_000))
    return {
        "key": job.key,
        **asdict(job),
        "revision": tables.revision(HERE.parents[1]),
        "test_return": result.mean_return,
        "seconds": metrics[-1]["time/elapsed"],
        "env_steps": int(metrics[-1]["step"]),
        "curve": [(row["step"], row["evaluation/return"]) for row in metrics if "evaluation/return" in row],
        "rmse": velocity_rmse(metrics),
    }


def train_in(path: Path, job: Job) -> None:
    """One training, scored evenly along its way."""
    import dataclasses

    import understudy as us
    from understudy.runs.config import EvaluationConfig, LoggingConfig

    shutil.rmtree(path, ignore_errors=True)  # what an interrupted training left
    config = dataclasses.replace(
        configuration(job),
        run_dir=str(path),
        torch_threads=1,
        evaluation=EvaluationConfig(interval=max(job.total_steps // EVALUATIONS, 1)),
        logging=LoggingConfig(console=False, tensorboard=False),
    )
    completed(us.train(config))


def configuration(job: Job) -> Any:
    """The library's recipes, as they are."""
    import understudy as us
    from understudy.recipes.teacher import student

    go1 = job.table == "go1"
    if job.method == "teacher":
        recipe = us.recipes.go1_teacher if go1 else us.recipes.mujoco
        return recipe(job.task, total_steps=job.total_steps, seed=job.seed)
    teachers = (str(job.teacher),)
    return student(job.method, job.task, teachers=teachers, total_steps=job.total_steps, seed=job.seed)


def velocity_rmse(metrics: Sequence[Mapping[str, float]]) -> float | None:
    """Root mean square error of an entry of the estimated velocity, over the last 10 rollouts; None: no estimator."""
    rows = [[x for key, x in row.items() if key.startswith("estimator/rmse/")] for row in metrics[-10:]]
    return statistics.fmean(row[0] for row in rows) if rows[0] else None


# ---------------------------------------------------------------------- tables


def value_at(curve: Sequence[Sequence[float]], step: float) -> float | None:
    """The evaluation nearest to `step`, which comes up to a rollout later; None if there is none near."""
    near = [(abs(at - step), value) for at, value in curve if abs(at - step) <= 0.1 * step]
    return min(near)[1] if near else None


def reached(curve: Sequence[Sequence[float]], score: float) -> float | None:
    """Steps of the first evaluation with at least `score`; None: never."""
    return next((step for step, value in curve if value >= score), None)


def of(results: Sequence[Result], method: str, task: str) -> list[Result]:
    """The runs of one cell, by seed."""
    return sorted((r for r in results if (r["method"], r["task"]) == (method, task)), key=lambda r: int(r["seed"]))


def soon(runs: Sequence[Result], teachers: Mapping[int, float]) -> list[float | None]:
    """For each run the steps to `SHARE` of its own seed's teacher."""
    return [reached(r["curve"], SHARE * teachers[r["seed"]]) for r in runs]


def first(steps: Sequence[float | None]) -> str:
    """Mean number of steps in thousands, how many seeds got there, or a dash."""
    there = [step for step in steps if step is not None]
    if not steps:
        return "-"
    mean = f"{statistics.fmean(there) / 1000:,.0f}k" if there else "never"
    return mean if len(there) == len(steps) else f"{mean} ({len(there)} of {len(steps)} seeds)"


def table(results: Sequence[Result]) -> str:
    """One table per task: returns at equal steps, as a share of the teacher's, and how soon."""
    lines = ["# Learning from a teacher and from privileged state", ""]
    for task in dict.fromkeys(r["task"] for r in results):
        teachers = {r["seed"]: r["test_return"] for r in of(results, "teacher", task)}
        steps = max(r["total_steps"] for r in results if r["task"] == task and r["method"] != "teacher")
        marks = [steps // 4, steps // 2, steps]
        lines += [
            f"## {task}",
            "",
            "| | " + " | ".join(f"{mark / 1000:,.0f}k steps" for mark in marks) + " | test return | of the teacher's "
            f"| first {SHARE:.0%} at | velocity error | steps/s | seeds |",
            "|---" * (len(marks) + 7) + "|",
        ]
        for method in METHODS:
            if runs := of(results, method, task):
                lines.append(row(method, runs, teachers, marks))
        lines.append("")
    return "\n".join([*lines, ""])


def row(method: str, runs: Sequence[Result], teachers: Mapping[int, float], marks: Sequence[int]) -> str:
    """One line of a task's table."""
    at = [[value_at(r["curve"], mark) for r in runs] for mark in marks]
    share = [100.0 * r["test_return"] / teachers[r["seed"]] for r in runs]
    cells = [
        METHODS[method],
        *(cell([value for value in values if value is not None]) for values in at),
        f"**{cell([r['test_return'] for r in runs])}**",
        f"{cell(share)} %",
        first(soon(runs, teachers)),
        cell([r["rmse"] for r in runs if r["rmse"] is not None], 3),
        f"{statistics.median(r['env_steps'] / r['seconds'] for r in runs):,.0f}",
        ", ".join(str(r["seed"]) for r in runs),
    ]
    return "| " + " | ".join(cells) + " |"


def footer(args: argparse.Namespace, results: Sequence[Result], elapsed: float) -> str:
    """How, where and when."""
    import tables

    machine = tables.machine()
    words = ["--table", args.table, "--seeds", *map(str, args.seeds), "--methods", *args.methods]
    words += ["--tasks", *args.tasks] if args.tasks else []
    words += ["--total-steps", str(args.total_steps)] if args.total_steps else []
    words += ["--teacher-steps", str(args.teacher_steps)] if args.teacher_steps else []
    packages = ("torch", "gymnasium", "envpool" if args.table == "go1" else "mujoco")
    return "\n".join(
        [
            "Mean ± standard deviation over seeds; every seed has a teacher of its own, and shares are of that one. "
            f"The columns of steps and the first time at {SHARE:.0%} are evaluations while training (10 episodes, the "
            f"policy's mode); the test is on {args.episodes} other episodes with the final policy. Velocity error: "
            "root mean square of an entry of the estimate, in the task's units, on the last 10 rollouts. A student's "
            "steps do not count its teacher's.",
            *(["", GO1_CAUTION] if args.table == "go1" else []),
            "",
            f"![learning curves]({args.table}.png)",
            "",
            f"{len(results)} trainings of {sum(r['seconds'] for r in results) / 3600:.2f} hours in all "
            f"({elapsed / 60:.0f} min of them in the last call, {args.parallel} at a time); {machine['cpu']}, "
            f"{machine['cores']} cores, one thread each; "
            + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
            + f"; understudy {', '.join(sorted({r['revision'] for r in results}))}; "
            f"{datetime.date.today().isoformat()}; `python benchmarks/teacher/run.py {' '.join(words)}`",
            "",
        ]
    )


def plot(results: Sequence[Result], path: Path) -> None:
    """One panel per task: evaluations of every student, mean and range over seeds; the teacher's test as a line."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(r["task"] for r in results))
    figure = Figure(figsize=(5.2 * len(tasks), 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, task in enumerate(tasks, start=1):
        axes = figure.add_subplot(1, len(tasks), number)
        level = statistics.fmean(r["test_return"] for r in of(results, "teacher", task))
        axes.axhline(level, color="black", lw=1, label=METHODS["teacher"])
        axes.axhline(SHARE * level, color="black", lw=1, ls=":", label=f"{SHARE:.0%} of it")
        for index, method in enumerate(METHODS):
            curves = [r["curve"] for r in of(results, method, task)]
            if method == "teacher" or not curves:
                continue
            grid = np.linspace(max(c[0][0] for c in curves), min(c[-1][0] for c in curves), 100)
            values = np.array([np.interp(grid, *zip(*curve)) for curve in curves])
            axes.fill_between(grid, values.min(0), values.max(0), alpha=0.15, lw=0, color=f"C{index}")
            axes.plot(grid, values.mean(0), label=METHODS[method], color=f"C{index}")
        axes.set(title=task, xlabel="environment steps", ylabel="return of the policy's mode")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
