"""Write clips as other programs have them. Each format holds one clip; joints and bodies come in a robot's order.

Root and joints must be in the clip; velocities that it lacks are finite differences, bodies come from the robot's
kinematics. Rates are those of the clip, unless it is put on another grid before.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from understudy.core.check import nearest
from understudy.core.files import replacing
from understudy.data.motions.clip import MotionClip
from understudy.data.motions.fields import Array, FieldTable, conjugate, rotate
from understudy.data.motions.reading import Columns, link_fields
from understudy.data.motions.robots import Bodies, Robot

_KINDS = ("pos", "rot", "vel", "ang_vel")  # of bodies


class States(NamedTuple):
    """A clip as other programs see it: F frames of the root and of J joints, and its bodies where a robot is known."""

    name: str
    rate: float  # 1/s
    wraps: bool
    joints: tuple[str, ...]
    angles: Array  # [F, J]
    rates: Array  # [F, J]
    pos: Array  # [F, 3]
    quat: Array  # [F, 4] w, x, y, z
    vel: Array  # [F, 3] in the world
    ang_vel: Array  # [F, 3] in the world
    robot: Robot | None

    def bodies(self, clip: MotionClip) -> Bodies:
        """The clip's bodies if it has all of them, else those of the robot's kinematics."""
        assert self.robot is not None
        names = {kind: [link_fields(body, kind) for body in self.robot.bodies] for kind in _KINDS}
        places = {name: i for i, name in enumerate(clip.fields)}
        if all(name in places for of_kind in names.values() for body in of_kind for name in body):
            return Bodies(*(clip.frames[:, [[places[n] for n in body] for body in names[kind]]] for kind in _KINDS))
        return self.robot.kinematics(self.pos, self.quat, self.angles, (self.vel, self.ang_vel, self.rates))


def states_of(clip: MotionClip, robot: Robot | None = None) -> States:
    """Root and joints of a clip, in the robot's order. Raises ValueError where the clip or the robot lacks one."""
    joints = tuple(name.removesuffix("_dof_pos") for name in clip.fields if name.endswith("_dof_pos"))
    whose = f"clip {clip.name!r}"
    if robot is not None:
        robot.places(joints, whose)
        if missing := [joint for joint in robot.joints if joint not in joints]:
            raise ValueError(
                f"{whose} lacks joint {missing[0]!r} of the robot {robot.name} ({len(missing) - 1} more are missing); "
                f"{nearest(missing[0], joints)}"
            )
        joints = robot.joints
    elif not joints:
        raise ValueError(f"{whose} has no joints (<joint>_dof_pos)")
    wraps = clip.loop == "wrap"
    turns = wraps and clip.cycle_offset_rotation
    table = FieldTable(clip.name, clip.fields, clip.frames, clip.frame_time, wraps=wraps, turns=turns)
    return States(
        name=clip.name,
        rate=round(1.0 / clip.frame_time, 6),
        wraps=wraps,
        joints=joints,
        angles=table.select([f"{joint}_dof_pos" for joint in joints]),
        rates=table.select([f"{joint}_dof_vel" for joint in joints]),
        pos=table.select([f"root_pos_{axis}" for axis in "xyz"]),
        quat=table.select([f"root_rot_{axis}" for axis in "wxyz"]),
        vel=table.select([f"root_vel_{axis}_w" for axis in "xyz"]),
        ang_vel=table.select([f"root_ang_vel_{axis}_w" for axis in "xyz"]),
        robot=robot,
    )


def with_bodies(clip: MotionClip, robot: Robot) -> MotionClip:
    """The clip with all bodies of the robot: positions, rotations and velocities by its kinematics."""
    bodies, columns = states_of(clip, robot).bodies(clip), Columns()
    columns.links(robot.bodies, **dict(zip(_KINDS, bodies)))
    kept = [i for i, name in enumerate(clip.fields) if name not in set(columns.fields)]
    columns.add([clip.fields[i] for i in kept], clip.frames[:, kept])
    return replace(clip, fields=tuple(columns.fields), frames=np.concatenate(columns.columns, axis=1))


# ------------------------------------------------------------------------------------------------ formats


def _beyond_mimic(states: States, clip: MotionClip, breadth_first: bool = False) -> dict[str, Any]:
    bodies = states.bodies(clip)
    robot = states.robot
    assert robot is not None
    joints = [robot.joints.index(joint) for joint in (robot.breadth_first if breadth_first else robot.joints)]
    links = [robot.bodies.index(body) for body in (robot.breadth_first_bodies if breadth_first else robot.bodies)]
    names = ("body_pos_w", "body_quat_w", "body_lin_vel_w", "body_ang_vel_w")
    return {
        "fps": [states.rate],
        "joint_pos": _f32(states.angles[:, joints]),
        "joint_vel": _f32(states.rates[:, joints]),
        **{name: _f32(values[:, links]) for name, values in zip(names, bodies)},
    }


def _isaac_lab(states: States, clip: MotionClip) -> dict[str, Any]:
    assert states.robot is not None
    names = ("positions", "rotations", "linear_velocities", "angular_velocities")
    return {
        "fps": states.rate,
        "dof_names": np.array(states.joints),
        "body_names": np.array(states.robot.bodies),
        "dof_positions": _f32(states.angles),
        "dof_velocities": _f32(states.rates),
        **{f"body_{name}": _f32(values) for name, values in zip(names, states.bodies(clip))},
    }


