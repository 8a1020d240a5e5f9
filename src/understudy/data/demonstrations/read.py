"""Read files of recorded trajectories (Minari HDF5, D4RL-style HDF5, `.npz`), one trajectory at a time.

`open_recording` opens a path or a Minari id as a `Recording`, the same for every format. `check` makes sure that it
fits an environment.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

Place = tuple[str, ...]
"""Where an observation lies in a file: `()` for a plain array, `("policy", "joints")` under nested names."""

Counts = TypeVar("Counts", np.ndarray, torch.Tensor)

SIGNALS = ("actions", "rewards", "terminations", "truncations")

_ALIASES: dict[str, tuple[str, ...]] = {  # ours (and Minari's) first, then D4RL's, then other common names
    "observations": ("observations", "obs"),
    "next_observations": ("next_observations", "next_obs"),
    "actions": ("actions", "acts"),
    "rewards": ("rewards", "rews"),
    "terminations": ("terminations", "terminals", "terminated"),
    "truncations": ("truncations", "timeouts", "truncated"),
}


def first_rows(lengths: Counts) -> Counts:
    """The first row of each of K sequences that lie one after another, `[K]`, from their lengths `[K]`."""
    return lengths.cumsum(0) - lengths


class Recording(ABC):
    """An open file of K whole trajectories; trajectory k has `lengths[k]` transitions."""

    source: str
    lengths: np.ndarray  # [K] int64
    shapes: dict[Place, tuple[int, ...]]  # of one observation
    metadata: dict[str, Any]  # about the recording: "env", "score", "seed", ...
    lacks_final: bool = False
    """True if the file has no final observations: `read_observations` then repeats the last one."""

    @abstractmethod
    def read_observations(self, trajectory: int, place: Place) -> np.ndarray:
        """Observations `[T + 1, ...]`, the final one included."""

    @abstractmethod
    def read(self, trajectory: int, name: str) -> np.ndarray:
        """One of `SIGNALS`, `[T, ...]`."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """True if the file holds this one of `SIGNALS`."""


@contextmanager
def open_recording(source: str | Path) -> Iterator[Recording]:
    """Open a path (file or folder) or the id of a local Minari dataset.

    A folder of `.npz` files counts as one recording, in the order of the names. Downloads nothing. Raises ValueError
    for a missing, truncated or pickled file and for one that is not a recording; ImportError for HDF5 without h5py.
    """
    path = _find(source)
    with ExitStack() as stack:
        if path.is_dir():
            yield _Chain(str(path), [stack.enter_context(_open_npz(part)) for part in sorted(path.glob("*.npz"))])
        else:
            opener = _open_npz if path.suffix == ".npz" else _open_hdf5
            yield stack.enter_context(opener(path))


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
        for inner in (path / "data" / "main_data.hdf5", path / "main_data.hdf5"):
            if inner.is_file():
                return inner
        if path.is_dir() and any(path.glob("*.npz")):
            return path
        if (path / "data").is_dir() or path.is_dir():
            raise ValueError(
                f"{path} holds neither main_data.hdf5 nor .npz files: only Minari's HDF5 format is read, convert other "
                "formats with Minari (data_format='hdf5')"
            )
    raise ValueError(
        f"found neither a file {source} nor a local Minari dataset of that id in {minari_root()}. Nothing is "
        f"downloaded automatically: for a remote dataset, run `minari download {source}` first"
    )


# ------------------------------------------------------------------------------------------------- flat files


class _Flat(Recording):
    """One long array per signal, cut into trajectories by `lengths` (ours) or by the ends (D4RL)."""

    def __init__(self, source: str, arrays: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        self.source, self.metadata = source, metadata
        self.arrays: dict[str, Any] = {}
        self.observations, self.next_observations = (
            _under(arrays, _ALIASES[name]) for name in ("observations", "next_observations")
        )
        for name in SIGNALS:
            found = _under(arrays, _ALIASES[name])
            if () in found:
                self.arrays[name] = found[()]
        if not self.observations or "actions" not in self.arrays:
            raise ValueError(f"{source} has no observations or no actions: it holds {', '.join(sorted(arrays))}")
        self.lengths = self._find_lengths(arrays)
        self.starts = first_rows(self.lengths)
        self.shapes = {place: tuple(array.shape[1:]) for place, array in self.observations.items()}
        self.with_final = self._check_rows()
        self.lacks_final = not self.with_final and not self.next_observations

    def has(self, name: str) -> bool:
        return name in self.arrays

    def read(self, trajectory: int, name: str) -> np.ndarray:
        start = int(self.starts[trajectory])
        return np.asarray(self.arrays[name][start : start + int(self.lengths[trajectory])])

    def read_observations(self, trajectory: int, place: Place) -> np.ndarray:
        start, length = int(self.starts[trajectory]), int(self.lengths[trajectory])
        array = self.observations[place]
        if self.with_final:  # each earlier trajectory has one row more than it has transitions
            return np.asarray(array[start + trajectory : start + trajectory + length + 1])
        rows = array[start : start + length]
        end = start + length - 1
        last = self.next_observations[place][end : end + 1] if place in self.next_observations else rows[-1:]
        return np.concatenate((rows, last))

    def _find_lengths(self, arrays: Mapping[str, Any]) -> np.ndarray:
        total = len(self.arrays["actions"])
        if "lengths" in arrays:
            lengths = np.asarray(arrays["lengths"][:]).astype(np.int64)
            if lengths.sum() != total:
                raise ValueError(f"{self.source}: lengths add up to {lengths.sum()}, but there are {total} actions")
            return lengths
        if "terminations" not in self.arrays:
            raise ValueError(
                f"{self.source} has neither lengths nor terminations: add one of them to mark where trajectories end"
            )
        ended = np.zeros(total, dtype=bool)
        for name in ("terminations", "truncations"):
            if self.has(name):
                _check_length(self.source, name, len(self.arrays[name]), total)
                ended |= np.asarray(self.arrays[name][:]).astype(bool)
        ends = np.flatnonzero(ended)
        if total and (not len(ends) or ends[-1] != total - 1):
            ends = np.append(ends, total - 1)  # the recording stopped within an episode
        return np.diff(ends, prepend=-1).astype(np.int64)

    def _check_rows(self) -> bool:
        """True if observations include the final ones; raises ValueError where rows do not add up."""
        total = int(self.lengths.sum())
        for name, array in self.arrays.items():
            _check_length(self.source, name, len(array), total)
        counts = {len(array) for array in self.observations.values()}
        if counts == {total + len(self.lengths)}:
            return True
        if counts == {total}:
            return False
        raise ValueError(
            f"{self.source} has {total} actions in {len(self.lengths)} trajectories, but {sorted(counts)} "
            f"observations: expected {total + len(self.lengths)} (with final observations) or {total} (without)"
        )


def _under(arrays: Mapping[str, Any], names: Sequence[str]) -> dict[Place, Any]:
    """Arrays called `name` or `name/...`, keyed by the rest of the path; `name` is the first of `names` that exists."""
    for name in names:
        found = {
            tuple(full.split("/")[1:]): array
            for full, array in arrays.items()
            if full == name or full.startswith(f"{name}/")
        }
        if found:
            return found
    return {}


def _check_length(source: str, name: str, length: int, total: int) -> None:
    if length != total:
        raise ValueError(f"{source} has {total} actions but {length} {name}: it is damaged, record it again")


# ------------------------------------------------------------------------------------------------------- .npz


@contextmanager
def _open_npz(path: Path) -> Iterator[Recording]:
    """Map arrays that are stored uncompressed; read compressed ones whole."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is not an .npz file, or truncated ({error}); copy or record it again") from error
    with archive:
        arrays = {info.filename.removesuffix(".npy"): _npz_array(path, archive, info) for info in archive.infolist()}
        metadata = json.loads(str(arrays.pop("metadata"))) if "metadata" in arrays else {}
        yield _Flat(str(path), arrays, metadata)


