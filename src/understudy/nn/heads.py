"""The last layer of an actor, and the family of distributions that fits an action space.

Raw actions are flat: `[..., D]` for a Box of any shape, counted from 0 for discrete spaces; the action map of the
environments turns them into what `env.step` takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.core.check import Config, In
from understudy.core.devices import check_memory
from understudy.core.spaces import check_action_space, classes_of, is_real, kind_of, size_of
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
from understudy.nn.networks import Activation, make_activation
from understudy.nn.noise import beta_noise, gumbel_noise, logistic_noise, standard_normal

Kind = Literal["auto", "gaussian", "tanh_gaussian", "beta", "categorical", "multi_categorical", "bernoulli"]
ActionSpace = spaces.Space[Any]

KINDS_OF_SPACE: dict[str | None, tuple[Kind, ...]] = {  # the first one is what "auto" takes
    "box": ("gaussian", "tanh_gaussian", "beta"),
    "discrete": ("categorical",),
    "multi_discrete": ("multi_categorical",),
    "multi_binary": ("bernoulli",),
}
CONTINUOUS: dict[str, type[DiagGaussian] | type[TanhGaussian] | type[Beta]] = {
    "gaussian": DiagGaussian,
    "tanh_gaussian": TanhGaussian,
    "beta": Beta,
}
GAUSSIANS = ("gaussian", "tanh_gaussian")
STD_OPTIONS = ("state_dependent_std", "learn_std", "std_type", "min_std", "max_std", "mean_activation")


@dataclass(frozen=True, kw_only=True)
class DistributionConfig(Config):
    """The action distribution: its family, and the standard deviation of the Gaussian families."""

    PREFIX: ClassVar[str] = "policy.distribution."

    kind: Kind = "auto"
    """Family; auto: Box gaussian, Discrete categorical, MultiDiscrete multi_categorical, MultiBinary bernoulli."""
    init_std: Annotated[float, In(1e-4, 1e4)] = 1.0
    """Initial standard deviation (before the tanh for tanh_gaussian; ignored by families without one)."""
    state_dependent_std: bool = False
    """The network outputs the standard deviation too, instead of one learned number per action."""
    min_std: Annotated[float | tuple[float, ...] | None, In(1e-6, 1e4)] = None
    """Floor of the standard deviation: one number, or one per action. Ignored if "auto" takes a family without one."""
    max_std: Annotated[float | tuple[float, ...] | None, In(1e-4, 1e6)] = None
    """Ceiling of the standard deviation, likewise."""
    learn_std: bool = True
    """False keeps the standard deviation at init_std."""
    std_type: Literal["log", "scalar"] = "log"
    """What is learned, where no network gives it: the standard deviation's logarithm, or the number itself, which moves
    faster the smaller it is (rsl_rl's default)."""
    mean_activation: Activation | None = None
    """Activation on the mean of the Gaussian families, "tanh" for example."""
    head_gain: Annotated[float | None, In(0.0, 1e3)] = 0.01
    """Gain of the last layer's orthogonal weights: small, so that the first actions hardly depend on the state. None:
    torch's own initialisation."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is built."""
        super().__post_init__()
        if self.state_dependent_std and not self.learn_std:
            raise ValueError("state_dependent_std=True is learned: drop it, or drop learn_std=False")
        if self.state_dependent_std and self.std_type != "log":
            raise ValueError("a network gives the logarithm: drop std_type='scalar', or state_dependent_std=True")
        if max(_numbers(self.min_std), default=0.0) > self.init_std:
            raise ValueError(f"min_std must not exceed init_std = {self.init_std}, got {self.min_std}")
        if min(_numbers(self.max_std), default=math.inf) < self.init_std:
            raise ValueError(f"max_std must not be below init_std = {self.init_std}, got {self.max_std}")


class ActionFamily(nn.Module):
    """A family of distributions over one environment's raw actions; it has no weights.

    All that PPO and the parts ask about a policy's distribution: how to store it, how to restore it, which noise it
    takes. A policy without a layer of ours uses one as its `head`. `nvec`: the classes of categorical families.
    """

    action_shape: torch.Size  # of one environment's raw action: [D], [K], or [] for a single discrete choice
    num_params: int  # P of `Distribution.params`
    bounded: bool  # True if raw actions lie in [-1, 1] by construction
    like: Tensor  # empty: device and dtype of the noise
    offsets: Tensor  # [K] int64

    def __init__(self, kind: Kind, action_shape: Sequence[int], num_params: int, nvec: Sequence[int] = ()) -> None:
        super().__init__()
        self.kind, self.action_shape, self.num_params = kind, torch.Size(action_shape), num_params
        self.nvec = tuple(nvec)
        self.action_dtype = torch.float32 if kind in CONTINUOUS else torch.int64
        self.bounded = kind in ("tanh_gaussian", "beta")
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.register_buffer("offsets", block_offsets(self.nvec), persistent=False)

    def from_params(self, params: Tensor) -> Distribution:
        """The distribution whose `params` `[..., P]` were stored."""
        if self.kind in CONTINUOUS:
            first, second = params.chunk(2, dim=-1)
            return CONTINUOUS[self.kind](first, second)
        if self.kind == "multi_categorical":
            return MultiCategorical(params, self.nvec, self.offsets)
        return Categorical(params) if self.kind == "categorical" else Bernoulli(params)

    def noise(self, *leading: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise `[*leading, ...]` for `Distribution.sample`; one index into the leading shape is one sample's noise."""
        draw = {"beta": beta_noise, "bernoulli": logistic_noise}.get(self.kind, gumbel_noise)
        if self.kind in GAUSSIANS:
            draw = standard_normal
        size = self.action_shape if self.kind in CONTINUOUS else (self.num_params,)
        return draw((*leading, *size), like=self.like, generator=generator)


class ActionHead(ActionFamily):
    """The last linear layer of an actor: latent `[..., H]` to the family's distribution.

    The standard deviation of a Gaussian is exp(log_std), so positive, within floor and ceiling. A Beta has alpha, beta
    = 1 + softplus(linear): one peak, starting at the centre.
    """

    def __init__(self, in_features: int, family: ActionFamily, config: DistributionConfig) -> None:
        super().__init__(family.kind, family.action_shape, family.num_params, family.nvec)
        size, gaussian = family.num_params, family.kind in GAUSSIANS
        wide = not gaussian or config.state_dependent_std
        check_memory(16.0 * in_features * size, f"{size:,} outputs", "the size of the action space, or hidden_sizes")
        self.linear = nn.Linear(in_features, size if wide else size // 2)
        if config.head_gain is not None:
            nn.init.orthogonal_(self.linear.weight, config.head_gain)
            nn.init.zeros_(self.linear.bias)
        self.std = _Std(size // 2, config) if gaussian else None
        if gaussian and wide:
            nn.init.constant_(self.linear.bias[size // 2 :], math.log(config.init_std))
        self.mean_activation = make_activation(config.mean_activation or "identity")

    def forward(self, latent: Tensor) -> Distribution:
        """The distribution at latent `[..., H]`."""
        out = self.linear(latent)
        if self.std is not None:
            mean, log_std = self.std(out)
            return CONTINUOUS[self.kind](self.mean_activation(mean), log_std)
        return self.from_params(1.0 + nn.functional.softplus(out) if self.kind == "beta" else out)


def make_head(action_space: ActionSpace, in_features: int, config: DistributionConfig | None = None) -> ActionHead:
    """The head for an action space; raises ValueError where space, kind and options do not fit together."""
    config = config or DistributionConfig()
    return ActionHead(in_features, make_family(action_space, config), config)


def make_family(action_space: ActionSpace, config: DistributionConfig | None = None) -> ActionFamily:
    """The family for an action space; raises ValueError where space, kind and options do not fit together."""
    config = config or DistributionConfig()
    kinds = KINDS_OF_SPACE[kind_of(check_action_space(action_space))]
    kind = kinds[0] if config.kind == "auto" else config.kind
    if kind not in kinds:
        raise ValueError(f"distribution kind {kind!r} does not fit {action_space}: use 'auto' or one of {kinds}")
    size, classes = size_of(action_space), classes_of(action_space)
    changed = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    bounds = ("min_std", "max_std") if config.kind == "auto" else ()
    given = [name for name in STD_OPTIONS if name in changed and name not in bounds]
    if given and kind not in GAUSSIANS:
        raise ValueError(
            f"{', '.join(given)} would have no effect: {kind!r} (for {action_space}) is not Gaussian; leave it out"
        )
    if kind in CONTINUOUS:
        if size == 0 or not is_real(action_space):
            raise ValueError(f"no action distribution covers {action_space}: a Box of actions is floating, not empty")
        for name, value in (("min_std", config.min_std), ("max_std", config.max_std)):
            if (count := len(_numbers(value))) not in (0, 1, size):
                raise ValueError(f"{name} has {count} entries, but the action has {size}: give 1 or {size}")
        return ActionFamily(kind, [size], 2 * size)
    nvec = [1] * size if classes is None else classes.counts
    return ActionFamily(kind, [] if kind == "categorical" else [size], sum(nvec), nvec)


class _Std(nn.Module):
    """Mean and log_std from the linear layer: its halves `[..., 2D]`, or its output and one number `[D]` for all.

    That number is `log_std`, or `std` (std_type "scalar"). It is kept between floor and ceiling where they are given.
    """

    log_std: Tensor | None
    std: Tensor | None
    low: Tensor
    high: Tensor

    def __init__(self, size: int, config: DistributionConfig) -> None:
        super().__init__()
        scalar = config.std_type == "scalar"
        low, high = _numbers(config.min_std) or (1e-6 if scalar else 0.0,), _numbers(config.max_std) or (math.inf,)
        bounds = [torch.tensor(limit) if scalar else torch.tensor(limit).log() for limit in (low, high)]
        self.bounded = scalar or config.min_std is not None or config.max_std is not None
        numbers = torch.full((size,), config.init_std if scalar else math.log(config.init_std))
        for name, present in (("log_std", not scalar and not config.state_dependent_std), ("std", scalar)):
            if present and config.learn_std:
                self.register_parameter(name, nn.Parameter(numbers))
            else:
                self.register_buffer(name, numbers if present else None)
        self.register_buffer("low", bounds[0].expand(size).clone(), persistent=False)
        self.register_buffer("high", bounds[1].expand(size).clone(), persistent=False)

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        if self.std is not None:
            return out, bound_std(self.std, self.low, self.high).log()
        mean, log_std = out.chunk(2, dim=-1) if self.log_std is None else (out, self.log_std)
        return mean, bound_std(log_std, self.low, self.high) if self.bounded else log_std

    @torch.no_grad()
    def fill(self, std: float) -> bool:
        """Set the standard deviation of all actions; False where a network gives it."""
        if self.std is not None:
            self.std.fill_(std)
        elif self.log_std is not None:
            self.log_std.fill_(math.log(std))
        return self.std is not None or self.log_std is not None


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient is dropped only where it would push further outside.

    A plain clamp has no gradient at all outside, so that a standard deviation which once crossed its floor would
    stay there forever. This is the step-then-project behaviour of clipping the parameter after each update.
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


def bound_std(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` clamped to [low, high], with a gradient that lets it come back inside."""
    return _Bounded.apply(x, low, high) if torch.is_grad_enabled() else x.clamp(low, high)


def _numbers(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (float(value),)
