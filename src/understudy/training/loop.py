"""The training loop around PPO: budget, evaluation, logging, checkpoints, and how a training ends."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from understudy.core import randomness
from understudy.envs.base import VecEnv
from understudy.nn.policy import ActorCritic
from understudy.ppo.part import Part, PartContext
from understudy.ppo.ppo import PPO
from understudy.runs.checkpoint import (
    BEST,
    all_finite,
    check_same_layout,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_path,
    write_atomic,
)
from understudy.runs.codec import to_plain
from understudy.runs.config import TrainConfig, to_yaml
from understudy.runs.folder import (
    CHECKPOINT_KIND,
    Run,
    RunFolder,
    choose_run_path,
    create_run_folder,
    find_checkpoint,
    load,
)
from understudy.runs.metrics import drop_after
from understudy.runs.spaces import space_to_plain
from understudy.tools.evaluate import EvaluationResult, evaluate, evaluation_seed
from understudy.tools.film import check_video_packages
from understudy.tools.record import Actor
from understudy.training.dagger import Dagger, first_round
from understudy.training.loggers import Logger, check_wandb, open_logger
from understudy.training.offline import OfflineTraining, find_cloning_part
from understudy.training.signals import StopSignals
from understudy.types import CheckpointError, NonFiniteError, WorkerError

EPOCHS_PER_CHECKPOINT = 10
"""Epochs of offline training between checkpoints."""


def train(config: TrainConfig, *, expert: Actor | None = None) -> Run:
    """Train from the start and return the run. `expert` answers DAgger's questions instead of the one in the config.

    SIGINT and SIGTERM end it after the running iteration with a checkpoint; `Run.stopped_by` then names the signal.
    Raises ValueError for a configuration that cannot work and CheckpointError for a policy to start from that does not
    fit (before any work), ImportError for a missing extra, WorkerError and NonFiniteError (after writing a checkpoint),
    CheckpointError if a checkpoint cannot be written.
    """
    _check_extras(config)
    path = choose_run_path(config)
    if config.offline is not None and config.offline.dagger is not None:
        config = first_round(config, path, expert)
    with _building(config) as (env, ppo):  # before the folder: what cannot be built leaves none behind
        if config.start_from is not None:
            _start_from(config.start_from, ppo.policy)
        folder = create_run_folder(path, config)
        return _Training(config, folder, env, ppo, expert).run()


def resume(
    run: Path | str, *, total_steps: int | None = None, expert: Actor | None = None, allow: Collection[str] = ()
) -> Run:
    """Continue a run from its newest checkpoint, up to `total_steps` (default: what its config says).

    Modules that its config names (`module:attribute`) are imported only if `allow` has them.

    Raises ValueError if `run` is no run's folder, CheckpointError if its checkpoint is missing, damaged or does not
    fit its config; otherwise as `train`.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config(allow)
    if total_steps is not None:
        config = dataclasses.replace(config, total_steps=total_steps)
    path = find_checkpoint(folder.path)
    checkpoint = load_checkpoint(path, CHECKPOINT_KIND)
    offline = _unfinished_epochs(config, checkpoint)
    if offline is None and checkpoint["env_steps"] >= config.total_steps:
        raise ValueError(
            f"{run} already has its {config.total_steps:,} steps; give it more with --total-steps, say "
            f"{2 * config.total_steps}"
        )
    _check_extras(config)
    with _building(config) as (env, ppo):
        training = _Training(config, folder, env, ppo, expert)
        _restore(ppo, checkpoint, str(path))
        if training.offline is not None:
            training.offline.load_state_dict(checkpoint["offline"])
        folder.write_config(config)
        folder.record_start()
        drop_after(folder.metrics, ppo.env_steps if offline is None else offline)
        training.best_return = checkpoint["best_return"]
        return training.run()


def build_parts(config: TrainConfig, env: VecEnv, policy: ActorCritic) -> dict[str, Part]:
    """The parts of a config, each with its own random stream. Raises ValueError if one does not fit the spaces."""
    parts = {}
    for name, part in config.parts.items():
        context = PartContext.of(
            env,
            policy,
            name=name,
            num_steps=config.ppo.num_steps,
            gamma=config.ppo.last_gamma,
            seed=randomness.mix(config.seed, f"part/{name}"),
            env_id=config.env.id,
            load_policy=load,
        )
        torch.manual_seed(context.seed)  # so that a part's first weights do not depend on the parts before it
        parts[name] = part.build(context).to(env.device)
    return parts


