"""Read a scripted expert's labels from the observation: find their groups, check them once, convert to raw actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from understudy.core import ranks
from understudy.core.check import Config
from understudy.core.spaces import Key, bounds_of, classes_of, find_components, is_box, same_values, shape_of
from understudy.nn.distributions import Categorical, Distribution, MultiCategorical
from understudy.ppo.part import PartContext

LabelKind = Literal["action", "policy"]


@dataclass(frozen=True, kw_only=True)
class ExpertLabelsConfig(Config):
    """Observation groups that hold the expert's labels; outside `policy.actor_groups`, the policy does not see them."""

    kind: LabelKind = "action"
    """action: the expert's action; policy: its probability of each discrete action."""
    action: str = "expert_action"
    """Observation group of the expert's action, with the space of the policy's actions."""
    policy: str = "expert_policy"
    """Observation group of the expert's probabilities, `[A]`; for MultiDiscrete, all blocks one after another."""
    success: str = "expert_success"
    """Observation group that is 1 in steps with a label, 0 in steps without; always 1 if the group is missing."""


class ExpertLabel(NamedTuple):
    """Labels of any leading shape `[...]`; rows without one hold harmless values."""

    mask: Tensor  # [...] bool: True with a label
    target: Tensor  # [..., *A] raw action, or [..., A] probabilities
    kind: LabelKind


