"""A small robot and its walk, and the same in the files of other programs, as these write them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from understudy.data.motions.fields import conjugate, rotate

ROBOT = """<mujoco><compiler angle="radian"/><worldbody><geom type="plane" size="5 5 .1"/>
<body name="pelvis" pos="0 0 .6"><freejoint name="root"/><geom size=".1"/>
  <body name="left_thigh" pos="0 .1 0">
    <joint name="left_hip" axis="0 1 0" range="-1 1"/><geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/>
    <body name="left_shin" pos="0 0 -.3">
      <joint name="left_knee" axis="0 1 0" range="0 2"/><geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/>
    </body></body>
  <body name="right_thigh" pos="0 -.1 0">
    <joint name="right_hip" axis="0 1 0" range="-1 1"/><geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/>
    <body name="right_shin" pos="0 0 -.3">
      <joint name="right_knee" axis="0 1 0" range="0 2"/><geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/>
    </body></body>
  <body name="torso" pos="0 0 .2"><joint name="waist" axis="0 0 1" range="-2 2"/><geom size=".1"/></body>
</body></worldbody></mujoco>"""
JOINTS = ("left_hip", "left_knee", "right_hip", "right_knee", "waist")
BREADTH_FIRST = [0, 2, 4, 1, 3]  # of these joints
BODIES = ("pelvis", "left_thigh", "left_shin", "right_thigh", "right_shin", "torso")
BODIES_BREADTH_FIRST = [0, 1, 3, 5, 2, 4]
FPS = 25


class Walk(NamedTuple):
    """A curve at 25 frames a second."""

    pos: np.ndarray  # [F, 3]
    quat: np.ndarray  # [F, 4] w, x, y, z
    angles: np.ndarray  # [F, 5]


def robot(folder: Path) -> str:
    """The model's file."""
    (folder / "walker.xml").write_text(ROBOT)
    return str(folder / "walker.xml")


def walk(frames: int = 40) -> Walk:
    """Ahead in a curve, leaning a little, at float32."""
    t = np.arange(frames) / FPS
    yaw, roll = 0.9 * np.sin(t), 0.1 * np.cos(2 * t)
    q = np.stack(
        (
            np.cos(yaw / 2) * np.cos(roll / 2),
            np.cos(yaw / 2) * np.sin(roll / 2),
            np.sin(yaw / 2) * np.sin(roll / 2),
            np.sin(yaw / 2) * np.cos(roll / 2),
        ),
        axis=1,
    )
    swing = 0.6 * np.sin(4 * t)
    angles = np.stack((swing, 0.5 + 0.4 * np.cos(4 * t), -swing, 0.5 - 0.4 * np.cos(4 * t), 0.3 * np.sin(t)), axis=1)
    return Walk(*(x.astype(np.float32) for x in (np.stack((t, 0.2 * t**2, 0.6 + 0 * t), axis=1), q, angles)))


def kinematics(model: Any, motion: Walk) -> dict[str, np.ndarray]:
    """Bodies as `csv_to_npz.py` of mjlab logs them: frames of links, velocities of their origins."""
    import mujoco

    data, dt = mujoco.MjData(model), 1.0 / FPS
    vel, rates = np.gradient(motion.pos, dt, axis=0), np.gradient(motion.angles, dt, axis=0)
    spin = np.zeros((len(vel), 3))
    for i in range(1, len(vel) - 1):
        mujoco.mju_subQuat(spin[i], motion.quat[i + 1].astype(float), motion.quat[i - 1].astype(float))  # seen from i-1
        mujoco.mju_rotVecQuat(spin[i], spin[i] / (2 * dt), motion.quat[i - 1].astype(float))
    spin[0], spin[-1] = spin[1], spin[-2]
    log: dict[str, list[np.ndarray]] = {name: [] for name in ("pos", "quat", "lin_vel", "ang_vel")}
    for i in range(len(vel)):
        data.qpos[:] = (*motion.pos[i], *motion.quat[i], *motion.angles[i])
        own = np.zeros(3)
        mujoco.mju_rotVecQuat(own, spin[i], motion.quat[i] * np.array([1.0, -1, -1, -1]))
        data.qvel[:] = (*vel[i], *own, *rates[i])
        mujoco.mj_forward(model, data)
        log["pos"].append(data.xpos[1:].copy())
        log["quat"].append(data.xquat[1:].copy())
        six = np.zeros((model.nbody - 1, 6))
        for b in range(1, model.nbody):
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, b, six[b - 1], 0)
        log["lin_vel"].append(six[:, 3:])
        log["ang_vel"].append(six[:, :3])
    bodies = {f"body_{name}_w": np.array(values, np.float32) for name, values in log.items()}
    return {"joint_pos": motion.angles, "joint_vel": rates.astype(np.float32), **bodies}


