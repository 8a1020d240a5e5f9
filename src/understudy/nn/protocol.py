"""`Policy`: all that the library asks of a policy, with a default for everything but one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from understudy.core import devices
from understudy.core.check import Config, Filled, In, Size
from understudy.core.sanity import ABSURD, BEYOND_USE, without_faults
from understudy.core.spaces import (
    Key,
    blank,
    component,
    find_components,
    is_vector,
    key_of,
    lookup,
    module_name,
    shape_of,
    size_of,
    tensor_dtype,
    unflatten,
)
from understudy.envs.actions import ActionMap
from understudy.envs.gate import admit, admit_tensor, observation_name
from understudy.nn.distributions import Distribution
from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.heads import ActionFamily, ActionHead, DistributionConfig, make_family, make_head
from understudy.nn.networks import Activation, EncoderConfig
from understudy.nn.normalization import ObservationNormalizer
from understudy.nn.recurrence import Step, unroll

Observations = TensorDictBase | Mapping[Key, Tensor]
"""Raw observations: a TensorDict, or the components by key (all that an exported policy has)."""

Option = int | float | bool | str
"""Value of an option of a network of the user's own."""

REPLACED: Key = ("estimated",)
"""Beside the groups of a rollout's observations: where the actor saw estimates, `[..., E]` bool."""

Actor = tuple[Distribution, Tensor | None, dict[str, Tensor]]
"""Distribution, next state, latents."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Config):
    """Networks and observation handling of a policy."""

    PREFIX: ClassVar[str] = "policy."

    actor_groups: Annotated[tuple[str, ...], Filled()] = ("policy",)
    """Observation groups that the actor sees."""
    critic_groups: Annotated[tuple[str, ...] | None, Filled()] = None
    """Observation groups that the critic sees; None: "critic" where the environment has it, else the actor's."""
    hidden_sizes: tuple[Size, ...] = (64, 64)
    """Hidden layers of the actor."""
    critic_hidden_sizes: tuple[Size, ...] | None = None
    """Hidden layers of the critic; None: the actor's."""
    activation: Activation = "tanh"
    """Hidden activation."""
    init: Literal["orthogonal", "default"] = "orthogonal"
    """Weight initialisation: orthogonal (gain sqrt 2) or torch's own."""
    shared_trunk: bool = False
    """One trunk (encoders, memory, hidden layers) for actor and critic; both then see the actor's groups."""
    memory: Literal["none", "lstm", "gru"] = "none"
    """Recurrent memory in front of the hidden layers."""
    memory_size: Size = 128
    """Width of the memory."""
    memory_layers: Annotated[int, In(1, 64)] = 1
    """Depth of the memory."""
    memory_changes: Annotated[float, In(0.0, 1e6)] = 0.0
    """If > 0, the memory also receives its inputs' change since the last step (velocities, for example), scaled by
    this."""
    critic_memory: bool = True
    """Whether a separate critic has a memory where the actor has one; a critic that sees everything needs none."""
    trunk: str | None = None
    """Your own network in place of memory and hidden layers, `"module:attribute"`: called with the number of features
    and `trunk_kwargs`, it returns an nn.Module with `out_features` (and `state_size`, if recurrent)."""
    trunk_kwargs: dict[str, Option] = field(default_factory=dict)
    """Options of `trunk`."""
    critic_trunk: str | None = None
    """Own network of the critic; None: the same as the actor's; "mlp": the library's hidden layers."""
    critic_trunk_kwargs: dict[str, Option] = field(default_factory=dict)
    """Options of `critic_trunk`."""
    factory: str | None = None
    """Your own policy, `"module:attribute"`: called with observation space, action space, this config and
    `factory_kwargs`, it returns an `us.Policy`. Options of the networks above then have no effect."""
    factory_kwargs: dict[str, Option] = field(default_factory=dict)
    """Options of `factory`."""
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    """Action distribution."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Encoders of image and discrete components."""
    critic_encoder: EncoderConfig | None = None
    """Encoders of a critic with a trunk of its own; None: as the actor's."""
    normalize_observations: bool = True
    """Running normalisation of continuous vector components, frozen while collecting and updating."""
    observation_clip: Annotated[float, In(1e-6, 1e6)] = 10.0
    """Normalised observations are clipped to +- this."""
    action_scaling: Literal["auto", "on", "off"] = "auto"
    """Rescale actions from [-1, 1] to the action space's range; auto: where the range is finite."""
    action_bound: Literal["clip", "tanh", "none"] = "clip"
    """How a raw action is brought into [-1, 1] before it is executed."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Matrix products of encoders and hidden layers; bfloat16 pays where the processor or GPU has it."""
    estimators: dict[str, EstimatorHeadConfig] = field(default_factory=dict)
    """Estimators by name, in the order in which they run; each learns from a part `Estimator` that names it."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Python modules that building this policy imports, in addition to the library's."""
        named = (self.factory, self.trunk, self.critic_trunk)
        return tuple(dict.fromkeys(name.partition(":")[0] for name in named if name is not None and ":" in name))


