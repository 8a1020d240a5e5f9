"""Read four formats of motion files into clips of named fields, write one. Nothing here unpickles.

Ours (`.npz`, written by `write_motions`): `format` is "understudy-motion-1", `names` `[C]` text; of clip number i:

    <i>/fields        [D] text           names; `fields.py` lists those with a meaning
    <i>/frames        [F, D] float       m, m/s, rad, rad/s, unit quaternions
    <i>/frame_time    0-D float          s between two frames
    <i>/loop          0-D text           "clamp", or "wrap": the last frame is the first of the next cycle
    <i>/cycle_offset  [2] bool           a cycle moves / turns the root (only where it wraps)
    <i>/weight        0-D float          how often the clip is drawn, relative to others
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np

from understudy.core.check import Config, In, nearest
from understudy.data.motions.fields import Array, quaternion_columns

FORMAT = "understudy-motion-1"
Loop = Literal["clamp", "wrap"]

_UNIT_TOLERANCE = 1e-2  # allows for the rounding of text files
_KEYS = {
    "Frames", "Fields", "FrameDuration", "LoopMode", "MotionWeight", "EnableCycleOffsetPosition",
    "EnableCycleOffsetRotation",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionClip(Config):
    """One motion as in its file: named fields on a time grid of its own. Quaternions are normalised.

    Raises ValueError for duplicate names, a wrong number of columns, fewer than two frames, a frame time that is not
    positive, a negative weight, numbers that are not finite and quaternions that are not of unit length.
    """

    name: str
    fields: tuple[str, ...]
    frames: Array  # [F, D]
    frame_time: Annotated[float, In(0.0, without=(0.0,))]  # s
    loop: Loop = "clamp"
    cycle_offset_position: bool = False  # each cycle starts where the last one ended
    cycle_offset_rotation: bool = False
    weight: Annotated[float, In(0.0)] = 1.0

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(f"clip {self.name!r}: {error}") from None
        frames = np.array(self.frames, dtype=np.float64)
        object.__setattr__(self, "frames", frames)
        where = f"clip {self.name!r}"
        duplicates = sorted({name for name in self.fields if self.fields.count(name) > 1})
        if duplicates:
            raise ValueError(f"{where} has fields twice: {', '.join(duplicates)}; rename or remove one of each")
        if frames.ndim != 2 or frames.shape[1] != len(self.fields):
            raise ValueError(f"{where} has frames of shape {frames.shape} for {len(self.fields)} named fields")
        if len(frames) < 2:
            raise ValueError(f"{where} has {len(frames)} frames; a motion needs at least 2")
        bad = np.argwhere(~np.isfinite(frames))
        if len(bad):
            frame, column = bad[0]
            raise ValueError(
                f"{where}, frame {frame}, field {self.fields[column]!r} is {frames[frame, column]}, and {len(bad) - 1} "
                "more numbers are not finite: fix the file, or cut these frames"
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


def read_motions(path: str | Path, text_fields: Sequence[str] = ()) -> list[MotionClip]:
    """The clips of a file, whose contents, not its name, decide the format.

    Formats: ours; Isaac Lab's `.npz`; AMP_for_hardware's JSON text (one clip); JSON text of a dictionary of such clips
    (st_gym's refmotion). `text_fields` names the columns of text without names (AMP_for_hardware: the layout differs
    from fork to fork). Raises ValueError for a faulty file and for a pickle.
    """
    path = Path(path)
    try:
        if is_pickle(path):
            raise ValueError(
                "it is a pickle, which can run code and is never loaded here. Convert it once: "
                f"understudy motions convert {path} {path.with_suffix('.npz')}"
            )
        return _read_npz(path) if zipfile.is_zipfile(path) else _read_text(path, text_fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_pickle(path: Path) -> bool:
    """True for the first byte of a pickle (protocol 2 on) or of joblib's compressed ones; ValueError without a file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with path.open("rb") as file:
        return file.read(1) in (b"\x80", b"x")


def write_motions(path: str | Path, clips: Sequence[MotionClip]) -> Path:
    """Write clips as our `.npz` (float32, uncompressed) and return its path. Raises ValueError for no clips."""
    if not clips:
        raise ValueError("no clips to write: pass at least one")
    columns: dict[str, Any] = {"format": FORMAT, "names": np.array([clip.name for clip in clips])}
    for i, clip in enumerate(clips):
        columns[f"{i}/fields"] = np.array(clip.fields)
        columns[f"{i}/frames"] = clip.frames.astype(np.float32)
        columns[f"{i}/frame_time"] = clip.frame_time
        columns[f"{i}/loop"] = clip.loop
        columns[f"{i}/cycle_offset"] = np.array([clip.cycle_offset_position, clip.cycle_offset_rotation])
        columns[f"{i}/weight"] = clip.weight
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # given a name, np.savez would add a suffix
        np.savez(file, **columns)
    return path


