"""The one loop that plays a policy in an environment, episode by episode: to score, to record, to film, to ask."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core.check import In, fit
from understudy.core.sanity import ABSURD, BEYOND_USE, without_faults
from understudy.core.spaces import is_real, same_values, shape_of, size_of
from understudy.envs.actions import admit_actions
from understudy.envs.base import Step, VecEnv
from understudy.envs.gate import Gate, close_quietly
from understudy.envs.objects import as_vec_env
from understudy.envs.registry import EnvConfig
from understudy.nn.acting import function_policy
from understudy.nn.protocol import Policy
from understudy.nn.view import View
from understudy.types import NonFiniteError

logger = logging.getLogger(__name__)

STEP_LIMIT = 30_000
"""Steps after which an episode counts as it stands, so that an environment without an end cannot hang a training."""

_PROGRESS_SECONDS = 20.0
"""Time between two lines about a play that takes long."""
_PATIENCE = 1_000
"""Steps without a sound number after which there will be none."""

OWN_ENV = "; if the run was trained on an environment of your own, give that again (env=...)"
"""Hint where a run's config does not lead to its environment."""

Actor = Callable[[TensorDict, Tensor], Tensor]
"""From obs `[N]` and is_first `[N]`, the action to execute `[N, *A]`."""


class PolicyActor:
    """A policy as an `Actor`: keeps the recurrent state and restarts it with every episode.

    `env`: where it acts, if that may be another environment than its own. Vectors are put side by side where it needs
    that (`View`), and its actions are brought into the environment's bounds. Raises ValueError where the policy does
    not fit.
    """

    def __init__(self, policy: Policy, deterministic: bool = True, env: VecEnv | None = None) -> None:
        self.policy, self.deterministic = policy, deterministic
        self.state: Tensor | None = None
        self.view: View | None = None
        self.space: spaces.Space[Any] | None = None
        if env is not None and isinstance(policy, Policy):
            view = View(policy, env.observation_space, who="the policy", hint=_HINT)
            self.view = None if view.same else view
            if policy.action_space != env.action_space:
                self.space = _same_actions(policy.action_space, env.action_space)

    def __call__(self, obs: TensorDict, is_first: Tensor) -> Tensor:
        """The action to execute."""
        fresh = self.policy.initial_state(len(is_first))
        if fresh is not None:
            self.state = fresh if self.state is None else torch.where(is_first.unsqueeze(-1), fresh, self.state)
        action: Tensor
        seen = obs if self.view is None else self.view(obs)
        action, self.state = self.policy.act(seen, self.state, deterministic=self.deterministic)
        if action.is_floating_point() and not bool(torch.isfinite(action).all()):
            raise NonFiniteError(
                "the policy returned an action that is not finite for an observation that is: its weights hold NaN or "
                "infinity, or its forward divides by zero. Use an older checkpoint"
            )
        if self.space is None:
            return action
        action = action.reshape(len(is_first), *shape_of(self.space))
        return admit_actions(action, self.space, len(is_first), "the policy")

    def sane(self, obs: TensorDict) -> TensorDict:
        """The observation with 0 in place of what the policy's training would have left out."""
        return self.policy.sane(obs) if isinstance(self.policy, Policy) and self.view is None else obs


_HINT = "put its observation together with env.groups={{{name!r}: 'one+another'}}, or choose another environment"


def _same_actions(its: spaces.Space[Any], theirs: spaces.Space[Any]) -> spaces.Space[Any]:
    """The environment's action space. Raises ValueError unless it holds as many numbers, or the same choices."""
    fits = size_of(its) == size_of(theirs) if is_real(its) and is_real(theirs) else same_values(its, theirs)
    if not fits:
        raise ValueError(f"the policy acts in {its}, but the environment takes {theirs}: choose one of its actions")
    return theirs


def acting(subject: Policy | Actor, env: VecEnv, deterministic: bool = True) -> PolicyActor:
    """A policy, or a function of obs and is_first, as what acts in an environment; raises as `PolicyActor`."""
    policy: Any = subject if isinstance(subject, nn.Module) else function_policy(subject, env, "the function")
    return PolicyActor(policy, deterministic, env)


