"""Describe recorded demonstrations: episodes, returns, ranges, gaps as text, a picture, and whether they fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from understudy.core.extras import require
from understudy.core.spaces import bounds_of, component_keys, is_box
from understudy.data.demonstrations.check import load_trajectories
from understudy.data.demonstrations.demonstrations import MEMORY_MAP_ABOVE
from understudy.data.demonstrations.read import open_recording
from understudy.data.demonstrations.recording import Recording, first_rows
from understudy.envs.registry import EnvConfig

_JUMP, _MOST_ENTRIES, _MOST_ROWS = 10.0, 512, 64  # times a usual change; entries of a vector; lines of one table


class Column(NamedTuple):
    """All values of an action or an observation, `[M, ...]`, without final observations."""

    name: str
    shape: tuple[int, ...]
    values: np.ndarray | None  # [M, entries]; None for images, which are only looked through
    low: np.ndarray  # [entries], of finite values
    high: np.ndarray
    wrong: int  # how many values are not finite


class Report(NamedTuple):
    """What is in a recording."""

    recording: Recording
    columns: list[Column]
    returns: np.ndarray  # [K], NaN where rewards are unknown
    terminated: np.ndarray  # [K] bool


def read_report(source: str | Path, subset: str = "") -> Report:
    """Look through a recording. Raises as `open_recording` does, and ValueError for a subset that it does not list."""
    with open_recording(source) as opened:
        recording = opened.select(opened.subset(subset)) if subset else opened
        K = range(len(recording.lengths))

        def signal(name: str) -> list[np.ndarray]:
            return [np.asarray(recording.read(k, name)) for k in K] if name in recording.signals else []

        columns = [_column("actions", signal("actions"))]
        for place in recording.shapes:
            name = "/".join(("observations", *place))
            columns.append(_column(name, (recording.read_observations(k, place)[:-1] for k in K)))
        returns = [float(np.sum(x, dtype=np.float64)) for x in signal("rewards")] or [math.nan] * len(K)
        ends = [bool(x.size and x.reshape(-1)[-1]) for x in signal("terminations")] or [False] * len(K)
        return Report(recording, columns, np.array(returns), np.array(ends))


def _column(name: str, trajectories: Iterator[np.ndarray] | Sequence[np.ndarray]) -> Column:
    kept: list[np.ndarray] = []
    low = high = np.empty(0)
    shape, wrong, first = (), 0, True
    for values in trajectories:
        shape, flat = values.shape[1:], values.reshape(len(values), -1)
        small = flat.shape[1] <= _MOST_ENTRIES
        flat = flat.astype(np.float32) if small else flat.reshape(-1, 1)
        finite = np.isfinite(flat)
        wrong += int((~finite).sum())
        least = np.where(finite, flat, np.inf).min(0, initial=np.inf)
        most = np.where(finite, flat, -np.inf).max(0, initial=-np.inf)
        if not first and len(least) != len(low):
            raise ValueError(f"{name} differs in shape between trajectories: {shape} in one of them")
        low, high = (least, most) if first else (np.minimum(low, least), np.maximum(high, most))
        first = False
        kept += [flat] if small else []
    return Column(name, shape, np.concatenate(kept) if kept else None, low, high, wrong)


# ----------------------------------------------------------------------------------------------------------- as text


def describe(report: Report) -> str:
    """Format, episodes, lengths, returns, success, lists, remarks, ranges, gaps."""
    recording, lengths = report.recording, report.recording.lengths
    known = {k: v for k, v in recording.metadata.items() if isinstance(v, str | float | int) and len(str(v)) < 60}
    lines = [
        f"{recording.kind or 'arrays'}: {len(lengths):,} trajectories, {int(lengths.sum()):,} transitions",
        *([", ".join(f"{name} {value}" for name, value in sorted(known.items()))] if known else []),
        f"length: {_spread(lengths)}",
        "return: unknown" if np.isnan(report.returns).any() else f"return: {_spread(report.returns)}",
        f"ends: {int(report.terminated.sum())} of the task, {int((~report.terminated).sum())} cut off",
    ]
    if recording.success is not None:
        lines.append(f"success: {int(recording.success.sum())} of {len(lengths)} (only_success)")
    if recording.subsets:
        told = ", ".join(f"{name} {len(chosen)}" for name, chosen in recording.subsets.items())
        lines.append(f"lists (subset): {told}")
    lines += [f"note: {remark}" for remark in recording.remarks]
    for column in report.columns:
        lines += ["", *_ranges(column)]
    gaps = [gap for column in report.columns for gap in _gaps(column, lengths)]
    return "\n".join([*lines, "", f"gaps: {len(gaps) or 'none'}", *(f"  {gap}" for gap in gaps)])


def _spread(values: np.ndarray) -> str:
    return f"{values.min():,g} to {values.max():,g}, mean {values.mean():,.4g}" if len(values) else "none"


def _ranges(column: Column) -> Iterator[str]:
    yield f"{column.name} {list(column.shape)}"
    if column.values is None:
        yield f"  {column.low.min(initial=np.inf):.4g} .. {column.high.max(initial=-np.inf):.4g}"
        return
    mean, std = column.values.mean(0, dtype=np.float64), column.values.std(0, dtype=np.float64)
    for entry in range(min(len(column.low), _MOST_ROWS)):
        fixed = " (constant)" if column.low[entry] == column.high[entry] else ""
        yield (
            f"  {entry:>3}  {column.low[entry]: .4g} .. {column.high[entry]: .4g}, "
            f"mean {mean[entry]:.3g}, deviation {std[entry]:.3g}{fixed}"
        )
    if len(column.low) > _MOST_ROWS:
        yield f"  ... {len(column.low) - _MOST_ROWS} more"


def _gaps(column: Column, lengths: np.ndarray) -> Iterator[str]:
    """Values that are not finite, and the largest change of a column that is far beyond its usual ones."""
    if column.wrong:
        yield f"{column.name}: {column.wrong} values are not finite"
    if column.values is None or column.name == "actions" or len(column.values) < 2:
        return
    changes = np.abs(np.diff(column.values, axis=0))
    starts = first_rows(lengths)
    changes[starts[1:] - 1] = 0.0  # from one trajectory to the next
    usual = np.maximum(np.quantile(changes, 0.99, axis=0, method="lower"), 1e-6)
    entry = int(np.argmax(changes.max(0) / usual))
    row = int(changes[:, entry].argmax())
    if changes[row, entry] > _JUMP * usual[entry]:
        k = int(np.searchsorted(starts, row, side="right")) - 1
        step = row - int(starts[k])
        yield (
            f"{column.name} {entry}: trajectory {k}, step {step} to {step + 1} changes by {changes[row, entry]:.4g} "
            f"(usual: up to {usual[entry]:.3g})"
        )


# --------------------------------------------------------------------------------------------------------- a picture


def draw(report: Report, output: Path, most: int = 40) -> Path:
    """Draw lengths, returns and the distributions of the first `most` actions and observations into a PNG.

    Raises ImportError, naming the extra, without matplotlib.
    """
    require("drawing demonstrations", "matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [("length", report.recording.lengths)]
    if not np.isnan(report.returns).any():
        drawn.append(("return", report.returns))
    for column in report.columns:
        if column.values is not None:
            drawn += [(f"{column.name} {i}", column.values[:, i]) for i in range(column.values.shape[1])]
    panels = drawn[:most]
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, 1.6 * rows + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, (name, values) in zip(places, panels):
        place.hist(values[np.isfinite(values)], bins=40, color="C0" if name.split()[0] != "actions" else "C1")
        place.set_title(name, fontsize=7)
        place.tick_params(labelsize=6)
        place.set_yticks([])
    for place in places[len(panels) :]:
        place.set_visible(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


# -------------------------------------------------------------------------------------------------- an environment


def fit_environment(
    report: Report, source: str | Path, env: EnvConfig, subset: str = "", file_observations: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """One line on what fits, and every reason why training on these demonstrations in `env` would be refused."""
    made = env.make()
    try:
        observations, actions = made.observation_space, made.action_space
    finally:
        made.close()
    problems = []
    for key in component_keys(observations):
        try:
            load_trajectories(
                source, observations, actions, keys=[key], num_trajectories=None, subset=subset, only_success=False,
                file_observations=file_observations, env_id=None, groups=env.groups, segments=env.segments,
                memory_map_above=MEMORY_MAP_ABOVE, actions="executed",
            )  # fmt: skip
        except ValueError as error:
            problems.append(str(error))
    acted = report.columns[0]
    said = f"observations {', '.join('/'.join(key) for key in component_keys(observations))}, actions {actions}"
    if is_box(actions) and acted.low.shape == bounds_of(actions)[0].reshape(-1).shape:
        low, high = (bound.reshape(-1) for bound in bounds_of(actions))
        if (np.abs(np.stack((acted.low, acted.high))) <= 1).all() and (np.maximum(-low, high) > 1.5).any():
            said += '; the file\'s lie in [-1, 1]: if its policy scaled them, set actions to "scaled"'
    return said, list(dict.fromkeys(problems))
