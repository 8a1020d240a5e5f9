"""The last layer of an actor, and the family of distributions that fits an action space.

Raw actions are flat: `[..., D]` for a Box of any shape, counted from 0 for discrete spaces; the action map of the
environments turns them into what `env.step` takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.core.check import Config
from understudy.nn.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    TanhGaussian,
    block_offsets,
)
from understudy.nn.networks import activation
from understudy.nn.noise import beta_noise, gumbel_noise, logistic_noise, standard_normal

Kind = Literal["auto", "gaussian", "tanh_gaussian", "beta", "categorical", "multi_categorical", "bernoulli"]
ActionSpace = spaces.Space[Any]

KINDS_OF_SPACE: dict[type[ActionSpace], tuple[Kind, ...]] = {  # the first one is what "auto" takes
    spaces.Box: ("gaussian", "tanh_gaussian", "beta"),
    spaces.Discrete: ("categorical",),
    spaces.MultiDiscrete: ("multi_categorical",),
    spaces.MultiBinary: ("bernoulli",),
}


@dataclass(frozen=True, kw_only=True)
class DistributionConfig(Config):
    """The action distribution: its family, and the standard deviation of the Gaussian families."""

    PREFIX: ClassVar[str] = "policy.distribution."

    kind: Kind = "auto"
    """Family; auto: Box gaussian, Discrete categorical, MultiDiscrete multi_categorical, MultiBinary bernoulli."""
    init_std: float = 1.0
    """Initial standard deviation (before the tanh for tanh_gaussian; ignored by families without one)."""
    state_dependent_std: bool = False
    """The network outputs the standard deviation too, instead of one learned number per action."""
    min_std: float | tuple[float, ...] | None = None
    """Floor of the standard deviation: one number, or one per action."""
    max_std: float | tuple[float, ...] | None = None
    """Ceiling of the standard deviation: one number, or one per action."""
    learn_std: bool = True
    """False keeps the standard deviation at init_std."""
    mean_activation: str | None = None
    """Activation on the mean of the Gaussian families, "tanh" for example."""
    head_gain: float = 0.01
    """Gain of the last layer's orthogonal weights: small, so that the first actions hardly depend on the state."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is built."""
        super().__post_init__()
        if not self.init_std > 0.0:
            raise ValueError(f"init_std must be positive, got {self.init_std}")
        if self.state_dependent_std and not self.learn_std:
            raise ValueError("state_dependent_std=True is learned: drop it, or drop learn_std=False")
        for low in _numbers(self.min_std):
            if not 0.0 < low <= self.init_std:
                raise ValueError(f"min_std must be in (0, init_std = {self.init_std}], got {self.min_std}")
        for high in _numbers(self.max_std):
            if high < self.init_std:
                raise ValueError(f"max_std must not be below init_std = {self.init_std}, got {self.max_std}")


class ActionFamily(nn.Module, ABC):
    """A family of distributions over one environment's raw actions; it has no weights.

    All that PPO and the parts ask about a policy's distribution: how to store it, how to restore it, which noise it
    takes. A policy without a layer of ours uses one as its `head`.
    """

    action_shape: torch.Size  # of one environment's raw action: [D], [K], or [] for a single discrete choice
    num_params: int  # P of `Distribution.params`
    action_dtype: torch.dtype = torch.float32
    bounded: bool = False  # True if raw actions lie in [-1, 1] by construction
    like: Tensor  # empty: device and dtype of the noise

    def __init__(self, kind: Kind, action_shape: Sequence[int], num_params: int) -> None:
        super().__init__()
        self.kind, self.action_shape, self.num_params = kind, torch.Size(action_shape), num_params
        self.register_buffer("like", torch.empty(0), persistent=False)

    @abstractmethod
    def from_params(self, params: Tensor) -> Distribution:
        """The distribution whose `params` `[..., P]` were stored."""

    @abstractmethod
    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Noise `[*leading, ...]` for `Distribution.sample`; one index into the leading shape is one sample's noise."""


