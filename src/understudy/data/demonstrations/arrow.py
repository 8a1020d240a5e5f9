"""Folders of Arrow and Parquet files, read by pyarrow: those of `imitation` (Hugging Face datasets), and Minari's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.borders import check_unpacked
from understudy.core.extras import require
from understudy.data.demonstrations.grouped import minari_metadata
from understudy.data.demonstrations.images import decode, image_size
from understudy.data.demonstrations.recording import SIGNALS, Place, Recording
from understudy.data.npz import AGAIN


def require_arrow() -> None:
    """Raise ImportError without pyarrow."""
    require("reading Arrow and Parquet demonstrations", "pyarrow", extra="arrow")


def dense(array: Any, what: str) -> np.ndarray:
    """Numbers, or lists of numbers that are equally long, as one array; without a copy where Arrow allows.

    Raises ValueError, which begins with `what`, for gaps, rows of several lengths, and anything but numbers.
    """
    import pyarrow as pa

    shape = [len(array)]
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        inner = array.flatten()
        sizes = {array.type.list_size} if pa.types.is_fixed_size_list(array.type) else set(_lengths(array))
        if array.null_count or len(sizes) > 1:
            raise ValueError(f"{what}: rows are missing or differ in size: {AGAIN}")
        shape.append(sizes.pop() if sizes else 0)
        array = inner
    known = pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)
    if not known or array.null_count:
        raise ValueError(f"{what} holds {'gaps' if known else f'{array.type} values'}: store numbers")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)


def _lengths(lists: Any) -> list[int]:
    import pyarrow.compute as pc

    found: list[int] = pc.unique(pc.list_value_length(lists)).to_pylist()
    return found


# ---------------------------------------------------------------------------------------------------------- imitation


@contextmanager
def open_imitation(folder: Path) -> Iterator[Recording]:
    """What `imitation.data.serialize.save` writes: a row of `data-*.arrow` for each trajectory; `infos` stay unread."""
    require_arrow()
    import pyarrow as pa

    files = sorted(folder.glob("data-*.arrow"))
    if not files:
        raise ValueError(f"{folder} has a state.json, but no data-*.arrow beside it; {AGAIN}")
    names = ("obs", "acts", "rews", "terminal")
    tables = []
    for file in files:
        with pa.ipc.open_stream(pa.memory_map(str(file))) as reader:
            table = reader.read_all()
        table.validate(full=True)
        check_unpacked(file, file.stat().st_size, table.nbytes)
        tables.append(table.select([name for name in names if name in table.column_names]))
    whole = pa.concat_tables(tables)
    if lacking := [name for name in ("obs", "acts", "terminal") if name not in whole.column_names]:
        raise ValueError(f"{folder} has no {lacking[0]}: it holds {', '.join(tables[0].column_names) or 'nothing'}")
    for name in ("obs", "acts", "rews"):
        if name in whole.column_names and not pa.types.is_list(whole[name].type):
            raise ValueError(f"{folder}: {name} is of type {whole[name].type}, expected a list for each trajectory")
    terminal = dense(whole["terminal"].combine_chunks(), f"{folder}: terminal").astype(bool)

    def values(trajectory: int, name: str) -> np.ndarray:
        return dense(whole[name][trajectory].values, f"{folder}: trajectory {trajectory}: {name}")

    lengths = np.array([len(row) if row.is_valid else 0 for row in whole["acts"]], dtype=np.int64)

    def read(trajectory: int, name: str) -> np.ndarray:
        if name != "terminations":
            return values(trajectory, {"actions": "acts", "rewards": "rews"}[name])
        flags = np.zeros(int(lengths[trajectory]), dtype=bool)
        flags[-1] = terminal[trajectory]
        return flags

    yield Recording(
        source=str(folder),
        kind="imitation's trajectories",
        lengths=lengths,
        shapes={(): values(0, "obs").shape[1:]} if len(lengths) else {},
        metadata={},
        signals={"actions", "terminations"} | ({"rewards"} if "rews" in whole.column_names else set()),
        read=read,
        read_observations=lambda trajectory, _: values(trajectory, "obs"),
    )


# ------------------------------------------------------------------------------------------------------------- Minari


@contextmanager
def open_minari(folder: Path) -> Iterator[Recording]:
    """Minari's Arrow or Parquet storage: a folder for each episode, its last row padded but for the observation."""
    require_arrow()
    metadata = minari_metadata(folder / "metadata.json")
    kind = metadata.get("data_format")
    count, texts = metadata.get("total_episodes"), (metadata.get("observation_space"), metadata.get("action_space"))
    spaces = [json.loads(text if isinstance(text, str) else "null") for text in texts]
    episodes = [file.parent for file in folder.glob(f"*/part-0.{kind}")]
    if sorted(episode.name for episode in episodes) != sorted(map(str, range(len(episodes)))) or count != len(episodes):
        raise ValueError(f"{folder} should hold {count} episodes, numbered from 0 on; it has {len(episodes)}; {AGAIN}")
    files = [folder / str(k) / f"part-0.{kind}" for k in range(len(episodes))]
    shapes = _shapes(spaces[0], folder)
    actions, opened = _shapes(spaces[1], folder).get(()), dict[int, Any]()
    if actions is None:
        raise ValueError(f"{folder} has actions of a {_type(spaces[1], folder)} space: store one array of numbers")

    def column(trajectory: int, name: str, place: Place = ()) -> Any:
        if trajectory not in opened:
            opened.clear()  # the last one stays open
            opened[trajectory] = _open_table(files[trajectory], kind == "parquet")
        found = opened[trajectory].column(name).combine_chunks()
        for part in place:
            found = found.field(part)
        return found

    def read(trajectory: int, name: str) -> np.ndarray:
        values = dense(column(trajectory, name)[:-1], f"{files[trajectory]}: {name}")
        return values.reshape(len(values), *actions) if name == "actions" else values

    def read_observations(trajectory: int, place: Place) -> np.ndarray:
        found = column(trajectory, "observations", place)
        if place in packed:
            return np.stack([decode(row.as_py(), packed[place]) for row in found])
        values = dense(found, f"{files[trajectory]}: observations/{'/'.join(place)}")
        return values.reshape(len(values), *shapes[place])

    packed = {}
    for place in shapes if files else ():
        first = column(0, "observations", place)
        if str(first.type) == "binary" and (size := image_size(first[0].as_py())):
            packed[place] = size
    yield Recording(
        source=str(folder),
        kind=f"Minari {str(kind).capitalize()}",
        lengths=np.array([len(column(k, "rewards")) - 1 for k in range(len(files))], dtype=np.int64),
        shapes=shapes | packed,
        metadata=metadata,
        signals=set(SIGNALS),
        read=read,
        read_observations=read_observations,
    )


