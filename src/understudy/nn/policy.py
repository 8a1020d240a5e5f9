"""`ActorCritic`, the library's own policy: observation groups in; action distribution, value, latents and state out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from understudy.core.registry import load_object
from understudy.core.spaces import Key
from understudy.nn.check_policy import check_policy
from understudy.nn.estimator import EstimatorHead, EstimatorHeadConfig
from understudy.nn.heads import ActionHead
from understudy.nn.protocol import (
    REPLACED,
    Actor,
    Observations,
    Option,
    Policy,
    PolicyConfig,
    PolicyOutput,
)
from understudy.nn.trunk import Trunk

MakeTrunk = Callable[[int], nn.Module]
"""From the number of features to a network with `out_features`."""


def build_policy(
    observation_space: spaces.Dict, action_space: spaces.Space[Any], config: PolicyConfig | None = None
) -> Policy:
    """The policy of a config: an `ActorCritic`, or what `factory` makes.

    Imports the modules that the config names: ask for consent before, where it comes from a file. Raises ValueError
    for a factory that makes something else, or a policy that does not keep the protocol.
    """
    config = config or PolicyConfig()
    if config.factory is None:
        return ActorCritic(observation_space, action_space, config)
    policy = _make(config.factory, config.factory_kwargs, observation_space, action_space, config)
    if not isinstance(policy, Policy):
        raise ValueError(f"policy.factory {config.factory!r} makes a {type(policy).__name__}, not an us.Policy")
    policy.built_from = config
    return check_policy(policy)


class ActorCritic(Policy):
    """Trunks for actor and critic, an action head, a value head, and estimators in front of the actor.

    `trunk` and `critic_trunk` take your own networks as objects, in place of the config's names: an nn.Module with
    `out_features`, or a function from the number of features to one. Where only `trunk` is given, the critic has a
    copy of that module. Raises ValueError if a group is missing or the action space has no distribution.
    """

    config: PolicyConfig

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        config: PolicyConfig | None = None,
        *,
        trunk: nn.Module | MakeTrunk | None = None,
        critic_trunk: nn.Module | MakeTrunk | None = None,
    ) -> None:
        config = config or PolicyConfig()
        # the estimators' inputs decide what is normalised, and in which order
        super().__init__(observation_space, action_space, dataclasses.replace(config, normalize_observations=False))
        self.config = config
        self.built_from = config if trunk is None and critic_trunk is None else None
        actor_inputs = self.components(config.actor_groups)
        for estimator in config.estimators.values():
            if estimator.feeds_actor and not estimator.on_actor_memory:  # instead of the truth, which it may not have
                actor_inputs |= self.components(estimator.targets)
        critic_inputs = actor_inputs if config.shared_trunk else self.components(self.critic_groups)
        make = _own_trunk(trunk, config.trunk, config.trunk_kwargs)
        make_critic = _own_trunk(critic_trunk, config.critic_trunk, config.critic_trunk_kwargs)
        if critic_trunk is None and config.critic_trunk is None:
            make_critic = _own_trunk(copy.deepcopy(trunk)) if isinstance(trunk, nn.Module) else make
        make_trunk = functools.partial(
            Trunk,
            activation=config.activation,
            init=config.init,
            memory_size=config.memory_size,
            memory_layers=config.memory_layers,
            memory_changes=config.memory_changes,
            precision=config.precision,
        )
        encoder, critic_encoder = config.encoder, config.critic_encoder or config.encoder
        if named := (*encoder.only, *critic_encoder.only):
            self.components(named)  # refuses what does not exist
        self.actor = make_trunk(actor_inputs, config.hidden_sizes, memory=config.memory, encoder=encoder, own=make)
        self.critic: Trunk | None = None
        if not config.shared_trunk:
            hidden = config.hidden_sizes if config.critic_hidden_sizes is None else config.critic_hidden_sizes
            memory = config.memory if config.critic_memory else "none"
            self.critic = make_trunk(critic_inputs, hidden, memory=memory, encoder=critic_encoder, own=make_critic)
        self.head = head = self.make_head(self.actor.out_features)
        head.linear = self.actor.reader(head.linear)
        critic = self.critic or self.actor
        self.value_head = critic.reader(nn.Linear(critic.out_features, 1))
        if config.init == "orthogonal":
            nn.init.orthogonal_(self.value_head.weight, gain=1.0)
            nn.init.zeros_(self.value_head.bias)
        for name, estimator in config.estimators.items():
            self.estimators[name] = self._estimator(name, estimator, make_trunk)
        self._heads = cast("list[EstimatorHead]", list(self.estimators.values()))
        self._name_inputs(critic_inputs)
        targets = [key for head in self._heads for key in head.targets]
        self.add_normalizers(key for key in (*actor_inputs, *self.input_keys, *targets) if key != REPLACED)
        self.actor_state_sizes = [*(head.state_size for head in self._heads), self.actor.state_size]
        self.state_size = self.actor_state_size + (self.critic.state_size if self.critic is not None else 0)
        for child in ("actor", "critic", "head", "value_head", "action_map", "estimators", "normalizers"):
            if child in self._modules:  # the optimizer's state in a checkpoint has the order of the parameters
                self._modules[child] = self._modules.pop(child)
        if make is not None or make_critic is not None:
            for side in filter(None, (self.actor, self.critic)):
                side.check_own()
            check_policy(self)

    def _estimator(self, name: str, config: EstimatorHeadConfig, make: Callable[..., Trunk]) -> EstimatorHead:
        if config.on_actor_memory and self.actor.memory is None:
            raise ValueError(f"estimator {name!r} is on the actor's memory, but policy.memory is 'none'")
        if "/" in name or "." in name or not name:
            raise ValueError(f"an estimator cannot be called {name!r}: use a plain name")
        targets = self.components(config.targets)
        inputs = self.components(config.inputs or self.config.actor_groups)
        if not config.inputs:  # the actor's groups may hold the very thing that cannot be measured
            inputs = {key: space for key, space in inputs.items() if key not in targets}
        if known := sorted("/".join(key) for key in inputs if key in targets):
            raise ValueError(f"estimator {name!r} is to predict {known} from itself: take it out of inputs")
        trunk = None
        if not config.on_actor_memory:
            trunk = make(
                inputs,
                config.hidden_sizes,
                encoder=self.config.encoder,
                activation=config.activation,
                init="orthogonal",
                memory=config.memory,
                memory_size=config.memory_size,
                memory_layers=config.memory_layers,
                memory_changes=config.memory_changes,
            )
        return EstimatorHead(name, config, trunk, targets, feature_size=self.config.memory_size)

    def _name_inputs(self, critic_inputs: dict[Key, spaces.Space[Any]]) -> None:
        """As `name_inputs`, with estimators in front of the actor."""
        sensors: list[Key] = []
        estimated: set[Key] = set()
        for head in self._heads:
            sensors += [key for key in head.keys if key not in estimated]
            estimated |= set(head.targets if head.feeds_actor else ())
        sensors += [key for key in self.actor.keys if key not in estimated]
        self.sensor_keys = tuple(dict.fromkeys(sensors))
        if early := [key for key in self.sensor_keys if key in estimated]:
            raise ValueError(f"{['/'.join(key) for key in early]} are read before they are estimated: order estimators")
        truth = [key for head in self._heads if head.mixes for key in head.targets]
        self.mixes_estimates = bool(truth)
        if truth and REPLACED[0] in self.observation_space.spaces:
            raise ValueError(f"an observation group is called {REPLACED[0]!r}, which estimators need: rename it")
        drawn = (REPLACED,) if truth else ()
        self.actor_keys = tuple(dict.fromkeys((*self.sensor_keys, *truth, *drawn)))
        self.value_keys = self.sensor_keys if self.config.shared_trunk else tuple(critic_inputs)
        self.input_keys = tuple(dict.fromkeys((*self.actor_keys, *self.value_keys)))

    # ------------------------------------------------------------------ forward

    @property
    def actor_state_size(self) -> int:
        """Share of estimators and actor, which comes first."""
        return sum(self.actor_state_sizes)

    def forward(self, obs: TensorDictBase, state: Tensor | None = None, is_first: Tensor | None = None) -> PolicyOutput:
        """Distribution, value and latents of obs `[B]`; with a memory also obs `[T, B]`, state `[B, S]`."""
        actor_state, critic_state = self._split(state)
        actor, new_state, latents = self.actor_latent(obs, actor_state, is_first)
        critic = actor
        if self.critic is not None:
            inputs = self._normalized(obs, self.critic.keys)
            critic, new_critic = self.critic(inputs, critic_state, is_first, side="critic", latents=latents)
            new_state = _join(new_state, new_critic)
        latents["actor"], latents["critic"] = actor, critic
        value = self.value_head(critic).squeeze(-1)
        return PolicyOutput(self.head(actor), value, new_state, latents)

    def run_actor(self, obs: TensorDictBase, state: Tensor | None = None, is_first: Tensor | None = None) -> Actor:
        """Distribution, next state (the critic's share as it was) and the actor's latents; the critic does not run.

        What only the critic sees, and what estimators predict, may be missing in obs.
        """
        actor_state, critic_state = self._split(state)
        latent, new_state, latents = self.actor_latent(obs, actor_state, is_first)
        latents["actor"] = latent
        return self.head(latent), _join(new_state, critic_state), latents

    def value(self, obs: TensorDictBase, state: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        """V(obs) `[B]` in the critic's units, without running the actor; the memory is read, not advanced."""
        actor_state, critic_state = self._split(state)
        if self.critic is None:
            return self.value_head(self.actor_latent(obs, actor_state, is_first)[0]).squeeze(-1)
        inputs = self._normalized(obs, self.critic.keys)
        return self.value_head(self.critic(inputs, critic_state, is_first, side="critic", latents={})[0]).squeeze(-1)

    def actor_latent(
        self, obs: Observations, state: Tensor | None, is_first: Tensor | None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """The actor's latent, its next state without the critic's share (`state` is without it too), and all latents.

        `obs` may be a dict of the components by key: what an exported policy, which knows no TensorDict, reads.
        """
        latents: dict[str, Tensor] = {}
        inputs = self._normalized(obs, self.sensor_keys)
        sizes = self.actor_state_sizes
        states = [None] * len(sizes) if state is None else state.split(sizes, dim=-1)
        replaced = obs.get(REPLACED, None) if self.mixes_estimates else None  # only rollouts have it
        new_states: list[Tensor | None] = []
        for i, head in enumerate(self._heads):
            if head.trunk is None:
                continue
            estimate, new_state = head(inputs, states[i] if head.state_size else None, is_first, latents)
            new_states.append(new_state)
            # detached, so that PPO's gradient does not train the estimator
            for key, seen in head.split(estimate.detach()).items() if head.feeds_actor else ():
                if replaced is not None and head.mixes:
                    seen = torch.where(replaced[..., i : i + 1], seen, self.normalized(obs, key))
                inputs[key] = seen
        own = states[-1] if self.actor.state_size else None
        latent, new_state = self.actor(inputs, own, is_first, side="actor", latents=latents)
        for head in self._heads:
            if head.trunk is None:
                head.read_memory(latents)
        return latent, _join(*new_states, new_state), latents

    def _normalized(self, obs: Observations, keys: Iterable[Key]) -> dict[Key, Tensor]:
        return {key: self.normalized(obs, key) for key in keys}

    def _split(self, state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The actor's share (estimators first) and the critic's."""
        if state is None:
            return None, None
        size = self.actor_state_size
        return (state, None) if state.shape[-1] == size else (state[..., :size], state[..., size:])

    def actor_parameters(self) -> list[nn.Parameter]:
        """Weights of trunk and head."""
        return [*self.actor.parameters(), *self.head.parameters()]

    def auxiliary_head(self, same: bool) -> ActionHead:
        """Another head on the actor's trunk."""
        head = self.make_head(self.actor.out_features)
        if same:
            head.load_state_dict(self.head.state_dict())
        head.linear = self.actor.reader(head.linear)
        return head

    def draw_replacements(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Where the actor is to see estimates, `[*leading, E]` bool, for the key `REPLACED` of a rollout."""
        prob = torch.tensor([head.config.replace_prob for head in self._heads], device=self.device)
        return torch.rand(*leading, len(prob), generator=generator, device=self.device) < prob


def _join(*states: Tensor | None) -> Tensor | None:
    """States `[B, S]` of those that have one, side by side; None if none has."""
    there = [state for state in states if state is not None]
    return None if not there else there[0] if len(there) == 1 else torch.cat(there, dim=-1)


def _own_trunk(
    given: nn.Module | MakeTrunk | None, reference: str | None = None, options: Mapping[str, Option] | None = None
) -> MakeTrunk | None:
    """How to make a network given as an object or by name; None stands for the library's layers."""
    if isinstance(given, nn.Module):
        return lambda _: given
    if given is not None or reference is None or reference == "mlp":
        return given
    return lambda features: cast(nn.Module, _make(reference, options or {}, features))


def _make(reference: str, options: Mapping[str, Option], *args: Any) -> Any:
    """What the named object returns for the arguments. Raises ValueError where it does not take the options."""
    make = load_object(reference)
    try:
        inspect.signature(make).bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{reference!r} cannot be called with the options {dict(options)}: {error}") from error
    return make(*args, **options)