def _loco_mujoco(states: States, clip: MotionClip) -> dict[str, Any]:
    hinges = (True,) * len(states.joints) if states.robot is None else states.robot.hinges
    own = rotate(conjugate(states.quat), states.ang_vel)  # a free joint's rotation is seen from its own frame
    return {
        "joint_names": np.array(["root", *states.joints]),
        "jnt_type": np.array([0, *(3 if hinge else 2 for hinge in hinges)]),
        "njnt": 1 + len(states.joints),
        "frequency": states.rate,
        "qpos": _f32(np.concatenate((states.pos, states.quat, states.angles), axis=1)),
        "qvel": _f32(np.concatenate((states.vel, own, states.rates), axis=1)),
        "split_points": np.array([0, len(states.pos)]),
    }


def _gmr(states: States, clip: MotionClip) -> dict[str, Any]:
    states_ = {"root_pos": states.pos, "root_rot": np.roll(states.quat, -1, axis=1), "dof_pos": states.angles}
    return {
        "fps": states.rate,
        **{k: _f32(v) for k, v in states_.items()},
        "local_body_pos": None,
        "link_body_list": None,
    }


def _amp_rsl_rl(states: States, clip: MotionClip) -> dict[str, Any]:
    return {
        "joints_list": list(states.joints),
        "joint_positions": list(_f32(states.angles)),
        "root_position": list(_f32(states.pos)),
        "root_quaternion": list(_f32(np.roll(states.quat, -1, axis=1))),
        "fps": states.rate,
    }


def _mimic_kit(states: States, clip: MotionClip) -> dict[str, Any]:
    frames = np.concatenate((states.pos, _exponential_map(states.quat), states.angles), axis=1)
    return {"loop_mode": int(states.wraps), "fps": states.rate, "frames": _f32(frames)}


def _motion_lib(states: States, clip: MotionClip) -> dict[str, Any]:
    assert states.robot is not None
    root = _exponential_map(states.quat)[:, None]
    return {
        states.name: {
            "root_trans_offset": _f32(states.pos),
            "pose_aa": _f32(np.concatenate((root, states.robot.axes * states.angles[..., None]), axis=1)),
            "dof": _f32(states.angles),
            "root_rot": _f32(np.roll(states.quat, -1, axis=1)),
            "fps": states.rate,
        }
    }


def _lafan1(states: States, clip: MotionClip) -> Array:
    return np.concatenate((states.pos, np.roll(states.quat, -1, axis=1), states.angles), axis=1)


def _exponential_map(q: Array) -> Array:
    """Rotation vectors `[F, 3]` (axis times angle, at most a half turn) of unit quaternions `[F, 4]`."""
    q = np.where(q[:, :1] < 0.0, -q, q)
    length = np.linalg.norm(q[:, 1:], axis=-1, keepdims=True)
    # angle / sin(angle / 2) tends to 2 where nothing turns
    return q[:, 1:] * np.where(length < 1e-9, 2.0, 2.0 * np.arctan2(length, q[:, :1]) / np.maximum(length, 1e-9))


def _f32(x: Array) -> np.ndarray:
    return x.astype(np.float32)


def _npz(data: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **data)
    return file.getvalue()


def _npy(data: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(data))  # a dictionary: numpy pickles it, as the program that reads it expects
    return file.getvalue()


def _csv(table: Array) -> bytes:
    file = io.BytesIO()
    np.savetxt(file, table, fmt="%.9g", delimiter=",")
    return file.getvalue()


class Output(NamedTuple):
    """How to write one format."""

    pack: Callable[[Any], bytes]
    content: Callable[[States, MotionClip], Any]
    needs_robot: bool = True


OUTPUTS = {
    "mjlab": Output(_npz, _beyond_mimic),
    "beyond-mimic": Output(_npz, lambda states, clip: _beyond_mimic(states, clip, breadth_first=True)),
    "isaac-lab": Output(_npz, _isaac_lab),
    "loco-mujoco": Output(_npz, _loco_mujoco, needs_robot=False),
    "lafan1": Output(_csv, _lafan1, needs_robot=False),
    "gmr": Output(pickle.dumps, _gmr, needs_robot=False),
    "amp-rsl-rl": Output(_npy, _amp_rsl_rl, needs_robot=False),
    "mimickit": Output(pickle.dumps, _mimic_kit, needs_robot=False),
    "motion-lib": Output(pickle.dumps, _motion_lib),
}


def write_as(form: str, path: str | Path, clip: MotionClip, robot: Robot | None = None) -> Path:
    """Write one clip in one of the `OUTPUTS`; an existing file is replaced whole.

    Raises ValueError where the clip lacks root or joints, and where the format needs a robot.
    """
    output, path = OUTPUTS[form], Path(path)
    if output.needs_robot and robot is None:
        raise ValueError(f"the format {form} holds what a robot tells, such as its bodies: name its model (robot)")
    data = output.pack(output.content(states_of(clip, robot), clip))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)
    return path
