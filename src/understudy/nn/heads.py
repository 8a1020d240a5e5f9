"""Action heads: the last linear layer of an actor, one class per family, and the choice of family for a space.

Raw actions are flat: `[..., D]` for a Box of any shape, counted from 0 for discrete spaces; the action map of the
environments turns them into what `env.step` takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

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
class DistributionConfig:
    """The action distribution: its family, and the standard deviation of the Gaussian families."""

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
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown distribution kind {self.kind!r}: choose one of {', '.join(get_args(Kind))}")
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


class ActionHead(nn.Module, ABC):
    """Maps an actor's latent `[..., H]` to the distribution of the raw action `[..., *action_shape]`."""

    action_shape: torch.Size  # of one environment's raw action: [D], [K], or [] for a single discrete choice
    action_dtype: torch.dtype
    num_params: int  # P of `Distribution.params`
    bounded: bool = False  # True if raw actions lie in [-1, 1] by construction
    linear: nn.Linear

    @abstractmethod
    def forward(self, latent: Tensor) -> Distribution:
        """The distribution at latent `[..., H]`."""

    @abstractmethod
    def from_params(self, params: Tensor) -> Distribution:
        """The distribution whose `params` `[..., P]` were stored."""

    @abstractmethod
    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Noise `[*leading, ...]` for `Distribution.sample`; one index into the leading shape is one sample's noise."""


class GaussianHead(ActionHead):
    """`DiagGaussian` over `[D]`; the standard deviation is exp(log_std), so positive, within floor and ceiling."""

    def __init__(self, in_features: int, size: int, config: DistributionConfig) -> None:
        super().__init__()
        self.linear, self.std = _gaussian_layers(in_features, size, config)
        self.mean_activation = _mean_activation(config)
        self.action_shape = torch.Size([size])
        self.action_dtype = torch.float32
        self.num_params = 2 * size

    def forward(self, latent: Tensor) -> DiagGaussian:
        """`DiagGaussian` at latent `[..., H]`."""
        mean, log_std = self.std(self.linear(latent))
        return DiagGaussian(mean if self.mean_activation is None else self.mean_activation(mean), log_std)

    def from_params(self, params: Tensor) -> DiagGaussian:
        """From `[..., 2D]`: mean, log_std."""
        return DiagGaussian(*params.chunk(2, dim=-1))

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal `[*leading, D]`."""
        return standard_normal((*leading, *self.action_shape), like=self.linear.weight, generator=generator)


class TanhGaussianHead(ActionHead):
    """`TanhGaussian` over `[D]`: actions in (-1, 1); the standard deviation is that before the tanh."""

    bounded = True

    def __init__(self, in_features: int, size: int, config: DistributionConfig) -> None:
        super().__init__()
        self.linear, self.std = _gaussian_layers(in_features, size, config)
        self.mean_activation = _mean_activation(config)
        self.action_shape = torch.Size([size])
        self.action_dtype = torch.float32
        self.num_params = 2 * size

    def forward(self, latent: Tensor) -> TanhGaussian:
        """`TanhGaussian` at latent `[..., H]`."""
        mean, log_std = self.std(self.linear(latent))
        return TanhGaussian(mean if self.mean_activation is None else self.mean_activation(mean), log_std)

    def from_params(self, params: Tensor) -> TanhGaussian:
        """From `[..., 2D]`: mean, log_std, before the tanh."""
        return TanhGaussian(*params.chunk(2, dim=-1))

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal `[*leading, D]`."""
        return standard_normal((*leading, *self.action_shape), like=self.linear.weight, generator=generator)


class BetaHead(ActionHead):
    """`Beta` over `[-1, 1]^D` with alpha, beta = 1 + softplus(linear): one peak, starting at the centre."""

    bounded = True

    def __init__(self, in_features: int, size: int, config: DistributionConfig) -> None:
        super().__init__()
        self.linear = _linear(in_features, 2 * size, config.head_gain)
        self.action_shape = torch.Size([size])
        self.action_dtype = torch.float32
        self.num_params = 2 * size

    def forward(self, latent: Tensor) -> Beta:
        """`Beta` at latent `[..., H]`."""
        return self.from_params(1.0 + nn.functional.softplus(self.linear(latent)))

    def from_params(self, params: Tensor) -> Beta:
        """From `[..., 2D]`: alpha, beta."""
        alpha, beta = params.chunk(2, dim=-1)
        return Beta(alpha, beta)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Normals and uniforms `[*leading, D, 4K]` for gamma variates, see `noise.beta_noise`."""
        return beta_noise((*leading, *self.action_shape), like=self.linear.weight, generator=generator)


class CategoricalHead(ActionHead):
    """`Categorical` over n classes."""

    def __init__(self, in_features: int, n: int, config: DistributionConfig) -> None:
        super().__init__()
        self.linear = _linear(in_features, n, config.head_gain)
        self.action_shape = torch.Size([])
        self.action_dtype = torch.int64
        self.num_params = n

    def forward(self, latent: Tensor) -> Categorical:
        """`Categorical` at latent `[..., H]`."""
        return Categorical(self.linear(latent))

    def from_params(self, params: Tensor) -> Categorical:
        """From logits `[..., n]`."""
        return Categorical(params)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Gumbel `[*leading, n]`."""
        return gumbel_noise((*leading, self.num_params), like=self.linear.weight, generator=generator)


