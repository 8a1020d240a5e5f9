"""Files of other programs: where trajectories end, what names and groups mean, and what a file may not ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.write import Episode, check_minari_id, write_minari, write_npz

SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
ACTIONS = spaces.Box(-2.0, 2.0, (1,), np.float32)
LENGTHS = (3, 1, 4)
STEPS = sum(LENGTHS)
OBSERVED = [np.stack((np.full(n + 1, k), np.arange(n + 1)), axis=-1).astype(np.float32) for k, n in enumerate(LENGTHS)]
LAST = np.cumsum(LENGTHS) - 1


def load(source: Any, **options: Any) -> Demonstrations:
    return Demonstrations.load(source, **{"observation_space": SPACE, "action_space": ACTIONS, **options})


def save(path: Path, **arrays: Any) -> Path:
    """An .npz, or an HDF5 file, of these arrays; those that are None are left out."""
    given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    if path.suffix == ".npz":
        np.savez(path, **given)  # type: ignore[arg-type]
    else:
        with h5py.File(path, "w") as file:
            for name, array in given.items():
                file[name] = array
    return path


def steps(**changes: Any) -> dict[str, Any]:
    """Arrays of three trajectories, without anything that marks their ends."""
    return {
        "observations": np.concatenate([x[:-1] for x in OBSERVED]),
        "actions": np.arange(STEPS, dtype=np.float32)[:, None] / 4,
        "rewards": np.ones(STEPS),
        **changes,
    }


def at(rows: Any, shape: Any = (STEPS,), dtype: Any = bool) -> np.ndarray:
    flags = np.zeros(STEPS, dtype)
    flags[rows] = 1
    return flags.reshape(shape)


FOLLOWING = np.concatenate([x[1:] for x in OBSERVED])


def check(demos: Demonstrations, *, final: bool, terminated: Any = ()) -> None:
    assert demos.lengths.tolist() == list(LENGTHS)
    drawn = demos.gather(demos.rows)
    expected = FOLLOWING.copy()
    if not final:
        expected[LAST] = np.concatenate([x[:-1] for x in OBSERVED])[LAST]
    assert drawn["next_obs", "policy"].tolist() == expected.tolist()
    assert drawn["executed_action"].flatten().tolist() == [i / 4 for i in range(STEPS)]
    assert drawn["terminated"].tolist() == at(list(terminated)).tolist()
    assert drawn["truncated"].tolist() == at([i for i in LAST if i not in terminated]).tolist()


# ------------------------------------------------------------------------------------------- where it ends


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_next_observations_that_do_not_follow_end_a_trajectory(tmp_path: Path, caplog: Any, suffix: str) -> None:
    path = save(tmp_path / f"d{suffix}", **steps(next_observations=FOLLOWING, terminals=at([])))
    check(load(path), final=True)
    assert "no end in 2 places (the first: step 2) where next_observations differ" in caplog.text


def test_rounding_is_no_jump_and_shuffled_rows_are_single_steps(tmp_path: Path, caplog: Any) -> None:
    rounded = FOLLOWING * (1 + 1e-6)
    arrays = steps(next_observations=rounded.astype(np.float64), terminals=at(LAST))
    load(save(tmp_path / "rounded.npz", **arrays))
    assert "differ" not in caplog.text
    order = np.array([3, 0, 6, 1, 5, 2, 7, 4])
    shuffled = {name: array[order] for name, array in steps(next_observations=FOLLOWING, terminals=at([])).items()}
    demos = load(save(tmp_path / "shuffled.npz", **shuffled))
    drawn = demos.gather(demos.rows)
    assert demos.num_trajectories == 8
    assert drawn["next_obs", "policy"].tolist() == FOLLOWING[order].tolist()


def test_next_observations_alone_tell_where_trajectories_end(tmp_path: Path) -> None:
    check(load(save(tmp_path / "d.npz", **steps(next_obs=FOLLOWING))), final=True)


@pytest.mark.parametrize(
    ("marks", "terminated"),
    [
        ({"terminals": at([2, 3]), "timeouts": at([7])}, (2, 3)),
        ({"terminals": at([2, 3], (STEPS, 1)), "timeouts": at([7], (STEPS, 1), np.float32)}, (2, 3)),
        ({"terminated": at([2], dtype=np.uint8), "truncated": at([3, 7])}, (2,)),
        ({"timeouts": at(LAST)}, ()),
        ({"dones": at(LAST)}, LAST),
        ({"dones": at(LAST, (STEPS, 1)), "timeouts": at([3])}, (2, 7)),
        ({"episode_starts": at([0, 3, 4])}, ()),
        ({"lengths": np.array(LENGTHS, np.int32)}, ()),
    ],
    ids=str,
)
def test_ends_by_the_names_that_are_in_use(tmp_path: Path, marks: Any, terminated: Any) -> None:
    check(load(save(tmp_path / "d.npz", **steps(**marks))), final=False, terminated=terminated)
    check(
        load(save(tmp_path / "d.hdf5", **steps(**marks, next_observations=FOLLOWING))),
        final=True,
        terminated=terminated,
    )


def test_the_trajectories_of_imitation(tmp_path: Path) -> None:
    arrays = {
        "obs": np.concatenate(OBSERVED),
        "acts": np.arange(STEPS)[:, None] / 4,
        "rews": np.ones(STEPS),
        "infos": np.array([{}] * STEPS),  # pickled, and not looked at
        "terminal": [True, False, True],
        "indices": [3, 4],
    }
    check(load(save(tmp_path / "d.npz", **arrays)), final=True, terminated=(2, 7))


def test_what_does_not_tell_ends_apart_is_said(tmp_path: Path, caplog: Any) -> None:
    load(save(tmp_path / "dones.npz", **steps(dones=at(LAST))))
    assert "does not tell ends of the task from time limits (dones): all count as ends of the task" in caplog.text
    load(save(tmp_path / "starts.npz", **steps(episode_starts=at([0, 3, 4]))))
    assert "(episode_starts): all count as time limits" in caplog.text
    load(save(tmp_path / "none.npz", **steps(terminals=at([]))))
    assert "marks no end: its 8 steps count as one trajectory" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither lengths nor terminations: add one of lengths, indices, terminations, terminals"),
        ({"actions": None, "lengths": LENGTHS}, "has no actions: .*Accepted names: .*actions or acts"),
        ({"lengths": [3.0, 1.0, 4.0]}, "lengths must be a list of whole numbers from 0 to 8"),
        ({"lengths": [9, -1]}, "lengths must be a list of whole numbers"),
        ({"indices": [4, 3]}, "indices do not rise"),
        ({"terminals": np.full(STEPS, 0.5)}, "terminations holds other numbers than 0 and 1"),
        ({"terminals": np.full(STEPS, np.nan)}, "terminations holds other numbers"),
        ({"terminals": np.zeros((STEPS, 2))}, r"terminations is of type float64 and shape \(8, 2\), expected 8 flags"),
        ({"terminals": np.array(["no"] * STEPS)}, "terminations is of type <U2"),
        ({"terminals": at(LAST), "timeouts": np.full(STEPS, 7)}, "truncations holds other numbers"),
        ({"terminals": at(LAST), "rewards": np.array(["1"] * STEPS)}, "trajectory 0: rewards is of type <U1"),
        ({"terminals": at(LAST), "rewards": np.ones((STEPS, 2))}, r"trajectory 0: rewards has shape \(3, 2\)"),
        ({"terminals": at(LAST), "rewards": np.full(STEPS, 1e300)}, "rewards is inf, which is not finite: drop"),
        ({"terminals": at(LAST), "actions": np.full((STEPS, 1), 1j)}, "actions holds values of type complex128"),
        ({"terminals": at(LAST), "rewards": 1.0}, "8 actions but -1 rewards"),
        ({"terminals": at(LAST), "next_observations": FOLLOWING[:-1]}, r"next_observations has shape \(7, 2\)"),
        ({"lengths": LENGTHS, "metadata": "[1]"}, "the metadata.*expected a dictionary"),
        ({"lengths": LENGTHS, "metadata": '{"env": 1}'}, "whose env is text"),
        ({"lengths": LENGTHS, "metadata": "{" * 10_000}, "the metadata is damaged"),
        ({"lengths": LENGTHS, "metadata": '{"format_version": 2}'}, "format 2, this version reads up to 1"),
        ({"lengths": LENGTHS, "metadata": '{"format_version": 1}'}, "has no terminations: it holds"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_by_name(tmp_path: Path, changes: Any, message: str) -> None:
    path = save(tmp_path / "d.npz", **steps(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_integers_do_not_wrap_around(tmp_path: Path) -> None:
    image = spaces.Dict({"policy": spaces.Box(0, 255, (2,), np.uint8)})
    for value in (256, -1):
        path = save(tmp_path / "d.npz", **steps(observations=np.full((STEPS, 2), value), terminals=at(LAST)))
        with pytest.raises(ValueError, match="trajectory 0: observations/policy holds numbers that uint8 does not"):
            load(path, observation_space=image)


# -------------------------------------------------------------------------------------- groups and segments


def raw_and_grouped(tmp_path: Path) -> tuple[Path, np.ndarray]:
    state = np.arange(STEPS * 3, dtype=np.float32).reshape(STEPS, 3)
    arrays = steps(terminals=at(LAST))
    del arrays["observations"]
    arrays |= {"observations/state": state, "observations/robot/joints": -state[:, :2]}
    return save(tmp_path / "d.hdf5", **arrays), state


def box(*size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, size, np.float32)


@pytest.mark.parametrize(
    ("groups", "space"),
    [
        ({"policy": "state"}, spaces.Dict({"policy": box(3)})),
        ({"policy": "state", "critic": "robot.joints"}, spaces.Dict({"policy": box(3), "critic": box(2)})),
        (
            {"policy": "state+robot.joints"},
            spaces.Dict({"policy": spaces.Dict({"state": box(3), "robot_joints": box(2)})}),
        ),
        ({"policy": "robot"}, spaces.Dict({"policy": spaces.Dict({"joints": box(2)})})),
    ],
    ids=str,
)
def test_keys_of_a_dict_become_the_groups_of_the_environment(tmp_path: Path, groups: Any, space: Any) -> None:
    path, state = raw_and_grouped(tmp_path)
    demos = load(path, observation_space=space, groups=groups)
    found = demos.gather(demos.rows)["obs"].flatten_keys("/")
    expected = {3: state, 2: -state[:, :2]}
    for name in set(found.keys()):
        assert found[name].tolist() == expected[found[name].shape[-1]].tolist()
    with pytest.raises(ValueError, match=r"name its keys in env\.groups, or join its vectors \(file_observations\)"):
        load(path, observation_space=space)


def test_a_flat_file_is_cut_into_the_segments_of_the_environment(tmp_path: Path) -> None:
    flat = np.arange(STEPS * 5, dtype=np.float32).reshape(STEPS, 5)
    path = save(tmp_path / "d.npz", **steps(observations=flat, terminals=at(LAST)))
    space = spaces.Dict({"policy": spaces.Dict({"position": box(2), "speed": box(3)}), "teacher": box(5)})
    segments = {"policy": {"position": 2, "speed": 3}}
    groups = {"policy": "policy", "teacher": "policy"}
    demos = load(path, observation_space=space, groups=groups, segments=segments)
    drawn = demos.gather(demos.rows)["obs"]
    assert drawn["policy", "position"].tolist() == flat[:, :2].tolist()
    assert drawn["policy", "speed"].tolist() == flat[:, 2:].tolist()
    assert drawn["teacher"].tolist() == flat.tolist()
    other = save(tmp_path / "o.npz", **steps(observations=flat[:, :4], terminals=at(LAST)))
    with pytest.raises(ValueError, match=r"'policy/position' has shape \(4,\), the environment's has \(5,\)"):
        load(other, observation_space=space, groups=groups, segments=segments)


# ----------------------------------------------------------------------------------------------------- HDF5


def test_keys_that_begin_as_minaris_groups_do(tmp_path: Path) -> None:
    arrays = steps(next_observations=FOLLOWING, terminals=at(LAST), episode_terminals=at(LAST))
    check(load(save(tmp_path / "d.hdf5", **arrays, episode_returns=np.ones(3))), final=True, terminated=LAST)


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    episodes = [
        Episode(
            observations={("policy",): observed},
            actions=np.zeros((len(observed) - 1, 1), np.float32),
            rewards=np.ones(len(observed) - 1),
            terminated=True,
            truncated=False,
        )
        for observed in OBSERVED
    ]
    return write_minari("line/expert-v0", episodes, {"env": "Line-v0"}, SPACE, ACTIONS) / "data" / "main_data.hdf5"


def edit(path: Path, change: Any) -> None:
    with h5py.File(path, "a") as file:
        change(file)


def rename(file: Any) -> None:
    file.move("episode_2", "episode_3")


def drop(file: Any) -> None:
    del file["episode_2"]


def lose(file: Any) -> None:
    del file["episode_1/actions"]


def claim(file: Any) -> None:
    del file["episode_1/rewards"]
    file.create_dataset("episode_1/rewards", (2**40,), "f8", chunks=(1024,))


def large_chunk(file: Any) -> None:
    del file["episode_1/rewards"]
    file.create_dataset("episode_1/rewards", (1,), "f8", chunks=(2**28,), maxshape=(None,), compression="gzip")


def elsewhere(file: Any) -> None:
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.ExternalLink("../../../other.hdf5", "rewards")


def raw_elsewhere(file: Any) -> None:
    del file["episode_1/rewards"]
    file.create_dataset("episode_1/rewards", (1,), "f8", external=[("/etc/hostname", 0, 8)])


def virtual(file: Any) -> None:
    del file["episode_1/rewards"]
    layout = h5py.VirtualLayout((1,), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (8,))[:1]
    file.create_virtual_dataset("episode_1/rewards", layout)


def words(file: Any) -> None:
    del file["episode_1/actions"]
    file["episode_1/actions"] = ["left"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "should hold 3 episodes, numbered from 0 on; it has 3, numbered up to 3"),
        (drop, "should hold 3 episodes, numbered from 0 on; it has 2"),
        (lose, "trajectory 1 has no actions"),
        (claim, "claims 8192.0 GiB"),
        (large_chunk, "claims 2.0 GiB"),
        (elsewhere, "episode_1/rewards lies in another file"),
        (raw_elsewhere, "lies in another file"),
        (virtual, "lies in another file"),
        (words, "episode 1, actions is of type object: store numbers"),
    ],
)
def test_hdf5_files_that_are_not_what_they_should_be(minari: Path, change: Any, message: str) -> None:
    save(minari.parents[3] / "other.hdf5", rewards=np.ones(8))
    edit(minari, change)
    with pytest.raises(ValueError, match=message) as caught:
        load("line/expert-v0")
    assert str(minari) in str(caught.value)


def test_every_bit_of_a_minari_dataset_of_ours_is_under_a_checksum(minari: Path) -> None:
    sound, raw = load("line/expert-v0").gather(load("line/expert-v0").rows), minari.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        minari.write_bytes(bytes(damaged))
        try:
            demos = load("line/expert-v0")
            assert (demos.gather(demos.rows) == sound).all()
        except ValueError:
            refused += 1
    assert refused > 10


# -------------------------------------------------------------------------------------------- small bombs


def test_a_small_npz_cannot_ask_for_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_MAX_UNPACKED_GIB", "0.01")
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **steps(observations=np.zeros((1 << 22, 2), np.float32), terminals=at(LAST)))
    with pytest.raises(ValueError, match=r"bomb.npz claims 0.0 GiB .* set the environment variable"):
        load(path)


def test_an_array_of_another_size_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **steps(terminals=at(LAST)))
    raw = path.read_bytes().replace(b"'shape': (8, 1), ", b"'shape': (9, 1), ")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"d.npz: actions is damaged"):
        load(path)


def test_an_array_of_ours_in_anothers_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    one = Episode(
        observations={("policy",): OBSERVED[0]}, actions=np.zeros((3, 1), np.float32), rewards=np.ones(3),
        terminated=True, truncated=False,
    )  # fmt: skip
    write_npz(path, [one], {})
    with np.load(path) as old:
        arrays = {name: old[name] for name in old.files}
    arrays["terminations"], arrays["truncations"] = arrays["truncations"], arrays["terminations"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="does not hold the arrays that it was written with"):
        load(path)


# ---------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["a/b-v0", "b", "b-v", "../b-v0", "b c-v0", "line/expert-v0/more-v0"])
def test_ids_that_minari_refuses_are_refused_before_anything_is_played(minari: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a Minari id|cannot hold another one"):
        check_minari_id(name)


def test_a_minari_recording_that_stops_leaves_nothing(minari: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Episode(
        observations={("policy",): OBSERVED[0]}, actions=np.zeros((3, 1), np.float32), rewards=np.ones(3),
        terminated=True, truncated=False,
    )  # fmt: skip

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_minari("line/more-v0", [one], {}, SPACE, ACTIONS)
    namespace = minari.parents[2]
    assert {entry.name for entry in namespace.iterdir()} == {"expert-v0", "namespace_metadata.json"}
    write_minari("line/more-v0", [one], {}, SPACE, ACTIONS)
    assert load("line/more-v0").num_transitions == 3
    assert json.loads((namespace / "more-v0" / "data" / "metadata.json").read_text())["total_steps"] == 3
