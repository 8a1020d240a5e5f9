"""Draw windows of frames from clips, which lie on the device with the same features and one time grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from understudy.core.borders import check_unpacked
from understudy.core.check import In, nearest
from understudy.data.motions.clip import LARGEST, MotionClip
from understudy.data.motions.fields import (
    Array,
    FieldTable,
    MirrorRule,
    depends_on_heading,
    links_in,
    mirror_table,
    quaternion_columns,
    slerp,
)
from understudy.data.motions.files import read_motions
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.robots import Robot
from understudy.data.motions.writing import with_bodies

_GRID_EDGE = 1e-6  # steps of slack, so that rounding cannot take the last frame from a clip of exactly n steps


@dataclass(frozen=True, kw_only=True)
class MotionsConfig(ReadOptions):
    """Motion clips, and the parts of them to use."""

    files: tuple[str, ...] = ()
    """Motion files of any format that is not a pickle: .npz (ours, BeyondMimic's, LocoMuJoCo's, Isaac Lab's), Unitree's
    .csv, JSON text."""
    weights: dict[str, Annotated[float, In(0.0, 1e6)]] = field(default_factory=dict)
    """Weights by clip, in place of the files'."""
    frame_begin: Annotated[int, In(0)] = 0
    """First frame of each clip to use, counted in the file's own frames."""
    frame_end: Annotated[int | None, In(2)] = None
    """The frame to stop before; None: the clip's end."""
    mirror: MirrorRule | None = None
    """Add a mirrored copy of each clip; both have half its weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame_end is not None and self.frame_end < self.frame_begin + 2:
            raise ValueError(
                f"frame_begin {self.frame_begin} and frame_end {self.frame_end} must enclose at least 2 frames"
            )


class ReferenceStates(NamedTuple):
    """States drawn from clips, as starts of episodes."""

    values: Tensor  # [n, D], by the library's fields
    clip: Tensor  # [n] int64
    frame: Tensor  # [n] int64, on the library's grid


class MotionLibrary:
    """Frames `[R, D]` of all clips on one time grid, and where each clip's windows may start.

    A clip that clamps gives the windows that lie in it. A clip that wraps gives one for every grid time of a period,
    across its end too: its frames are laid out that far (with the root's way of each cycle added, where the clip
    says so). Windows never lead from one clip into another. Draws are independent: the clip by weight, the start
    uniformly; nothing waits for the device.
    """

    def __init__(self, clips: Sequence[MotionClip], fields: Sequence[str], frame_time: float, window: int = 2) -> None:
        """Resample `fields` of `clips` to a grid of `frame_time` s for windows of up to `window` frames.

        Raises ValueError for no clips, no or duplicate fields, fields that a clip lacks, a frame time that is not
        positive, weights that are all 0, a clip shorter than the window, and clips that the grid would blow up.
        """
        if not clips:
            raise ValueError("a motion library needs at least one clip: name motion files")
        if not fields or len(set(fields)) != len(fields):
            raise ValueError(f"name each feature field once, got {list(fields)}")
        if not (np.isfinite(frame_time) and frame_time > 0.0) or window < 1:
            raise ValueError(f"frame_time must be positive and window at least 1, got {frame_time} s and {window}")
        self.fields, self.frame_time, self.window = tuple(fields), frame_time, window
        self.names = tuple(clip.name for clip in clips)
        counts = [_grid(clip, self.fields, frame_time, window) for clip in clips]
        check_unpacked(
            f"a grid of {frame_time:.4g} s over the clips ({', '.join(self.names[:3])}, ...)",
            sum(clip.frames.nbytes for clip in clips),
            16 * len(fields) * sum(counts),  # interpolation holds several tables
        )
        tables = [_resample(clip, self.fields, frame_time, count) for clip, count in zip(clips, counts)]
        lengths = np.array([len(table) for table in tables])
        weights = np.array([clip.weight for clip in clips])
        if weights.sum() <= 0.0:
            raise ValueError("the weights of all clips are 0: at least one must be positive")
        self.frames = torch.from_numpy(np.concatenate(tables).astype(np.float32))  # [R, D]
        self.offsets = torch.from_numpy(np.cumsum([0, *lengths[:-1]]))  # [C], first row of each clip
        self.starts = torch.from_numpy(lengths - window + 1)  # [C], windows in each clip
        self.edges = torch.from_numpy(np.cumsum(weights / weights.sum()))  # [C], cumulated probability

    @classmethod
    def load(
        cls,
        config: MotionsConfig,
        fields: Sequence[str],
        frame_time: float,
        window: int = 2,
        device: torch.device | str = "cpu",
    ) -> MotionLibrary:
        """Read the files of a configuration; bodies that only its robot knows come from the robot's kinematics.

        Raises ValueError like `read_motions` and the constructor.
        """
        clips = [clip for file in config.files for clip in read_motions(file, config)]
        if config.robot:
            robot, links = Robot(config.robot), links_in(fields)
            asked = [f"{body}_pos_x_w" for body in robot.bodies if body in links]
            clips = [with_bodies(clip, robot) if set(asked) - set(clip.fields) else clip for clip in clips]
        unknown = sorted(set(config.weights) - {clip.name for clip in clips})
        if unknown:
            known = [clip.name for clip in clips]
            raise ValueError(f"motions.weights names an unknown clip {unknown[0]!r}; {nearest(unknown[0], known)}")
        chosen = [_cut(replace(clip, weight=config.weights.get(clip.name, clip.weight)), config) for clip in clips]
        library = cls(chosen, fields, frame_time, window)
        return (library if config.mirror is None else library.mirrored(config.mirror)).to(device)

    def to(self, device: torch.device | str) -> MotionLibrary:
        """Move to a device, in place."""
        held = (self.frames, self.offsets, self.starts, self.edges)
        self.frames, self.offsets, self.starts, self.edges = (x.to(device) for x in held)
        return self

    def mirrored(self, rule: MirrorRule) -> MotionLibrary:
        """Add a mirrored copy of each clip, both with half its weight, in place; raises as `mirror_table` does."""
        columns, signs = mirror_table(self.fields, rule)
        images = self.frames[:, torch.from_numpy(columns)] * torch.from_numpy(signs).float()
        self.offsets = torch.cat((self.offsets, self.offsets + len(self.frames)))
        self.frames = torch.cat((self.frames, images))
        self.starts = self.starts.repeat(2)
        self.edges = torch.cat((self.edges * 0.5, self.edges * 0.5 + 0.5))
        self.names += tuple(f"{name}, mirrored" for name in self.names)
        return self

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Windows `[count, window, D]`, oldest frame first, drawn independently."""
        _, rows = self._draw(count, generator)
        places = rows.unsqueeze(-1) + torch.arange(self.window, device=rows.device)
        # whole rows: twice as fast as indexing with a matrix
        return self.frames.index_select(0, places.flatten()).view(count, self.window, -1)

    def sample_states(self, count: int, generator: torch.Generator) -> ReferenceStates:
        """Single frames `[count, D]` for reference-state initialisation (Peng et al. 2018, arXiv:1804.02717, sec. 5.3).

        Each is the first frame of a window, so that the clip continues from there.
        """
        clip, rows = self._draw(count, generator)
        return ReferenceStates(self.frames[rows], clip, rows - self.offsets[clip])

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips `[count]` and rows `[count]` where windows start."""
        device = self.frames.device
        drawn = torch.rand(2, count, generator=generator, device=device, dtype=torch.float64)
        # right=True never hits a clip of weight 0, whose interval is empty
        clip = torch.searchsorted(self.edges, drawn[0], right=True).clamp(max=len(self.edges) - 1)
        return clip, self.offsets[clip] + (drawn[1] * self.starts[clip]).long()


def resampled(clip: MotionClip, frame_time: float) -> MotionClip:
    """The clip with a frame every `frame_time` s, its last one at or before the end: linear, quaternions spherically.

    A clip whose period is no multiple of that no longer wraps.
    """
    steps = clip.duration / frame_time
    whole = abs(steps - round(steps)) < _GRID_EDGE
    clamped = replace(clip, loop="clamp")
    frames = _resample(clamped, clip.fields, frame_time, _grid(clamped, clip.fields, frame_time, 2))
    return replace(clip, frames=frames, frame_time=frame_time, loop=clip.loop if whole else "clamp")


def _cut(clip: MotionClip, config: MotionsConfig) -> MotionClip:
    """The configured range of frames; part of a cycle does not wrap."""
    frames = clip.frames[config.frame_begin : config.frame_end]
    if len(frames) == len(clip.frames):
        return clip
    if len(frames) < 2:
        raise ValueError(
            f"clip {clip.name!r} has {len(clip.frames)} frames, of which frame_begin {config.frame_begin} and "
            f"frame_end {config.frame_end} leave {len(frames)}; at least 2 are needed"
        )
    return replace(clip, frames=frames, loop="clamp")


def _wraps(clip: MotionClip, fields: Sequence[str]) -> bool:
    # adding offsets cannot continue a cycle that turns the root: its windows stay inside
    return clip.loop == "wrap" and not (clip.cycle_offset_rotation and depends_on_heading(fields))


def _grid(clip: MotionClip, fields: Sequence[str], frame_time: float, window: int) -> int:
    """How many frames of the grid the clip takes: at least as many as the window."""
    steps = min(clip.duration / frame_time, 1e15)
    if _wraps(clip, fields):
        return int(np.ceil(steps - _GRID_EDGE)) + window - 1
    count = int(np.floor(steps + _GRID_EDGE)) + 1
    if count < window:
        raise ValueError(
            f"clip {clip.name!r} lasts {clip.duration:.4g} s, which is {count} frames of {frame_time:.4g} s: "
            f"shorter than the window of {window} frames"
        )
    return count


def _resample(clip: MotionClip, fields: Sequence[str], frame_time: float, count: int) -> Array:
    """The clip's frames `[count, D]` at times 0, dt, 2 dt, ..."""
    wraps = clip.loop == "wrap"
    table = FieldTable(
        clip.name, clip.fields, clip.frames, clip.frame_time, wraps=wraps, turns=wraps and clip.cycle_offset_rotation
    )
    frames = table.select(fields)
    cycle, place = _places(clip, frame_time, count, _wraps(clip, fields))
    quaternions = list(quaternion_columns(fields).values())
    resampled = _interpolate(frames, place, quaternions)
    for columns in quaternions:  # after a whole turn q has become -q, and goes on from there
        resampled[:, columns] *= (
            np.where((frames[-1, columns] * frames[0, columns]).sum() < 0.0, -1.0, 1.0) ** cycle[:, None]
        )
    if _wraps(clip, fields) and clip.cycle_offset_position:
        for axis in "xy":  # a cycle ends at the height of its start
            if (name := f"root_pos_{axis}") in fields:
                column = list(fields).index(name)
                resampled[:, column] += cycle * (frames[-1, column] - frames[0, column])
    bad = np.argwhere(~(np.abs(resampled) <= LARGEST))
    if len(bad):
        raise ValueError(
            f"clip {clip.name!r}: {fields[bad[0, 1]]!r} is beyond float32 on the grid: check its frame time"
        )
    return resampled


def _places(clip: MotionClip, frame_time: float, count: int, wraps: bool) -> tuple[Array, Array]:
    """Cycle number and place among the clip's own frames (a real number) of each grid time, `[count]` both."""
    place = np.arange(count) * (frame_time / clip.frame_time)
    last = len(clip.frames) - 1.0
    if not wraps:
        return np.zeros(count), np.minimum(place, last)
    cycle = np.floor((place + _GRID_EDGE) / last)
    return cycle, np.clip(place - cycle * last, 0.0, last)


def _interpolate(frames: Array, place: Array, quaternions: Sequence[list[int]]) -> Array:
    """Frames `[F, D]` at places `[K]`: linear, along the shorter arc for the columns of quaternions."""
    before = np.minimum(place.astype(np.int64), len(frames) - 2)
    share = place - before
    old, new = frames[before], frames[before + 1]
    out: Array = old + share[:, None] * (new - old)
    for columns in quaternions:
        out[:, columns] = slerp(old[:, columns], new[:, columns], share)
    return out