class _Gaussians(ActionFamily):
    """`DiagGaussian` or `TanhGaussian`; params: mean, then log_std (both before the tanh)."""

    def __init__(self, kind: Kind, size: int) -> None:
        super().__init__(kind, [size], 2 * size)
        self.bounded = kind == "tanh_gaussian"
        self.make: type[DiagGaussian] | type[TanhGaussian] = TanhGaussian if self.bounded else DiagGaussian

    def from_params(self, params: Tensor) -> DiagGaussian | TanhGaussian:
        return self.make(*params.chunk(2, dim=-1))

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        return standard_normal((*leading, *self.action_shape), like=self.like, generator=generator)


class _Betas(ActionFamily):
    """`Beta` over `[-1, 1]^D`; params: alpha, then beta."""

    bounded = True

    def __init__(self, kind: Kind, size: int) -> None:
        super().__init__(kind, [size], 2 * size)

    def from_params(self, params: Tensor) -> Beta:
        alpha, beta = params.chunk(2, dim=-1)
        return Beta(alpha, beta)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        return beta_noise((*leading, *self.action_shape), like=self.like, generator=generator)


class _Choices(ActionFamily):
    """`Categorical`, `MultiCategorical` or `Bernoulli`; params: the logits. Classes are drawn with Gumbel noise."""

    action_dtype = torch.int64
    offsets: Tensor

    def __init__(self, kind: Kind, nvec: Sequence[int]) -> None:
        shape = {"categorical": [], "multi_categorical": [len(nvec)], "bernoulli": [sum(nvec)]}[kind]
        super().__init__(kind, shape, sum(nvec))
        self.nvec = tuple(int(n) for n in nvec)
        self.register_buffer("offsets", block_offsets(self.nvec), persistent=False)

    def from_params(self, params: Tensor) -> Categorical | MultiCategorical | Bernoulli:
        if self.kind == "multi_categorical":
            return MultiCategorical(params, self.nvec, self.offsets)
        return Categorical(params) if self.kind == "categorical" else Bernoulli(params)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        draw = logistic_noise if self.kind == "bernoulli" else gumbel_noise
        return draw((*leading, self.num_params), like=self.like, generator=generator)