def beyond_mimic(model: Any, motion: Walk, *, isaac: bool = False, **changes: Any) -> bytes:
    """What `np.savez("motion.npz", **log)` of the converters holds; Isaac's go breadth first."""
    arrays: dict[str, Any] = {"fps": [FPS], **kinematics(model, motion)}
    if isaac:
        for name, array in arrays.items():
            if name != "fps":
                arrays[name] = array[:, BREADTH_FIRST if name.startswith("joint") else BODIES_BREADTH_FIRST]
    return npz({**arrays, **changes})


def csv(motion: Walk) -> bytes:
    """A line a frame, as in Unitree's retargeted LAFAN1."""
    rows = np.concatenate((motion.pos, np.roll(motion.quat, -1, axis=1), motion.angles), axis=1)
    return "".join(",".join(f"{x:.6f}" for x in row) + "\n" for row in rows).encode()


def gmr(motion: Walk, **changes: Any) -> bytes:
    """As `smplx_to_robot.py` of GMR pickles it (no bodies), or `smplx_to_robot_dataset.py` (with them)."""
    data = {"fps": FPS, "root_pos": motion.pos, "root_rot": np.roll(motion.quat, -1, axis=1), "dof_pos": motion.angles}
    return pickle.dumps({**data, "local_body_pos": None, "link_body_list": None, **changes})


def amp_rsl_rl(motion: Walk, **changes: Any) -> bytes:
    """`np.save` of a dictionary: lists of arrays, as amp-rsl-rl documents it."""
    data = {
        "joints_list": list(JOINTS),
        "joint_positions": list(motion.angles),
        "root_position": list(motion.pos),
        "root_quaternion": list(np.roll(motion.quat, -1, axis=1)),
        "fps": float(FPS),
    }
    file = io.BytesIO()
    np.save(file, np.array({**data, **changes}), allow_pickle=True)
    return file.getvalue()


def loco_mujoco(model: Any, motion: Walk, edges: tuple[int, ...], **changes: Any) -> bytes:
    """`Trajectory.save` of LocoMuJoCo 1.0: static and dynamic arrays, and None as pickled objects."""
    bodies = kinematics(model, motion)
    F = len(motion.pos)
    local = rotate(conjugate(motion.quat.astype(float)), bodies["body_ang_vel_w"][:, 0])  # as MuJoCo has it
    return npz(
        {
            "qpos": np.concatenate((motion.pos, motion.quat, motion.angles), axis=1),
            "qvel": np.concatenate((bodies["body_lin_vel_w"][:, 0], local, bodies["joint_vel"]), axis=1),
            "xpos": np.concatenate((np.zeros((F, 1, 3), np.float32), bodies["body_pos_w"]), axis=1),
            "xquat": np.concatenate((np.tile([[[1.0, 0, 0, 0]]], (F, 1, 1)), bodies["body_quat_w"]), axis=1),
            "cvel": np.empty(0),
            "split_points": np.array(edges),
            "joint_names": ["root", *JOINTS],
            "body_names": ["world", *BODIES],
            "site_names": None,
            "metadata": None,
            "frequency": float(FPS),
            "njnt": 6,
            "jnt_type": np.array([0, 3, 3, 3, 3, 3]),
            **changes,
        }
    )


def mimic_kit(motion: Walk, **changes: Any) -> bytes:
    """`Motion.save`: the root's rotation as an exponential map, frames as lists."""
    half = np.arccos(np.clip(motion.quat[:, :1], -1, 1))
    turn = 2 * half * motion.quat[:, 1:] / np.maximum(np.sin(half), 1e-9)
    frames = np.concatenate((motion.pos, turn, motion.angles), axis=1)
    return pickle.dumps({"loop_mode": 1, "fps": FPS, "frames": frames.tolist(), **changes})


def motion_lib(motion: Walk, **changes: Any) -> dict[str, Any]:
    """What PHC's and ASAP's `fit_smpl_motion.py` hands to `joblib.dump`."""
    return {
        "0-walk_poses": {
            "root_trans_offset": motion.pos,
            "pose_aa": np.zeros((len(motion.pos), 6, 3), np.float32),
            "dof": motion.angles,
            "root_rot": np.roll(motion.quat, -1, axis=1),
            "smpl_joints": np.zeros((len(motion.pos), 24, 3), np.float32),
            "fps": FPS,
            **changes,
        }
    }


def npz(arrays: dict[str, Any]) -> bytes:
    """As `np.savez` writes it."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
