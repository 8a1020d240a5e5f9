"""Recording: play a trained policy, or an environment's scripted expert, and keep whole episodes as demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import component_keys
from understudy.data.demonstrations.read import Key
from understudy.data.demonstrations.write import Episode, check_minari_id, write_minari, write_npz
from understudy.envs.base import Step, VecEnv
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import ActorCritic
from understudy.runs.folder import read_policy
from understudy.tools.evaluate import evaluation_seed, quotas
from understudy.version import __version__

logger = logging.getLogger(__name__)

Actor = Callable[[TensorDict, Tensor], Tensor]
"""From obs `[N]` and is_first `[N]`, the action to execute `[N, *A]`."""

EXPERT_GROUP = "expert_action"
"""Observation group in which an environment says what its scripted expert would do."""

RecordFormat = Literal["minari", "npz"]


class PolicyActor:
    """A policy as an `Actor`: it keeps the recurrent state and starts it anew with every episode."""

    def __init__(self, policy: ActorCritic, deterministic: bool = True) -> None:
        self.policy, self.deterministic = policy, deterministic
        self.state: Tensor | None = None

    def __call__(self, obs: TensorDict, is_first: Tensor) -> Tensor:
        """The action to execute."""
        fresh = self.policy.initial_state(len(is_first))
        if fresh is not None:
            self.state = fresh if self.state is None else torch.where(is_first.unsqueeze(-1), fresh, self.state)
        action: Tensor
        action, self.state = self.policy.act(obs, self.state, self.deterministic)
        return action


def scripted_expert(env: VecEnv) -> Actor:
    """The environment's own expert. Raises ValueError if its observations have no group `expert_action`."""
    if EXPERT_GROUP not in env.observation_space.spaces:
        raise ValueError(
            f"the environment has no scripted expert: its observations have the groups "
            f"{', '.join(env.observation_space.spaces)}, but no {EXPERT_GROUP!r}; record a trained run instead"
        )
    return lambda obs, _: obs[EXPERT_GROUP]


@torch.no_grad()
def record_episodes(
    env: VecEnv, act: Actor, episodes: int, seed: int, *, label: Actor | None = None, min_steps: int = 0
) -> list[Episode]:
    """Play until `episodes` whole episodes of at least `min_steps` steps together are over.

    Each environment owes its share of the episodes, so that short ones, which end sooner, are not over-represented.
    The actions kept are those of `label` (an expert that is only asked), if given, else the executed ones.
    """
    tracks = [_Track(component_keys(env.observation_space)) for _ in range(env.num_envs)]
    owed = quotas(episodes, env.num_envs)
    finished: list[list[Episode]] = [[] for _ in tracks]
    obs, is_first, steps = env.reset(seed), torch.ones(env.num_envs, dtype=torch.bool, device=env.device), 0
    while steps < min_steps or any(len(done) < quota for done, quota in zip(finished, owed)):
        before = obs.clone()  # a step may rewrite the tensors that the last one returned
        executed = act(before, is_first)
        kept = executed if label is None else label(before, is_first)
        step = env.step(executed)
        for n, episode in _follow(tracks, before, kept, step):
            if len(finished[n]) < owed[n] or steps < min_steps:
                finished[n].append(episode)
                steps += episode.length
        obs, is_first = step.obs, step.starts_next
    return [episode for done in finished for episode in done]


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


def _follow(tracks: Sequence[_Track], obs: TensorDict, action: Tensor, step: Step) -> list[tuple[int, Episode]]:
    """Append one step to every track; the environments whose episode it ended, with these episodes."""
    keys = list(tracks[0].observations)
    rows, actions, rewards = {key: obs.get(key).cpu().numpy() for key in keys}, action.cpu().numpy(), step.reward.cpu()
    terminated, truncated = step.terminated.cpu().tolist(), step.truncated.cpu().tolist()
    valid = [True] * len(tracks) if step.valid is None else step.valid.cpu().tolist()
    over = []
    for n, track in enumerate(tracks):
        if not valid[n]:
            continue  # the environment spent the step on resetting
        for key in keys:
            track.observations[key].append(rows[key][n].copy())
        track.actions.append(actions[n].copy())
        track.rewards.append(float(rewards[n]))
        if terminated[n] or truncated[n]:
            over.append((n, track.finish(_final(keys, obs, step, n), terminated[n], truncated[n])))
    return over


def _final(keys: Sequence[Key], obs: TensorDict, step: Step, n: int) -> dict[Key, np.ndarray]:
    if step.final_obs is None:
        logger.warning("the environment gives no final observations: the last one is recorded twice")
    source = obs if step.final_obs is None else step.final_obs
    return {key: source.get(key)[n].cpu().numpy().copy() for key in keys}


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


def record(
    output: str,
    *,
    run: Path | None = None,
    expert_of: EnvConfig | None = None,
    episodes: int = 25,
    seed: int | None = None,
    deterministic: bool = True,
    file_format: RecordFormat | None = None,
) -> Recorded:
    """Play `run` (a folder or checkpoint), or the scripted expert of the environment `expert_of`, into a dataset.

    `output` is a path that ends in .npz or the id of the Minari dataset to make; `file_format` says it where the name
    does not. Environment, score and seed are kept in its metadata. Raises ValueError for an output that exists or
    cannot be named so, ImportError without Minari, both before anything is played.
    """
    if (run is None) == (expert_of is None):
        raise ValueError("record what? Name a run, or an environment with a scripted expert, not both")
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; a recording needs at least 1")
    chosen = file_format or ("npz" if output.endswith(".npz") else "minari")
    path = Path(output if output.endswith(".npz") else f"{output}.npz")
    if chosen == "minari":
        check_minari_id(output)
    elif path.exists():
        raise ValueError(f"{path} exists: choose another --output, or delete it")
    if run is not None:
        policy, config = read_policy(run)
        env_config, name = config.env, run.name
        seed = evaluation_seed(config.seed) if seed is None else seed
    else:
        assert expert_of is not None
        policy, env_config, name = None, expert_of, "scripted expert"
    seed = seed or 0
    with closing(env_config.make("cpu", seed)) as env:
        episodes_played = play(policy, env, episodes, seed, deterministic)
    recorded = Recorded.of(path, episodes_played)
    metadata: dict[str, Any] = {
        "env": env_config.id,
        "expert": name,
        "score": recorded.score,
        "score_std": recorded.score_std,
        "seed": seed,
        "deterministic": deterministic,
        "understudy_version": __version__,
    }
    if chosen == "npz":
        write_npz(path, episodes_played, metadata)
        return recorded
    path = write_minari(output, episodes_played, metadata, env.observation_space, env.action_space)
    return replace(recorded, path=path)


def play(
    policy: ActorCritic | None, env: VecEnv, episodes: int, seed: int, deterministic: bool = True
) -> list[Episode]:
    """Episodes of `policy`, or of the environment's scripted expert; torch's global random state stays as it was."""
    actor = scripted_expert(env) if policy is None else PolicyActor(policy, deterministic)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return record_episodes(env, actor, episodes, seed)
