"""`understudy demos inspect`: what it says of a file, and whether the file fits an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from understudy.cli import main
from understudy.data.demonstrations.formats import unknown

LENGTHS = (30, 50)


def write(path: Path, actions: Any = None, **changes: Any) -> Path:
    """Two episodes of Pendulum's sizes by robomimic's names; `changes` are arrays of the second one."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for k, n in enumerate(LENGTHS):
            angle = np.linspace(0, 3, n + 1)
            seen = np.stack((np.cos(angle), np.sin(angle), np.ones(n + 1)), 1)
            acted = rng.uniform(-2, 2, (n, 1)) if actions is None else np.full((n, 1), actions)
            arrays = {
                "actions": acted, "rewards": np.full(n, -1.0), "dones": np.arange(n) == n - 1,
                "obs/state": seen[:-1], "next_obs/state": seen[1:],
            } | (changes if k else {})  # fmt: skip
            for name, values in arrays.items():
                file[f"data/demo_{k}/{name}"] = values
        file["mask/valid"] = np.array(["demo_1"], dtype="S")
    return path


def said(capsys: Any, *words: str, code: int = 0) -> str:
    assert main(["demos", "inspect", *words]) == code
    printed = capsys.readouterr()
    return str(printed.err if code else printed.out)


def test_inspect_tells_episodes_returns_ranges_and_fit(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "d.hdf5")
    text = said(capsys, str(path), "--env.id", "Pendulum-v1", "--output", str(tmp_path / "d.png"))
    for line in (
        "robomimic HDF5: 2 trajectories, 80 transitions",
        "length: 30 to 50, mean 40",
        "return: -50 to -30, mean -40",
        "ends: 2 of the task, 0 cut off",
        "lists (subset): valid 1",
        "note: does not tell ends of the task from time limits (dones)",
        "actions [1]",
        "observations/state [3]",
        "2   1 ..  1, mean 1, deviation 0 (constant)",
        "gaps: none",
        "fits Pendulum-v1: observations policy, actions Box",
    ):
        assert line in text
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert "1 trajectories, 50 transitions" in said(capsys, str(path), "--subset", "valid")
    assert "no list of trajectories 'valide'" in said(capsys, str(path), "--subset", "valide", code=2)


def test_inspect_names_everything_that_does_not_fit(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "d.hdf5")
    text = said(capsys, str(path), "--env.id", "CartPole-v1", code=2)
    assert "these demonstrations do not fit CartPole-v1" in text
    assert "observation 'policy' has shape (3,), the environment's has (4,)" in text
    text = said(capsys, str(write(tmp_path / "wild.hdf5", actions=2.5)), "--env.id", "Pendulum-v1", code=2)
    assert "actions is [2.5], which lies outside Box" in text
    scaled = said(capsys, str(write(tmp_path / "scaled.hdf5", actions=0.5)), "--env.id", "Pendulum-v1")
    assert 'the file\'s lie in [-1, 1]: if its policy scaled them, set actions to "scaled"' in scaled


def test_inspect_finds_gaps(tmp_path: Path, capsys: Any) -> None:
    state = np.linspace(0, 1, LENGTHS[1] * 3).reshape(-1, 3)
    state[20:, 1] += 5.0
    state[7, 0] = np.nan
    text = said(capsys, str(write(tmp_path / "d.hdf5", **{"obs/state": state})))
    assert "observations/state: 1 values are not finite" in text
    jump = np.full((LENGTHS[1], 3), 0.5)
    jump[:, 1] = np.linspace(0, 1, LENGTHS[1]) + np.where(np.arange(LENGTHS[1]) >= 20, 5.0, 0.0)
    text = said(capsys, str(write(tmp_path / "jump.hdf5", **{"obs/state": jump})))
    assert "observations/state 1: trajectory 1, step 19 to 20 changes by 5.02" in text


def test_unknown_files_say_what_was_found_and_what_is_near(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "d.hdf5"
    with h5py.File(path, "w") as file:
        file["mask/train"], file["episodes/0/x"] = np.zeros(1), np.zeros(1)
    text = said(capsys, str(path), code=2)
    assert f"{path} is not in a format that is read: it holds episodes/0/x, mask/train. Near: robomimic" in text
    assert "`understudy list demos` shows all of them" in text
    table = tmp_path / "file-000.parquet"
    table.write_bytes(b"PAR1")
    assert "file-000.parquet is damaged, or neither HDF5 nor an .npz: name the folder" in said(
        capsys, str(table), code=2
    )
    assert "Near: LeRobot v2, v3 would have folder with meta/info.json" in str(
        unknown("x", ["meta", "videos", "README.md"])
    )
    assert "it holds nothing. `understudy list demos`" in str(unknown("x", []))
    assert main(["list", "demos"]) == 0
    assert "robomimic, Isaac Lab HDF5  groups data/demo_0" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["demos", "demos inspct"])
def test_the_command_is_found(word: str, capsys: Any) -> None:
    assert main(word.split()) == 2
    if "inspct" in word:
        assert "unknown command 'demos inspct'; did you mean demos inspect" in capsys.readouterr().err
