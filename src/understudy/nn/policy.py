"""`ActorCritic`: observation groups in; action distribution, value, latents and recurrent state out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from understudy.core.spaces import Key, blank, component, find_components, is_vector, lookup
from understudy.envs.actions import ActionMap
from understudy.nn.distributions import Distribution
from understudy.nn.estimator import EstimatorHead, EstimatorHeadConfig, draw_replacements
from understudy.nn.heads import DistributionConfig, make_head
from understudy.nn.networks import EncoderConfig
from understudy.nn.normalization import ObservationNormalizer
from understudy.nn.trunk import MemoryKind, Trunk

Observations = TensorDictBase | Mapping[Key, Tensor]

REPLACED: Key = ("estimated",)
"""Beside the groups of a rollout's observations: where the actor saw estimates, `[..., E]` bool."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Networks and observation handling of an `ActorCritic`."""

    actor_groups: tuple[str, ...] = ("policy",)
    """Observation groups that the actor sees."""
    critic_groups: tuple[str, ...] | None = None
    """Observation groups that the critic sees; None: "critic" where the environment has it, else the actor's."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Hidden layers of the actor."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Hidden layers of the critic; None: the actor's."""
    activation: str = "tanh"
    """Hidden activation: elu, relu, tanh, gelu, silu, ..."""
    init: Literal["orthogonal", "default"] = "orthogonal"
    """Weight initialisation: orthogonal (gain sqrt 2) or torch's own."""
    shared_trunk: bool = False
    """One trunk (encoders, memory, hidden layers) for actor and critic; both then see the actor's groups."""
    memory: Literal["none", "lstm", "gru"] = "none"
    """Recurrent memory in front of the hidden layers."""
    memory_size: int = 128
    """Width of the memory."""
    memory_layers: int = 1
    """Depth of the memory."""
    memory_changes: float = 0.0
    """Gain of the changes since the last step that the memory reads beside its inputs, velocities say; 0: none."""
    critic_memory: bool = True
    """Whether a critic of its own has a memory where the actor has one; one that sees everything needs none."""
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    """Action distribution."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Encoders of image and discrete components."""
    normalize_observations: bool = True
    """Running normalisation of continuous vector components, frozen while collecting and updating."""
    observation_clip: float = 10.0
    """Normalised observations are clipped to +- this."""
    action_scaling: Literal["auto", "on", "off"] = "auto"
    """Rescale actions from [-1, 1] to the action space's range; auto: where the range is finite."""
    action_bound: Literal["clip", "tanh", "none"] = "clip"
    """How a raw action is brought into [-1, 1] before it is executed."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Matrix products of encoders and hidden layers; bfloat16 pays where the processor or GPU has it."""
    estimators: dict[str, EstimatorHeadConfig] = field(default_factory=dict)
    """Estimators by name, in the order in which they run; each learns from a part `Estimator` that names it."""


@dataclass
class PolicyOutput:
    """One forward pass of a policy over a batch with leading shape `[...]` (`[B]`, or `[T, B]` for sequences)."""

    distribution: Distribution
    value: Tensor  # [...], in the critic's own (possibly normalised) units
    state: Tensor | None = None  # [B, S] packed recurrent state after the last step; None if feed-forward
    latents: dict[str, Tensor] = field(default_factory=dict)  # name -> [..., H]; "actor" and "critic" are always there


