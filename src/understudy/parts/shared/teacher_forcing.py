"""Who is forced: the draw of the environments in which a teacher acts in the student's place."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from understudy.core.check import check_choice, check_range
from understudy.core.schedules import Number, Scalar

ForcingUnit = Literal["step", "episode"]


class TeacherForcing(nn.Module):
    """Forces each environment with a probability, drawn anew at each step or once for each episode.

    "step" is DAgger's mixture of teacher and student (Ross et al. 2011, arXiv:1011.0686, sec. 3) and AllenAct's
    teacher forcing. With "episode" some episodes are the teacher's and the others are the student's, so that neither
    meets states that only a mixture would lead to. Raises ValueError for a probability outside [0, 1].
    """

    forced: Tensor  # [N] bool

    def __init__(
        self, probability: Number, unit: ForcingUnit, num_envs: int, device: torch.device, name: str = "teacher_forcing"
    ) -> None:
        super().__init__()
        check_choice(f"{name}_unit", unit, get_args(ForcingUnit))
        check_range(name, probability, 0.0, 1.0)
        self.unit = unit
        self.probability = Scalar(probability, device)
        self.register_buffer("forced", torch.zeros(num_envs, dtype=torch.bool, device=device))

    @torch.no_grad()
    def draw(self, is_first: Tensor, generator: torch.Generator) -> Tensor:
        """Which environments are forced at this step, `[N]` bool, from is_first `[N]`; valid until the next draw."""
        drawn = torch.rand(self.forced.shape, generator=generator, device=self.forced.device) < self.probability()
        if self.unit == "episode":
            drawn = torch.where(is_first, drawn, self.forced)
        self.forced.copy_(drawn)
        return self.forced
