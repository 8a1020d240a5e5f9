"""The paper's tables: every pipeline on every task over several seeds, beside the published numbers.

    python benchmarks/advisor/run.py --table doors --seeds 0 1 2 3 4
    python benchmarks/advisor/run.py --table light-house --seeds 0 1 2 3 4
    python benchmarks/advisor/run.py --table crossings --seeds 0 1 2 --methods ppo bc-tf1 bc-tf1-then-ppo advisor

Two trainings run at a time, in processes that stay, with one thread each. Finished runs (runs/<table>.jsonl, and what
results/<table>.json has) are not repeated, so an interrupted table continues, and a larger one takes over what a
smaller one had. Writes results/<table>.md, .json and .png.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from published import COLUMNS, LIGHT_HOUSE, LIGHT_HOUSE_OPTIMUM, METHODS, ROBUST_REWARD

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
sys.path.append(str(HERE.parent / "speed"))
sys.path.append(str(HERE.parents[1] / "src"))  # used where the library is not installed

from jobs import KeyedJob, Result, cell, completed, one_thread_each, read_known, run_missing, thin, write_report  # noqa: E402

CROSSINGS = tuple(task for task in COLUMNS if "Crossing" in task)
RADII = tuple(LIGHT_HOUSE["advisor"])
DEMONSTRATIONS = 1_000
"""Episodes of the expert that the pipelines with demonstrations draw from."""


@dataclass(frozen=True, kw_only=True)
class Job(KeyedJob):
    """One training and its test."""

    table: str
    method: str
    task: str
    options: tuple[tuple[str, int], ...]
    seed: int
    total_steps: int
    episodes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("doors", "light-house", "crossings"), required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="default: all of the table")
    parser.add_argument("--tasks", nargs="+", help="crossings: ids; light-house: view,expert pairs such as 1,15")
    parser.add_argument("--total-steps", type=int, help="default: the paper's 300,000 (crossings: 1,000,000)")
    parser.add_argument("--episodes", type=int, default=500, help="test episodes, actions sampled")
    parser.add_argument("--known-only", action="store_true", help="train nothing: the table of what was run so far")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    one_thread_each()
    args.methods = args.methods or default_methods(args.table)
    results = run_all(make_jobs(args), args.table, 0 if args.known_only else args.parallel)
    if not results:
        parser.error("none of these trainings was run yet")
    report = {"doors": doors, "light-house": light_house, "crossings": crossings}[args.table](results)
    report += footer(args, results)
    write_report(HERE / "results", args.table, report, results)
    plot(results, HERE / "results" / f"{args.table}.png")
    print(report)


def default_methods(table: str) -> list[str]:
    """Every pipeline that the table has a number for, and ours."""
    known = LIGHT_HOUSE if table == "light-house" else ROBUST_REWARD
    ours = [method for method in METHODS if method not in ROBUST_REWARD]
    return [method for method in METHODS if method in known or (method in ours and table != "light-house")]


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Seed by seed, so that an interrupted table has every cell before any cell has two seeds."""
    places: list[tuple[str, tuple[tuple[str, int], ...]]]
    if args.table == "light-house":
        pairs = [tuple(map(int, pair.split(","))) for pair in args.tasks] if args.tasks else RADII
        places = [("LightHouse-v0", (("view_radius", v), ("expert_radius", e))) for v, e in pairs]
    else:
        tasks = ("PoisonedDoors-v0",) if args.table == "doors" else tuple(args.tasks or CROSSINGS)
        places = [(task, ()) for task in tasks]
    steps = args.total_steps or (1_000_000 if args.table == "crossings" else 300_000)
    return [
        Job(
            table=args.table,
            method=method,
            task=task,
            options=options,
            seed=seed,
            total_steps=steps,
            episodes=args.episodes,
        )
        for seed in args.seeds
        for task, options in places
        for method in args.methods
    ]


# ---------------------------------------------------------------------- running


def run_all(jobs: Sequence[Job], table: str, parallel: int) -> list[Result]:
    """The results of all jobs, from earlier runs where they are there; `parallel` 0: of those alone."""
    from understudy.recipes.advisor import FROM_DEMONSTRATIONS

    store = HERE / "runs" / f"{table}.jsonl"
    known = read_known(HERE / "results" / f"{table}.json", store)
    if parallel:
        for job in jobs:
            if job.method in FROM_DEMONSTRATIONS and job.key not in known:
                record_expert(job)  # here, where no two processes can record the same
        run_missing(jobs, known, train_and_test, store=store, parallel=parallel, describe=describe)
    return [known[job.key] for job in jobs if job.key in known]


