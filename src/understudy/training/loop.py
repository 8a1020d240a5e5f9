"""The training loop around PPO: budget, evaluation, logging, checkpoints, and how a training ends."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from gymnasium.spaces import flatdim

from understudy.core import randomness
from understudy.core.files import write_atomic
from understudy.envs.base import VecEnv
from understudy.envs.registry import EnvConfig, as_vec_env
from understudy.nn.policy import build_policy
from understudy.nn.protocol import Policy, check_policy
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
)
from understudy.runs.config import TrainConfig, to_yaml
from understudy.runs.evaluation import EvaluationResult
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
from understudy.runs.policies import describe_policy, policy_config
from understudy.runs.spaces import space_from_plain
from understudy.tools.evaluate import evaluate, filmed
from understudy.tools.film import check_video_packages
from understudy.tools.play import OWN_ENV, Actor, evaluation_seed, opened
from understudy.training.dagger import Dagger, first_round
from understudy.training.loggers import Loggers, Phase
from understudy.training.offline import OfflineTraining, find_cloning_part
from understudy.training.signals import StopSignals

EPOCHS_PER_CHECKPOINT = 10
"""Epochs of offline training between checkpoints."""


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

    SIGINT and SIGTERM end the training after the running iteration with a checkpoint; `Run.stopped_by` then names the
    signal, or the reason of a logger. Raises ValueError for a configuration that cannot work and CheckpointError for a
    policy to start from that does not fit (before any work), ImportError for a missing extra, and whatever an
    environment, a network or a logger raises (after writing a checkpoint), CheckpointError if a checkpoint cannot be
    written.
    """
    listening = _listening(config, loggers)
    path = choose_run_path(config)
    config, own = _with_own_env(config, env)
    asks = config.offline is not None and config.offline.dagger is not None
    if asks:
        config = first_round(config, path, expert, own)
    elif expert is not None:
        raise ValueError("nobody would ask the expert: set offline.dagger (us.recipes.dagger does), or drop expert=")
    with _building(config, own, policy) as (built, ppo):  # before the folder: what fails leaves none behind
        if config.start_from is not None:
            weights = load(config.start_from, allow=config.allowed).state_dict()
            check_same_layout(ppo.policy.state_dict(), weights, config.start_from)
            ppo.policy.load_state_dict(weights)
        folder = create_run_folder(path, config)
        return _Training(config, folder, built, ppo, listening, expert, own is not None).run()


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
    """Continue a run from its newest checkpoint, up to `total_steps` (default: what its config says).

    Objects that `train` was given have to be given again. `allow` lists the modules that may be imported because the
    config (`module:attribute`) or a policy that it loads names them. Raises ValueError if `run` is no run's folder or
    its environment is another one, CheckpointError if its checkpoint is missing, damaged or does not fit its config;
    otherwise as `train`.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config(allow)
    if total_steps is not None:
        config = dataclasses.replace(config, total_steps=total_steps)
    path = find_checkpoint(folder.path)
    checkpoint = load_checkpoint(path, CHECKPOINT_KIND)
    offline: int | None = None  # how many epochs of an unfinished offline training are done
    if config.offline is not None and not checkpoint["offline"]["finished"]:
        offline = checkpoint["offline"]["epochs_done"]
    if offline is None and checkpoint["env_steps"] >= config.total_steps:
        raise ValueError(
            f"{run} already has its {config.total_steps:,} steps; give it more with --total-steps, say "
            f"{2 * config.total_steps}"
        )
    listening = _listening(config, loggers)
    config, own = _with_own_env(config, env)
    if policy is None and "policy" in checkpoint:
        policy_config(checkpoint, str(path))  # it was an object: only its owner can make another one
    with _building(config, own, policy, hint=OWN_ENV) as (built, ppo):
        _check_spaces(built, checkpoint, config.env.id)
        training = _Training(config, folder, built, ppo, listening, expert, own is not None)
        check_same_layout(ppo.policy.state_dict(), checkpoint["state"]["policy"], str(path))
        ppo.load_state_dict(checkpoint["state"])
        if training.offline is not None:
            training.offline.load_state_dict(checkpoint["offline"])
        folder.write_config(config)
        folder.record_start()
        drop_after(folder.metrics, ppo.env_steps if offline is None else offline)
        training.best_return = checkpoint["best_return"]
        return training.run()


def build_parts(config: TrainConfig, env: VecEnv, policy: Policy) -> dict[str, Part]:
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
            load_policy=functools.partial(load, allow=config.allowed),
        )
        torch.manual_seed(context.seed)  # so that a part's first weights do not depend on the parts before it
        parts[name] = part.build(context).to(env.device)
    return parts


class _Training:
    """One start of a run, between building and closing. `own_env`: the only environment there is for evaluations."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        env: VecEnv,
        ppo: PPO,
        loggers: Loggers,
        expert: Actor | None,
        own_env: bool,
    ) -> None:
        self.config, self.folder, self.env, self.ppo, self.loggers = config, folder, env, ppo, loggers
        self.evaluated_in: EnvConfig | VecEnv = env if own_env else config.evaluation_env()
        self.own_env, self.collecting = own_env, False
        self.best_return = -math.inf
        self.latest: EvaluationResult | None = None  # of the policy as it is now
        self.evaluation: EvaluationResult | None = None
        self.offline: OfflineTraining | None = None
        if config.offline is not None:
            asks = config.offline.dagger is not None
            dagger = Dagger(config, folder.path, env, expert) if asks else None
            self.offline = OfflineTraining(ppo, config.offline, dagger)
        self.start, self.stop = time.monotonic(), StopSignals()

    def run(self) -> Run:
        with self.stop:
            if self.offline is not None and not self.offline.finished:
                with self._phase("offline", self.offline.epochs_done, self.offline.most_epochs):
                    self._pretrain(self.offline)
            if self.stopped_by is None and self.config.total_steps:
                with self._phase("ppo", self.ppo.env_steps, self.config.total_steps):
                    self._iterate()
        run, steps = self.folder.path, self.ppo.env_steps
        return Run(run, self.config, self.ppo.policy, steps, self.evaluation, stopped_by=self.stopped_by)

    @property
    def stopped_by(self) -> str | None:
        """The signal or the logger's reason that ends the training early."""
        return self.stop.received.name if self.stop.received is not None else self.loggers.stopped_by

    def _phase(self, kind: Literal["offline", "ppo"], first: int, total: int) -> AbstractContextManager[None]:
        return self.loggers.phase(Phase(kind, self.folder.path, self.config, first, total))

    def _pretrain(self, offline: OfflineTraining) -> None:
        """The epochs on demonstrations alone; in their metrics `step` counts epochs."""
        self.loggers.note(f"demonstrations: {offline.summary()}")
        while not offline.finished and self.stopped_by is None:
            metrics, done = offline.epoch(), offline.epochs_done
            if offline.finished:
                offline.finish()
            due = _crossed(offline.config.evaluation_interval, done - 1, done)
            self._report(done, metrics, due=due, last=offline.finished and not self.config.total_steps)
            if offline.finished or self.stopped_by is not None or done % EPOCHS_PER_CHECKPOINT == 0:
                self._checkpoint()

    def _iterate(self) -> None:
        config, ppo = self.config, self.ppo
        self.collecting = True
        if self.offline is not None and ppo.env_steps == 0:
            ppo.reset_envs()  # DAgger and evaluations have played in it
        while ppo.env_steps < config.total_steps and self.stopped_by is None:
            before = ppo.env_steps
            with self._rescued():
                metrics = ppo.iterate()
            finished = ppo.env_steps >= config.total_steps
            due = _crossed(config.evaluation.interval, before, ppo.env_steps)
            self._report(ppo.env_steps, metrics, due=due, last=finished)
            if finished or self.stopped_by is not None or _crossed(config.checkpoint.interval, before, ppo.env_steps):
                self._checkpoint()

    def _report(self, step: int, metrics: dict[str, float], *, due: bool, last: bool) -> None:
        """Evaluate where that is due, and log the row; conclude if it is the last one, or a logger says that it is."""
        self.latest = None
        with self._rescued():
            if (due or last) and self.stop.received is None:
                metrics |= self._evaluate()
            self.loggers.log(step, {**metrics, "time/elapsed": time.monotonic() - self.start})
            if (last or self.loggers.stopped_by is not None) and self.stop.received is None:
                self._conclude()

    def _evaluate(self) -> dict[str, float]:
        """Score the policy, keep it if it is the best so far, and return the metrics of it."""
        chosen = self.config.evaluation
        if chosen.episodes == 0:
            return {}
        self.latest = evaluate(
            self.ppo.policy,
            env=self.evaluated_in,
            episodes=chosen.episodes,
            seed=evaluation_seed(self.config.seed),
            deterministic=chosen.deterministic,
        )
        self._restart_episodes()
        if self.latest.mean_return > self.best_return:
            self.best_return = self.latest.mean_return
            self._save(self.folder.checkpoints / BEST)
        if self.collecting:
            self.ppo.observe(self.latest.metrics())
        return self.latest.metrics()

    def _conclude(self) -> None:
        """The last evaluation of a training that comes to its end, with its film and its file."""
        if self.latest is None and self._evaluate():  # a logger ended the training in between: the row is written
            assert self.latest is not None
            self.loggers.note(self.latest.sentence())
        if self.latest is None:
            return
        self.evaluation = self.latest
        if self.config.evaluation.video:
            self.evaluation = filmed(self.latest, self.ppo.policy, self.evaluated_in, self.folder.video)
            self._restart_episodes()
            if self.evaluation.video_error is not None:
                self.loggers.note(f"no video: {self.evaluation.video_error}")
        write_atomic(self.folder.evaluation, (json.dumps(self.evaluation.to_dict(), indent=2) + "\n").encode())

    def _restart_episodes(self) -> None:
        """An environment that was also played in elsewhere lost the episodes that were being collected."""
        if self.own_env and self.collecting:
            self.ppo.reset_envs()

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
                **describe_policy(self.ppo.policy),
                "best_return": self.best_return,
                "env_steps": self.ppo.env_steps,
                "state": self.ppo.state_dict(),
                "offline": None if self.offline is None else self.offline.state_dict(),
            },
        )

    @contextmanager
    def _rescued(self) -> Iterator[None]:
        """Where anything fails, write a checkpoint beside the older ones (all kept), and say so in the error."""
        try:
            yield
        except Exception as error:
            error.add_note(self._rescue())
            raise

    def _rescue(self) -> str:
        """Write a checkpoint of the policy as it is, if it is sound; a sentence about it."""
        if not all_finite(self.ppo.policy.state_dict()):
            return "The policy holds non-finite numbers: no checkpoint was written, the older ones are intact."
        path = step_path(self.folder.checkpoints, self.ppo.env_steps)
        try:
            # an earlier checkpoint of this very step is as good, and certainly whole; epochs count no steps
            if not path.exists() or not self.collecting:
                self._save(path)
        except Exception as failure:  # a broken environment may not give its state either
            return f"No checkpoint could be written ({failure}); the older ones are intact."
        return f"Checkpoint: {path}. Continue with: understudy train --resume {self.folder.path}"


