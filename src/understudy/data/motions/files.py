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
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from understudy.core.borders import parsing
from understudy.core.check import Config, In, fit, nearest
from understudy.core.sanity import ABSURD, absurd
from understudy.data.motions.fields import Array, angular_velocity, quaternion_columns
from understudy.data.npz import open_npz, save_npz

logger = logging.getLogger(__name__)

FORMAT = "understudy-motion-1"
Loop = Literal["clamp", "wrap"]
QuaternionOrder = Literal["wxyz", "xyzw"]

_UNIT_TOLERANCE = 1e-2  # allows for the rounding of text files
LARGEST = float(np.finfo(np.float32).max)  # libraries hold float32

_HEADER: dict[str, tuple[str, Any]] = {  # entry of a text file -> field of MotionClip, its type
    "Fields": ("fields", list[str]),
    "FrameDuration": ("frame_time", float),
    "LoopMode": ("loop", str),
    "MotionWeight": ("weight", float),
    "EnableCycleOffsetPosition": ("cycle_offset_position", bool),
    "EnableCycleOffsetRotation": ("cycle_offset_rotation", bool),
}
_KEYS = {"Frames", *_HEADER}


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
        duplicates = sorted({name for name in self.fields if self.fields.count(name) > 1})
        if duplicates:
            raise ValueError(f"{where} has fields twice: {', '.join(duplicates)}; rename or remove one of each")
        if frames.ndim != 2 or frames.shape[1] != len(self.fields):
            raise ValueError(f"{where} has frames of shape {frames.shape} for {len(self.fields)} named fields")
        if len(frames) < 2:
            raise ValueError(f"{where} has {len(frames)} frames; a motion needs at least 2")
        bad = np.argwhere(~(np.abs(frames) <= LARGEST))
        if len(bad):
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


def read_motions(
    path: str | Path, text_fields: Sequence[str] = (), quaternion_order: QuaternionOrder = "wxyz"
) -> list[MotionClip]:
    """The clips of a file, whose contents, not its name, decide the format.

    Formats: ours; Isaac Lab's `.npz`; AMP_for_hardware's JSON text (one clip); JSON text of a dictionary of such clips
    (st_gym's refmotion). `text_fields` names the columns of text without names (AMP_for_hardware: the layout differs
    from fork to fork), `quaternion_order` is that of files whose quaternions have no names (Isaac Lab writes xyzw since
    January 2026). Logs a warning where another order looks right. Raises ValueError for a faulty file and for a pickle.
    """
    path = Path(path)
    if is_pickle(path):
        raise ValueError(
            f"{path}: it is a pickle, which can run code and is never loaded here. Convert it once: "
            f"understudy motions convert {path} {path.with_suffix('.npz')}"
        )
    if zipfile.is_zipfile(path):
        with open_npz(path, growth=4) as arrays:  # float16 as float64
            return clips_from(path, lambda: _clips_of_arrays(arrays, path.stem, quaternion_order))
    with parsing(path, "expected an .npz of clips or JSON text"):
        data = json.loads(path.read_bytes())
    return clips_from(path, lambda: clips_of_dictionary(data, path.stem, text_fields))


def clips_from(path: Path, read: Callable[[], list[MotionClip]]) -> list[MotionClip]:
    """The clips that `read` makes of what `path` holds; ValueError, naming the file, for whatever it stumbles over."""
    with parsing(path, "write the clips as `understudy.data.motions.files` lays them out"):
        try:
            clips = read()
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: {error}") from error
    for clip in clips:
        for doubt in filter(None, (_doubt(clip), _absurd(clip))):
            logger.warning("%s, clip %r: %s", path, clip.name, doubt)
    return clips


