"""HDF5 files of trajectories: checked before memory is taken; flat arrays, a group per trajectory, replay buffers."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.borders import check_unpacked
from understudy.core.check import fit
from understudy.core.extras import require
from understudy.data.demonstrations.flat import flat
from understudy.data.demonstrations.recording import SIGNALS, Place, Recording, read_metadata
from understudy.data.npz import AGAIN

_EPISODE = re.compile(r"episode_(\d+)")
_JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG


@contextmanager
def open_hdf5(path: Path) -> Iterator[Recording]:
    """A recording in one of the layouts of HDF5 files. Raises ImportError without h5py."""
    require("reading HDF5 demonstrations", "h5py", extra="demos")
    import h5py

    with h5py.File(path, "r") as file:
        claims = _Claims(path, file)
        if not len(file) or any(map(_EPISODE.fullmatch, file)):
            yield _minari(path, file, claims)
        elif "_meta" in file:
            yield _tianshou(path, file, claims)
        else:
            found = _datasets(path, file)
            yield flat(str(path), found, lambda name: claims.check(name, found[name]), _attributes(path, file))


class _Claims:
    """Refuses datasets that claim more memory than the file can mean, or that lie in another file."""

    def __init__(self, path: Path, file: Any) -> None:
        import h5py

        self.path, self.size, self.bytes = path, path.stat().st_size, 0
        self.name = h5py.h5f.get_name(file.id)

    def check(self, name: str, dataset: Any, values: int | None = None, rows: int | None = None) -> Any:
        """The dataset, if it may be read: how many bytes (`values`) if its entries do not say, or `rows` of it."""
        import h5py

        properties = dataset.id.get_create_plist()
        layout = properties.get_layout()
        elsewhere = h5py.h5f.get_name(dataset.id) != self.name or properties.get_external_count()
        if elsewhere or layout == h5py.h5d.VIRTUAL:
            raise ValueError(f"{self.path}: {name} lies in another file, which is not followed: copy the data into one")
        if dataset.dtype.kind not in "biuf" and h5py.check_vlen_dtype(dataset.dtype) != np.uint8:
            raise ValueError(f"{self.path}: {name} is of type {dataset.dtype}: store numbers")
        entries = dataset.size if rows is None else rows * math.prod(dataset.shape[1:])
        entries = max(entries, math.prod(properties.get_chunk())) if layout == h5py.h5d.CHUNKED else entries
        self.take(entries * dataset.dtype.itemsize if values is None else values)
        return dataset

    def take(self, count: int) -> None:
        """Count these bytes, too."""
        self.bytes += count
        check_unpacked(self.path, self.size, self.bytes)


def _datasets(path: Path, group: Any) -> dict[str, Any]:
    """The datasets below a group by their path, those that links lead to among them."""
    import h5py

    found, links = dict[str, Any](), dict[str, Any]()
    group.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    group.visititems_links(lambda name, link: links.update({name: link}))
    for name, link in links.items():
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{path}: {name} lies in another file, which is not followed: copy the data into one")
        if isinstance(link, h5py.SoftLink) and isinstance(item := group[name], h5py.Dataset):
            found[name] = item
    return found


def _attributes(path: Path, file: Any) -> dict[str, Any]:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in dict(file.attrs).items()}
    if not isinstance(plain.get("env", ""), str):
        raise ValueError(f"{path}: the attribute env is not text: remove it")
    return plain


# ------------------------------------------------------------------------------------------ a group per trajectory


def _minari(path: Path, file: Any, claims: _Claims) -> Recording:
    """Groups `episode_<number>`; observations include the final one. Images may be JPEGs, Minari's default."""
    import h5py

    found = sorted((int(match[1]), name) for name in file if (match := _EPISODE.fullmatch(name)))
    groups, metadata = [file[name] for _, name in found], _minari_metadata(path)
    told = metadata.get("total_episodes", len(found))
    if told != len(found) or [number for number, _ in found] != list(range(len(found))):
        raise ValueError(
            f"{path} should hold {told} episodes, numbered from 0 on; it has {len(found)}"
            f"{f', numbered up to {found[-1][0]}' if found else ''}: the file or its metadata.json is damaged; {AGAIN}"
        )

    def dataset(trajectory: int, name: str, values: int | None = None) -> Any:
        links = groups[trajectory].id.links
        if links.exists(top := name.split("/")[0].encode()) and links.get_info(top).type == h5py.h5l.TYPE_EXTERNAL:
            raise ValueError(f"{path}: episode {trajectory}, {name} lies in another file, which is not followed")
        try:  # h5py's own `group[name]` takes ten times as long as opening the dataset
            opened = h5py.Dataset(h5py.h5d.open(groups[trajectory].id, name.encode()))
        except KeyError:
            raise ValueError(f"{path}: trajectory {trajectory} has no {name}; {AGAIN}") from None
        return claims.check(f"episode {trajectory}, {name}", opened, values)

    signals = {name for name in SIGNALS if any(group.id.links.exists(name.encode()) for group in groups)}
    for k, group in enumerate(groups):
        if lacking := [name for name in sorted({"rewards", *signals}) if not group.id.links.exists(name.encode())]:
            raise ValueError(f"{path}: trajectory {k} has no {' and no '.join(lacking)}; {AGAIN}")
    rewards = [np.atleast_1d(dataset(k, "rewards")[()]) for k in range(len(groups))]
    images: dict[Place, tuple[int, ...]] = {}
    shapes: dict[Place, tuple[int, ...]] = {}
    for name, first in (_datasets(path, groups[0]) if groups else {}).items():
        group, *place = name.split("/")
        if group == "observations":
            shapes[tuple(place)] = tuple(claims.check(name, first).shape[1:])
            if size := _jpeg_size(first):
                shapes[tuple(place)] = images[tuple(place)] = size

    def read(trajectory: int, name: str) -> np.ndarray:
        return rewards[trajectory] if name == "rewards" else np.asarray(dataset(trajectory, name)[()])

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        name, shape = "/".join(("observations", *place)), images.get(place)
        if shape is None:
            return np.asarray(dataset(trajectory, name)[()])
        packed = dataset(trajectory, name, (len(rewards[trajectory]) + 1) * math.prod(shape))
        return np.stack([_decode_jpeg(row, shape) for row in packed])

    return Recording(
        source=str(path),
        lengths=np.array([len(x) for x in rewards], dtype=np.int64),
        shapes=shapes,
        metadata=metadata,
        signals=signals,
        read=read,
        read_observations=read_observations,
    )


