"""Networks as a user writes them, for tests: small, and wrong in one way each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import understudy as us

DOUBLING = """
from torch import nn

class Doubling(nn.Module):
    def __init__(self, in_features, *, times: int = 2):
        super().__init__()
        self.out_features = times * in_features
        self.layer = nn.Linear(in_features, self.out_features)

    def forward(self, x):
        return self.layer(x).tanh()
"""


def save_module(folder: Path, name: str) -> str:
    """A module with a trunk `Doubling`; its folder, for the search path."""
    (folder / f"{name}.py").write_text(DOUBLING)
    return str(folder)


class Constant(us.Policy):
    """The smallest policy: one row of parameters, a value for each of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logits = nn.Parameter(0.1 * torch.arange(float(self.head.num_params)))

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> us.PolicyOutput:
        x = next(iter(self.observe(obs).values()))
        params = self.logits.expand(*x.shape[:-1], -1)
        return us.PolicyOutput(self.head.from_params(params), x.mean(-1) + params.mean(-1))


class Counter(us.Policy):
    """Recurrent: the logits see how many steps the episode has."""

    state_size = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = self.make_head(2)
        self.value_head = nn.Linear(2, 1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + 1.0
        return torch.cat((x.mean(-1, keepdim=True), 0.1 * state), dim=-1), state

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> us.PolicyOutput:
        x = torch.cat(list(self.observe(obs, self.input_keys).values()), dim=-1)
        latent, state = self.unroll(self.step, x, state, is_first)
        return us.PolicyOutput(self.head(latent), self.value_head(latent).squeeze(-1), state, {"actor": latent})


class Forgetless(Counter):
    """Does not restart."""

    def unroll(self, step: Any, x: Tensor, state: Tensor | None, is_first: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().unroll(step, x, state, None if is_first is None else torch.zeros_like(is_first))


class Unordered(Counter):
    """Takes a sequence for one step."""

    def unroll(self, step: Any, x: Tensor, state: Tensor | None, is_first: Tensor | None) -> tuple[Tensor, Tensor]:
        if x.ndim == 2:
            return super().unroll(step, x, state, is_first)
        assert state is not None
        latent = step(x, state.expand(*x.shape[:-1], -1))[0]
        return latent, state