def is_pickle(path: Path) -> bool:
    """True for the first byte of a pickle (protocol 2 on) or of joblib's compressed ones; ValueError without a file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with parsing(path, "make it readable"), path.open("rb") as file:
        return file.read(1) in (b"\x80", b"x")


def write_motions(path: str | Path, clips: Sequence[MotionClip]) -> Path:
    """Write clips as our `.npz` (float32, uncompressed) and return its path; a file that exists is replaced whole.

    Raises ValueError for no clips.
    """
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
    save_npz(path, columns)
    return path


# ---------------------------------------------------------------------------------------------------- text


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


def _clip_of_header(header: Mapping[str, Any], name: str, text_fields: Sequence[str]) -> MotionClip:
    where = f"clip {name!r}"
    unknown = sorted(set(map(str, header)) - _KEYS)
    if unknown:
        raise ValueError(f"{where} has an unknown entry {unknown[0]!r}; {nearest(unknown[0], _KEYS)}")
    missing = {"Frames", "FrameDuration"} - set(header)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    given = {}
    for key, (ours, kind) in _HEADER.items():
        if key in header:
            value = header[key]
            given[ours] = fit(kind, "a table" if isinstance(value, np.ndarray) else value, f"{where}: {key}")
    given["fields"] = tuple(given.get("fields", text_fields))
    if not given["fields"]:
        raise ValueError(f"{where} lacks names of its columns (Fields): name them with text_fields")
    given["loop"] = given.get("loop", "clamp").lower()
    try:
        frames = np.array(header["Frames"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: Frames is not a table of numbers ({error})") from error
    if frames.dtype.kind not in "iuf":
        raise ValueError(f"{where}: Frames is not a table of numbers but of {frames.dtype}")
    return MotionClip(name=name, frames=frames, **given)


# ---------------------------------------------------------------------------------------------------- .npz

Arrays = Mapping[str, np.ndarray]


def _clips_of_ours(arrays: Arrays, name: str, order: QuaternionOrder) -> list[MotionClip]:
    form, names = _words(arrays, "format", None)[0], _words(arrays, "names")
    if form != FORMAT:
        raise ValueError(f"its format is {form!r}; this version reads {FORMAT!r}")
    return [_clip_of_ours(arrays, i, clip) for i, clip in enumerate(names)]


def _clip_of_ours(arrays: Arrays, i: int, name: str) -> MotionClip:
    moves, turns = _array(arrays, f"{i}/cycle_offset", "b", (2,))
    return MotionClip(
        name=name,
        fields=_words(arrays, f"{i}/fields"),
        frames=_array(arrays, f"{i}/frames", "f", (-1, -1)),
        frame_time=_number(arrays, f"{i}/frame_time"),
        loop=_words(arrays, f"{i}/loop", None)[0],  # type: ignore[arg-type]  # checked there
        cycle_offset_position=bool(moves),
        cycle_offset_rotation=bool(turns),
        weight=_number(arrays, f"{i}/weight"),
    )


def _clips_of_isaac_lab(arrays: Arrays, name: str, order: QuaternionOrder) -> list[MotionClip]:
    """Joints as <joint>_dof_*, bodies as <body>_*_w; the first body doubles as the root."""
    joints, bodies = _words(arrays, "dof_names"), _words(arrays, "body_names")
    if not bodies:
        raise ValueError("body_names names no body, and the first one is the root")
    F, J, B = len(_array(arrays, "dof_positions", "f", (-1, -1))), len(joints), len(bodies)
    fields = [f"{joint}_dof_pos" for joint in joints] + [f"{joint}_dof_vel" for joint in joints]
    columns = [_array(arrays, name, "f", (F, J)) for name in ("dof_positions", "dof_velocities")]
    kinds = {"positions": 3, "rotations": 4, "linear_velocities": 3, "angular_velocities": 3}
    of_bodies = {kind: _array(arrays, f"body_{kind}", "f", (F, B, size)) for kind, size in kinds.items()}
    if order == "xyzw":
        of_bodies["rotations"] = np.roll(of_bodies["rotations"], 1, axis=-1)
    for i, body in [(0, "root"), *enumerate(bodies)]:
        position = "{}_pos_{}" if body == "root" else "{}_pos_{}_w"
        fields += [position.format(body, axis) for axis in "xyz"]
        fields += [f"{body}_rot_{axis}" for axis in "wxyz"]
        fields += [f"{body}_{kind}_{axis}_w" for kind in ("vel", "ang_vel") for axis in "xyz"]
        columns += [values[:, i] for values in of_bodies.values()]
    fps = _number(arrays, "fps")
    if not fps > 0.0:
        raise ValueError(f"fps is {fps}; it must be positive")
    frames = np.concatenate([np.asarray(x, dtype=np.float64) for x in columns], axis=1)
    return [MotionClip(name=name, fields=tuple(fields), frames=frames, frame_time=1.0 / fps)]


class _Format(NamedTuple):
    """A layout of `.npz`: the arrays that it must have, and how to make clips of them."""

    name: str
    arrays: tuple[str, ...]
    read: Callable[[Arrays, str, QuaternionOrder], list[MotionClip]]


_FORMATS = (
    _Format("ours", ("format", "names"), _clips_of_ours),
    _Format(
        "Isaac Lab's",
        (
            "fps", "dof_names", "body_names", "dof_positions", "dof_velocities", "body_positions", "body_rotations",
            "body_linear_velocities", "body_angular_velocities",
        ),
        _clips_of_isaac_lab,
    ),
)  # fmt: skip


def _clips_of_arrays(arrays: Arrays, name: str, order: QuaternionOrder) -> list[MotionClip]:
    """The clips of the format that the names of the arrays tell."""
    form = max(_FORMATS, key=lambda form: len(arrays.keys() & set(form.arrays)) / len(form.arrays))
    missing = [array for array in form.arrays if array not in arrays]
    if missing:
        known = " or ".join(f"{form.name} ({', '.join(form.arrays)})" for form in _FORMATS)
        held = ", ".join([*arrays][:20]) or "nothing"
        raise ValueError(
            f"as a file of {form.name} format it lacks {', '.join(missing)}; it has: {held}. "
            f"Formats that are read: {known}"
        )
    return form.read(arrays, name, order)


def _array(arrays: Arrays, name: str, kinds: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array of these kinds of dtype; -1 in `shape` stands for any size, None for a single value."""
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"it lacks the array {name!r}")
    fits = (
        array.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, array.shape)) if shape else array.size == 1
    )
    if array.dtype.kind not in kinds or not fits:
        what = {"US": "text", "b": "flags"}.get(kinds, "numbers")
        wanted = f"{what} of shape {shape}".replace("-1", "any") if shape else f"one value, {what}"
        raise ValueError(f"{name} is of type {array.dtype} and shape {array.shape}, expected {wanted}")
    return array


