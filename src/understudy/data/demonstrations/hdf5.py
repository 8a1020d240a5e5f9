"""HDF5 files of trajectories: checked before memory is taken; flat arrays, a group per trajectory, replay buffers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.extras import require
from understudy.data.demonstrations.claims import Claims, datasets
from understudy.data.demonstrations.flat import flat
from understudy.data.demonstrations.grouped import maniskill, minari, robomimic
from understudy.data.demonstrations.recording import Place, Recording
from understudy.data.npz import AGAIN


@contextmanager
def open_hdf5(path: Path) -> Iterator[Recording]:
    """A recording in one of the layouts of HDF5 files. Raises ImportError without h5py."""
    require("reading HDF5 demonstrations", "h5py", extra="demos")
    import h5py

    if not h5py.is_hdf5(path):
        raise ValueError(
            f"{path} is damaged, or neither HDF5 nor an .npz: name the folder of what LeRobot, imitation or Minari's "
            "Arrow storage wrote; pickles are not read; `understudy list demos` shows all formats"
        )
    with h5py.File(path, "r") as file:
        claims, names = Claims(path, file), " ".join(file)
        if not names or re.search(r"\bepisode_\d+\b", names):
            yield minari(path, file, claims)
        elif re.search(r"\btraj_\d+\b", names):
            yield maniskill(path, file, claims)
        elif "_meta" in file:
            yield _tianshou(path, file, claims)
        elif isinstance(file.get("data"), h5py.Group):
            yield robomimic(path, file, claims)
        else:
            found = datasets(file)
            recording = flat(str(path), found, lambda name: claims.check(name, found[name]), _attributes(path, file))
            yield replace(recording, kind="flat HDF5")


def _attributes(path: Path, file: Any) -> dict[str, Any]:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in dict(file.attrs).items()}
    if not isinstance(plain.get("env", ""), str):
        raise ValueError(f"{path}: the attribute env is not text: remove it")
    return plain


# ------------------------------------------------------------------------------------------ replay buffers


_TIANSHOU = {"act": "actions", "rew": "rewards", "obs_next": "next_observations"}  # the other names are known


class _Rows:
    """Rows of a dataset in another order, read run by run."""

    def __init__(self, dataset: Any, rows: np.ndarray) -> None:
        self.dataset, self.rows = dataset, rows
        self.shape, self.dtype = (len(rows), *dataset.shape[1:]), dataset.dtype

    def __getitem__(self, where: slice) -> np.ndarray:
        rows = self.rows[where]
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return np.concatenate([self.dataset[run[0] : run[-1] + 1] if len(run) else self.dataset[:0] for run in runs])


def _tianshou(path: Path, file: Any, claims: Claims) -> Recording:
    """What Tianshou's buffers write (`save_hdf5`): rows in rings, one for each environment, perhaps partly filled.

    A ring is read from its oldest row on. Pickled entries are not read. Where the buffer kept the last one of
    `stack_num` frames (`save_only_last_obs`), the stacks are made again as Tianshou does, the first frame repeated.
    """
    every = datasets(file)
    held, names = {}, {}
    for name, dataset in every.items():
        folder, *place = name.split("/")
        if folder == "_meta" and place:
            held["/".join(place)] = dataset
            names["/".join((_TIANSHOU.get(place[0], place[0]), *place[1:]))] = "/".join(place)
    capacity = _number(path, file, "maxsize")
    rings = _rings(path, file, every, claims, capacity)
    order = np.concatenate(rings)
    if not len(order):
        raise ValueError(f"{path} is an empty replay buffer: collect some episodes first")

    def get(name: str) -> _Rows:
        dataset = held[names[name]]
        if dataset.shape[:1] != (capacity,):
            what = "store numbers, pickles are not read" if dataset.dtype == np.int8 else AGAIN
            raise ValueError(f"{path}: {names[name]} has shape {dataset.shape}, the buffer {capacity} rows; {what}")
        return _Rows(claims.check(names[name], dataset, rows=len(order)), order)

    cuts = np.cumsum([len(ring) for ring in rings if len(ring)]) - 1
    recording = flat(str(path), names, get, {}, cuts.tolist())
    if any(len(ring) and ring[0] > ring.min() for ring in rings):
        remarks = [*recording.remarks, "went round: the oldest episode of a ring may lack its beginning"]
        recording = replace(recording, remarks=remarks)
    frames = _number(path, file, "stack_num") if _number(path, file, "_save_only_last_obs") else 1
    return replace(recording if frames <= 1 else _stacked(recording, frames), raw_actions=True, kind="Tianshou HDF5")


def _number(path: Path, file: Any, name: str) -> int:
    """An attribute. Text, a damaged one of which can hang or kill HDF5's library, is not touched."""
    kept = file.attrs.get_id(name) if name in file.attrs else None
    if kept is None or kept.shape != () or kept.dtype.kind not in "biu":
        raise ValueError(f"{path}: its attribute {name} should be one whole number; {AGAIN}")
    return int(file.attrs[name])


def _rings(path: Path, file: Any, every: Mapping[str, Any], claims: Claims, capacity: int) -> list[np.ndarray]:
    """The numbers of the rows that are filled, ring by ring, oldest first. Raises ValueError for impossible ones."""
    if "_lengths" in every:
        edges, lengths, newest = (
            np.asarray(claims.check(name, every[name])[()]) for name in ("_extend_offset", "_lengths", "last_index")
        )
    else:
        place = _number(path, file, "_index" if "_index" in file.attrs else "_insertion_idx")  # before 1.1: _index
        edges, lengths = np.array([0, capacity]), np.array([_number(path, file, "_size")])
        newest = np.array([(place - 1) % max(capacity, 1)])
    sound = edges.shape == (len(lengths) + 1,) and lengths.shape == newest.shape == edges[1:].shape
    sound = sound and all(x.dtype.kind in "iu" for x in (edges, lengths, newest))
    if sound:
        edges, lengths, newest = (x.astype(np.int64) for x in (edges, lengths, newest))
        starts, sizes = edges[:-1], np.diff(edges)
        full, last = (lengths == sizes) | (lengths == 0), newest - starts
        fitting = (lengths >= 0) & (lengths <= sizes) & (last >= 0) & (last < sizes) & (full | (last == lengths - 1))
        sound = bool(edges[0] == 0 and edges[-1] == capacity and fitting.all())
    if not sound:
        raise ValueError(f"{path}: its rings of rows (sizes and places) contradict each other; {AGAIN}")
    claims.take(8 * int(lengths.sum()))
    oldest = np.where(lengths == sizes, last + 1, 0)
    return [
        start + (first + np.arange(length)) % size for start, first, length, size in zip(starts, oldest, lengths, sizes)
    ]


def _stacked(recording: Recording, frames: int) -> Recording:
    """A recording whose observations are the last so many of each trajectory, `[T + 1, frames, ...]`."""

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        single = recording.read_observations(trajectory, place)
        newest = np.arange(len(single))[:, None] + np.arange(1 - frames, 1)
        return single[newest.clip(min=0)]

    shapes = {place: (frames, *shape) for place, shape in recording.shapes.items()}
    return replace(recording, shapes=shapes, read_observations=read_observations)
