"""A run: the folder that a training writes, and what can be read back from it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from understudy.core.borders import parsing
from understudy.core.files import write_atomic
from understudy.nn.protocol import Policy
from understudy.runs.checkpoint import latest_checkpoint, load_checkpoint, step_checkpoints
from understudy.runs.codec import from_plain
from understudy.runs.config import TrainConfig, from_yaml, to_yaml
from understudy.runs.evaluation import EvaluationResult
from understudy.runs.lock import locked
from understudy.runs.metrics import read_metrics
from understudy.runs.policies import check_consent, rebuild_policy
from understudy.runs.provenance import provenance
from understudy.types import CheckpointError
from understudy.version import __version__

CHECKPOINT_KIND = "training"


class RunFolder:
    """The files in a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.provenance = path / "run.json"  # a list, one record per start: git revision, versions, platform
        self.metrics = path / "metrics.jsonl"  # one JSON object per iteration
        self.tensorboard = path / "tensorboard"  # folder of event files
        self.checkpoints = path / "checkpoints"  # folder of step_*.pt and best.pt
        self.demonstrations = path / "demonstrations"  # folder of round_*.npz, what DAgger collected
        self.evaluation = path / "evaluation.json"  # the last one of a finished training
        self.video = path / "video.mp4"  # of an episode, if one was asked for
        self.lock = path / ".lock"  # held by the training that is running

    def read_config(self, allow: Collection[str] = ()) -> TrainConfig:
        """The run's config. Raises ValueError if the folder is not a run, or for an import not in `allow`."""
        self._require_config()
        try:
            return from_yaml(self.config.read_text(encoding="utf-8"), allow=allow)
        except ValueError as error:
            raise ValueError(f"{self.config}: {error}") from error

    def read_plain(self) -> dict[str, Any]:
        """The run's config as YAML has it, also where another version wrote it; nothing that it names is imported."""
        self._require_config()
        with parsing(self.config, "give another run, or restore the file"):
            plain = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            return {"recipe": plain["recipe"], "env": {"id": plain["env"]["id"]}} | plain

    def _require_config(self) -> None:
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not a run: it has no config.yaml; give the folder that a training wrote")

    def write_config(self, config: TrainConfig) -> None:
        """Store the config, in a folder that somebody may have deleted."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config, to_yaml(config).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out, and remove what one that was killed left half-written.

        Raises ValueError, with host and process, if another training is in it, and if nothing can be written there.
        """
        with ExitStack() as stack:
            with _writing(self.path):
                stack.enter_context(locked(self.lock))
            own = (self.config, self.provenance, self.metrics, self.evaluation, self.video)
            patterns = [f".{file.name}.*.tmp" for file in own]
            patterns += [f"{folder.name}/.*.tmp" for folder in (self.checkpoints, self.demonstrations)]
            for leftover in itertools.chain.from_iterable(map(self.path.glob, patterns)):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def forget(self) -> None:
        """Remove what a training without a checkpoint left."""
        self.metrics.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.tensorboard, self.demonstrations):
            shutil.rmtree(folder, ignore_errors=True)

    def record_start(self) -> None:
        """Append where and with what this start of the run happens."""
        starts = [*self.starts(), provenance()]
        write_atomic(self.provenance, (json.dumps(starts, indent=2) + "\n").encode())

    def starts(self) -> list[dict[str, Any]]:
        """The records of all starts so far; none where they cannot be read, which no training depends on."""
        try:
            starts = json.loads(self.provenance.read_bytes())
        except (OSError, ValueError):
            return []
        return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


