"""Checkpoint files: written atomically, versioned, read without executing anything, explained when they do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from understudy.core.borders import parse_yaml, parsing
from understudy.core.check import In
from understudy.core.files import write_atomic
from understudy.runs.archive import archived, read_archive
from understudy.runs.codec import AnyNumber, decode
from understudy.types import CheckpointError
from understudy.version import __version__

FORMAT_VERSION = 1
"""Raised by one whenever a reader of the old layout would misunderstand the new one."""

BEST = "best.pt"
_STEP_FILE = re.compile(r"step_(\d+)\.pt")


class StoredEnv(TypedDict):
    """What a checkpoint's config says of the environment, whatever else older versions have in there."""

    id: str
    num_envs: Annotated[int, In(1)]


class StoredConfig(TypedDict):
    """What a checkpoint's config says, whatever else older versions have in there."""

    env: StoredEnv
    seed: int
    policy: dict[str, Any] | None


class Counters(TypedDict):
    """Where a training is."""

    iteration: Annotated[int, In(0)]
    env_steps: Annotated[int, In(0)]


class EpisodeWindow(TypedDict):
    """The last episodes."""

    returns: list[AnyNumber]
    lengths: list[AnyNumber]


class Streams(TypedDict):
    """Random streams (`core.randomness`)."""

    own: dict[str, Tensor]
    torch: Tensor
    cuda: list[Tensor]
    numpy: tuple[str, Tensor, int, int, float]
    python: tuple[int, list[int], float | None]


class RankState(TypedDict):
    """What differs from rank to rank in a training over several processes."""

    reward_scaler: dict[str, Tensor]
    episodes: dict[str, Tensor]
    parts: dict[str, dict[str, Any]]
    episode_window: EpisodeWindow
    rng: Streams
    env: NotRequired[dict[str, Tensor]]
    collector: NotRequired[dict[str, Tensor]]
    env_counters: NotRequired[dict[str, int]]


class TrainingState(RankState):
    """`PPO.state_dict`, of rank 0."""

    policy: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    coefficients: dict[str, Tensor]
    value_normalizer: dict[str, Tensor]
    counters: Counters
    lr_scheduler: NotRequired[dict[str, Any]]


class OfflineState(TypedDict):
    """`OfflineTraining.state_dict`."""

    epochs_done: Annotated[int, In(0)]
    round_epochs: Annotated[int, In(0)]
    round: Annotated[int, In(0)]
    best_loss: AnyNumber
    waited: Annotated[int, In(0)]
    best: dict[str, Tensor]
    stopped_early: bool
    finished: bool
    lr_scheduler: NotRequired[dict[str, Any]]


class UnreportedRow(TypedDict):
    """Metrics that no logger has seen yet."""

    step: Annotated[int, In(0)]
    metrics: dict[str, AnyNumber]
    evaluated: bool


@dataclass(frozen=True, kw_only=True)
class PolicyDescription:
    """All that rebuilds a policy but the weights."""

    policy: dict[str, Any] | None
    """Its config; None for one that was given as an object."""
    policy_class: str = ""
    observation_space: dict[str, Any]
    action_space: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint(PolicyDescription):
    """A training's state after some step."""

    path: Path
    understudy_version: str
    config: str
    """YAML."""
    stored: StoredConfig
    """The config as plain data."""
    best_return: AnyNumber
    env_steps: Annotated[int, In(0)]
    state: TrainingState
    offline: OfflineState | None
    unreported: UnreportedRow | None = None
    ranks: list[RankState] | None = None
    """Of ranks 1, 2, ...; None for a process alone."""
    infos: dict[str, Any] | None = None
    """What the script of another library stored beside it (`interop.rsl_rl.Runner`)."""


def read_checkpoint(path: Path, kind: str) -> Checkpoint:
    """The checkpoint of a training, every entry checked. Raises CheckpointError, as `load_checkpoint`."""
    payload = load_checkpoint(path, kind)
    with parsing(path, "use an older checkpoint of the same run", CheckpointError):
        del payload["format_version"], payload["kind"]
        payload["path"] = path
        payload["stored"] = parse_yaml(decode(str, payload["config"], "config"))
        payload.setdefault("policy", payload["stored"]["policy"])  # had no description of its own in early 0.1.0
        checkpoint = decode(Checkpoint, payload, "")
        states: list[RankState] = [checkpoint.state, *(checkpoint.ranks or ())]
        if any(("env" in state) != ("collector" in state) for state in states):
            raise ValueError("state has only one of env and collector")
        return checkpoint


