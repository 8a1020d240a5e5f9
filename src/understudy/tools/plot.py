"""Learning curves as a picture: a metric against environment steps, or against epochs; seeds together in a band."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from understudy.core.check import nearest
from understudy.core.extras import require
from understudy.runs.folder import RunFolder
from understudy.runs.metrics import STEP, read_metrics

RETURN, EVALUATION = "episode/return", "evaluation/return"


class Curve(NamedTuple):
    """One metric of a run."""

    steps: list[float]
    values: list[float]
    epochs: bool  # True: `steps` are epochs of offline training


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window` - 1 before it; NaN is left out (NaN where nothing is left).

    Raises ValueError if `window` is not positive.
    """
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1")
    out = []
    for end in range(1, len(values) + 1):
        seen = [v for v in values[max(0, end - window) : end] if not math.isnan(v)]
        out.append(sum(seen) / len(seen) if seen else math.nan)
    return out


def curve(rows: Sequence[Mapping[str, float]], metric: str) -> Curve:
    """One metric, rows without it or with NaN left out; epochs only where no environment step has the metric."""
    found = [row for row in rows if metric in row and not math.isnan(row[metric])]
    online = [row for row in found if not any(name.startswith("offline/") for name in row)]
    shown = online or found
    return Curve([row[STEP] for row in shown], [row[metric] for row in shown], bool(shown) and not online)


def group_seeds(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Label -> runs that differ in nothing but seed and folder. Imports nothing that their configs name.

    Raises ValueError if a folder is not a run.
    """
    groups: dict[str, list[Path]] = {}
    recipes: dict[str, str] = {}
    for run in runs:
        plain = RunFolder(run).read_plain()
        key = json.dumps({**plain, "seed": None, "run_dir": None}, sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
        recipes[key] = f"{plain['recipe']} on {plain['env']['id']}"
    unique = len({run.name for run in runs}) == len(runs)
    labels: dict[str, list[Path]] = {}
    for key, group in groups.items():
        label = group[0].name if unique else str(group[0])
        if len(group) > 1:
            alone = list(recipes.values()).count(recipes[key]) == 1
            label = f"{recipes[key] if alone else label}, {len(group)} seeds"
        labels[label] = group
    return labels


def plot_learning_curves(
    runs: Mapping[str, Path | Sequence[Path]],
    output: Path,
    *,
    title: str = "",
    metric: str = RETURN,
    window: int = 5,
    levels: Mapping[str, float] | None = None,
) -> Path:
    """Draw the curves of runs into the PNG `output` and return it.

    `runs`: label -> a run's metrics.jsonl, or those of several seeds. A thin line is the metric as logged, a bold one
    its running mean over `window` rows. Seeds are drawn as the mean of their running means in a band from the lowest to
    the highest. Dots beside `episode/return` are evaluations; `levels` (label -> value) are dotted horizontals. Raises
    ImportError that names the extra, ValueError, with the metrics that there are, if no run has this one, and where
    some runs have it for epochs and others for environment steps.
    """
    require("drawing learning curves", "matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it picks a window system and keeps global state

    rows = {label: [read_metrics(x) for x in ([p] if isinstance(p, Path) else p)] for label, p in runs.items()}
    curves = {label: [c for each in group if (c := curve(each, metric)).steps] for label, group in rows.items()}
    epochs = _unit({c.epochs for group in curves.values() for c in group}, rows, metric)
    window = 1 if metric.startswith("evaluation/") else window
    figure = Figure(figsize=(7.0, 5.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    evaluated = False
    for number, (label, group) in enumerate(curves.items()):
        if not group:
            continue
        color, bold = f"C{number % 10}", [c._replace(values=smooth(c.values, window)) for c in group]
        steps, mean, low, high = _band(bold)
        axes.plot(steps, mean, color=color, linewidth=2, label=textwrap.fill(label, 80))
        if len(group) == 1:
            axes.plot(group[0].steps, group[0].values, color=color, alpha=0.3, linewidth=1)
        else:
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        scored = [c for each in rows[label] if (c := curve(each, EVALUATION)).steps and c.epochs == epochs]
        if metric == RETURN and scored:  # beside any other metric they would be on the wrong axis
            evaluated = True
            axes.plot(*_band(scored)[:2], "o--", color=color, markeredgecolor="white", linewidth=1)
    if evaluated:
        axes.plot([], [], "o--", color="gray", markeredgecolor="white", linewidth=1, label="evaluation")
    for label, level in (levels or {}).items():
        axes.axhline(level, color="black", linestyle=":", linewidth=1.5, label=label)
    window_of = "mean of the last 100 episodes, " if metric.startswith("episode/") else ""
    how = f"\n({window_of}smoothed over {window} {'epochs' if epochs else 'iterations'})" if window > 1 else ""
    axes.set(xlabel="epochs" if epochs else "environment steps", ylabel=metric + how, title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    wide = max(map(len, curves)) > 36  # two of these would not fit beside each other
    figure.legend(loc="outside lower center", ncols=1 if wide else 2, frameon=False, fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _unit(found: set[bool], rows: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], metric: str) -> bool:
    """Whether all curves are over epochs. Raises ValueError if there are none, or of both kinds."""
    if not found:
        known = sorted({name for group in rows.values() for each in group for row in each for name in row} - {STEP})
        close = nearest(metric, known)
        hint = "" if close.startswith("known") else f"{close} "
        raise ValueError(f"no run has the metric {metric!r}; {hint}There is: {', '.join(known) or 'nothing yet'}")
    if len(found) > 1:
        raise ValueError(f"some runs have {metric!r} for epochs, others for environment steps: draw them apart")
    return found.pop()


def _band(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, mean, lowest and highest value of curves, at the steps of the first one that all of them cover."""
    start, end = max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)
    steps = [step for step in curves[0].steps if start <= step <= end]
    values = np.stack([np.interp(steps, c.steps, c.values) for c in curves])
    return steps, values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist()
