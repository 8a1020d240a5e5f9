"""Start a training from another policy, or from part of it: converted, and checked to answer alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import module_name, shape_of, size_of
from understudy.nn.heads import ActionHead
from understudy.nn.policy import ActorCritic
from understudy.nn.protocol import Policy, PolicyConfig
from understudy.nn.trunk import Trunk
from understudy.runs.checkpoint import check_same_layout
from understudy.runs.config import TrainConfig
from understudy.runs.folder import load, load_foreign
from understudy.types import CheckpointError

TOLERANCE = 1e-5
"""Between the answers of both policies, relative to numbers of size 1."""
_ROWS, _STEPS = 1000, 100
_DECISIVE = ("activation", "observation_clip", "action_scaling", "action_bound", "memory_changes", "distribution")
"""Options of a policy that its weights do not show."""
_CRITIC = ("critic.", "value_head.")


def networks_of(source: str, allow: Collection[str], base: PolicyConfig) -> PolicyConfig | None:
    """The networks of another program's file, on the observation groups of `base`; None for a run of ours.

    Raises CheckpointError for what cannot be trained.
    """
    found = load_foreign(source, allow)
    if found is None:
        return None
    theirs = _trainable(found, source).config
    told = theirs.actor_groups != ("policy",)
    actor = tuple(name for group in theirs.actor_groups for name in group.split("+")) if told else base.actor_groups
    critic = None if theirs.critic_groups is None else tuple(x for g in theirs.critic_groups for x in g.split("+"))
    return dataclasses.replace(theirs, actor_groups=actor, critic_groups=critic or base.critic_groups)


def start_from(policy: Policy, config: TrainConfig) -> None:
    """Give the policy the weights and statistics of `config.start_from`, or the part that `config.start` says.

    Both then answer alike: 1,000 random observations are tried, or 100 steps with a memory. Raises CheckpointError
    that names what does not fit, or how far the answers differ.
    """
    assert config.start_from is not None
    options, who = config.start, config.start_from
    source = load(who, policy.device, allow=config.allowed)
    if not isinstance(policy, ActorCritic):  # of the user's own: as it is, or not at all
        if options.critic != "same":
            raise CheckpointError(f"start.critic knows only policies of the library, not a {type(policy).__name__}")
        check_same_layout(policy.state_dict(), source.state_dict(), who)
        policy.load_state_dict(source.state_dict())
    else:
        source = _trainable(source, who)
        _take(policy, source, who, actor=True, critic=options.critic == "same")
        _check_alike(policy, source, who, actor=True, critic=options.critic == "same")
        if options.critic not in ("same", "fresh"):
            other = _trainable(load(options.critic, policy.device, allow=config.allowed), options.critic)
            _take(policy, other, options.critic, actor=False, critic=True)
            _check_alike(policy, other, options.critic, actor=False, critic=True)
    if options.std is not None:
        noise = policy.head.std if isinstance(policy.head, ActionHead) else None
        if noise is None or not noise.fill(options.std):
            raise CheckpointError("start.std resets one learned number per action, which this policy does not have")


def _trainable(policy: object, source: str) -> ActorCritic:
    if not isinstance(policy, ActorCritic):
        raise CheckpointError(
            f"{source} only acts: a training starts from weights (a run, rsl_rl's model_*.pt, Stable-Baselines3's "
            ".zip); let it teach instead (--with teacher)"
        )
    return policy


def _take(policy: ActorCritic, source: ActorCritic, who: str, *, actor: bool, critic: bool) -> None:
    """Copy the weights of one side or both, and the statistics that they go with."""
    ours, theirs = policy.state_dict(), source.state_dict()
    if critic and (not source.has_critic or (policy.critic is None) != (source.critic is None)):
        raise CheckpointError(f"{who} has no critic that fits: set start.critic to 'fresh', or to a file that has one")

    def chosen(name: str) -> bool:
        of_critic = name.startswith(_CRITIC)
        return not name.startswith("normalizers.") and (critic if of_critic else actor)

    if policy.config.normalize_observations != source.config.normalize_observations:
        ours_too = source.config.normalize_observations
        raise CheckpointError(f"{who} needs policy.normalize_observations {ours_too}, which the training has otherwise")
    expected, found = ({name: x for name, x in state.items() if chosen(name)} for state in (ours, theirs))
    try:
        check_same_layout(expected, found, who)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Networks like its own: policy=us.load({who!r}).config in Python") from None
    shapes = [
        {name: x.shape for name, x in state.items() if name.startswith("normalizers.")} for state in (ours, theirs)
    ]
    if actor and shapes[0] == shapes[1]:
        found |= {name: theirs[name] for name in shapes[0]}
    elif actor:
        found |= _statistics(policy, policy.actor, source, source.actor, who)
    if critic and policy.critic is not None and source.critic is not None:
        known = {module_name(key) for key in policy.actor.keys}  # normalised as they are for the actor
        taken = _statistics(policy, policy.critic, source, source.critic, who)
        found |= {name: x for name, x in taken.items() if name.split(".")[1] not in known}
    policy.load_state_dict(ours | found)


def _statistics(policy: ActorCritic, own: Trunk, source: ActorCritic, other: Trunk, who: str) -> dict[str, Tensor]:
    """The source's statistics, cut as the policy's components are."""
    names, theirs = ([module_name(key) for key in side.keys] for side in (own, other))
    names = [name for name in names if name in policy.normalizers]
    kept = [source.normalizers[name].state_dict() for name in theirs if name in source.normalizers]
    sizes = [len(policy.normalizers[name].state_dict()["mean"]) for name in names]
    if sum(sizes) != (size := sum(len(x["mean"]) for x in kept)):
        raise CheckpointError(f"{who} sees vectors of {size} numbers together, here are {sum(sizes)}")
    found: dict[str, Tensor] = {}
    for key in ("mean", "var", "shift", "scale") if kept else ():
        whole = torch.cat([x[key] for x in kept]).split(sizes)
        found |= {f"normalizers.{name}.{key}": x for name, x in zip(names, whole)}
    return found | {f"normalizers.{name}.count": kept[0]["count"] for name in names}


@torch.no_grad()
def _check_alike(policy: ActorCritic, source: ActorCritic, who: str, *, actor: bool, critic: bool) -> None:
    """Raise CheckpointError where distribution, executed action or value differ."""
    if policy.config == source.config and policy.observation_space == source.observation_space:
        return  # the same networks
    generator = torch.Generator().manual_seed(0)
    rows = _ROWS // 10 if policy.recurrent else _ROWS
    ours = theirs = None
    worst: dict[str, float] = {}
    for _ in range(_STEPS if policy.recurrent else 1):
        obs = _observations(policy, rows, generator)
        seen = _as_seen(policy, source, obs, actor=actor, critic=critic)
        mine, other = policy(obs, ours), source(seen, theirs)
        ours, theirs = mine.state, other.state
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        if actor:
            actions = [p.action_map(x.distribution.mode()).double() for p, x in ((policy, mine), (source, other))]
            pairs["the distribution"] = (mine.distribution.params, other.distribution.params)
            pairs["the executed action"] = (actions[0].reshape(rows, -1), actions[1].reshape(rows, -1))
        if critic:
            pairs["the value"] = (mine.value, other.value)
        for what, (x, y) in pairs.items():
            same = x.shape == y.shape
            error = float(((x - y).abs() / y.abs().clamp(min=1.0)).max()) if same else math.inf
            worst[what] = max(worst.get(what, 0.0), math.inf if math.isnan(error) else error)
    wrong = {what: error for what, error in worst.items() if not error <= TOLERANCE}
    if wrong:
        what, error = next(iter(wrong.items()))
        mine_, its = vars(policy.config), vars(source.config)
        differ = [f"policy.{name} is {its[name]!r:.80} there" for name in _DECISIVE if mine_[name] != its[name]]
        hint = f": {'; '.join(differ)}" if differ else ""
        hint += "; start.critic 'fresh' leaves the critic out" if what == "the value" else ""
        raise CheckpointError(f"started from {who}, {what} differs by {error:.2g}{hint}")


def _observations(policy: ActorCritic, rows: int, generator: torch.Generator) -> TensorDict:
    """Random observations `[rows]`, as the statistics have seen them."""
    obs = policy.blank_observation(rows, policy.input_keys)
    for key in policy.input_keys:
        x: Tensor = obs[key]
        if x.is_floating_point():
            obs[key] = policy.raw(key, torch.randn(x.shape, generator=generator).to(x.device))
        elif x.dtype == torch.uint8:
            obs[key] = torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8).to(x.device)
    return obs


def _as_seen(policy: ActorCritic, source: ActorCritic, obs: TensorDict, *, actor: bool, critic: bool) -> TensorDict:
    """The same observations under the source's keys: both sides in order, vectors cut as the source has them."""
    if policy.input_keys == source.input_keys:
        return obs
    seen = source.blank_observation(len(obs), source.input_keys)
    pairs = [(policy.critic, source.critic)] if critic else []
    pairs += [(policy.actor, source.actor)] if actor else []
    for own, other in pairs:
        if own is None or other is None:
            continue
        wanted = [source.component(key) for key in other.keys]
        values = [obs.get(key) for key in own.keys]
        if [tuple(x.shape[1:]) for x in values] != [shape_of(space) for space in wanted]:
            values = [*torch.cat([x.flatten(1) for x in values], dim=-1).split([size_of(x) for x in wanted], dim=-1)]
        for key, x in zip(other.keys, values):
            seen[key] = x
    return seen