@dataclass
class Run:
    """What a training left: its folder, config, trained policy and last evaluation."""

    path: Path
    config: TrainConfig
    policy: Policy
    env_steps: int
    evaluation: EvaluationResult | None = None  # None if switched off or interrupted
    stopped_by: str | None = None  # what ended the training early: a signal's name, a logger's reason

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of all iterations, oldest first, read from metrics.jsonl."""
        return read_metrics(RunFolder(self.path).metrics)


@contextmanager
def new_run(config: TrainConfig) -> Iterator[RunFolder]:
    """The folder of a new run, locked, with its config in it.

    A folder in which a training ended before its first checkpoint is used again. Where the block fails before
    `record_start` (what cannot be built), nothing of it stays. Raises ValueError if the folder holds anything else, is
    in use or cannot be written.
    """
    text = to_yaml(config)  # what cannot be stored leaves no folder behind
    if config.run_dir is None:
        path = _unused_folder(config)
        made = [path]
    else:
        path = Path(config.run_dir)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    if any(path.iterdir()) and not folder.lock.is_file():
        raise _occupied(path)
    with folder.locked():
        if step_checkpoints(folder.checkpoints) or folder.evaluation.exists():
            raise _occupied(path)
        try:
            folder.forget()
            folder.provenance.unlink(missing_ok=True)  # from now on it tells whether the training began
            with _writing(path):
                write_atomic(folder.config, text.encode())
            yield folder
        except BaseException:
            if not folder.provenance.exists():
                folder.forget()
                for file in (folder.config, folder.lock):
                    file.unlink(missing_ok=True)
                for empty in made:
                    empty.rmdir()
            raise


def _unused_folder(config: TrainConfig) -> Path:
    """Make a folder that is called by recipe, environment and time: valid on every file system, also without ":"."""
    name = re.sub(r"[^\w.-]+", "-", f"{config.recipe}-{config.env.id}", flags=re.ASCII).strip("-.")[:150]
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = Path("runs") / f"{name}{suffix}"
        with _writing(path), suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise ValueError(f"there are 1,000 runs called {name}: name yours with --run-dir")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write run folder {path}: {reason}; choose another --run-dir") from error


def _occupied(path: Path) -> ValueError:
    return ValueError(
        f"run folder {path} exists and is not empty: continue it with `understudy train --resume {path}`, "
        "or choose another --run-dir"
    )


def load(
    source: str | Path | Run,
    device: torch.device | str = "cpu",
    *,
    allow: Collection[str] = (),
    policy: Policy | None = None,
) -> Policy:
    """The policy of a run (its newest checkpoint) or of one checkpoint file, ready to act: `.act(obs, state=None)`.

    Neither the environment nor the parts are needed. `allow` names the modules (or packages) that a policy of your
    own may import; `policy` is the object that receives the weights, where the training was given one. Raises
    CheckpointError if there is no readable checkpoint, or its policy needs a module that `allow` lacks.
    """
    if isinstance(source, Run):
        return source.policy
    path = find_checkpoint(Path(source))
    return _policy_of(load_checkpoint(path, CHECKPOINT_KIND), str(path), allow, policy).to(device)


def read_policy(
    run: Path, *, allow: Collection[str] = (), policy: Policy | None = None, env: bool = True
) -> tuple[Policy, TrainConfig]:
    """The policy of a run or checkpoint, as `load`, and the config that it was trained with, without its parts.

    `env`: the caller means to build the config's environment, whose imports `allow` has to list, too.
    """
    path = find_checkpoint(run)
    checkpoint = load_checkpoint(path, CHECKPOINT_KIND)
    plain = yaml.safe_load(checkpoint["config"])
    if env:
        check_consent(plain["env"], allow, f"{path}: env")
    try:
        config = from_plain(TrainConfig, {**plain, "parts": {}})
    except ValueError as error:
        raise CheckpointError(
            f"{path} was written by understudy {checkpoint['understudy_version']}, whose config this version "
            f"({__version__}) does not read: {error}"
        ) from error
    return _policy_of(checkpoint, str(path), allow, policy), config


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself if it is a file, the newest one if it is a run's folder."""
    if path.is_dir():
        inner = RunFolder(path).checkpoints
        return latest_checkpoint(inner if inner.is_dir() else path)
    if not path.exists():
        raise CheckpointError(f"there is no run or checkpoint {path}")
    return path


def _policy_of(checkpoint: dict[str, Any], source: str, allow: Collection[str], policy: Policy | None) -> Policy:
    """Rebuild the policy that a checkpoint holds, without decoding the rest of its config."""
    if "policy" not in checkpoint:  # written before policies had a description of their own
        checkpoint = {**checkpoint, "policy": yaml.safe_load(checkpoint["config"])["policy"]}
    return rebuild_policy(checkpoint, checkpoint["state"]["policy"], source, allow=allow, policy=policy)
