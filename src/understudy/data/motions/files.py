"""Read motion files of all formats into clips of named fields, write ours. Nothing here unpickles.

Ours (`.npz`, written by `write_motions`): `format` is "understudy-motion-1", `names` `[C]` text; of clip number i:

    <i>/fields        [D] text           names; `fields.py` lists those with a meaning
    <i>/frames        [F, D] float       m, m/s, rad, rad/s, unit quaternions
    <i>/frame_time    0-D float          s between two frames
    <i>/loop          0-D text           "clamp", or "wrap": the last frame is the first of the next cycle
    <i>/cycle_offset  [2] bool           a cycle moves / turns the root (only where it wraps)
    <i>/weight        0-D float          how often the clip is drawn, relative to others

The other formats are in the table of `formats.py`.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.borders import parsing
from understudy.data.motions.arrays import FORMAT
from understudy.data.motions.checks import check_robot
from understudy.data.motions.clip import MotionClip as MotionClip
from understudy.data.motions.clip import doubts
from understudy.data.motions.formats import clips_of
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.reading import Reading
from understudy.data.npz import open_npz, save_npz

logger = logging.getLogger(__name__)

# pickle from protocol 2 on; numpy's `.npy`, which may hold one; joblib's packers: zlib, gzip, bz2, xz, lzma, lz4
_PICKLES = (b"\x80", b"\x93NUMPY", b"x", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\x00\x00", b"\x04\x22M\x18")


def read_motions(path: str | Path, options: ReadOptions | None = None) -> list[MotionClip]:
    """The clips of a file, whose contents, not its name, decide the format: an `.npz`, JSON text or a table of numbers.

    Logs a warning where another order of quaternions or other units look right. Raises ValueError for a faulty file,
    for one that does not fit the robot of the options, and for a pickle.
    """
    path, reading = Path(path), Reading(options or ReadOptions())
    if is_pickle(path):
        raise ValueError(
            f"{path}: it is a pickle, which can run code and is never loaded here. Convert it once: "
            f"understudy motions convert {path} {path.with_suffix('.npz')}"
        )
    if zipfile.is_zipfile(path):
        with open_npz(path, growth=4) as arrays:  # float16 as float64
            return clips_from(path, reading, lambda: clips_of("npz", arrays, path.stem, reading))
    text = path.read_bytes()
    data: Any
    with parsing(path, "expected an .npz of clips, JSON text or a table of numbers"):
        if text.lstrip()[:1] in (b"{", b"["):
            container, data = "dictionary", json.loads(text)
        elif text.strip():
            container, data = "table", np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)
        else:
            raise ValueError("it is empty")
    return clips_from(path, reading, lambda: clips_of(container, data, path.stem, reading))


def clips_from(path: Path, reading: Reading, read: Callable[[], list[MotionClip]]) -> list[MotionClip]:
    """The clips that `read` makes of what `path` holds; ValueError, naming the file, for whatever it stumbles over."""
    with parsing(path, "write the clips as `understudy.data.motions.files` lays them out"):
        try:
            clips = read()
            found = [(clip, doubt) for clip in clips for doubt in (*doubts(clip), *check_robot(clip, reading.robot))]
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: {error}") from error
    for clip, doubt in found:
        logger.warning("%s, clip %r: %s", path, clip.name, doubt)
    return clips


def is_pickle(path: Path) -> bool:
    """True for the first byte of a pickle, of joblib's compressed ones or of a `.npy`; ValueError without a file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with parsing(path, "make it readable"), path.open("rb") as file:
        return file.read(6).startswith(_PICKLES)


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