def _npz_array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One member; raises ValueError for pickled objects, which could run code, and for damaged members."""
    name = info.filename.removesuffix(".npy")
    try:
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(member)
            offset = member.tell()
        if dtype.hasobject:
            raise ValueError(
                f"{path}: {name} holds pickled Python objects, which are never loaded, as they can run code; store "
                "plain arrays"
            )
        if info.compress_type == zipfile.ZIP_STORED and shape and 0 not in shape and not fortran:
            return np.memmap(path, dtype, "r", _data_start(path, info) + offset, shape)
        with archive.open(info) as member:
            array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            return array
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path}: {name} is damaged ({error}); copy or record it again") from error


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """First byte of a member: after its local header, whose last two fields are the lengths of name and extra."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
    return info.header_offset + 30 + int(name) + int(extra)


# ------------------------------------------------------------------------------------------------------- HDF5

_JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Recording]:
    try:
        import h5py  # an extra
    except ImportError as error:
        raise ImportError("reading HDF5 demonstrations needs: pip install 'understudy[demos]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or truncated ({error}); copy or record it again") from error
    with file:
        try:
            episodes = [name for name in file if name.startswith("episode_")]
            if episodes or "observations" not in file:
                yield _Minari(str(path), file, episodes, _minari_metadata(path))
            else:
                yield _Flat(str(path), _datasets(file), _plain(dict(file.attrs)))
        except OSError as error:  # a missing chunk only shows when it is read
            raise ValueError(f"{path} is truncated or damaged ({error}); copy or record it again") from error


