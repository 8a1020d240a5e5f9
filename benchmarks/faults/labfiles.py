"""Damaged demonstrations of labs' programs: robomimic, Isaac Lab, ManiSkill, LeRobot, imitation, Minari's Arrow.

    python -m benchmarks.faults.labfiles --seed 0 --count 2000

As `datafiles`: every mutant has to give the content of the sound file, or one error that names it; what h5py or
pyarrow alone find in it counts as what the file says. Prints the findings and a summary, writes results/labfiles.md.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import mutate
from benchmarks.faults.datafiles import (
    LENGTHS,
    episodes,
    hdf5_mutation,
    read_demonstrations,
    says,
)
from benchmarks.faults.files import campaign
from benchmarks.faults.mutate import Case

STEPS = sum(LENGTHS)


def robomimic(recorder: bool) -> bytes:
    """robomimic's file, or what Isaac Lab's recorder writes."""
    import h5py

    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        told = json.dumps({"env_name": "Isaac-Line-v0" if recorder else "Line-v0", "type": 2})
        file.create_group("data").attrs.update({"total": STEPS, "env_args": told})
        for k, episode in enumerate(episodes()):
            demo, seen = file["data"].create_group(f"demo_{k}"), episode.observations["policy",]
            demo.attrs.update({"num_samples": episode.length, **({"success": True} if recorder else {})})
            arrays = {"actions": episode.actions, "obs/policy": seen[:-1]}
            if not recorder:
                arrays |= {"next_obs/policy": seen[1:], "rewards": episode.rewards}
                arrays["dones"] = (np.arange(episode.length) == episode.length - 1).astype(int)
            for name, values in arrays.items():
                demo.create_dataset(name, data=values, compression="gzip" if recorder else None)
        if not recorder:
            file["mask/train"] = np.array(["demo_0", "demo_2"], dtype="S")
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def maniskill() -> tuple[bytes, bytes]:
    """A ManiSkill `.h5` and its `.json`."""
    import h5py

    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        for k, episode in enumerate(episodes()):
            terminated, truncated = episode.flags()
            arrays = {
                "obs": episode.observations["policy",], "actions": episode.actions, "rewards": episode.rewards,
                "terminated": terminated, "truncated": truncated, "success": terminated,
            }  # fmt: skip
            for name, values in arrays.items():
                file[f"traj_{k}/{name}"] = values
        file.flush()
        image: bytes = file.id.get_file_image()
    told = [{"episode_id": k, "elapsed_steps": n, "control_mode": "pd_joint_pos"} for k, n in enumerate(LENGTHS)]
    return image, json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": told}).encode()


def groups_say(data: bytes, content: Any) -> bool:
    """Whether h5py alone finds what was loaded."""
    import h5py

    names = {"observations": ("obs/policy", "obs"), "actions": ("actions",), "rewards": ("rewards",)}
    with h5py.File(io.BytesIO(data), "r") as file:
        parent = file.get("data", file)
        groups = [parent[name] for name in sorted(n for n in parent if n[:5] in ("demo_", "traj_"))]
        arrays: dict[str, Any] = {}
        for ours, theirs in names.items():
            name = next((n for n in theirs if all(isinstance(g.get(n), h5py.Dataset) for g in groups)), None)
            if name is not None:
                arrays[ours] = np.concatenate([group[name][()] for group in groups])
        return says(arrays, content)


def groups_mutation(data: bytes, rng: random.Random) -> bytes | None:
    """As `datafiles.hdf5_mutation`, whose numbers text (the mask) cannot become."""
    try:
        return hdf5_mutation(data, rng)
    except (ValueError, TypeError):
        return None


def frames() -> Any:
    """LeRobot's columns."""
    import pyarrow as pa

    def rows(values: np.ndarray) -> Any:
        flat = pa.array(values.reshape(-1))
        return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

    recorded = episodes()
    columns = {
        "observation.policy": np.concatenate([e.observations["policy",][:-1] for e in recorded]),
        "action": np.concatenate([e.actions for e in recorded]),
        "next.reward": np.concatenate([e.rewards for e in recorded]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(n) for n in LENGTHS]),
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
    }
    return pa.table({name: rows(values) for name, values in columns.items()})


def trajectories() -> Any:
    """The columns of `imitation`."""
    import pyarrow as pa

    recorded = episodes()
    vectors = pa.list_(pa.list_(pa.float32()))
    return pa.table(
        {
            "obs": pa.array([e.observations["policy",].tolist() for e in recorded], vectors),
            "acts": pa.array([e.actions.tolist() for e in recorded], vectors),
            "rews": pa.array([e.rewards.tolist() for e in recorded]),
            "terminal": pa.array([e.terminated for e in recorded]),
        }
    )


