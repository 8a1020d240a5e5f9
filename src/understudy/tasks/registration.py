"""Our batched tasks as Gymnasium environments: one copy, numpy in and out, under the id "understudy/<task>"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase

from understudy.core.spaces import children
from understudy.envs.base import VecEnv
from understudy.envs.registry import KwargValue, make_env

NAMESPACE = "understudy"


class SingleEnv(gym.Env[dict[str, Any], Any]):
    """One copy of a batched task with Gymnasium's interface; its observation is a dict of the task's groups.

    The task restarts by itself where an episode ends, so `reset` is called as usual and simply begins another one.
    `info` holds the task's metrics, without those that have nothing to say (NaN) in this step. Raises ValueError if
    the task holds more than one copy, cannot tell final observations, or gets an action outside its space.
    """

    def __init__(self, task: VecEnv) -> None:
        if task.num_envs != 1:
            raise ValueError(f"a Gymnasium environment is one copy, got a batch of {task.num_envs}")
        self.task = task
        self.observation_space, self.action_space = task.observation_space, task.action_space
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A fresh episode; the first one without a seed is random."""
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        self._seeded = True
        return _tree(self.task.reset(seed), self.task.observation_space), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one action."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        step = self.task.step(torch.as_tensor(np.asarray(action), device=self.task.device).unsqueeze(0))
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        obs = step.final_obs if terminated or truncated else step.obs
        if obs is None:
            raise ValueError(f"{type(self.task).__name__} does not tell the final observation of an episode")
        info = {name: float(value) for name, value in step.metrics.items() if not math.isnan(value)}
        return _tree(obs, self.task.observation_space), float(step.reward), terminated, truncated, info

    def close(self) -> None:
        """Close the task."""
        self.task.close()


def register_tasks(names: Iterable[str]) -> None:
    """Register tasks with Gymnasium; `gym.make(f"understudy/{name}", options={...})` then builds one copy."""
    for name in names:
        gym.register(f"{NAMESPACE}/{name}", "understudy.tasks.registration:make_single", kwargs={"name": name})


def make_single(name: str, options: Mapping[str, KwargValue] | None = None) -> SingleEnv:
    """One copy of the task `name`."""
    return SingleEnv(make_env(name, 1, env_kwargs=options))


def _tree(obs: TensorDictBase, space: spaces.Space[Any]) -> dict[str, Any]:
    """Row 0 of `obs` as arrays and numpy scalars, in the order of the space."""
    out: dict[str, Any] = {}
    for name, sub in children(space).items():
        value: Any = obs.get(name)
        # a copy: the task may overwrite its tensors; [()] makes a numpy scalar of a 0-D array
        out[name] = _tree(value, sub) if children(sub) else value[0].numpy(force=True).astype(sub.dtype)[()]
    return out