class _Minari(Recording):
    """One HDF5 group per trajectory; observations include the final one. Images may be JPEGs, Minari's default."""

    def __init__(self, source: str, file: Any, episodes: Sequence[str], metadata: dict[str, Any]) -> None:
        self.source, self.metadata = source, metadata
        # episode_10 comes after episode_9
        ordered = sorted(episodes, key=lambda name: int(name.removeprefix("episode_")))
        self.groups = [file[name] for name in ordered]
        self.rewards = [self._values(k, "rewards") for k in range(len(self.groups))]
        self.lengths = np.array([len(rewards) for rewards in self.rewards], dtype=np.int64)
        self.shapes, self.names, self.jpegs = {}, set[str](), set[Place]()
        if self.groups:
            self.names = set(self.groups[0])
            for place, dataset in _under(_datasets(self.groups[0]), ("observations",)).items():
                first = np.asarray(dataset[0])
                if first.dtype == np.uint8 and first.ndim == 1 and first[:3].tobytes() == _JPEG:
                    self.jpegs.add(place)
                    first = _decode_jpegs([first])[0]
                self.shapes[place] = first.shape

    def has(self, name: str) -> bool:
        return name in self.names

    def read(self, trajectory: int, name: str) -> np.ndarray:
        if name == "rewards":
            return self.rewards[trajectory]
        return self._checked(trajectory, name, int(self.lengths[trajectory]))

    def read_observations(self, trajectory: int, place: Place) -> np.ndarray:
        values = self._checked(trajectory, "/".join(("observations", *place)), int(self.lengths[trajectory]) + 1)
        return _decode_jpegs(values) if place in self.jpegs else values

    def _values(self, trajectory: int, name: str) -> np.ndarray:
        import h5py

        try:  # h5py's own `group[name]` takes ten times as long as opening the dataset
            dataset = h5py.Dataset(h5py.h5d.open(self.groups[trajectory].id, name.encode()))
        except KeyError:
            raise ValueError(f"{self.source}: trajectory {trajectory} has no {name}") from None
        values: np.ndarray = dataset[()]
        return values

    def _checked(self, trajectory: int, name: str, rows: int) -> np.ndarray:
        values = self._values(trajectory, name)
        if len(values) != rows:
            raise ValueError(
                f"{self.source}: trajectory {trajectory} has {len(values)} rows of {name}, its rewards need {rows}"
            )
        return values


def _datasets(group: Any) -> dict[str, Any]:
    """Every dataset below a group, by its path."""
    import h5py

    found: dict[str, Any] = {}
    group.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def _minari_metadata(path: Path) -> dict[str, Any]:
    file = path.with_name("metadata.json")
    if not file.is_file():
        return {}
    metadata: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "env" not in metadata and metadata.get("env_spec"):
        metadata["env"] = json.loads(metadata["env_spec"])["id"]
    return metadata


def _decode_jpegs(encoded: Iterable[np.ndarray]) -> np.ndarray:
    from PIL import Image  # comes with Minari, which wrote them

    return np.stack([np.array(Image.open(io.BytesIO(row.tobytes())), dtype=np.uint8) for row in encoded])


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in attributes.items()}


# ------------------------------------------------------------------------------------------------ several files


class _Chain(Recording):
    """The trajectories of several recordings, one after another."""

    def __init__(self, source: str, parts: Sequence[Recording]) -> None:
        self.source, self.parts = source, parts
        self.metadata = dict(parts[0].metadata)
        self.shapes = parts[0].shapes
        for part in parts[1:]:
            if part.shapes != self.shapes:
                raise ValueError(f"{part.source} has observations {part.shapes}, {parts[0].source} has {self.shapes}")
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.lacks_final = any(part.lacks_final for part in parts)
        self.trajectories = [(part, k) for part in parts for k in range(len(part.lengths))]

    def has(self, name: str) -> bool:
        return all(part.has(name) for part in self.parts)

    def read(self, trajectory: int, name: str) -> np.ndarray:
        part, k = self.trajectories[trajectory]
        return part.read(k, name)

    def read_observations(self, trajectory: int, place: Place) -> np.ndarray:
        part, k = self.trajectories[trajectory]
        return part.read_observations(k, place)
