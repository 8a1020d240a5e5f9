"""Action distributions: immutable objects over tensors, written out so that each costs a handful of cheap kernels.

All results have the leading shape `[...]` of the parameters and no trailing dimension of one. `sample` is a fixed
function of noise that can be drawn beforehand for a whole rollout; `kl` is exact for every family.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from understudy.nn.noise import beta_noise, gamma, gumbel_noise, inside, logistic_noise, standard_normal

HALF_LOG_TWO_PI, LOG_TWO = 0.5 * math.log(2.0 * math.pi), math.log(2.0)
SOFTPLUS_THRESHOLD = 30.0  # beyond it softplus(x) = x to 1e-13; torch's own threshold of 20 would cost float64 digits

AnyDistribution = TypeVar("AnyDistribution", bound="Distribution")


class Distribution(ABC):
    """A distribution over actions with leading shape `[...]`; do not change its tensors after construction."""

    batch_shape: torch.Size  # [...]
    closed_form_entropy: ClassVar[bool] = True
    """False where `entropy` is an estimate from random numbers."""

    @property
    @abstractmethod
    def params(self) -> Tensor:
        """Parameters as one flat tensor `[..., P]`; the head's `from_params` restores the distribution."""

    @abstractmethod
    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw one action without gradient, from `noise` (as the head's `noise` draws it) or from `generator`."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The deterministic action."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density or log-probability `[...]` of `action`; raises ValueError unless its shape fits exactly."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy `[...]` in nats."""

    @abstractmethod
    def kl(self: AnyDistribution, other: AnyDistribution) -> Tensor:
        """KL(self || other) `[...]` in nats; raises ValueError unless both are of one family and shape."""

    def entropy_mc(self, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Estimate of the entropy `[...]` from reparametrised samples, so that the gradient flows.

        Families that cannot be reparametrised return the exact entropy: an estimate without variance.
        """
        _check_samples(samples)
        return self.entropy()


class Point(Distribution):
    """One action `[..., D]` (`[...]` for a single choice) of which no density is known.

    All that needs one raises ValueError.
    """

    def __init__(self, action: Tensor) -> None:
        self.action = action
        self.batch_shape = action.shape[:1]

    @property
    def params(self) -> Tensor:
        """None are known."""
        raise _without_density("parameters")

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Impossible."""
        raise _without_density("samples")

    def mode(self) -> Tensor:
        """The action."""
        return self.action

    def log_prob(self, action: Tensor) -> Tensor:
        """Unknown."""
        raise _without_density("log-probabilities")

    def entropy(self) -> Tensor:
        """Unknown."""
        raise _without_density("entropy")

    def kl(self, other: Point) -> Tensor:
        """Unknown."""
        raise _without_density("KL divergence")


def _without_density(what: str) -> ValueError:
    return ValueError(f"this policy gives actions and no {what}: use its deterministic action (deterministic=True)")


class DiagGaussian(Distribution):
    """Independent normals: mean `[..., D]`, log_std `[..., D]`, or `[D]` if it does not depend on the state.

    log p(a) = -1/2 sum_d ((a_d - mean_d) / std_d)^2 - sum_d log std_d - D/2 log(2 pi).
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        if log_std.shape != mean.shape and log_std.shape != mean.shape[-1:]:
            raise ValueError(
                f"log_std has shape {tuple(log_std.shape)}, mean {tuple(mean.shape)}: "
                f"log_std must have the shape of mean or {tuple(mean.shape[-1:])}"
            )
        self.batch_shape = mean.shape[:-1]
        self.mean = mean
        self.log_std = log_std
        self._log_std_sum: Tensor | None = None

    @property
    def params(self) -> Tensor:
        """`[..., 2D]`: mean, then log_std."""
        return torch.cat((self.mean, self.log_std.expand_as(self.mean)), dim=-1)

    def rsample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise `[..., D]`, differentiable in both; `noise` is standard normal."""
        if noise is None:
            noise = standard_normal(self.mean.shape, like=self.mean, generator=generator)
        return torch.addcmul(self.mean, noise, self.log_std.exp())

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise `[..., D]`; `noise` is standard normal `[..., D]`."""
        with torch.no_grad():
            return self.rsample(noise, generator)

    def mode(self) -> Tensor:
        """The mean `[..., D]`."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density `[...]` of action `[..., D]`; raises ValueError if the shapes differ."""
        _check_action(action, self.mean.shape, self)
        z = (action - self.mean) * (-self.log_std).exp()
        norm = -self.mean.shape[-1] * HALF_LOG_TWO_PI - self._sum_log_std()  # 0-D if std is state independent
        return torch.sub(norm, (z * z).sum(-1), alpha=0.5)

    def entropy(self) -> Tensor:
        """`sum_d log std_d + D/2 (1 + log(2 pi))`, `[...]`."""
        return (self._sum_log_std() + self.mean.shape[-1] * (0.5 + HALF_LOG_TWO_PI)).expand(self.batch_shape)

    def entropy_mc(self, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """`-1/K sum_k log p(x_k)` over K reparametrised samples, `[...]`."""
        _check_samples(samples)
        return -torch.stack([self.log_prob(self.rsample(generator=generator)) for _ in range(samples)]).mean(0)

    def kl(self, other: DiagGaussian) -> Tensor:
        """`sum_d 1/2 (r^2 - 1 - log r^2 + ((mean - mean') / std')^2)` with r = std / std', `[...]`."""
        _check_same(self, other, self.mean.shape, other.mean.shape)
        z = (self.mean - other.mean) * (-other.log_std).exp()
        two_log_r = 2.0 * (self.log_std - other.log_std)
        # expm1: a KL of 1e-4 would drown in the rounding of exp(x) - 1 in float32
        return 0.5 * ((torch.expm1(two_log_r) - two_log_r).sum(-1) + (z * z).sum(-1))

    def _sum_log_std(self) -> Tensor:
        if self._log_std_sum is None:  # log_prob and entropy share it
            self._log_std_sum = self.log_std.sum(-1)
        return self._log_std_sum


class TanhGaussian(Distribution):
    """Action tanh(u) in (-1, 1) with u normal (Haarnoja et al. 2018, arXiv:1801.01290, appendix C).

    log p(a) = log N(u; mean, std) - sum_d log(1 - a_d^2),  u = atanh(a).
    Actions are kept one float epsilon inside the interval, where atanh and the density are finite.
    """

    closed_form_entropy: ClassVar[bool] = False

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.base = DiagGaussian(mean, log_std)
        self.batch_shape = self.base.batch_shape
        self.mean = mean  # before the tanh
        self.log_std = log_std

    @property
    def params(self) -> Tensor:
        """`[..., 2D]`: mean, then log_std, both before the tanh."""
        return self.base.params

    def rsample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """tanh(mean + std * noise) `[..., D]`, differentiable; `noise` is standard normal."""
        return inside(self.base.rsample(noise, generator).tanh(), -1.0, 1.0)

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """tanh(mean + std * noise) `[..., D]`; `noise` is standard normal `[..., D]`."""
        with torch.no_grad():
            return self.rsample(noise, generator)

    def mode(self) -> Tensor:
        """tanh(mean) `[..., D]`: the median, the usual choice; the peak of the squashed density lies elsewhere."""
        return inside(self.base.mean.tanh(), -1.0, 1.0)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density `[...]` of action `[..., D]` in [-1, 1]; raises ValueError if the shapes differ."""
        _check_action(action, self.base.mean.shape, self)
        action = inside(action, -1.0, 1.0)
        plus, minus = torch.log1p(action), torch.log1p(-action)
        # atanh(a) and log(1 - a^2) from the same two logarithms, each exact up to the ends of the interval
        return self.base.log_prob(0.5 * (plus - minus)) - (plus + minus).sum(-1)

    def entropy(self) -> Tensor:
        """One-sample estimate `[...]`: there is no closed form."""
        return self.entropy_mc(1)

    def entropy_mc(self, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """H(u) + 1/K sum_k sum_d log(1 - tanh(u_kd)^2) `[...]`: only the tanh's part is estimated.

        Computed before the tanh, so that saturated samples stay exact:
        log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)).
        """
        _check_samples(samples)
        u = torch.stack([self.base.rsample(generator=generator) for _ in range(samples)])  # [K, ..., D]
        log_det = 2.0 * (LOG_TWO - u - F.softplus(-2.0 * u, threshold=SOFTPLUS_THRESHOLD))
        return self.base.entropy() + log_det.sum(-1).mean(0)

    def kl(self, other: TanhGaussian) -> Tensor:
        """KL(self || other) `[...]`: that of the normals, exactly, because tanh is one-to-one."""
        _check_same(self, other, self.base.mean.shape, other.base.mean.shape)
        return self.base.kl(other.base)


class Beta(Distribution):
    """Independent Beta(alpha, beta) on [low, high], `[..., D]` (Chou et al. 2017); alpha, beta > 1: one peak, inside.

    log p(a) = sum_d (alpha-1) log x + (beta-1) log(1-x) - log B(alpha, beta) - log(high - low), x = (a-low)/(high-low).
    """

    def __init__(self, alpha: Tensor, beta: Tensor, low: float = -1.0, high: float = 1.0) -> None:
        if alpha.shape != beta.shape:
            raise ValueError(f"alpha {tuple(alpha.shape)} and beta {tuple(beta.shape)} must have one shape")
        if not low < high:
            raise ValueError(f"Beta needs low < high, got [{low}, {high}]")
        self.batch_shape = alpha.shape[:-1]
        self.alpha = alpha
        self.beta = beta
        self.low, self.high = low, high
        self.log_range = alpha.shape[-1] * math.log(high - low)

    @property
    def params(self) -> Tensor:
        """`[..., 2D]`: alpha, then beta."""
        return torch.cat((self.alpha, self.beta), dim=-1)

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """X / (X + Y), rescaled, with X ~ Gamma(alpha), Y ~ Gamma(beta), `[..., D]`; `noise` from `beta_noise`."""
        with torch.no_grad():
            if noise is None:
                noise = beta_noise(self.alpha.shape, like=self.alpha, generator=generator)
            normal, uniform = noise.chunk(2, dim=-1)  # [..., D, 2K] each
            normal_x, normal_y = normal.chunk(2, dim=-1)
            uniform_x, uniform_y = uniform.chunk(2, dim=-1)
            x = gamma(self.alpha, normal_x, uniform_x)
            y = gamma(self.beta, normal_y, uniform_y)
            return self._rescale(x / (x + y))

    def mode(self) -> Tensor:
        """(alpha - 1) / (alpha + beta - 2), rescaled, `[..., D]`; the centre where alpha = beta = 1 (flat)."""
        eps = torch.finfo(self.alpha.dtype).eps
        return self._rescale((self.alpha - (1.0 - eps)) / (self.alpha + self.beta - (2.0 - 2.0 * eps)))

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density `[...]` of action `[..., D]` in [low, high]; raises ValueError if the shapes differ."""
        _check_action(action, self.alpha.shape, self)
        x = inside((action - self.low) / (self.high - self.low), 0.0, 1.0)
        log_x = (self.alpha - 1.0) * x.log() + (self.beta - 1.0) * torch.log1p(-x)
        return (log_x - _log_beta(self.alpha, self.beta)).sum(-1) - self.log_range

    def entropy(self) -> Tensor:
        """sum_d log B(a, b) - (a-1) psi(a) - (b-1) psi(b) + (a+b-2) psi(a+b) + log(high - low), `[...]`."""
        a, b = self.alpha, self.beta
        psi = (a + b - 2.0) * (a + b).digamma() - (a - 1.0) * a.digamma() - (b - 1.0) * b.digamma()
        return (_log_beta(a, b) + psi).sum(-1) + self.log_range

    def kl(self, other: Beta) -> Tensor:
        """KL(self || other) `[...]`, exact; raises ValueError if the ranges differ."""
        _check_same(self, other, self.alpha.shape, other.alpha.shape)
        if (self.low, self.high) != (other.low, other.high):
            raise ValueError(
                f"KL between Betas on [{self.low}, {self.high}] and [{other.low}, {other.high}] is undefined: "
                "give both one range"
            )
        a, b, delta_a, delta_b = self.alpha, self.beta, self.alpha - other.alpha, self.beta - other.beta
        psi = delta_a * a.digamma() + delta_b * b.digamma() - (delta_a + delta_b) * (a + b).digamma()
        return (_log_beta(other.alpha, other.beta) - _log_beta(a, b) + psi).sum(-1)

    def _rescale(self, x: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * inside(x, 0.0, 1.0)


class _Logits(Distribution):
    """Discrete actions, of which the logits are all that there is to know."""

    def __init__(self, logits: Tensor) -> None:
        self.batch_shape = logits.shape[:-1]
        self.logits = logits

    @property
    def params(self) -> Tensor:
        """The logits."""
        return self.logits


class _Classes(_Logits):
    """Blocks of classes from unnormalised logits; what one block and several have in common."""

    _log_p: Tensor | None = None

    @property
    def log_p(self) -> Tensor:
        """Log-probabilities, of the shape of the logits, normalised block by block."""
        if self._log_p is None:  # log_prob and entropy share it
            self._log_p = self._normalized()
        return self._log_p

    @abstractmethod
    def _normalized(self) -> Tensor: ...

    @abstractmethod
    def _argmax(self, scores: Tensor) -> Tensor: ...

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """argmax(logits + noise) in each block; `noise` is Gumbel, of the shape of the logits."""
        if noise is None:
            noise = gumbel_noise(self.logits.shape, like=self.logits, generator=generator)
        return self._argmax(self.logits + noise)

    def mode(self) -> Tensor:
        """The likeliest class of each block."""
        return self._argmax(self.logits)

    def entropy(self) -> Tensor:
        """-sum_a p log p over all blocks, `[...]`."""
        return -(self.log_p.exp() * self.log_p).sum(-1)

    def kl(self, other: _Classes) -> Tensor:
        """KL(self || other) = sum_a p (log p - log p') over all blocks, `[...]`."""
        _check_same(self, other, self.logits.shape, other.logits.shape)
        return (self.log_p.exp() * (self.log_p - other.log_p)).sum(-1)


class Categorical(_Classes):
    """One of A classes from unnormalised logits `[..., A]`; actions are int64 `[...]`.

    Mask a class with a large negative *finite* logit (`torch.finfo(dtype).min`): the entropy of minus infinity is NaN.
    """

    def _normalized(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def _argmax(self, scores: Tensor) -> Tensor:
        return scores.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability `[...]` of action int64 `[...]`; raises ValueError if the shapes differ."""
        _check_action(action, self.batch_shape, self)
        return self.log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)


class MultiCategorical(_Classes):
    """K independent categoricals, nvec[k] classes each, from logits `[..., sum(nvec)]`; actions int64 `[..., K]`.

    `offsets` (int64 `[K]`, where each block of logits starts) may be passed to save making it here.
    """

    def __init__(self, logits: Tensor, nvec: Sequence[int], offsets: Tensor | None = None) -> None:
        super().__init__(logits)
        self.nvec = tuple(int(n) for n in nvec)
        if logits.shape[-1] != sum(self.nvec):
            raise ValueError(f"logits {tuple(logits.shape)} must end in sum(nvec) = {sum(self.nvec)}")
        self._offsets = block_offsets(self.nvec, logits.device) if offsets is None else offsets

    def _normalized(self) -> Tensor:
        return torch.cat([block.log_softmax(-1) for block in self.logits.split(self.nvec, -1)], -1)

    def _argmax(self, scores: Tensor) -> Tensor:
        return torch.stack([block.argmax(-1) for block in scores.split(self.nvec, -1)], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability `[...]` of action int64 `[..., K]`, summed; raises ValueError if the shapes differ."""
        _check_action(action, (*self.batch_shape, len(self.nvec)), self)
        return self.log_p.gather(-1, action + self._offsets).sum(-1)

    def kl(self, other: _Classes) -> Tensor:
        """KL(self || other), summed over the blocks, `[...]`; raises ValueError if these differ."""
        if isinstance(other, MultiCategorical) and self.nvec != other.nvec:
            raise ValueError(f"KL between different blocks: nvec {self.nvec} and {other.nvec} must be equal")
        return super().kl(other)


class Bernoulli(_Logits):
    """K independent bits from logits `[..., K]`; actions are int64 0/1 `[..., K]`."""

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """logits + noise > 0, int64 `[..., K]`; `noise` is logistic `[..., K]`."""
        if noise is None:
            noise = logistic_noise(self.logits.shape, like=self.logits, generator=generator)
        return (self.logits + noise > 0).long()

    def mode(self) -> Tensor:
        """logits > 0, int64 `[..., K]`."""
        return (self.logits > 0).long()

    def log_prob(self, action: Tensor) -> Tensor:
        """sum_k a logit - softplus(logit), `[...]`, of action 0/1 `[..., K]`; ValueError if the shapes differ."""
        _check_action(action, self.logits.shape, self)
        return (action.to(self.logits.dtype) * self.logits - _softplus(self.logits)).sum(-1)

    def entropy(self) -> Tensor:
        """sum_k softplus(logit) - p logit, `[...]`."""
        return (_softplus(self.logits) - self.logits.sigmoid() * self.logits).sum(-1)

    def kl(self, other: Bernoulli) -> Tensor:
        """KL(self || other) = sum_k p (logit - logit') - softplus(logit) + softplus(logit'), `[...]`."""
        _check_same(self, other, self.logits.shape, other.logits.shape)
        gap = self.logits.sigmoid() * (self.logits - other.logits)
        return (gap - _softplus(self.logits) + _softplus(other.logits)).sum(-1)


def block_offsets(nvec: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Where each block of concatenated logits starts, int64 `[K]`."""
    return torch.tensor([sum(nvec[:k]) for k in range(len(nvec))], dtype=torch.int64, device=device)


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=SOFTPLUS_THRESHOLD)


def _check_action(action: Tensor, shape: Sequence[int], distribution: Distribution) -> None:
    if tuple(action.shape) != tuple(shape):
        raise ValueError(
            f"action has shape {tuple(action.shape)}, but this {type(distribution).__name__} takes {tuple(shape)}; "
            "a missing or extra dimension would broadcast into a wrong log-prob: reshape the action first"
        )


def _check_same(one: Distribution, other: Distribution, shape: torch.Size, other_shape: torch.Size) -> None:
    if type(one) is not type(other) or shape != other_shape:
        raise ValueError(
            f"KL needs two distributions of one family and shape, got {type(one).__name__} {tuple(shape)} "
            f"and {type(other).__name__} {tuple(other_shape)}"
        )


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"entropy_mc needs at least one sample, got {samples}")