class _Training:
    """One start of a run, between building and closing."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, env: VecEnv, ppo: PPO, expert: Actor | None = None
    ) -> None:
        self.config, self.folder, self.env, self.ppo = config, folder, env, ppo
        self.best_return = -math.inf
        self.evaluation: EvaluationResult | None = None
        self.offline = _offline_training(config, folder, env, ppo, expert)
        self.start = time.monotonic()

    def run(self) -> Run:
        with StopSignals() as stop:
            if self.offline is not None and not self.offline.finished:
                with self._logger(self.offline.epochs_done, self.offline.most_epochs) as logger:
                    self._pretrain(self.offline, logger, stop)
            if stop.received is None and self.config.total_steps:
                with self._logger(self.ppo.env_steps, self.config.total_steps) as logger:
                    self._iterate(logger, stop)
        return Run(
            path=self.folder.path,
            config=self.config,
            policy=self.ppo.policy,
            env_steps=self.ppo.env_steps,
            evaluation=self.evaluation,
            stopped_by=stop.received.name if stop.received is not None else None,
        )

    @contextmanager
    def _logger(self, first_step: int, total_steps: int) -> Iterator[Logger]:
        plain = to_plain(self.config)
        logger = open_logger(
            self.folder.path, self.config.logging, plain, first_step=first_step, total_steps=total_steps
        )
        try:
            yield logger
        finally:
            logger.close()

    def _pretrain(self, offline: OfflineTraining, logger: Logger, stop: StopSignals) -> None:
        """The epochs on demonstrations alone; in their metrics `step` counts epochs."""
        interval = offline.config.evaluation_interval
        logger.note(f"demonstrations: {offline.summary()}")
        while not offline.finished and stop.received is None:
            metrics = offline.epoch()
            if offline.finished:
                offline.finish()
            done = offline.finished and not self.config.total_steps
            if done or _crossed(interval, offline.epochs_done - 1, offline.epochs_done):
                metrics |= self._evaluate(logger, done)
            metrics["time/elapsed"] = time.monotonic() - self.start
            logger.log(offline.epochs_done, metrics)
            if offline.finished or stop.received is not None or offline.epochs_done % EPOCHS_PER_CHECKPOINT == 0:
                self._checkpoint()

    def _iterate(self, logger: Logger, stop: StopSignals) -> None:
        config, ppo = self.config, self.ppo
        while ppo.env_steps < config.total_steps and stop.received is None:
            before = ppo.env_steps
            try:
                metrics = ppo.iterate()
            except (WorkerError, NonFiniteError) as error:
                self._rescue(error)
                raise
            finished = ppo.env_steps >= config.total_steps
            if stop.received is None and (finished or _crossed(config.evaluation.interval, before, ppo.env_steps)):
                evaluation = self._evaluate(logger, finished)
                ppo.observe(evaluation)
                metrics |= evaluation
            metrics["time/elapsed"] = time.monotonic() - self.start
            logger.log(ppo.env_steps, metrics)
            if finished or stop.received is not None or _crossed(config.checkpoint.interval, before, ppo.env_steps):
                self._checkpoint()

    def _evaluate(self, logger: Logger, finished: bool) -> dict[str, float]:
        """Score the policy, keep it if it is the best so far, and return the metrics of it."""
        chosen = self.config.evaluation
        if chosen.episodes == 0:
            return {}
        result = evaluate(
            self.ppo.policy,
            self.config.evaluation_env(),
            chosen.episodes,
            seed=evaluation_seed(self.config.seed),
            deterministic=chosen.deterministic,
            video_path=self.folder.video if finished and chosen.video else None,
        )
        if result.video_error is not None:
            logger.note(f"no video: {result.video_error}")
        if result.mean_return > self.best_return:
            self.best_return = result.mean_return
            self._save(self.folder.checkpoints / BEST)
        if finished:
            self.evaluation = result
            write_atomic(self.folder.evaluation, (json.dumps(result.to_dict(), indent=2) + "\n").encode())
        return result.metrics()

    def _checkpoint(self) -> None:
        if self.config.checkpoint.reset_env:
            self.ppo.reset_envs()
        self._save(step_path(self.folder.checkpoints, self.ppo.env_steps))
        prune(self.folder.checkpoints, self.config.checkpoint.keep_last)

    def _save(self, path: Path) -> None:
        save_checkpoint(
            path,
            CHECKPOINT_KIND,
            {
                "config": to_yaml(self.config),
                "observation_space": space_to_plain(self.env.observation_space),
                "action_space": space_to_plain(self.env.action_space),
                "best_return": self.best_return,
                "env_steps": self.ppo.env_steps,
                "state": self.ppo.state_dict(),
                "offline": None if self.offline is None else self.offline.state_dict(),
            },
        )

    def _rescue(self, error: Exception) -> None:
        """Write a checkpoint beside the older ones, which are all kept, and say in the error where it is."""
        if not all_finite(self.ppo.policy.state_dict()):
            error.add_note("The policy holds non-finite numbers: no checkpoint was written, the older ones are intact.")
            return
        path = step_path(self.folder.checkpoints, self.ppo.env_steps)
        try:
            if not path.exists():  # a checkpoint of this very step is as good, and certainly whole
                self._save(path)
        except CheckpointError as failure:
            error.add_note(str(failure))
        else:
            error.add_note(f"Checkpoint: {path}. Continue with: understudy train --resume {self.folder.path}")


@contextmanager
def _building(config: TrainConfig) -> Iterator[tuple[VecEnv, PPO]]:
    """Environment and PPO of a config; closes the environment and restores torch's thread count at the end."""
    device = config.torch_device()
    threads = torch.get_num_threads()
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    try:
        randomness.seed_everything(config.seed)  # environments may draw from the global streams
        env = config.env.make(device, randomness.env_seed(config.seed, 0))  # what PPO resets it with first
        try:
            yield env, _build(config, env, device)
        finally:
            env.close()
    finally:
        torch.set_num_threads(threads)


