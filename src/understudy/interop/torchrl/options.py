"""The options of `ClipPPOLoss` in TorchRL's older and newer spellings, checked, and the names of a batch's entries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from understudy.core.check import nearest
from understudy.core.schedules import Scalar, Schedule
from understudy.interop.torchrl.entries import key_name
from understudy.interop.torchrl.modules import Actor, check_actor, check_critic

Number = float | Schedule
Reduction = Literal["mean", "sum", "none"]
ValueType = str | Enum | Callable[[TensorDictBase], Any] | None


class AdvantageScale(Protocol):
    """Running scale of the returns, as TorchRL's `ValueNorm`s."""

    def update(self, value_target: Tensor) -> Any:
        """Absorb value targets `[..., 1]`."""

    def scale(self) -> Tensor:
        """The scale, 0-D or `[1]`."""


@dataclass
class TensorKeys:
    """Names of a batch's entries; `set_keys` changes them. `action` and `sample_log_prob` list those of several heads.

    `reward`, `done` and `terminated` lie under "next" and are for the value estimator.
    """

    advantage: NestedKey
    value_target: NestedKey
    value: NestedKey
    sample_log_prob: NestedKey | list[NestedKey]
    action: NestedKey | list[NestedKey]
    reward: NestedKey = "reward"
    done: NestedKey = "done"
    terminated: NestedKey = "terminated"


class Default(float):
    """A default, told apart from the same number given."""


ENTROPY, CRITIC = Default(0.01), Default(1.0)

ELSEWHERE = {
    "gamma": "it belongs to the returns: us.gae(gamma=), or make_value_estimator(gamma=)",
    "lmbda": "it belongs to the returns: us.gae(gae_lambda=), or make_value_estimator(lmbda=)",
    "functional": "modules are used as they are, so leave it out",
    "log_explained_variance": "it is always logged, so leave it out",
}
"""Options of TorchRL's that are none here, and why."""


def either(ours: tuple[str, Any], theirs: tuple[str, Any], default: Any) -> Any:
    """The value given under one of two names; raises ValueError if it is given under both."""
    if theirs[1] is None:
        return ours[1]
    if ours[1] is not default:
        raise ValueError(f"{ours[0]} and {theirs[0]} are two spellings of one option: give one of them")
    return theirs[1]


def refuse(names: Mapping[str, Any], callee: Any, reasons: Mapping[str, str] | None = None) -> None:
    """Raise ValueError, with the nearest name, for options that do not exist."""
    known = [name for name in inspect.signature(callee).parameters if name not in ("self", "unknown")]
    for name in names:
        if name not in known:
            reason = (reasons or {}).get(name) or nearest(name, known)
            raise ValueError(f"{callee.__name__} has no option {name!r}: {reason}")


def check_modules(actor: Any, critic: Any, value_key: NestedKey | list[NestedKey]) -> None:
    """Raise ValueError unless the actor samples and the critic writes `value_key`."""
    check_actor(actor)
    check_critic(critic)
    if value_key not in critic.out_keys:
        raise ValueError(f"critic writes {critic.out_keys}, not {value_key!r}: set value_key or the critic's out_keys")


def not_negative(name: str, number: float | Schedule) -> float | Schedule:
    """The number; ValueError if it is negative."""
    if not isinstance(number, Schedule) and number < 0.0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


def head_coefs(actor: Actor, coefs: Any, device: torch.device | str | None) -> nn.ModuleDict | None:
    """The entropy's coefficient of each head, whose key may end in `_log_prob` or `_entropy`, as in TorchRL."""
    if not isinstance(coefs, Mapping):
        return None
    heads = [key_name(key) for key in actor.dist_sample_keys]
    given = {key_name(key).removesuffix("_log_prob").removesuffix("_entropy"): x for key, x in coefs.items()}
    if given.keys() != set(heads):
        raise ValueError(f"entropy_coef has numbers for {sorted(given)}, but the actor samples {heads}")
    return nn.ModuleDict({name: Scalar(given[name], device) for name in heads})


def written_log_prob(actor: Actor) -> NestedKey:
    """Where the actor writes the log-prob of its one action."""
    if len(actor.dist_sample_keys) > 1:
        return "action_log_prob"
    try:
        return actor.log_prob_keys[0]
    except RuntimeError:  # a global flag of tensordict changed after the actor was built
        return "action_log_prob"
