"""Checkpoint files: written atomically, versioned, read without executing anything, explained when they do not fit."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.core.files import write_atomic
from understudy.types import CheckpointError
from understudy.version import __version__

FORMAT_VERSION = 1
"""Raised by one whenever a reader of the old layout would misunderstand the new one."""

BEST = "best.pt"
_STEP_FILE = re.compile(r"step_(\d+)\.pt")


def save_checkpoint(path: Path, kind: str, payload: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts to `path` atomically, stamped with format and library version.

    Raises CheckpointError (disk full, no permission); an earlier file at `path` is then still whole.
    """
    buffer = io.BytesIO()  # in memory first: torch's own file writer may abort the process on a full disk
    torch.save({"format_version": FORMAT_VERSION, "understudy_version": __version__, "kind": kind, **payload}, buffer)
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"could not write checkpoint {path}: {error.strerror or error}; checkpoints written before it are intact: "
            "make room (or allow writing) there, then go on with `understudy train --resume`"
        ) from error


def load_checkpoint(path: Path, kind: str, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote; pickled code in the file is refused, not run.

    Raises CheckpointError if the file is missing, truncated or foreign, of another format version or another kind.
    """
    try:
        payload = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and plain data; it is not loaded"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({_first_line(error)}); use an older checkpoint of the same run"
        ) from error
    if not isinstance(payload, dict) or "format_version" not in payload:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of understudy")
    found = payload["format_version"]
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {found} (understudy {payload.get('understudy_version')}), this is format "
            f"{FORMAT_VERSION} (understudy {__version__}): install that version to read it"
        )
    if payload.get("kind") != kind:
        raise CheckpointError(f"{path} is a {payload.get('kind')!r} checkpoint, a {kind!r} checkpoint was asked for")
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


def _flatten(state: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[int, ...] | str]:
    flat: dict[str, tuple[int, ...] | str] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = tuple(value.shape) if isinstance(value, Tensor) else "a plain value"
    return flat


def _some(names: list[str], limit: int = 6) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