def _listening(config: TrainConfig, own: Iterable[Any]) -> Loggers:
    """The loggers. Raises ImportError for a missing extra now, not where the training would find it missing."""
    if config.evaluation.video:
        check_video_packages()
    return Loggers(config, own)


def _with_own_env(config: TrainConfig, env: Any) -> tuple[TrainConfig, VecEnv | None]:
    """The environment that was given, if one was, and a config that says how many copies it steps.

    Raises ValueError for an object that is no environment, and for options that nobody can apply to it.
    """
    if env is None:
        return config, None
    named = config.env
    if named.kwargs or named.max_episode_steps is not None:
        raise ValueError(
            "an environment that is given as an object has its options already: leave env.kwargs and "
            "env.max_episode_steps out"
        )
    own = as_vec_env(env, config.torch_device(), groups=named.groups or None, segments=named.segments)
    if config.evaluation.env_kwargs:
        raise ValueError("evaluation.env_kwargs need an environment of their own, which env= replaces: leave them out")
    return dataclasses.replace(config, env=dataclasses.replace(named, num_envs=own.num_envs)), own


@contextmanager
def _building(
    config: TrainConfig,
    own: VecEnv | None = None,
    policy: Policy | None = None,
    hint: str = "",
) -> Iterator[tuple[VecEnv, PPO]]:
    """Environment and PPO of a config; closes an environment of its own, restores torch's thread count at the end."""
    device = config.torch_device()
    threads = torch.get_num_threads()
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    try:
        randomness.seed_everything(config.seed)  # environments may draw from the global streams
        seed = randomness.env_seed(config.seed, 0)  # what PPO resets it with first
        with opened(config.env if own is None else own, device, seed, hint) as env:
            yield env, _build(config, env, policy)
    finally:
        torch.set_num_threads(threads)


