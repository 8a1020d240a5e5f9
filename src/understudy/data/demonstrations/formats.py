"""The formats of demonstrations, and what is said of a file that is in none of them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class Format(NamedTuple):
    """One format: how it is recognised, and names that only its files have."""

    looks: str
    marks: tuple[str, ...]


FORMATS = {
    "understudy .npz": Format(
        "what `understudy record` writes: observations/..., actions, lengths, ...", ("checksums",)
    ),
    ".npz or flat HDF5": Format(
        "one long array for each of observations, actions, rewards, terminals or dones (D4RL, imitation, SB2)",
        ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts", "obs", "acts", "rews"),
    ),
    "Minari HDF5": Format("main_data.hdf5: groups episode_0, ... of observations, actions, rewards", ("episode_",)),
    "Minari Arrow": Format(
        "folder data with 0/part-0.arrow (or .parquet), ... and metadata.json", ("part-", "metadata.json")
    ),
    "robomimic, Isaac Lab HDF5": Format("groups data/demo_0, ... of actions and obs; mask", ("data", "demo_", "mask")),
    "ManiSkill .h5": Format("groups traj_0, ... of actions and obs; a .json of the same name", ("traj_", "env_states")),
    "LeRobot v2, v3": Format(
        "folder with meta/info.json and data/chunk-000/*.parquet", ("meta", "videos", "info.json", "chunk-")
    ),
    "imitation's trajectories": Format(
        "folder with state.json, dataset_info.json and data-*.arrow", ("state.json", "dataset_info.json", "data-")
    ),
    "Tianshou HDF5": Format("a replay buffer's save_hdf5: _meta, _extend_offset", ("_meta", "_extend_offset")),
}
"""Names of formats, for `understudy list demos`."""


def unknown(path: str | Path, found: Collection[str]) -> ValueError:
    """The error for a file or folder of these names: what was found, which formats are near, how to see all."""
    has = {re.sub(r"\d.*", "", part.lower()) for name in found for part in name.split("/")}
    score = {name: len(has & set(known.marks)) / len(known.marks) for name, known in FORMATS.items()}
    near = [name for name in sorted(score, key=score.__getitem__, reverse=True) if score[name] > 0][:2]
    shown = ", ".join([*sorted(found)[:12], *(["..."] if len(found) > 12 else [])]) or "nothing"
    hint = "; ".join(f"{name} would have {FORMATS[name].looks}" for name in near)
    return ValueError(
        f"{path} is not in a format that is read: it holds {shown}. {hint and f'Near: {hint}. '}"
        "`understudy list demos` shows all of them"
    )
