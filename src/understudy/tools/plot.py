"""Learning curves as a picture: episode return against environment steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy.core.extras import require
from understudy.runs.metrics import STEP, read_metrics


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


def curve(rows: Sequence[Mapping[str, float]], metric: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one metric, rows without it or with NaN left out."""
    points = [(row[STEP], row[metric]) for row in rows if metric in row and not math.isnan(row[metric])]
    return [step for step, _ in points], [value for _, value in points]


def plot_learning_curves(
    runs: Mapping[str, Path],
    output: Path,
    *,
    title: str = "",
    metric: str = "episode/return",
    window: int = 5,
    levels: Mapping[str, float] | None = None,
) -> Path:
    """Draw one curve per run (label -> its metrics.jsonl) into the PNG `output` and return it.

    The thin line is the metric as logged, the bold one its running mean over `window` iterations; dots are
    evaluations; `levels` (label -> value) are dotted horizontals. Raises ImportError that names the extra, ValueError
    if no run has the metric.
    """
    require("drawing learning curves", "matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it picks a window system and keeps global state

    figure = Figure(figsize=(7.0, 5.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = 0
    for number, (label, path) in enumerate(runs.items()):
        rows, color = read_metrics(path), f"C{number % 10}"
        steps, values = curve(rows, metric)
        if not steps:
            continue
        drawn += 1
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        axes.plot(steps, smooth(values, window), color=color, linewidth=2, label=label)
        scored = curve(rows, "evaluation/return")
        if scored[0]:
            axes.plot(*scored, "o--", color=color, markeredgecolor="white", linewidth=1, label=f"{label}, evaluation")
    if not drawn:
        raise ValueError(f"none of {', '.join(map(str, runs.values()))} has {metric!r}; name a metric that was logged")
    for label, level in (levels or {}).items():
        axes.axhline(level, color="black", linestyle=":", linewidth=1.5, label=label)
    window_of = "mean of the last 100 episodes,\n" if metric.startswith("episode/") else ""
    label = f"{metric.replace('/', ' ')}\n({window_of}smoothed over {window} iterations)"
    axes.set(xlabel="environment steps", ylabel=label, title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)  # inside it would hide a curve
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output
