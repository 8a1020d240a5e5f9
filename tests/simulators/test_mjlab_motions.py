"""Motion clips of mjlab's robots: kinematics against MuJoCo's own, files against its tracking task's reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.motions import robots
from tests.data.motions.robots import walk

from understudy.data.motions.convert import convert
from understudy.data.motions.files import read_motions
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.robots import Robot

pytest.importorskip("mjlab")
import mujoco


@pytest.mark.parametrize(("name", "joints", "bodies"), [("unitree_g1", 29, 30), ("unitree_go1", 12, 13)])
def test_real_robots_move_as_mujoco_moves_them(name: str, joints: int, bodies: int) -> None:
    """Against the whole model with its meshes and masses, at random states."""
    robot = Robot(name)
    assert (len(robot.joints), len(robot.bodies)) == (joints, bodies)
    model, rng = mujoco.MjModel.from_xml_path(str(robot.path)), np.random.default_rng(0)
    data, F = mujoco.MjData(model), 5
    quat = rng.normal(size=(F, 4))
    quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    angles = rng.uniform(*np.clip(robot.ranges, -3, 3).T, size=(F, joints))
    pos, rates, vel, own = (rng.normal(size=(F, n)) for n in (3, joints, 3, 3))
    spin = np.empty((F, 3))
    for i in range(F):
        mujoco.mju_rotVecQuat(spin[i], own[i], quat[i])
    found = robot.kinematics(pos, quat, angles, (vel, spin, rates))
    for i in range(F):
        data.qpos[:], data.qvel[:] = (*pos[i], *quat[i], *angles[i]), (*vel[i], *own[i], *rates[i])
        mujoco.mj_forward(model, data)
        for b, body in enumerate(robot.bodies):
            six = np.zeros(6)
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, data.body(body).id, six, 0)
            np.testing.assert_allclose(found.pos[i, b], data.body(body).xpos, atol=1e-9)
            np.testing.assert_allclose(found.quat[i, b], data.body(body).xquat, atol=1e-9)
            np.testing.assert_allclose(np.concatenate((found.ang_vel[i, b], found.vel[i, b])), six, atol=1e-8)


def test_mjlabs_tracking_task_reads_what_is_written(tmp_path: Path) -> None:
    from mjlab.tasks.tracking.mdp.commands import MotionLoader

    robot = Robot("unitree_g1")
    motion = walk()
    swing = np.clip(0.3 * np.sin(np.arange(40) / 5)[:, None], *(robot.ranges * 0.95).T)
    path = tmp_path / "g1.csv"
    path.write_bytes(robots.csv(motion._replace(angles=swing)))
    convert(path, tmp_path / "g1.npz", ReadOptions(robot="unitree_g1"), to="mjlab")
    loader = MotionLoader(str(tmp_path / "g1.npz"), torch.arange(30))
    assert loader.joint_pos.shape == (66, 29)  # 1.3 s at 50 frames a second
    assert loader.body_quat_w.shape == (66, 30, 4)
    torch.testing.assert_close(loader.body_pos_w[0, 0], torch.from_numpy(motion.pos[0]))
    (back,) = read_motions(tmp_path / "g1.npz", ReadOptions(robot="unitree_g1"))
    assert {"torso_link_pos_x_w", "left_knee_joint_dof_vel", "root_ang_vel_z_w"} <= set(back.fields)


def test_another_robot_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(robots.csv(walk()))
    with pytest.raises(
        ValueError, match=r"it has 5 joints without names, and the robot g1 has 29 \(left_hip_pitch_joint"
    ):
        read_motions(tmp_path / "m.csv", ReadOptions(robot="unitree_g1"))
    with pytest.raises(ValueError, match=r"there is no robot 'unitree_g2': .* did you mean unitree_g1 or unitree_go1"):
        Robot("unitree_g2")
