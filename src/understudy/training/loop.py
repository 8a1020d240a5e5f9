"""`train` and `resume`: what a training starts from, in which folder, and with what."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.core import ranks
from understudy.core.borders import parsing
from understudy.core.check import checked, fit
from understudy.core.files import write_atomic
from understudy.envs.base import VecEnv
from understudy.nn.protocol import Policy
from understudy.runs.checkpoint import (
    Checkpoint,
    check_same_layout,
    read_checkpoint,
    set_aside_after,
    step_checkpoints,
)
from understudy.runs.config import LoggingConfig, TrainConfig
from understudy.runs.folder import CHECKPOINT_KIND, Run, RunFolder, new_run
from understudy.runs.policies import policy_config
from understudy.tools.film import check_video_packages
from understudy.tools.play import OWN_ENV, Actor
from understudy.training.building import building, check_fits, located, with_own_env
from understudy.training.dagger import Dagger, first_round, keep_rounds, with_rounds
from understudy.training.distributed import check_same_config, leads, led
from understudy.training.loggers import Loggers
from understudy.training.offline import OfflineTraining
from understudy.training.signals import Terminated
from understudy.training.start import start_from
from understudy.training.training import Training
from understudy.types import CheckpointError, WorkerError

logger = logging.getLogger(__name__)


@checked
def train(
    config: TrainConfig,
    *,
    env: Any = None,
    policy: Policy | None = None,
    expert: Actor | None = None,
    loggers: Iterable[Any] = (),
) -> Run:
    """Train from the start and return the run.

    Objects of your own stand in for what the config names:

    - `env`: a `VecEnv`, a Gymnasium vector environment or a simulator, in which the policy is also evaluated and
      filmed; `config.env.id` is then only a name. It is reset at the start and around evaluations, and left open.
    - `policy`: the actor-critic to train.
    - `expert`: a function from obs and is_first to actions, which answers DAgger's questions.
    - `loggers`: see `Logger`; functions of step and metrics will do, too.

    Processes of torchrun are one training (docs/scale.md): each steps an environment of its own, of `num_envs` copies;
    rank 0 writes and logs. Started again by `torchrun --max-restarts`, they go on from the last checkpoint.

    SIGINT and SIGTERM end the training after the running iteration with a checkpoint; `Run.stopped_by` then names the
    signal, or the reason of a logger. Raises ValueError for a configuration that cannot work and CheckpointError for a
    policy to start from that does not fit (before any work), ImportError for a missing extra, and whatever an
    environment, a network or a logger raises (after writing a checkpoint), CheckpointError if a checkpoint cannot be
    written.
    """
    fit(TrainConfig, config, "config")
    if ranks.restarts_allowed() and config.run_dir is None:
        raise ValueError("torchrun --max-restarts needs --run-dir: where processes that start again find a checkpoint")
    with ranks.joined(config.torch_device()):
        if ranks.restarted() and ranks.shared(bool(RunFolder(Path(str(config.run_dir))).starts())):
            objects: dict[str, Any] = {"env": env, "policy": policy, "expert": expert, "loggers": loggers}
            return resume(str(config.run_dir), total_steps=config.total_steps, allow=config.allow_imports, **objects)
        listens = listening(config, loggers)
        config, own = with_own_env(config, env)
        if expert is not None and (config.offline is None or config.offline.dagger is None):
            raise ValueError("nobody would ask the expert: set offline.dagger (us.recipes.dagger does) or drop expert=")
        check_same_config(config, env=env, policy=policy, expert=expert)
        with led(new_run(config)) as folder:
            return _start(folder, config, None, own, policy, expert, listens)


@checked
def resume(
    run: Path | str,
    *,
    total_steps: int | None = None,
    env: Any = None,
    policy: Policy | None = None,
    expert: Actor | None = None,
    loggers: Iterable[Any] = (),
    allow: Collection[str] = (),
) -> Run:
    """Continue a run from its newest checkpoint that is whole, up to `total_steps` (default: what its config says).

    A run that ended before its first checkpoint starts again. `run` may also be one of a run's checkpoints: the
    training goes on from there, and the later ones are renamed, to end in `.replaced`. Objects that `train` was given
    have to be given again. `allow` lists the modules that may be imported because the config (`module:attribute`) or a
    policy that it loads names them. Raises ValueError if `run` is not a run's folder, is in use, or its environment is
    another one, CheckpointError if its checkpoints are missing, damaged or do not fit its config; otherwise as `train`.
    """
    given = Path(fit(str | Path, run, "run"))
    fit(Collection[str], allow, "allow")
    folder = RunFolder(given.parent.parent if given.is_file() else given)
    config = folder.read_config(allow)
    if total_steps is not None:
        config = dataclasses.replace(config, total_steps=total_steps)
    with ranks.joined(config.torch_device()):
        listens = listening(config, loggers)
        config, own = with_own_env(config, env)
        check_same_config(config, env=env, policy=policy, expert=expert)
        with led(folder.locked()):
            named = given.is_file() and not ranks.restarted()  # again: what came after it goes on
            checkpoint = _chosen(folder, given if named else None)
            return _start(folder, config, checkpoint, own, policy, expert, listens)


def _chosen(folder: RunFolder, named: Path | None) -> Checkpoint | None:
    """The checkpoint to go on from, which rank 0 finds; None if there is none yet."""
    found = None
    if leads():
        found = _newest_checkpoint(folder) if named is None else read_checkpoint(named, CHECKPOINT_KIND)
        if found is None:
            folder.forget()
    path = ranks.shared(None if found is None else found.path)
    return found if leads() or path is None else read_checkpoint(path, CHECKPOINT_KIND)


def listening(config: TrainConfig, own: Iterable[Any]) -> Loggers:
    """The loggers, of rank 0 alone. Raises ImportError for a missing extra now, not where it would be found missing."""
    if not leads():
        silent = LoggingConfig(console=False, tensorboard=False)
        return Loggers(dataclasses.replace(config, logging=silent, stop_when=None))
    if config.evaluation.video:
        check_video_packages()
    return Loggers(config, own)


def _newest_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """The newest checkpoint that can be read; None if there is none yet. Raises CheckpointError if all are damaged."""
    paths = step_checkpoints(folder.checkpoints)[::-1]
    for number, path in enumerate(paths, start=1):
        try:
            return read_checkpoint(path, CHECKPOINT_KIND)
        except CheckpointError as error:
            if number == len(paths):
                raise
            logger.warning("%s: continuing from %s", error, paths[number])
    if folder.evaluation.exists():
        raise CheckpointError(f"{folder.path} is finished, and its checkpoints are gone: train it anew")
    return None


@contextmanager
def _without_exits() -> Iterator[None]:
    """Turn the SystemExit of an environment, a network or a logger into an error: nobody asked for a quiet end."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error, Terminated):
            raise
        notes = " ".join(vars(error).get("__notes__", []))
        raise WorkerError(
            f"the environment, a network or a logger called sys.exit({error.code!r}), which would end the training "
            f"without a word: raise an error there, or us.StopTraining in a logger. {notes}".rstrip()
        ) from error


