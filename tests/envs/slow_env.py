"""An environment for worker processes, which import it: everything in it is random, and it fails on demand."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np


class SlowEnv(gym.Env[Any, Any]):
    """Episodes of 5 to 12 steps of `seconds` each; in step `at` it does `what`."""

    observation_space = gym.spaces.Dict(
        {"vector": gym.spaces.Box(-9, 9, (3,)), "image": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)}
    )
    action_space = gym.spaces.Discrete(3)

    def __init__(self, seconds: float = 0.0, what: str = "", at: int = 4) -> None:
        self.seconds, self.what, self.at, self.age, self.steps = seconds, what, at, 0, 0
        if what == "constructor" and multiprocessing.parent_process() is not None:
            raise KeyError("no licence")

    def _observe(self) -> dict[str, Any]:
        image = self.np_random.integers(0, 256, (4, 4, 3), np.uint8)
        return {"vector": self.np_random.normal(size=3).clip(-9, 9).astype(np.float32), "image": image}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self._observe(), {"not": object()}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert type(action) is int
        self.age, self.steps = self.age + 1, self.steps + 1
        time.sleep(self.seconds)
        if self.steps == self.at:
            self._misbehave()
        reward = "much" if self.what == "reward" else self.np_random.normal() + action
        ended = self.age >= 5 and self.np_random.random() < 0.3
        return self._observe(), reward, ended, self.age >= 12, {"age": self.age, "unpicklable": lambda: 0}

    def _misbehave(self) -> None:
        if self.what == "raise":
            raise _Odd(1, 2)
        if self.what == "hang":
            time.sleep(1000.0)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "crash":
            ctypes.string_at(0)


class _Odd(Exception):
    """An exception that cannot be built from its message."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} + {second}")


gym.register("Slow-v0", "tests.envs.slow_env:SlowEnv")
