"""Open files of recorded trajectories; `open_recording` gives a `Recording`, the same for every format.

A format is a function from an open file to a `Recording`: see `flat` and `hdf5`. `check` makes sure that it fits an
environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from understudy.core.borders import parsing
from understudy.data.demonstrations.arrow import open_imitation, open_minari
from understudy.data.demonstrations.flat import flat
from understudy.data.demonstrations.formats import unknown
from understudy.data.demonstrations.hdf5 import open_hdf5
from understudy.data.demonstrations.lerobot import open_lerobot
from understudy.data.demonstrations.recording import Recording, chain, read_metadata
from understudy.data.npz import AGAIN, open_npz


@contextmanager
def open_recording(source: str | Path) -> Iterator[Recording]:
    """Open a path (file or folder) or the id of a local Minari dataset.

    A folder of `.npz` files counts as one recording, in the order of the names. Downloads nothing. Raises ValueError,
    also while the recording is read, for a missing, damaged or pickled file and for one that is not a recording;
    ImportError for HDF5 without h5py.
    """
    with parsing(source, "name a file, a folder or the id of a Minari dataset"):  # a name may be too long
        path = _find(source)
    with parsing(path, AGAIN), ExitStack() as stack:
        yield stack.enter_context(_opener(path)(path))


def _opener(path: Path) -> Callable[[Path], AbstractContextManager[Recording]]:
    if not path.is_dir():
        return _open_npz if path.suffix == ".npz" else open_hdf5
    return next(opener for mark, opener in _FOLDERS.items() if any(path.glob(mark)))


@contextmanager
def _open_folder(path: Path) -> Iterator[Recording]:
    with ExitStack() as stack:
        yield chain(str(path), [stack.enter_context(_open_npz(part)) for part in sorted(path.glob("*.npz"))])


@contextmanager
def _open_npz(path: Path) -> Iterator[Recording]:
    with open_npz(path) as arrays:
        told = arrays.get("metadata")
        text = told.item() if told is not None and told.size == 1 and told.dtype.kind in "US" else "{}"
        yield replace(flat(str(path), arrays, arrays.__getitem__, read_metadata(str(path), text)), kind=".npz")


_FOLDERS = {
    "meta/info.json": open_lerobot,
    "state.json": open_imitation,
    "0/part-0.*": open_minari,
    "*.npz": _open_folder,
}
"""What a folder holds -> how to read it."""


def minari_root() -> Path:
    """The folder of Minari's local datasets (MINARI_DATASETS_PATH, or ~/.minari/datasets)."""
    chosen = os.environ.get("MINARI_DATASETS_PATH")
    return Path(chosen) if chosen else Path.home() / ".minari" / "datasets"


def _find(source: str | Path) -> Path:
    """The file (or folder of `.npz` files) that `source` names."""
    if not str(source):
        raise ValueError(
            "no demonstrations were named: pass --demonstrations PATH (or a local Minari id); record some with "
            "`understudy record RUN`"
        )
    for path in (Path(source).expanduser(), minari_root() / str(source)):
        if path.is_file():
            return path
        for inner in (path, path / "data"):
            if (inner / "main_data.hdf5").is_file():
                return inner / "main_data.hdf5"
            if any(any(inner.glob(mark)) for mark in _FOLDERS):
                return inner
        if path.is_dir():
            raise unknown(path, sorted(inner.name for inner in path.iterdir()))
    raise ValueError(
        f"found neither a file {source} nor a local Minari dataset of that id in {minari_root()}. Nothing is "
        f"downloaded automatically: for a remote dataset, run `minari download {source}` first"
    )
