"""`ActorCritic`: observation groups in; action distribution, value, latents and recurrent state out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from understudy.envs.actions import ActionMap
from understudy.nn.distributions import Distribution
from understudy.nn.heads import DistributionConfig, make_head
from understudy.nn.interactions import ActiveLinear
from understudy.nn.networks import MLP, Encoder, EncoderConfig, Memory, make_encoder
from understudy.nn.normalization import ObservationNormalizer
from understudy.types import PolicyOutput

Key = tuple[str, ...]
"""Where a component lies in the observation TensorDict: `(group,)` or `(group, component)`."""


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


class _Trunk(nn.Module):
    """Encoders, memory and hidden layers of one side (actor, critic or both)."""

    def __init__(
        self, components: Mapping[Key, spaces.Space[Any]], hidden: tuple[int, ...], config: PolicyConfig
    ) -> None:
        super().__init__()
        self.keys = tuple(components)
        encoders = [make_encoder(space, config.encoder) for space in components.values()]
        self.encoders = nn.ModuleList(encoders)
        features = sum(encoder.out_features for encoder in encoders)
        self.active_columns = config.encoder.interactions
        if self.active_columns:
            _check_linear(encoders, hidden, config)
        self.memory: Memory | None = None
        if config.memory != "none":
            self.memory = Memory(config.memory, features, config.memory_size, config.memory_layers)
            features = config.memory_size
        self.mlp = MLP(features, hidden, activation=config.activation, init=config.init)
        self.out_features = self.mlp.out_features
        self.state_size = self.memory.state_size if self.memory is not None else 0

    def reader(self, linear: nn.Linear) -> nn.Linear:
        """`linear` (in_features: `out_features`) as the layer that reads this trunk's output, with the same parameters.

        Every layer on top of a trunk, a part's included, passes through here: interactions come as active columns.
        """
        return ActiveLinear.like(linear) if self.active_columns else linear

    def encode(self, inputs: Mapping[Key, Tensor], latents: dict[str, Tensor], side: str) -> Tensor:
        encoded = []
        for key, encoder in zip(self.keys, self.encoders):
            latent = encoder(inputs[key])
            latents[f"{side}/{'/'.join(key)}"] = latent
            encoded.append(latent)
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=-1)


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
        critic_inputs = actor_inputs if config.shared_trunk else self._components(critic_groups)
        self.input_keys: tuple[Key, ...] = tuple(dict.fromkeys((*actor_inputs, *critic_inputs)))
        self.normalizers = nn.ModuleDict()
        if config.normalize_observations:
            for key, space in (actor_inputs | critic_inputs).items():
                if _is_vector(space):
                    size = int(np.prod(space.shape or ()))
                    self.normalizers["/".join(key)] = ObservationNormalizer(size, clip=config.observation_clip)
        self.actor = _Trunk(actor_inputs, config.hidden_sizes, config)
        self.critic: _Trunk | None = None
        if not config.shared_trunk:
            hidden = config.hidden_sizes if config.critic_hidden_sizes is None else config.critic_hidden_sizes
            self.critic = _Trunk(critic_inputs, hidden, config)
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
        self.state_size = self.actor.state_size + (self.critic.state_size if self.critic is not None else 0)

    # ------------------------------------------------------------------ forward

    @property
    def recurrent(self) -> bool:
        """True if the policy carries a state from step to step."""
        return self.state_size > 0

    def forward(self, obs: TensorDictBase, state: Tensor | None = None, is_first: Tensor | None = None) -> PolicyOutput:
        """Distribution, value and latents of obs `[B]`; with a memory also obs `[T, B]`, state `[B, S]`."""
        inputs = self._normalized(obs, self.input_keys)
        latents: dict[str, Tensor] = {}
        actor_state, critic_state = self._split(state)
        actor, new_state = self._latent(self.actor, "actor", inputs, latents, actor_state, is_first)
        critic = actor
        if self.critic is not None:
            critic, new_critic = self._latent(self.critic, "critic", inputs, latents, critic_state, is_first)
            if new_state is not None and new_critic is not None:
                new_state = torch.cat((new_state, new_critic), dim=-1)
        latents["actor"], latents["critic"] = actor, critic
        value = self.value_head(critic).squeeze(-1)
        return PolicyOutput(self.head(actor), value, new_state, latents)

    def distribution(self, obs: TensorDictBase) -> Distribution:
        """The action distribution of a feed-forward policy, without running the critic."""
        inputs = self._normalized(obs, self.actor.keys)
        return self.head(self._latent(self.actor, "actor", inputs, {}, None, None)[0])

    def value(self, obs: TensorDictBase, state: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        """V(obs) `[B]` in the critic's units, without running the actor; the memory is read, not advanced."""
        trunk = self.critic or self.actor
        inputs = self._normalized(obs, trunk.keys)
        actor_state, critic_state = self._split(state)
        side, own = ("critic", critic_state) if self.critic is not None else ("actor", actor_state)
        return self.value_head(self._latent(trunk, side, inputs, {}, own, is_first)[0]).squeeze(-1)

    def _latent(
        self,
        trunk: _Trunk,
        side: str,
        inputs: Mapping[Key, Tensor],
        latents: dict[str, Tensor],
        state: Tensor | None,
        is_first: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.precision == "bfloat16":
            with torch.autocast(self.device.type, torch.bfloat16):
                latent, new_state = self._run(trunk, side, inputs, latents, state, is_first)
            return latent.float(), None if new_state is None else new_state.float()
        return self._run(trunk, side, inputs, latents, state, is_first)

    def _run(
        self,
        trunk: _Trunk,
        side: str,
        inputs: Mapping[Key, Tensor],
        latents: dict[str, Tensor],
        state: Tensor | None,
        is_first: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        x = trunk.encode(inputs, latents, side)
        if trunk.memory is None:
            return trunk.mlp(x), None
        batch = x.shape[-2]
        if state is None:
            state = trunk.memory.initial_state(batch).to(x)
        if is_first is None:
            is_first = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
        run = trunk.memory.sequence if x.ndim == 3 else trunk.memory.step
        x, new_state = run(x, state, is_first)
        latents[f"{side}/memory"] = x
        return trunk.mlp(x), new_state

    def _normalized(self, obs: TensorDictBase, keys: Iterable[Key]) -> dict[Key, Tensor]:
        inputs = {}
        for key in keys:
            x = obs.get(key)
            name = "/".join(key)
            inputs[key] = self.normalizers[name](x) if name in self.normalizers else x
        return inputs

    def _split(self, state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if state is None or self.critic is None:
            return state, None
        return state[..., : self.actor.state_size], state[..., self.actor.state_size :]

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
            distribution, state = self._actor_step(obs, self.initial_state(obs.shape[0]) if state is None else state)
            raw = distribution.mode() if deterministic else distribution.sample()
            return self.action_map(raw), state
        batch, single, as_numpy = self.observation(obs)
        action, state = self.act(batch, state, deterministic)
        action = action[0] if single else action
        return (action.cpu().numpy() if as_numpy else action), state

    def _actor_step(self, obs: TensorDictBase, state: Tensor | None) -> tuple[Distribution, Tensor | None]:
        """Distribution and next state, of which the critic's share stays as it was."""
        inputs = self._normalized(obs, self.actor.keys)
        actor_state, critic_state = self._split(state)
        latent, new_state = self._latent(self.actor, "actor", inputs, {}, actor_state, None)
        if new_state is not None and critic_state is not None:
            new_state = torch.cat((new_state, critic_state), dim=-1)
        return self.head(latent), new_state

    def observation(self, obs: Any) -> tuple[TensorDict, bool, bool]:
        """The actor's observations as a TensorDict `[N]`, whether they came unbatched, and whether as arrays."""
        tree = obs if isinstance(obs, Mapping) else {"policy": obs}
        if isinstance(obs, Mapping) and "policy" in self.observation_space.spaces and "policy" not in obs:
            tree = {"policy": obs}  # a Dict space whose keys are components
        leaves: dict[Key, Tensor] = {}
        single = as_numpy = False
        for key in self.actor.keys:
            space, value = self._space(key), tree
            for name in key:
                value = _lookup(value, name, "observation")
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

    def update_normalizers(self, obs: TensorDictBase, valid: Tensor | None = None) -> None:
        """Absorb raw observations of any leading shape into the statistics; `valid` False: left out."""
        for name, normalizer in self.normalizers.items():
            assert isinstance(normalizer, ObservationNormalizer)
            normalizer.update(obs.get(tuple(name.split("/"))), valid)

    # ------------------------------------------------------------------ spaces

    def _space(self, key: Key) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self.observation_space
        for name in key:
            space = _lookup(space.spaces if isinstance(space, spaces.Dict) else {}, name, "observation")
        return space

    def _components(self, groups: tuple[str, ...]) -> dict[Key, spaces.Space[Any]]:
        components: dict[Key, spaces.Space[Any]] = {}
        for group in groups:
            components |= find_components(self.observation_space, group)
        if not components:
            raise ValueError("the policy has no observation group: name at least one in actor_groups")
        return components


def find_components(space: spaces.Dict, name: str) -> dict[Key, spaces.Space[Any]]:
    """The components of a group ("policy") or one of them ("policy/height"), by key; ValueError if there is none."""
    key = tuple(name.split("/"))
    found: spaces.Space[Any] = space
    for part in key:
        found = _lookup(found.spaces if isinstance(found, spaces.Dict) else {}, part, "observation group")
    if isinstance(found, spaces.Dict):
        return {(*key, child): component for child, component in found.spaces.items()}
    return {key: found}


def _check_linear(encoders: Sequence[Encoder], hidden: Sequence[int], config: PolicyConfig) -> None:
    """Raise ValueError unless nothing stands between the interactions and the heads."""
    if len(encoders) != 1 or not encoders[0].active_columns:
        raise ValueError(
            "encoder.interactions needs one Discrete or MultiDiscrete component as the whole observation of actor and "
            "critic: choose it in actor_groups and critic_groups"
        )
    if hidden or config.memory != "none" or config.precision != "float32":
        raise ValueError(
            "encoder.interactions is for policies that are one linear layer: set hidden_sizes=(), "
            "critic_hidden_sizes=None, memory='none' and precision='float32'"
        )


def _is_vector(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype != np.uint8


def _lookup(mapping: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in mapping:
        near = difflib.get_close_matches(name, mapping.keys(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {name!r} does not exist: there is {sorted(mapping)}{hint}")
    return mapping[name]
