"""One start of a run: phases, rows, evaluations, checkpoints, and how it ends."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from understudy.core import ranks
from understudy.core.files import write_atomic
from understudy.envs.base import VecEnv
from understudy.envs.makers import is_simulator, runs_alone
from understudy.envs.registry import EnvConfig, backend_of
from understudy.ppo.ppo import PPO
from understudy.runs.checkpoint import (
    BEST,
    Checkpoint,
    all_finite,
    prune,
    save_checkpoint,
    step_path,
)
from understudy.runs.config import TrainConfig, to_yaml
from understudy.runs.evaluation import EvaluationResult
from understudy.runs.folder import CHECKPOINT_KIND, Run, RunFolder
from understudy.runs.metrics import drop_after
from understudy.runs.policies import describe_policy
from understudy.tools.evaluate import evaluate_together, filmed
from understudy.tools.play import evaluation_seed
from understudy.training.distributed import Together
from understudy.training.loggers import Loggers, Phase
from understudy.training.offline import OfflineTraining
from understudy.training.signals import StopSignals

logger = logging.getLogger(__name__)

EPOCHS_PER_CHECKPOINT = 10
"""Epochs of offline training between checkpoints."""


class _Row(NamedTuple):
    """Metrics of an epoch or iteration that no logger has seen yet."""

    step: int
    metrics: dict[str, float]
    evaluated: bool
    """Evaluate the policy first, whose numbers join the row."""


class Training:
    """One start of a run, between building and closing. `own`: the user gave the environment."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        env: VecEnv,
        ppo: PPO,
        offline: OfflineTraining | None,
        loggers: Loggers,
        own: bool,
    ) -> None:
        # a simulator is evaluated in, too: another one would cost its time and memory again, and begin its curriculum
        shared = own or (is_simulator(config.env.id) and not config.evaluation.env_kwargs)
        self.config, self.folder, self.env, self.ppo = config, folder, env, ppo
        self.config_text = to_yaml(config)
        self.offline, self.loggers = offline, loggers
        self.evaluated_in: EnvConfig | VecEnv = env if shared else config.evaluation_env()
        self.filmed_in = self.evaluated_in if own or runs_alone(config.env.id) else config.evaluation_env()
        self.own, self.shared, self.collecting = own, shared, False
        self.best_return = -math.inf
        self.latest: EvaluationResult | None = None  # of the policy as it is now
        self.evaluation: EvaluationResult | None = None
        self.row: _Row | None = None
        self.start, self.stop = time.monotonic(), StopSignals(loggers.note)
        self.all = Together(ppo, offline, self._score, self.stop)

    def run(self) -> Run:
        """The epochs on demonstrations, then the iterations of PPO; whatever ends them leaves a checkpoint."""
        offline, ppo, total = self.offline, self.ppo, self.config.total_steps
        epochs = 0 if offline is None else offline.epochs_done
        again = int(self.row is not None)  # it was not reported, or not evaluated
        drop_after(self.folder.metrics, ppo.env_steps - again, epochs - (0 if ppo.env_steps else again))
        with self.stop.heeded(), self._rescued():
            if offline is not None and ppo.env_steps == 0 and not (offline.finished and self.row is None):
                with self._phase("offline", offline.epochs_done, offline.most_epochs):
                    self._pretrain(offline)
            if self.stopped_by is None and total:
                with self._phase("ppo", ppo.env_steps, total):
                    self._iterate()
            self.all.end((self.evaluation, self.stopped_by))
        return self.result(self.evaluation, self.stopped_by)

    def follow(self) -> Run:
        """The same on every rank but 0, which says what to do."""
        with self.stop.heeded():
            return self.result(*self.all.follow())

    def result(self, evaluation: EvaluationResult | None, stopped_by: str | None) -> Run:
        """What the training leaves."""
        path, steps = self.folder.path, self.ppo.env_steps
        return Run(path, self.config, self.ppo.policy, steps, evaluation, stopped_by=stopped_by)

    @property
    def stopped_by(self) -> str | None:
        """The signal or the logger's reason that ends the training early."""
        return self.stop.received.name if self.stop.received is not None else self.loggers.stopped_by

    @property
    def over(self) -> bool:
        """Whether all epochs and all steps are done."""
        return (self.offline is None or self.offline.finished) and self.ppo.env_steps >= self.config.total_steps

    @contextmanager
    def _phase(self, kind: Literal["offline", "ppo"], first: int, total: int) -> Iterator[None]:
        """Start and close the loggers around a phase, and report first what the last start did not get to."""
        self.collecting = kind == "ppo"
        first -= self.row is not None
        with self.loggers.phase(Phase(kind, self.folder.path, self.config, first, total, self._setting())):
            if self.row is not None:
                self._report(self.row)
                self._checkpoint()
            elif self.stopped_by is not None:  # by a logger that was started
                self._conclude()
                self._checkpoint()
            yield

    def _setting(self) -> str:
        """What it trains on, for people."""
        env = self.config.env
        backend = "an environment of your own" if self.own else backend_of(env, self.ppo.env)
        copies = f"{ranks.count()} ranks x {env.num_envs}" if ranks.count() > 1 else f"{env.num_envs}"
        return f"{copies} x {env.id} ({backend}), device {self.env.device}"

    def _pretrain(self, offline: OfflineTraining) -> None:
        """The epochs on demonstrations alone; in their metrics `step` counts epochs."""
        self.loggers.note(f"demonstrations: {offline.summary()}")
        while not offline.finished and self.stopped_by is None:
            metrics, done = self.all.order("epoch"), offline.epochs_done
            if offline.stopped_early:
                self.loggers.note(f"stopped early: no better validation loss for {offline.config.patience} epochs")
            if offline.finished:
                self.all.order("finish")
            due = _crossed(offline.config.evaluation_interval, done - 1, done)
            self._close(
                _Row(done, metrics, due or self.over), kept=offline.finished or done % EPOCHS_PER_CHECKPOINT == 0
            )

    def _iterate(self) -> None:
        config, ppo = self.config, self.ppo
        if self.offline is not None and ppo.env_steps == 0:
            self.all.order("reset_envs")  # DAgger and evaluations have played in it
        while ppo.env_steps < config.total_steps and self.stopped_by is None:
            before, metrics = ppo.env_steps, self.all.order("iterate")
            due = _crossed(config.evaluation.interval, before, ppo.env_steps)
            kept = self.over or _crossed(config.checkpoint.interval, before, ppo.env_steps)
            self._close(_Row(ppo.env_steps, metrics, due or self.over), kept=kept)

    def _close(self, row: _Row, *, kept: bool) -> None:
        """What follows an epoch or an iteration: an evaluation if one is due, its row, a checkpoint if it is `kept`."""
        self.row = row
        if kept and self.config.checkpoint.reset_env:
            self.all.order("reset_envs")
        if kept and row.evaluated:
            self._checkpoint()  # now: an evaluation plays in an environment, which may fail or never end
        self._report(row)
        if kept or self.stopped_by is not None:
            self._checkpoint()

    def _report(self, row: _Row) -> None:
        """Evaluate where that is due, and log the row; conclude if it is the last one, or a logger says that it is."""
        self.latest, hurried, metrics = None, self.stop.received is not None, dict(row.metrics)
        if row.evaluated and not hurried:
            metrics |= self._evaluate()
        self.loggers.log(row.step, {**metrics, "time/elapsed": time.monotonic() - self.start})
        if not (row.evaluated and hurried):  # else it is evaluated when the run continues
            self.row = None
        if self.over or self.loggers.stopped_by is not None:
            self._conclude()

    def _evaluate(self) -> dict[str, float]:
        """Score the policy, keep it if it is the best so far, and return the metrics of it."""
        if self.config.evaluation.episodes == 0:
            return {}
        found: EvaluationResult = self.all.order("evaluate", self.collecting)
        self.latest = found
        if found.mean_return > self.best_return:
            self.best_return = found.mean_return
            self._save(self.folder.checkpoints / BEST)
        if self.collecting:
            self.all.order("observe", found.metrics())
        return found.metrics()

    def _score(self, collecting: bool) -> EvaluationResult | None:
        """The policy's score, to which every rank adds its share of the episodes; None elsewhere than on rank 0."""
        chosen = self.config.evaluation
        with self._lent_env(collecting):
            return evaluate_together(
                self.ppo.policy,
                self.evaluated_in,
                episodes=chosen.episodes,
                seed=evaluation_seed(self.config.seed),
                deterministic=chosen.deterministic,
            )

    def _conclude(self) -> None:
        """The last evaluation of a training that comes to its end, with its film and its file."""
        hurried = self.stop.received is not None
        if self.latest is None and hurried:
            return
        if self.latest is None and self._evaluate():  # a logger ended the training in between: the row is written
            assert self.latest is not None
            self.loggers.note(self.latest.sentence())
        if self.latest is None:
            return
        self.evaluation = self.latest
        if self.config.evaluation.video and not hurried:
            with self._lent_env(self.collecting):
                self.evaluation = filmed(self.latest, self.ppo.policy, self.filmed_in, self.folder.video)
            if self.evaluation.video_error is not None:
                self.loggers.note(f"no video: {self.evaluation.video_error}")
        self._write(self.evaluation)

    def _write(self, evaluation: EvaluationResult) -> None:
        write_atomic(self.folder.evaluation, (json.dumps(evaluation.to_dict(), indent=2) + "\n").encode())

    @contextmanager
    def _lent_env(self, collecting: bool) -> Iterator[None]:
        """Lend the training's environment, where there is no other: its episodes start anew, its counters go on."""
        simulator = self.ppo.simulator
        counters = {} if simulator is None else simulator.counters
        try:
            yield
        finally:  # the checkpoint of a training that fails here has them, too
            if self.shared and simulator is not None:
                simulator.counters = counters
        if self.shared and collecting:
            self.ppo.reset_envs()

    def _restore_folder(self) -> None:
        """Write what belongs to a run anew, if somebody deleted its folder."""
        if not self.folder.config.exists():
            logger.warning("%s was deleted: it comes back without its metrics", self.folder.path)
            self.folder.write_config(self.config)
            self.folder.record_start()
            if self.evaluation is not None:
                self._write(self.evaluation)

    def _checkpoint(self) -> None:
        self._restore_folder()
        self._save(step_path(self.folder.checkpoints, self.ppo.env_steps))
        prune(self.folder.checkpoints, self.config.checkpoint.keep_last)

    def _save(self, path: Path) -> None:
        now = {
            "best_return": self.best_return,
            "offline": None if self.offline is None else self.offline.state_dict(),
            "unreported": None if self.row is None else self.row._asdict(),
        }
        if ranks.count() > 1:
            now["ranks"] = self.all.order("state")
        save_checkpoint(path, CHECKPOINT_KIND, training_state(self.config_text, self.ppo) | now)

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint. Raises ValueError if it does not fit the config."""
        others = checkpoint.ranks or []
        same = len(others) + 1 == ranks.count()
        own: Any = others[ranks.rank() - 1] if same and ranks.rank() else {}
        self.ppo.load_state_dict({**checkpoint.state, **own})
        if not same:
            self.ppo.start_anew()
        if self.offline is not None:
            if checkpoint.offline is None:
                raise ValueError("it has no offline training")
            self.offline.load_state_dict(checkpoint.offline)
        self.best_return = checkpoint.best_return
        if checkpoint.unreported is not None:
            step, metrics = checkpoint.unreported["step"], checkpoint.unreported["metrics"]
            self.row = _Row(step, {**metrics}, checkpoint.unreported["evaluated"])

    @contextmanager
    def _rescued(self) -> Iterator[None]:
        """Whatever ends the training, write a checkpoint beside the older ones (all kept), and say so in the error."""
        try:
            yield
        except BaseException as error:  # Ctrl-C, too
            error.add_note(self._rescue())
            raise

    def _rescue(self) -> str:
        """Write a checkpoint of the policy as it is, if it is sound; a sentence about it."""
        at = f"This was after {self.ppo.env_steps:,} steps in {self.config.env.id}."
        if not all_finite(self.ppo.policy.state_dict()):
            return f"{at} The policy holds non-finite numbers: no checkpoint was written, the older ones are intact."
        if not self.all.idle and ranks.count() > 1:
            return f"{at} Continue from the last checkpoint, with: understudy train --resume {self.folder.path}"
        path = step_path(self.folder.checkpoints, self.ppo.env_steps)
        try:
            # an earlier checkpoint of this very step is as good, and certainly whole; epochs count no steps
            if not path.exists() or not self.collecting:
                self._restore_folder()
                self._save(path)
        except Exception as failure:  # a broken environment may not give its state either
            return f"{at} No checkpoint could be written ({failure}); the older ones are intact."
        return f"{at} Checkpoint: {path}. Continue with: understudy train --resume {self.folder.path}"


def training_state(config: str, ppo: PPO) -> dict[str, Any]:
    """What a checkpoint holds of a training: its config in YAML, and nothing offline, evaluated or unreported yet."""
    return {
        "config": config,
        **describe_policy(ppo.policy),
        "best_return": -math.inf,
        "env_steps": ppo.env_steps,
        "state": ppo.state_dict(),
        "offline": None,
    }


def _crossed(interval: int | None, before: int, after: int) -> bool:
    """True if a multiple of `interval` lies in (before, after]."""
    return interval is not None and after // interval > before // interval
