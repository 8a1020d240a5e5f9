"""Returns and lengths of finished episodes, computed once per rollout, on the device, without a loop over steps."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn


class EpisodeStatistics(nn.Module):
    """Carries the unfinished episodes from rollout to rollout and keeps the last 100 finished ones (host)."""

    def __init__(self, num_envs: int, device: torch.device, window: int = 100) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(2, num_envs, dtype=torch.float64, device=device))
        self.running: Tensor  # return and length so far
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)

    def finished(self, reward: Tensor, ended: Tensor, valid: Tensor) -> Tensor:
        """`[2, T, N]`: return and length of the episode that ended in that row, NaN where none did."""
        counts = valid.double()
        amounts = torch.stack((torch.where(valid, reward, 0.0).double(), counts))  # [2, T, N]
        total = amounts.cumsum(1) + self.running.unsqueeze(1)
        T = reward.shape[0]
        step = torch.arange(T, device=reward.device).unsqueeze(-1)
        last_end = torch.where(ended, step, -1).cummax(0).values  # [T, N], the latest end up to and including t
        before = torch.cat((torch.full_like(last_end[:1], -1), last_end[:-1]))
        start = torch.gather(total, 1, before.clamp_min(0).expand(2, -1, -1))
        start = torch.where(before >= 0, start, 0.0)
        current = total - start
        since_end = torch.gather(total, 1, last_end[-1:].clamp_min(0).expand(2, -1, -1))
        self.running.copy_((total[:, -1:] - torch.where(last_end[-1:] >= 0, since_end, 0.0)).squeeze(1))
        return torch.where(ended, current, torch.nan)

    def record(self, returns: list[float], lengths: list[float]) -> None:
        """Add finished episodes (host numbers)."""
        self.returns.extend(returns)
        self.lengths.extend(lengths)

    def forget_unfinished(self) -> None:
        """The environments were reset: their current episodes will never finish."""
        self.running.zero_()

    def summary(self) -> dict[str, float]:
        """Mean over the window; NaN before the first episode ended."""
        count = len(self.returns)
        mean_return = sum(self.returns) / count if count else float("nan")
        mean_length = sum(self.lengths) / count if count else float("nan")
        return {"episode/return": mean_return, "episode/length": mean_length}