def _open_table(file: Path, parquet: bool) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if parquet:
        claimed = pq.read_metadata(file)
        values = sum(
            claimed.row_group(g).column(c).num_values
            for g in range(claimed.num_row_groups)
            for c in range(claimed.num_columns)
        )
        check_unpacked(file, file.stat().st_size, 8 * values)
        table = pq.read_table(file)
    else:
        with pa.ipc.open_file(pa.memory_map(str(file))) as reader:
            table = reader.read_all()
        check_unpacked(file, file.stat().st_size, table.nbytes)
    table.validate(full=True)
    if lacking := [name for name in ("observations", *SIGNALS) if name not in table.column_names]:
        raise ValueError(f"{file} has no {lacking[0]}; {AGAIN}")
    return table


def _type(space: Any, folder: Path) -> str:
    kind = space.get("type") if isinstance(space, Mapping) else None
    if not isinstance(kind, str):
        raise ValueError(f"{folder}: metadata.json does not describe its spaces; {AGAIN}")
    return kind


def _shapes(space: Any, folder: Path) -> dict[Place, tuple[int, ...]]:
    """Shapes of the leaves of a space as Minari writes it, by their place."""
    if _type(space, folder) in ("Dict", "Tuple"):
        inner = space["subspaces"]
        parts = inner if isinstance(inner, Mapping) else {str(i): part for i, part in enumerate(inner)}
        return {(name, *k): shape for name, part in parts.items() for k, shape in _shapes(part, folder).items()}
    sizes = {"Box": space.get("shape"), "Discrete": (), "MultiBinary": space.get("n")}
    sizes["MultiDiscrete"] = np.shape(space.get("nvec", ()))
    found = sizes.get(space["type"])  # text has none, and is not read
    return {} if found is None else {(): tuple(int(size) for size in np.atleast_1d(np.asarray(found, np.int64)))}
