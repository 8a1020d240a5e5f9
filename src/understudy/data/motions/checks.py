"""Does a clip fit a robot? Joints by name, their ranges, and bodies where the robot's kinematics has them."""

from __future__ import annotations

import numpy as np

from understudy.data.motions.clip import MotionClip
from understudy.data.motions.fields import Array
from understudy.data.motions.robots import Robot

_SLACK = 0.1  # rad; retargeted clips go a little beyond the ends
_APART = 0.03  # m between a body of the clip and of the robot that is called so
_PROBED = 16  # frames


def check_robot(clip: MotionClip, robot: Robot | None) -> list[str]:
    """Sentences about joints that leave their range.

    Raises ValueError for a joint that the robot lacks, for angles in degrees, and for bodies that are elsewhere than
    the robot's kinematics says, with what puts them right where one knows: another order of quaternions or joints.
    """
    joints = [name.removesuffix("_dof_pos") for name in clip.fields if name.endswith("_dof_pos")]
    if robot is None or not joints:
        return []
    places = robot.places(joints, f"clip {clip.name!r}")
    angles = clip.frames[:, [clip.fields.index(f"{joint}_dof_pos") for joint in joints]]
    low, high = robot.ranges[places].T
    over = np.maximum(low - angles, angles - high).max(0)
    hinges = np.array(robot.hinges)[places]
    scaled = np.where(hinges, np.pi / 180.0, 1.0) * angles
    if over.max() > np.pi and np.maximum(low - scaled, scaled - high).max() < _SLACK:
        raise ValueError(
            f"clip {clip.name!r}: joint {joints[int(over.argmax())]!r} leaves its range by {over.max():.0f} rad, and "
            "as degrees all joints fit theirs: multiply them by pi / 180 where the file is made"
        )
    if len(joints) == len(robot.joints):
        _check_bodies(clip, robot, angles[:, np.argsort(places)])
    beyond = [f"{joint} by {by:.2f}" for joint, by in zip(joints, over) if by > _SLACK]
    said = (
        f"joints leave the ranges of the robot {robot.name} ({', '.join(beyond[:5])} rad): are their columns in order?"
    )
    return [said] if beyond else []


def _check_bodies(clip: MotionClip, robot: Robot, angles: Array) -> None:
    """Compare positions of bodies, of some frames, with those of the robot in its pose."""
    places = {name: i for i, name in enumerate(clip.fields)}
    bodies = [i for i, body in enumerate(robot.bodies) if f"{body}_pos_x_w" in places]
    root = [
        places[name]
        for name in (*(f"root_pos_{a}" for a in "xyz"), *(f"root_rot_{a}" for a in "wxyz"))
        if name in places
    ]
    if len(root) < 7 or not bodies:
        return
    rows = np.unique(np.linspace(0, len(clip.frames) - 1, _PROBED).astype(int))
    told = np.stack(
        [clip.frames[rows][:, [places[f"{robot.bodies[i]}_pos_{axis}_w"] for axis in "xyz"]] for i in bodies], axis=1
    )
    pos, quat, angles = clip.frames[rows][:, root[:3]], clip.frames[rows][:, root[3:]], angles[rows]

    def apart(quat: Array, angles: Array, told: Array) -> Array:
        return np.linalg.norm(robot.kinematics(pos, quat, angles).pos[:, bodies] - told, axis=-1).max(0)  # [B]

    found = apart(quat, angles, told)
    if found.max() <= _APART:
        return
    remedy = "its joints have other names or another order, or it is another robot's"
    if min(apart(np.roll(quat, turn, axis=-1), angles, told).max() for turn in (1, -1)) <= _APART:
        remedy = "its quaternions have the other order: read it with that (quaternion_order)"
    elif len(bodies) == len(robot.bodies):
        joints = [robot.breadth_first.index(joint) for joint in robot.joints]
        links = [robot.breadth_first_bodies.index(body) for body in robot.bodies]
        if apart(quat, angles[:, joints], told[:, links]).max() <= _APART:
            remedy = "its joints come breadth first, as Isaac has them: read it with joint_order breadth_first"
    raise ValueError(
        f"clip {clip.name!r}: body {robot.bodies[bodies[int(found.argmax())]]!r} is {found.max():.2f} m from where the "
        f"robot {robot.name} has it: {remedy}"
    )
