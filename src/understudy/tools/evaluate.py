"""Scoring a policy: whole episodes, statistics frozen, no random stream disturbed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from torch import nn

from understudy.core import ranks
from understudy.core.check import In, checked, fit
from understudy.envs.base import VecEnv
from understudy.envs.makers import ENVS, is_simulator
from understudy.envs.registry import ENVPOOL_FROM, EnvConfig, with_copies
from understudy.nn.acting import Function
from understudy.nn.protocol import Policy
from understudy.runs.evaluation import EvaluationResult
from understudy.runs.folder import Run, load_foreign, read_policy
from understudy.tools.film import check_video_packages, film
from understudy.tools.play import (
    OWN_ENV,
    acting,
    check_episodes,
    device_of,
    evaluation_seed,
    opened,
    play,
    quotas,
    required_env,
    undisturbed,
)
from understudy.types import NonFiniteError

logger = logging.getLogger(__name__)

MAX_ENVS = ENVPOOL_FROM
"""Environments stepped at once: more only pay off with more episodes than anyone evaluates."""

MAX_BATCHED_ENVS = 512
"""Copies of a simulator or one of our own tasks stepped at once: a batch of them costs hardly more than one."""


@checked
def evaluate(
    run_or_policy: Run | Path | str | Policy | Function,
    *,
    env: Any = None,
    episodes: int = 10,
    seed: int | None = None,
    deterministic: bool = True,
    video: Path | str | None = None,
    allow: Collection[str] = (),
) -> EvaluationResult:
    """Score a policy on exactly `episodes` whole episodes and, if `video` names a file, film one more.

    The policy: a run or checkpoint, another program's file (as `us.load` reads it), an object, or a function of obs
    `[N]` and is_first `[N]`.

    `env` is an `EnvConfig`, of which copies are made, or an environment of yours (a `VecEnv`, a Gymnasium vector
    environment, a simulator), which is reset first and left in the middle of episodes: reset it before you go on.
    None: the one that the run was trained for, with the options of its evaluation. `seed` None: as in the run's
    training, 0 for a policy without a run. `allow` names the modules that the policy and the environment of a run on
    disk may import, as in `us.load`.

    Each environment owes a fixed number of episodes, so that short episodes, which end sooner, are not
    over-represented. Broken numbers (NaN, infinite, absurd) are taken for 0, as in training, and `broken_steps` counts
    them. The same seed gives the same result; torch's global random state is left as it was.
    A film that fails does not fail the evaluation: `video_error` says why. Raises ValueError for no episodes and
    no environment, NonFiniteError where nothing sound came or the policy itself is broken, ImportError that names the
    extra to install for filming.
    """
    if isinstance(run_or_policy, type) or not callable(run_or_policy):
        fit(str | Path | Run | nn.Module, run_or_policy, "run_or_policy")
    check_episodes(episodes)
    fit(Annotated[int | None, In(0)], seed, "seed")
    fit(bool, deterministic, "deterministic")
    fit(str | Path | None, video, "video")
    fit(Collection[str], allow, "allow")
    if video is not None:
        check_video_packages()  # before the work, not after it
    policy, env, seed = _subject(run_or_policy, env, seed, allow)
    copies = dataclasses.replace(env, num_envs=_num_envs(episodes, env)) if isinstance(env, EnvConfig) else env
    result = _scored([_played(policy, copies, episodes, seed, deterministic)], episodes, seed, deterministic)
    return result if video is None else filmed(result, policy, env, Path(video))


def evaluate_together(
    policy: Policy, env: EnvConfig | VecEnv, *, episodes: int, seed: int, deterministic: bool
) -> EvaluationResult | None:
    """`evaluate` by all ranks, each of which plays a share of the episodes; None elsewhere than on rank 0.

    Of an `EnvConfig`, each rank makes some of the copies that one process would make, with their seeds and episodes;
    an environment that each rank has plays as many episodes as the others', one more on the first ranks.
    """
    number, size = ranks.rank(), ranks.count()
    if isinstance(env, EnvConfig):
        whole = dataclasses.replace(env, num_envs=_num_envs(episodes, env))
        shares, owed = quotas(whole.num_envs, size), quotas(episodes, whole.num_envs)
        first = sum(shares[:number])
        own = sum(owed[first : first + shares[number]])
        env = with_copies(whole, shares[number]) if own else whole
    else:
        first, own = number * env.num_envs, quotas(episodes, size)[number]
    played = _played(policy, env, own, seed + first, deterministic) if own else _Played([], 0)
    gathered = ranks.gather_first(played)
    return _scored(gathered, episodes, seed, deterministic) if gathered else None


class _Played(NamedTuple):
    episodes: list[tuple[float, int]]
    """Return and length of each, in the order of the copies; not of one that held nothing but broken numbers."""
    broken: int
    """Steps with broken numbers."""


def _played(policy: Policy | Function, env: Any, episodes: int, seed: int, deterministic: bool) -> _Played:
    with undisturbed(policy, seed), opened(env, device_of(policy), seed, OWN_ENV) as played_in:
        finished: list[list[tuple[float, int]]] = [[] for _ in range(played_in.num_envs)]
        broken = 0
        for moment in play(played_in, acting(policy, played_in, deterministic), episodes, seed):
            for n in np.flatnonzero(moment.kept):
                broken += int(moment.broken[n])
                if moment.broken[n] < moment.lengths[n]:
                    finished[n].append((float(moment.returns[n]), int(moment.lengths[n])))
    return _Played([episode for done in finished for episode in done], broken)


def _scored(shares: Sequence[_Played], episodes: int, seed: int, deterministic: bool) -> EvaluationResult:
    """The result of all ranks' shares. Raises NonFiniteError where none has a sound number."""
    played, broken = [episode for share in shares for episode in share.episodes], sum(share.broken for share in shares)
    if not played:
        raise NonFiniteError(
            f"all {broken} steps of {episodes} episodes held numbers that are not finite, or absurd: there is "
            "nothing to score. Check the environment's observations and rewards with a random policy"
        )
    result = dataclasses.replace(EvaluationResult.of(played, deterministic, seed), broken_steps=broken)
    if broken:
        logger.warning("evaluation: %s", result.sentence())
    return result


