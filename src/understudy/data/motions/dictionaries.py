"""Readers of the family of dictionaries, from JSON text or pickles: AMP_for_hardware's and refmotion's headers with
frames, GMR, amp-rsl-rl, MimicKit, and the motion_lib of PHC, ASAP, HumanoidVerse and PBHC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from understudy.core.check import fit, nearest
from understudy.data.motions.clip import MotionClip
from understudy.data.motions.fields import Array
from understudy.data.motions.reading import Columns, Reading, array, words

_HEADER: dict[str, tuple[str, Any]] = {  # entry of a text file -> field of MotionClip, its type
    "Fields": ("fields", list[str]),
    "FrameDuration": ("frame_time", float),
    "LoopMode": ("loop", str),
    "MotionWeight": ("weight", float),
    "EnableCycleOffsetPosition": ("cycle_offset_position", bool),
    "EnableCycleOffsetRotation": ("cycle_offset_rotation", bool),
}
KEYS = {"Frames", *_HEADER}


def header(data: Mapping[str, Any], name: str, reading: Reading) -> list[MotionClip]:
    """One clip's header and frames."""
    where = f"clip {name!r}"
    unknown = sorted(set(map(str, data)) - KEYS)
    if unknown:
        raise ValueError(f"{where} has an unknown entry {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    missing = {"Frames", "FrameDuration"} - set(data)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    given = {}
    for key, (ours, kind) in _HEADER.items():
        if key in data:
            value = data[key]
            given[ours] = fit(kind, "a table" if isinstance(value, np.ndarray) else value, f"{where}: {key}")
    given["fields"] = tuple(given.get("fields", reading.options.text_fields))
    if not given["fields"]:
        raise ValueError(f"{where} lacks names of its columns (Fields): name them with text_fields")
    given["loop"] = given.get("loop", "clamp").lower()
    try:
        frames = np.array(data["Frames"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: Frames is not a table of numbers ({error})") from error
    if frames.dtype.kind not in "iuf":
        raise ValueError(f"{where}: Frames is not a table of numbers but of {frames.dtype}")
    return [MotionClip(name=name, frames=frames, **given)]


def gmr(data: Mapping[str, Any], name: str, reading: Reading) -> list[MotionClip]:
    """Root, joints, and positions of bodies seen from the root."""
    columns = _states(data, reading, "dof_pos", "root_pos", "root_rot", "dof_names")
    if data.get("local_body_pos") is not None and data.get("link_body_list") is not None:
        bodies = words(data, "link_body_list")
        local = array(data, "local_body_pos", "iuf", (-1, len(bodies), 3))
        columns.add(
            (f"{body}_pos_{axis}_b" for body in bodies for axis in "xyz"), local.reshape(len(local), 3 * len(bodies))
        )
    return [columns.clip(name, reading.frame_time(data, "fps"))]


def amp_rsl_rl(data: Mapping[str, Any], name: str, reading: Reading) -> list[MotionClip]:
    """Root and joints, which have names."""
    columns = _states(data, reading, "joint_positions", "root_position", "root_quaternion", "joints_list")
    return [columns.clip(name, reading.frame_time(data, "fps"))]


def motion_lib(data: Mapping[str, Any], name: str, reading: Reading) -> list[MotionClip]:
    """Root and joints; the same pose as axis angles (`pose_aa`) is left out."""
    columns = _states(data, reading, "dof", "root_trans_offset", "root_rot", "dof_names")
    return [columns.clip(name, reading.frame_time(data, "fps"))]


def _states(data: Mapping[str, Any], reading: Reading, dof: str, pos: str, rot: str, names: str) -> Columns:
    """Root and joints under a format's names, quaternions x, y, z, w."""
    angles = _squeezed(data, dof)
    joints = words(data, names, (angles.shape[1],)) if names in data else reading.joints(angles.shape[1])
    columns = Columns()
    columns.joints(joints, "pos", angles)
    columns.root(pos=array(data, pos, "iuf", (len(angles), 3)))
    columns.root(rot=reading.wxyz(array(data, rot, "iuf", (len(angles), 4))))
    return columns


def mimic_kit(data: Mapping[str, Any], name: str, reading: Reading) -> list[MotionClip]:
    """Root position, its rotation as an exponential map, and joints that are hinges.

    Raises ValueError for a robot with several joints on one body, which MimicKit joins to one exponential map.
    """
    frames = array(data, "frames", "iuf", (-1, -1))
    if frames.shape[1] < 7:
        raise ValueError(f"frames has {frames.shape[1]} columns; expected 6 of the root, then those of the joints")
    joints = reading.joints(frames.shape[1] - 6)
    if reading.robot is not None and len(set(reading.robot.body_of)) < len(reading.robot.body_of):
        raise ValueError(
            f"the robot {reading.robot.name} has bodies with several joints, which MimicKit's files hold as one "
            "exponential map: only robots of hinges are read"
        )
    loop = array(data, "loop_mode", "iu").item()
    if loop not in (0, 1):
        raise ValueError(f"loop_mode is {loop}; expected 0 (clamp) or 1 (wrap)")
    columns = Columns()
    columns.joints(joints, "pos", frames[:, 6:])
    columns.root(pos=frames[:, :3], rot=_of_exponential_map(frames[:, 3:6]))
    options = {"loop": "wrap", "cycle_offset_position": True} if loop else {}
    return [columns.clip(name, reading.frame_time(data, "fps"), **options)]


def _of_exponential_map(v: np.ndarray) -> Array:
    """Quaternions `[F, 4]` (cos a/2, sin a/2 n) of rotations `[F, 3]` by a = |v| about n = v / a."""
    angle = np.linalg.norm(v, axis=-1, keepdims=True).astype(np.float64)
    # sin(a / 2) / a = sinc(a / 2 pi) / 2, which is 1/2 where nothing turns
    return np.concatenate((np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * v), axis=-1)


def _squeezed(data: Mapping[str, Any], name: str) -> np.ndarray:
    """A table of joints `[F, J]`; PHC leaves a last axis of size 1."""
    angles = data.get(name)
    if isinstance(angles, np.ndarray) and angles.shape[2:] == (1,):
        data = {name: angles[..., 0]}
    return array(data, name, "iuf", (-1, -1))
