"""The paper's tables: every pipeline on every task over several seeds, beside the published numbers.

    python -m benchmarks.advisor --table doors --seeds 0 1 2 3 4
    python -m benchmarks.advisor --table light-house --seeds 0 1 2 3 4
    python -m benchmarks.advisor --table crossings --seeds 0 1 2 --methods ppo bc-tf1 bc-tf1-then-ppo advisor

Two trainings run at a time, in processes of one thread each. Finished runs (runs/<table>.jsonl, and those in
results/<table>.json) are not repeated, so an interrupted table continues, and a larger one takes over what a smaller
one had. Writes results/<table>.md, .json and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import table, where
from benchmarks.advisor.published import COLUMNS, LIGHT_HOUSE, LIGHT_HOUSE_OPTIMUM, METHODS, ROBUST_REWARD
from benchmarks.table import Result, cell, line, rule

CROSSINGS = tuple(task for task in COLUMNS if "Crossing" in task)
RADII = tuple(LIGHT_HOUSE["advisor"])
DEMONSTRATIONS = 1_000
"""Episodes of the expert that the pipelines with demonstrations draw from."""


@dataclass(frozen=True, kw_only=True)
class Job(table.Job):
    """One training and its test."""

    table: str
    method: str
    task: str
    options: tuple[tuple[str, int], ...]
    seed: int
    total_steps: int
    episodes: int


class Advisor(table.Question[Job]):
    """Every pipeline on every task of a table."""

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--table", choices=tuple(TABLES), required=True)
        parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="default: all of the table")
        parser.add_argument("--tasks", nargs="+", help="crossings: ids; light-house: view,expert pairs such as 1,15")
        parser.add_argument("--episodes", type=int, default=500, help="test episodes, actions sampled")
        parser.set_defaults(seeds=[0, 1, 2, 3, 4])

    @classmethod
    def settle(cls, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        args.methods = args.methods or default_methods(args.table)
        args.total_steps = args.total_steps or (1_000_000 if args.table == "crossings" else 300_000)  # the paper's

    @property
    def name(self) -> str:
        return str(self.args.table)

    def jobs(self) -> list[Job]:
        """Seed by seed, so that an interrupted table has every cell before any cell has two seeds."""
        args = self.args
        places: list[tuple[str, tuple[tuple[str, int], ...]]]
        if args.table == "light-house":
            pairs = [tuple(map(int, pair.split(","))) for pair in args.tasks] if args.tasks else RADII
            places = [("LightHouse-v0", (("view_radius", v), ("expert_radius", e))) for v, e in pairs]
        else:
            tasks = ("PoisonedDoors-v0",) if args.table == "doors" else tuple(args.tasks or CROSSINGS)
            places = [(task, ()) for task in tasks]
        return [
            Job(
                table=args.table,
                method=method,
                task=task,
                options=options,
                seed=seed,
                total_steps=args.total_steps,
                episodes=args.episodes,
            )
            for seed in args.seeds
            for task, options in places
            for method in args.methods
        ]

    def stages(self, jobs: Sequence[Job], known: dict[str, Result]) -> Iterator[Sequence[Job]]:
        from benchmarks.advisor.methods import FROM_DEMONSTRATIONS

        for job in jobs:
            if job.method in FROM_DEMONSTRATIONS and job.key not in known:
                self.record_expert(job)  # here, where no two processes can record the same
        yield jobs

    def describe(self, row: Result) -> str:
        where = f"{row['task']} {dict(row['options']) or ''}"
        return f"{row['method']} {where} seed {row['seed']}: {row['test_return']:.3f}"

    # ------------------------------------------------------------------ training

    def work(self, job: Job) -> dict[str, Any]:
        """Train one pipeline, then test its policy with sampled actions on other episodes."""
        from understudy.tools.evaluate import evaluate
        from understudy.tools.play import evaluation_seed

        config = self.config(job)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = table.train_in(Path(folder) / "run", config)
            assert run is not None  # the folder is new
            seconds, metrics = time.perf_counter() - started, run.metrics
        result = evaluate(
            run.policy, env=config.env, episodes=job.episodes, seed=evaluation_seed(job.seed), deterministic=False
        )
        return {
            "revision": where.revision(),
            "test_return": result.mean_return,
            "test_length": result.mean_length,
            "seconds": seconds,
            "env_steps": run.env_steps,
            "curve": table.curve(metrics, "episode/return"),
            "lengths": table.curve(metrics, "episode/length"),
        }

    def config(self, job: Job) -> Any:
        """The pipeline as it is, in the job's environment."""
        from benchmarks.advisor.methods import FROM_DEMONSTRATIONS, pipeline
        from understudy.runs.config import EvaluationConfig

        source = self.record_expert(job) if job.method in FROM_DEMONSTRATIONS else ""
        config = pipeline(job.method, job.task, total_steps=job.total_steps, seed=job.seed, demonstrations=source)
        return dataclasses.replace(
            config,
            env=dataclasses.replace(config.env, kwargs={**config.env.kwargs, **dict(job.options)}),
            evaluation=EvaluationConfig(episodes=0),
            checkpoint=dataclasses.replace(config.checkpoint, interval=None),
        )

    def record_expert(self, job: Job) -> str:
        """A file of the scripted expert's episodes, recorded once for each task."""
        from understudy.envs.registry import EnvConfig
        from understudy.tools.record import record

        name = "-".join([job.task, *(f"{key}-{value}" for key, value in job.options)])
        path = self.runs / "demonstrations" / f"{name}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            env = EnvConfig(id=job.task, num_envs=20, kwargs=dict(job.options))
            record(str(path), expert_of=env, episodes=DEMONSTRATIONS, seed=1_000_000)
        return str(path)

    # ------------------------------------------------------------------ report

    def report(self, results: Sequence[Result]) -> str:
        return TABLES[self.args.table](results) + self.notes(results)

    def notes(self, results: Sequence[Result]) -> str:
        """How, where and when."""
        seconds = sum(r["seconds"] for r in results)
        lead = (
            f"{len(results)} trainings of {seconds / 3600:.2f} hours in all, one thread each, on a machine that did "
            "other things too; "
        )
        return "\n".join(
            [
                f"Mean ± standard deviation over seeds {', '.join(map(str, sorted({r['seed'] for r in results})))}, "
                f"after {results[0]['total_steps']:,} environment steps; {self.args.episodes} test episodes, actions "
                "sampled. The paper's numbers are the expected best of 10 random draws of the hyper-parameters; ours "
                "are one setting for all, without a search. Curves are of training episodes: where the expert acts, "
                "it is the expert's.",
                "",
                f"![learning curves]({self.name}.png)",
                "",
                self.measured(results, "torch", lead=lead, threads=""),
                "",
            ]
        )

    def words(self) -> list[str]:
        args = self.args
        words = ["--table", args.table, "--seeds", *map(str, args.seeds), "--methods", *args.methods]
        return words + (["--tasks", *args.tasks] if args.tasks else [])

    def draw(self, results: Sequence[Result], path: Path) -> None:
        """One panel per task: the training curve of every pipeline, mean over seeds."""
        places = list(dict.fromkeys(place(r) for r in results))
        columns = min(4, len(places))
        rows = -(-len(places) // columns)
        # the legend has its place below
        figure = table.canvas(*((7.0, 5.5) if len(places) == 1 else (4.2 * columns, 3.2 * rows + 0.8)))
        for number, (task, options) in enumerate(places, start=1):
            axes = figure.add_subplot(rows, columns, number)
            draw_panel(axes, [r for r in results if place(r) == (task, options)], methods_of(results))
            axes.set_title(", ".join([COLUMNS.get(task, task), *(f"{k} {v}" for k, v in options)]), fontsize=9)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(places) == 1 else 6, fontsize=7)
        figure.savefig(path)