def describe(row: Result) -> str:
    """One line of progress."""
    where = f"{row['task']} {dict(row['options']) or ''}"
    return f"{row['method']} {where} seed {row['seed']}: {row['test_return']:.3f}"


def train_and_test(job: Job) -> dict[str, Any]:
    """Train one pipeline, then test its policy with sampled actions on fresh episodes."""
    import dataclasses

    import tables
    import torch

    import understudy as us
    from understudy.recipes.advisor import FROM_DEMONSTRATIONS, pipeline
    from understudy.runs.config import EvaluationConfig, LoggingConfig
    from understudy.tools.evaluate import evaluate
    from understudy.tools.play import evaluation_seed

    torch.set_num_threads(1)
    demonstrations = record_expert(job) if job.method in FROM_DEMONSTRATIONS else ""
    config = pipeline(job.method, job.task, total_steps=job.total_steps, seed=job.seed, demonstrations=demonstrations)
    env = dataclasses.replace(config.env, kwargs={**config.env.kwargs, **dict(job.options)})
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            config,
            env=env,
            run_dir=str(Path(folder) / "run"),
            evaluation=EvaluationConfig(episodes=0),
            logging=LoggingConfig(console=False, tensorboard=False),
            checkpoint=dataclasses.replace(config.checkpoint, interval=None),
        )
        started = time.perf_counter()
        run = completed(us.train(config))
        seconds = time.perf_counter() - started
        metrics = run.metrics
    result = evaluate(run.policy, env=config.env, episodes=job.episodes, seed=evaluation_seed(job.seed), deterministic=False)
    return {
        "key": job.key,
        **asdict(job),
        "revision": tables.revision(HERE.parents[1]),
        "test_return": result.mean_return,
        "test_length": result.mean_length,
        "seconds": seconds,
        "env_steps": run.env_steps,
        "curve": thin([(row["step"], row["episode/return"]) for row in metrics]),
        "lengths": thin([(row["step"], row["episode/length"]) for row in metrics]),
    }


def record_expert(job: Job) -> str:
    """A file of the scripted expert's episodes, recorded once for each task."""
    from understudy.envs.registry import EnvConfig
    from understudy.tools.record import record

    name = "-".join([job.task, *(f"{key}-{value}" for key, value in job.options)])
    path = HERE / "runs" / "demonstrations" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        env = EnvConfig(id=job.task, num_envs=20, kwargs=dict(job.options))
        record(str(path), expert_of=env, episodes=DEMONSTRATIONS, seed=1_000_000)
    return str(path)


# ---------------------------------------------------------------------- tables


def values(results: Sequence[Result], key: str, method: str, **where: Any) -> list[float]:
    """One number of every seed of a cell."""
    return [r[key] for r in results if r["method"] == method and all(r[k] == v for k, v in where.items())]


def methods_of(results: Sequence[Result]) -> list[str]:
    found = {r["method"] for r in results}
    return [method for method in METHODS if method in found]


def doors(results: Sequence[Result]) -> str:
    """Poisoned Doors: final test return."""
    lines = [
        "# Poisoned Doors",
        "",
        "| pipeline | test return | lowest seed | the paper's RobustReward@10 | steps/s |",
        "|---|---|---|---|---|",
    ]
    for method in methods_of(results):
        found = values(results, "test_return", method)
        speed = statistics.median(r["env_steps"] / r["seconds"] for r in results if r["method"] == method)
        paper = f"{ROBUST_REWARD[method][0]:.2f}" if method in ROBUST_REWARD else "-"
        lines.append(f"| {METHODS[method]} | **{cell(found, 3)}** | {min(found):.3f} | {paper} | {speed:,.0f} |")
    return "\n".join([*lines, "", "Best without seeing what the expert sees: 1; imitation's limit: -2/3.", ""])


