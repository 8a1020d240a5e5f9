"""Policies on disk: plain data that rebuilds one, without importing anything that the caller did not allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from understudy.core.borders import parsing
from understudy.nn.policy import build_policy
from understudy.nn.protocol import Policy, PolicyConfig
from understudy.runs.checkpoint import PolicyDescription, all_finite, check_same_layout
from understudy.runs.codec import check_imports, from_plain, to_plain
from understudy.runs.spaces import space_from_plain, space_to_plain
from understudy.types import CheckpointError


def describe_policy(policy: Policy) -> dict[str, Any]:
    """`PolicyDescription` as plain data."""
    kind = type(policy)
    return {
        "policy": None if policy.built_from is None else to_plain(policy.built_from),
        "policy_class": f"{kind.__module__}:{kind.__qualname__}",
        "observation_space": space_to_plain(policy.observation_space),
        "action_space": space_to_plain(policy.action_space),
    }


def rebuild_policy(
    description: PolicyDescription,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    allow: Collection[str] = (),
    policy: Policy | None = None,
) -> Policy:
    """The policy that `describe_policy` described, with its weights, ready to act; they go into `policy`, if given.

    Raises CheckpointError for a module that is not allowed, a policy that was given as an object, a config that this
    version does not read, and weights that do not fit or are not finite.
    """
    if policy is None:
        config = policy_config(description, source)
        check_consent(description.policy, allow, f"{source}: policy")
        with parsing(source, "it was written by another program or version", CheckpointError):
            described = (description.observation_space, description.action_space)
            observations, actions = map(space_from_plain, described, ("observation_space", "action_space"))
            if not isinstance(observations, spaces.Dict):
                raise CheckpointError(f"{source} has no observation groups; it was written by another program")
            if not config.modules:  # the layout first, without memory: sizes in a damaged config are of any size
                with torch.device("meta"):
                    check_same_layout(build_policy(observations, actions, config).state_dict(), weights, source)
            with torch.random.fork_rng([]):  # the initial weights are drawn, and then replaced
                policy = build_policy(observations, actions, config)
    check_same_layout(policy.state_dict(), weights, source)
    if not all_finite(weights):
        raise CheckpointError(f"{source} has a policy with weights that are not finite; use an older checkpoint")
    policy.load_state_dict(dict(weights))
    return policy.eval()


def check_consent(plain: Any, allow: Collection[str], where: str) -> None:
    """`check_imports` of what a checkpoint says. Raises CheckpointError."""
    try:
        check_imports(plain, allow, where)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def policy_config(description: PolicyDescription, source: str) -> PolicyConfig:
    """What the policy was built from. Raises CheckpointError for an object, and what this version does not read."""
    plain = description.policy
    if plain is None:
        raise CheckpointError(
            f"{source} has a policy that was given as an object ({description.policy_class}): build one like it and "
            "pass it on, us.load(source, policy=...) or us.resume(run, policy=...)"
        )
    try:
        return from_plain(PolicyConfig, plain, "policy")
    except ValueError as error:
        raise CheckpointError(f"{source} has a policy that this version does not read: {error}") from error