def place(result: Result) -> tuple[str, tuple[tuple[str, int], ...]]:
    """Task and options of a run."""
    return result["task"], tuple(map(tuple, result["options"]))


def draw_panel(axes: Any, results: Sequence[Result], methods: Sequence[str]) -> None:
    """Curves of one place."""
    lengths = results[0]["table"] == "light-house"
    for index, method in enumerate(methods):
        curves = [r["lengths" if lengths else "curve"] for r in results if r["method"] == method]
        curves = [curve for curve in curves if len(curve) > 1]
        if curves:
            band, style = table.band(curves), "-" if index < 10 else "--"
            axes.plot(band["steps"], band["mean"], label=METHODS[method], color=f"C{index % 10}", ls=style)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("episode length" if lengths else "return")
    axes.spines[["top", "right"]].set_visible(False)


def default_methods(name: str) -> list[str]:
    """Every pipeline that the table has a number for, and ours."""
    known = LIGHT_HOUSE if name == "light-house" else ROBUST_REWARD
    ours = [method for method in METHODS if method not in ROBUST_REWARD]
    return [method for method in METHODS if method in known or (method in ours and name != "light-house")]


def values(results: Sequence[Result], key: str, method: str, **at: Any) -> list[float]:
    """One number of every seed of a cell."""
    return [r[key] for r in results if r["method"] == method and all(r[k] == v for k, v in at.items())]