class ActorCritic(nn.Module):
    """A policy: forward maps observations `[B]` (or `[T, B]` with a memory) to a `PolicyOutput`.

    Observations are raw: the normaliser is part of the policy, frozen in `forward`, and moves in
    `update_normalizers` only. `value` is in the critic's own units (the trainer may normalise its targets).
    Raises ValueError if a group is missing or the action space has no distribution.
    """

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space[Any], config: PolicyConfig | None = None
    ) -> None:
        super().__init__()
        config = config or PolicyConfig()
        self.config = config
        self.observation_space, self.action_space = observation_space, action_space
        actor_inputs = self._components(config.actor_groups)
        critic_groups = config.critic_groups
        if critic_groups is None:
            critic_groups = ("critic",) if "critic" in observation_space.spaces else config.actor_groups
        for head in config.estimators.values():
            if not head.on_actor_memory:  # what the actor sees instead of the truth; it may be new to it
                actor_inputs |= self._components(head.targets)
        critic_inputs = actor_inputs if config.shared_trunk else self._components(critic_groups)
        self.actor = self._trunk(actor_inputs, config.hidden_sizes, config.memory)
        self.critic: Trunk | None = None
        if not config.shared_trunk:
            hidden = config.hidden_sizes if config.critic_hidden_sizes is None else config.critic_hidden_sizes
            self.critic = self._trunk(critic_inputs, hidden, config.memory if config.critic_memory else "none")
        self.head = make_head(action_space, self.actor.out_features, config.distribution)
        self.head.linear = self.actor.reader(self.head.linear)
        critic = self.critic or self.actor
        self.value_head = critic.reader(nn.Linear(critic.out_features, 1))
        if config.init == "orthogonal":
            nn.init.orthogonal_(self.value_head.weight, gain=1.0)
            nn.init.zeros_(self.value_head.bias)
        self.action_map = ActionMap(
            action_space,
            scaling="auto" if config.action_scaling == "auto" else config.action_scaling == "on",
            bound=None if config.action_bound == "none" or self.head.bounded else config.action_bound,
        )
        self.estimators = nn.ModuleDict(
            {name: self._estimator(name, head, config.actor_groups) for name, head in config.estimators.items()}
        )
        self._heads = cast("list[EstimatorHead]", list(self.estimators.values()))
        self._name_inputs(critic_inputs)
        self.normalizers = nn.ModuleDict()
        if config.normalize_observations:
            targets = [key for head in self._heads for key in head.targets]
            for key in dict.fromkeys((*actor_inputs, *self.input_keys, *targets)):
                if key != REPLACED and is_vector(space := self.component(key)):
                    size = int(np.prod(space.shape or ()))
                    self.normalizers["/".join(key)] = ObservationNormalizer(size, clip=config.observation_clip)
        self.actor_state_sizes = [*(head.state_size for head in self._heads), self.actor.state_size]
        self.actor_state_size = sum(self.actor_state_sizes)
        self.state_size = self.actor_state_size + (self.critic.state_size if self.critic is not None else 0)

    def _trunk(
        self, components: dict[Key, spaces.Space[Any]], hidden_sizes: tuple[int, ...], memory: MemoryKind
    ) -> Trunk:
        c = self.config
        return Trunk(
            components,
            hidden_sizes,
            encoder=c.encoder,
            activation=c.activation,
            init=c.init,
            memory=memory,
            memory_size=c.memory_size,
            memory_layers=c.memory_layers,
            memory_changes=c.memory_changes,
            precision=c.precision,
        )

    def _estimator(self, name: str, config: EstimatorHeadConfig, actor_groups: tuple[str, ...]) -> EstimatorHead:
        if config.on_actor_memory and self.actor.memory is None:
            raise ValueError(f"estimator {name!r} is on the actor's memory, but policy.memory is 'none'")
        if "/" in name or "." in name or not name:
            raise ValueError(f"an estimator cannot be called {name!r}: use a plain name")
        targets = self._components(config.targets)
        inputs = self._components(config.inputs or actor_groups)
        if not config.inputs:  # the actor's groups may hold the very thing that cannot be measured
            inputs = {key: space for key, space in inputs.items() if key not in targets}
        if known := sorted("/".join(key) for key in inputs if key in targets):
            raise ValueError(f"estimator {name!r} is to predict {known} from itself: take it out of inputs")
        return EstimatorHead(
            name,
            config,
            inputs,
            targets,
            encoder=self.config.encoder,
            precision=self.config.precision,
            feature_size=self.config.memory_size,
        )

    def _name_inputs(self, critic_inputs: dict[Key, spaces.Space[Any]]) -> None:
        """What acting needs (`sensor_keys`), the actor in training, V, and all together."""
        sensors: list[Key] = []
        estimated: set[Key] = set()
        for head in self._heads:
            if head.feeds_actor:
                sensors += [key for key in head.keys if key not in estimated]
                estimated |= set(head.targets)
        sensors += [key for key in self.actor.keys if key not in estimated]
        self.sensor_keys: tuple[Key, ...] = tuple(dict.fromkeys(sensors))
        if early := [key for key in self.sensor_keys if key in estimated]:
            raise ValueError(f"{['/'.join(key) for key in early]} are read before they are estimated: order estimators")
        truth = [key for head in self._heads if head.mixes for key in head.targets]
        self.mixes_estimates = bool(truth)
        if truth and REPLACED[0] in self.observation_space.spaces:
            raise ValueError(f"an observation group is called {REPLACED[0]!r}, which estimators need: rename it")
        drawn = (REPLACED,) if truth else ()
        self.actor_keys: tuple[Key, ...] = tuple(dict.fromkeys((*self.sensor_keys, *truth, *drawn)))
        self.value_keys: tuple[Key, ...] = self.sensor_keys if self.config.shared_trunk else tuple(critic_inputs)
        self.input_keys: tuple[Key, ...] = tuple(dict.fromkeys((*self.actor_keys, *self.value_keys)))

    # ------------------------------------------------------------------ forward

    @property
    def recurrent(self) -> bool:
        """True if the policy carries a state from step to step."""
        return self.state_size > 0

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

    def distribution(self, obs: TensorDictBase) -> Distribution:
        """The action distribution of a feed-forward policy, without running the critic."""
        return self.head(self.actor_latent(obs, None, None)[0])

    def run_actor(
        self, obs: TensorDictBase, state: Tensor | None = None, is_first: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None, dict[str, Tensor]]:
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
            if not head.feeds_actor:
                continue
            estimate, new_state = head(inputs, states[i] if head.state_size else None, is_first, latents)
            new_states.append(new_state)
            # detached: what PPO wants of the estimate is no business of the estimator
            for key, seen in head.split(estimate.detach()).items():
                if replaced is not None and head.mixes:
                    seen = torch.where(replaced[..., i : i + 1], seen, self.normalized(obs, key))
                inputs[key] = seen
        own = states[-1] if self.actor.state_size else None
        latent, new_state = self.actor(inputs, own, is_first, side="actor", latents=latents)
        for head in self._heads:
            if not head.feeds_actor:
                head.read_memory(latents)
        return latent, _join(*new_states, new_state), latents

    def normalized(self, obs: Observations, key: Key) -> Tensor:
        """One component `[..., *shape]` of raw observations in the units that the networks see."""
        return self._normalized(obs, [key])[key]

    def raw(self, key: Key, x: Tensor) -> Tensor:
        """What the networks see of a component `[..., D]` (an estimate of it, say) in raw units."""
        name = "/".join(key)
        if name not in self.normalizers:
            return x
        normalizer = cast(ObservationNormalizer, self.normalizers[name])
        return (x - normalizer.shift) / normalizer.scale

    def _normalized(self, obs: Observations, keys: Iterable[Key]) -> dict[Key, Tensor]:
        inputs: dict[Key, Tensor] = {}
        for key in keys:
            x: Any = obs.get(key)
            name = "/".join(key)
            inputs[key] = self.normalizers[name](x) if name in self.normalizers else x
        return inputs

    def _split(self, state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The actor's share (estimators first) and the critic's."""
        if state is None:
            return None, None
        size = self.actor_state_size
        critic = state[..., size:] if self.critic is not None and self.critic.state_size else None
        return (state if critic is None else state[..., :size]), critic

    def draw_replacements(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Where the actor is to see estimates, `[*leading, E]` bool, for the key `REPLACED` of a rollout."""
        return draw_replacements(self._heads, leading, generator, self.device)

    # ------------------------------------------------------------------ use

    def initial_state(self, batch: int) -> Tensor | None:
        """The recurrent state before an episode's first step, `[batch, S]`; None if feed-forward."""
        if not self.recurrent:
            return None
        return torch.zeros(batch, self.state_size, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.value_head.weight.device

    @torch.no_grad()
    def act(self, obs: Any, state: Tensor | None = None, deterministic: bool = True) -> tuple[Any, Tensor | None]:
        """The action to execute and the next state.

        `obs` is a TensorDict `[N]` as the environments give it, or, for use outside the library, one raw observation
        (array, tensor or dict of them), batched or not; the action comes back in kind. Pass `state=None` at the
        start of an episode. Only the actor runs: what only the critic sees may be missing.
        """
        if isinstance(obs, TensorDictBase):
            state = self.initial_state(obs.shape[0]) if state is None else state
            distribution, state, _ = self.run_actor(obs, state)
            raw = distribution.mode() if deterministic else distribution.sample()
            return self.action_map(raw), state
        batch, single, as_numpy = self.observation(obs)
        action, state = self.act(batch, state, deterministic)
        action = action[0] if single else action
        return (action.cpu().numpy() if as_numpy else action), state

    def observation(self, obs: Any) -> tuple[TensorDict, bool, bool]:
        """What acting needs as a TensorDict `[N]`, whether the observations came unbatched, and whether as arrays."""
        tree = obs if isinstance(obs, Mapping) else {"policy": obs}
        if isinstance(obs, Mapping) and "policy" in self.observation_space.spaces and "policy" not in obs:
            tree = {"policy": obs}  # a Dict space whose keys are components
        leaves: dict[Key, Tensor] = {}
        single = as_numpy = False
        for key in self.sensor_keys:
            space, value = self.component(key), tree
            for name in key:
                value = lookup(value, name, "observation")
            as_numpy = not isinstance(value, Tensor)
            tensor = torch.as_tensor(np.asarray(value) if as_numpy else value, device=self.device)
            if tensor.is_floating_point():
                tensor = tensor.float()
            single = tensor.ndim == len(space.shape or ())
            leaves[key] = tensor.unsqueeze(0) if single else tensor
        batch = TensorDict({}, batch_size=[next(iter(leaves.values())).shape[0]], device=self.device)
        for key, tensor in leaves.items():
            batch[key] = tensor
        return batch, single, as_numpy

    def blank_observation(self, batch: int) -> TensorDict:
        """What acting needs, `[batch]`, with nothing in it: zeros, or the lowest integer."""
        obs = TensorDict({}, batch_size=[batch], device=self.device)
        for key in self.sensor_keys:
            obs[key] = blank(self.component(key), [batch], self.device)
        return obs

    def update_normalizers(self, obs: TensorDictBase, valid: Tensor | None = None) -> None:
        """Absorb raw observations of any leading shape into the statistics; `valid` False: left out."""
        for name, normalizer in self.normalizers.items():
            assert isinstance(normalizer, ObservationNormalizer)
            normalizer.update(obs.get(tuple(name.split("/"))), valid)

    # ------------------------------------------------------------------ spaces

    def component(self, key: Key) -> spaces.Space[Any]:
        """The space of one component. Raises ValueError with the nearest name if there is none."""
        return component(self.observation_space, key)

    def _components(self, groups: tuple[str, ...]) -> dict[Key, spaces.Space[Any]]:
        components: dict[Key, spaces.Space[Any]] = {}
        for group in groups:
            components |= find_components(self.observation_space, group)
        if not components:
            raise ValueError("the policy has no observation group: name at least one in actor_groups")
        return components


def _join(*states: Tensor | None) -> Tensor | None:
    """States `[B, S]` of those that have one, side by side; None if none has."""
    there = [state for state in states if state is not None]
    return None if not there else there[0] if len(there) == 1 else torch.cat(there, dim=-1)
