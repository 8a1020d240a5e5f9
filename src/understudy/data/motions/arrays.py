"""Readers of the `.npz` family: ours, Isaac Lab's, BeyondMimic's and mjlab's, LocoMuJoCo's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from understudy.data.motions.clip import MotionClip
from understudy.data.motions.reading import Columns, Reading, array, number, words

FORMAT = "understudy-motion-1"
Arrays = Mapping[str, np.ndarray]
_SIZES = {"pos": 3, "rot": 4, "vel": 3, "ang_vel": 3}
_FREE, _BALL = 0, 1  # MuJoCo's types of joints


def ours(arrays: Arrays, name: str, reading: Reading) -> list[MotionClip]:
    """Clips as `files.py` lays them out."""
    form, names = words(arrays, "format", None)[0], words(arrays, "names")
    if form != FORMAT:
        raise ValueError(f"its format is {form!r}; this version reads {FORMAT!r}")
    return [_clip_of_ours(arrays, i, clip) for i, clip in enumerate(names)]


def _clip_of_ours(arrays: Arrays, i: int, name: str) -> MotionClip:
    moves, turns = array(arrays, f"{i}/cycle_offset", "b", (2,))
    return MotionClip(
        name=name,
        fields=words(arrays, f"{i}/fields"),
        frames=array(arrays, f"{i}/frames", "f", (-1, -1)),
        frame_time=number(arrays, f"{i}/frame_time"),
        loop=words(arrays, f"{i}/loop", None)[0],  # type: ignore[arg-type]  # checked there
        cycle_offset_position=bool(moves),
        cycle_offset_rotation=bool(turns),
        weight=number(arrays, f"{i}/weight"),
    )


def isaac_lab(arrays: Arrays, name: str, reading: Reading) -> list[MotionClip]:
    """Joints as <joint>_dof_*, bodies as <body>_*_w; the first body doubles as the root."""
    joints, bodies = words(arrays, "dof_names"), words(arrays, "body_names")
    if not bodies:
        raise ValueError("body_names names no body, and the first one is the root")
    F, J, B = len(array(arrays, "dof_positions", "f", (-1, -1))), len(joints), len(bodies)
    columns = Columns()
    columns.joints(joints, "pos", array(arrays, "dof_positions", "f", (F, J)))
    columns.joints(joints, "vel", array(arrays, "dof_velocities", "f", (F, J)))
    names = ("positions", "rotations", "linear_velocities", "angular_velocities")
    _add_bodies(columns, arrays, {k: f"body_{n}" for k, n in zip(_SIZES, names)}, (F, B), bodies, reading)
    return [columns.clip(name, reading.frame_time({"fps": number(arrays, "fps")}, "fps"))]


def beyond_mimic(arrays: Arrays, name: str, reading: Reading) -> list[MotionClip]:
    """Joints and bodies in the robot's order, the first body doubles as the root; bodies need a robot's names."""
    F, J = array(arrays, "joint_pos", "f", (-1, -1)).shape
    B = array(arrays, "body_pos_w", "f", (F, -1, 3)).shape[1]
    if not B:
        raise ValueError("body_pos_w holds no body, and the first one is the root")
    joints = words(arrays, "joint_names", (J,)) if "joint_names" in arrays else reading.joints(J)
    bodies = words(arrays, "body_names", (B,)) if "body_names" in arrays else reading.bodies(B)
    columns = Columns()
    columns.joints(joints, "pos", array(arrays, "joint_pos", "f", (F, J)))
    columns.joints(joints, "vel", array(arrays, "joint_vel", "f", (F, J)))
    names = ("body_pos_w", "body_quat_w", "body_lin_vel_w", "body_ang_vel_w")
    _add_bodies(columns, arrays, dict(zip(_SIZES, names)), (F, B), bodies, reading)
    return [columns.clip(name, reading.frame_time(arrays, "fps"))]


def _add_bodies(
    columns: Columns,
    arrays: Arrays,
    names: Mapping[str, str],
    shape: tuple[int, int],
    bodies: tuple[str, ...],
    reading: Reading,
) -> None:
    """Root and bodies of the arrays called `names`, `[F, B, 3 or 4]`."""
    of_bodies = {kind: array(arrays, name, "f", (*shape, _SIZES[kind])) for kind, name in names.items()}
    of_bodies["rot"] = reading.wxyz(of_bodies["rot"])
    columns.root(**{kind: values[:, 0] for kind, values in of_bodies.items()})
    if bodies:
        columns.links(bodies, **of_bodies)


def loco_mujoco(arrays: Arrays, name: str, reading: Reading) -> list[MotionClip]:
    """MuJoCo's coordinates laid out by the types of the joints; the free joint is the root; bodies where there are."""
    joints, types = words(arrays, "joint_names"), array(arrays, "jnt_type", "iu", (-1,)).tolist()
    if len(types) != len(joints) or _BALL in types or types.count(_FREE) > 1:
        raise ValueError(
            f"jnt_type is {str(types)[:40]}; expected one free joint, hinges and slides, one per joint name"
        )
    sizes = [(7, 6) if kind == _FREE else (1, 1) for kind in types]
    qpos = array(arrays, "qpos", "f", (-1, sum(a for a, _ in sizes)))
    qvel = array(arrays, "qvel", "f", (len(qpos), sum(b for _, b in sizes)))
    columns, places = Columns(), np.cumsum([(0, 0), *sizes], axis=0)
    moving = [i for i, kind in enumerate(types) if kind != _FREE]
    columns.joints([joints[i] for i in moving], "pos", qpos[:, places[moving, 0]])
    columns.joints([joints[i] for i in moving], "vel", qvel[:, places[moving, 1]])
    if _FREE in types:
        p, v = places[types.index(_FREE)]
        columns.root(pos=qpos[:, p : p + 3], rot=reading.wxyz(qpos[:, p + 3 : p + 7]), vel=qvel[:, v : v + 3])
        columns.add((f"root_ang_vel_{axis}_b" for axis in "xyz"), qvel[:, v + 3 : v + 6])
    if "xpos" in arrays and arrays["xpos"].size:
        bodies = words(arrays, "body_names")
        pos = array(arrays, "xpos", "f", (len(qpos), len(bodies), 3))
        rot = reading.wxyz(array(arrays, "xquat", "f", (len(qpos), len(bodies), 4)))
        first = int(bodies[:1] == ("world",))
        columns.links(bodies[first:], pos=pos[:, first:], rot=rot[:, first:])
    whole = columns.clip(name, reading.frame_time(arrays, "frequency"))
    return _split(whole, array(arrays, "split_points", "iu", (-1,)).tolist())


def _split(whole: MotionClip, edges: list[int]) -> list[MotionClip]:
    """Clips between edges, the first of which is 0 and the last the end."""
    if edges[:1] != [0] or edges[-1] != len(whole.frames) or edges != sorted(edges) or len(edges) < 2:
        raise ValueError(f"split_points is {str(edges)[:60]}; it must rise from 0 to the {len(whole.frames)} frames")
    if len(edges) == 2:
        return [whole]
    return [
        MotionClip(name=f"{whole.name} {i}", fields=whole.fields, frames=whole.frames[a:b], frame_time=whole.frame_time)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
