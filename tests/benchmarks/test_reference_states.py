"""Reference-state initialisation on MuJoCo environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from benchmarks.motion.reference_states import ReferenceStateInit, joint_fields

from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionsConfig

pytest.importorskip("mujoco")

FRAMES = np.array([[0.1, 1.0, 7.0], [0.2, 2.0, 7.0], [0.3, 3.0, 7.0]])
FIELDS: dict[str, Any] = {
    "positions": (None, "height", *[None] * 7),  # rootx, rootz, ...
    "velocities": (*[None] * 8, "foot"),
}


@pytest.fixture
def motions(tmp_path: Path) -> MotionsConfig:
    clip = MotionClip(name="a", fields=("height", "foot", "other"), frames=FRAMES, frame_time=0.05)
    return MotionsConfig(files=(str(write_motions(tmp_path / "a.npz", [clip])),))


def cheetah() -> gym.Env[Any, Any]:
    return gym.make("HalfCheetah-v5")


def test_episodes_start_in_states_of_clips(motions: MotionsConfig) -> None:
    env, plain = ReferenceStateInit(cheetah(), motions, **FIELDS), cheetah()
    inner: Any = env.unwrapped
    seen = set()
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        usual, _ = plain.reset(seed=seed)
        # the observation is qpos without rootx, then qvel
        start = round(float(obs[0]), 6)
        assert start in (0.1, 0.2)  # the last frame leads nowhere
        assert obs[-1] == pytest.approx(10.0 * start, rel=1e-6)
        np.testing.assert_array_equal(obs[1:-1], usual[1:-1])  # everything else is the environment's own start
        assert inner.data.qpos[1] == obs[0]
        again, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(again, obs)
        seen.add(start)
    assert seen == {0.1, 0.2}
    first, _ = env.reset()
    assert env.observation_space.contains(first)
    env.step(env.action_space.sample())


def test_a_share_of_the_episodes_starts_as_ever(motions: MotionsConfig) -> None:
    env, plain = ReferenceStateInit(cheetah(), motions, probability=0.25, **FIELDS), cheetah()
    usual = sum(bool((env.reset(seed=s)[0] == plain.reset(seed=s)[0]).all()) for s in range(200))
    assert 0.65 < usual / 200 < 0.85


def test_fields_follow_from_the_joints() -> None:
    positions, velocities = joint_fields(gym.make("Ant-v5").unwrapped.model)  # type: ignore[attr-defined]
    root = ["root_pos_x", "root_pos_y", "root_pos_z", "root_rot_w", "root_rot_x", "root_rot_y", "root_rot_z"]
    assert positions[:9] == (*root, "hip_1_dof_pos", "ankle_1_dof_pos")
    # MuJoCo: a free joint's velocity is the world's, its turning rate the body's own
    assert velocities[2:7] == ("root_vel_z_w", *(f"root_ang_vel_{axis}_b" for axis in "xyz"), "hip_1_dof_vel")
    positions, _ = joint_fields(cheetah().unwrapped.model)  # type: ignore[attr-defined]
    assert positions[:4] == ("rootx_dof_pos", "rootz_dof_pos", "rooty_dof_pos", "bthigh_dof_pos")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": ("height",)}, "positions names 1 fields; the model has 9"),
        ({"velocities": ["foot"] * 10}, "velocities names 10 fields; the model has 9"),
        ({"positions": [*[None] * 8, "hight"]}, "did you mean height"),
        ({"positions": None}, "has no field 'rootx_dof_pos'"),
        ({"probability": 1.5}, r"\[0, 1\]"),
        ({"motions": MotionsConfig()}, "name motion files"),
    ],
)
def test_what_cannot_work_is_refused(motions: MotionsConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceStateInit(cheetah(), **{"motions": motions, **FIELDS, **options})


def test_other_environments_are_refused(motions: MotionsConfig) -> None:
    with pytest.raises(ValueError, match="cannot be set"):
        ReferenceStateInit(gym.make("CartPole-v1"), motions)
    with pytest.raises(ValueError, match="changes its observations"):
        ReferenceStateInit(gym.wrappers.TimeAwareObservation(cheetah()), motions, **FIELDS)
