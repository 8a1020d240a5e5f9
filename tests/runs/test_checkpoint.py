from __future__ import annotations

import errno
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.runs import checkpoint as ck
from understudy.runs.spaces import space_from_plain, space_to_plain
from understudy.types import CheckpointError


def payload(x: float = 1.0) -> dict:
    return {"state": {"w": torch.full((3,), x), "lr": 0.1, "names": ["a", "b"]}}


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    ck.save_checkpoint(path, "training", payload(2.0))
    loaded = ck.load_checkpoint(path, "training")
    assert torch.equal(loaded["state"]["w"], torch.tensor([2.0, 2.0, 2.0]))
    assert loaded["state"]["lr"] == 0.1
    assert loaded["state"]["names"] == ["a", "b"]
    assert loaded["format_version"] == ck.FORMAT_VERSION
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]  # no temporary file is left


def test_full_disk_leaves_the_previous_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    ck.save_checkpoint(path, "training", payload(1.0))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"a\.pt: No space left on device.*intact"):
        ck.save_checkpoint(path, "training", payload(5.0))
    monkeypatch.undo()
    assert ck.load_checkpoint(path, "training")["state"]["w"][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_kill_before_the_rename_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    ck.save_checkpoint(path, "training", payload(1.0))

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        ck.save_checkpoint(path, "training", payload(5.0))
    assert ck.load_checkpoint(path, "training")["state"]["w"][0] == 1.0


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.99])
def test_truncated_file_is_named(tmp_path: Path, fraction: float) -> None:
    path = tmp_path / "a.pt"
    ck.save_checkpoint(path, "training", {"state": {"w": torch.zeros(5000)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        ck.load_checkpoint(path, "training")


def test_other_versions_kinds_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        ck.load_checkpoint(path, "training")
    torch.save({"format_version": 99, "understudy_version": "9.9", "kind": "training"}, path)
    with pytest.raises(CheckpointError, match=r"format 99 \(understudy 9\.9\)"):
        ck.load_checkpoint(path, "training")
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of understudy"):
        ck.load_checkpoint(path, "training")
    ck.save_checkpoint(path, "demonstrations", {})
    with pytest.raises(CheckpointError, match="'demonstrations' checkpoint, a 'training'"):
        ck.load_checkpoint(path, "training")
    path.write_text("hello")
    with pytest.raises(CheckpointError):
        ck.load_checkpoint(path, "training")


class Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (open, (self.target, "w"))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "a.pt"
    torch.save({"format_version": 1, "bomb": Bomb(str(target))}, path)
    with pytest.raises(CheckpointError):
        ck.load_checkpoint(path, "training")
    path.write_bytes(pickle.dumps(Bomb(str(target))))
    with pytest.raises(CheckpointError):
        ck.load_checkpoint(path, "training")
    assert not target.exists()


def test_prune_keeps_the_newest_and_best(tmp_path: Path) -> None:
    for step in (5, 100, 20, 1_000_000_000_000_000):  # by number, not by name
        ck.save_checkpoint(ck.step_path(tmp_path, step), "training", {})
    ck.save_checkpoint(tmp_path / ck.BEST, "training", {})
    (tmp_path / "step_old.pt").write_text("not ours")
    ck.prune(tmp_path, 2)
    assert ck.step_checkpoints(tmp_path) == [ck.step_path(tmp_path, 100), ck.step_path(tmp_path, 10**15)]
    assert ck.latest_checkpoint(tmp_path) == ck.step_path(tmp_path, 10**15)
    assert (tmp_path / ck.BEST).exists()
    assert (tmp_path / "step_old.pt").exists()


def test_no_checkpoint_in_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        ck.latest_checkpoint(tmp_path)


def test_layout_differences_are_listed() -> None:
    ours = {"actor": {"w": torch.zeros(3, 2), "b": torch.zeros(3)}, "critic": torch.zeros(1)}
    ck.check_same_layout(ours, {"actor": {"w": torch.ones(3, 2), "b": torch.ones(3)}, "critic": torch.ones(1)}, "x.pt")
    theirs = {"actor": {"w": torch.zeros(4, 2), "extra": torch.zeros(3)}, "critic": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        ck.check_same_layout(ours, theirs, "x.pt")
    message = str(caught.value)
    assert "x.pt" in message
    assert "missing: actor.b" in message
    assert "unexpected: actor.extra" in message
    assert "actor.w is (4, 2), expected (3, 2)" in message


def test_all_finite_looks_into_nested_states() -> None:
    good = {"a": torch.zeros(2), "n": {"b": torch.ones(1), "i": torch.tensor([1])}, "lr": 0.1}
    assert ck.all_finite(good)
    assert not ck.all_finite({**good, "n": {"b": torch.tensor([float("inf")])}})
    assert not ck.all_finite({**good, "a": torch.tensor([float("nan")])})


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (3,), np.float32),
        spaces.Box(np.array([-1.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float64),
        spaces.Box(0, 255, (4, 8, 8), np.uint8),
        spaces.Box(0.0, 1.0, (0,), np.float32),
        spaces.Discrete(5),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(4),
        spaces.MultiBinary((2, 3)),
        spaces.Dict({"policy": spaces.Box(-1.0, 1.0, (2,)), "critic": spaces.Dict({"z": spaces.Discrete(2)})}),
    ],
)
def test_spaces_survive_plain_data(space: spaces.Space) -> None:
    plain = space_to_plain(space)
    again = space_from_plain(plain)
    assert again == space
    assert again.dtype == space.dtype
    assert space_to_plain(again) == plain


def test_unknown_space_is_refused() -> None:
    with pytest.raises(ValueError, match="Text space"):
        space_to_plain(spaces.Text(3))


def test_a_space_keeps_the_order_of_its_components() -> None:
    first, second = spaces.Box(0.0, 1.0, (2,)), spaces.Box(0.0, 1.0, (2,))
    space = spaces.Dict(OrderedDict(policy=spaces.Dict(OrderedDict(speed=first, height=second)), critic=first))
    again = space_from_plain(space_to_plain(space))
    assert isinstance(again, spaces.Dict)
    assert list(again.spaces) == ["policy", "critic"]
    assert list(again["policy"].spaces) == ["speed", "height"]
