"""Write recorded episodes as `.npz` or as a Minari dataset; `Demonstrations.load` reads both."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from understudy.core.extras import require
from understudy.core.files import replacing
from understudy.core.spaces import Key
from understudy.data.demonstrations.read import minari_root
from understudy.envs.observations import DEFAULT_GROUP

FORMAT_VERSION = 1
"""Version of the `.npz` layout; goes up by one whenever a reader of the old layout would misunderstand the new one."""

_ID = re.compile(r"(?:[-_\w]+/)*[-_\w]+?-v\d+")


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, unfinished.open("wb") as file:  # numpy would add .npz to a path
        np.savez(file, **arrays)


def check_minari_id(dataset_id: str) -> None:
    """Raise ImportError without Minari, ValueError for a malformed or existing id."""
    require("writing a Minari dataset (rather than a file: --output PATH.npz)", "minari", extra="demos")
    if not _ID.fullmatch(dataset_id):
        raise ValueError(
            f"{dataset_id!r} is not a Minari id: pass one such as hopper/expert-v0 (a version at the end), or a path "
            "that ends in .npz"
        )
    if (minari_root() / dataset_id).exists():
        raise ValueError(f"the Minari dataset {dataset_id} exists in {minari_root()}: raise its version, or delete it")


def write_minari(
    dataset_id: str,
    episodes: Sequence[Episode],
    metadata: Mapping[str, Any],
    observation_space: spaces.Dict,
    action_space: spaces.Space[Any],
) -> Path:
    """Write a local Minari dataset and return its folder. Images stay lossless.

    A lone group "policy" becomes the plain observation of the dataset, several groups a Dict. Raises as
    `check_minari_id` does.
    """
    check_minari_id(dataset_id)
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    lone = list(observation_space.spaces) == [DEFAULT_GROUP]
    buffers = []
    for number, episode in enumerate(episodes):
        terminations, truncations = episode.flags()
        observations = _tree({key[1:] if lone else key: x for key, x in episode.observations.items()})
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=observations,
                actions=episode.actions,
                rewards=episode.rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari warns about each piece of optional metadata that is missing
        dataset = create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=observation_space[DEFAULT_GROUP] if lone else observation_space,
            action_space=action_space,
            algorithm_name="understudy",
            data_format="hdf5",
            jpeg_encoding=False,
        )
        dataset.storage.update_metadata({**_env_spec(metadata), **metadata})
    return minari_root() / dataset_id


def _env_spec(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata for `MinariDataset.recover_environment`; empty for environments that Gymnasium does not know."""
    try:
        return {"env_spec": gym.spec(str(metadata["env"])).to_json()}
    except (gym.error.Error, KeyError, ModuleNotFoundError):
        return {}


def _tree(leaves: Mapping[Key, np.ndarray]) -> Any:
    """Nested dicts from keys; the plain array where the only key is `()`."""
    if () in leaves:
        return leaves[()]
    tree: dict[str, Any] = {}
    for key, array in leaves.items():
        node = tree
        for name in key[:-1]:
            node = node.setdefault(name, {})
        node[key[-1]] = array
    return tree
