"""One motion clip: named fields on a time grid, checked; and doubts about what its numbers say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from understudy.core.check import Config, In
from understudy.core.sanity import ABSURD, absurd
from understudy.data.motions.fields import Array, angular_velocity, conjugate, quaternion_columns, rotate

Loop = Literal["clamp", "wrap"]

_UNIT_TOLERANCE = 1e-2  # allows for the rounding of text files
LARGEST = float(np.finfo(np.float32).max)  # libraries hold float32
_TWO_TURNS = 4 * np.pi


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionClip(Config):
    """One motion as in its file: named fields on a time grid of its own. Quaternions are normalised.

    Raises ValueError for duplicate names, a wrong number of columns, fewer than two frames, a frame time that is not
    positive, a negative weight, numbers that are not finite and quaternions that are not of unit length.
    """

    name: str
    fields: tuple[str, ...]
    frames: Array  # [F, D]
    frame_time: Annotated[float, In(0.0, 1e6, without=(0.0,))]  # s
    loop: Loop = "clamp"
    cycle_offset_position: bool = False  # each cycle starts where the last one ended
    cycle_offset_rotation: bool = False
    weight: Annotated[float, In(0.0, 1e6)] = 1.0

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(f"clip {self.name!r}: {error}") from None
        frames = np.array(self.frames, dtype=np.float64)
        object.__setattr__(self, "frames", frames)
        where = f"clip {self.name!r}"
        duplicates = sorted(name for name, count in Counter(self.fields).items() if count > 1)
        if duplicates:
            raise ValueError(f"{where} has fields twice: {', '.join(duplicates)}; rename or remove one of each")
        if frames.ndim != 2 or frames.shape[1] != len(self.fields):
            raise ValueError(f"{where} has frames of shape {frames.shape} for {len(self.fields)} named fields")
        if len(frames) < 2:
            raise ValueError(f"{where} has {len(frames)} frames; a motion needs at least 2")
        if not (frames.min(initial=0.0) >= -LARGEST and frames.max(initial=0.0) <= LARGEST):  # nor NaN
            bad = np.argwhere(~(np.abs(frames) <= LARGEST))
            frame, column = bad[0]
            raise ValueError(
                f"{where}, frame {frame}, field {self.fields[column]!r} is {frames[frame, column]}, and {len(bad) - 1} "
                "more numbers are not finite as float32: fix the file, or cut these frames"
            )
        self._make_quaternions_unit()

    def _make_quaternions_unit(self) -> None:
        for link, columns in quaternion_columns(self.fields).items():
            q = self.frames[:, columns]
            norm = np.linalg.norm(q, axis=1, keepdims=True)
            off = np.abs(norm[:, 0] - 1.0)
            if off.max() > _UNIT_TOLERANCE:
                frame = int(off.argmax())
                raise ValueError(
                    f"clip {self.name!r}, frame {frame}: the quaternion of {link!r} has length {norm[frame, 0]:.4g}, "
                    "not 1; are its fields in the order w, x, y, z?"
                )
            q = q / norm
            # q and -q are the same rotation: keep the sign of the frame before
            flips = np.cumprod(np.where((q[1:] * q[:-1]).sum(1) < 0.0, -1.0, 1.0))
            q[1:] *= flips[:, None]
            self.frames[:, columns] = q

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last: the period of a clip that wraps."""
        return (len(self.frames) - 1) * self.frame_time


def doubts(clip: MotionClip) -> list[str]:
    """Sentences about a clip whose numbers look as if the file said them otherwise."""
    return [doubt for doubt in (_other_order(clip), _degrees(clip), _absurd(clip)) if doubt]


def _absurd(clip: MotionClip) -> str:
    """A sentence about numbers that can be no measurements; empty where there are none."""
    found = absurd(torch.from_numpy(clip.frames)).nonzero().tolist()
    if not found:
        return ""
    frame, column = found[0]
    return (
        f"frame {frame}, field {clip.fields[column]!r} is {clip.frames[frame, column]:.3g}, more than {ABSURD:.0e} "
        f"times its usual size, and {len(found) - 1} more numbers are: cut these frames, statistics leave them out"
    )


def _degrees(clip: MotionClip) -> str:
    """A sentence where joints turn further than joints do; empty where they do not."""
    sizes = [np.abs(x).max() for name, x in zip(clip.fields, clip.frames.T) if name.endswith("_dof_pos")]
    if not sizes or np.median(sizes) < _TWO_TURNS:
        return ""
    return (
        f"half of its joints turn by more than {np.median(sizes):.0f} rad; were they written in degrees? Then multiply "
        "them by pi / 180 where the file is made"
    )


def _other_order(clip: MotionClip) -> str:
    """A sentence where the root's quaternion looks as if it had another order; empty where it does not."""
    names = [f"root_rot_{axis}" for axis in "wxyz"]
    if not set(names) <= set(clip.fields):
        return ""
    help = (
        "were its quaternions written as x, y, z, w (Isaac Lab since January 2026) or as w, x, y, z, other than its "
        "format does? Then read it with that order (quaternion_order)"
    )
    q = clip.frames[:, [clip.fields.index(name) for name in names]]
    others = [np.roll(q, 1, axis=1), np.roll(q, -1, axis=1)]
    if (np.square(q[:, 1:3]).sum(1) > 0.5).all():  # the root's z axis points below the horizon
        return f"the root is upside down in every frame; {help}"
    rates = [f"root_ang_vel_{axis}_w" for axis in "xyz"]
    if set(rates) <= set(clip.fields):
        told = clip.frames[:, [clip.fields.index(name) for name in rates]]
        own, *other = (np.abs(angular_velocity(x, clip.frame_time) - told).mean() for x in (q, *others))
        if min(other) < 0.5 * own:
            return f"the root turns otherwise than its angular velocities say; {help}"
    # a somersault about x looks like the second, but starts upright
    elif _tilt(q) > 0.02 and min(_tilt(x) for x in others[: 1 + (_tilt(q[:1]) > 0.5)]) < 0.25 * _tilt(q):
        return f"the root leans over as if it lay or flew; {help}"
    elif np.square(q[:, 3]).mean() > 0.95 and _goes_backwards(clip, q):
        return f"the root looks straight back and walks backwards throughout; {help}"
    return ""


def _goes_backwards(clip: MotionClip, q: Array) -> bool:
    names = [f"root_pos_{axis}" for axis in "xyz"]
    if not set(names) <= set(clip.fields):
        return False
    ways = np.diff(clip.frames[:, [clip.fields.index(name) for name in names]], axis=0)
    return float(rotate(conjugate(q[:-1]), ways)[:, 0].mean()) < 0.0


def _tilt(q: Array) -> float:
    """How far quaternions `[F, 4]` tip the vertical, on average: 0 upright, 1 upside down."""
    return float(np.square(q[:, 1:3]).sum(1).mean())
