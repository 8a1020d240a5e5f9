"""W6's environments: stacked frames of bytes `[N, 4, 84, 84]`, as Atari's are after the usual wrappers.

"frames": N copies of a picture book. A page shows one of 6 bright bars among noise; naming it (the action) gives
reward 1. Pages follow at random, episodes end by time-out only, each after a length drawn from [50, 500]. A step costs
one copy of the frames, the same for every peer. "Pong-v5": EnvPool's, where the peer's interpreter has it; the step
after an episode's end is spent on resetting.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol

import numpy as np

SHAPE = (4, 84, 84)
ACTIONS = 6
IDS = ("frames", "Pong-v5")
_PAGES = 120
_BAR = SHAPE[1] // ACTIONS


class FrameStep(NamedTuple):
    """One step of N copies. `obs` already starts the next episode where `truncated`; `final_obs` never does."""

    obs: np.ndarray  # [N, 4, 84, 84] uint8
    reward: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    final_obs: np.ndarray  # [N, 4, 84, 84] uint8


class Frames(Protocol):
    """What the peers wrap."""

    num_envs: int

    def reset(self) -> np.ndarray:
        """The first frames, `[N, 4, 84, 84]`."""
        ...

    def step(self, action: np.ndarray) -> FrameStep:
        """Take actions `[N]`."""
        ...


class Book:
    """The picture book; deterministic in its seed."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs, self.rng = num_envs, np.random.default_rng(seed)
        self.pages = np.random.default_rng(0).integers(0, 128, (_PAGES, *SHAPE), dtype=np.uint8)
        for page in range(_PAGES):
            first = page % ACTIONS * _BAR
            self.pages[page, :, first : first + _BAR] = 255
        self.reset()

    def reset(self) -> np.ndarray:
        self.shown = self.rng.integers(0, _PAGES, self.num_envs)
        self.left = self.rng.integers(50, 501, self.num_envs)
        return self.pages[self.shown]

    def step(self, action: np.ndarray) -> FrameStep:
        reward = (action == self.shown % ACTIONS).astype(np.float32)
        self.shown, self.left = self.rng.integers(0, _PAGES, self.num_envs), self.left - 1
        obs = final_obs = self.pages[self.shown]
        truncated = self.left == 0
        if truncated.any():
            rows = np.flatnonzero(truncated)
            self.shown[rows] = self.rng.integers(0, _PAGES, len(rows))
            self.left[rows] = self.rng.integers(50, 501, len(rows))
            obs = self.pages[self.shown]
        return FrameStep(obs, reward, np.zeros(self.num_envs, dtype=bool), truncated, final_obs)


class Pong:
    """EnvPool's Pong."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs
        envpool: Any = importlib.import_module("envpool")
        self.pool = envpool.make("Pong-v5", env_type="gymnasium", num_envs=num_envs, seed=seed)

    def reset(self) -> np.ndarray:
        return np.asarray(self.pool.reset()[0])

    def step(self, action: np.ndarray) -> FrameStep:
        obs, reward, terminated, truncated, _ = self.pool.step(action.astype(np.int32))
        return FrameStep(obs, reward, terminated, truncated, obs)


def make(env_id: str, num_envs: int, seed: int) -> Frames:
    """The environment called `env_id`, one of `IDS`."""
    return Book(num_envs, seed) if env_id == "frames" else Pong(num_envs, seed)
