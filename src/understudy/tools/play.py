"""The one loop that plays a policy in an environment, episode by episode: to score, to record, to film, to ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.envs.base import Step, VecEnv
from understudy.envs.gate import Gate, close_quietly
from understudy.envs.registry import EnvConfig, as_vec_env
from understudy.nn.protocol import Policy

STEP_LIMIT = 100_000
"""Steps after which an episode counts as it stands, so that an environment without an end cannot hang a training."""

OWN_ENV = "; if the run was trained on an environment of your own, give that again (env=...)"
"""Hint where a run's config does not lead to its environment."""

Actor = Callable[[TensorDict, Tensor], Tensor]
"""From obs `[N]` and is_first `[N]`, the action to execute `[N, *A]`."""


class PolicyActor:
    """A policy as an `Actor`: keeps the recurrent state and restarts it with every episode."""

    def __init__(self, policy: Policy, deterministic: bool = True) -> None:
        self.policy, self.deterministic = policy, deterministic
        self.state: Tensor | None = None

    def __call__(self, obs: TensorDict, is_first: Tensor) -> Tensor:
        """The action to execute."""
        fresh = self.policy.initial_state(len(is_first))
        if fresh is not None:
            self.state = fresh if self.state is None else torch.where(is_first.unsqueeze(-1), fresh, self.state)
        action: Tensor
        action, self.state = self.policy.act(obs, self.state, deterministic=self.deterministic)
        return action


class Moment(NamedTuple):
    """One step of N environments, and the episodes that it ended."""

    obs: TensorDict  # [N], a copy: what was acted on
    is_first: Tensor  # [N] bool
    action: Tensor  # [N, *A], executed
    step: Step
    returns: np.ndarray  # [N] float64, of the running episodes, this step included
    lengths: np.ndarray  # [N] int64, the same
    over: np.ndarray  # [N] bool: the episode ended with this step, or is cut there
    kept: np.ndarray  # [N] bool: it did, and is one of those asked for


@torch.no_grad()
def play(
    env: VecEnv, act: Actor, episodes: int, seed: int, *, min_steps: int = 0, longest: int | None = None
) -> Iterator[Moment]:
    """Play from a reset until `episodes` whole episodes, of at least `min_steps` steps together, are over.

    An episode of `longest` steps (None: STEP_LIMIT) counts as it stands.

    Each environment owes its share of the episodes, so that short ones, which end sooner, are not over-represented.
    The environment is left in the middle of others: reset it before you use it again.
    """
    owed, steps = np.array(quotas(episodes, env.num_envs)), 0
    longest = STEP_LIMIT if longest is None else longest
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    gate = Gate(env)
    obs, is_first = gate.reset(seed), torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while steps < min_steps or owed.any():
        before = obs.clone()  # a step may rewrite the tensors that the last one returned
        action = act(before, is_first)
        step = gate.step(action)
        ended = step.terminated | step.truncated
        returns += step.reward.double().cpu().numpy()
        lengths += 1 if step.valid is None else step.valid.cpu().numpy()  # False: the row only reset its environment
        over = ended.cpu().numpy() | (lengths >= longest)
        kept = np.zeros_like(over)
        for n in np.flatnonzero(over):
            kept[n] = owed[n] > 0 or steps < min_steps
            owed[n] -= owed[n] > 0
            steps += int(lengths[n] * kept[n])
        yield Moment(before, is_first, action, step, returns, lengths, over, kept)
        returns[over], lengths[over] = 0.0, 0
        obs, is_first = step.obs, ended if step.valid is None else ended | ~step.valid


def quotas(episodes: int, num_envs: int) -> list[int]:
    """How many episodes each environment owes: as even as possible, the first ones take the rest."""
    each, rest = divmod(episodes, num_envs)
    return [each + (index < rest) for index in range(num_envs)]


@contextmanager
def undisturbed(policy: Policy, seed: int) -> Iterator[None]:
    """Sample from a stream of its own and act in evaluation mode; mode and torch's global stream come back after it."""
    training, device = policy.training, device_of(policy)
    policy.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        policy.train(training)


def device_of(policy: nn.Module) -> torch.device:
    """Where the parameters live."""
    return next(policy.parameters()).device


@contextmanager
def opened(env: Any, device: torch.device | str, seed: int, hint: str = "") -> Iterator[VecEnv]:
    """The environment that `env` describes (an `EnvConfig`: closed at the end) or is (left open).

    Raises as `EnvConfig.make`, with a hint, and as `as_vec_env`.
    """
    if not isinstance(env, EnvConfig):
        yield as_vec_env(env, device)
        return
    try:
        made = env.make(device, seed)
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from error
    try:
        yield made
    finally:
        close_quietly(made.close, type(made).__name__)


def check_episodes(episodes: int) -> None:
    """Raise ValueError unless there is something to play."""
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}: play at least 1")


def evaluation_seed(seed: int) -> int:
    """The seed that a training with `seed` evaluates with: not the one that its own environments run on."""
    return (seed + 1_000_003) % 2**31
