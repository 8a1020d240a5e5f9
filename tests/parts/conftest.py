"""Short recordings of scripted experts, for the tests of parts that learn from demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor


def steer(obs: TensorDict) -> Tensor:
    """PointMass: accelerate towards the goal and brake."""
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


def record(env: Any, act: Callable[[TensorDict], Tensor], episodes: int, path: Path) -> Path:
    """Whole episodes of `act`, as a file of demonstrations."""
    rows: list[Any] = []
    running: list[list[Any]] = [[] for _ in range(env.num_envs)]
    obs, done = env.reset(0), 0
    while done < episodes:
        seen, action = obs.clone(), act(obs)
        step = env.step(action)
        ended = step.terminated | step.truncated
        following = torch.where(ended, step.final_obs, step.obs)
        row = TensorDict(
            {
                "obs": seen,
                "action": action,
                "next_obs": following,
                "terminated": step.terminated,
                "truncated": step.truncated,
            },
            batch_size=[env.num_envs],
        )
        for n in range(env.num_envs):
            running[n].append(row[n].clone())
            if ended[n]:
                rows, running[n], done = rows + running[n], [], done + 1
        obs = step.obs
    torch.save(torch.stack(rows), path)
    return path


@pytest.fixture
def scripted_expert() -> Callable[[TensorDict], Tensor]:
    return steer


@pytest.fixture
def record_expert() -> Callable[..., Path]:
    return record
