"""Describe motion clips: fields, lengths, ranges and gaps as text, and a picture of every field over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from understudy.core.extras import require
from understudy.data.motions.files import MotionClip

_JUMP = 10.0  # times the field's usual change between frames


class Gap(NamedTuple):
    """An unusually large change of a field between two frames, or at the seam of a clip that wraps."""

    field: str
    frame: int  # the later one; 0: from the last frame to the first
    change: float
    usual: float  # the 99th percentile of the field's changes

    def __str__(self) -> str:
        place = "from the last frame to the first" if self.frame == 0 else f"frame {self.frame - 1} to {self.frame}"
        return f"{self.field}: {place} changes by {self.change:.4g} (usual: up to {self.usual:.3g})"


def find_gaps(clip: MotionClip) -> list[Gap]:
    """The largest jump of each of the clip's fields: a change beyond 10 times the field's 99th percentile.

    In a clip that wraps, the last frame is the first of the next cycle, so the same measure applies to their
    difference; the path of a root that each cycle moves is exempt.
    """
    gaps = []
    changes = np.abs(np.diff(clip.frames, axis=0))
    usual = np.maximum(np.quantile(changes, 0.99, axis=0, method="lower"), 1e-6)
    for column, name in enumerate(clip.fields):
        frame = int(changes[:, column].argmax())
        if changes[frame, column] > _JUMP * usual[column]:
            gaps.append(Gap(name, frame + 1, float(changes[frame, column]), float(usual[column])))
        if clip.loop == "wrap" and not (clip.cycle_offset_position and name in ("root_pos_x", "root_pos_y")):
            seam = float(abs(clip.frames[-1, column] - clip.frames[0, column]))
            if seam > _JUMP * usual[column]:
                gaps.append(Gap(name, 0, seam, float(usual[column])))
    return gaps


def describe(clips: Sequence[MotionClip]) -> str:
    """The clips as text: length, frame time, loop mode, weight, ranges of all fields, gaps."""
    lines = [f"{len(clips)} clips, {sum(clip.duration for clip in clips):.2f} s"]
    for clip in clips:
        lines += [
            "",
            f"{clip.name}: {len(clip.frames)} frames of {clip.frame_time:.6g} s = {clip.duration:.2f} s, "
            f"loop {clip.loop}, weight {clip.weight:g}",
        ]
        low, high = clip.frames.min(0), clip.frames.max(0)
        width = max(len(name) for name in clip.fields)
        lines += [f"  {name:<{width}}  {a: .4f} .. {b: .4f}" for name, a, b in zip(clip.fields, low, high)]
        gaps = find_gaps(clip)
        lines.append(f"  gaps: {len(gaps) or 'none'}")
        lines += [f"    {gap}" for gap in gaps]
    return "\n".join(lines)


def draw_clips(clips: Sequence[MotionClip], output: Path, max_fields: int = 48) -> Path:
    """Draw the first `max_fields` fields of all clips over time into the PNG `output`; return the path.

    Raises ImportError, naming the extra, without matplotlib.
    """
    require("drawing motions", "matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for clip in clips for name in clip.fields))[:max_fields]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 1.6 * rows + 0.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, name in zip(panels, names):
        for number, clip in enumerate(clips):
            if name in clip.fields:
                times = np.arange(len(clip.frames)) * clip.frame_time
                panel.plot(times, clip.frames[:, clip.fields.index(name)], color=f"C{number % 10}", linewidth=1)
        panel.set_title(name, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("time (s)", fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output