def _minari_metadata(path: Path) -> dict[str, Any]:
    file = path.with_name("metadata.json")
    if not file.is_file():
        return {}
    metadata = read_metadata(str(file), file.read_bytes())
    if "total_episodes" in metadata:
        fit(int, metadata["total_episodes"], f"{file}: total_episodes")
    if "env" not in metadata and isinstance(metadata.get("env_spec"), str):
        metadata["env"] = str(read_metadata(f"{file}: env_spec", metadata["env_spec"]).get("id", ""))
    if not metadata.get("env"):
        metadata.pop("env", None)
    return metadata


def _jpeg_size(images: Any) -> tuple[int, ...]:
    """Shape of the images of a dataset of JPEGs, read from the first one's header; empty for other data."""
    first = images[0] if images.ndim and len(images) else np.empty(0)
    if first.dtype != np.uint8 or first.ndim != 1 or first[:3].tobytes() != _JPEG:
        return ()
    return _image_shape(_open_jpeg(first))


def _open_jpeg(packed: np.ndarray) -> Any:
    from PIL import Image  # comes with Minari, which wrote them

    return Image.open(io.BytesIO(packed.tobytes()), formats=("JPEG",))


def _image_shape(image: Any) -> tuple[int, ...]:
    bands = len(image.getbands())
    return (image.height, image.width, bands) if bands > 1 else (image.height, image.width)


def _decode_jpeg(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    image = _open_jpeg(packed)
    if _image_shape(image) != shape:  # before it takes memory
        raise ValueError(f"an image has shape {_image_shape(image)}, the first one {shape}")
    return np.array(image, dtype=np.uint8)


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


def _tianshou(path: Path, file: Any, claims: _Claims) -> Recording:
    """What Tianshou's buffers write (`save_hdf5`): rows in rings, one for each environment, perhaps partly filled.

    A ring is read from its oldest row on. Pickled entries are not read. Where the buffer kept the last one of
    `stack_num` frames (`save_only_last_obs`), the stacks are made again as Tianshou does, the first frame repeated.
    """
    every = _datasets(path, file)
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
    return replace(recording if frames <= 1 else _stacked(recording, frames), raw_actions=True)


def _number(path: Path, file: Any, name: str) -> int:
    """An attribute. Text, a damaged one of which can hang or kill HDF5's library, is not touched."""
    kept = file.attrs.get_id(name) if name in file.attrs else None
    if kept is None or kept.shape != () or kept.dtype.kind not in "biu":
        raise ValueError(f"{path}: its attribute {name} should be one whole number; {AGAIN}")
    return int(file.attrs[name])


def _rings(path: Path, file: Any, every: Mapping[str, Any], claims: _Claims, capacity: int) -> list[np.ndarray]:
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
