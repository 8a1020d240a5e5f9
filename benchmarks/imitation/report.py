"""What the imitation benchmark reports: tables beside the published scores, pictures."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.imitation.published import METHODS, PUBLISHED, SOURCES
from benchmarks.table import Result, band, canvas, cell, line, rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPERT = "expert"
ADVERSARIAL = ("gail", "airl", "bc-gail")  # these step the environment
RECORDED = 25
"""Episodes that each expert is recorded for; a method that gets fewer takes the first ones."""
CURVES_CAPTION = (
    "Curves: return while training, actions sampled, mean and range over seeds. Dots and broken lines: final "
    "scores, as in the table."
)
SWEEP_CAPTION = "Points: mean, lowest and highest seed."


# ---------------------------------------------------------------------- tables


def scores(results: Sequence[Result], method: str, task: str, trajectories: int | None = None) -> list[float]:
    """Scores of all seeds of a cell."""
    return [
        r["test_return"]
        for r in results
        if (r["method"], r["task"]) == (method, task) and trajectories in (None, r["trajectories"])
    ]


def share(values: Sequence[float], expert: float) -> str:
    """Mean in percent of the expert's score, the lowest seed's in brackets; or a dash."""
    if not values:
        return "-"
    mean, lowest = (100.0 * x / expert for x in (statistics.fmean(values), min(values)))
    return f"{mean:.1f} %" if len(values) < 2 else f"{mean:.1f} % ({lowest:.1f} %)"


def duration(seconds: float) -> str:
    """In the unit that people would say."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def published(source: str, task: str, method: str) -> str:
    """A published score and what share of its own expert's it is; or a dash."""
    if (task, method) not in PUBLISHED[source]:
        return "-"
    text, mean, expert = PUBLISHED[source][task, method]
    return text if expert is None else f"{text} ({100.0 * mean / expert:.0f} %)"


def main_table(results: Sequence[Result], args: argparse.Namespace) -> str:
    """One row for each task and method, beside the published scores."""
    lines = [
        "# Imitation",
        "",
        "| task | method | seeds | return | share of the expert's (lowest seed) | time | " + " | ".join(SOURCES) + " |",
        rule(6 + len(SOURCES)),
    ]
    for task in args.tasks:
        expert = scores(results, EXPERT, task)
        for method in ([EXPERT] if expert else []) + list(args.methods):
            found = [r for r in results if (r["method"], r["task"]) == (method, task)]
            returns = [r["test_return"] for r in found]
            cells = [task, "expert (PPO)" if method == EXPERT else METHODS[method]]
            cells += [
                ", ".join(str(r["seed"]) for r in found) or "-",
                f"**{cell(returns, separator='')}**" if returns else "-",
            ]
            cells += [share(returns, expert[0]) if expert else "-"]
            cells += [duration(statistics.median(r["seconds"] for r in found)) if found else "-"]
            cells += [published(source, task, method) for source in SOURCES]
            lines.append(line(*cells))
    sources = [f"- **{name}**: {text}." for name, text in SOURCES.items()]
    return "\n".join([*lines, "", *explanation(results, args), *sources, ""])


def explanation(results: Sequence[Result], args: argparse.Namespace) -> list[str]:
    """What the rows of the main table are."""
    asked = [r["asked_steps"] for r in results if r["method"] == "dagger"]
    steps = {r["task"]: r["total_steps"] for r in results if r["method"] == EXPERT}
    experts = ", ".join(f"{count:,} ({task})" for task, count in steps.items())
    shown = {r["task"]: r["shown"] for r in results if r["method"] in ADVERSARIAL and "shown" in r}
    successes = ", ".join(f"{count} ({task})" for task, count in shown.items())
    about = f", about {statistics.median(asked):,.0f} steps in all" if asked else ""
    return [
        f"Mean ± standard deviation over seeds of the mean return of {args.episodes} episodes (mode of the policy, the "
        f"same initial states for experts and learners, not those of the recording). Experts: the recipe `mujoco`, "
        f"{experts} steps, one seed; the Ant without contact forces among its observations, as in v4. BC, GAIL and "
        f"AIRL learn from {max(args.trajectories)} episodes of the expert's mode, all steps of them; GAIL and AIRL, "
        f"which imitate failures in proportion, from those that returned 60 % of the median: {successes}. DAgger "
        f"asks the expert in rounds{about}. GAIL and AIRL take {args.total_steps:,} environment steps. Every method is "
        "its recipe, the same for all tasks. Time: the last attempt of a seed, one thread. "
        "A dash: not run, or not published.",
        "",
        "Published, each with its own experts and versions of the tasks:",
    ]


