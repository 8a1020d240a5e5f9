"""From one motion file to another: read, choose, put on another grid, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from understudy.core.check import In, fit, nearest
from understudy.data.motions.clip import MotionClip
from understudy.data.motions.files import write_motions
from understudy.data.motions.library import resampled
from understudy.data.motions.options import MotionFormat, ReadOptions
from understudy.data.motions.pickled import read_any_motions
from understudy.data.motions.robots import Robot
from understudy.data.motions.writing import with_bodies, write_as

_PLAYED_BY_STEP = (
    50.0  # 1/s: the tracking tasks of mjlab and whole_body_tracking take one frame for each of their steps
)


def convert(
    file: str | Path,
    output: str | Path,
    options: ReadOptions | None = None,
    *,
    to: MotionFormat = "ours",
    rate: float | None = None,
    clip: str | None = None,
    bodies: bool = False,
) -> list[MotionClip]:
    """Write the clips of a file in the format `to`, and return those that it holds.

    `rate`: frames per second, None for the clip's own (50 for mjlab and beyond-mimic); `clip`: the name of the one to
    write; `bodies`: add the bodies of the robot that the options name. Raises ValueError as reading and writing do,
    for an unknown clip, and where several clips are too many.
    """
    options = options or ReadOptions()
    found = read_any_motions(file, options)
    chosen = choose(found, clip, file)
    if to != "ours" and len(chosen) > 1:
        names = [one.name for one in found]
        raise ValueError(
            f"{file} holds {len(chosen)} clips ({', '.join(names[:5])}), a file of the format {to} one: name it (clip)"
        )
    if rate is None and to in ("mjlab", "beyond-mimic"):
        rate = _PLAYED_BY_STEP
    if rate is not None:
        fit(Annotated[float, In(0.0, 1e6, without=(0.0,))], rate, "rate")
        step = 1.0 / rate
        chosen = [one if abs(one.frame_time - step) < 1e-9 else resampled(one, step) for one in chosen]
    robot = Robot(options.robot) if options.robot else None
    if to != "ours":
        write_as(to, output, chosen[0], robot)
        return found
    if bodies:
        if robot is None:
            raise ValueError("bodies come from a robot's kinematics: name its model (robot)")
        chosen = [with_bodies(one, robot) for one in chosen]
    write_motions(output, chosen)
    return found


def choose(clips: Sequence[MotionClip], name: str | None, file: str | Path) -> list[MotionClip]:
    """The clip of that name, or all for None. Raises ValueError for one that `file` lacks."""
    names = [clip.name for clip in clips]
    if name is not None and name not in names:
        raise ValueError(f"{file} has no clip {name!r}; {nearest(name, names)}")
    return [clip for clip in clips if name in (None, clip.name)]
