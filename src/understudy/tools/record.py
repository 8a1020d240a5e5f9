"""Recording: play a trained policy or a scripted expert, keep whole episodes as demonstrations or motion clips."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from understudy.core.check import In, checked, fit
from understudy.core.spaces import Key, component_keys
from understudy.data.demonstrations.write import Episode, check_minari_id, write_minari, write_npz
from understudy.envs.base import VecEnv
from understudy.envs.registry import EnvConfig
from understudy.nn.acting import Function
from understudy.nn.protocol import Policy
from understudy.runs.folder import load_foreign, read_policy
from understudy.tools.clips import clip_writer
from understudy.tools.play import (
    OWN_ENV,
    Actor,
    Moment,
    acting,
    check_episodes,
    evaluation_seed,
    opened,
    play,
    required_env,
)
from understudy.version import __version__

logger = logging.getLogger(__name__)

EXPERT_GROUP = "expert_action"
"""Observation group in which an environment says what its scripted expert would do."""

RecordFormat = Literal["minari", "npz", "motion"]


def scripted_expert(env: VecEnv) -> Actor:
    """The environment's own expert. Raises ValueError if its observations have no group `expert_action`."""
    if EXPERT_GROUP not in env.observation_space.spaces:
        raise ValueError(
            f"the environment has no scripted expert: its observations have the groups "
            f"{', '.join(env.observation_space.spaces)}, but no {EXPERT_GROUP!r}; record a trained run instead"
        )
    return lambda obs, _: obs[EXPERT_GROUP]


_BROKEN = "observations or rewards are NaN, infinite or absurd"


def record_episodes(env: VecEnv, act: Actor, episodes: int, seed: int, *, min_steps: int = 0) -> list[Episode]:
    """Play until `episodes` whole episodes of at least `min_steps` steps together are over, as `play`.

    Episodes with numbers that are not finite, or absurd, are left out, with a warning; ValueError where all have some.
    """
    return sound(play_episodes(env, act, episodes, seed, min_steps=min_steps))


def play_episodes(
    env: VecEnv,
    act: Actor,
    episodes: int,
    seed: int,
    *,
    label: Actor | None = None,
    min_steps: int = 0,
    longest: int | None = None,
) -> list[tuple[Episode, bool]]:
    """Whole episodes, played as by `play`, and of each whether it found broken numbers in it.

    The actions kept are those of `label` (an expert that is only asked), if given, else the executed ones.
    """
    tracks = [_Track(component_keys(env.observation_space)) for _ in range(env.num_envs)]
    finished: list[list[tuple[Episode, bool]]] = [[] for _ in tracks]
    for moment in play(env, act, episodes, seed, min_steps=min_steps, longest=longest):
        if label is not None:
            moment = moment._replace(action=label(moment.obs, moment.is_first))
        for n, episode in _follow(tracks, moment):
            if moment.kept[n]:
                finished[n].append((episode, bool(moment.broken[n])))
    return [episode for done in finished for episode in done]


def sound(played: Sequence[tuple[Episode, bool]]) -> list[Episode]:
    """The episodes without broken numbers, with a warning about the others. Raises ValueError if all have some."""
    flaws = {k: flaw for k, (episode, broken) in enumerate(played) if (flaw := episode.flaw() or _BROKEN * broken)}
    if flaws:
        k, flaw = next(iter(flaws.items()))
        said = f"left out {len(flaws)} of {len(played)} episodes with numbers that are not finite (episode {k}, {flaw})"
        if len(flaws) == len(played):
            raise ValueError(f"{said}: nothing is left to record; fix the environment, or the policy")
        logger.warning("%s: they come from the environment, or from the policy", said)
    return [episode for k, (episode, _) in enumerate(played) if k not in flaws]


class _Track:
    """The running episode of one environment."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.observations: dict[Key, list[np.ndarray]] = {key: [] for key in keys}
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []

    def finish(self, final: dict[Key, np.ndarray], terminated: bool, truncated: bool) -> Episode:
        """The episode, ended; the track is empty again."""
        episode = Episode(
            observations={key: np.stack([*rows, final[key]]) for key, rows in self.observations.items()},
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, dtype=np.float64),
            terminated=terminated,
            truncated=truncated,
        )
        for rows in (*self.observations.values(), self.actions, self.rewards):
            rows.clear()  # type: ignore[attr-defined]
        return episode


def _follow(tracks: Sequence[_Track], moment: Moment) -> list[tuple[int, Episode]]:
    """Append one step to every track; the environments whose episode it ended, with these episodes."""
    step, keys = moment.step, list(tracks[0].observations)
    rows = {key: moment.obs.get(key).cpu().numpy() for key in keys}
    actions, rewards = moment.action.cpu().numpy(), step.reward.cpu()
    terminated = step.terminated.cpu().tolist()
    valid = [True] * len(tracks) if step.valid is None else step.valid.cpu().tolist()
    over = []
    for n, track in enumerate(tracks):
        if not valid[n]:
            continue  # the environment spent the step on resetting
        for key in keys:
            track.observations[key].append(rows[key][n].copy())
        track.actions.append(actions[n].copy())
        track.rewards.append(float(rewards[n]))
        if moment.over[n]:  # cut where it was neither
            truncated = bool(step.truncated[n]) or not terminated[n]
            over.append((n, track.finish(_final(keys, moment, n), terminated[n], truncated)))
    return over


def _final(keys: Sequence[Key], moment: Moment, n: int) -> dict[Key, np.ndarray]:
    step = moment.step
    source = step.final_obs if bool(step.terminated[n] | step.truncated[n]) else step.obs
    if source is None:
        _warn_of_final_observations()
        source = moment.obs
    return {key: source.get(key)[n].cpu().numpy().copy() for key in keys}


@functools.cache
def _warn_of_final_observations() -> None:
    """Once: DAgger records again and again."""
    logger.warning("the environment gives no final observations: the last one is recorded twice")


# --------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What was written."""

    path: Path
    episodes: int
    steps: int
    score: float  # mean undiscounted return
    score_std: float

    @classmethod
    def of(cls, path: Path, episodes: Sequence[Episode]) -> Recorded:
        """The numbers of these episodes."""
        scores = np.array([episode.score for episode in episodes])
        return cls(
            path=path,
            episodes=len(episodes),
            steps=sum(episode.length for episode in episodes),
            score=float(scores.mean()),
            score_std=float(scores.std()),
        )

    def sentence(self) -> str:
        """One line for people."""
        return f"return {self.score:.1f} ± {self.score_std:.1f} ({self.episodes} episodes, {self.steps:,} steps)"