class ActionHead(ActionFamily):
    """The last linear layer of an actor: latent `[..., H]` to the family's distribution.

    The standard deviation of a Gaussian is exp(log_std), so positive, within floor and ceiling. A Beta has alpha, beta
    = 1 + softplus(linear): one peak, starting at the centre.
    """

    def __init__(self, in_features: int, family: ActionFamily, config: DistributionConfig) -> None:
        super().__init__(family.kind, family.action_shape, family.num_params)
        self.family, self.action_dtype, self.bounded = family, family.action_dtype, family.bounded
        size, gaussian = family.num_params, isinstance(family, _Gaussians)
        wide = not gaussian or config.state_dependent_std
        self.linear = nn.Linear(in_features, size if wide else size // 2)
        nn.init.orthogonal_(self.linear.weight, config.head_gain)
        nn.init.zeros_(self.linear.bias)
        self.std: _SharedStd | _StateStd | None = None
        self.mean_activation: nn.Module | None = None
        if gaussian:
            self.std = (_StateStd if wide else _SharedStd)(size // 2, config)
            if wide:
                nn.init.constant_(self.linear.bias[size // 2 :], math.log(config.init_std))
            if config.mean_activation is not None:
                self.mean_activation = activation(config.mean_activation)

    def forward(self, latent: Tensor) -> Distribution:
        """The distribution at latent `[..., H]`."""
        out = self.linear(latent)
        if self.std is not None:
            assert isinstance(self.family, _Gaussians)
            mean, log_std = self.std(out)
            return self.family.make(mean if self.mean_activation is None else self.mean_activation(mean), log_std)
        return self.family.from_params(1.0 + nn.functional.softplus(out) if self.kind == "beta" else out)

    def from_params(self, params: Tensor) -> Distribution:
        """The distribution whose `params` `[..., P]` were stored."""
        return self.family.from_params(params)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor | None:
        """The family's noise."""
        return self.family.noise(*leading, generator=generator)


def make_head(action_space: ActionSpace, in_features: int, config: DistributionConfig | None = None) -> ActionHead:
    """The head for an action space; raises ValueError where space, kind and options do not fit together."""
    config = config or DistributionConfig()
    return ActionHead(in_features, make_family(action_space, config), config)


def make_family(action_space: ActionSpace, config: DistributionConfig | None = None) -> ActionFamily:
    """The family for an action space; raises ValueError where space, kind and options do not fit together."""
    config = config or DistributionConfig()
    kinds = next((kinds for space, kinds in KINDS_OF_SPACE.items() if isinstance(action_space, space)), None)
    if kinds is None:
        known = ", ".join(space.__name__ for space in KINDS_OF_SPACE)
        raise ValueError(f"no action distribution covers {action_space}: supported are {known}")
    kind = kinds[0] if config.kind == "auto" else config.kind
    if kind not in kinds:
        raise ValueError(f"distribution kind {kind!r} does not fit {action_space}: use 'auto' or one of {kinds}")
    _check_std_options(kind, action_space, config)
    if isinstance(action_space, spaces.Box):
        size = _box_size(action_space, config)
        return _Betas(kind, size) if kind == "beta" else _Gaussians(kind, size)
    if isinstance(action_space, spaces.Discrete):
        return _Choices(kind, [int(action_space.n)])
    if isinstance(action_space, spaces.MultiDiscrete):
        return _Choices(kind, action_space.nvec.flatten().tolist())
    return _Choices(kind, [1] * math.prod(action_space.shape or ()))


def _box_size(space: spaces.Box, config: DistributionConfig) -> int:
    size = math.prod(space.shape)
    if size == 0 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"no action distribution covers {space}: a Box of actions is floating and not empty")
    for name, value in (("min_std", config.min_std), ("max_std", config.max_std)):
        if len(_numbers(value)) not in (0, 1, size):
            raise ValueError(f"{name} has {len(_numbers(value))} entries, but the action has {size}: give 1 or {size}")
    return size


def _check_std_options(kind: Kind, space: ActionSpace, config: DistributionConfig) -> None:
    if kind in ("gaussian", "tanh_gaussian"):
        return
    options = {
        "state_dependent_std": config.state_dependent_std,
        "learn_std": not config.learn_std,
        "min_std": config.min_std is not None,
        "max_std": config.max_std is not None,
        "mean_activation": config.mean_activation is not None,
    }
    given = [name for name, changed in options.items() if changed]
    if given:
        raise ValueError(
            f"{', '.join(given)} would have no effect: {kind!r} (for {space}) is no Gaussian; leave it out"
        )


class _SharedStd(nn.Module):
    """Mean from the linear layer `[..., D]`, one log_std `[D]` for all states."""

    log_std: Tensor

    def __init__(self, size: int, config: DistributionConfig) -> None:
        super().__init__()
        log_std = torch.full((size,), math.log(config.init_std))
        if config.learn_std:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)
        self.bound = _StdBound(size, config)

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        return out, self.bound(self.log_std)


class _StateStd(nn.Module):
    """Mean and log_std `[..., D]` from the halves of the linear layer `[..., 2D]`."""

    def __init__(self, size: int, config: DistributionConfig) -> None:
        super().__init__()
        self.bound = _StdBound(size, config)

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = out.chunk(2, dim=-1)
        return mean, self.bound(log_std)


class _StdBound(nn.Module):
    """Keeps log_std between floor and ceiling; does nothing where neither is given."""

    low: Tensor
    high: Tensor

    def __init__(self, size: int, config: DistributionConfig) -> None:
        super().__init__()
        self.active = config.min_std is not None or config.max_std is not None
        low, high = _numbers(config.min_std) or (0.0,), _numbers(config.max_std) or (math.inf,)
        self.register_buffer("low", torch.tensor(low).log().expand(size).clone(), persistent=False)
        self.register_buffer("high", torch.tensor(high).log().expand(size).clone(), persistent=False)

    def forward(self, log_std: Tensor) -> Tensor:
        return bound_log_std(log_std, self.low, self.high) if self.active else log_std


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient is dropped only where it would push further outside.

    A plain clamp has no gradient at all outside, so that a standard deviation which once crossed its floor would
    stay there for ever. This is the step-then-project behaviour of clipping the parameter after each update.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, clamped = ctx.saved_tensors
        # descent moves x along -grad: outward where x - clamped and grad have opposite signs
        return grad.masked_fill((x - clamped) * grad < 0.0, 0.0), None, None


def bound_log_std(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` clamped to [low, high], with a gradient that lets it come back inside."""
    return _Bounded.apply(x, low, high) if torch.is_grad_enabled() else x.clamp(low, high)


def _numbers(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (float(value),)
