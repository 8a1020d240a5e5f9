"""Scoring a policy: whole episodes on environments of its own, statistics frozen, no random stream disturbed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.envs.base import VecEnv
from understudy.envs.registry import ENVPOOL_FROM, ENVS, EnvConfig
from understudy.nn.policy import ActorCritic
from understudy.tools.film import check_video_packages, film

MAX_ENVS = ENVPOOL_FROM
"""Environments stepped at once: more only pay off with more episodes than anyone evaluates."""

MAX_BATCHED_ENVS = 512
"""Copies of one of our own tasks stepped at once: a batch of them costs hardly more than one."""

STEP_LIMIT = 100_000
"""Steps after which an episode counts as it stands, so that an environment without an end cannot hang a training."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Undiscounted returns of whole episodes, in the task's own reward units."""

    mean_return: float
    std_return: float  # population standard deviation over episodes
    min_return: float
    max_return: float
    mean_length: float  # steps
    episodes: int
    deterministic: bool
    seed: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    video: str | None = None  # path of the film, if one was made
    video_error: str | None = None  # why filming failed, if it did

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; non-finite numbers as None."""
        return {name: _finite(value) for name, value in dataclasses.asdict(self).items()}

    def sentence(self) -> str:
        """One line for people."""
        how = "deterministic" if self.deterministic else "sampled"
        return (
            f"return {self.mean_return:.1f} ± {self.std_return:.1f} "
            f"({self.episodes} {how} episodes of {self.mean_length:.0f} steps on average)"
        )

    def metrics(self) -> dict[str, float]:
        """The numbers that a training logs."""
        return {
            "evaluation/return": self.mean_return,
            "evaluation/return_std": self.std_return,
            "evaluation/length": self.mean_length,
        }


def evaluate(
    policy: ActorCritic,
    env_config: EnvConfig,
    episodes: int = 10,
    seed: int = 0,
    deterministic: bool = True,
    video_path: Path | str | None = None,
) -> EvaluationResult:
    """Score `policy` on exactly `episodes` whole episodes and, if `video_path` is given, film one more.

    Each environment owes a fixed number of episodes, so that short episodes, which end sooner, are not
    over-represented. The same seed gives the same result; torch's global random state is left as it was.
    A film that fails does not fail the evaluation: `video_error` says why. Raises ValueError for no episodes,
    ImportError that names the extra to install for filming.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; an evaluation needs at least 1")
    if video_path is not None:
        check_video_packages()  # before the work, not after it
    device = next(policy.parameters()).device
    training = policy.training
    policy.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            env = dataclasses.replace(env_config, num_envs=_num_envs(episodes, env_config)).make(device, seed)
            try:
                returns, lengths = _run_episodes(policy, env, episodes, seed, deterministic)
            finally:
                env.close()
            video = None if video_path is None else film(policy, env_config, Path(video_path), seed, deterministic)
    finally:
        policy.train(training)
    return EvaluationResult(
        mean_return=float(np.mean(returns)),
        std_return=float(np.std(returns)),
        min_return=min(returns),
        max_return=max(returns),
        mean_length=float(np.mean(lengths)),
        episodes=len(returns),
        deterministic=deterministic,
        seed=seed,
        returns=tuple(returns),
        lengths=tuple(lengths),
        video=str(video.path) if video is not None and video.error is None else None,
        video_error=video.error if video is not None else None,
    )


def evaluation_seed(seed: int) -> int:
    """The seed that a training with `seed` evaluates with: not the one that its own environments run on."""
    return (seed + 1_000_003) % 2**31


def quotas(episodes: int, num_envs: int) -> list[int]:
    """How many episodes each environment owes: as even as possible, the first ones take the rest."""
    each, rest = divmod(episodes, num_envs)
    return [each + (index < rest) for index in range(num_envs)]


def _num_envs(episodes: int, env_config: EnvConfig) -> int:
    if env_config.id in ENVS:
        return min(episodes, MAX_BATCHED_ENVS)
    # backend "auto" depends on the number of copies, and backends differ in physics: stay with the training's
    if env_config.backend == "auto":
        return MAX_ENVS if env_config.num_envs >= ENVPOOL_FROM else min(episodes, ENVPOOL_FROM - 1)
    return min(episodes, MAX_ENVS)


def _run_episodes(
    policy: ActorCritic, env: VecEnv, episodes: int, seed: int, deterministic: bool
) -> tuple[list[float], list[int]]:
    num_envs = env.num_envs
    owed = quotas(episodes, num_envs)
    finished: list[list[tuple[float, int]]] = [[] for _ in range(num_envs)]
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
    obs, state = env.reset(seed), policy.initial_state(num_envs)
    while any(len(done) < quota for done, quota in zip(finished, owed)):
        action, state = policy.act(obs, state, deterministic=deterministic)
        step = env.step(action)
        returns += step.reward.double().cpu().numpy()
        # a row that only reset its environment does not count
        lengths += 1 if step.valid is None else step.valid.cpu().numpy()
        over = step.ended.cpu().numpy() | (lengths >= STEP_LIMIT)
        for index in np.flatnonzero(over):
            if len(finished[index]) < owed[index]:
                finished[index].append((float(returns[index]), int(lengths[index])))
            returns[index], lengths[index] = 0.0, 0
        state = _restart(state, step.starts_next, policy)
        obs = step.obs
    flat = [episode for done in finished for episode in done]
    return [episode[0] for episode in flat], [episode[1] for episode in flat]


def _restart(state: Tensor | None, is_first: Tensor, policy: ActorCritic) -> Tensor | None:
    """A recurrent policy starts every episode from its initial state."""
    fresh = policy.initial_state(is_first.shape[0])
    if state is None or fresh is None:
        return state
    return torch.where(is_first.unsqueeze(-1), fresh, state)  # [N, S]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_finite(inner) for inner in value] if isinstance(value, tuple) else value
