"""A run: the folder that a training writes, and what can be read back from it."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from understudy.core.borders import parse_json, parse_yaml, parsing
from understudy.core.check import checked, fit
from understudy.core.files import write_atomic
from understudy.core.registry import load_object
from understudy.envs.base import VecEnv
from understudy.nn.acting import Function, function_policy
from understudy.nn.protocol import Policy
from understudy.runs.archive import is_ours
from understudy.runs.checkpoint import BEST, Checkpoint, latest_checkpoint, read_checkpoint, step_checkpoints
from understudy.runs.codec import decode, from_plain, is_reference
from understudy.runs.config import TrainConfig, read_config, read_yaml, whole_yaml
from understudy.runs.evaluation import EvaluationResult
from understudy.runs.lock import locked
from understudy.runs.metrics import read_metrics
from understudy.runs.policies import check_consent, rebuild_policy
from understudy.runs.provenance import provenance
from understudy.runs.sources import Source, check_options, kind_of, newest_model, reader_of
from understudy.types import CheckpointError
from understudy.version import __version__

logger = logging.getLogger(__name__)

CHECKPOINT_KIND = "training"


class Start(TypedDict):
    """What is read back of one start of a run (`provenance`)."""

    directory: NotRequired[str]


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
        self.robot = path / "robot.json"  # what a robot has to know to run the policy, where a simulator tells
        self.lock = path / ".lock"  # held by the training that is running

    def read_config(self, allow: Collection[str] = ()) -> TrainConfig:
        """The run's config. Raises ValueError if the folder is not a run, or for an import not in `allow`."""
        self._require_config()
        return read_config(self.config, allow=allow)

    def read_plain(self) -> dict[str, Any]:
        """The run's config as YAML has it, also where another version wrote it; nothing that it names is imported."""
        self._require_config()
        with parsing(self.config, "give another run, or restore the file"):
            plain = parse_yaml(read_yaml(self.config))
            return {"recipe": plain["recipe"], "env": {"id": plain["env"]["id"]}} | plain

    def _require_config(self) -> None:
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not a run: it has no config.yaml; give the folder that a training wrote")

    def write_config(self, config: TrainConfig) -> None:
        """Store the config, in a folder that somebody may have deleted."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config, whole_yaml(config).encode())

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

    def starts(self) -> list[Start]:
        """The records of all starts so far; none, and a warning, where they are damaged: nothing depends on them."""
        if not os.path.lexists(self.provenance):
            return []
        try:
            with parsing(self.provenance, "the starts before this one are forgotten"):
                if not self.provenance.is_file():
                    raise ValueError("it is not a file")
                return decode(list[Start], parse_json(self.provenance.read_bytes()), "the list of starts")
        except ValueError as error:
            logger.warning("%s", error)
            return []


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
    text = whole_yaml(config)  # what cannot be stored leaves no folder behind
    if config.run_dir is None:
        made = [] if Path("runs").exists() else [Path("runs")]
        path = _unused_folder(config)
        made.insert(0, path)
    else:
        path = Path(config.run_dir)
        with _writing(path):
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
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
                    with suppress(OSError):  # another training has its run in it
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
    except (OSError, ValueError) as error:  # of a name, too, that cannot be one
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise ValueError(f"cannot write run folder {str(path)[:300]}: {reason}; choose another --run-dir") from error


def _occupied(path: Path) -> ValueError:
    return ValueError(
        f"run folder {path} exists and is not empty: continue it with `understudy train --resume {path}`, "
        "or choose another --run-dir"
    )


@checked
def load(
    source: str | Path | Run,
    device: torch.device | str = "cpu",
    *,
    allow: Collection[str] = (),
    policy: Policy | None = None,
    env: VecEnv | None = None,
) -> Policy:
    """The policy of a run (its newest checkpoint), a checkpoint or another program's file, ready to act.

    `policy.act(obs, state=None)` acts. Neither the environment nor the parts are needed. Other programs' files:
    rsl_rl's and st_rl's `model_*.pt` and Stable-Baselines3's zip become networks of ours; ONNX and TorchScript act as
    they are, without a density; what a file does not say goes behind a comma, `model_1500.pt,activation=elu`
    (docs/bring-your-teacher.md). `"module:function"` is a function of obs and is_first, in the spaces of `env`.

    `allow` names the modules (or packages) that a policy of your own may import, "torch.jit" for TorchScript; `policy`
    is the object that receives the weights, where the training was given one. Raises CheckpointError if there is
    no readable checkpoint, or its policy needs a module that `allow` lacks.
    """
    fit(str | Path | Run, source, "source")
    fit(Collection[str], allow, "allow")
    if isinstance(source, Run):
        return source.policy
    found = load_foreign(source, allow)
    if isinstance(found, Policy):
        return found.to(device)
    if found is not None:
        if env is None:
            raise CheckpointError(f"{source} does not say what it sees: pass the environment it acts in, env=...")
        return function_policy(found, env, str(source)).to(device)
    return _policy_of(open_checkpoint(Path(source)), allow, policy).to(device)


def load_foreign(source: str | Path, allow: Collection[str]) -> Policy | Function | None:
    """The policy in another program's file, or a function; None for a run or checkpoint of ours. Raises as `load`."""
    if (function := _function_of(source, allow)) is not None:
        return function
    place = Source.parse(source)
    if not _is_foreign(place.path):
        check_options(place.options, (), place.path)
        return None
    path = newest_model(place.path) if place.path.is_dir() else place.path
    assert path is not None
    try:
        return reader_of(kind_of(path))(path, place.options, allow)
    except CheckpointError:
        raise
    except Exception as error:  # tensors of any kind under names of any kind
        with parsing(path, "let the program that wrote it export the policy", CheckpointError):
            raise error


