"""Flatten transitions into rows of numbers, and normalise the policy's and the expert's rows by one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from understudy.core.spaces import (
    Key,
    find_components,
    is_box,
    is_real,
    key_of,
    limits_of,
    module_name,
    shape_of,
    size_of,
)
from understudy.nn.networks import Encoder, EncoderConfig, make_encoder
from understudy.nn.normalization import ObservationNormalizer
from understudy.nn.protocol import Policy

Inputs = Literal["state", "state-action", "state-next-state", "state-action-next-state"]
Normalization = Literal["policy", "own", "none"]


class TransitionFeatures(nn.Module):
    """Rows `[..., size]` of transitions: those of state, action and next state that `inputs` names, in this order.

    Vectors are flattened, discrete components and actions one-hot. Actions are the executed ones, as a raw action
    outside the bounds would give the policy away. With `absorbing`, each state carries one more column: 0, or 1 with
    zeros beside it for the state that follows the end of the task (Kostrikov et al. 2019, arXiv:1809.02925, sec. 4.2).
    Raises ValueError for images and unknown names.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        observations: Sequence[str],
        inputs: Inputs,
        absorbing: bool = False,
    ) -> None:
        super().__init__()
        if not observations:
            raise ValueError("observations is empty: name at least one observation group or group/component")
        self.action_space, self.absorbing = action_space, absorbing
        self.with_action, self.with_next_state = "action" in inputs, "next-state" in inputs
        self.components: dict[Key, spaces.Space[Any]] = {}
        for name in observations:
            self.components |= find_components(observation_space, name)
        encoders = [_encoder(key, space) for key, space in self.components.items()]
        self.encoders = nn.ModuleList(encoders)
        self.action_encoder = make_encoder(action_space, EncoderConfig(kind="vector"))
        widths = [encoder.out_features for encoder in encoders]
        self.state_offsets = dict(zip(self.components, np.cumsum([0, *widths[:-1]]).tolist()))
        self.state_size = sum(widths) + absorbing
        self.action_size = self.action_encoder.out_features if self.with_action else 0
        self.size = self.state_size * (1 + self.with_next_state) + self.action_size

    @property
    def state_starts(self) -> tuple[int, ...]:
        """First column of each state."""
        return (0, self.state_size + self.action_size) if self.with_next_state else (0,)

    def forward(
        self, obs: TensorDictBase, action: Tensor, next_obs: TensorDictBase | None, terminated: Tensor
    ) -> Tensor:
        """Raw rows `[..., size]` of obs `[...]`, executed action `[..., *A]`, next_obs and terminated `[...]`."""
        columns = [*self.state(obs)]
        if self.absorbing:
            columns.append(torch.zeros_like(columns[0][..., :1]))
        if self.with_action:
            columns.append(self.action_encoder(action))
        if self.with_next_state:
            assert next_obs is not None
            following = self.state(next_obs)
            if self.absorbing:
                ended = terminated.unsqueeze(-1)
                following = [*(x.masked_fill(ended, 0.0) for x in following), ended.float()]
            columns += following
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)

    def of_rollout(self, rollout: TensorDictBase) -> Tensor:
        """Raw rows `[..., size]` of a rollout, or of drawn demonstrations, which use a rollout's names."""
        next_obs = rollout["next_obs"] if self.with_next_state else None
        return self(rollout["obs"], rollout["executed_action"], next_obs, rollout["terminated"])

    def state(self, obs: TensorDictBase) -> list[Tensor]:
        """The columns of one state, by component, without the absorbing one."""
        return [encoder(obs.get(key)) for key, encoder in zip(self.components, self.encoders)]

    def absorbing_row(self, device: torch.device) -> Tensor:
        """The row `[size]` of the loop from the absorbing state to itself, with zeros as action."""
        row = torch.zeros(self.size, device=device)
        for start in self.state_starts:
            row[start + self.state_size - 1] = 1.0
        return row


