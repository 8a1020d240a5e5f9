"""LeRobot's datasets (v2 and v3): Parquet files of all frames, JSON beside them, cameras as images or as mp4."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from understudy.core.borders import check_unpacked, parse_json, parsing
from understudy.core.check import In, fit
from understudy.core.extras import require
from understudy.data.demonstrations.arrow import dense, require_arrow
from understudy.data.demonstrations.flat import flat
from understudy.data.demonstrations.images import decode, image_size
from understudy.data.demonstrations.recording import Recording, first_rows
from understudy.data.npz import AGAIN

_SCALARS = ("episode_index", "frame_index", "next.reward", "next.done", "next.success")


@contextmanager
def open_lerobot(folder: Path) -> Iterator[Recording]:
    """The folder that holds `meta`, `data` and perhaps `videos`; nothing outside it is read, whatever `meta` says.

    `observation.state` is called `state` here, `observation.images.top` `images/top`; frames are uint8, height x width
    x channels. Raises ImportError without pyarrow, and without imageio-ffmpeg when a video is read.
    """
    require_arrow()
    info = _info(folder)
    table = _Table(folder)
    scalars = table.scalars()
    lengths, holes = _lengths(folder, scalars, info)
    columns: dict[str, Any] = {"lengths": lengths, "actions": _Column(table, "action", info["features"])}
    for ours, theirs in (("rewards", "next.reward"), ("dones", "next.done")):
        if theirs in scalars:
            columns[ours] = scalars[theirs]
    for key, feature in info["features"].items():
        if key.split(".")[0] == "observation" and feature["dtype"] in ("video", "image", *_NUMBERS):
            columns["/".join(("observations", *key.split(".")[1:]))] = (
                _Video(folder, key, info, lengths)
                if feature["dtype"] == "video"
                else _Column(table, key, info["features"])
            )
    recording = flat(str(folder), columns, columns.__getitem__, {"fps": info["fps"], "robot": info.get("robot_type")})
    remarks = list(recording.remarks)
    if "dones" in columns:
        remarks.append("does not tell ends of the task from time limits (next.done): all count as ends of the task")
    if holes:
        remarks.append(f"lacks frames in {len(holes)} episodes (the first: episode {holes[0]}), which jump there")
    success = None
    if "next.success" in scalars:
        success = scalars["next.success"][np.cumsum(lengths) - 1].astype(bool).reshape(-1)
    yield replace(
        recording,
        kind=f"LeRobot {info['codebase_version']}",
        remarks=remarks,
        success=success,
        subsets=_splits(info, len(lengths)),
    )


_NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")


def _info(folder: Path) -> dict[str, Any]:
    """`meta/info.json`, as far as it is used."""
    file = folder / "meta" / "info.json"
    with parsing(f"{folder}: meta/info.json", AGAIN):
        info = parse_json(file.read_bytes())
        version, features = info["codebase_version"], info["features"]
        for key, feature in features.items():
            feature["shape"] = tuple(fit(int, size, f"{key}: shape") for size in feature["shape"])
            if not isinstance(feature["dtype"], str) or "/" in key:
                raise ValueError(f"the feature {key!r} is not one of LeRobot's")
        info["fps"] = fit(float, info["fps"], "fps")
    if not str(version).startswith(("v2.", "v3.")):
        raise ValueError(f"{folder} is of LeRobot's version {version}: v2 and v3 are read, convert it with lerobot")
    return dict(info)


def _splits(info: dict[str, Any], episodes: int) -> dict[str, np.ndarray]:
    """Trajectories by split: `{"train": "0:45", "valid": "45:50"}`."""
    found = {}
    for name, told in (info.get("splits") or {}).items():
        first, _, last = str(told).partition(":")
        if first.isdecimal() and last.isdecimal():
            found[name] = np.arange(min(int(first), episodes), min(int(last), episodes))
    return found


class _Table:
    """The rows of all Parquet files, in the order of their names; one column at a time is in memory."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.dataset as ds
        import pyarrow.parquet as pq

        self.folder, self.files = folder, sorted((folder / "data").glob("*/*.parquet"))
        if not self.files:
            raise ValueError(f"{folder} has no data/*/*.parquet: download the dataset as a whole")
        self.footers = [pq.read_metadata(file) for file in self.files]
        self.size = sum(file.stat().st_size for file in self.files)
        self.dataset = ds.dataset([str(file) for file in self.files], format="parquet")
        self.types = {field.name: field.type for field in self.dataset.schema}
        self.rows = sum(footer.num_rows for footer in self.footers)
        self.held: tuple[str, Any, list[Any]] = ("", None, [])

    def pieces(self, name: str, first: int, last: int) -> list[Any]:
        """Rows of a column: arrays of numbers that lie where Arrow read them, Arrow's own for packed images."""
        if self.held[0] != name:
            self.held = ("", None, [])  # the one before leaves the memory first
            self.held = (name, *self._read(name))
        _, starts, chunks = self.held
        found, k = [], int(np.searchsorted(starts, first, side="right")) - 1
        while k < len(chunks) and starts[k] < last:
            found.append(chunks[k][max(first - starts[k], 0) : last - starts[k]])
            k += 1
        return found

    def scalars(self) -> dict[str, np.ndarray]:
        """The columns of one number in each row, read at once, as each pass over the files takes its time."""
        for name in (*_SCALARS[:2], "action"):
            if name not in self.types:
                raise ValueError(f"{self.folder} has no {name}: it holds {', '.join(self.types)}; {AGAIN}")
        table = self._table([name for name in _SCALARS if name in self.types])
        return {
            name: np.concatenate([dense(chunk, f"{self.folder}: {name}") for chunk in table.column(name).chunks])
            for name in table.column_names
        }

    def _read(self, name: str) -> tuple[np.ndarray, list[Any]]:
        """First rows of a column's chunks, and the chunks."""
        import pyarrow as pa

        chunks = self._table([name]).column(0).chunks
        if not pa.types.is_struct(self.types[name]):
            chunks = [dense(chunk, f"{self.folder}: {name}") for chunk in chunks]
            if len({chunk.shape[1:] for chunk in chunks}) > 1:
                raise ValueError(f"{self.folder}: {name} differs in shape between its files; {AGAIN}")
        return first_rows(np.array([len(chunk) for chunk in chunks], dtype=np.int64)), chunks

    def _table(self, names: list[str]) -> Any:
        """These columns as Arrow has them. Raises ValueError for more values than the files can mean."""
        groups = [footer.row_group(g) for footer in self.footers for g in range(footer.num_row_groups)]
        paths = [groups[0].column(c).path_in_schema for c in range(groups[0].num_columns)] if groups else []
        places = [
            c for c, path in enumerate(paths) if path.startswith(tuple(f"{name}." for name in names)) or path in names
        ]
        values = sum(group.column(c).num_values for group in groups for c in places)
        width = max(_width(self.types[name]) for name in names)
        check_unpacked(self.folder, self.size, 8 * max(values, self.rows * width))
        return self.dataset.to_table(columns=names)


