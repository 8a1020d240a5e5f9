"""DAgger (Ross, Gordon & Bagnell 2011, arXiv:1011.0686): ask the expert about the states that the learner visits."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Collection
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import randomness, ranks
from understudy.core.schedules import Scalar
from understudy.data.demonstrations.write import write_npz
from understudy.envs.actions import admit_actions
from understudy.envs.base import VecEnv
from understudy.envs.gate import warn_once
from understudy.nn.protocol import Policy
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.parts.shared.teacher_forcing import act_where_forced
from understudy.runs.config import DaggerConfig, TrainConfig
from understudy.runs.folder import RunFolder, load
from understudy.tools.play import Actor, PolicyActor, opened, quotas
from understudy.tools.record import play_episodes, scripted_expert, sound

logger = logging.getLogger(__name__)

LONGEST = 10_000
"""Steps after which an episode is cut, where a round does not ask for more: rounds end where episodes do not."""


class Dagger:
    """Collects the rounds of a DAgger run: `demonstrations/round_000.npz`, `round_001.npz`, ... in the run's folder.

    In round i each environment executes, at each step, the expert's action with probability beta_i and the learner's
    own (its mode: these are the states it will meet) otherwise; the action that is kept is always the expert's. Round
    0 is the expert's alone.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, env: VecEnv, expert: Actor | None = None) -> None:
        assert config.offline is not None
        assert config.offline.dagger is not None
        self.config, self.folder, self.env = config.offline.dagger, folder.demonstrations, env
        self.env_id, self.seed = config.env.id, config.seed
        self.expert = find_expert(self.config, env, config.allowed) if expert is None else expert
        self.beta = Scalar(self.config.beta)

    def collect(self, number: int, learner: Policy | None) -> dict[str, float]:
        """Play round `number` into its file; how many steps, the expert's share, and the score of the mixture.

        Each rank plays a share of the episodes and of the steps; rank 0 writes all.
        """
        self.beta.advance(number, number, self.config.rounds, self.config.rounds)
        beta = 1.0 if learner is None else float(self.beta())
        device, seed = self.env.device, randomness.mix(self.seed, f"dagger/{number}") % 2**31
        least, steps = self.config.episodes_per_round, self.config.steps_per_round
        longest, own_seed = max(LONGEST, steps), seed + ranks.rank() * self.env.num_envs
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(own_seed)  # coins are thrown
            actor = Mixture(self._ask, None if learner is None else PolicyActor(learner), beta)
            played = play_episodes(
                self.env,
                actor,
                quotas(least, ranks.count())[ranks.rank()],
                own_seed,
                label=actor.label,
                min_steps=math.ceil(steps / ranks.count()),
                longest=longest,
            )
        metrics: dict[str, float] = {}
        if shares := ranks.gather_first(played):
            episodes = sound([episode for share in shares for episode in share])
            if any(episode.length == longest for episode in episodes):
                cut = f"{self.env_id}: episodes of {longest:,} steps were cut: do they end? (env.max_episode_steps)"
                warn_once(cut)
            metadata = {"env": self.env_id, "round": number, "beta": beta, "seed": seed}
            write_npz(_round_file(self.folder, number), episodes, metadata)
            metrics = {
                "dagger/round": float(number),
                "dagger/beta": beta,
                "dagger/steps": float(sum(episode.length for episode in episodes)),
                "dagger/return": sum(episode.score for episode in episodes) / len(episodes),
            }
        told: dict[str, float] = ranks.shared(metrics)  # so the file is there
        return told

    def _ask(self, obs: TensorDict, is_first: Tensor) -> Tensor:
        """The expert's actions `[N, *A]`, which `admit_actions` checked."""
        answer = self.expert(obs, is_first)
        return admit_actions(answer, self.env.action_space, self.env.num_envs).to(self.env.device)


class Mixture:
    """Acts as the expert with probability beta at each step of each environment, as the learner otherwise."""

    def __init__(self, expert: Actor, learner: Actor | None, beta: float) -> None:
        self.expert, self.learner, self.beta = expert, learner, beta
        self.asked: Tensor | None = None

    def __call__(self, obs: TensorDict, is_first: Tensor) -> Tensor:
        """The action to execute `[N, *A]`."""
        self.asked = expert = self.expert(obs, is_first)
        if self.learner is None:
            return expert
        own = self.learner(obs, is_first)
        if own.shape != expert.shape:
            raise ValueError(f"the expert's actions {tuple(expert.shape)} do not fit the learner's {tuple(own.shape)}")
        obeys = torch.rand(len(is_first), device=own.device) < self.beta
        label = TensorDict({"action": expert.to(own.dtype), "forced": obeys}, [len(is_first)])
        return act_where_forced(own, label)[0]

    def label(self, obs: TensorDict, is_first: Tensor) -> Tensor:
        """What the expert said about the observations that were just acted on."""
        assert self.asked is not None
        return self.asked


def find_expert(config: DaggerConfig, env: VecEnv, allow: Collection[str] = ()) -> Actor:
    """The expert that `config` names; `allow` as in `us.load`.

    Raises ValueError if it names none, or one that needs other observations.
    """
    if not config.expert:
        raise ValueError(
            "DAgger needs an expert to ask: --offline.dagger.expert RUN (a run or checkpoint), or 'labels' where the "
            "environment's observations have a group 'expert_action'"
        )
    if config.expert == "labels":
        return scripted_expert(env)
    policy = load(config.expert, env.device, allow=allow, env=env)
    try:
        return PolicyActor(policy, env=env)
    except ValueError as error:
        raise ValueError(f"the expert {config.expert} does not fit the environment: {error}") from error


def with_rounds(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """`config` with the run's own rounds as the demonstrations of its cloning parts: wherever the run lies now."""
    parts = {k: dataclasses.replace(v, demonstrations=str(folder.demonstrations)) for k, v in _cloning(config).items()}
    return dataclasses.replace(config, parts={**config.parts, **parts})


def first_round(config: TrainConfig, folder: RunFolder, expert: Actor | None = None, own: VecEnv | None = None) -> None:
    """Collect round 0. `own`: the environment to play in, instead of one built from the config.

    Raises ValueError if the config names demonstrations of its own, or as `find_expert`.
    """
    for name, part in _cloning(config).items():
        if part.demonstrations:
            raise ValueError(f"DAgger collects its own demonstrations: leave parts.{name}.demonstrations out")
    with opened(config.env if own is None else own, config.torch_device(), config.seed + ranks.rank()) as env:
        Dagger(config, folder, env, expert).collect(0, None)


def keep_rounds(folder: RunFolder, last: int) -> None:
    """Remove the rounds after `last`, which will be collected again. Raises ValueError if an earlier one is missing."""
    wanted = {_round_file(folder.demonstrations, number) for number in range(last + 1)}
    found = {*folder.demonstrations.glob("round_*.npz")}
    if lost := sorted(wanted - found):
        raise ValueError(f"{lost[0]} is gone, so the training cannot continue; its policy can still be loaded")
    for file in found - wanted:
        file.unlink()


def _round_file(folder: Path, number: int) -> Path:
    return folder / f"round_{number:03d}.npz"


def _cloning(config: TrainConfig) -> dict[str, BehaviorCloningConfig]:
    return {name: part for name, part in config.parts.items() if isinstance(part, BehaviorCloningConfig)}