def _build(config: TrainConfig, env: VecEnv, policy: Policy | None) -> PPO:
    # modules draw their first weights from the global stream: seed it for them, and hand the caller's back
    with torch.random.fork_rng([env.device] if env.device.type == "cuda" else []):
        torch.manual_seed(randomness.mix(config.seed, "weights"))
        if policy is None:
            policy = build_policy(env.observation_space, env.action_space, config.policy)
        policy = _fitting(policy, env).to(env.device)
        parts = build_parts(config, env, policy)
    ppo = PPO(env, policy, config.ppo, parts, seed=config.seed, total_steps=config.total_steps)
    if config.offline is not None:
        find_cloning_part(ppo)  # it is missed here, not after the run's folder is made
    return ppo


def _fitting(policy: Policy, env: VecEnv) -> Policy:
    """`policy` itself. Raises ValueError unless it keeps the protocol and was made for the environment's spaces."""
    if not isinstance(policy, Policy):
        kind = policy.__name__ if isinstance(policy, type) else type(policy).__name__
        hint = (
            f"build one: {kind}(observation_space, action_space, ...)"
            if isinstance(policy, type)
            else "inherit us.Policy"
        )
        raise ValueError(f"policy must be an us.Policy object, got {policy!r:.80}; {hint}")
    for name, its, theirs in (
        ("observations", policy.observation_space, env.observation_space),
        ("actions", policy.action_space, env.action_space),
    ):
        if its != theirs:
            raise ValueError(f"the policy was made for the {name} {its}, the environment has {theirs}")
    return policy if policy.built_from is not None else check_policy(policy)


def _check_spaces(env: VecEnv, checkpoint: Mapping[str, Any], env_id: str) -> None:
    """Raise ValueError if the observations and actions are not those that the run was trained with."""
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        before = space_from_plain(checkpoint[f"{name}_space"])
        if flatdim(before) != flatdim(space) or type(before) is not type(space):
            raise ValueError(f"{env_id} has the {name} space {space}, the run was trained with {before}{OWN_ENV}")


def _crossed(interval: int | None, before: int, after: int) -> bool:
    """True if a multiple of `interval` lies in (before, after]."""
    return interval is not None and after // interval > before // interval