class MultiCategoricalHead(ActionHead):
    """`MultiCategorical` over K choices of nvec[k] classes."""

    offsets: Tensor

    def __init__(self, in_features: int, nvec: Sequence[int], config: DistributionConfig) -> None:
        super().__init__()
        self.nvec = tuple(int(n) for n in nvec)
        self.linear = _linear(in_features, sum(self.nvec), config.head_gain)
        self.register_buffer("offsets", block_offsets(self.nvec), persistent=False)
        self.action_shape = torch.Size([len(self.nvec)])
        self.action_dtype = torch.int64
        self.num_params = sum(self.nvec)

    def forward(self, latent: Tensor) -> MultiCategorical:
        """`MultiCategorical` at latent `[..., H]`."""
        return self.from_params(self.linear(latent))

    def from_params(self, params: Tensor) -> MultiCategorical:
        """From logits `[..., sum(nvec)]`."""
        return MultiCategorical(params, self.nvec, self.offsets)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Gumbel `[*leading, sum(nvec)]`."""
        return gumbel_noise((*leading, self.num_params), like=self.linear.weight, generator=generator)


class BernoulliHead(ActionHead):
    """`Bernoulli` over K bits."""

    def __init__(self, in_features: int, size: int, config: DistributionConfig) -> None:
        super().__init__()
        self.linear = _linear(in_features, size, config.head_gain)
        self.action_shape = torch.Size([size])
        self.action_dtype = torch.int64
        self.num_params = size

    def forward(self, latent: Tensor) -> Bernoulli:
        """`Bernoulli` at latent `[..., H]`."""
        return Bernoulli(self.linear(latent))

    def from_params(self, params: Tensor) -> Bernoulli:
        """From logits `[..., K]`."""
        return Bernoulli(params)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Logistic `[*leading, K]`."""
        return logistic_noise((*leading, self.num_params), like=self.linear.weight, generator=generator)


def make_head(action_space: ActionSpace, in_features: int, config: DistributionConfig | None = None) -> ActionHead:
    """The head for an action space; raises ValueError where space, kind and options do not fit together."""
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
        return _box_head(kind, action_space, in_features, config)
    if isinstance(action_space, spaces.Discrete):
        return CategoricalHead(in_features, int(action_space.n), config)
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategoricalHead(in_features, action_space.nvec.flatten().tolist(), config)
    return BernoulliHead(in_features, math.prod(action_space.shape or ()), config)


def _box_head(kind: str, space: spaces.Box, in_features: int, config: DistributionConfig) -> ActionHead:
    size = math.prod(space.shape)
    if size == 0 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"no action distribution covers {space}: a Box of actions is floating and not empty")
    for name, value in (("min_std", config.min_std), ("max_std", config.max_std)):
        if len(_numbers(value)) not in (0, 1, size):
            raise ValueError(f"{name} has {len(_numbers(value))} entries, but the action has {size}: give 1 or {size}")
    if kind == "tanh_gaussian":
        return TanhGaussianHead(in_features, size, config)
    if kind == "beta":
        return BetaHead(in_features, size, config)
    return GaussianHead(in_features, size, config)


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


def _gaussian_layers(
    in_features: int, size: int, config: DistributionConfig
) -> tuple[nn.Linear, _SharedStd | _StateStd]:
    if not config.state_dependent_std:
        return _linear(in_features, size, config.head_gain), _SharedStd(size, config)
    linear = _linear(in_features, 2 * size, config.head_gain)
    nn.init.constant_(linear.bias[size:], math.log(config.init_std))
    return linear, _StateStd(size, config)


def _linear(in_features: int, out_features: int, gain: float) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def _mean_activation(config: DistributionConfig) -> nn.Module | None:
    return None if config.mean_activation is None else activation(config.mean_activation)


def _numbers(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (float(value),)