@dataclass
class PolicyOutput:
    """One forward pass of a policy over a batch with leading shape `[...]` (`[B]`, or `[T, B]` for sequences)."""

    distribution: Distribution
    value: Tensor  # [...], in the critic's own (possibly normalised) units
    state: Tensor | None = None  # [B, S] packed recurrent state after the last step; None if feed-forward
    latents: dict[str, Tensor] = field(default_factory=dict)  # name -> [..., H]; ADVISOR reads "actor"


class Policy(nn.Module, ABC):
    """What PPO, the collector, parts, evaluation, recording, export and teachers ask of a policy.

    A policy of your own implements `forward`; if it is recurrent, it also sets `state_size`. Everything else has a
    default. Observations are raw: `observe` normalises them, and only `update_normalizers` moves the statistics.
    Inside `forward`, shapes are static and no tensor is read on the host. The initial state is all zeros.

    Raises ValueError if a group is missing or the action space has no distribution.
    """

    state_size: int = 0
    """S, size of the packed recurrent state; 0: feed-forward. PPO stores a state per environment."""
    mixes_estimates: bool = False
    """True if the rollout draws where the actor sees estimates (`draw_replacements`); only policies with estimators."""
    has_critic: bool = True
    """False where the file that it was read from has no critic: its value means nothing."""
    has_density: bool = True
    """False where nothing tells how actions are distributed: a function, an exported file."""

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space[Any], config: PolicyConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config = config or PolicyConfig()
        self.built_from: PolicyConfig | None = None  # the config that rebuilds it; None: it was given as an object
        self.observation_space, self.action_space = observation_space, action_space
        self.critic_groups = config.critic_groups or config.actor_groups
        if config.critic_groups is None and "critic" in observation_space.spaces:
            self.critic_groups = ("critic",)
        # how actions are distributed: stored, restored, drawn. `ActionHead` is a family with a layer
        self.head: ActionFamily = make_family(action_space, config.distribution)
        # from raw to executed actions and back
        self.action_map = ActionMap(
            action_space,
            scaling="auto" if config.action_scaling == "auto" else config.action_scaling == "on",
            bound=None if config.action_bound == "none" else "unit" if self.head.bounded else config.action_bound,
        )
        self.normalizers = nn.ModuleDict()  # by `module_name`; discriminators may share them
        self.estimators = nn.ModuleDict()  # by name; the part `Estimator` trains them
        self.name_inputs(tuple(self.components(config.actor_groups)), tuple(self.components(self.critic_groups)))
        self.add_normalizers(self.input_keys)

    def name_inputs(self, actor: tuple[Key, ...], critic: tuple[Key, ...]) -> None:
        """Name the components that are read, so that nothing else is copied."""
        self.sensor_keys = actor  # by `run_actor` in use: all that a robot has to measure
        self.actor_keys = actor  # by `run_actor` in training
        self.input_keys = tuple(dict.fromkeys((*actor, *critic)))  # by `forward`
        self.value_keys = self.input_keys  # by `value`

    def add_normalizers(self, keys: Iterable[Key]) -> None:
        """Normalise those of the components that are continuous vectors, if the config says so."""
        for key in dict.fromkeys(keys) if self.config.normalize_observations else ():
            space = self.component(key)
            if is_vector(space):
                size = size_of(space)
                self.normalizers[module_name(key)] = ObservationNormalizer(size, clip=self.config.observation_clip)

    # ------------------------------------------------------------------ what PPO runs

    @abstractmethod
    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> PolicyOutput:
        """Distribution and value of obs `[B]`: what PPO's loss is made of.

        A recurrent policy also takes sequences, obs `[T, B]` and is_first `[T, B]`, from the state `[B, S]` before
        them; `unroll` does so with a function of one step. `state=None` is the start of an episode, `is_first=None`
        means that no episode starts.
        """

    def run_actor(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Actor:
        """Distribution, next state and latents without the critic: acting, teachers, cloning, export.

        Override it where the critic sees more than the actor, so that acting needs the actor's observations only.
        """
        out = self(obs, state, is_first)
        return out.distribution, out.state, out.latents

    def value(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        """V(obs) `[B]` in the critic's units: bootstrapping. Override it to spare the actor."""
        return self(obs, state, is_first).value

    def distribution(self, obs: Any) -> Distribution:
        """The action distribution of a feed-forward policy: collecting."""
        return self.run_actor(obs)[0]

    def update_normalizers(self, obs: TensorDictBase, valid: Tensor | None = None) -> None:
        """Absorb raw observations of any leading shape into the statistics; `valid` False: left out."""
        for name, normalizer in self.normalizers.items():
            assert isinstance(normalizer, ObservationNormalizer)
            normalizer.update(obs.get(key_of(name)), valid)

    @property
    def recurrent(self) -> bool:
        """True if the policy carries a state from step to step: minibatches are then whole columns."""
        return self.state_size > 0

    @property
    def actor_state_size(self) -> int:
        """Leading numbers of the state that `run_actor` needs: what an exported file carries."""
        return self.state_size

    def initial_state(self, batch: int) -> Tensor | None:
        """The recurrent state before an episode's first step, zeros `[batch, S]`; None if feed-forward."""
        return torch.zeros(batch, self.state_size, device=self.device) if self.recurrent else None

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.head.like.device

    def actor_parameters(self) -> list[nn.Parameter]:
        """Weights of the actor: what cloning regularises."""
        return list(self.parameters())

    def auxiliary_head(self, same: bool) -> ActionHead:
        """Another head on the latent "actor", with fresh weights or the same as the policy's: ADVISOR.

        Raises ValueError for a policy without that latent, or whose own head has no such weights.
        """
        latents = self.run_actor(self.blank_observation(1), self.initial_state(1))[2]
        if "actor" not in latents or (same and not isinstance(self.head, ActionHead)):
            raise ValueError(
                f"{type(self).__name__} cannot have an auxiliary head: put the input of its head into "
                'PolicyOutput.latents["actor"], and make the head with make_head'
            )
        head = self.make_head(latents["actor"].shape[-1])
        if same:
            head.load_state_dict(self.head.state_dict())
        return head

    def draw_replacements(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Where the actor is to see estimates, `[*leading, E]` bool, for the key `REPLACED` of a rollout."""
        raise ValueError(f"{type(self).__name__} has no estimators")

    # ------------------------------------------------------------------ helpers for `forward`

    def make_head(self, in_features: int) -> ActionHead:
        """A last layer for the actor: latents `[..., in_features]` to the distribution that the config asks for."""
        return make_head(self.action_space, in_features, self.config.distribution)

    def observe(self, obs: Any, keys: Iterable[Key] | None = None) -> dict[str, Tensor]:
        """Components as the networks see them (normalised) by name: "policy", or "policy/height"; None: the actor's."""
        return {"/".join(key): self.normalized(obs, key) for key in (self.sensor_keys if keys is None else keys)}

    def unroll(self, step: Step, x: Tensor, state: Tensor | None, is_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """`step(x [B, ...], state [B, S]) -> (y, state)` on one step or on a sequence; restarts where episodes do."""
        if state is None:
            state = x.new_zeros(x.shape[0 if is_first is None or is_first.ndim == 1 else 1], self.state_size)
        return unroll(step, x, state, is_first)

    def normalized(self, obs: Observations, key: Key) -> Tensor:
        """One component `[..., *shape]` of raw observations in the units that the networks see."""
        x: Any = obs.get(key)
        name = module_name(key)
        return self.normalizers[name](x) if name in self.normalizers else x

    def raw(self, key: Key, x: Tensor) -> Tensor:
        """The inverse of `normalized`, for a component `[..., D]` or an estimate of it."""
        name = module_name(key)
        if name not in self.normalizers:
            return x
        normalizer = cast(ObservationNormalizer, self.normalizers[name])
        return (x - normalizer.shift) / normalizer.scale

    def component(self, key: Key) -> spaces.Space[Any]:
        """The space of one component. Raises ValueError with the nearest name if there is none."""
        return component(self.observation_space, key)

    def components(self, groups: tuple[str, ...]) -> dict[Key, spaces.Space[Any]]:
        """The spaces of all components of groups, by key. Raises ValueError if there is none."""
        components: dict[Key, spaces.Space[Any]] = {}
        for group in groups:
            components |= find_components(self.observation_space, group)
        if not components:
            raise ValueError("the policy has no observation group: name at least one in actor_groups")
        return components

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def act(self, obs: Any, state: Tensor | None = None, deterministic: bool = True) -> tuple[Any, Tensor | None]:
        """The action to execute and the next state.

        `obs` is a TensorDict `[N]` as the environments give it, or, for use outside the library, one raw observation
        (array, tensor or dict of them), batched or not; the action comes back in kind. Pass `state=None` at the
        start of an episode. Only the actor runs: what only the critic sees may be missing.
        """
        if isinstance(obs, TensorDictBase):
            obs = self.sane(self._prepared(obs))
            state = self.initial_state(obs.shape[0]) if state is None else state
            distribution, state, _ = self.run_actor(obs, state)
            raw = distribution.mode() if deterministic else distribution.sample()
            return self.action_map(raw), state
        batch, single, as_numpy = self.observation(obs)
        action, state = self.act(batch, state, deterministic)
        action = action[0] if single else action
        return (action.cpu().numpy() if as_numpy else action), state

    def _prepared(self, obs: TensorDictBase) -> TensorDictBase:
        """Observations `[N]` as their spaces have them: what collecting does at its gate."""
        changed = {}
        for key in self.sensor_keys:
            space, value = self.component(key), obs.get(key, None)
            if value is None or obs.ndim != 1:
                have = f"{sorted('/'.join(name) for name in component_names(obs))} in a batch {list(obs.batch_size)}"
                raise ValueError(f"act needs {observation_name(key)} in a TensorDict [N], got {have}")
            shape = (obs.shape[0], *shape_of(space))
            if value.shape != shape or value.dtype != tensor_dtype(space):
                changed[key] = admit_tensor(value, space, shape, observation_name(key), careful=False)
        if changed:
            obs = obs.copy()
            for key, value in changed.items():
                obs[key] = value
        return obs

    def sane(self, obs: TensorDictBase) -> TensorDictBase:
        """Observations of any leading shape as a training has them: float32, 0 in place of NaN and absurd numbers.

        Absurd is what the statistics of a component would leave out, and what float32 cannot square.
        """
        clean, leaves = obs.clone(recurse=False), cast("dict[Any, Tensor]", dict(obs.items(True, True)))
        for key, x in leaves.items():
            if x.is_floating_point():
                if not (devices.host_is_device(x.device) and float(torch.linalg.vector_norm(x)) <= ABSURD):
                    x = without_faults(x.float(), self.sane_limit(key if isinstance(key, tuple) else (key,)))
                clean.set(key, x.float())
        return clean

    def sane_limit(self, key: Key) -> float | Tensor:
        """Largest size of a component's numbers that is not absurd: one number, or `[D]`."""
        name = module_name(key)
        if name not in self.normalizers:
            return BEYOND_USE
        return cast(ObservationNormalizer, self.normalizers[name]).limit

    def observation(self, obs: Any) -> tuple[TensorDict, bool, bool]:
        """A TensorDict `[N]` for acting, whether the observations came unbatched, and whether as arrays.

        Raises ValueError that says what was expected, and what came.
        """
        tree = obs if isinstance(obs, Mapping) else {"policy": obs}
        inner = [key for key in self.sensor_keys if key[0] == "policy" and len(key) > 1]
        if isinstance(obs, Mapping) and inner and "policy" not in obs:
            tree = {"policy": obs}  # a Dict space whose keys are components
        leaves: dict[Key, Tensor] = {}
        singles, as_numpy = set(), False
        for key in self.sensor_keys:
            space, value = self.component(key), tree
            for name in key:
                if not isinstance(value, Mapping):
                    raise ValueError(f"act needs a dict with {observation_name(key)}, got a {type(value).__name__}")
                value = lookup(value, name, "observation")
            as_numpy = not isinstance(value, Tensor)
            leaves[key], single = _rows(value, space, observation_name(key))
            singles.add(single)
        sizes = {len(x) for x in leaves.values()}
        if len(sizes) > 1 or len(singles) > 1:
            shapes = {"/".join(key): tuple(x.shape) for key, x in leaves.items()}
            raise ValueError(f"the observation's components differ in their batch: {shapes}")
        return (
            unflatten(tuple(leaves), [x.to(self.device) for x in leaves.values()], [*sizes]),
            singles == {True},
            as_numpy,
        )

    def blank_observation(self, batch: int, keys: Iterable[Key] | None = None) -> TensorDict:
        """Observations `[batch]` with nothing in them, zeros or the lowest integer; `keys` None: those for acting."""
        obs = TensorDict({}, batch_size=[batch], device=self.device)
        for key in self.sensor_keys if keys is None else keys:
            if key != REPLACED:  # only rollouts have it
                obs[key] = blank(self.component(key), [batch], self.device)
        return obs


def _rows(value: Any, space: spaces.Space[Any], what: str) -> tuple[Tensor, bool]:
    """A component's values as a tensor `[N, *shape]`, and whether they were one observation's."""
    given: Any = value.detach() if isinstance(value, Tensor) else np.asarray(value)
    shape, found = shape_of(space), tuple(given.shape)
    if shape == (1,) and found != shape and given.ndim < 2:  # the environment's space has no dimension
        given = given.reshape((*found, 1))
    if given.shape not in (shape, (*given.shape[:1], *shape)):
        raise ValueError(f"{what} has shape {found}: act takes {shape}, or {('N', *shape)} for N of them")
    single = given.ndim == len(shape)
    admit(given, space, tuple(given.shape), what)
    tensor = torch.as_tensor(given).to(tensor_dtype(space))
    return (tensor.unsqueeze(0) if single else tensor), single


def component_names(obs: TensorDictBase) -> list[Key]:
    """The keys of all tensors, each as a tuple."""
    keys: Any = obs.keys(include_nested=True, leaves_only=True)
    return [key if isinstance(key, tuple) else (key,) for key in keys]
