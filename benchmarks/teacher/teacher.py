"""Teachers and students: every way to learn without velocities, over several seeds, beside the teacher that has them.

    python -m benchmarks.teacher --table hidden-velocity --seeds 0 1 2
    python -m benchmarks.teacher --table go1 --seeds 0 1 2 --methods estimator-tppo

Each seed has a teacher of its own, trained first; its run stays in runs/teachers/. Trainings run in processes of one
thread each. Finished ones (runs/<table>.jsonl, and those in results/<table>.json) are not repeated, so an interrupted
table continues, and a larger one takes over what a smaller one had (--known-only: the table so far). Writes
results/<table>.md, .json and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import table, where
from benchmarks.table import Result, cell, line, rule, train_in

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
class Job(table.Job):
    """One training and its test."""

    table: str
    method: str
    task: str
    seed: int
    total_steps: int
    teacher_steps: int
    episodes: int


class Teacher(table.Question[Job]):
    """Every method on every task of a table."""

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--table", choices=tuple(TASKS), required=True)
        parser.add_argument("--tasks", nargs="+", help="default: all of the table")
        parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
        parser.add_argument("--teacher-steps", type=int, help=f"of a teacher; default: {TEACHER_STEPS}")
        parser.add_argument("--episodes", type=int, help=f"test episodes of a finished policy; default: {EPISODES}")

    @classmethod
    def settle(cls, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        args.episodes = args.episodes or EPISODES[args.table]

    @property
    def name(self) -> str:
        return str(self.args.table)

    def jobs(self) -> list[Job]:
        """Seed by seed, so that an interrupted table has every cell before any has two seeds; the teacher first."""
        args = self.args
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

    def stages(self, jobs: Sequence[Job], known: dict[str, Result]) -> Iterator[Sequence[Job]]:
        """Teachers, then students. A result alone teaches nobody: a teacher whose run is gone is trained again."""
        students = [job for job in jobs if job.method != "teacher" and job.key not in known]
        asked = {self.teacher(job) for job in students if "tppo" in job.method or job.method == "distill"}
        lost = {path for path in asked if not (path / "evaluation.json").is_file()}
        teachers = [job for job in jobs if job.method == "teacher"]
        for job in teachers:
            if self.teacher(job) in lost:
                known.pop(job.key, None)
        yield teachers
        yield students

    def describe(self, row: Result) -> str:
        return f"{row['method']} {row['task']} seed {row['seed']}: {row['test_return']:.1f}"

    # ------------------------------------------------------------------ training

    def teacher(self, job: Job) -> Path:
        """Where the run of this job's teacher is, or will be."""
        return self.runs / "teachers" / f"{job.task}-{job.teacher_steps}-{job.seed}"

    def work(self, job: Job) -> dict[str, Any]:
        """Train one policy, unless it is a teacher that is there already; then test its mode on other episodes."""
        from understudy.runs.folder import RunFolder, read_policy
        from understudy.runs.metrics import read_metrics
        from understudy.tools.evaluate import evaluate
        from understudy.tools.play import evaluation_seed

        with tempfile.TemporaryDirectory() as folder:
            path = self.teacher(job) if job.method == "teacher" else Path(folder) / "run"
            if not (path / "evaluation.json").is_file():  # which comes last
                shutil.rmtree(path, ignore_errors=True)  # what an interrupted training left
                train_in(path, self.config(job))
            policy, config = read_policy(path)
            metrics = read_metrics(RunFolder(path).metrics)
        result = evaluate(policy, env=config.env, episodes=job.episodes, seed=evaluation_seed(job.seed + 1_000))
        return {
            "revision": where.revision(),
            "test_return": result.mean_return,
            "seconds": metrics[-1]["time/elapsed"],
            "env_steps": int(metrics[-1]["step"]),
            "curve": [(row["step"], row["evaluation/return"]) for row in metrics if "evaluation/return" in row],
            "rmse": velocity_rmse(metrics),
        }

    def config(self, job: Job) -> Any:
        """The library's recipes, as they are; scored evenly along the way."""
        import understudy as us
        from benchmarks.teacher.methods import student
        from understudy.runs.config import EvaluationConfig

        if job.method == "teacher":
            recipe = us.recipes.go1_teacher if job.table == "go1" else us.recipes.mujoco
            config = recipe(job.task, total_steps=job.total_steps, seed=job.seed)
        else:
            teachers = (str(self.teacher(job)),)
            config = student(job.method, job.task, teachers=teachers, total_steps=job.total_steps, seed=job.seed)
        evaluation = EvaluationConfig(interval=max(job.total_steps // EVALUATIONS, 1))
        return dataclasses.replace(config, torch_threads=1, evaluation=evaluation)

    # ------------------------------------------------------------------ report

    def report(self, results: Sequence[Result]) -> str:
        return f"{tables(results)}{self.notes(results)}"

    def notes(self, results: Sequence[Result]) -> str:
        """How, where and when."""
        args, go1 = self.args, self.args.table == "go1"
        lead = (
            f"{len(results)} trainings of {sum(r['seconds'] for r in results) / 3600:.2f} hours in all "
            f"({self.elapsed / 60:.0f} min of them in the last call, {args.parallel} at a time); "
        )
        return "\n".join(
            [
                "Mean ± standard deviation over seeds; every seed has a teacher of its own, and shares are of that "
                f"one. The columns of steps and the first time at {SHARE:.0%} are evaluations while training (10 "
                f"episodes, the policy's mode); the test is on {args.episodes} other episodes with the final policy. "
                "Velocity error: root mean square of an entry of the estimate, in the task's units, on the last 10 "
                "rollouts. A student's steps do not count its teacher's.",
                *(["", GO1_CAUTION] if go1 else []),
                "",
                f"![learning curves]({args.table}.png)",
                "",
                self.measured(results, "torch", "gymnasium", "envpool" if go1 else "mujoco", lead=lead),
                "",
            ]
        )

    def words(self) -> list[str]:
        args = self.args
        words = ["--table", args.table, "--seeds", *map(str, args.seeds), "--methods", *args.methods]
        words += ["--tasks", *args.tasks] if args.tasks else []
        words += ["--total-steps", str(args.total_steps)] if args.total_steps else []
        return words + (["--teacher-steps", str(args.teacher_steps)] if args.teacher_steps else [])

    def draw(self, results: Sequence[Result], path: Path) -> None:
        """One panel per task: evaluations of every student, mean and range over seeds; the teacher's test as a line."""
        tasks = list(dict.fromkeys(r["task"] for r in results))
        figure = table.canvas(5.2 * len(tasks), 4.2)
        for number, task in enumerate(tasks, start=1):
            axes = figure.add_subplot(1, len(tasks), number)
            level = statistics.fmean(r["test_return"] for r in of(results, "teacher", task))
            axes.axhline(level, color="black", lw=1, label=METHODS["teacher"])
            axes.axhline(SHARE * level, color="black", lw=1, ls=":", label=f"{SHARE:.0%} of it")
            for index, method in enumerate(METHODS):
                curves = [r["curve"] for r in of(results, method, task)]
                if method == "teacher" or not curves:
                    continue
                band = table.band(curves)
                axes.fill_between(band["steps"], band["low"], band["high"], alpha=0.15, lw=0, color=f"C{index}")
                axes.plot(band["steps"], band["mean"], label=METHODS[method], color=f"C{index}")
            axes.set(title=task, xlabel="environment steps", ylabel="return of the policy's mode")
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path)


def velocity_rmse(metrics: Sequence[Mapping[str, float]]) -> float | None:
    """Root mean square error of an entry of the estimated velocity, over the last 10 rollouts; None: no estimator."""
    rows = [[x for key, x in row.items() if key.startswith("estimator/rmse/")] for row in metrics[-10:]]
    return statistics.fmean(row[0] for row in rows) if rows[0] else None


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


def tables(results: Sequence[Result]) -> str:
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
            rule(len(marks) + 7),
            *(row(m, runs, teachers, marks) for m in METHODS if (runs := of(results, m, task))),
            "",
        ]
    return "\n".join([*lines, ""])


def row(method: str, runs: Sequence[Result], teachers: Mapping[int, float], marks: Sequence[int]) -> str:
    """One line of a task's table."""
    at = [[value_at(r["curve"], mark) for r in runs] for mark in marks]
    share = [100.0 * r["test_return"] / teachers[r["seed"]] for r in runs]
    return line(
        METHODS[method],
        *(cell([value for value in values if value is not None]) for values in at),
        f"**{cell([r['test_return'] for r in runs])}**",
        f"{cell(share)} %",
        first(soon(runs, teachers)),
        cell([r["rmse"] for r in runs if r["rmse"] is not None], 3),
        f"{statistics.median(r['env_steps'] / r['seconds'] for r in runs):,.0f}",
        ", ".join(str(r["seed"]) for r in runs),
    )
