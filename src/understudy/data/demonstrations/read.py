"""Read files of recorded trajectories (Minari HDF5, D4RL-style HDF5, `.npz`), one trajectory at a time.

`open_recording` opens a path or a Minari id as a `Recording`, the same for every format. `check` makes sure that it
fits an environment.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from understudy.core.extras import require

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


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An open file of K whole trajectories; trajectory k has `lengths[k]` transitions."""

    source: str
    lengths: np.ndarray  # [K] int64
    shapes: dict[Place, tuple[int, ...]]  # of one observation
    metadata: dict[str, Any]  # about the recording: "env", "score", "seed", ...
    signals: Set[str]  # those of `SIGNALS` that the file holds
    read: Callable[[int, str], np.ndarray]
    """One of the signals of a trajectory, `[T, ...]`."""
    read_observations: Callable[[int, Place], np.ndarray]
    """Observations of a trajectory, `[T + 1, ...]`, the final one included."""
    lacks_final: bool = False
    """True if the file has no final observations: `read_observations` then repeats the last one."""


@contextmanager
def open_recording(source: str | Path) -> Iterator[Recording]:
    """Open a path (file or folder) or the id of a local Minari dataset.

    A folder of `.npz` files counts as one recording, in the order of the names. Downloads nothing. Raises ValueError
    for a missing, truncated or pickled file and for one that is not a recording; ImportError for HDF5 without h5py.
    """
    path = _find(source)
    with ExitStack() as stack:
        if path.is_dir():
            yield _chain(str(path), [stack.enter_context(_open_npz(part)) for part in sorted(path.glob("*.npz"))])
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


def _flat(source: str, arrays: Mapping[str, Any], metadata: dict[str, Any]) -> Recording:
    """One long array per signal, cut into trajectories by `lengths` (ours) or by the ends (D4RL)."""
    observations, following = (_under(arrays, _ALIASES[name]) for name in ("observations", "next_observations"))
    signals = {name: found[()] for name in SIGNALS if () in (found := _under(arrays, _ALIASES[name]))}
    if not observations or "actions" not in signals:
        raise ValueError(f"{source} has no observations or no actions: it holds {', '.join(sorted(arrays))}")
    total = len(signals["actions"])
    for name, array in signals.items():
        if len(array) != total:
            raise ValueError(f"{source} has {total} actions but {len(array)} {name}: it is damaged, record it again")
    lengths = _lengths(source, arrays, signals)
    starts, counts = first_rows(lengths), {len(array) for array in observations.values()}
    with_final = counts == {total + len(lengths)}
    if not with_final and counts != {total}:
        raise ValueError(
            f"{source} has {total} actions in {len(lengths)} trajectories, but {sorted(counts)} observations: expected "
            f"{total + len(lengths)} (with final observations) or {total} (without)"
        )

    def read(trajectory: int, name: str) -> np.ndarray:
        start = int(starts[trajectory])
        return np.asarray(signals[name][start : start + int(lengths[trajectory])])

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        start, array = int(starts[trajectory]), observations[place]
        end = start + int(lengths[trajectory])
        if with_final:  # each earlier trajectory has one row more than it has transitions
            return np.asarray(array[start + trajectory : end + trajectory + 1])
        rows = array[start:end]
        return np.concatenate((rows, following[place][end - 1 : end] if place in following else rows[-1:]))

    return Recording(
        source=source,
        lengths=lengths,
        shapes={place: tuple(array.shape[1:]) for place, array in observations.items()},
        metadata=metadata,
        signals=set(signals),
        read=read,
        read_observations=read_observations,
        lacks_final=not with_final and not following,
    )


