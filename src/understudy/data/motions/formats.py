"""The table of motion formats: how each is recognised, its order of quaternions, its reader.

All positions are in m, angles in rad, velocities in m/s and rad/s, in the world unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from understudy.core.check import nearest
from understudy.data.motions import arrays, dictionaries, tables
from understudy.data.motions.clip import MotionClip
from understudy.data.motions.options import QuaternionOrder
from understudy.data.motions.reading import Reading


class Format(NamedTuple):
    """One format: a row of the table."""

    name: str
    container: Literal["npz", "dictionary", "table"]
    keys: tuple[str, ...]  # entries that it is recognised by, all of them needed
    order: QuaternionOrder | None  # of quaternions without names, unless the options say otherwise; None: it has none
    read: Callable[[Any, str, Reading], list[MotionClip]]

    @property
    def looks(self) -> str:
        """What the format looks like, in a line."""
        what = f"{self.container} with {', '.join(self.keys)}" if self.keys else "numbers separated by commas"
        return f"{what}; quaternions {self.order}" if self.order else what


FORMATS = (
    Format("ours", "npz", ("format", "names"), None, arrays.ours),
    Format(
        "Isaac Lab",  # xyzw since January 2026
        "npz",
        (
            "fps", "dof_names", "body_names", "dof_positions", "dof_velocities", "body_positions", "body_rotations",
            "body_linear_velocities", "body_angular_velocities",
        ),
        "wxyz",
        arrays.isaac_lab,
    ),
    Format(
        "BeyondMimic",
        "npz",
        ("joint_pos", "joint_vel", "body_pos_w", "body_quat_w", "body_lin_vel_w", "body_ang_vel_w"),
        "wxyz",
        arrays.beyond_mimic,
    ),
    Format(
        "LocoMuJoCo",
        "npz",
        ("qpos", "qvel", "split_points", "joint_names", "jnt_type"),
        "wxyz",
        arrays.loco_mujoco,
    ),
    Format("GMR", "dictionary", ("root_pos", "root_rot", "dof_pos"), "xyzw", dictionaries.gmr),
    Format(
        "amp-rsl-rl",
        "dictionary",
        ("joints_list", "joint_positions", "root_position", "root_quaternion"),
        "xyzw",
        dictionaries.amp_rsl_rl,
    ),
    # its rotations are exponential maps
    Format("MimicKit", "dictionary", ("loop_mode", "frames"), None, dictionaries.mimic_kit),
    Format("motion_lib", "dictionary", ("root_trans_offset", "root_rot", "dof"), "xyzw", dictionaries.motion_lib),
    Format("AMP_for_hardware", "dictionary", ("Frames", "FrameDuration"), None, dictionaries.header),
    Format("Unitree LAFAN1", "table", (), "xyzw", tables.lafan1),
)  # fmt: skip


def clips_of(container: str, data: Any, name: str, reading: Reading) -> list[MotionClip]:
    """The clips of an `.npz` or a table, or of a dictionary, from text or a pickle, which may hold clips by name."""
    forms = [form for form in FORMATS if form.container == container]
    if container != "dictionary":
        return _read(data, name, reading, forms)
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a dictionary of clips, found a {type(data).__name__}")
    known = {*dictionaries.KEYS, *(key for form in forms for key in form.keys)}
    if known & set(data):
        return _read(data, name, reading, forms)
    clips = []
    for key, inner in data.items():
        if not isinstance(inner, Mapping):
            raise ValueError(f"{key!r} is not a clip but of type {type(inner).__name__}; {nearest(str(key), known)}")
        clips += _read(inner, str(key), reading, forms)
    if not clips:
        raise ValueError("it holds no clips")
    return clips


def _read(data: Any, name: str, reading: Reading, forms: Sequence[Format]) -> list[MotionClip]:
    form = forms[0] if len(forms) == 1 else _recognised(data, forms)
    reading.usual_order = form.order or "wxyz"
    return form.read(data, name, reading)


def _recognised(found: Collection[str], forms: Sequence[Format]) -> Format:
    """The format that most of its entries are there of. Raises ValueError where one is missing."""
    if dictionaries.KEYS & set(found):
        return next(form for form in forms if form.read is dictionaries.header)
    form = max(forms, key=lambda form: len(set(found) & set(form.keys)) / len(form.keys))
    if missing := [key for key in form.keys if key not in found]:
        known = " or ".join(f"{form.name} ({', '.join(form.keys)})" for form in forms)
        held = ", ".join([*map(str, found)][:20]) or "nothing"
        near = f"as a file of the format {form.name} it lacks {', '.join(missing)}"
        what = near if len(missing) < len(form.keys) else "it is of no format that is read"
        raise ValueError(f"{what}; it has: {held}. Formats that are read: {known}")
    return form