def _build(config: TrainConfig, env: VecEnv, device: torch.device) -> PPO:
    # modules draw their first weights from the global stream: seed it for them, and hand the caller's back
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(randomness.mix(config.seed, "weights"))
        policy = ActorCritic(env.observation_space, env.action_space, config.policy).to(device)
        parts = build_parts(config, env, policy)
    ppo = PPO(env, policy, config.ppo, parts, seed=config.seed, total_steps=config.total_steps)
    if config.offline is not None:
        find_cloning_part(ppo)  # it is missed here, not after the run's folder is made
    return ppo


def _offline_training(
    config: TrainConfig, folder: RunFolder, env: VecEnv, ppo: PPO, expert: Actor | None
) -> OfflineTraining | None:
    if config.offline is None:
        return None
    chosen = config.offline.dagger
    dagger = None if chosen is None else Dagger(chosen, folder.path, env, config.env.id, config.seed, expert)
    return OfflineTraining(ppo, config.offline, dagger)


def _unfinished_epochs(config: TrainConfig, checkpoint: dict[str, Any]) -> int | None:
    """How many epochs of an offline training are done, None if it is over or there is none."""
    if config.offline is None:
        return None
    state = checkpoint["offline"]
    return None if state["finished"] else int(state["epochs_done"])


def _start_from(source: str, policy: ActorCritic) -> None:
    """Give the policy the weights and the normaliser of another run's."""
    weights = load(source).state_dict()
    check_same_layout(policy.state_dict(), weights, source)
    policy.load_state_dict(weights)


def _restore(ppo: PPO, checkpoint: dict[str, Any], source: str) -> None:
    state = checkpoint["state"]
    check_same_layout({"policy": ppo.policy.state_dict()}, {"policy": state["policy"]}, source)
    ppo.load_state_dict(state)


def _check_extras(config: TrainConfig) -> None:
    """Raise ImportError for a missing extra now, not where the training would find it missing."""
    if config.evaluation.video:
        check_video_packages()
    if config.logging.wandb:
        check_wandb()


def _crossed(interval: int | None, before: int, after: int) -> bool:
    """True if a multiple of `interval` lies in (before, after]."""
    return interval is not None and after // interval > before // interval
