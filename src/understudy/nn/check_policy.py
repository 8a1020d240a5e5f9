"""`check_policy`: whether a network of the user's own keeps what a policy promises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key, classes_of, shape_of
from understudy.nn.protocol import Policy, PolicyOutput, component_names


def require_policy(policy: Any) -> None:
    """Raise ValueError, which says how to make one, unless `policy` is a `Policy` object."""
    if not isinstance(policy, Policy):
        is_class = isinstance(policy, type)
        hint = (
            f"build one: {policy.__name__}(observation_space, action_space, ...)" if is_class else "inherit us.Policy"
        )
        raise ValueError(f"policy must be an us.Policy object, got {policy!r:.80}; {hint}")


@torch.no_grad()
def check_policy(policy: Policy) -> Policy:
    """`policy` itself, after a run on a few rows. Raises ValueError that says what it returns wrongly.

    Shapes, types and finiteness are checked, that the same rows give the same results and no row depends on another,
    that acting needs the actor's observations only, that a sequence equals its steps, and that an episode's start
    forgets the state. The weights do not move, and neither do random streams.
    """
    training, kept = policy.training, {name: x.clone() for name, x in policy.state_dict().items()}
    try:
        with torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):
            _check_rows(policy.train())
            _check_one_step(policy.eval())
            if policy.recurrent:
                _check_sequence(policy)
    finally:
        policy.train(training)
        for name, x in policy.state_dict().items():
            x.copy_(kept[name])
    return policy


def _check_rows(policy: Policy) -> None:
    """Training compares the policy with itself, row by row: all that differs must come from its weights."""
    who, generator = f"the policy {type(policy).__name__}", torch.Generator().manual_seed(0)
    obs, state = random_rows(policy, 3, generator, policy.input_keys), policy.initial_state(3)
    other = random_rows(policy, 3, generator, policy.input_keys)
    for key in policy.input_keys:
        other[key][0] = obs[key][0]
    try:
        first, again, mixed = (policy(x, state) for x in (obs, obs, other))
    except Exception as error:  # whatever a network of the user's own raises
        raise ValueError(
            f"{who} cannot compute three rows of observations ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(first, PolicyOutput):
        raise ValueError(f"{who} must return a PolicyOutput from forward, it returns a {type(first).__name__}")
    outs = (first, again, mixed)
    results = {"params": [out.distribution.params for out in outs], "value": [out.value for out in outs]}
    for name, (x, y, z) in results.items():
        if x.dtype != torch.float32:
            raise ValueError(f"{who} gives {name} in {x.dtype}: policies compute in float32, so call .float() on it")
        if not torch.isfinite(x).all():
            raise ValueError(f"{who} gives {name} that are not finite for finite observations")
        if not torch.allclose(x, y, atol=1e-5, rtol=1e-4):
            raise ValueError(
                f"{who} gives other {name} for the same observation the second time: take dropout, noise and moving "
                "statistics out of it, since PPO compares the policy with itself"
            )
        if not torch.allclose(x[:1], z[:1], atol=1e-4, rtol=1e-3):
            raise ValueError(
                f"{who} gives {name} for a row that depend on the other rows: take layers that mix environments out of "
                "it (batch normalisation; layer normalisation is fine)"
            )


def random_rows(
    policy: Policy, batch: int, generator: torch.Generator, keys: Iterable[Key] | None = None
) -> TensorDict:
    """Observations `[batch]`, drawn as the normaliser has seen them; `keys` None: those for acting."""
    rows = policy.blank_observation(batch, keys)
    for key in policy.sensor_keys if keys is None else component_names(rows):
        x = rows[key]
        if x.is_floating_point():
            rows[key] = policy.raw(key, torch.randn(x.shape, generator=generator).to(x.device))
        else:
            classes = classes_of(space := policy.component(key))
            count: Any = 256 if x.dtype == torch.uint8 else 2
            count = count if classes is None else torch.tensor(classes.counts).reshape(shape_of(space))
            drawn = (torch.rand(x.shape, generator=generator) * count).long()
            rows[key] = (x + drawn.to(x.device)).to(x.dtype)
    return rows


def _check_one_step(policy: Policy) -> None:
    who, state = f"the policy {type(policy).__name__}", policy.initial_state(2)
    out = policy(policy.blank_observation(2, policy.input_keys), state)
    found = {"value": out.value, "params": out.distribution.params, "action": out.distribution.mode()}
    expected = {"value": (2,), "params": (2, policy.head.num_params), "action": (2, *policy.head.action_shape)}
    if policy.recurrent:
        expected["state"], found["state"] = (2, policy.state_size), torch.empty(0) if out.state is None else out.state
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{who} gives {name} {tuple(found[name].shape)} for two rows; it must be {shape}")
    try:
        alone = policy.run_actor(policy.blank_observation(2), state)[0]
    except (KeyError, AttributeError, TypeError) as error:
        sensors = ", ".join("/".join(key) for key in policy.sensor_keys)
        raise ValueError(
            f"{who} cannot act on {sensors} alone ({error}): override run_actor, so that it does not run the critic"
        ) from error
    if not torch.allclose(alone.params, out.distribution.params, atol=1e-5):
        raise ValueError(f"run_actor and forward of {who} give different distributions for the same observation")


def _check_sequence(policy: Policy) -> None:
    """Three steps of two environments, of which the second starts an episode at the second step."""
    generator, who = torch.Generator().manual_seed(0), f"the policy {type(policy).__name__}"
    obs = random_rows(policy, 6, generator, policy.input_keys).view(3, 2)
    is_first = torch.tensor([[False, False], [False, True], [False, False]], device=policy.device)

    def run(obs: Any, state: Any, is_first: Tensor) -> tuple[Tensor, Any]:
        out = policy(obs, state, is_first)
        return torch.cat((out.distribution.params, out.value.unsqueeze(-1)), dim=-1), out.state

    zeros = torch.zeros(2, policy.state_size, device=policy.device)
    whole, last = run(obs, zeros, is_first)
    state, fresh = zeros, zeros
    for t in range(3):
        y, state = run(obs[t], state, is_first[t])
        if state.shape != zeros.shape or whole.shape[:2] != (3, 2) or y.shape != whole.shape[1:]:
            raise ValueError(
                f"{who} gives {tuple(y.shape)} and a state {tuple(state.shape)} for a step of two environments, "
                f"{tuple(whole.shape)} for three steps of them; the state must be {tuple(zeros.shape)}"
            )
        if not torch.allclose(y, whole[t], atol=1e-4):
            raise ValueError(f"{who} gives other results for a sequence [T, B] than for its steps: see `us.nn.unroll`")
        if t:
            y, fresh = run(obs[t], fresh, torch.zeros_like(is_first[t]))
    if not torch.allclose(state, last, atol=1e-4):
        raise ValueError(f"{who} ends a sequence [T, B] in another state than its steps: see `us.nn.unroll`")
    if not torch.allclose(y[1], whole[-1, 1], atol=1e-4):
        raise ValueError(f"{who} remembers what came before is_first: clear the state there, see `us.nn.unroll`")