def filmed(result: EvaluationResult, policy: Policy | Function, env: Any, path: Path) -> EvaluationResult:
    """The result of an evaluation with an episode more, on film; `video_error` says why there is none."""
    error = film(policy, env, path, result.seed, result.deterministic)
    return dataclasses.replace(result, video=None if error else str(path), video_error=error)


def _subject(
    run_or_policy: Run | Path | str | Policy | Function, env: Any, seed: int | None, allow: Collection[str]
) -> tuple[Policy | Function, Any, int]:
    """Policy, environment and seed to use. Raises ValueError where nothing says which environment."""
    if isinstance(run_or_policy, Run):
        policy, config = run_or_policy.policy, run_or_policy.config
    elif isinstance(run_or_policy, Path | str):
        if (foreign := load_foreign(run_or_policy, allow)) is not None:
            return foreign, required_env(run_or_policy, env), seed or 0
        policy, config = read_policy(Path(run_or_policy), allow=allow, env=env is None)
    elif env is None:
        raise ValueError("a policy alone does not say where to play it: give evaluate an env, or a run")
    else:
        return run_or_policy, env, seed or 0
    return (
        policy,
        config.evaluation_env() if env is None else env,
        evaluation_seed(config.seed) if seed is None else seed,
    )


def _num_envs(episodes: int, env_config: EnvConfig) -> int:
    if env_config.id in ENVS or is_simulator(env_config.id):
        return min(episodes, MAX_BATCHED_ENVS)
    # backend "auto" depends on the number of copies, and backends differ in physics: stay with the training's
    if env_config.backend == "auto":
        return MAX_ENVS if env_config.num_envs >= ENVPOOL_FROM else min(episodes, ENVPOOL_FROM - 1)
    return min(episodes, MAX_ENVS)
