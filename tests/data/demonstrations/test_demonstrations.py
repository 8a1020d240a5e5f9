"""Demonstrations: every format gives the same numbers back, draws are right, bad data are named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.write import Episode, write_minari, write_npz
from understudy.envs.actions import ActionMap

SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
ACTIONS = spaces.Box(-2.0, 2.0, (1,), np.float32)
LENGTHS = (3, 1, 4)


def episode(k: int, length: int, *, ends: str = "terminated") -> Episode:
    """Observation t of trajectory k is (k, t); its action is t / 2 - k / 4, its reward k + t."""
    t = np.arange(length + 1)
    observations = np.stack((np.full(length + 1, k), t), axis=-1).astype(np.float32)
    return Episode(
        observations={("policy",): observations},
        actions=(t[:-1, None] / 2.0 - k / 4.0).astype(np.float32),
        rewards=(k + t[:-1]).astype(np.float32),
        terminated=ends == "terminated",
        truncated=ends == "truncated",
    )


def episodes() -> list[Episode]:
    return [episode(k, length, ends="truncated" if k == 2 else "terminated") for k, length in enumerate(LENGTHS)]


def load(source: Any, **options: Any) -> Demonstrations:
    return Demonstrations.load(source, **{"observation_space": SPACE, "action_space": ACTIONS, **options})


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    write_npz(tmp_path / "expert.npz", episodes(), {"env": "Line-v0"})
    return tmp_path / "expert.npz"


def d4rl(path: Path, *, final: bool, timeouts: bool = True) -> Path:
    with h5py.File(path, "w") as file:
        recorded = episodes()
        file["observations"] = np.concatenate([e.observations["policy",][:-1] for e in recorded]).astype(np.float64)
        file["actions"] = np.concatenate([e.actions for e in recorded])
        file["rewards"] = np.concatenate([e.rewards for e in recorded])
        file["terminals"] = np.concatenate([e.flags()[0] for e in recorded])
        if timeouts:
            file["timeouts"] = np.concatenate([e.flags()[1] for e in recorded])
        if final:
            file["next_observations"] = np.concatenate([e.observations["policy",][1:] for e in recorded])
    return path


def check_numbers(demos: Demonstrations) -> None:
    assert demos.num_trajectories == 3
    assert demos.num_transitions == 8
    assert demos.returns.tolist() == [0.0 + 1.0 + 2.0, 1.0, 2.0 + 3.0 + 4.0 + 5.0]
    every = demos.gather(demos.rows)
    assert every["obs", "policy"].dtype == torch.float32
    assert every["obs", "policy"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3]]
    assert every["next_obs", "policy"].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [2, 1], [2, 2], [2, 3], [2, 4]]
    assert every["executed_action"].tolist() == [[0], [0.5], [1], [-0.25], [-0.5], [0], [0.5], [1]]
    assert every["terminated"].tolist() == [False, False, True, True, False, False, False, False]
    assert every["truncated"].tolist() == [False] * 7 + [True]
    assert every["is_first"].tolist() == [True, False, False, True, True, False, False, False]


def test_an_npz_comes_back_as_it_was_written(npz: Path) -> None:
    demos = load(npz)
    check_numbers(demos)
    assert demos.metadata["env"] == "Line-v0"
    assert demos.summary() == "3 trajectories, 8 transitions, return 6.0 ± 5.7"


def test_a_minari_dataset_comes_back_and_minari_reads_it(minari: Path) -> None:
    write_minari("line/expert-v0", episodes(), {"env": "Line-v0", "score": 6.0, "seed": 3}, SPACE, ACTIONS)
    check_numbers(load("line/expert-v0"))
    check_numbers(load(minari / "line" / "expert-v0"))
    check_numbers(load(minari / "line" / "expert-v0" / "data" / "main_data.hdf5"))
    from minari import load_dataset

    dataset = load_dataset("line/expert-v0")
    assert dataset.total_episodes == 3
    assert dataset.total_steps == 8
    assert dataset.storage.metadata["score"] == 6.0
    assert dataset[2].observations[-1].tolist() == [2, 4]  # type: ignore[index]


def test_d4rl_files_are_cut_at_their_ends(tmp_path: Path) -> None:
    check_numbers(load(d4rl(tmp_path / "with.hdf5", final=True)))


def test_a_missing_final_observation_is_the_last_one_and_said_so(tmp_path: Path, caplog: Any) -> None:
    path = d4rl(tmp_path / "without.hdf5", final=False, timeouts=False)
    demos = load(path)
    assert "no final observations" in caplog.text
    assert "1 of 3 trajectories have a single step (the first: trajectory 1)" in caplog.text
    assert demos.gather(demos.rows)["next_obs", "policy"][2].tolist() == [0, 2]
    # no timeouts: the file stops within its last trajectory
    assert demos.signals["truncated"].tolist() == [False] * 7 + [True]


def test_large_data_are_mapped_and_equal(npz: Path) -> None:
    demos = load(npz, memory_map_above=0)
    check_numbers(demos)
    assert sorted(path.name for path in npz.parent.iterdir()) == ["expert.npz"]  # the file has no name


def test_subsampling_by_trajectory_and_step(npz: Path) -> None:
    demos = load(npz, step_stride=2)
    assert demos.gather(demos.rows)["obs", "policy"].tolist() == [[0, 0], [0, 2], [1, 0], [2, 0], [2, 2]]
    demos = load(npz, num_trajectories=1)
    assert demos.gather(demos.rows)["obs", "policy"].tolist() == [[0, 0], [0, 1], [0, 2]]
    one, rest = load(npz).select(torch.tensor([2])), load(npz).select(torch.tensor([0, 1]))
    assert one.returns.tolist() == [14.0]
    assert rest.num_transitions == 4


def test_only_trajectories_that_returned_enough(npz: Path, tmp_path: Path) -> None:
    demos = load(npz, min_return=3.0)  # returns 3, 1 and 14
    assert demos.returns.tolist() == [3.0, 14.0]
    assert demos.gather(demos.rows)["obs", "policy"].tolist() == [[0, 0], [0, 1], [0, 2], *([2, i] for i in range(4))]
    assert load(npz, min_return=2.0, num_trajectories=2).returns.tolist() == [3.0]  # among the first two
    with pytest.raises(ValueError, match=r"no trajectory returned 20 \(min_return\): the best one 14"):
        load(npz, min_return=20.0)
    silent = d4rl(tmp_path / "silent.hdf5", final=True)
    with h5py.File(silent, "a") as file:
        del file["rewards"]
    with pytest.raises(ValueError, match="its rewards are unknown"):
        load(silent, min_return=0.0)


def test_draws_are_uniform_over_transitions(npz: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = load(npz).sample(4000, generator)["obs", "policy"][:, 0]
    assert torch.bincount(drawn.long()).tolist() == pytest.approx([1500, 500, 2000], abs=100)


def test_shuffled_takes_every_transition_once(npz: Path) -> None:
    demos = load(npz)
    rows = list(demos.shuffled(3, torch.Generator().manual_seed(0)))
    assert [len(x) for x in rows] == [3, 3, 2]
    assert torch.cat(rows).sort().values.tolist() == list(range(8))


def test_windows_run_on_into_the_next_trajectory(npz: Path) -> None:
    drawn = load(npz).sequences(5, 16, torch.Generator().manual_seed(0))
    assert drawn.batch_size == (5, 16)
    seen = drawn["obs", "policy"].tolist()
    order = [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3]]
    for b in range(16):
        start = order.index(seen[0][b])
        assert [seen[t][b] for t in range(5)] == [order[(start + t) % 8] for t in range(5)]
        assert drawn["is_first"][:, b].tolist() == [t == 0 or seen[t][b][1] == 0 for t in range(5)]
    with pytest.raises(ValueError, match="step_stride at 1"):
        load(npz, step_stride=2).sequences(5, 1, torch.Generator())


def test_raw_actions_are_those_that_the_policy_would_take(npz: Path) -> None:
    demos = load(npz, action_map=ActionMap(ACTIONS))
    drawn = demos.gather(demos.rows)
    assert drawn["action"].tolist() == [[0], [0.25], [0.5], [-0.125], [-0.25], [0], [0.25], [0.5]]  # [-2, 2] -> [-1, 1]


def test_split_holds_whole_trajectories_out(npz: Path) -> None:
    kept, held = load(npz).split(0.3, torch.Generator().manual_seed(0))
    assert (kept.num_trajectories, held.num_trajectories) == (2, 1)
    assert sorted(kept.chosen.tolist() + held.chosen.tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="it takes two"):
        held.split(0.5, torch.Generator())


def test_dict_and_image_and_discrete_data(tmp_path: Path, minari: Path) -> None:
    space = spaces.Dict(
        {
            "policy": spaces.Dict({"image": spaces.Box(0, 255, (32, 32, 3), np.uint8), "door": spaces.Discrete(4)}),
            "critic": spaces.Box(-1, 1, (1,), np.float32),
        }
    )
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    observations = {
        ("policy", "image"): image,
        ("policy", "door"): np.array([0, 1, 3]),
        ("critic",): np.zeros((3, 1), np.float32),
    }
    one = Episode(
        observations=observations, actions=np.array([1, 0]), rewards=np.ones(2), terminated=True, truncated=False
    )
    write_npz(tmp_path / "one.npz", [one], {})
    write_minari("rooms-v1", [one], {}, space, spaces.Discrete(2))
    for source in (tmp_path / "one.npz", "rooms-v1"):
        demos = Demonstrations.load(source, observation_space=space, action_space=spaces.Discrete(2))
        drawn = demos.gather(demos.rows)
        assert torch.equal(drawn["next_obs", "policy", "image"], torch.from_numpy(image[1:]))
        assert drawn["obs", "policy", "door"].tolist() == [0, 1]
        assert drawn["obs", "policy", "door"].dtype == torch.int64
        assert drawn["executed_action"].tolist() == [1, 0]
        demos = Demonstrations.load(
            source, observation_space=space, action_space=spaces.Discrete(2), keys=[("policy", "door")]
        )
        assert list(demos.observations["policy"].keys()) == ["door"]


@pytest.mark.parametrize("ragged", [False, True])
def test_minaris_jpegs_are_decoded(minari: Path, ragged: bool) -> None:
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    image = np.full((3, 32, 32, 3), 100, np.uint8)
    if ragged:  # files of different lengths
        image[2] = np.arange(32)[:, None]
    buffer: Any = EpisodeBuffer(
        id=0, observations=image, actions=[0, 1], rewards=[0.0, 1.0], terminations=[0, 1], truncations=[0, 0]
    )
    space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    with pytest.warns(UserWarning, match="author"):
        create_dataset_from_buffers(
            "jpeg-v0", [buffer], observation_space=space, action_space=spaces.Discrete(2), data_format="hdf5"
        )
    demos = Demonstrations.load(
        "jpeg-v0", observation_space=spaces.Dict({"policy": space}), action_space=spaces.Discrete(2)
    )
    assert np.abs(demos.observations["policy"].numpy().astype(int) - image).max() <= 2


# --------------------------------------------------------------------------------------------------- bad input


def edited(path: Path, **changes: Any) -> Path:
    with np.load(path) as old:
        arrays = {name: old[name] for name in old.files}
    del arrays["checksums"]
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def put(place: Any, value: Any) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations/policy": put((6, 1), np.nan)}, r"trajectory 2, step 0: observations/policy is .*not finite"),
        ({"rewards": put(5, np.inf)}, r"trajectory 2, step 1: rewards is inf, which is not finite"),
        ({"actions": put(3, 2.5)}, r"trajectory 1, step 0: actions is \[2.5\], which lies outside Box"),
        ({"terminations": put(0, True)}, r"trajectory 0 continues after step 0"),
        ({"lengths": put(0, 2)}, r"lengths add up to 7, but there are 8 actions"),
        ({"lengths": lambda x: np.array([0, 4, 4])}, r"trajectory 0 has no steps"),
        ({"observations/policy": lambda x: x[:-1]}, r"expected 11 \(with final observations\) or 8"),
        ({"observations/policy": lambda x: x[:, :1]}, r"'policy' has shape \(1,\), the environment's has \(2,\)"),
        ({"actions": lambda x: np.concatenate((x, x), 1)}, r"trajectory 0: actions has shape \(3, 2\), expected"),
        ({"rewards": lambda x: x.astype(object)}, r"rewards holds pickled Python objects, which are never loaded"),
    ],
)
def test_bad_data_are_refused_by_name(npz: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(edited(npz, **changes))


def test_empty_missing_and_damaged_sources(tmp_path: Path, minari: Path) -> None:
    with pytest.raises(ValueError, match="no demonstrations were named"):
        load("")
    with pytest.raises(ValueError, match="run `minari download mujoco/hopper/expert-v0` first"):
        load("mujoco/hopper/expert-v0")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty.npz is damaged or of another format .*File is not a zip file"):
        load(tmp_path / "empty.npz")
    whole = d4rl(tmp_path / "whole.hdf5", final=True).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.hdf5 is damaged or of another format .*truncated file"):
        load(tmp_path / "cut.hdf5")
    with h5py.File(tmp_path / "nothing.hdf5", "w"):
        pass
    with pytest.raises(ValueError, match="holds no trajectories"):
        load(tmp_path / "nothing.hdf5")
    (tmp_path / "arrow").mkdir()
    (tmp_path / "arrow" / "meta").mkdir()
    with pytest.raises(
        ValueError, match=r"arrow is not in a format that is read: it holds meta. Near: LeRobot v2, v3 would"
    ):
        load(tmp_path / "arrow")


def test_a_damaged_member_of_an_npz_is_named(npz: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(npz) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    npz.write_bytes(packed.getvalue())
    check_numbers(load(npz))  # a compressed one is as good
    with zipfile.ZipFile(npz) as archive:
        place = archive.getinfo("rewards.npy").header_offset + 45
    broken = bytearray(packed.getvalue())
    broken[place : place + 40] = bytes(40)
    npz.write_bytes(bytes(broken))
    with pytest.raises(ValueError, match=r"expert.npz: rewards is damaged"):
        load(npz)


def test_another_environment_is_a_warning(npz: Path, caplog: Any) -> None:
    load(npz, env_id="Line-v1")
    assert "made in 'Line-v0', not in 'Line-v1'" in caplog.text
    with pytest.raises(ValueError, match=r"has no observation 'critic': it has policy"):
        load(npz, observation_space=spaces.Dict({**SPACE.spaces, "critic": spaces.Discrete(2)}))
    with pytest.raises(ValueError, match="has 3 trajectories, num_trajectories asks for 4"):
        load(npz, num_trajectories=4)
