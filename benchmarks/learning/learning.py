"""Train the library's recipes over several seeds and put the scores beside the published ones.

    python -m benchmarks.learning --envs CartPole-v1 Hopper-v5 HalfCheetah-v5 Walker2d-v5 --seeds 0 1 2 \
        --total-steps 1000000

Two trainings run at a time, each in a process of its own with one thread. A benchmark that was interrupted continues:
finished runs (runs/learning.jsonl, and those in results/learning.json) are not repeated, unfinished ones resume from
their checkpoint. Writes results/learning.md, .json, .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import table, where
from benchmarks.learning.published import PUBLISHED, SOURCES
from benchmarks.table import Result, cell, line, rule

PACKAGES = ("torch", "gymnasium", "mujoco")
EPISODES = 20
"""Deterministic evaluation episodes at the end."""


@dataclass(frozen=True, kw_only=True)
class Job(table.Job):
    """One training and its evaluation."""

    env: str
    seed: int
    total_steps: int


class Learning(table.Question[Job]):
    """The recipe of every task."""

    name = "learning"
    jobs_per_process = 1

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "Hopper-v5", "HalfCheetah-v5", "Walker2d-v5"])
        parser.set_defaults(total_steps=1_000_000)

    def jobs(self) -> list[Job]:
        """Seed by seed, so that an interrupted table has every cell before any cell has two seeds."""
        steps = self.args.total_steps
        return [Job(env=env, seed=seed, total_steps=steps) for seed in self.args.seeds for env in self.args.envs]

    def describe(self, row: Result) -> str:
        scores = f"training {row['training_return']:.0f}, evaluation {row['evaluation_return']:.0f}"
        return f"{row['env']} seed {row['seed']}: {scores}"

    def work(self, job: Job) -> dict[str, Any]:
        folder = self.runs.resolve() / f"{job.env}-{job.total_steps}" / f"seed-{job.seed}"
        return train(job.env, {}, job.seed, job.total_steps, folder)

    def key(self, row: Result) -> str:
        """Early tables have the steps that were taken, whole rollouts, and not those that were asked for."""
        asked, taken = self.args.total_steps, row["env_steps"]
        steps = row.get("total_steps", asked if 0 <= taken - asked < 0.05 * asked else taken)
        return Job(env=row["env"], seed=row["seed"], total_steps=steps).key

    # ------------------------------------------------------------------ report

    def pack(self, rows: list[Result]) -> Any:
        return {"where": self.where(), "results": rows}

    def unpack(self, content: Any) -> list[Result]:
        return list(content["results"])

    def where(self) -> dict[str, str]:
        """Versions and machine; scores differ across MuJoCo versions."""
        return {
            **where.machine(),
            **{name: where.versions(name).split()[1] for name in PACKAGES},
            "parallel": str(self.args.parallel),
            "date": where.today(),
            "command": self.command(),
        }

    def words(self) -> list[str]:
        args = self.args
        return ["--envs", *args.envs, "--seeds", *map(str, args.seeds), "--total-steps", str(args.total_steps)]

    def report(self, results: Sequence[Result]) -> str:
        return markdown(results, self.failures, self.where())

    def draw(self, results: Sequence[Result], path: Path) -> None:
        """One panel per task: mean over seeds and their range."""
        groups = {env: [r["curve"] for r in group if r["curve"]] for env, group in by_env(results).items()}
        groups = {env: curves for env, curves in groups.items() if curves}
        if not groups:
            return
        figure = table.canvas(3.4 * len(groups), 2.9, dpi=130)
        for number, (env, curves) in enumerate(groups.items(), start=1):
            axes = figure.add_subplot(1, len(groups), number)
            band = table.band(curves, points=200)
            axes.fill_between(band["steps"], band["low"], band["high"], alpha=0.25, linewidth=0)
            axes.plot(band["steps"], band["mean"], linewidth=1.8)
            axes.set(title=f"{env} ({len(curves)} seeds)", xlabel="environment steps")
            axes.spines[["top", "right"]].set_visible(False)
            axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
            if number == 1:
                axes.set_ylabel("return, last 100 episodes\n(mean and range over seeds)")
        figure.savefig(path)


def train(env: str, env_kwargs: Mapping[str, Any], seed: int, total_steps: int, folder: Path) -> dict[str, Any]:
    """The environment's recipe, trained in a folder, or continued there; the result once more if it was finished."""
    from understudy import recipes
    from understudy.runs.config import EvaluationConfig
    from understudy.runs.folder import RunFolder
    from understudy.runs.metrics import read_metrics

    if env == "CartPole-v1":
        config = recipes.cartpole(total_steps=total_steps, seed=seed)
    else:
        config = recipes.mujoco(env, total_steps=total_steps, seed=seed)
    config = dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, kwargs=dict(env_kwargs)),
        evaluation=EvaluationConfig(episodes=EPISODES),
    )
    started = time.perf_counter()
    table.train_in(folder, config)
    files = RunFolder(folder)
    metrics, evaluation = read_metrics(files.metrics), json.loads(files.evaluation.read_text())
    return {
        "env": env,
        "seed": seed,
        "env_steps": int(metrics[-1]["step"]),
        "recipe": config.recipe,
        "revision": where.revision(),
        "training_return": metrics[-1]["episode/return"],  # mean of the last 100 training episodes
        "evaluation_return": evaluation["mean_return"],
        "evaluation_episodes": evaluation["episodes"],
        "seconds": time.perf_counter() - started,  # of this attempt
        "steps_per_second": sorted(row["time/steps_per_second"] for row in metrics)[len(metrics) // 2],
        "curve": table.curve(metrics, "episode/return", most=200, digits=2),
    }


def by_env(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results per environment, by seed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["env"], []).append(result)
    return {env: sorted(group, key=lambda r: int(r["seed"])) for env, group in groups.items()}


def markdown(results: Sequence[Result], failures: Sequence[str], at: Mapping[str, str]) -> str:
    """The table beside the published numbers."""
    columns = list(SOURCES)
    lines = [
        "# Learning",
        "",
        line("task", "seeds", "steps", "training return", "evaluation", *columns, "steps/s"),
        rule(6 + len(columns)),
        *(row(env, group) for env, group in by_env(results).items()),
        "",
        "Mean ± standard deviation over seeds. Training return: mean of the last 100 training episodes (the policy "
        f"samples). Evaluation: {results[0]['evaluation_episodes']} deterministic episodes of the final policy with "
        "frozen statistics. One recipe for all MuJoCo tasks.",
        "",
        "![learning curves](learning.png)",
        "",
        "Published numbers, for orientation (other simulators, other metrics, as their authors report them):",
        *(f"- **{column}**: {text}" for column, text in SOURCES.items()),
        "",
        *(f"- {text}" for text in failures),
        f"Measured on {at['cpu']} ({at['cores']} cores), {at['parallel']} trainings at a time, one thread "
        f"each; gymnasium {at['gymnasium']}, **mujoco {at['mujoco']}**, torch {at['torch']}, understudy "
        f"{table.revisions(results)}; {at['date']}; `{at['command']}`",
        "",
    ]
    return "\n".join(lines)


def row(env: str, group: Sequence[Result]) -> str:
    """One task's line."""
    steps = sorted({int(r["env_steps"]) for r in group})
    return line(
        env,
        ", ".join(str(r["seed"]) for r in group),
        " to ".join(f"{s:,}" for s in dict.fromkeys((steps[0], steps[-1]))),
        f"**{cell([r['training_return'] for r in group], separator='')}**",
        cell([r["evaluation_return"] for r in group], separator=""),
        *(PUBLISHED.get(env, {}).get(column, "-") for column in SOURCES),
        f"{statistics.median(r['steps_per_second'] for r in group):,.0f}",
    )
