"""A payload in every format: nothing in a file executes or imports without consent."""

from __future__ import annotations

import json
import pickle
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODULE = "planted_module"


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "ran")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a payload writes; a module of that effect is there to be imported."""
    marker, modules = tmp_path / "ran", tmp_path / "modules"
    modules.mkdir()
    (modules / f"{MODULE}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(modules))
    return marker


def nothing_ran(marker: Path) -> bool:
    return not marker.exists() and MODULE not in sys.modules


# ------------------------------------------------------------------------------------- demonstrations, motions


def objects(marker: Path) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = Payload(marker)
    return array


def planted_demonstrations(path: Path, marker: Path, name: str) -> None:
    arrays = {"observations": np.zeros((1, 4)), "actions": np.zeros(1, int), "lengths": np.ones(1, int)}
    np.savez(path, **{**arrays, name: objects(marker)})  # type: ignore[arg-type]


def planted_motions(path: Path, marker: Path, name: str) -> None:
    arrays = {"format": "understudy-motion-1", "names": ["walk"], "fps": 50, "dof_names": ["hip"]}
    np.savez(path, **{**arrays, name: objects(marker)})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["observations", "actions", "lengths", "metadata", "checksums"])
def test_demonstrations_unpickle_nothing(tmp_path: Path, marker: Path, name: str) -> None:
    from understudy.data.demonstrations.read import open_recording

    planted_demonstrations(tmp_path / "d.npz", marker, name)
    with pytest.raises(ValueError, match=r"d\.npz"), open_recording(tmp_path / "d.npz") as recording:
        recording.read(0, "actions")
    assert nothing_ran(marker)


def as_it_is(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("pack", [as_it_is, zlib.compress])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_motions_unpickle_nothing(tmp_path: Path, marker: Path, pack: Callable[[bytes], bytes], protocol: int) -> None:
    from understudy.data.motions.files import read_motions
    from understudy.data.motions.pickled import read_pickled_motions

    for name in ("m.npz", "m.json", "m.pkl"):
        path = tmp_path / name
        path.write_bytes(pack(pickle.dumps({"walk": {"Frames": Payload(marker), "FrameDuration": 0.02}}, protocol)))
        for read in (read_motions, read_pickled_motions):
            with pytest.raises(ValueError, match=name):
                read(path)
    for array in ("format", "names", "fps", "dof_names"):
        planted_motions(tmp_path / "arrays.npz", marker, array)
        with pytest.raises(ValueError, match=r"arrays\.npz"):
            read_motions(tmp_path / "arrays.npz")
    assert nothing_ran(marker)


@pytest.mark.parametrize("kind", ["npz", "hdf5", "minari", "minari-spec"])
def test_the_environment_that_a_data_file_names_is_not_imported(tmp_path: Path, marker: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    from understudy.cli import main

    arrays = {"observations": np.zeros((3, 4), np.float32), "actions": np.zeros(3, int), "terminals": [0, 0, 1]}
    env = f"{MODULE}:Planted-v0"
    path = tmp_path / ("main_data.hdf5" if kind != "npz" else "d.npz")
    if kind == "npz":
        np.savez(path, **arrays, metadata=json.dumps({"env": env}))  # type: ignore[arg-type]
    else:
        with h5py.File(path, "w") as file:
            if kind == "hdf5":
                file.attrs["env"] = env
            place = "" if kind == "hdf5" else "episode_0/"
            for name, array in {**arrays, "rewards": np.zeros(3)}.items():
                file[f"{place}{name}"] = array
        named = {"env": env} if kind == "minari" else {"env_spec": json.dumps({"id": env})}
        if kind != "hdf5":
            path.with_name("metadata.json").write_text(json.dumps(named))
    run = ["--run-dir", str(tmp_path / "run")]
    assert main(["train", "bc", "--demonstrations", str(path), *run]) != 0
    assert nothing_ran(marker)
    assert not (tmp_path / "run").exists()