class SharedNormalizer(nn.Module):
    """`clip((row - mean) / std, +-limit)` per column, constant between two calls of `refresh`.

    Continuous vector components use the statistics of the policy's own normaliser ("policy"), separate ones that
    `absorb` updates from policy and expert rows alike ("own"), or none. Box actions with finite bounds map to [-1, 1];
    one-hot columns and `extra` columns at the end stay unchanged. Raises ValueError for "policy" with a component that
    the policy does not normalise.
    """

    shift: Tensor  # [C]
    scale: Tensor  # [C]
    limit: Tensor  # [C]

    def __init__(self, features: TransitionFeatures, kind: Normalization, policy: Policy, extra: int = 0) -> None:
        super().__init__()
        self.own = nn.ModuleDict()
        # first columns and normalisers; not submodules, as the policy's normalisers belong to the policy
        self.sources: list[tuple[int, ObservationNormalizer]] = []
        for key, space in features.components.items():
            if kind != "none" and is_real(space):
                name = module_name(key)
                if kind == "own":
                    self.own[name] = ObservationNormalizer(size_of(space))
                source = _normalizer_of(policy, name) if kind == "policy" else self.own[name]
                assert isinstance(source, ObservationNormalizer)
                self.sources += [(start + features.state_offsets[key], source) for start in features.state_starts]
        size = features.size + extra
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("limit", torch.full((size,), torch.inf))
        for start, source in self.sources:
            self.limit[start : start + source.size] = source.clip
        if features.with_action:
            shift, scale = _unit_box(features.action_space, features.action_size)
            action = slice(features.state_size, features.state_size + features.action_size)
            self.shift[action], self.scale[action] = shift, scale

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current statistics."""
        for start, source in self.sources:
            self.shift[start : start + source.size] = source.shift
            self.scale[start : start + source.size] = source.scale

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised rows `[..., C]`."""
        return torch.addcmul(self.shift, rows, self.scale).clamp(-self.limit, self.limit)

    def absorb(self, obs: TensorDictBase, valid: Tensor | None = None) -> None:
        """Update the separate statistics by observations `[...]`; PPO updates the policy's."""
        for name, normalizer in self.own.items():
            assert isinstance(normalizer, ObservationNormalizer)
            x = obs.get(key_of(name)).float()
            normalizer.update(x if x.shape[-1:] == (normalizer.size,) else x.unsqueeze(-1), valid)


def policy_weight(rollout: TensorDictBase) -> Tensor:
    """True in a rollout's valid rows in which the policy acted, False where an expert acted, `[T, N]`."""
    own = rollout["valid"]
    return own & rollout["on_policy"] if "on_policy" in rollout.keys() else own  # noqa: SIM118


def _encoder(key: Key, space: spaces.Space[Any]) -> Encoder:
    if is_box(space) and len(shape_of(space)) > 1:
        raise ValueError(
            f"{'/'.join(key)} is an image or matrix {space.shape}, but a discriminator reads rows: name "
            "vector or discrete components in `observations`"
        )
    return make_encoder(space)


def _normalizer_of(policy: Policy, name: str) -> nn.Module:
    if name not in policy.normalizers:
        raise ValueError(
            f"the policy does not normalise {name!r} (it normalises {sorted(policy.normalizers) or 'nothing'}), so "
            "normalization='policy' cannot use its statistics: choose normalization='own' (or 'none')"
        )
    return policy.normalizers[name]


def _unit_box(space: spaces.Space[Any], size: int) -> tuple[Tensor, Tensor]:
    """Shift and scale `[size]` that map actions with finite bounds to [-1, 1]; identity for all others."""
    shift, scale = torch.zeros(size), torch.ones(size)
    if is_box(space):
        low, high = (torch.as_tensor(x.reshape(-1)) for x in limits_of(space))
        known = torch.isfinite(low) & torch.isfinite(high) & (high > low)
        width = torch.where(known, high - low, 2.0)
        scale = (2.0 / width).float()
        shift = torch.where(known, -(high + low) / width, 0.0).float()
    return shift, scale
