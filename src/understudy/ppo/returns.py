"""From rewards to advantages: GAE, reward scaling, normalised value targets, and what masking means there."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.nn.normalization import RunningMeanStd

ValueNormalization = Literal["none", "scale", "standardize"]


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float | Tensor = 0.99,
    gae_lambda: float | Tensor = 0.95,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of a rollout, `[T, N]` each, from `[T, N]` inputs.

    `next_value` is V of the *true* next observation: at a time limit, that of the final observation.

        delta_t = r_t + gamma * (1 - terminated_t) * V(s'_t) - V(s_t)
        A_t     = delta_t + gamma * lambda * (1 - terminated_t)(1 - truncated_t) * A_{t+1},   A_T = 0
        target  = A + V

    `terminated` kills the bootstrap; both flags cut the recursion (arXiv:1506.02438, eq. 16; time limits as in
    arXiv:1712.00378). Raises ValueError if the shapes differ or are not `[T, N]`.
    """
    shape = reward.shape
    others = {"value": value, "next_value": next_value, "terminated": terminated, "truncated": truncated}
    wrong = {name: tuple(x.shape) for name, x in others.items() if x.shape != shape}
    if wrong or reward.ndim != 2:
        raise ValueError(
            f"gae takes [T, N] tensors of one shape, got reward {tuple(shape)} and {wrong or 'equal others'}; "
            "a trailing [.., 1] or a flat [T] would broadcast into a wrong result: squeeze or unsqueeze it first"
        )
    alive = ~terminated.bool()
    delta = reward + gamma * next_value * alive - value  # [T, N]
    carry = (alive & ~truncated.bool()).to(delta.dtype) * (gamma * gae_lambda)  # [T, N]
    advantage = torch.empty_like(delta)
    last = delta.new_zeros(shape[1:])
    # unbind once: indexing [t] three times per step costs more than the arithmetic
    for out, d, c in zip(reversed(advantage.unbind(0)), reversed(delta.unbind(0)), reversed(carry.unbind(0))):
        last = torch.addcmul(d, c, last)
        out.copy_(last)
    return advantage, advantage + value


def discounted_sums(x: Tensor, carry: Tensor, start: Tensor) -> Tensor:
    """`S_t = x_t + carry_{t-1} S_{t-1}` of x and carry `[T, N]`, with `start` `[N]` for the second term of S_0."""
    sums, running = torch.empty_like(x), start
    for out, here, share in zip(sums.unbind(0), x.unbind(0), carry.unbind(0)):
        out.copy_(running + here)
        running = out * share
    return sums


class RewardScaler(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return; the mean stays.

    R_t = gamma * R_{t-1} * (1 - ended_{t-1}) + r_t;   r' = clip(r / sqrt(var(R) + eps), +-clip)
    (Engstrom et al. 2020, arXiv:2005.12729, sec. 3). The statistics absorb a rollout before it is scaled, as
    otherwise the first one would pass unscaled.
    """

    def __init__(self, num_envs: int, gamma: float | Tensor, clip: float, device: torch.device) -> None:
        super().__init__()
        self.gamma, self.clip = gamma, clip
        self.statistics = RunningMeanStd().to(device)
        self.register_buffer("running", torch.zeros(num_envs, device=device))
        self.running: Tensor

    def forward(self, reward: Tensor, ended: Tensor, valid: Tensor) -> Tensor:
        """Scaled rewards `[T, N]` from rewards `[T, N]`."""
        carry = (~ended) * self.gamma  # [T, N]
        returns = discounted_sums(reward, carry, self.running)
        self.running.copy_(returns[-1] * carry[-1])
        self.statistics.update(returns, valid)
        return (reward / (self.statistics.var + 1e-8).sqrt().to(reward.dtype)).clamp(-self.clip, self.clip)


class ValueNormalizer(nn.Module):
    """The units of the critic: none, scale (v / std of returns), or standardize ((v - mean) / std).

    "scale" is what Tianshou calls reward_normalization: the mean is not subtracted, the statistics absorb the
    unnormalised returns after use.
    """

    def __init__(self, kind: ValueNormalization, device: torch.device) -> None:
        super().__init__()
        self.kind = kind
        self.statistics = RunningMeanStd().to(device)

    def _shift_scale(self) -> tuple[Tensor, Tensor]:
        # variance 1 and mean 0 until the first update
        std = (self.statistics.var + 1e-8).sqrt().float()
        mean = self.statistics.mean.float()
        return (mean if self.kind == "standardize" else torch.zeros_like(mean)), std

    def to_reward_units(self, value: Tensor) -> Tensor:
        """What the critic says, in reward units."""
        if self.kind == "none":
            return value
        shift, scale = self._shift_scale()
        return value * scale + shift

    def to_critic_units(self, value: Tensor) -> Tensor:
        """A return, in the critic's units."""
        if self.kind == "none":
            return value
        shift, scale = self._shift_scale()
        return (value - shift) / scale

    def update(self, returns: Tensor, valid: Tensor) -> None:
        """Absorb returns `[T, N]`, in reward units."""
        if self.kind != "none":  # a part may have returned a reward that is not finite: the step is skipped then
            self.statistics.update(returns, valid & torch.isfinite(returns))


def fill_advantages(
    rollout: TensorDict, normalizer: ValueNormalizer, gamma: float | Tensor, gae_lambda: float, masked: bool
) -> Tensor:
    """Write `advantage` and `value_target` (critic's units) of a rollout `[T, N]`; returns the returns, reward units.

    With `masked`, an invalid row counts as the end of its episode with advantage 0 and target V.
    """
    reward, terminated = rollout["reward"], rollout["terminated"]
    value = normalizer.to_reward_units(rollout["value"])
    next_value = normalizer.to_reward_units(rollout["next_value"])
    if masked:
        reward = torch.where(rollout["valid"], reward, value)
        terminated = terminated | ~rollout["valid"]
    advantage, returns = gae(reward, value, next_value, terminated, rollout["truncated"], gamma, gae_lambda)
    rollout["advantage"].copy_(advantage)
    rollout["value_target"].copy_(normalizer.to_critic_units(returns))
    return returns
