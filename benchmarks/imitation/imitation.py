"""Imitation learning from experts that our PPO trained: every method on every task, as a share of the expert's score.

    python -m benchmarks.imitation --tasks Hopper-v5 HalfCheetah-v5 Walker2d-v5 Ant-v5 --seeds 0 1 2
    python -m benchmarks.imitation --tasks Hopper-v5 --methods bc gail --trajectories 1 4 11 25 --name sweep
    python -m benchmarks.imitation --known-only

First the experts (recipe `mujoco`, seed 0; experts/ has those of the committed tables, others are trained), then 25
recorded episodes of each (its mode, no sampling), then the methods. Trainings run in processes of one thread each.
Finished ones (runs/results.jsonl, and those in results/<name>.json) are not repeated, interrupted ones continue from
their checkpoint. Writes results/<name>.md, .json and .png; with --known-only, from what there is, a dash for
everything that is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import table, where
from benchmarks.imitation import report
from benchmarks.imitation.published import METHODS
from benchmarks.imitation.report import ADVERSARIAL, EXPERT, RECORDED
from benchmarks.table import Result

if TYPE_CHECKING:
    from understudy.runs.config import OfflineConfig, TrainConfig

TASKS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5")
EXPERT_STEPS = {"Ant-v5": 3_000_000}
"""Of the experts that need more than a million."""
ENV_KWARGS: dict[str, dict[str, Any]] = {"Ant-v5": {"include_cfrc_ext_in_observation": False}}
"""Without the contact forces, 78 numbers that are mostly 0, the Ant learns to stay on its feet (and is v4's)."""
SUCCESS = 0.6
"""GAIL and AIRL imitate failures in proportion: they get the episodes above this share of the median return."""
EVALUATION_SEED = 2_000_003
"""Of the episodes that experts and learners alike are scored on: not those that were recorded."""


@dataclass(frozen=True, kw_only=True)
class Job(table.Job):
    """One training and its evaluation."""

    method: str  # a recipe, or EXPERT
    task: str
    seed: int
    total_steps: int  # of PPO; 0: none
    trajectories: int  # recorded episodes to learn from; 0: none
    expert_steps: int
    episodes: int

    @property
    def name(self) -> str:
        """For people and folders."""
        kind = f"{self.method}-{self.total_steps}-{self.task}-{self.expert_steps}"
        return f"{kind}-from-{self.trajectories}-seed-{self.seed}"


class Imitation(table.Question[Job]):
    """Experts, and everyone who learns from them."""

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tasks", nargs="+", default=list(TASKS))
        parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=["bc", "dagger", "gail", "airl"])
        parser.add_argument("--trajectories", nargs="+", type=int, default=[RECORDED], help=f"at most {RECORDED}")
        parser.add_argument("--expert-steps", type=int, help="of every expert; default: 1M, Ant 3M")
        parser.add_argument("--episodes", type=int, default=50, help="evaluation episodes, mode of the policy")
        parser.add_argument("--experts-only", action="store_true", help="train, score and record the experts")
        parser.add_argument("--name", default="imitation", help="of the files in results/")
        parser.add_argument("--picture", type=Path, help="where the picture goes instead")
        parser.set_defaults(total_steps=1_000_000)

    @classmethod
    def settle(cls, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        if not all(1 <= count <= RECORDED for count in args.trajectories):
            parser.error(f"--trajectories must lie between 1 and {RECORDED}")

    @property
    def name(self) -> str:
        return str(self.args.name)

    @property
    def store(self) -> Path:
        """Tables of any name share what was trained."""
        return self.runs / "results.jsonl"

    def jobs(self) -> list[Job]:
        """Experts first, then cheap methods."""
        return [*self.experts(), *self.learners()]

    def experts(self) -> list[Job]:
        """One expert for each task."""
        return [
            Job(
                method=EXPERT,
                task=task,
                seed=0,
                total_steps=self.steps_of_expert(task),
                trajectories=0,
                expert_steps=self.steps_of_expert(task),
                episodes=self.args.episodes,
            )
            for task in self.args.tasks
        ]

    def learners(self) -> list[Job]:
        """Cheap methods first; seed by seed, so that an interrupted table has every cell before any has two seeds."""
        args = self.args
        jobs = [
            Job(
                method=method,
                task=task,
                seed=seed,
                total_steps=args.total_steps if method in ADVERSARIAL else 0,
                trajectories=0 if method == "dagger" else count,
                expert_steps=self.steps_of_expert(task),
                episodes=args.episodes,
            )
            for seed in args.seeds
            for count in args.trajectories
            for task in args.tasks
            for method in ([] if args.experts_only else args.methods)
        ]
        return sorted(dict.fromkeys(jobs), key=lambda job: job.method in ADVERSARIAL)

    def steps_of_expert(self, task: str) -> int:
        """How long the task's expert trains."""
        chosen: int | None = self.args.expert_steps
        return EXPERT_STEPS.get(task, 1_000_000) if chosen is None else chosen

    def stages(self, jobs: Sequence[Job], known: dict[str, Result]) -> Iterator[Sequence[Job]]:
        experts = self.experts()
        yield experts
        for job in experts:
            if job.key in known:
                self.record_expert(job)  # here, where no two processes can record the same
        yield self.learners()

    def describe(self, row: Result) -> str:
        return f"{row['method']} {row['task']} from {row['trajectories']} seed {row['seed']}: {row['test_return']:.0f}"

    # ------------------------------------------------------------------ training

    def work(self, job: Job) -> dict[str, Any]:
        """Train, then score the mode of the policy on episodes of its own, the same ones for everyone."""
        from understudy.runs.folder import read_policy
        from understudy.tools.evaluate import evaluate

        expert = job.method == EXPERT
        source, trained = self.train_expert(job) if expert else self.train_learner(job)
        policy, config = read_policy(source)
        result = evaluate(policy, env=config.env, episodes=job.episodes, seed=EVALUATION_SEED)
        row = {
            "shown": self.shown(job),
            "test_return": result.mean_return,
            "test_std": result.std_return,
            "test_length": result.mean_length,
            **trained,
        }
        if not expert:
            shutil.rmtree(source)
        return row

    def train_expert(self, job: Job) -> tuple[Path, dict[str, Any]]:
        """The checkpoint of the task's expert, trained as the benchmark of learning trains, once; and its training."""
        checkpoint = self.expert_file(job)
        about = checkpoint.with_suffix(".json")
        if not about.is_file():
            from benchmarks.learning.learning import train
            from understudy.runs.folder import find_checkpoint

            folder = self.runs / "experts" / f"{job.task}-{job.expert_steps}-seed-0"
            result = train(job.task, ENV_KWARGS.get(job.task, {}), 0, job.expert_steps, folder)
            checkpoint.parent.mkdir(exist_ok=True)
            shutil.copy(find_checkpoint(folder), checkpoint)
            about.write_text(json.dumps(result) + "\n")
        result = json.loads(about.read_text())
        return checkpoint, {"asked_steps": 0.0, **{key: result[key] for key in ("revision", "seconds", "curve")}}

    def expert_file(self, job: Job) -> Path:
        """Where an expert's checkpoint is, or will be; what is known of its training lies beside it."""
        committed = self.home() / "experts" / f"{job.task}-{job.expert_steps}.pt"
        return committed if committed.is_file() or self.args.runs is None else self.runs / "experts" / committed.name

    def record_expert(self, job: Job) -> Path:
        """A file of the expert's episodes, recorded once."""
        from understudy.tools.record import record

        path = self.runs / "demonstrations" / f"{job.task}-{job.expert_steps}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            recorded = record(str(path), run=self.train_expert(job)[0], episodes=RECORDED)
            print(f"{job.task}: {recorded.sentence()}", file=sys.stderr, flush=True)
        return path

    def train_learner(self, job: Job) -> tuple[Path, dict[str, Any]]:
        """The folder of a finished training, continued where it was interrupted; and what there is to know of it."""
        from understudy.runs.folder import RunFolder
        from understudy.runs.metrics import read_metrics

        folder, started = self.runs / "trainings" / job.name, time.perf_counter()
        table.train_in(folder, self.config(job))
        metrics = read_metrics(RunFolder(folder).metrics)
        return folder, {
            "revision": where.revision(),
            "seconds": time.perf_counter() - started,  # of this attempt
            "asked_steps": sum(row.get("dagger/steps", 0.0) for row in metrics),  # the first round is not logged
            "curve": table.curve(metrics, "episode/return"),
        }

    def config(self, job: Job) -> TrainConfig:
        """The method's recipe as it is, without evaluations while training."""
        from understudy import recipes
        from understudy.runs.config import EvaluationConfig

        make: Any = recipes.find_recipe(job.method)  # each takes what its method needs
        config: TrainConfig
        if job.method == "dagger":
            config = make(job.task, expert=str(self.expert_file(job)), seed=job.seed)
        else:
            source = self.record_expert(job)
            config = make(job.task, demonstrations=str(source), total_steps=job.total_steps, seed=job.seed)
            chosen: dict[str, Any] = {"num_trajectories": job.trajectories}
            if job.method in ADVERSARIAL:
                chosen["min_return"] = least_return(source)
            parts = {k: dataclasses.replace(v, **chosen) for k, v in config.parts.items()}
            config = dataclasses.replace(config, parts=parts)
        if job.method == "bc":
            assert config.offline is not None
            config = dataclasses.replace(config, offline=as_many_steps(config.offline, job.trajectories))
        return dataclasses.replace(
            config,
            # the simulator of the expert: EnvPool's MuJoCo is another version
            env=dataclasses.replace(config.env, backend="gymnasium", kwargs=ENV_KWARGS.get(job.task, {})),
            evaluation=EvaluationConfig(episodes=0),
            checkpoint=dataclasses.replace(config.checkpoint, keep_last=1),
        )

    def shown(self, job: Job) -> int:
        """How many recorded episodes the method gets."""
        if job.method not in ADVERSARIAL:
            return job.trajectories
        source = self.record_expert(job)
        return sum(x >= least_return(source) for x in returns_of(source)[: job.trajectories])

    # ------------------------------------------------------------------ report

    def report(self, results: Sequence[Result]) -> str:
        make = report.sweep_table if len(self.args.trajectories) > 1 else report.main_table
        return make(results, self.args) + self.notes(results)

    def notes(self, results: Sequence[Result]) -> str:
        """How, where and when."""
        sweep = len(self.args.trajectories) > 1
        caption = report.SWEEP_CAPTION if sweep else report.CURVES_CAPTION
        lead = f"{len(results)} trainings, on a machine that did other things too; "
        line = self.measured(results, "torch", "gymnasium", "mujoco", lead=lead)
        picture = os.path.relpath(self.picture(), self.results)
        return "\n".join(["", f"![picture]({picture})", "", caption, "", line, ""])

    def words(self) -> list[str]:
        args = self.args
        words = ["--tasks", *args.tasks, "--methods", *args.methods, "--seeds", *map(str, args.seeds)]
        words += ["--trajectories", *map(str, args.trajectories)]
        words += [] if args.expert_steps is None else ["--expert-steps", str(args.expert_steps)]
        return [*words, "--total-steps", str(args.total_steps), "--name", args.name]

    def picture(self) -> Path:
        """Beside the tables, unless told otherwise."""
        return self.args.picture or super().picture()

    def draw(self, results: Sequence[Result], path: Path) -> None:
        report.plot(results, self.args, path)


def returns_of(source: Path) -> list[float]:
    """Returns of all recorded episodes."""
    import numpy as np

    with np.load(source) as file:
        first = np.cumsum(file["lengths"]) - file["lengths"]
        returns: list[float] = np.add.reduceat(file["rewards"], first).tolist()
    return returns


def least_return(source: Path) -> float:
    """Of the episodes that GAIL and AIRL get."""
    return SUCCESS * statistics.median(returns_of(source))


def as_many_steps(offline: OfflineConfig, trajectories: int) -> OfflineConfig:
    """The epochs over few trajectories that make about as many gradient steps as the recipe's over all of them."""
    times = RECORDED // trajectories
    patience = None if offline.patience is None else offline.patience * times
    return dataclasses.replace(offline, epochs=offline.epochs * times, patience=patience)
