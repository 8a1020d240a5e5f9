"""The reward that an AIRL training recovered, read back from its run: a function of observations and actions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from understudy.core.borders import parsing
from understudy.parts.airl import AirlConfig, RewardFunction, build_reward
from understudy.runs.config import from_yaml
from understudy.runs.folder import load, open_checkpoint
from understudy.types import CheckpointError


def load_reward(
    run: str | Path, part: str = "airl", device: torch.device | str = "cpu", *, allow: Collection[str] = ()
) -> RewardFunction:
    """The reward function of a run (its newest checkpoint) or of one checkpoint file; `part` is its name in the run.

    Neither the environment nor the demonstrations are needed. `allow` as in `us.resume`. Raises ValueError if the run
    has no such AIRL part, CheckpointError if there is no readable checkpoint.
    """
    checkpoint = open_checkpoint(Path(run))
    train_config = from_yaml(checkpoint.config, allow=allow)
    config = train_config.parts.get(part)
    if not isinstance(config, AirlConfig):
        there = sorted(name for name, each in train_config.parts.items() if isinstance(each, AirlConfig))
        raise ValueError(f"{run} has no AIRL part named {part!r}; AIRL parts in it: {there or 'none'}")
    with torch.random.fork_rng([]):  # the initial weights are drawn, and then replaced
        reward = build_reward(load(checkpoint.path, allow=allow), config, train_config.ppo.last_gamma)
    with parsing(checkpoint.path, "it was written with other options", CheckpointError):
        reward.load_part_state(checkpoint.state["parts"][part]["modules"])
    return reward.to(device).eval()