def _width(kind: Any) -> int:
    """How many numbers a row claims to have, where its type says so."""
    import pyarrow as pa

    return int(kind.list_size) * _width(kind.value_type) if pa.types.is_fixed_size_list(kind) else 1


def _lengths(folder: Path, scalars: dict[str, np.ndarray], info: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """Steps of each episode, and the episodes that lack frames."""
    episode, frame = scalars["episode_index"], scalars["frame_index"]
    first = np.flatnonzero(np.diff(episode, prepend=episode[:1] - 1) != 0)
    lengths = np.diff(np.append(first, len(episode)))
    if (told := info.get("total_episodes", len(first))) != len(first) or (episode[first] != np.arange(told)).any():
        raise ValueError(
            f"{folder} should hold {told} episodes one after another, its files hold {len(np.unique(episode))} in "
            f"{len(first)} pieces: download all of it"
        )
    holes = episode[1:][(np.diff(frame) != 1) & (np.diff(episode) == 0)]
    return lengths.astype(np.int64), [int(k) for k in np.unique(holes)]


class _Column:
    """A column as the rows of an array; only the rows that are asked for are put together."""

    def __init__(self, table: _Table, name: str, features: dict[str, Any]) -> None:
        import pyarrow as pa

        self.table, self.name = table, name
        kind = table.types.get(name)
        if kind is None:
            raise ValueError(f"{table.folder} has no {name}, which its meta/info.json tells of; {AGAIN}")
        self.packed, inner = pa.types.is_struct(kind), kind
        while pa.types.is_nested(inner) and not self.packed:
            inner = inner.value_type
        self.dtype = np.dtype(np.uint8 if self.packed else inner.to_pandas_dtype())
        self.shape: tuple[int, ...] = (table.rows, *(features[name]["shape"] if pa.types.is_nested(kind) else ()))
        if self.packed:
            self.shape = (table.rows, *image_size(self._images(0, 1)[0]))

    def __getitem__(self, where: slice) -> np.ndarray:
        first, last, _ = where.indices(self.shape[0])
        if self.packed:
            return np.stack([decode(packed, self.shape[1:]) for packed in self._images(first, last)])
        rows = np.concatenate(self.table.pieces(self.name, first, last) or [np.empty((0, *self.shape[1:]), self.dtype)])
        if math.prod(rows.shape[1:]) != math.prod(self.shape[1:]):
            raise ValueError(
                f"{self.table.folder}: {self.name} has shape {rows.shape[1:]}, meta/info.json says {self.shape[1:]}"
            )
        return rows.reshape(len(rows), *self.shape[1:])

    def _images(self, first: int, last: int) -> list[bytes]:
        pieces = self.table.pieces(self.name, first, last)
        packed = [row for piece in pieces for row in piece.field("bytes").to_pylist()]
        if None in packed:
            raise ValueError(f"{self.table.folder}: {self.name} has frames outside its Parquet files; {AGAIN}")
        return packed


class _Video:
    """A camera's frames, decoded episode by episode: one mp4 for each (v2), or a stretch of a longer one (v3)."""

    def __init__(self, folder: Path, key: str, info: dict[str, Any], lengths: np.ndarray) -> None:
        self.folder, self.key, self.fps, self.starts = folder, key, info["fps"], first_rows(lengths)
        feature = info["features"][key]
        channels_first = str((feature.get("names") or [""])[0]).startswith("channel")
        height, width = (*feature["shape"], 0, 0, 0)[channels_first : channels_first + 2]
        self.shape, self.dtype = (int(lengths.sum()), height, width, 3), np.dtype(np.uint8)
        self.long, self.places = info["codebase_version"].startswith("v3"), dict[int, tuple[int, int, float]]()
        self.chunk = fit(Annotated[int, In(1)], info.get("chunks_size", 1000), f"{folder}: chunks_size")

    def __getitem__(self, where: slice) -> np.ndarray:
        first, last, _ = where.indices(self.shape[0])
        episode = int(np.searchsorted(self.starts, first, side="right")) - 1
        file, start = self._place(episode)
        require("reading LeRobot's videos", "imageio_ffmpeg", extra="video")
        import imageio_ffmpeg

        if not file.is_file():
            raise ValueError(f"{self.folder} has no {file.relative_to(self.folder)}: download its videos, too")
        start += (first - int(self.starts[episode]) - 0.5) / self.fps  # half a frame earlier, against rounding
        stretch = ["-ss", f"{start:.6f}"] if start > 0 else []
        count = ["-frames:v", str(last - first), "-fps_mode", "passthrough"]
        frames = imageio_ffmpeg.read_frames(str(file), input_params=stretch, output_params=count)
        size = next(frames)["size"]
        if (size[1], size[0]) != self.shape[1:3]:
            raise ValueError(f"{file} has frames of {size[1]} x {size[0]}, meta/info.json says {self.shape[1:3]}")
        found = [np.frombuffer(frame, np.uint8).reshape(self.shape[1:]) for frame in frames]
        if len(found) != last - first:
            raise ValueError(f"{file} has {len(found)} frames for the {last - first} of episode {episode}; {AGAIN}")
        return np.stack(found)

    def _place(self, episode: int) -> tuple[Path, float]:
        """The file of an episode, and the second of it where the episode begins."""
        if not self.long:
            name = f"chunk-{episode // self.chunk:03d}/{self.key}/episode_{episode:06d}.mp4"
            return self.folder / "videos" / name, 0.0
        if not self.places:
            import pyarrow.dataset as ds

            names = [
                "episode_index",
                *(f"videos/{self.key}/{x}" for x in ("chunk_index", "file_index", "from_timestamp")),
            ]
            files = [str(file) for file in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))]
            found = ds.dataset(files, format="parquet").to_table(columns=names)
            rows = zip(*(column.to_pylist() for column in found.columns))
            self.places = {int(k): (int(chunk), int(file), float(second)) for k, chunk, file, second in rows}
        if episode not in self.places:
            raise ValueError(f"{self.folder}: meta/episodes does not tell where episode {episode} of {self.key} lies")
        chunk, file, second = self.places[episode]
        return self.folder / "videos" / self.key / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4", second