class Moment(NamedTuple):
    """One step of N environments, and the episodes that it ended."""

    obs: TensorDict  # [N], a copy: what was acted on, with 0 in place of broken numbers
    is_first: Tensor  # [N] bool
    action: Tensor  # [N, *A], executed
    step: Step
    returns: np.ndarray  # [N] float64, of the running episodes, this step included
    lengths: np.ndarray  # [N] int64, the same
    broken: np.ndarray  # [N] int64, how many of these steps touched a number that is NaN, infinite or absurd
    over: np.ndarray  # [N] bool: the episode ended with this step, or is cut there
    kept: np.ndarray  # [N] bool: it did, and is one of those asked for


@torch.no_grad()
def play(
    env: VecEnv, act: Actor, episodes: int, seed: int, *, min_steps: int = 0, longest: int | None = None
) -> Iterator[Moment]:
    """Play from a reset until `episodes` whole episodes, of at least `min_steps` steps together, are over.

    An episode of `longest` steps (None: STEP_LIMIT) counts as it stands.

    Each environment owes its share of the episodes, so that short ones, which end sooner, are not over-represented.
    The environment is left in the middle of others: reset it before you use it again. Says how far it is every 20
    seconds. Raises NonFiniteError where the environment gives no sound numbers.
    """
    N = env.num_envs
    tally, judge, gate = _Tally(episodes, N, min_steps, longest), _RewardJudge(), Gate(env)
    obs, is_first = gate.reset(seed), torch.ones(N, dtype=torch.bool, device=env.device)
    while tally.unfinished:
        before, bad = _sound(obs, act)
        action = act(before, is_first)
        step = gate.step(action)
        ended = step.terminated | step.truncated
        valid = np.ones(N, dtype=bool) if step.valid is None else step.valid.cpu().numpy()  # False: only a reset
        rewards, bad_reward = judge(step.reward.double().cpu().numpy())
        over = tally.add(rewards, valid, ended.cpu().numpy())
        if over.any():  # elsewhere the next step looks at the observation
            final = _sound(step.obs, act)[1] if step.final_obs is None else _sound(step.final_obs, act)[1]
            bad |= over & np.where(ended.cpu().numpy(), final, _sound(step.obs, act)[1])
        tally.judge(valid, bad | bad_reward)
        kept = tally.keep(over)
        tally.tell()
        yield Moment(before, is_first, action, step, tally.returns, tally.lengths, tally.broken, over, kept)
        tally.restart(over)
        obs, is_first = step.obs, ended if step.valid is None else ended | ~step.valid