def sweep_table(results: Sequence[Result], args: argparse.Namespace) -> str:
    """One row for each task and method, one column for each number of trajectories."""
    counts = sorted(set(args.trajectories))
    lines = [
        "# How many demonstrations",
        "",
        "| task | method | " + " | ".join(f"{n} episode{'s' * (n > 1)}" for n in counts) + " |",
        rule(2 + len(counts)),
    ]
    for task in args.tasks:
        expert = scores(results, EXPERT, task)
        for method in args.methods:
            cells = [share(scores(results, method, task, n), expert[0]) if expert else "-" for n in counts]
            lines.append(line(task, METHODS[method], *cells))
    return "\n".join(
        [
            *lines,
            "",
            f"Share of the expert's score: mean over seeds {', '.join(map(str, args.seeds))} (lowest seed), "
            f"{args.episodes} test episodes each; the first episodes of the same recording. BC takes about as many "
            f"gradient steps from few episodes as from {RECORDED}; GAIL {args.total_steps:,} environment steps.",
            "",
        ]
    )


# ---------------------------------------------------------------------- pictures


def plot(results: Sequence[Result], args: argparse.Namespace, path: Path) -> None:
    """One panel for each task: learning curves and levels, or the score over the number of trajectories."""
    tasks = [task for task in args.tasks if scores(results, EXPERT, task)]
    figure = canvas(max(4.2 * len(tasks), 5.6), 3.6, dpi=120)
    draw = draw_sweep if len(args.trajectories) > 1 else draw_curves
    for number, task in enumerate(tasks, start=1):
        axes = figure.add_subplot(1, len(tasks), number)
        axes.axhline(scores(results, EXPERT, task)[0], color="black", linewidth=1.0, label="expert")
        draw(axes, [r for r in results if r["task"] == task and r["method"] != EXPERT], list(args.methods))
        axes.set_title(task, fontsize=10)
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
    if figure.axes:
        figure.axes[0].set_ylabel("return")
        labelled = {text: mark for axes in figure.axes for mark, text in zip(*axes.get_legend_handles_labels())}
        figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_curves(axes: Axes, results: Sequence[Result], methods: Sequence[str]) -> None:
    """What steps the environment: its training return, and a dot, its final score. What does not: its final score."""
    for method in methods:
        color, found = color_of(method), [r for r in results if r["method"] == method]
        curves = [r["curve"] for r in found if len(r["curve"]) > 1]
        score = statistics.fmean(r["test_return"] for r in found) if found else None
        if method in ADVERSARIAL and curves:
            drawn = band(curves)
            axes.plot(drawn["steps"], drawn["mean"], color=color, label=METHODS[method])
            axes.fill_between(drawn["steps"], drawn["low"], drawn["high"], color=color, alpha=0.2, linewidth=0)
            axes.plot(drawn["steps"][-1], score, "o", color=color, clip_on=False)
        elif score is not None:  # two of these may lie on each other
            style = ":" if method == "dagger" else "--"
            axes.axhline(score, color=color, linestyle=style, linewidth=2.0, label=METHODS[method])
    axes.set_xlabel("environment steps")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))


def draw_sweep(axes: Axes, results: Sequence[Result], methods: Sequence[str]) -> None:
    """The final score over the number of trajectories: mean, lowest and highest seed."""
    for method in methods:
        found: dict[int, list[float]] = {}
        for r in results:
            if r["method"] == method:
                found.setdefault(r["trajectories"], []).append(r["test_return"])
        counts = sorted(found)
        mean = [statistics.fmean(found[n]) for n in counts]
        low, high = [min(found[n]) for n in counts], [max(found[n]) for n in counts]
        error = [[m - a for m, a in zip(mean, low)], [b - m for m, b in zip(mean, high)]]
        axes.errorbar(counts, mean, error, marker="o", capsize=3, color=color_of(method), label=METHODS[method])
    axes.set_xlabel("recorded episodes")


def color_of(method: str) -> str:
    """The same in every picture."""
    return f"C{list(METHODS).index(method)}"
