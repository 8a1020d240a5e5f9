"""Write recorded episodes as `.npz` or as a Minari dataset; `Demonstrations.load` reads both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from understudy.core.extras import require
from understudy.core.files import beside
from understudy.core.spaces import Key
from understudy.data.demonstrations.flat import FORMAT_VERSION
from understudy.data.demonstrations.read import minari_root
from understudy.data.npz import save_npz
from understudy.envs.observations import DEFAULT_GROUP


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of T steps."""

    observations: Mapping[Key, np.ndarray]  # group (and component) -> [T + 1, ...], the final one included
    actions: np.ndarray  # [T, *A], as the environment executed them
    rewards: np.ndarray  # [T]
    terminated: bool  # the task ended with the last step
    truncated: bool  # a time limit did

    @property
    def length(self) -> int:
        """T."""
        return len(self.rewards)

    @property
    def score(self) -> float:
        """Undiscounted return."""
        return float(self.rewards.sum(dtype=np.float64))

    def flaw(self) -> str:
        """Where a number is NaN or infinite, which no reader takes; empty if nowhere."""
        arrays = {"/".join(("observations", *key)): x for key, x in self.observations.items()}
        for name, array in (arrays | {"actions": self.actions, "rewards": self.rewards}).items():
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
            if len(bad):
                return f"step {bad[0]}: {name} is {array[bad[0]].tolist()}"
        return ""

    def flags(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminations and truncations, `[T]` bool each."""
        flags = np.zeros((2, self.length), dtype=bool)
        flags[:, -1] = self.terminated, self.truncated
        return flags[0], flags[1]


def write_npz(path: Path, episodes: Sequence[Episode], metadata: Mapping[str, Any]) -> None:
    """Write `path` uncompressed, so that reading can map it; an existing file is replaced once the new one is whole."""
    arrays: dict[str, Any] = {}
    for key in episodes[0].observations:
        name = "/".join(("observations", *key))
        arrays[name] = np.concatenate([episode.observations[key] for episode in episodes])
    arrays["actions"] = np.concatenate([episode.actions for episode in episodes])
    arrays["rewards"] = np.concatenate([episode.rewards for episode in episodes])
    terminations, truncations = zip(*(episode.flags() for episode in episodes))
    arrays["terminations"], arrays["truncations"] = np.concatenate(terminations), np.concatenate(truncations)
    arrays["lengths"] = np.array([episode.length for episode in episodes], dtype=np.int64)
    arrays["metadata"] = np.array(json.dumps({"format_version": FORMAT_VERSION, **metadata}))
    save_npz(path, arrays)


def check_minari_id(dataset_id: str) -> None:
    """Raise ImportError without Minari, ValueError for an id that Minari would refuse and for an existing one."""
    require("writing a Minari dataset (rather than a file: --output PATH.npz)", "minari", extra="demos")
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import validate_namespace

    try:
        namespace = parse_dataset_id(dataset_id)[0]
        if namespace is not None:
            validate_namespace(namespace)
    except (ValueError, TypeError) as error:  # TypeError: it has no version
        raise ValueError(
            f"{dataset_id!r} is not a Minari id ({error}): pass one such as hopper/expert-v0 (a version at the end, "
            "two letters or more before a slash), or a path that ends in .npz"
        ) from error
    folder = minari_root() / dataset_id
    if folder.exists():
        raise ValueError(f"the Minari dataset {dataset_id} exists in {minari_root()}: raise its version, or delete it")
    for parent in folder.parents:
        if parent == minari_root():
            break
        if (parent / "data").is_dir():
            raise ValueError(f"{parent} is a Minari dataset, and cannot hold another one: choose another id")


def write_minari(
    dataset_id: str,
    episodes: Sequence[Episode],
    metadata: Mapping[str, Any],
    observation_space: spaces.Dict,
    action_space: spaces.Space[Any],
) -> Path:
    """Write a local Minari dataset and return its folder, which appears once it is whole. Images stay lossless.

    A lone group "policy" becomes the plain observation of the dataset, several groups a Dict. Every block of the file
    has a checksum. Raises as `check_minari_id` does, and OSError.
    """
    check_minari_id(dataset_id)
    import minari
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.serialization import serialize_space

    lone = list(observation_space.spaces) == [DEFAULT_GROUP]
    image = _hdf5_image(episodes, lone)
    described = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "algorithm_name": "understudy",
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": serialize_space(observation_space[DEFAULT_GROUP] if lone else observation_space),
        "action_space": serialize_space(action_space),
        "total_episodes": len(episodes),
        "total_steps": sum(episode.length for episode in episodes),
        "dataset_size": round(len(image) / 1e6, 1),
    }
    folder = minari_root() / dataset_id
    folder.parent.mkdir(parents=True, exist_ok=True)
    with beside(folder) as unfinished:
        data = unfinished / folder.name / "data"
        data.mkdir(parents=True)
        for name, contents in (
            ("main_data.hdf5", image),
            ("metadata.json", json.dumps({**described, **_env_spec(metadata), **metadata}).encode()),
        ):
            with (data / name).open("wb") as file:
                file.write(contents)
                os.fsync(file.fileno())
        namespace = dataset_id.rpartition("/")[0]
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        os.rename(data.parent, folder)
    return folder


def _hdf5_image(episodes: Sequence[Episode], lone: bool) -> bytes:
    """The bytes of Minari's `main_data.hdf5`, made in memory: HDF5 does not recover from a disk that is full."""
    import h5py

    with h5py.File("image", "w", driver="core", backing_store=False, libver="v110", track_order=True) as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(f"episode_{number}", track_order=True)
            group.attrs.update({"id": number, "total_steps": episode.length})
            terminations, truncations = episode.flags()
            arrays = {"actions": episode.actions, "rewards": episode.rewards}
            arrays |= {"terminations": terminations, "truncations": truncations}
            for key, x in episode.observations.items():
                arrays["/".join(("observations", *(key[1:] if lone else key)))] = x
            for name, array in arrays.items():
                # as Minari makes them, which may append, and with checksums
                group.create_dataset(name, data=array, chunks=True, maxshape=(None, *array.shape[1:]), fletcher32=True)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _env_spec(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata for `MinariDataset.recover_environment`; empty for environments that Gymnasium does not know."""
    try:
        return {"env_spec": gym.spec(str(metadata["env"])).to_json()}
    except (gym.error.Error, KeyError, ModuleNotFoundError):
        return {}
