"""Train `ppo` with nothing said, and Stable-Baselines3's `PPO("MlpPolicy", env)` beside it, on ten tasks.

    python -m benchmarks.defaults --seeds 0 1 2 3 4
    path/to/an/environment/with/stable-baselines3/bin/python -m benchmarks.defaults --libraries stable-baselines3

Each library's jobs run in its own interpreter, into one store of rows (runs/defaults.jsonl): the program that ends
last has the whole table, `--known-only` tabulates what there is. A score is the mean return of 20 deterministic
episodes of the final policy, in an environment of its own. Writes results/defaults.md and .json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import table, where
from benchmarks.table import Result, cell, line, rule

EPISODES = 20
OURS, THEIRS = "understudy", "stable-baselines3"
PACKAGES = ("torch", "gymnasium", "mujoco")
TASKS = (
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "LunarLander-v3",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
    "Reacher-v5",
    "Swimmer-v5",
)


@dataclass(frozen=True, kw_only=True)
class Job(table.Job):
    """One training and its test."""

    library: str
    env: str
    seed: int
    steps: int


class Defaults(table.Question[Job]):
    """Ten tasks, two lengths, two libraries."""

    name = "defaults"
    jobs_per_process = 1

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--envs", nargs="+", default=list(TASKS))
        parser.add_argument("--steps", nargs="+", type=int, default=[100_000, 300_000], help="lengths of training")
        parser.add_argument("--libraries", nargs="+", choices=(OURS, THEIRS), default=[OURS])
        parser.set_defaults(parallel=1, seeds=[0, 1, 2, 3, 4])

    def jobs(self) -> list[Job]:
        """Seed by seed, so that an interrupted table has every cell before any cell has two seeds."""
        args = self.args
        libraries = (OURS, THEIRS) if args.known_only else args.libraries
        return [
            Job(library=library, env=env, seed=seed, steps=steps)
            for seed in args.seeds
            for env in args.envs
            for steps in args.steps
            for library in libraries
        ]

    def describe(self, row: Result) -> str:
        return f"{row['library']} {row['env']} {row['steps']:,} seed {row['seed']}: {row['score']:.1f}"

    def work(self, job: Job) -> dict[str, Any]:
        started = time.perf_counter()
        folder = self.runs.resolve() / job.library / job.env / f"seed-{job.seed}"
        if job.library == THEIRS:
            from benchmarks.defaults import peer

            start = max((steps for steps in self.args.steps if steps < job.steps), default=0)
            found = peer.score(job.env, job.seed, job.steps, start, folder, EPISODES)
        else:
            found = train(job, folder / str(job.steps))
        version = where.versions(job.library) if job.library == THEIRS else where.revision()
        return {**found, "version": version, "seconds": time.perf_counter() - started}

    # ------------------------------------------------------------------ report

    def words(self) -> list[str]:
        args = self.args
        return ["--envs", *args.envs, "--steps", *map(str, args.steps), "--seeds", *map(str, args.seeds)]

    def report(self, results: Sequence[Result]) -> str:
        """Mean and standard deviation over seeds, side by side, and where ours is at least theirs."""
        known = {(row["steps"], row["library"]) for row in results}
        columns = [c for steps in self.args.steps for c in ((steps, OURS), (steps, THEIRS)) if c in known]
        lines = [
            "# Training with nothing said",
            "",
            line("task", *(f"{library}, {steps // 1000}k" for steps, library in columns)),
            rule(1 + len(columns)),
        ]
        verdicts: dict[int, list[bool]] = {steps: [] for steps in self.args.steps}
        for env in self.args.envs:
            found = {column: scores(results, env, *column) for column in columns}
            lines.append(line(env, *(shown(found[column]) for column in columns)))
            for steps, ahead in verdicts.items():
                if found.get((steps, OURS)) and found.get((steps, THEIRS)):
                    ahead.append(statistics.fmean(found[steps, OURS]) >= statistics.fmean(found[steps, THEIRS]))
        told = ", ".join(
            f"in {sum(x)} of {len(x)} tasks at {steps // 1000}k steps" for steps, x in verdicts.items() if x
        )
        versions = sorted({row["version"].replace("_", "-") for row in results if row["library"] == THEIRS})
        lines += [
            "",
            "`understudy train ppo --env.id TASK --total-steps N` beside Stable-Baselines3's "
            f'`PPO("MlpPolicy", TASK).learn(N)`: mean return of {EPISODES} deterministic episodes of the final policy, '
            f"mean ± standard deviation over seeds (how many, in brackets; {len(results)} training runs in all). Where "
            f"both are known, understudy's mean is at least Stable-Baselines3's: {told or 'nowhere yet'}.",
            "",
            f"{', '.join(versions) or 'Stable-Baselines3 not run'}; "
            + self.measured([{"revision": r["version"]} for r in results if r["library"] == OURS], *PACKAGES),
            "",
        ]
        return "\n".join(lines)

    def draw(self, results: Sequence[Result], path: Path) -> None:
        """The table is enough."""


def scores(results: Sequence[Result], env: str, steps: int, library: str) -> list[float]:
    """One cell's scores, over seeds."""
    return [r["score"] for r in results if (r["env"], r["steps"], r["library"]) == (env, steps, library)]


def shown(found: Sequence[float]) -> str:
    """A cell: small returns with their decimals."""
    digits = 0 if found and abs(statistics.fmean(found)) >= 100 else 2
    return f"{cell(found, digits)} ({len(found)})" if found else "-"


def train(job: Job, folder: Path) -> dict[str, Any]:
    """Our recipe, as the command line calls it."""
    from understudy import recipes
    from understudy.runs.config import EvaluationConfig
    from understudy.runs.folder import RunFolder

    config = recipes.ppo(job.env, total_steps=job.steps, seed=job.seed)
    table.train_in(folder, dataclasses.replace(config, evaluation=EvaluationConfig(episodes=EPISODES)))
    evaluation = json.loads(RunFolder(folder).evaluation.read_text())
    return {"score": evaluation["mean_return"], "std": evaluation["std_return"]}