def _lengths(source: str, arrays: Mapping[str, Any], signals: Mapping[str, Any]) -> np.ndarray:
    total = len(signals["actions"])
    if "lengths" in arrays:
        lengths = np.asarray(arrays["lengths"][:]).astype(np.int64)
        if lengths.sum() != total:
            raise ValueError(f"{source}: lengths add up to {lengths.sum()}, but there are {total} actions")
        return lengths
    if "terminations" not in signals:
        raise ValueError(
            f"{source} has neither lengths nor terminations: add one of them to mark where trajectories end"
        )
    flags = [np.asarray(signals[name][:]).astype(bool) for name in ("terminations", "truncations") if name in signals]
    ends = np.flatnonzero(np.any(flags, axis=0))
    if total and (not len(ends) or ends[-1] != total - 1):
        ends = np.append(ends, total - 1)  # the recording stopped within an episode
    return np.diff(ends, prepend=-1).astype(np.int64)


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
        yield _flat(str(path), arrays, metadata)


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
    require("reading HDF5 demonstrations", "h5py", extra="demos")
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or truncated ({error}); copy or record it again") from error
    with file:
        try:
            episodes = [name for name in file if name.startswith("episode_")]
            if episodes or "observations" not in file:
                yield _minari(path, file, episodes)
            else:
                yield _flat(str(path), _datasets(file), _plain(dict(file.attrs)))
        except OSError as error:  # a missing chunk only shows when it is read
            raise ValueError(f"{path} is truncated or damaged ({error}); copy or record it again") from error


def _minari(path: Path, file: Any, episodes: Sequence[str]) -> Recording:
    """One HDF5 group per trajectory; observations include the final one. Images may be JPEGs, Minari's default."""
    import h5py

    # episode_10 comes after episode_9
    groups = [file[name] for name in sorted(episodes, key=lambda name: int(name.removeprefix("episode_")))]

    def values(trajectory: int, name: str, rows: int | None = None) -> np.ndarray:
        try:  # h5py's own `group[name]` takes ten times as long as opening the dataset
            dataset = h5py.Dataset(h5py.h5d.open(groups[trajectory].id, name.encode()))
        except KeyError:
            raise ValueError(f"{path}: trajectory {trajectory} has no {name}") from None
        found: np.ndarray = dataset[()]
        if rows is not None and len(found) != rows:
            raise ValueError(
                f"{path}: trajectory {trajectory} has {len(found)} rows of {name}, its rewards need {rows}"
            )
        return found

    rewards = [values(k, "rewards") for k in range(len(groups))]
    shapes: dict[Place, tuple[int, ...]] = {}
    jpegs = set[Place]()
    for place, dataset in _under(_datasets(groups[0]) if groups else {}, ("observations",)).items():
        first = np.asarray(dataset[0])
        if first.dtype == np.uint8 and first.ndim == 1 and first[:3].tobytes() == _JPEG:
            jpegs.add(place)
            first = _decode_jpegs([first])[0]
        shapes[place] = first.shape

    def read(trajectory: int, name: str) -> np.ndarray:
        return rewards[trajectory] if name == "rewards" else values(trajectory, name, len(rewards[trajectory]))

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        encoded = values(trajectory, "/".join(("observations", *place)), len(rewards[trajectory]) + 1)
        return _decode_jpegs(encoded) if place in jpegs else encoded

    return Recording(
        source=str(path),
        lengths=np.array([len(x) for x in rewards], dtype=np.int64),
        shapes=shapes,
        metadata=_minari_metadata(path),
        signals=set(groups[0]) if groups else set(),
        read=read,
        read_observations=read_observations,
    )


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


def _chain(source: str, parts: Sequence[Recording]) -> Recording:
    """The trajectories of several recordings, one after another."""
    for part in parts[1:]:
        if part.shapes != parts[0].shapes:
            raise ValueError(f"{part.source} has observations {part.shapes}, {parts[0].source} has {parts[0].shapes}")
    places = [(part, k) for part in parts for k in range(len(part.lengths))]

    def read(trajectory: int, name: str) -> np.ndarray:
        part, k = places[trajectory]
        return part.read(k, name)

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        part, k = places[trajectory]
        return part.read_observations(k, place)

    return Recording(
        source=source,
        lengths=np.concatenate([part.lengths for part in parts]),
        shapes=parts[0].shapes,
        metadata=dict(parts[0].metadata),
        signals=set.intersection(*(set(part.signals) for part in parts)),
        read=read,
        read_observations=read_observations,
        lacks_final=any(part.lacks_final for part in parts),
    )
