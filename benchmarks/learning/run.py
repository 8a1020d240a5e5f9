"""Train the library's recipes over several seeds and put the scores beside the published ones.

    python benchmarks/learning/run.py --envs CartPole-v1 Hopper-v5 HalfCheetah-v5 Walker2d-v5 --seeds 0 1 2 \
        --total-steps 1000000

Two trainings run at a time, each in a process of its own with one thread. A benchmark that was interrupted continues:
finished runs are kept in runs/, unfinished ones resume from their checkpoint. Writes results/learning.md, .json, .png.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from published import PUBLISHED, SOURCES

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "speed"))

Result = Mapping[str, Any]  # what worker.py writes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "Hopper-v5", "HalfCheetah-v5", "Walker2d-v5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="folder of the run folders")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    jobs = [(env, seed) for seed in args.seeds for env in args.envs]
    with ThreadPoolExecutor(args.parallel) as pool:
        outcomes = list(pool.map(lambda job: one(job[0], job[1], args.total_steps, args.runs), jobs))
    results = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if not results:
        sys.exit("\n".join(failures))
    report = markdown(results, failures, where(args))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "learning.md").write_text(report)
    (args.output / "learning.json").write_text(json.dumps({"where": where(args), "results": results}) + "\n")
    plot(results, args.output / "learning.png")
    print(report)


def one(env: str, seed: int, total_steps: int, runs: Path) -> dict[str, Any] | str:
    """Train once, or read what an earlier attempt left; its result, or why there is none."""
    folder = runs.resolve() / f"{env}-{total_steps}" / f"seed-{seed}"
    done = folder / "result.json"
    if not done.is_file():
        print(f"{env} seed {seed}: training", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / "worker.py"), "--env", env, "--seed", str(seed)]
        command += ["--total-steps", str(total_steps), "--run-dir", str(folder)]
        runs.mkdir(parents=True, exist_ok=True)
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=runs,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        if process.returncode or not done.is_file():
            last = (process.stderr.strip() or "no output").splitlines()[-1]
            return f"{env} seed {seed} failed: {last}"
    result: dict[str, Any] = json.loads(done.read_text())
    print(
        f"{env} seed {seed}: training {result['training_return']:.0f}, evaluation {result['evaluation_return']:.0f}",
        file=sys.stderr,
        flush=True,
    )
    return result


def by_env(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results per environment, by seed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["env"], []).append(result)
    return {env: sorted(group, key=lambda r: int(r["seed"])) for env, group in groups.items()}


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds: `2500 ± 100`."""
    mean = statistics.fmean(values)
    return f"{mean:.0f}" if len(values) < 2 else f"{mean:.0f} ± {statistics.stdev(values):.0f}"


def markdown(results: Sequence[Result], failures: Sequence[str], where: Mapping[str, str]) -> str:
    """The table beside the published numbers."""
    columns = list(SOURCES)
    lines = [
        "# Learning",
        "",
        "| task | seeds | steps | training return | evaluation | " + " | ".join(columns) + " | steps/s |",
        "|---" * (6 + len(columns)) + "|",
    ]
    for env, group in by_env(results).items():
        published = PUBLISHED.get(env, {})
        steps = sorted({int(r["env_steps"]) for r in group})
        cells = [
            env,
            ", ".join(str(r["seed"]) for r in group),
            " to ".join(f"{s:,}" for s in dict.fromkeys((steps[0], steps[-1]))),
            f"**{spread([r['training_return'] for r in group])}**",
            spread([r["evaluation_return"] for r in group]),
            *(published.get(column, "-") for column in columns),
            f"{statistics.median(r['steps_per_second'] for r in group):,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
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
        *(f"- failed: {text}" for text in failures),
        f"Measured on {where['cpu']} ({where['cores']} cores), {where['parallel']} trainings at a time, one thread "
        f"each; gymnasium {where['gymnasium']}, **mujoco {where['mujoco']}**, torch {where['torch']}, understudy "
        f"{', '.join(sorted({r['revision'] for r in results}))}; {where['date']}; `{where['command']}`",
        "",
    ]
    return "\n".join(lines)


def where(args: argparse.Namespace) -> dict[str, str]:
    """Versions and machine; scores differ across MuJoCo versions."""
    import tables

    words = ["--envs", *args.envs, "--seeds", *map(str, args.seeds), "--total-steps", str(args.total_steps)]
    return {
        **tables.machine(),
        **{name: importlib.metadata.version(name) for name in ("torch", "gymnasium", "mujoco")},
        "parallel": str(args.parallel),
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/learning/run.py " + " ".join(words),
    }


def band(curves: Sequence[Sequence[Sequence[float]]], points: int = 200) -> dict[str, list[float]]:
    """Mean, lowest and highest of several (step, value) curves on one grid of steps that all of them cover."""
    import numpy as np

    start, end = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
    grid = np.linspace(start, end, points)
    values = np.stack([np.interp(grid, [p[0] for p in c], [p[1] for p in c]) for c in curves])
    return {
        "steps": grid.tolist(),
        "mean": values.mean(0).tolist(),
        "low": values.min(0).tolist(),
        "high": values.max(0).tolist(),
    }


def plot(results: Sequence[Result], path: Path) -> None:
    """One panel per task: mean over seeds and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = {env: [r["curve"] for r in group if r["curve"]] for env, group in by_env(results).items()}
    groups = {env: curves for env, curves in groups.items() if curves}
    if not groups:
        return
    figure = Figure(figsize=(3.4 * len(groups), 2.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (env, curves) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(1, len(groups), number)
        line = band(curves)
        axes.fill_between(line["steps"], line["low"], line["high"], alpha=0.25, linewidth=0)
        axes.plot(line["steps"], line["mean"], linewidth=1.8)
        axes.set(title=f"{env} ({len(curves)} seeds)", xlabel="environment steps")
        axes.spines[["top", "right"]].set_visible(False)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        if number == 1:
            axes.set_ylabel("return, last 100 episodes\n(mean and range over seeds)")
    figure.savefig(path)


if __name__ == "__main__":
    main()
