"""Files of manipulation benchmarks, written as robomimic's, Isaac Lab's and ManiSkill's programs write them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.read import open_recording

LENGTHS = (3, 1, 4)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
RNG = np.random.default_rng(0)
OBSERVED = [RNG.normal(size=(n + 1, 5)).astype(np.float32) for n in LENGTHS]  # "eef" 0:3, "object" 3:5
ACTED = [RNG.uniform(-1, 1, size=(n, 2)).astype(np.float32) for n in LENGTHS]
IMAGES = [RNG.integers(0, 256, size=(n + 1, 4, 6, 3), dtype=np.uint8) for n in LENGTHS]


def box(*size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, size, np.float32)


PARTS = spaces.Dict({"policy": spaces.Dict({"eef": box(3), "object": box(2)})})
FLAT = spaces.Dict({"policy": box(5)})


def load(source: Path, space: spaces.Dict = PARTS, **options: Any) -> Demonstrations:
    return Demonstrations.load(source, **{"observation_space": space, "action_space": ACTIONS, **options})


def robomimic(path: Path, numbers: tuple[int, ...] = (0, 1, 10), next_obs: bool = True, **env: Any) -> Path:
    """`dataset_states_to_obs.py` (gzip as with --compress) and `create_hdf5_filter_key`."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, seen, images, acted in zip(numbers, OBSERVED, IMAGES, ACTED):
            demo = data.create_group(f"demo_{number}")
            demo.create_dataset("actions", data=acted)
            demo.create_dataset("states", data=np.zeros((len(acted), 7)))
            demo.create_dataset("rewards", data=(np.arange(len(acted)) == len(acted) - 1).astype(float))
            demo.create_dataset("dones", data=(np.arange(len(acted)) >= len(acted) - 2).astype(int))
            for name, values in {"eef": seen[:, :3], "object": seen[:, 3:], "agentview_image": images}.items():
                demo.create_dataset(f"obs/{name}", data=values[:-1], compression="gzip")
                if next_obs:
                    demo.create_dataset(f"next_obs/{name}", data=values[1:], compression="gzip")
            demo.attrs["model_file"], demo.attrs["num_samples"] = "<mujoco/>", len(acted)
        data.attrs["total"] = sum(LENGTHS)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}, **env}, indent=4)
        file["mask/train"] = np.array([f"demo_{numbers[2]}", "demo_0"], dtype="S")
        file["mask/valid"] = np.array(["demo_1"], dtype="S")
    return path