def save_checkpoint(path: Path, kind: str, payload: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts to `path` atomically, with a checksum, format and version.

    Raises CheckpointError (disk full, no permission); an earlier file at `path` is then still whole.
    """
    stamp = {"format_version": FORMAT_VERSION, "understudy_version": __version__, "kind": kind}
    try:
        write_atomic(path, archived({**stamp, **payload}))
    except OSError as error:
        raise CheckpointError(
            f"could not write checkpoint {path}: {error.strerror or error}; checkpoints written before it are intact: "
            "make room (or allow writing) there, then go on with `understudy train --resume`"
        ) from error


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote, checksums compared; code in the file is refused, not run.

    Raises CheckpointError if the file is missing, damaged or foreign, of another format version or another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    with parsing(path, "use an older checkpoint of the same run", CheckpointError):
        payload = read_archive(path)
    if not isinstance(payload, dict) or "format_version" not in payload:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of understudy")
    found = payload["format_version"]
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {found!r:.80} (understudy {payload.get('understudy_version')!s:.80}), this "
            f"is format {FORMAT_VERSION} (understudy {__version__}): install that version to read it"
        )
    if payload.get("kind") != kind:
        raise CheckpointError(
            f"{path} is a {payload.get('kind')!r:.80} checkpoint, a {kind!r} checkpoint was asked for"
        )
    return payload


def step_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step` environment steps."""
    return folder / f"step_{step:012d}.pt"


def step_checkpoints(folder: Path) -> list[Path]:
    """All `step_*.pt` in a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.pt") if (match := _STEP_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a folder. Raises CheckpointError if there is none."""
    found = step_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {folder}: its training ended before the first one; continue that with "
            f"`understudy train --resume {folder.parent}`"
        )
    return found[-1]


def set_aside_after(folder: Path, step: int) -> None:
    """Rename the checkpoints after `step`: a training that goes on from there writes others."""
    for path in step_checkpoints(folder):
        if path > step_path(folder, step):
            path.rename(f"{path}.replaced")


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` step checkpoints; `best.pt` stays."""
    for path in step_checkpoints(folder)[:-keep_last]:
        path.unlink(missing_ok=True)


def check_same_layout(expected: Mapping[str, Any], found: Mapping[str, Any], source: str) -> None:
    """Compare two (nested) state dicts by key and tensor shape, values aside.

    Raises CheckpointError that lists what is missing, unexpected or of another shape in `found`, read from `source`.
    """
    ours, theirs = _flatten(expected), _flatten(found)
    complaints = []
    if missing := sorted(ours.keys() - theirs.keys()):
        complaints.append(f"missing: {_some(missing)}")
    if unexpected := sorted(theirs.keys() - ours.keys()):
        complaints.append(f"unexpected: {_some(unexpected)}")
    differing = [
        f"{name} is {theirs[name]}, expected {ours[name]}"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    if differing:
        complaints.append(f"of another shape: {_some(differing)}")
    if complaints:
        raise CheckpointError(
            f"{source} was written by another architecture ({'; '.join(complaints)}): use the config that it was "
            "trained with, or start a new run"
        )


def all_finite(state: Mapping[str, Any]) -> bool:
    """True if no floating-point tensor in a nested state holds a NaN or an infinity."""
    for value in state.values():
        if isinstance(value, Mapping):
            if not all_finite(value):
                return False
        elif isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return False
    return True


def _flatten(state: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            kind = "" if not isinstance(value, Tensor) or value.is_floating_point() else f" of {value.dtype}"
            flat[f"{prefix}{key}"] = f"{tuple(value.shape)}{kind}" if isinstance(value, Tensor) else "a plain value"
    return flat


def _some(names: list[str], limit: int = 6) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