class ExpertLabels:
    """Reads `ExpertLabel`s from observations; actions come back raw, in the units of the policy's distribution.

    Raises ValueError for a missing group (naming the existing ones) and for one that does not fit the action space.
    """

    def __init__(self, context: PartContext, config: ExpertLabelsConfig) -> None:
        self.config, self.action_space = config, context.action_space
        self.action_map = context.policy.action_map
        self.action_dtype, self._checked = context.policy.head.action_dtype, False
        group = config.action if config.kind == "action" else config.policy
        self.key, self.space = _find(context.observation_space, group)
        self.blocks = _policy_blocks(group, self.space, context.action_space) if config.kind == "policy" else []
        # of a Box only the shape must agree: `check` tests the bounds
        if config.kind == "action" and not same_values(self.space, context.action_space):
            raise ValueError(
                f"the expert's {group!r} is {self.space}, but actions are {context.action_space}: both must be the "
                "same space; convert the expert's action in the environment"
            )
        self.success_key: Key | None = None
        if config.success in context.observation_space.spaces or config.success != ExpertLabelsConfig.success:
            self.success_key, self.success_space = _find(context.observation_space, config.success)
            if not _is_flag(self.success_space):
                raise ValueError(
                    f"{config.success!r} is {self.success_space}: a success is one number per environment, 0 or 1, "
                    "as Discrete(2), MultiBinary(1) or a Box of shape () or (1,)"
                )

    def read(self, obs: TensorDictBase, valid: Tensor | None = None) -> ExpertLabel:
        """The labels of obs `[...]`; rows that are not `valid` have none. Pure, no host sync."""
        leaf = obs.get(self.key)
        leading = leaf.shape[: leaf.ndim - len(self.space.shape or ())]
        mask = torch.ones(leading, dtype=torch.bool, device=leaf.device)
        if self.success_key is not None:
            mask = obs.get(self.success_key).reshape(leading) > 0
        if valid is not None:
            mask = mask & valid
        if self.config.kind == "policy":
            return ExpertLabel(mask, torch.where(mask.unsqueeze(-1), leaf, 1.0 / leaf.shape[-1]), "policy")
        raw = self.action_map.inverse(leaf)
        rows = mask.reshape(*leading, *[1] * (raw.ndim - mask.ndim))
        # a failing expert may write anything here, even a class that does not exist
        target = torch.where(rows, raw, torch.zeros_like(raw))
        return ExpertLabel(mask, target if target.is_floating_point() else target.to(self.action_dtype), "action")

    def count(self, batch: TensorDictBase) -> TensorDict | None:
        """For a part's `sample`: `count`, by which `masked_mean` divides where other ranks have labels, too."""
        share = ranks.share(self.read(batch["obs"], batch["valid"]).mask.sum().float())
        return None if share is None else TensorDict({"count": share}, [])

    def check(self, obs: TensorDictBase, leading: torch.Size) -> None:
        """Check the first labels on the host. Raises ValueError for wrong shapes, bad actions and bad probabilities.

        Later calls do nothing, so that the host does not wait for the device. Not for captured code.
        """
        if self._checked:
            return
        self._check_shape(obs, self.key, self.space, leading)
        mask = torch.ones(leading, dtype=torch.bool)
        if self.success_key is not None:
            self._check_shape(obs, self.success_key, self.success_space, leading)
            success = obs.get(self.success_key).reshape(leading).cpu()
            if bool(((success != 0) & (success != 1)).any()):
                raise ValueError(f"{'/'.join(self.success_key)!r} is {_some(success)}, but a success is 0 or 1")
            mask = success > 0
        said = obs.get(self.key).cpu()[mask]
        if self.config.kind == "policy":
            sums = torch.stack([block.sum(-1) for block in said.split(self.blocks, -1)], -1)
            if bool((said < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
                raise ValueError(f"{'/'.join(self.key)!r} must hold probabilities: >= 0, with a sum of 1")
        else:
            low, high = _bounds(self.action_space)
            outside = ~((said >= low) & (said <= high))  # NaN is outside, too
            if bool(outside.any()):
                raise ValueError(
                    f"{'/'.join(self.key)!r} holds {_some(said[outside])}, outside {self.action_space}: provide "
                    f"actions as env.step takes them, and set {self.config.success!r} to 0 where the expert has none"
                )
        self._checked = True

    def _check_shape(self, obs: TensorDictBase, key: Key, space: spaces.Space[Any], leading: torch.Size) -> None:
        found, expected = tuple(obs.get(key).shape), (*leading, *(space.shape or ()))
        if found != expected:
            raise ValueError(f"{'/'.join(key)!r} has shape {found}, but its space {space} needs {expected}")


def cross_entropy(distribution: Distribution, label: ExpertLabel) -> Tensor:
    """-log pi(e), or -sum_a pi_e(a) log pi(a) (blocks summed), `[...]`; finite without a label, too."""
    if label.kind == "action":
        return -distribution.log_prob(label.target)
    assert isinstance(distribution, Categorical | MultiCategorical)
    return -(label.target * distribution.log_p).sum(-1)


def masked_mean(x: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """sum(mask x) / max(sum(mask), 1), 0-D; 0 if nothing counts. Raises ValueError if the shapes differ.

    `count` (`ranks.share`) takes the place of the denominator.
    """
    if x.shape != mask.shape:
        raise ValueError(f"values {tuple(x.shape)} and their mask {tuple(mask.shape)} must have one shape")
    return torch.where(mask, x, 0.0).sum() / (mask.sum().clamp(min=1) if count is None else count)


def _find(space: spaces.Dict, name: str) -> tuple[Key, spaces.Space[Any]]:
    try:
        components = find_components(space, name)
    except ValueError as error:
        raise ValueError(f"the observation lacks the expert's labels: {error}. Set their groups in `labels`") from error
    if len(components) != 1:
        raise ValueError(f"{name!r} holds {len(components)} components: name one of them as group/component")
    return next(iter(components.items()))


def _policy_blocks(group: str, space: spaces.Space[Any], action_space: spaces.Space[Any]) -> list[int]:
    """Number of classes of each block of probabilities."""
    classes = classes_of(action_space)
    if classes is None:
        raise ValueError(f"{group!r}: probabilities are for discrete actions, not {action_space}; use kind action")
    shape = (sum(classes.counts),)
    if not is_box(space) or space.shape != shape:
        raise ValueError(f"{group!r} is {space}, but the actions {action_space} need a Box of shape {shape}")
    return list(classes.counts)


def _is_flag(space: spaces.Space[Any]) -> bool:
    classes = classes_of(space)
    if classes is not None:
        return shape_of(space) == () and classes == ([2], [0])
    return space.shape in ((), (1,))


def _bounds(space: spaces.Space[Any]) -> tuple[Tensor, Tensor]:
    """Least and greatest action; for a Box a little beyond, as rounding may push an action over the bound."""
    low, high = (torch.as_tensor(x, dtype=torch.float32 if is_box(space) else None) for x in bounds_of(space))
    if not is_box(space):
        return low, high
    slack = 1e-4 * torch.nan_to_num(high - low, posinf=0.0).clamp(min=1e-3)
    return low - slack, high + slack


def _some(x: Tensor) -> list[float]:
    """A few of the values, for a message."""
    return [float(value) for value in x.flatten()[:4]]
