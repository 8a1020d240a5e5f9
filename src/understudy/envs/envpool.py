"""EnvPool (Weng et al. 2022, arXiv:2206.10558), environments stepped by a C++ thread pool, as a `VecEnv`."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.check import nearest
from understudy.core.extras import require
from understudy.core.spaces import bounds_of, check_action_space, children, is_real, shape_of
from understudy.envs.base import FixedMemory, Step
from understudy.envs.buffers import StepBuffers, action_array, write_batch
from understudy.envs.gate import raised
from understudy.envs.observations import Groups, leaves_space, observation_leaves
from understudy.types import EnvError

_MAX_SEED = 2**31  # EnvPool's seeds are int32


class Pool(Protocol):
    """What `EnvPoolAdapter` uses of an EnvPool object (`env_type="gymnasium"`)."""

    config: Any  # dict with "num_envs" and "batch_size"

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Per environment."""

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Per environment."""

    def reset(self, env_id: np.ndarray | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those named (int32 `[K]`): obs `[K]` in that order."""

    def step(self, action: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """obs `[N]`, reward, terminated, truncated, info."""

    def close(self) -> None:
        """Stop the threads."""


class EnvPoolAdapter(FixedMemory):
    """An EnvPool in its synchronous mode; the transitions are those of `InProcessVectorEnv`.

    EnvPool resets an ended environment on the next step and ignores its action there. The adapter resets ended
    environments by their ids right away instead, so that no reset step exists and every row is valid; this costs one
    more call into the pool on steps where an episode ended. EnvPool cannot tell an episode that terminates on the
    very step of its time limit from a truncated one: it says truncated.

    `make_pool`: from a seed to a fresh pool: EnvPool's seeds are fixed at construction, so `reset(seed)` builds a new
    pool unless the present one is unused and has that seed. Raises ValueError for spaces that cannot become tensors
    and for asynchronous pools, `WorkerError` when the pool fails.
    """

    def __init__(
        self,
        make_pool: Callable[[int], Pool],
        device: torch.device | str = "cpu",
        groups: Groups | None = None,
        seed: int = 0,
        name: str = "EnvPool",
    ) -> None:
        self.name = name
        self._make_pool = make_pool
        self._seed = seed % _MAX_SEED
        self.pool = make_pool(self._seed)
        self._fresh = True
        self.num_envs = int(self.pool.config["num_envs"])
        if self.pool.config["batch_size"] not in (0, self.num_envs):
            self.close()
            raise ValueError(
                f"{name} is asynchronous (batch_size {self.pool.config['batch_size']} of {self.num_envs} "
                "environments): PPO needs every environment in every step, leave batch_size out"
            )
        self.device = torch.device(device)
        self.action_space = check_action_space(self.pool.action_space)
        leaves = observation_leaves(_repair(self.pool.observation_space), groups)
        self.observation_space = leaves_space(leaves)
        self._action_shape = (self.num_envs, *shape_of(self.action_space))
        self._buffers = StepBuffers(leaves, self.num_envs, self.device)
        self._step, self._leaves, self._stepped = self._buffers.step(), leaves, False

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start N fresh episodes (environment i gets `seed + i`); obs `[N]`."""
        if seed is not None and not (self._fresh and seed % _MAX_SEED == self._seed):
            self.pool.close()
            del self.pool  # a simulator can take 50 MB: not two pools at a time
            self._seed = seed % _MAX_SEED
            self.pool = self._make_pool(self._seed)
        self._fresh = False
        obs, _ = self._call("reset", self.pool.reset)
        write_batch(self._leaves, self._buffers.obs_arrays, obs, careful=True)
        self._buffers.publish(ended=False)
        return self._buffers.obs

    def step(self, action: Tensor) -> Step:
        """Apply one executed action per environment, `[N, *A]`."""
        buffers = self._buffers
        actions = np.asarray(action_array(action, self.action_space, self._action_shape))
        obs, reward, terminated, truncated, _ = self._call("step", lambda: self.pool.step(actions))
        if reward.shape != (self.num_envs,):
            raise EnvError(f"{self.name} has {reward.shape} rewards for {self.num_envs} environments: one player each")
        buffers.reward_array[:] = reward
        buffers.terminated_array[:] = terminated
        buffers.truncated_array[:] = truncated
        write_batch(self._leaves, buffers.obs_arrays, obs, careful=not self._stepped)
        self._stepped = True
        ended = np.flatnonzero(terminated | truncated).astype(np.int32)
        if ended.size:
            write_batch(self._leaves, buffers.final_arrays, obs)
            first, _ = self._call("reset", lambda: self.pool.reset(ended))
            write_batch(self._leaves, buffers.obs_arrays, first, rows=ended)
        buffers.publish(bool(ended.size))
        return self._step

    def close(self) -> None:
        """Stop the pool's threads."""
        self.pool.close()

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise raised(f"{self.name} (EnvPool, {self.num_envs} environments)", what, error) from error


def make_envpool(
    env_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    groups: Groups | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    seed: int | None = None,
) -> EnvPoolAdapter:
    """N copies of EnvPool's `env_id`; `env_kwargs` are EnvPool's options (`num_threads`, `frame_skip`, ...).

    Raises ImportError without the package, ValueError for an id that EnvPool lacks or an option it refuses.
    """
    envpool = import_envpool()
    known = envpool.list_all_envs()
    if env_id not in known:
        raise ValueError(f"EnvPool has no environment {env_id!r}: {nearest(env_id, known)}")
    options = dict(env_kwargs or {})
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps

    def make_pool(pool_seed: int) -> Pool:
        try:
            pool = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=pool_seed, **options)
            with warnings.catch_warnings():  # its spaces are made on first use, and warn about their own precision
                warnings.simplefilter("ignore")
                assert pool.observation_space is not None
            return pool
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"EnvPool refuses {env_id} with {options}: {error}") from error

    return EnvPoolAdapter(make_pool, device, groups, 0 if seed is None else seed, env_id)


def has_envpool() -> bool:
    """Whether the package is installed (it is not imported: that takes seconds)."""
    return importlib.util.find_spec("envpool") is not None


def import_envpool() -> ModuleType:
    """The package, or ImportError that says how to get it."""
    require("this environment", "envpool", extra="envpool")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("envpool")


def _repair(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Undo a slip in EnvPool's dm_control spaces: the low of an unbounded double is given as the least positive one."""
    inner = children(space)
    if inner:
        return spaces.Dict({key: _repair(sub) for key, sub in inner.items()})
    if not is_real(space) or space.dtype != np.float64:
        return space
    low, high = bounds_of(space)
    return spaces.Box(np.where(low == np.finfo(np.float64).tiny, -np.inf, low), high, dtype=np.float64)