class _Tally:
    """The running episodes of N environments, and how many each still owes."""

    def __init__(self, episodes: int, num_envs: int, min_steps: int, longest: int | None) -> None:
        self.episodes, self.min_steps = episodes, min_steps
        self.longest = STEP_LIMIT if longest is None else longest
        self.owed = np.array(quotas(episodes, num_envs))
        self.returns = np.zeros(num_envs)
        self.lengths, self.broken = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs, dtype=np.int64)
        self.steps = self.total = 0  # of the episodes that were kept; of all, per environment
        self.healthy = self.cut = False
        self.told = time.monotonic()

    @property
    def unfinished(self) -> bool:
        """Whether there are episodes or steps left to play."""
        return self.steps < self.min_steps or bool(self.owed.any())

    def add(self, rewards: np.ndarray, valid: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Count a step `[N]`; which episodes are over, or cut."""
        self.returns += rewards
        self.lengths += valid
        self.total += 1
        return ended | (self.lengths >= self.longest)

    def judge(self, valid: np.ndarray, bad: np.ndarray) -> None:
        """Count broken steps `[N]`. Raises NonFiniteError where nothing else comes."""
        self.broken += valid & bad
        self.healthy = self.healthy or bool((valid & ~bad).any())
        if not self.healthy and self.total >= _PATIENCE:
            raise NonFiniteError(f"the environment gave no sound number in {self.total:,} steps: {_CHECK}")

    def keep(self, over: np.ndarray) -> np.ndarray:
        """Which of the episodes that are over are among those asked for."""
        kept = np.zeros_like(over)
        for n in np.flatnonzero(over):
            kept[n] = self.owed[n] > 0 or self.steps < self.min_steps
            self.owed[n] -= self.owed[n] > 0
            self.steps += int(self.lengths[n] * kept[n])
        return kept

    def tell(self) -> None:
        """Say once that an episode had no end, and now and then how far it is."""
        if not self.cut and self.longest == STEP_LIMIT and (self.lengths >= self.longest).any():
            self.cut = True
            logger.warning("an episode is cut at %s steps: give the environment a time limit", f"{STEP_LIMIT:,}")
        if time.monotonic() - self.told > _PROGRESS_SECONDS:
            self.told = time.monotonic()
            left, steps = self.owed.sum(), f"{self.total:,}"
            logger.warning("%d of %d episodes are still to be played after %s steps", left, self.episodes, steps)

    def restart(self, over: np.ndarray) -> None:
        """Begin the next episodes."""
        self.returns[over], self.lengths[over], self.broken[over] = 0.0, 0, 0


_CHECK = "check its observations and rewards with a random policy"


def _sound(obs: TensorDict, act: Actor) -> tuple[TensorDict, np.ndarray]:
    """A copy `[N]` with 0 in place of broken numbers, and in which rows there were some."""
    bad = np.zeros(len(obs), dtype=bool)
    clean = obs.clone()  # a step may rewrite the tensors that the last one returned
    if isinstance(act, PolicyActor):
        clean = act.sane(clean)
    clean = clean.apply(without_faults)  # type: ignore[assignment]
    for key, x in obs.items(True, True):
        if x.is_floating_point():
            bad |= (x.float() != clean.get(key).float()).flatten(1).any(1).cpu().numpy()
    return clean, bad


class _RewardJudge:
    """Puts 0 in place of rewards that are not finite, or absurd beside the usual size of all rewards so far."""

    def __init__(self) -> None:
        self.logs = self.count = self.zeros = 0.0

    def __call__(self, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rewards `[N]`, and where they were broken."""
        sizes = np.abs(np.nan_to_num(rewards, nan=0.0, posinf=0.0, neginf=0.0))
        self.logs += float(np.log(np.maximum(sizes, 1.0)).sum())
        there = np.count_nonzero(sizes)
        self.count, self.zeros = self.count + there, self.zeros + len(sizes) - there
        usual = math.exp(self.logs / max(self.count + min(self.zeros, 8.0), 1.0))
        bad = ~(np.abs(rewards) <= min(ABSURD * usual, BEYOND_USE))
        return np.where(bad, 0.0, rewards), bad


def quotas(episodes: int, num_envs: int) -> list[int]:
    """How many episodes each environment owes: as even as possible, the first ones take the rest."""
    each, rest = divmod(episodes, num_envs)
    return [each + (index < rest) for index in range(num_envs)]


@contextmanager
def undisturbed(policy: Policy | Actor, seed: int) -> Iterator[None]:
    """Sample from a stream of its own and act in evaluation mode; mode and torch's global stream come back after it."""
    module, device = policy if isinstance(policy, nn.Module) else nn.Module(), device_of(policy)
    training = module.training
    module.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        module.train(training)


def device_of(policy: Policy | Actor) -> torch.device:
    """Where the parameters live; the CPU for a function."""
    if isinstance(policy, Policy):
        return policy.device
    return next(policy.parameters()).device if isinstance(policy, nn.Module) else torch.device("cpu")


@contextmanager
def opened(
    env: Any, device: torch.device | str, seed: int, hint: str = "", *, render: bool = False
) -> Iterator[VecEnv]:
    """The environment that `env` describes (an `EnvConfig`: closed at the end, a simulator drawing if `render`) or is.

    Raises as `EnvConfig.make`, with a hint, and as `as_vec_env`.
    """
    if not isinstance(env, EnvConfig):
        yield as_vec_env(env, device)
        return
    try:
        made = env.make(device, seed, render=render)
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from error
    try:
        yield made
    finally:
        close_quietly(made.close, type(made).__name__)


def required_env(source: Any, env: Any) -> Any:
    """`env` itself. Raises ValueError where there is none: another program's file does not name its environment."""
    if env is None:
        raise ValueError(f"{source} does not say where to play it: give --env.id ID (in Python: env=...)")
    return env


def check_episodes(episodes: int) -> None:
    """Raise ValueError unless there is something to play."""
    fit(Annotated[int, In(1)], episodes, "episodes")


def evaluation_seed(seed: int) -> int:
    """The seed that a training with `seed` evaluates with: not the one that its own environments run on."""
    return (seed + 1_000_003) % 2**31
