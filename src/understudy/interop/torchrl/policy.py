"""Modules of `tensordict.nn` as the policy that parts see."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from understudy.core.spaces import Key, component_keys, shape_of
from understudy.interop.torchrl.actions import as_distribution
from understudy.interop.torchrl.entries import after, key_name, per_sample
from understudy.interop.torchrl.modules import Actor, distribution_of, memory_of, whole_columns
from understudy.nn.distributions import Distribution
from understudy.nn.estimator import Estimated
from understudy.nn.heads import ActionHead, DistributionConfig, Kind
from understudy.nn.protocol import Actor as Acted
from understudy.nn.protocol import Policy, PolicyConfig, PolicyOutput

Places = Mapping[Key, tuple[NestedKey, torch.dtype]]
"""Observation component -> the entry that it is read from, and in which type."""


class TensorDictPolicy(Policy):
    """`tensordict.nn` modules as the policy that parts see; the modules remain the user's.

    The actor's entries are the group "policy" (with components, if it reads several), the critic's the group "critic"
    if it reads others. The state is that of all memories, flat; their modules run over whole columns, as in TorchRL.
    `estimates` are entries that the actor's pass leaves, by the component that they estimate. Raises ValueError for a
    distribution that is none of this library's families.
    """

    def __init__(
        self,
        actor: Actor,
        critic: TensorDictModuleBase | None,
        places: Places,
        like: TensorDictBase,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        kind: Kind,
        latent_key: NestedKey | None,
        estimates: Mapping[Key, NestedKey],
    ) -> None:
        config = PolicyConfig(
            action_scaling="on" if kind == "tanh_gaussian" else "off",
            action_bound="none",
            distribution=DistributionConfig(kind=kind),
            normalize_observations=not estimates,  # an estimate is compared in the units of the entry
        )
        super().__init__(observation_space, action_space, config)
        self.add_normalizers(component_keys(observation_space))  # for parts: the networks have their own, if any
        self._modules_of_the_user = actor, critic  # in a tuple: they are not this module's weights
        self.places, self.latent_key = places, latent_key
        entries = {key: like.get(key) for key in memory_of(actor, critic)}
        self.memory = {key: (x.shape[like.ndim :], x.dtype) for key, x in entries.items()}
        self.state_size = sum(shape.numel() for shape, _ in self.memory.values())
        self.estimate_keys = {f"estimate/{'/'.join(key)}": entry for key, entry in estimates.items()}
        for key in estimates:
            name = "/".join(key)
            self.estimators[name] = Estimated(name, {key: self.component(key)})

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> PolicyOutput:
        """Distribution and value of obs `[B]` or `[T, B]`; without a critic, values are zeros."""
        return self._run(obs, state, is_first, self._modules_of_the_user[1])

    def run_actor(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Acted:
        """Distribution, next state, and the latents: "actor" if there is a `latent_key`, and the estimates."""
        out = self._run(obs, state, is_first, None)
        return out.distribution, out.state, out.latents

    def actor_parameters(self) -> list[nn.Parameter]:
        """Weights of the actor."""
        return list(self._modules_of_the_user[0].parameters())

    def auxiliary_head(self, same: bool) -> ActionHead:
        """A head on the entry `latent_key`: a copy of what follows it in the actor, or a fresh one."""
        if self.latent_key is None:
            raise ValueError(
                "an auxiliary head reads what the actor's last layer reads: name that entry of the actor's pass with "
                f"latent_key=, the actor's are {[key_name(key) for key in self._modules_of_the_user[0].out_keys]}"
            )
        if not same:
            return super().auxiliary_head(same)
        return cast(ActionHead, _Tail(self._modules_of_the_user[0], self.latent_key))

    def _run(
        self, obs: Any, state: Tensor | None, is_first: Tensor | None, critic: TensorDictModuleBase | None
    ) -> PolicyOutput:
        batch, one_step = self._entries(obs, state, is_first)
        with whole_columns(self.recurrent):
            distribution = as_distribution(distribution_of(self._modules_of_the_user[0], batch), batch.batch_size)
            value = torch.zeros(batch.batch_size, device=batch.device)
            if critic is not None:
                value = per_sample(critic(batch).get(critic.out_keys[-1]), "the critic's value", batch.batch_size)
        named = self.estimate_keys if self.latent_key is None else {"actor": self.latent_key, **self.estimate_keys}
        latents = {name: _left(batch, key) for name, key in named.items()}
        if not self.recurrent:
            return PolicyOutput(distribution, value, None, latents)

        def ours(x: Tensor) -> Tensor:
            return x.squeeze(1) if one_step else x.transpose(0, 1)

        distribution = self.head.from_params(ours(distribution.params))
        latents = {name: ours(x) for name, x in latents.items()}
        return PolicyOutput(distribution, ours(value), self._last_state(batch), latents)

    def _entries(self, obs: Any, state: Tensor | None, is_first: Tensor | None) -> tuple[TensorDict, bool]:
        """The user's entries of our observations, in their types, and whether they are of one step.

        For a memory those are columns `[B, T]`, with the state before their first step.
        """
        first = self.sensor_keys[0]
        leaf = obs.get(first)
        leading = leaf.shape[: leaf.ndim - len(shape_of(self.component(first)))]
        one_step = len(leading) == 1

        def theirs(x: Tensor) -> Tensor:
            return x if not self.recurrent else x.unsqueeze(1) if one_step else x.transpose(0, 1)

        starts = theirs(torch.zeros(leading, dtype=torch.bool, device=leaf.device) if is_first is None else is_first)
        batch = TensorDict({}, batch_size=starts.shape, device=leaf.device)
        for key in self.input_keys:
            entry, dtype = self.places[key]
            if (x := obs.get(key, None)) is not None:
                batch[entry] = theirs(x).to(dtype)
        if self.recurrent:
            rows, steps = starts.shape
            batch["is_init"] = starts.unsqueeze(-1)
            state = torch.zeros(rows, self.state_size, device=leaf.device) if state is None else state
            state = state.masked_fill(starts[:, :1], 0.0)  # a memory takes what it is given
            pieces = state.split([shape.numel() for shape, _ in self.memory.values()], -1)
            for (entry, (shape, dtype)), x in zip(self.memory.items(), pieces):
                later = x.new_zeros(rows, steps - 1, *shape)
                batch[entry] = torch.cat((x.reshape(rows, 1, *shape), later), 1).to(dtype)
        return batch, one_step

    def _last_state(self, batch: TensorDictBase) -> Tensor:
        """The state after columns `[B, T]`; that of a memory which did not run, as it was."""
        left = {key: batch.get(after(key), None) for key in self.memory}
        return torch.cat([(batch[key][:, 0] if x is None else x[:, -1]).flatten(1) for key, x in left.items()], -1)


class _Tail(nn.Module):
    """A copy of what follows an entry in an actor: latent `[..., H]` to distribution."""

    def __init__(self, actor: Actor, latent_key: NestedKey) -> None:
        super().__init__()
        modules = list(_in_order(actor))
        start = next((i for i, module in enumerate(modules) if latent_key in module.in_keys), None)
        if start is None:
            raise ValueError(f"no module of the actor reads {latent_key!r}: name the entry that its last layer reads")
        if memory_of(*modules[start:]):
            raise ValueError(f"a memory follows {latent_key!r} in the actor: name the entry that its last layer reads")
        self.latent_key, self.actor = latent_key, ProbabilisticTensorDictSequential(*copy.deepcopy(modules[start:]))

    def forward(self, latent: Tensor) -> Distribution:
        batch = TensorDict({}, batch_size=latent.shape[:-1], device=latent.device)
        batch[self.latent_key] = latent
        return as_distribution(distribution_of(self.actor, batch), batch.batch_size)


def _in_order(actor: Any) -> Iterable[Any]:
    """The modules of a sequence, those of inner sequences in their place."""
    if not isinstance(actor, TensorDictSequential):
        return [actor]
    inner: Any = actor.module.values() if isinstance(actor.module, nn.ModuleDict) else actor.module
    return [module for part in inner for module in _in_order(part)]


def _left(batch: TensorDictBase, key: NestedKey) -> Tensor:
    """An entry that the actor's pass left; ValueError if there is none."""
    if (x := batch.get(key, None)) is None:
        raise ValueError(f"the actor's pass leaves no {key!r}, but {[key_name(k) for k in batch.keys(True, True)]}")
    return x
