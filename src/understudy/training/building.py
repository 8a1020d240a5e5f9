"""From a config, and objects that stand in for what it names, to the environment and the PPO that will train in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces import flatdim

from understudy.core import randomness, ranks
from understudy.core.borders import parsing
from understudy.core.devices import allocating
from understudy.envs.base import VecEnv
from understudy.envs.makers import runs_alone
from understudy.envs.objects import as_vec_env
from understudy.nn.check_policy import check_policy, require_policy
from understudy.nn.policy import build_policy
from understudy.nn.protocol import Policy
from understudy.ppo.part import Part, PartContext
from understudy.ppo.ppo import PPO
from understudy.runs.checkpoint import Checkpoint
from understudy.runs.codec import from_plain, to_plain
from understudy.runs.config import TrainConfig
from understudy.runs.folder import load
from understudy.runs.spaces import space_from_plain
from understudy.tools.play import OWN_ENV, opened
from understudy.training.offline import find_cloning_part
from understudy.types import CheckpointError

THREADS_PAY_FROM = 2e8
"""Parameters x rows of a minibatch from which on more than one thread pays: its gradient takes one thread some 20 ms.
Below, handing out the work costs more than it saves, and on a busy machine many times more."""


def with_own_env(config: TrainConfig, env: Any) -> tuple[TrainConfig, VecEnv | None]:
    """The environment that was given, if one was, and a config that says how many copies it steps.

    Raises ValueError for an object that is not an environment, and for options that nobody can apply to it.
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


def located(config: TrainConfig, start: Path) -> TrainConfig:
    """`config` with the relative paths that lead to a file only from `start`, where its run began, as absolute ones."""

    def find(plain: Any) -> Any:
        if isinstance(plain, dict):
            return {name: find(inner) for name, inner in plain.items()}
        if isinstance(plain, list):
            return [*map(find, plain)]
        if not isinstance(plain, str) or not ("/" in plain or "." in plain):
            return plain
        file = plain if Path(plain).exists() else plain.split(",")[0]  # before a source's options
        return str(start / plain) if not Path(file).exists() and (start / file).exists() else plain

    plain = to_plain(config)
    found = from_plain(TrainConfig, plain | {name: find(plain[name]) for name in ("parts", "offline")}, allow=None)
    return dataclasses.replace(config, parts=found.parts, offline=found.offline)


@contextmanager
def building(
    config: TrainConfig,
    own: VecEnv | None = None,
    policy: Policy | None = None,
    hint: str = "",
) -> Iterator[tuple[VecEnv, PPO]]:
    """Environment and PPO of a config; closes an environment of its own, restores torch's thread count at the end.

    Raises ValueError for what does not fit together, options of the evaluation's environment included.
    """
    device = config.torch_device()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.torch_threads or 1)
    try:
        scored = _evaluation_spaces(config)
        own_seed = ranks.own_seed(config.seed)
        randomness.seed_everything(own_seed)  # environments may draw from the global streams
        seed = randomness.env_seed(own_seed, 0)  # what PPO resets it with first
        draws = config.evaluation.video and runs_alone(config.env.id)  # there will be no other one to film in
        with opened(config.env if own is None else own, device, seed, hint, render=draws) as env:
            if scored not in (None, (env.observation_space, env.action_space)):
                raise ValueError(
                    f"evaluation.env_kwargs {config.evaluation.env_kwargs} change the spaces of {config.env.id}, which "
                    "the policy is made for: leave those options out"
                )
            with allocating("env.num_envs, ppo.num_steps or the sizes of the networks"):
                ppo = _build(config, env, policy)
            if config.torch_threads is None and threads_pay(ppo):
                torch.set_num_threads(threads)
            yield env, ppo
    finally:
        torch.set_num_threads(threads)


def threads_pay(ppo: PPO) -> bool:
    """Whether networks and minibatches are so large that torch is faster with more than one thread."""
    rows = ppo.env.num_envs * (1 if ppo.policy.recurrent else ppo.config.num_steps) / ppo.config.minibatches
    return len(ppo.optimizer.flat) * rows >= THREADS_PAY_FROM


def _evaluation_spaces(config: TrainConfig) -> tuple[Any, Any] | None:
    """Spaces of an evaluation's environment, built once where its options differ: refused now, not after the work."""
    if not config.evaluation.env_kwargs or config.evaluation.episodes == 0:
        return None
    if runs_alone(config.env.id):
        raise ValueError(
            f"evaluation.env_kwargs need an environment of their own, but a process runs one simulator of "
            f"{config.env.id}: leave them out"
        )
    try:
        with opened(dataclasses.replace(config.evaluation_env(), num_envs=1), config.torch_device(), 0) as env:
            return env.observation_space, env.action_space
    except ValueError as error:
        raise ValueError(f"evaluation.env_kwargs: {error}") from error


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
        find_cloning_part(ppo)  # it is missed here, not after the work
    return ppo


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
            seed=randomness.mix(ranks.own_seed(config.seed), f"part/{name}"),
            env_id=config.env.id,
            groups=config.env.groups,
            segments=config.env.segments,
            load_policy=functools.partial(load, allow=config.allowed, env=env),
        )
        torch.manual_seed(context.seed)  # so that a part's first weights do not depend on the parts before it
        parts[name] = part.build(context).to(env.device)
    return parts


def _fitting(policy: Policy, env: VecEnv) -> Policy:
    """`policy` itself. Raises ValueError unless it keeps the protocol and was made for the environment's spaces."""
    require_policy(policy)
    for name, its, theirs in (
        ("observations", policy.observation_space, env.observation_space),
        ("actions", policy.action_space, env.action_space),
    ):
        if its != theirs:
            raise ValueError(f"the policy was made for the {name} {its}, the environment has {theirs}")
    return policy if policy.built_from is not None else check_policy(policy)


def check_fits(env: VecEnv, checkpoint: Checkpoint, env_id: str) -> None:
    """Raise ValueError if there are other observations, actions or copies of the environment than in training."""
    if env.num_envs != (copies := checkpoint.stored["env"]["num_envs"]):
        raise ValueError(
            f"{checkpoint.path} was trained with env.num_envs {copies}, now it is {env.num_envs}: resume it with "
            f"{copies}, or start a new training from its policy with --start-from"
        )
    for name, space, described in (
        ("observation", env.observation_space, checkpoint.observation_space),
        ("action", env.action_space, checkpoint.action_space),
    ):
        with parsing(checkpoint.path, "use an older checkpoint of the same run", CheckpointError):
            before = space_from_plain(described, f"{name}_space")
        if flatdim(before) != flatdim(space) or type(before) is not type(space):
            raise ValueError(
                f"{checkpoint.path}: {env_id} has the {name} space {space}, the run was trained with {before}{OWN_ENV}"
            )