def methods_of(results: Sequence[Result]) -> list[str]:
    """In the order of the tables."""
    found = {r["method"] for r in results}
    return [method for method in METHODS if method in found]


def doors(results: Sequence[Result]) -> str:
    """Poisoned Doors: final test return."""
    lines = [
        "# Poisoned Doors",
        "",
        "| pipeline | test return | lowest seed | the paper's RobustReward@10 | steps/s |",
        rule(5),
    ]
    for method in methods_of(results):
        found = values(results, "test_return", method)
        speed = statistics.median(r["env_steps"] / r["seconds"] for r in results if r["method"] == method)
        paper = f"{ROBUST_REWARD[method][0]:.2f}" if method in ROBUST_REWARD else "-"
        lines.append(line(METHODS[method], f"**{cell(found, 3)}**", f"{min(found):.3f}", paper, f"{speed:,.0f}"))
    return "\n".join([*lines, "", "Best without seeing what the expert sees: 1; imitation's limit: -2/3.", ""])


def crossings(results: Sequence[Result]) -> str:
    """MiniGrid: final test return per column, the paper's number in brackets."""
    tasks = [task for task in CROSSINGS if any(r["task"] == task for r in results)]
    lines = ["# MiniGrid crossings", "", line("pipeline", *(COLUMNS[task] for task in tasks)), rule(len(tasks) + 1)]
    methods = methods_of(results)
    theirs = [method for method in methods if method in ROBUST_REWARD]
    for method in [*theirs, *(method for method in methods if method not in theirs)]:
        cells = []
        for task in tasks:
            paper = ROBUST_REWARD.get(method, (None,) * len(COLUMNS))[list(COLUMNS).index(task)]
            cells.append(cell(values(results, "test_return", method, task=task), 2))
            cells[-1] += f" ({paper:.2f})" if paper is not None else ""
        lines.append(line(METHODS[method], *cells))
    best = []  # of the methods that the paper has: what one of ours has to come up to
    for task in tasks:
        found = [values(results, "test_return", method, task=task) for method in theirs]
        ours = max((statistics.fmean(seeds) for seeds in found if seeds), default=None)
        paper = max(row[list(COLUMNS).index(task)] for row in ROBUST_REWARD.values())
        best.append(f"{'-' if ours is None else f'{ours:.2f}'} ({paper:.2f})")
    lines.insert(4 + len(theirs), line("*the best of these*", *best))
    head = "In brackets: the paper's RobustReward@10. Without ±: one seed."
    return "\n".join([*lines, "", head, ""])


def light_house(results: Sequence[Result]) -> str:
    """LightHouse: mean test length per pair of radii, the paper's in brackets."""
    pairs = [pair for pair in RADII if any(radii(r) == pair for r in results)]
    lines = [
        "# LightHouse",
        "",
        line("pipeline", *(f"{v}, {e}" for v, e in pairs)),
        rule(len(pairs) + 1),
        line("best with that view", *(str(LIGHT_HOUSE_OPTIMUM[v]) for v, _ in pairs)),
    ]
    for method in methods_of(results):
        cells = []
        for pair in pairs:
            found = [r["test_length"] for r in results if r["method"] == method and radii(r) == pair]
            paper = LIGHT_HOUSE.get(method, {}).get(pair)
            cells.append(cell(found, 0) + (f" ({paper:.0f})" if paper is not None else ""))
        lines.append(line(METHODS[method], *cells))
    head = "Mean length of test episodes by (view radius, expert's radius), lower is better. In brackets: the paper's."
    return "\n".join([*lines, "", head, ""])


def radii(result: Result) -> tuple[int, int]:
    """View radius and expert's radius of a run."""
    options = dict(result["options"])
    return options["view_radius"], options["expert_radius"]


TABLES = {"doors": doors, "light-house": light_house, "crossings": crossings}