Write = Callable[[Sequence[Episode]], Path]
"""Writes what was played and says where it lies."""


@checked
def record(
    output: str | Path,
    *,
    run: Path | str | Policy | Function | None = None,
    expert_of: EnvConfig | None = None,
    env: Any = None,
    episodes: int = 25,
    seed: int | None = None,
    deterministic: bool = True,
    file_format: RecordFormat | None = None,
    frame_time: float | None = None,
    allow: Collection[str] = (),
) -> Recorded:
    """Play `run` (as in `us.evaluate`), or the scripted expert of the environment `expert_of`, into a dataset.

    `output` is a path that ends in .npz or the id of the Minari dataset to make; `file_format` says it where the name
    does not. "motion" writes each episode of a run as one motion clip, whose fields are called as the observations'
    columns are: `MotionPrior` looks for exactly these names (`policy[3]`) where none are configured; `frame_time` is
    the time between two observations in seconds (None: the environment's own, which MuJoCo's tasks tell). `env`: an
    environment to play in (an `EnvConfig` or an object), instead of one built from the run's config. `allow` as in
    `us.evaluate`.

    Environment, score and seed are kept in a dataset's metadata. Raises ValueError for an output that exists or
    cannot be named so, for clips without a frame time and of observations without vectors, ImportError without
    Minari, all before anything is played.
    """
    if (run is None) == (expert_of is None):
        raise ValueError("name a run to record, or an environment with a scripted expert, not both")
    check_episodes(episodes)
    fit(Annotated[int | None, In(0)], seed, "seed")
    fit(str | Path, output, "output")
    fit(RecordFormat | None, file_format, "file_format")
    fit(Collection[str], allow, "allow")
    chosen = file_format or ("npz" if str(output).endswith(".npz") else "minari")
    path = _check_output(str(output), chosen, run)
    policy, seed_of_run, config = None, 0, env if isinstance(env, EnvConfig) else expert_of
    name = "scripted expert" if run is None else Path(run).name if isinstance(run, str | Path) else "a policy"
    if isinstance(run, str | Path) and (foreign := load_foreign(run, allow)) is not None:
        policy = foreign
    elif isinstance(run, str | Path):
        policy, trained = read_policy(Path(run), allow=allow, env=env is None)
        config, seed_of_run = config or trained.env, evaluation_seed(trained.seed)
    else:
        policy = run
    seed = seed_of_run if seed is None else seed
    place = config if env is None else env
    with opened(required_env(name, place), "cpu", seed, "" if run is None else OWN_ENV) as played_in:
        actor = scripted_expert(played_in) if policy is None else acting(policy, played_in, deterministic)
        metadata = {"env": config.id if config else "", "expert": name, "seed": seed}
        metadata |= {"deterministic": deterministic, "understudy_version": __version__}
        if chosen == "motion":
            assert run is not None
            write = clip_writer(path, name, played_in, frame_time)
        else:
            write = _dataset_writer(str(output), path, chosen, played_in, metadata)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            played = record_episodes(played_in, actor, episodes, seed)
    return replace(Recorded.of(path, played), path=write(played))


def _check_output(output: str, chosen: RecordFormat, run: Any) -> Path:
    """The file to write. Raises ValueError or ImportError where it cannot be."""
    if chosen == "motion":
        if run is None:
            raise ValueError("motion clips are recorded from a run: name one")
        if not output.endswith(".npz"):
            raise ValueError(f"motion clips go into a .npz file, not {output}: name it {output}.npz")
    if chosen == "minari":
        check_minari_id(output)
    path = Path(output if output.endswith(".npz") else f"{output}.npz")
    if chosen != "minari":
        if path.exists():
            raise ValueError(f"{path} exists: choose another --output, or delete it")
        path.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before anything is played
    return path


def _dataset_writer(output: str, path: Path, chosen: RecordFormat, env: VecEnv, metadata: dict[str, Any]) -> Write:
    def write(episodes: Sequence[Episode]) -> Path:
        recorded = Recorded.of(path, episodes)
        described = {**metadata, "score": recorded.score, "score_std": recorded.score_std}
        if chosen == "minari":
            return write_minari(output, episodes, described, env.observation_space, env.action_space)
        write_npz(path, episodes, described)
        return path

    return write
