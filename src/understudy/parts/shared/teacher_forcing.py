"""Draw the environments in which a teacher acts in the student's place."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core.schedules import Number, Scalar

ForcingUnit = Literal["step", "episode"]


class TeacherForcing(nn.Module):
    """Forces each environment with a probability, drawn at each step or once for each episode.

    "step" is DAgger's mixture of teacher and student (Ross et al. 2011, arXiv:1011.0686, sec. 3) and AllenAct's
    teacher forcing. With "episode" each episode belongs to the teacher or to the student, so that neither meets states
    that only a mixture reaches.
    """

    forced: Tensor  # [N] bool

    def __init__(self, probability: Number, unit: ForcingUnit, num_envs: int, device: torch.device) -> None:
        super().__init__()
        self.unit = unit
        self.probability = Scalar(probability, device)
        self.register_buffer("forced", torch.zeros(num_envs, dtype=torch.bool, device=device))

    @torch.no_grad()
    def draw(self, is_first: Tensor, generator: torch.Generator) -> Tensor:
        """The forced environments of this step, `[N]` bool, from is_first `[N]`; valid until the next draw."""
        drawn = torch.rand(self.forced.shape, generator=generator, device=self.forced.device) < self.probability()
        if self.unit == "episode":
            drawn = torch.where(is_first, drawn, self.forced)
        self.forced.copy_(drawn)
        return self.forced


def act_where_forced(action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
    """The label's `action` in the rows of its `forced` `[N]`, the student's `[N, *A]` elsewhere; and `forced`."""
    forced = label["forced"]
    return torch.where(forced.view(-1, *[1] * (action.ndim - 1)), label["action"], action), forced
