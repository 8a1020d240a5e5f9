"""The table of motion formats: how each is recognised, its units and order of quaternions, what it holds, its reader.

All positions are in m, angles in rad, velocities in m/s and rad/s, in the world unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from understudy.core.check import nearest
from understudy.data.motions import arrays, dictionaries
from understudy.data.motions.clip import MotionClip
from understudy.data.motions.reading import Columns, Reading


class Format(NamedTuple):
    """One format: a row of the table."""

    name: str
    container: Literal["npz", "dictionary"]
    keys: tuple[str, ...]  # entries that it is recognised by, all of them needed
    quaternions: str  # their order
    holds: str
    read: Callable[[Mapping[str, Any], str, Reading], list[MotionClip]]


FORMATS = (
    Format("ours", "npz", ("format", "names"), "named", "named fields", arrays.ours),
    Format(
        "Isaac Lab's",
        "npz",
        (
            "fps", "dof_names", "body_names", "dof_positions", "dof_velocities", "body_positions", "body_rotations",
            "body_linear_velocities", "body_angular_velocities",
        ),
        "wxyz; xyzw since January 2026",
        "named joints and bodies, velocities",
        arrays.isaac_lab,
    ),
    Format(
        "BeyondMimic's",
        "npz",
        ("joint_pos", "joint_vel", "body_pos_w", "body_quat_w", "body_lin_vel_w", "body_ang_vel_w"),
        "wxyz",
        "joints and bodies without names, velocities",
        arrays.beyond_mimic,
    ),
    Format(
        "LocoMuJoCo's",
        "npz",
        ("qpos", "qvel", "split_points", "joint_names", "jnt_type"),
        "wxyz",
        "named joints, root, velocities, often named bodies",
        arrays.loco_mujoco,
    ),
    Format("GMR's", "dictionary", ("root_pos", "root_rot", "dof_pos"), "xyzw",
           "root, joints without names, often named bodies", dictionaries.gmr),
    Format(
        "amp-rsl-rl's",
        "dictionary",
        ("joints_list", "joint_positions", "root_position", "root_quaternion"),
        "xyzw",
        "root, named joints",
        dictionaries.amp_rsl_rl,
    ),
    Format("MimicKit's", "dictionary", ("loop_mode", "frames"), "exponential map", "root, joints without names",
           dictionaries.mimic_kit),
    Format("motion_lib's", "dictionary", ("root_trans_offset", "root_rot", "dof"), "xyzw", "root, joints without names",
           dictionaries.motion_lib),
    Format("a header with frames", "dictionary", ("Frames", "FrameDuration"), "named", "named fields",
           dictionaries.header),
)  # fmt: skip


def clips_of_arrays(found: Mapping[str, np.ndarray], name: str, reading: Reading) -> list[MotionClip]:
    """The clips of an `.npz`, whose format the names of its arrays tell."""
    return _recognised(found, [form for form in FORMATS if form.container == "npz"]).read(found, name, reading)


def clips_of_dictionary(data: Any, name: str, reading: Reading) -> list[MotionClip]:
    """Clips from parsed text or a pickle: one clip, or a dictionary of clips by name."""
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a dictionary of clips, found a {type(data).__name__}")
    if dictionaries.KEYS & set(data):
        return dictionaries.header(data, name, reading)
    forms = [form for form in FORMATS if form.container == "dictionary"]
    if any(set(form.keys) & set(data) for form in forms):
        return _recognised(data, forms).read(data, name, reading)
    clips = []
    for key, inner in data.items():
        if not isinstance(inner, Mapping):
            known = {*dictionaries.KEYS, *(key for form in forms for key in form.keys)}
            raise ValueError(f"{key!r} is not a clip but of type {type(inner).__name__}; {nearest(str(key), known)}")
        if set(inner) & dictionaries.KEYS or not any(set(form.keys) & set(inner) for form in forms):
            clips += dictionaries.header(inner, str(key), reading)
        else:
            clips += _recognised(inner, forms).read(inner, str(key), reading)
    if not clips:
        raise ValueError("it holds no clips")
    return clips


def clips_of_table(table: np.ndarray, name: str, reading: Reading) -> list[MotionClip]:
    """Unitree's `.csv`: rows of root position, quaternion (x, y, z, w) and joints, 30 a second, no header."""
    if table.shape[1] < 8:
        raise ValueError(
            f"its rows have {table.shape[1]} numbers; expected 3 + 4 of the root, then those of the joints"
        )
    columns = Columns()
    columns.joints(reading.joints(table.shape[1] - 7), "pos", table[:, 7:])
    columns.root(pos=table[:, :3], rot=reading.wxyz(table[:, 3:7], "xyzw"))
    return [columns.clip(name, reading.frame_time({}, "a frame rate", usual=30.0))]


def _recognised(found: Collection[str], forms: Sequence[Format]) -> Format:
    """The format that most of its entries are there of. Raises ValueError where one is missing."""
    form = max(forms, key=lambda form: len(set(found) & set(form.keys)) / len(form.keys))
    if missing := [key for key in form.keys if key not in found]:
        known = " or ".join(f"{form.name} ({', '.join(form.keys)})" for form in forms)
        held = ", ".join([*found][:20]) or "nothing"
        raise ValueError(
            f"as a file of {form.name} format it lacks {', '.join(missing)}; it has: {held}. "
            f"Formats that are read: {known}"
        )
    return form