def clips_of_dictionary(data: Any, name: str, text_fields: Sequence[str] = ()) -> list[MotionClip]:
    """Clips from parsed text or a pickle: one clip's header and frames, or a dictionary of such."""
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a dictionary of clips, found a {type(data).__name__}")
    if _KEYS & set(data):
        return [_clip_of_header(data, name, text_fields)]
    clips = []
    for key, header in data.items():
        if not isinstance(header, Mapping):
            raise ValueError(f"{key!r} is not a clip but of type {type(header).__name__}; {nearest(str(key), _KEYS)}")
        clips.append(_clip_of_header(header, str(key), text_fields))
    if not clips:
        raise ValueError("it holds no clips")
    return clips


def _read_text(path: Path, text_fields: Sequence[str]) -> list[MotionClip]:
    try:
        data = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not a motion file: neither an .npz nor JSON text ({error})") from error
    return clips_of_dictionary(data, path.stem, text_fields)


def _clip_of_header(header: Mapping[str, Any], name: str, text_fields: Sequence[str]) -> MotionClip:
    unknown = sorted(set(header) - _KEYS)
    if unknown:
        raise ValueError(f"clip {name!r} has an unknown entry {unknown[0]!r}; {nearest(unknown[0], _KEYS)}")
    missing = {"Frames", "FrameDuration"} - set(header)
    if missing:
        raise ValueError(f"clip {name!r} lacks {', '.join(sorted(missing))}")
    fields = header.get("Fields", text_fields)
    if not len(fields):
        raise ValueError(f"clip {name!r} lacks names of its columns (Fields): name them with text_fields")
    try:
        frames = np.array(header["Frames"], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"clip {name!r}: Frames is not a table of numbers ({error})") from error
    return MotionClip(
        name=name,
        fields=tuple(str(field) for field in fields),
        frames=frames,
        frame_time=float(header["FrameDuration"]),
        loop=cast("Loop", str(header.get("LoopMode", "clamp")).lower()),
        cycle_offset_position=bool(header.get("EnableCycleOffsetPosition", False)),
        cycle_offset_rotation=bool(header.get("EnableCycleOffsetRotation", False)),
        weight=float(header.get("MotionWeight", 1.0)),
    )


def _read_npz(path: Path) -> list[MotionClip]:
    with np.load(path, allow_pickle=False) as data:
        if "format" in data.files:
            if str(data["format"]) != FORMAT:
                raise ValueError(f"its format is {str(data['format'])!r}; this version reads {FORMAT!r}")
            return [_clip_of_ours(data, i, str(name)) for i, name in enumerate(data["names"])]
        if {"fps", "dof_names"} <= set(data.files):
            return [_clip_of_isaac_lab(data, path.stem)]
        raise ValueError(
            f"it lacks both our 'format' and Isaac Lab's 'fps' and 'dof_names'; it has: {', '.join(data.files)}"
        )


def _clip_of_ours(data: Mapping[str, Any], i: int, name: str) -> MotionClip:
    moves, turns = (bool(x) for x in data[f"{i}/cycle_offset"])
    return MotionClip(
        name=name,
        fields=tuple(str(field) for field in data[f"{i}/fields"]),
        frames=data[f"{i}/frames"],
        frame_time=float(data[f"{i}/frame_time"]),
        loop=cast("Loop", str(data[f"{i}/loop"])),
        cycle_offset_position=moves,
        cycle_offset_rotation=turns,
        weight=float(data[f"{i}/weight"]),
    )


def _clip_of_isaac_lab(data: Mapping[str, Any], name: str) -> MotionClip:
    """Joints as <joint>_dof_*, bodies as <body>_*_w; the first body doubles as the root."""
    joints = [str(joint) for joint in data["dof_names"]]
    fields = [f"{joint}_dof_pos" for joint in joints] + [f"{joint}_dof_vel" for joint in joints]
    columns = [data["dof_positions"], data["dof_velocities"]]
    bodies = [str(body) for body in data["body_names"]]
    for i, body in [(0, "root"), *enumerate(bodies)]:
        position = "{}_pos_{}" if body == "root" else "{}_pos_{}_w"
        fields += [position.format(body, axis) for axis in "xyz"]
        fields += [f"{body}_rot_{axis}" for axis in "wxyz"]
        fields += [f"{body}_{kind}_{axis}_w" for kind in ("vel", "ang_vel") for axis in "xyz"]
        columns += [
            data[key][:, i]
            for key in ("body_positions", "body_rotations", "body_linear_velocities", "body_angular_velocities")
        ]
    fps = float(data["fps"])
    if not fps > 0.0:
        raise ValueError(f"fps is {fps}; it must be positive")
    frames = np.concatenate([np.asarray(x, dtype=np.float64) for x in columns], axis=1)
    return MotionClip(name=name, fields=tuple(fields), frames=frames, frame_time=1.0 / fps)
