"""Replay buffers of Tianshou as demonstrations: rings that are partly filled or went round, frames, raw actions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from benchmarks.faults.datafiles import replay_buffer
from gymnasium import spaces

from understudy.data.demonstrations.demonstrations import Demonstrations

LENGTHS = (3, 5, 4, 2)
STEP = np.concatenate([np.arange(n) for n in LENGTHS])
EPISODE = np.repeat(np.arange(4), LENGTHS)
SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
ACTIONS = spaces.Box(-2.0, 4.0, (1,), np.float32)


def rows(**changes: Any) -> dict[str, Any]:
    """Four episodes, of which the second one is cut by a time limit and the last one goes on."""
    last = np.roll(STEP, -1) <= STEP
    over, obs = last & (EPISODE % 2 == 0), np.stack((EPISODE, STEP), axis=1).astype(float)
    terminated, truncated = over, last & (EPISODE == 1)
    found = {
        "obs": obs,
        "act": STEP[:, None].astype(np.float32) / 4,
        "rew": EPISODE + 1.0,
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
        "obs_next": obs + np.array([0, 1]),
        "info/frame": STEP,
        **changes,
    }
    return {name: x for name, x in found.items() if x is not None}


def load(path: Path, **options: Any) -> Demonstrations:
    return Demonstrations.load(path, **{"observation_space": SPACE, "action_space": ACTIONS, **options})


def save(path: Path, *rings: tuple[int, int], arrays: Any = None, **options: Any) -> Path:
    path.write_bytes(replay_buffer(rows() if arrays is None else arrays, rings, **options))
    return path


def observed(demonstrations: Demonstrations) -> list[list[list[float]]]:
    split = (demonstrations.lengths + 1).tolist()
    return [x.tolist() for x in demonstrations.observations["policy"].split(split)]


@pytest.mark.parametrize(
    ("rings", "vector", "lengths", "first"),
    [
        ([(14, 14)], False, [3, 5, 4, 2], [0, 0]),
        ([(14, 20)], False, [3, 5, 4, 2], [0, 0]),
        ([(14, 10)], False, [4, 4, 2], [1, 1]),
        ([(14, 6)], False, [4, 2], [2, 0]),
        ([(14, 50)], True, [3, 5, 4, 2], [0, 0]),
        ([(8, 20), (0, 20), (6, 20)], True, [3, 5, 4, 2], [0, 0]),
        ([(5, 4), (9, 9)], True, [2, 2, 3, 4, 2], [0, 1]),
        ([(8, 5), (6, 6)], True, [5, 4, 2], [1, 0]),
    ],
)
def test_rings_are_read_from_the_oldest_row(
    tmp_path: Path, caplog: Any, rings: Any, vector: bool, lengths: list[int], first: list[float]
) -> None:
    demos = load(save(tmp_path / "b.hdf5", *rings, vector=vector))
    assert demos.lengths.tolist() == lengths
    for trajectory in observed(demos):
        steps = [step for _, step in trajectory]
        assert steps == list(range(int(steps[0]), int(steps[0]) + len(steps)))  # the final observation included
        assert len({episode for episode, _ in trajectory}) == 1
    assert observed(demos)[0][0] == first
    assert ("went round" in caplog.text) == any(count > capacity for count, capacity in rings)


def test_ends_of_the_task_and_cut_episodes(tmp_path: Path) -> None:
    demos = load(save(tmp_path / "b.hdf5", (14, 14)))
    last = demos.lengths.cumsum(0) - 1
    assert demos.signals["terminated"][last].tolist() == [True, False, True, False]
    assert demos.signals["truncated"][last].tolist() == [False, True, False, True]
    assert demos.returns.tolist() == [3.0, 10.0, 12.0, 8.0]


def test_done_alone_and_no_next_observations(tmp_path: Path, caplog: Any) -> None:
    older = rows(terminated=None, truncated=None, obs_next=None)
    demos = load(save(tmp_path / "b.hdf5", (14, 20), arrays=older))
    assert demos.lengths.tolist() == list(LENGTHS)
    assert "no final observations" in caplog.text
    assert observed(demos)[0][-1] == observed(demos)[0][-2]


def test_dictionaries_and_stacks_of_frames(tmp_path: Path) -> None:
    nested = rows()
    nested |= {f"{key}/{name}": nested[key][:, k] for key in ("obs", "obs_next") for k, name in enumerate("ab")}
    nested = {name: x for name, x in nested.items() if name not in ("obs", "obs_next")}
    number = spaces.Box(-9.0, 9.0, (1,), np.float32)
    demos = load(
        save(tmp_path / "d.hdf5", (14, 10), arrays=nested),
        observation_space=spaces.Dict({"policy": spaces.Dict({"a": number, "b": number})}),
    )
    assert demos.observations["policy", "b"].flatten().tolist()[:5] == [1, 2, 3, 4, 5]
    stacks = spaces.Dict({"policy": spaces.Box(-9.0, 9.0, (3, 2), np.float32)})
    path = save(tmp_path / "f.hdf5", (14, 14), stack_num=3, _save_only_last_obs=True)
    demos = load(path, observation_space=stacks)
    drawn = demos.gather(demos.rows)
    assert drawn["obs"]["policy"][:3, :, 1].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    assert drawn["next_obs"]["policy"][2, :, 1].tolist() == [1, 2, 3]


def test_raw_actions_are_said_and_scaled(tmp_path: Path, caplog: Any) -> None:
    path = save(tmp_path / "b.hdf5", (14, 14))
    demos = load(path)
    assert demos.signals["executed_action"].flatten().tolist()[:3] == [0.0, 0.25, 0.5]
    assert 'set actions to "scaled"' in caplog.text
    caplog.clear()
    assert load(path, actions="scaled").signals["executed_action"].flatten().tolist()[:3] == [1.0, 1.75, 2.5]
    one = spaces.Box(-1.0, 1.0, (1,), np.float32)
    load(path, action_space=one)
    assert not caplog.text  # the same either way
    wide = save(tmp_path / "w.hdf5", (14, 14), arrays=rows(act=STEP[:, None] / 2))
    with pytest.raises(ValueError, match=r'step 3: actions is \[1.5\].* or set actions to "scaled"'):
        load(wide, action_space=one)
    assert load(wide, action_space=one, actions="scaled").signals["executed_action"].max() == 1.0
    with pytest.raises(ValueError, match='"scaled" is for a Box'):
        load(
            save(tmp_path / "i.hdf5", (14, 14), arrays=rows(act=STEP)),
            action_space=spaces.Discrete(5),
            actions="scaled",
        )


def pickled(file: Any) -> None:
    replace(file, "_meta/obs", np.zeros(300, np.int8))


def shorter(file: Any) -> None:
    replace(file, "_meta/rew", np.zeros(10))


def replace(file: Any, name: str, array: np.ndarray) -> None:
    del file[name]
    file.create_dataset(name, data=array).attrs["__data_type__"] = "ndarray"


def elsewhere(file: Any) -> None:
    del file["_meta"]
    file["_meta"] = h5py.ExternalLink("other.hdf5", "/")


def set_attribute(name: str, value: Any) -> Any:
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("vector", "change", "message"),
    [
        (False, pickled, r"obs has shape \(300,\), .* pickles are not read"),
        (False, shorter, r"rew has shape \(10,\), the buffer 20 rows"),
        (False, elsewhere, "lies in another file"),
        (False, set_attribute("_size", 21), "contradict each other"),
        (False, set_attribute("_size", 2**62), "contradict each other"),
        (False, set_attribute("_insertion_idx", 3), "contradict each other"),
        (False, set_attribute("maxsize", 2**62), r"has shape \(20, 2\), the buffer 4611"),
        (False, set_attribute("_size", "many"), "attribute _size should be one whole number"),
        (True, lambda file: replace(file, "_lengths", np.array([15, 4])), "contradict each other"),
        (True, lambda file: replace(file, "last_index", np.array([30, 15])), "contradict each other"),
        (True, lambda file: replace(file, "_extend_offset", np.array([0, 2**62])), "contradict each other"),
        (True, lambda file: replace(file, "_lengths", np.array([0, 0])), "empty replay buffer"),
    ],
)
def test_damaged_buffers_are_refused_by_name(tmp_path: Path, vector: bool, change: Any, message: str) -> None:
    rings = [(8, 10), (6, 10)] if vector else [(14, 20)]
    path = save(tmp_path / "b.hdf5", *rings, vector=vector)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_large_buffer_that_is_hardly_filled_is_read(tmp_path: Path) -> None:
    """Its file is small, and claims much: only the rows that are filled count."""
    path = save(tmp_path / "b.hdf5", (14, 20), vector=False)
    with h5py.File(path, "r+") as file:
        file.attrs["maxsize"] = size = 10**8
        for name in ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next"):
            array = file[f"_meta/{name}"][()]
            del file[f"_meta/{name}"]
            made = file.create_dataset(f"_meta/{name}", (size, *array.shape[1:]), array.dtype, chunks=True)
            made[: len(array)] = array
            made.attrs["__data_type__"] = "ndarray"
    assert load(path).lengths.tolist() == list(LENGTHS)


@pytest.mark.skipif(importlib.util.find_spec("tianshou") is None, reason="tianshou is not installed")
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("size", [10, 14, 40])
def test_buffers_of_tianshou_itself(tmp_path: Path, vector: bool, size: int) -> None:
    from tianshou.data import Batch, ReplayBuffer, VectorReplayBuffer

    buffer = VectorReplayBuffer(2 * size, 2) if vector else ReplayBuffer(size)
    for k in range(14):
        row = Batch({name: x[k] for name, x in rows().items() if name != "info/frame"} | {"info": {}})
        buffer.add(Batch.stack([row, row]), buffer_ids=[0, 1]) if vector else buffer.add(row)
    buffer.save_hdf5(str(tmp_path / "b.hdf5"), compression="gzip")
    demos, whole = load(tmp_path / "b.hdf5"), buffer[buffer.sample_indices(0)]
    drawn = demos.gather(demos.rows)
    assert np.array_equal(drawn["obs"]["policy"], whole.obs)
    assert np.array_equal(drawn["next_obs"]["policy"], whole.obs_next)
    assert np.array_equal(drawn["executed_action"], whole.act)
    assert np.array_equal(drawn["terminated"], whole.terminated)