def crossings(results: Sequence[Result]) -> str:
    """MiniGrid: final test return per column, the paper's number in brackets."""
    tasks = [task for task in CROSSINGS if any(r["task"] == task for r in results)]
    lines = [
        "# MiniGrid crossings",
        "",
        "| pipeline | " + " | ".join(COLUMNS[task] for task in tasks) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    methods = methods_of(results)
    theirs = [method for method in methods if method in ROBUST_REWARD]
    for method in [*theirs, *(method for method in methods if method not in theirs)]:
        cells = []
        for task in tasks:
            paper = ROBUST_REWARD.get(method, (None,) * len(COLUMNS))[list(COLUMNS).index(task)]
            cells.append(cell(values(results, "test_return", method, task=task), 2))
            cells[-1] += f" ({paper:.2f})" if paper is not None else ""
        lines.append("| " + " | ".join([METHODS[method], *cells]) + " |")
    best = []  # of the methods that the paper has: what one of ours has to come up to
    for task in tasks:
        found = [values(results, "test_return", method, task=task) for method in theirs]
        ours = max((statistics.fmean(seeds) for seeds in found if seeds), default=None)
        paper = max(row[list(COLUMNS).index(task)] for row in ROBUST_REWARD.values())
        best.append(f"{'-' if ours is None else f'{ours:.2f}'} ({paper:.2f})")
    lines.insert(4 + len(theirs), "| " + " | ".join(["*the best of these*", *best]) + " |")
    head = "In brackets: the paper's RobustReward@10. Without ±: one seed."
    return "\n".join([*lines, "", head, ""])


def light_house(results: Sequence[Result]) -> str:
    """LightHouse: mean test length per pair of radii, the paper's in brackets."""
    pairs = [pair for pair in RADII if any(radii(r) == pair for r in results)]
    lines = [
        "# LightHouse",
        "",
        "| pipeline | " + " | ".join(f"{v}, {e}" for v, e in pairs) + " |",
        "|---" * (len(pairs) + 1) + "|",
        "| best with that view | " + " | ".join(str(LIGHT_HOUSE_OPTIMUM[v]) for v, _ in pairs) + " |",
    ]
    for method in methods_of(results):
        cells = []
        for pair in pairs:
            found = [r["test_length"] for r in results if r["method"] == method and radii(r) == pair]
            paper = LIGHT_HOUSE.get(method, {}).get(pair)
            cells.append(cell(found, 0) + (f" ({paper:.0f})" if paper is not None else ""))
        lines.append("| " + " | ".join([METHODS[method], *cells]) + " |")
    head = "Mean length of test episodes by (view radius, expert's radius), lower is better. In brackets: the paper's."
    return "\n".join([*lines, "", head, ""])


def radii(result: Result) -> tuple[int, int]:
    """View radius and expert's radius of a run."""
    options = dict(result["options"])
    return options["view_radius"], options["expert_radius"]


def footer(args: argparse.Namespace, results: Sequence[Result]) -> str:
    """How, where and when."""
    import tables

    machine = tables.machine()
    seconds = sum(r["seconds"] for r in results)
    words = ["--table", args.table, "--seeds", *map(str, args.seeds), "--methods", *args.methods]
    words += ["--tasks", *args.tasks] if args.tasks else []
    return "\n".join(
        [
            f"Mean ± standard deviation over seeds {', '.join(map(str, sorted({r['seed'] for r in results})))}, after "
            f"{results[0]['total_steps']:,} environment steps; {args.episodes} test episodes, actions sampled. The "
            "paper's numbers are the expected best of 10 random draws of the hyper-parameters; ours are one setting "
            "for all, without a search. Curves are of training episodes: where the expert acts, it is the expert's.",
            "",
            f"![learning curves]({args.table}.png)",
            "",
            f"{len(results)} trainings of {seconds / 3600:.2f} hours in all, one thread each, on a machine that did "
            f"other things too; {machine['cpu']}, {machine['cores']} cores; "
            f"torch {importlib.metadata.version('torch')}; understudy "
            f"{', '.join(sorted({r['revision'] for r in results}))}; {datetime.date.today().isoformat()}; "
            f"`python benchmarks/advisor/run.py {' '.join(words)}`",
            "",
        ]
    )


def plot(results: Sequence[Result], path: Path) -> None:
    """One panel per task: the training curve of every pipeline, mean over seeds."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = results[0]["table"] == "light-house"
    places = list(dict.fromkeys((r["task"], tuple(map(tuple, r["options"]))) for r in results))
    columns = min(4, len(places))
    rows = -(-len(places) // columns)
    size = (7.0, 5.5) if len(places) == 1 else (4.2 * columns, 3.2 * rows + 0.8)  # the legend has its place below
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (task, options) in enumerate(places, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for index, method in enumerate(methods_of(results)):
            curves = [
                r["lengths" if lengths else "curve"]
                for r in results
                if (r["method"], r["task"], tuple(map(tuple, r["options"]))) == (method, task, options)
            ]
            curves = [curve for curve in curves if len(curve) > 1]
            if not curves:
                continue
            grid = np.linspace(max(c[0][0] for c in curves), min(c[-1][0] for c in curves), 100)
            mean = np.mean([np.interp(grid, *zip(*curve)) for curve in curves], axis=0)
            axes.plot(grid, mean, label=METHODS[method], color=f"C{index % 10}", ls="-" if index < 10 else "--")
        axes.set_title(", ".join([COLUMNS.get(task, task), *(f"{k} {v}" for k, v in options)]), fontsize=9)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("episode length" if lengths else "return")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(places) == 1 else 6, fontsize=7)
    figure.savefig(path)


if __name__ == "__main__":
    main()