@_without_exits()
def _start(
    folder: RunFolder,
    config: TrainConfig,
    checkpoint: Checkpoint | None,
    own: VecEnv | None,
    policy: Policy | None,
    expert: Actor | None,
    loggers: Loggers,
) -> Run:
    """Train in a locked folder, from a checkpoint or from the start."""
    starts = folder.starts()
    built_from = located(config, Path(starts[0]["directory"])) if starts and "directory" in starts[0] else config
    asks = config.offline is not None and config.offline.dagger is not None
    if asks:
        if checkpoint is None:
            first_round(built_from, folder, expert, own)
        elif leads() and checkpoint.offline is not None:
            keep_rounds(folder, checkpoint.offline["round"])
        ranks.shared(None)  # its files are those that the others will find
        built_from = with_rounds(built_from, folder)
    if checkpoint is not None and policy is None:
        policy_config(checkpoint, str(checkpoint.path))  # it was an object: only its owner can make another one
    with building(built_from, own, policy, "" if checkpoint is None else OWN_ENV) as (env, ppo):
        offline = None
        if config.offline is not None:
            asks &= checkpoint is None or checkpoint.offline is None or not checkpoint.offline["finished"]
            offline = OfflineTraining(ppo, config.offline, Dagger(built_from, folder, env, expert) if asks else None)
        training = Training(config, folder, env, ppo, offline, loggers, own is not None)
        if checkpoint is not None:
            check_fits(env, checkpoint, config.env.id)
            check_same_layout(ppo.policy.state_dict(), checkpoint.state["policy"], str(checkpoint.path))
            with parsing(checkpoint.path, f"it does not fit {folder.config} or the environment", CheckpointError):
                training.load_state_dict(checkpoint)
            if training.over and training.row is None:
                if ranks.restarted():  # another rank died after the last checkpoint
                    return training.result(None, None)
                raise ValueError(
                    f"{folder.path} already has its {config.total_steps:,} steps; give it more with --total-steps, for "
                    f"example {2 * config.total_steps or 100_000}"
                )
            if leads():
                set_aside_after(folder.checkpoints, checkpoint.env_steps)
            if (before := len(checkpoint.ranks or ()) + 1) != ranks.count():
                loggers.note(
                    f"the checkpoint is of {before} processes, now there are {ranks.count()}: random streams and "
                    "episodes start anew, what was learnt goes on"
                )
            if ppo.simulator is not None and not config.checkpoint.reset_env:
                counted = "".join(f", {name} goes on at {n:,}" for name, n in ppo.simulator.counters.items())
                loggers.note(f"the simulator's state cannot be saved: its episodes start anew{counted}")
        elif config.start_from is not None:
            start_from(ppo.policy, config)
        if not leads():
            return training.follow()
        folder.write_config(config)
        if ppo.simulator is not None and (told := ppo.simulator.metadata()):
            write_atomic(folder.robot, (json.dumps(told, indent=2) + "\n").encode())
        folder.record_start()
        return training.run()