def _number(arrays: Arrays, name: str) -> float:
    return float(_array(arrays, name, "iuf").item())


def _words(arrays: Arrays, name: str, shape: tuple[int, ...] | None = (-1,)) -> tuple[str, ...]:
    texts = _array(arrays, name, "US", shape).flatten().tolist()
    return tuple(text.decode() if isinstance(text, bytes) else text for text in texts)


# ---------------------------------------------------------------------------------------------------- doubts


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


def _doubt(clip: MotionClip) -> str:
    """A sentence where the root's quaternion looks as if it had another order; empty where it does not."""
    names = [f"root_rot_{axis}" for axis in "wxyz"]
    if not set(names) <= set(clip.fields):
        return ""
    help = "were its quaternions written as x, y, z, w (Isaac Lab since January 2026)? Then read it with xyzw order"
    q = clip.frames[:, [clip.fields.index(name) for name in names]]
    if (np.square(q[:, 1:3]).sum(1) > 0.5).all():  # the root's z axis points below the horizon
        return f"the root is upside down in every frame; {help}"
    rates = [f"root_ang_vel_{axis}_w" for axis in "xyz"]
    if set(rates) <= set(clip.fields):
        told = clip.frames[:, [clip.fields.index(name) for name in rates]]
        own, other = (np.abs(angular_velocity(x, clip.frame_time) - told).mean() for x in (q, np.roll(q, 1, axis=1)))
        if other < 0.5 * own:
            return f"the root turns otherwise than its angular velocities say; {help}"
    return ""
