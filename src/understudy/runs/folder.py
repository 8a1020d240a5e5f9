"""A run: the folder that a training writes, and what can be read back from it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from understudy.core.files import write_atomic
from understudy.nn.protocol import Policy
from understudy.runs.checkpoint import latest_checkpoint, load_checkpoint
from understudy.runs.codec import from_plain
from understudy.runs.config import TrainConfig, from_yaml, to_yaml
from understudy.runs.evaluation import EvaluationResult
from understudy.runs.metrics import read_metrics
from understudy.runs.policies import check_consent, rebuild_policy
from understudy.runs.provenance import provenance
from understudy.types import CheckpointError
from understudy.version import __version__

CHECKPOINT_KIND = "training"


@dataclass(frozen=True)
class RunFolder:
    """The names of the files in a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The config, as YAML."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """One JSON record per start of the run: git revision, versions, platform."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of step_*.pt and best.pt."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Result of the last evaluation of a finished training."""
        return self.path / "evaluation.json"

    @property
    def video(self) -> Path:
        """Film of an episode, if one was asked for."""
        return self.path / "video.mp4"

    def read_config(self, allow: Collection[str] = ()) -> TrainConfig:
        """The run's config. Raises ValueError if the folder is not a run, or for an import not in `allow`."""
        self._require_config()
        try:
            return from_yaml(self.config.read_text(encoding="utf-8"), allow=allow)
        except ValueError as error:
            raise ValueError(f"{self.config}: {error}") from error

    def env_id(self) -> str:
        """The run's environment, also where an older version wrote a config that this one no longer reads."""
        self._require_config()
        plain = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return str(plain["env"]["id"])

    def _require_config(self) -> None:
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not a run: it has no config.yaml; give the folder that a training wrote")

    def write_config(self, config: TrainConfig) -> None:
        """Store the config."""
        write_atomic(self.config, to_yaml(config).encode())

    def record_start(self) -> None:
        """Append where and with what this start of the run happens."""
        starts = json.loads(self.provenance.read_text()) if self.provenance.is_file() else []
        write_atomic(self.provenance, (json.dumps([*starts, provenance()], indent=2) + "\n").encode())


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


def choose_run_path(config: TrainConfig) -> Path:
    """Where a new run goes. Raises ValueError if that folder is not empty or can be seen to be out of reach."""
    if config.run_dir is None:
        name = f"{config.recipe}-{config.env.id.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        path = _unused(Path("runs") / name)
    else:
        path = Path(config.run_dir)
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write run folder {path}: no permission in {existing}; choose another --run-dir")
    if existing == path and any(path.iterdir()):
        raise ValueError(
            f"run folder {path} exists and is not empty: continue it with `understudy train --resume {path}`, "
            "or choose another --run-dir"
        )
    return path


def create_run_folder(path: Path, config: TrainConfig) -> RunFolder:
    """Make a new run's folder and store config and provenance. Raises ValueError if it cannot be written."""
    folder = RunFolder(path)
    to_yaml(config)  # what cannot be stored leaves no folder behind
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        folder.write_config(config)
        folder.record_start()
    except OSError as error:
        raise ValueError(
            f"cannot write run folder {path}: {error.strerror or error}; choose another --run-dir"
        ) from error
    return folder


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


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
