"""Symmetry: a robot that looks the same in a mirror should act so (Mittal et al. 2024, arXiv:2403.04359)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from understudy.core.check import Config, In
from understudy.core.schedules import Scalar, Weight
from understudy.core.spaces import find_components, key_of, module_name
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.ppo.losses import clipped_surrogate, value_loss
from understudy.ppo.part import Losses, Part, PartConfig, PartContext
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class MirrorSpec(Config):
    """The mirror image of a vector: y[i] = sign[i] * x[permutation[i]]."""

    permutation: tuple[int, ...]
    """Source of each entry."""
    sign: tuple[float, ...]
    """+1 or -1 for each entry."""

    def __post_init__(self) -> None:
        """Check that applying the mirror twice gives the original."""
        super().__post_init__()
        size = len(self.permutation)
        if sorted(self.permutation) != list(range(size)) or len(self.sign) != size:
            raise ValueError(f"a mirror needs a permutation of 0..{size - 1} and {size} signs, got {self}")
        for i, j in enumerate(self.permutation):
            if self.permutation[j] != i or self.sign[i] * self.sign[j] != 1.0:
                raise ValueError(f"applied twice, the mirror changes entry {i}: check permutation and signs there")


@dataclass(frozen=True, kw_only=True)
class SymmetryConfig(PartConfig):
    """Options of the symmetry losses."""

    observations: Mapping[str, MirrorSpec] = field(default_factory=dict)
    """Mirror of each group or group/component that the policy sees; the others stay unchanged."""
    action: MirrorSpec | None = None
    """Mirror of the raw action."""
    mirror_coef: Weight = 1.0
    """Weight of the mirror loss; 0 only logs it."""
    augmentation_coef: Weight = 0.0
    """Weight of PPO's own loss on the mirrored minibatch (data augmentation); 1 counts it like the original."""
    clip_epsilon: Annotated[float, In(0.0, 1e3)] = 0.2
    """Ratio clip of the augmented loss."""
    value_coef: Annotated[float, In(0.0, 1e6)] = 0.5
    """Value-loss weight inside the augmented loss."""

    def build(self, context: PartContext) -> Symmetry:
        """Build the part."""
        return Symmetry(context, self)


class Symmetry(Part, Losses):
    """Mirror loss and data augmentation for tasks with left-right symmetry.

        L = mirror_coef * mean ||mu(M_s s) - M_a mu(s)||^2 / D  +  augmentation_coef * PPO(M_s s, M_a a)

    The mirrored mean is a constant in the first term (arXiv:2403.04359, eq. 4). In the second, the mirrored sample
    keeps the advantage, value target and behaviour log-prob of the original, as if the policy were symmetric. Raises
    ValueError for a recurrent policy (its state has no mirror image), for discrete actions and for sizes that differ.
    """

    def __init__(self, context: PartContext, config: SymmetryConfig) -> None:
        super().__init__(context)
        head = context.policy.head
        if context.policy.recurrent:
            raise ValueError("symmetry needs a feed-forward policy: a recurrent state has no mirror image")
        if not head.action_dtype.is_floating_point or config.action is None:
            raise ValueError("symmetry needs a continuous action and its mirror (`action`)")
        self.config = config
        self.action_mirror = _Mirror(config.action, "action", int(head.action_shape.numel()))
        self.mirrors = nn.ModuleDict()
        for name, spec in config.observations.items():
            components = find_components(context.observation_space, name)
            if len(components) != 1:
                raise ValueError(f"{name!r} holds {len(components)} components: mirror each by group/component")
            ((key, space),) = components.items()
            self.mirrors[module_name(key)] = _Mirror(spec, name, int(torch.Size(space.shape or ()).numel()))
        self.to(context.device)
        self.mirror_coef = Scalar(config.mirror_coef, context.device)
        self.augmentation_coef = Scalar(config.augmentation_coef, context.device)
        self.augments = config.augmentation_coef != 0.0

    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """Mirror loss plus, with `augmentation_coef`, PPO's loss on the mirrored minibatch."""
        mirrored = policy(self.mirror(batch["obs"]))
        with torch.no_grad():
            target = self.action_mirror(out.distribution.mode())
        error = mirrored.distribution.mode() - target
        valid = batch["valid"].to(error.dtype)  # invalid rows count as 0, as in PPO's own losses
        mirror = (error * error * valid.unsqueeze(-1)).mean()
        loss, metrics = self.mirror_coef() * mirror, {"mirror_loss": mirror.detach()}
        if self.augments:
            log_prob = mirrored.distribution.log_prob(self.action_mirror(batch["action"]))
            clip = self.config.clip_epsilon
            surrogate = clipped_surrogate(log_prob - batch["log_prob"], batch["advantage"], clip, clip)
            critic = value_loss(mirrored.value, batch["value_target"])
            augmented = (valid * (surrogate + self.config.value_coef * critic)).mean()
            loss = loss + self.augmentation_coef() * augmented
            metrics["augmented_loss"] = augmented.detach()
        return loss, metrics

    def mirror(self, obs: TensorDictBase) -> TensorDictBase:
        """The mirror image of observations `[B]`."""
        mirrored = obs.clone(recurse=False)
        for name, module in self.mirrors.items():
            key = key_of(name)
            mirrored[key] = module(obs.get(key))
        return mirrored


class _Mirror(nn.Module):
    def __init__(self, spec: MirrorSpec, name: str, size: int) -> None:
        super().__init__()
        if len(spec.permutation) != size:
            raise ValueError(f"the mirror of {name!r} has {len(spec.permutation)} entries, {name!r} has {size}")
        self.register_buffer("permutation", torch.tensor(spec.permutation), persistent=False)
        self.register_buffer("sign", torch.tensor(spec.sign), persistent=False)
        self.permutation: Tensor
        self.sign: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.permutation) * self.sign