def _function_of(source: str | Path, allow: Collection[str]) -> Function | None:
    """The function that `"module:function"` names; None for a path. Raises CheckpointError for one without consent."""
    if not is_reference(str(source)) or Path(source).exists():
        return None
    check_consent({"policy": str(source)}, allow, "the policy")
    with parsing(source, "name a function of obs and is_first", CheckpointError):
        found = load_object(str(source))
        if not callable(found):
            raise ValueError(f"it is a {type(found).__name__}")
    return cast(Function, found)


def _is_foreign(path: Path) -> bool:
    """Whether another program wrote it; raises CheckpointError for a file that is no policy at all."""
    with parsing(path, "name a run's folder or a checkpoint", CheckpointError):  # a name may be too long
        if path.is_dir():
            ours = RunFolder(path).config.exists() or (path / "checkpoints").is_dir() or step_checkpoints(path)
            return not ours and newest_model(path) is not None
        if not path.is_file():
            return False
    return kind_of(path) != "torch" or not is_ours(path)


def read_policy(
    run: Path, *, allow: Collection[str] = (), policy: Policy | None = None, env: bool = True
) -> tuple[Policy, TrainConfig]:
    """The policy of a run or checkpoint, as `load`, and the config that it was trained with, without its parts.

    `env`: the caller means to build the config's environment, whose imports `allow` has to list, too.
    """
    checkpoint = open_checkpoint(run)
    if env:
        check_consent(checkpoint.stored["env"], allow, f"{checkpoint.path}: env")
    try:
        config = from_plain(TrainConfig, {**checkpoint.stored, "parts": {}})
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.path} was written by understudy {checkpoint.understudy_version}, whose config this version "
            f"({__version__}) does not read: {error}"
        ) from error
    return _policy_of(checkpoint, allow, policy), config


def read_robot(run: Path, file: Path | None = None) -> dict[str, Any]:
    """What a robot has to know to run the policy: from `file`, else what a simulator told the run, possibly nothing.

    Raises ValueError for a file that is missing, or no JSON object.
    """
    told = RunFolder(run if run.is_dir() else run.parent.parent).robot
    if file is None and not told.is_file():
        return {}
    path = file or told
    with parsing(path, "write a JSON object of names and values, as mjlab's exporter does"):
        found = parse_json(path.read_bytes(), finite=False)
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
        return found


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself if it is a file, the newest one if it is a run's folder."""
    with parsing(path, "name a run's folder or a checkpoint", CheckpointError):  # a name may be too long
        if path.is_dir():
            run = RunFolder(path)
            if not run.config.exists() and not run.checkpoints.is_dir() and not step_checkpoints(path):
                raise CheckpointError(
                    f"{path} is not a run, and holds no checkpoint: name a run's folder or a checkpoint"
                )
            return latest_checkpoint(run.checkpoints if run.checkpoints.is_dir() else path)
        if not path.exists():
            raise CheckpointError(f"there is no run or checkpoint {path}")
    return path


def open_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint that `find_checkpoint` finds.

    Raises CheckpointError if it cannot be read; the message names an older one of the same run that can.
    """
    path = find_checkpoint(source)
    try:
        return read_checkpoint(path, CHECKPOINT_KIND)
    except CheckpointError as error:
        if path == source:
            raise
        for older in (*reversed(step_checkpoints(path.parent)[:-1]), path.parent / BEST):
            try:
                read_checkpoint(older, CHECKPOINT_KIND)
            except CheckpointError:
                continue
            raise CheckpointError(f"{error}: {older} is whole, name it instead of {source}") from error
        raise CheckpointError(f"{error}, but {path.parent} has no other that is whole") from error


def _policy_of(checkpoint: Checkpoint, allow: Collection[str], policy: Policy | None) -> Policy:
    return rebuild_policy(checkpoint, checkpoint.state["policy"], str(checkpoint.path), allow=allow, policy=policy)
