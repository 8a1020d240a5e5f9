"""Noise that turns into actions: drawn once for a whole rollout, so that acting is a fixed function of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GAMMA_PROPOSALS = 4  # a gamma variate with shape > 1 needs more than four proposals less than once in 100,000 draws


def standard_normal(shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normal(0, 1) noise of `shape`, device and dtype as `like`."""
    return torch.randn(tuple(shape), dtype=like.dtype, device=like.device, generator=generator)


def gumbel_noise(shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise of `shape`, device and dtype as `like`: argmax(logits + noise) draws from softmax(logits)."""
    exponential = torch.empty(tuple(shape), dtype=like.dtype, device=like.device).exponential_(generator=generator)
    return -exponential.clamp(min=torch.finfo(like.dtype).tiny).log()


def logistic_noise(shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Logistic(0, 1) noise of `shape`, device and dtype as `like`: logit + noise > 0 draws a bit."""
    uniform = torch.rand(tuple(shape), dtype=like.dtype, device=like.device, generator=generator)
    uniform = inside(uniform, 0.0, 1.0)
    return uniform.log() - torch.log1p(-uniform)


def beta_noise(shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noise for Beta actions of `shape` `[..., D]`: `[..., D, 4K]`, 2K standard normals, then 2K uniforms."""
    size = (*shape, 2 * GAMMA_PROPOSALS)
    uniform = torch.rand(size, dtype=like.dtype, device=like.device, generator=generator)
    return torch.cat((standard_normal(size, like=like, generator=generator), uniform), dim=-1)


def gamma(concentration: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    """Gamma(concentration, 1) variates `[..., D]` by Marsaglia & Tsang (2000), concentration >= 1, noise `[..., D, K]`.

    Takes the first of K proposals that is accepted (each is with probability > 0.95); in the rest, below one in
    100,000, the middle value, so that shapes stay static. The log-prob is that of the resulting action either way.
    """
    d = (concentration - 1.0 / 3.0).unsqueeze(-1)
    v = (1.0 + normal / (9.0 * d).sqrt()) ** 3
    # log(negative) is NaN and NaN compares false: a proposal below zero is never accepted
    accepted = uniform.log() < 0.5 * normal * normal + d * (1.0 - v + v.log())
    first = accepted & (accepted.cumsum(-1) == 1)
    value = (v * first).sum(-1) + (~accepted.any(-1)).to(v.dtype)
    return d.squeeze(-1) * value


def inside(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp to the interval, one float epsilon away from its ends."""
    eps = torch.finfo(x.dtype).eps
    return x.clamp(low + eps, high - eps)