def parquet(table: Any) -> bytes:
    """A table as a Parquet file."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def stream(table: Any) -> bytes:
    """A table as an Arrow stream."""
    import pyarrow as pa

    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


INFO = {
    "codebase_version": "v3.0", "fps": 10, "robot_type": "arm", "total_episodes": len(LENGTHS),
    "splits": {"train": "0:3"},
    "features": {
        "observation.policy": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    },
}  # fmt: skip


def table_mutation(read: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> mutate.Mutation:
    """Rows or columns that are missing, doubled, empty, of another type, or in another place."""

    def mutation(data: bytes, rng: random.Random) -> bytes:
        import pyarrow as pa

        table = read(data)
        k, what = (
            rng.randrange(table.num_columns),
            rng.choice(("drop", "rename", "null", "cut", "twice", "text", "swap")),
        )
        name, n = table.column_names[k], len(table)
        if what == "drop":
            table = table.remove_column(k)
        elif what == "rename":
            table = table.rename_columns([f"{x}_" if x == name else x for x in table.column_names])
        elif what == "cut":
            table = table[: rng.randrange(n)]
        elif what == "twice":
            table = pa.concat_tables([table, table])
        else:
            other = {"null": pa.nulls(n, table.schema.field(k).type), "text": pa.array(["x"] * n)}
            table = table.set_column(k, name, other.get(what, table.column(rng.randrange(table.num_columns))))
        return write(table)

    return mutation


def in_folder(layout: dict[str, bytes | None]) -> Callable[[Path], dict[str, Any]]:
    """Reads a file in the folder that its format needs: `layout` names the others, None is the place of the file."""

    def read(path: Path) -> dict[str, Any]:
        folder = path.with_name(f"{path.name}.folder")
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in layout.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                os.symlink(path, place)
            else:
                place.write_bytes(data)
        return read_demonstrations(folder)

    return read


def tables_say(read: Callable[[bytes], Any]) -> Callable[[bytes, Any], bool]:
    """Whether pyarrow alone finds what was loaded."""

    def said(data: bytes, content: Any) -> bool:
        table = read(data)
        names = {"observations": "observation.policy", "actions": "action", "rewards": "next.reward"}
        if "obs" in table.column_names:
            names = {"observations": "obs", "actions": "acts", "rewards": "rews"}
            table = {
                x: [row for rows in table[x].to_pylist() for row in rows]
                for x in names.values()
                if x in table.column_names
            }
            return says({ours: np.asarray(table[x]) for ours, x in names.items() if x in table}, content)
        return says(
            {ours: np.asarray(table[x].to_pylist()) for ours, x in names.items() if x in table.column_names}, content
        )

    return said


def cases(folder: Path) -> list[Case]:
    """One case for each format; those of pyarrow where it is installed."""
    (h5, told), packs = maniskill(), (groups_mutation,)

    def beside(name: str, data: bytes) -> Callable[[Path], None]:
        return lambda inner: (inner / name).write_bytes(data) and None

    def of_json(path: Path) -> dict[str, Any]:
        return read_demonstrations(path.with_name("d.h5"))

    errors = (ValueError,)
    found = [
        Case("robomimic.hdf5", robomimic(False), "d.hdf5", read_demonstrations, errors, packs, groups_say),
        Case("isaac-lab.hdf5", robomimic(True), "d.hdf5", read_demonstrations, errors, packs, groups_say),
        Case("maniskill.h5", h5, "d.h5", read_demonstrations, errors, packs, groups_say, beside("d.json", told)),
        Case("maniskill, json", told, "d.json", of_json, errors, (mutate.json_mutation,), prepare=beside("d.h5", h5)),
    ]
    if importlib.util.find_spec("pyarrow") is None:
        return found
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read_parquet(data: bytes) -> Any:
        return pq.read_table(pa.BufferReader(data))

    def read_stream(data: bytes) -> Any:
        return pa.ipc.open_stream(data).read_all()

    rows, info = parquet(frames()), json.dumps(INFO).encode()
    lerobot = {"meta/info.json": info, "data/chunk-000/file-000.parquet": None}
    described: dict[str, bytes | None] = {"meta/info.json": None, "data/chunk-000/file-000.parquet": rows}
    saved = {"state.json": b"{}", "dataset_info.json": b"{}", "data-00000-of-00001.arrow": None}
    tables, streams = (table_mutation(read_parquet, parquet),), (table_mutation(read_stream, stream),)
    return [
        *found,
        Case("lerobot.parquet", rows, "lerobot", in_folder(lerobot), errors, tables, tables_say(read_parquet)),
        Case("lerobot, info.json", info, "lerobot", in_folder(described), errors, (mutate.json_mutation,)),
        Case(
            "imitation.arrow", stream(trajectories()), "imitation", in_folder(saved), errors, streams,
            tables_say(read_stream),
        ),
    ]  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    return campaign("labfiles", cases, words, __doc__, 2000)


if __name__ == "__main__":
    sys.exit(main())