def isaac_lab(path: Path) -> Path:
    """`HDF5DatasetFileHandler.write_episode` with the recorder terms of `ActionStateRecorderManagerCfg`."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-v0", "type": 2})
        for k, (seen, acted) in enumerate(zip(OBSERVED, ACTED)):
            demo = data.create_group(f"demo_{k}")
            demo.attrs["num_samples"], demo.attrs["seed"], demo.attrs["success"] = len(acted), 1, k != 1
            for name, values in {
                "actions": acted, "processed_actions": 2 * acted, "obs/eef": seen[:-1, :3], "obs/object": seen[:-1, 3:],
                "obs/datagen_info/eef_pose/franka": np.zeros((len(acted), 4, 4)),
                "initial_state/articulation/robot/joint_position": np.zeros((1, 9)),
                "states/articulation/robot/joint_position": np.zeros((len(acted), 9)),
            }.items():  # fmt: skip
                demo.create_dataset(name, data=values, compression="gzip")
    return path


def maniskill(path: Path, state: bool = False) -> Path:
    """`RecordEpisode.flush_trajectory`."""
    episodes = []
    with h5py.File(path, "w") as file:
        for k, (seen, images, acted) in enumerate(zip(OBSERVED, IMAGES, ACTED)):
            group = file.create_group(f"traj_{k}", track_order=True)
            if state:
                group.create_dataset("obs", data=seen)
            else:
                group.create_dataset("obs/agent/eef", data=seen[:, :3])
                group.create_dataset("obs/extra/object", data=seen[:, 3:])
                group.create_dataset("obs/sensor_data/base_camera/rgb", data=images, compression="gzip")
            group.create_dataset("actions", data=acted, dtype=np.float32)
            reached = np.arange(len(acted)) >= (1 if k != 2 else 9)
            group.create_dataset("terminated", data=reached, dtype=bool)
            group.create_dataset("truncated", data=np.zeros(len(acted), bool), dtype=bool)
            group.create_dataset("success", data=reached, dtype=bool)
            group.create_dataset("env_states/actors/cube", data=np.zeros((len(acted) + 1, 13)))
            group.create_dataset("rewards", data=np.ones(len(acted)), dtype=np.float32)
            episodes.append(
                {
                    "episode_id": k, "episode_seed": k, "control_mode": "pd_joint_pos", "elapsed_steps": len(acted),
                    "reset_kwargs": {"seed": k}, "success": bool(reached[-1]),
                }
            )  # fmt: skip
    info = {"env_id": "PickCube-v1", "env_kwargs": {"obs_mode": "state"}, "max_episode_steps": 50}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "commit_info": {}, "episodes": episodes}))
    return path


def check(demos: Demonstrations, *, final: bool, terminated: Any = (), order: Any = (0, 1, 2)) -> None:
    """Every number is the one that was written."""
    assert demos.lengths.tolist() == [LENGTHS[k] for k in order]
    drawn = demos.gather(demos.rows)
    here = np.concatenate([OBSERVED[k][:-1] for k in order])
    there = np.concatenate(
        [np.concatenate((OBSERVED[k][1:-1], OBSERVED[k][-1:] if final else OBSERVED[k][-2:-1])) for k in order]
    )
    for name, values in (("obs", here), ("next_obs", there)):
        found = drawn[name, "policy"]
        joined = np.concatenate([found["eef"], found["object"]], 1) if demos.observations["policy"].ndim == 1 else found
        np.testing.assert_array_equal(joined, values)
    np.testing.assert_array_equal(drawn["executed_action"], np.concatenate([ACTED[k] for k in order]))
    last = np.cumsum([LENGTHS[k] for k in order]) - 1
    assert np.flatnonzero(drawn["terminated"]).tolist() == [last[k] for k in terminated]
    assert np.flatnonzero(drawn["truncated"]).tolist() == [x for k, x in enumerate(last) if k not in terminated]


# --------------------------------------------------------------------------------------------------- robomimic


def test_robomimic_components_images_ends_and_order(tmp_path: Path, caplog: Any) -> None:
    path = robomimic(tmp_path / "low_dim.hdf5")
    demos = load(path)  # demo_10 comes last, although its name does not
    check(demos, final=True, terminated=(0, 1, 2))
    assert demos.returns.tolist() == [1.0, 1.0, 1.0]
    assert "goes on after an end in 2 trajectories: only the end at the last step counts" in caplog.text
    assert "does not tell ends of the task from time limits (dones)" in caplog.text
    seen = load(
        path, spaces.Dict({"policy": spaces.Dict({"agentview_image": spaces.Box(0, 255, (4, 6, 3), np.uint8)})})
    )
    stored = seen.observations["policy", "agentview_image"]
    assert stored.dtype.is_floating_point is False
    np.testing.assert_array_equal(stored, np.concatenate(IMAGES))
    check(load(path, FLAT, file_observations=("eef", "object")), final=True, terminated=(0, 1, 2))
    swapped = load(path, FLAT, file_observations=("object", "eef"))
    np.testing.assert_array_equal(swapped.observations["policy"][0, :2], OBSERVED[0][0, 3:])
    with open_recording(path) as recording:
        assert (recording.kind, recording.metadata) == ("robomimic HDF5", {"made_in": "Lift"})


def test_robomimic_filter_keys(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "d.hdf5")
    check(load(path, subset="train"), final=True, terminated=(0, 1), order=(0, 2))
    check(load(path, subset="valid"), final=True, terminated=(0,), order=(1,))
    check(load(path, subset="train", num_trajectories=1), final=True, terminated=(0,), order=(0,))
    with pytest.raises(
        ValueError, match=r"d.hdf5 has no list of trajectories 'vaild' \(subset\); did you mean valid\?"
    ):
        load(path, subset="vaild")
    with pytest.raises(ValueError, match="2 trajectories in 'train', num_trajectories asks for 3"):
        load(path, subset="train", num_trajectories=3)
    with pytest.raises(
        ValueError, match=r"does not tell which trajectories succeeded \(only_success\): use min_return"
    ):
        load(path, only_success=True)
    with h5py.File(path, "a") as file:
        file["data/demo_10/obs/eef"][1] = np.nan
    with pytest.raises(ValueError, match=r"d.hdf5: trajectory 2, step 1: observations/policy/eef is .*not finite"):
        load(path, subset="train")  # it has two, the file three
    with h5py.File(path, "a") as file:
        file["mask/more"] = np.array(["demo_2"], dtype="S")
    with pytest.raises(ValueError, match="mask/more lists 'demo_2', which data does not hold"):
        load(path)


def test_robomimic_without_next_observations(tmp_path: Path, caplog: Any) -> None:
    check(load(robomimic(tmp_path / "d.hdf5", next_obs=False)), final=False, terminated=(0, 1, 2))
    assert "has no final observations (next_observations): the last one of each trajectory stands in" in caplog.text


def test_a_gym_environment_of_robomimic_is_the_one_to_train_in(tmp_path: Path) -> None:
    with open_recording(robomimic(tmp_path / "d.hdf5", env_name="Hopper-v5", type=2)) as recording:
        assert recording.metadata == {"env": "Hopper-v5"}


# -------------------------------------------------------------------------------------- Isaac Lab and ManiSkill


def test_isaac_labs_recorder(tmp_path: Path, caplog: Any) -> None:
    path = isaac_lab(tmp_path / "dataset.hdf5")
    check(load(path), final=False)
    assert "does not say how its trajectories end (no dones): all count as cut off (truncated)" in caplog.text
    assert "has no final observations" in caplog.text
    check(load(path, only_success=True), final=False, order=(0, 2))
    assert bool(load(path).returns.isnan().all())
    with open_recording(path) as recording:
        assert recording.metadata == {"env": "isaaclab:Isaac-Stack-Cube-Franka-IK-Rel-v0"}
        assert (recording.kind, recording.success.tolist()) == ("Isaac Lab HDF5", [True, False, True])


def test_maniskill(tmp_path: Path, caplog: Any) -> None:
    path = maniskill(tmp_path / "trajectory.h5")
    nested = spaces.Dict({"policy": spaces.Dict({"agent_eef": box(3), "extra_object": box(2)})})
    groups = {"policy": "agent.eef+extra.object"}
    demos = load(path, nested, groups=groups, only_success=True)
    assert demos.lengths.tolist() == [3]  # the second one succeeds too late, the third never
    np.testing.assert_array_equal(demos.observations["policy", "extra_object"], OBSERVED[0][:, 3:])
    assert "goes on after an end in 1 trajectories" in caplog.text
    check(load(path, FLAT, file_observations=("agent/eef", "extra/object")), final=True, terminated=(0,))
    state = maniskill(tmp_path / "trajectory.state.h5", state=True)
    check(load(state, FLAT), final=True, terminated=(0,))
    camera = spaces.Dict({"policy": spaces.Box(0, 255, (4, 6, 3), np.uint8)})
    demos = load(path, camera, groups={"policy": "sensor_data.base_camera.rgb"})
    np.testing.assert_array_equal(demos.observations["policy"], np.concatenate(IMAGES))
    with open_recording(path) as recording:
        assert recording.metadata == {"env": "maniskill:PickCube-v1", "control_mode": "pd_joint_pos"}


def test_maniskills_json_belongs_to_its_h5(tmp_path: Path, caplog: Any) -> None:
    path = maniskill(tmp_path / "trajectory.state.h5", state=True)
    told = path.with_suffix(".json")
    plain = json.loads(told.read_text())
    plain["episodes"][2]["elapsed_steps"] = 9
    told.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"3 trajectories, the .h5 holds 3, and traj_2 has another length"):
        load(path, FLAT)
    plain["episodes"][2] |= {"elapsed_steps": 4, "control_mode": "pd_ee_delta_pose"}
    told.write_text(json.dumps(plain))
    with pytest.raises(
        ValueError, match=r"several control modes \(pd_ee_delta_pose, pd_joint_pos\): replay them in one"
    ):
        load(path, FLAT)
    told.write_text("{")
    with pytest.raises(ValueError, match=r"trajectory.state.json is damaged"):
        load(path, FLAT)
    told.unlink()
    check(load(path, FLAT), final=True, terminated=(0,))
    assert "has no trajectory.state.json beside it: its environment is unknown" in caplog.text


# ----------------------------------------------------------------------------------------------------- bad input


def without_observations(file: Any) -> None:
    for group in file["data"].values():
        del group["obs"], group["next_obs"]


def mixed(file: Any) -> None:
    del file["data/demo_1/obs/eef"]
    file["data/demo_1/obs/eef"] = np.zeros((7, 3))


def short(file: Any) -> None:
    del file["data/demo_1/next_obs/eef"]
    file["data/demo_1/next_obs/eef"] = np.zeros((7, 3))


def empty(file: Any) -> None:
    file["data/demo_1"].attrs["num_samples"] = 0
    for name in ("actions", "rewards", "dones"):
        del file[f"data/demo_1/{name}"]
        file[f"data/demo_1/{name}"] = np.zeros((0, 2))


def shorter(file: Any) -> None:
    kept = file["data/demo_10/actions"][:-1]
    del file["data/demo_10/actions"]
    file["data/demo_10/actions"] = kept


def lacking(file: Any) -> None:
    del file["data/demo_10/rewards"]


def elsewhere(file: Any) -> None:
    del file["data/demo_10"]
    file["data/demo_10"] = h5py.ExternalLink("other.hdf5", "data/demo_10")


def all_elsewhere(file: Any) -> None:
    del file["data"]
    file["data"] = h5py.ExternalLink("other.hdf5", "data")


def array(file: Any) -> None:
    del file["data/demo_1"]
    file["data/demo_1"] = np.zeros(3)


def nobody(file: Any) -> None:
    del file["data"]
    file.create_group("data")


def bomb(file: Any) -> None:
    del file["data/demo_1/obs/eef"]
    file.create_dataset("data/demo_1/obs/eef", (1, 2**30), "f8", chunks=(1, 1024), compression="gzip")


def named(file: Any) -> None:
    file["data"].attrs["env_args"] = "{" * 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_observations, "holds states and actions but no observations .*dataset_states_to_obs --dataset"),
        (mixed, "trajectory 1 has 1 actions and 7 obs/eef"),
        (short, r"trajectory 1: next_obs/eef has shape \(7, 3\), expected \(1, 3\)"),
        (empty, "trajectory 1 has no steps: drop it from the file"),
        (shorter, "trajectory 2 has 3 actions, its num_samples says 4"),
        (lacking, "trajectory 2 has no rewards"),
        (elsewhere, "data/demo_10 lies in another file, which is not followed"),
        (all_elsewhere, "data lies in another file, which is not followed"),
        (array, "demo_1 is not a group of arrays"),
        (nobody, "holds no demonstrations: its group data has no demo_0"),
        (bomb, "claims 8.0 GiB"),
        (named, "env_args is damaged"),
    ],
)
def test_robomimic_files_that_are_not_what_they_should_be(tmp_path: Path, change: Any, message: str) -> None:
    path = robomimic(tmp_path / "d.hdf5")
    robomimic(tmp_path / "other.hdf5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_names_that_the_file_does_not_have_and_other_sizes(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.ERROR)
    path = robomimic(tmp_path / "d.hdf5")
    with pytest.raises(ValueError, match=r"has no observation 'objct'; did you mean object\?"):
        load(path, FLAT, file_observations=("eef", "objct"))
    with pytest.raises(ValueError, match=r"'agentview_image' has shape \(4, 6, 3\): only vectors can be joined"):
        load(path, FLAT, file_observations=("eef", "agentview_image"))
    with pytest.raises(ValueError, match=r"'policy' has shape \(3,\), the environment's has \(5,\)"):
        load(path, FLAT, file_observations=("eef",))
    with pytest.raises(ValueError, match=r"trajectory 0: actions has shape \(3, 2\), expected \(3, 3\)"):
        load(path, action_space=spaces.Box(-1.0, 1.0, (3,), np.float32))
    raw = maniskill(tmp_path / "raw.h5", state=True)
    with h5py.File(raw, "a") as file:
        for group in file.values():
            del group["obs"]
    with pytest.raises(ValueError, match=r"but no observations .*replay_trajectory --traj-path"):
        load(raw, FLAT)
