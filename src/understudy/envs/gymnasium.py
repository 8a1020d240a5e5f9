"""Gymnasium environments as a `VecEnv`: N single ones in a plain loop, or any Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import check_action_space, shape_of
from understudy.envs.base import FixedMemory, Step
from understudy.envs.buffers import StepBuffers, action_array, row_writers, write_batch
from understudy.envs.gate import (
    FLAGS,
    close_quietly,
    flag_of,
    number_of,
    raised,
    reset_values,
    reward_of,
    row_values,
    step_values,
)
from understudy.envs.observations import Groups, leaves_space, observation_leaves
from understudy.types import EnvError, UnderstudyError, WorkerError


class InProcessVectorEnv(FixedMemory):
    """N single Gymnasium environments stepped in a plain loop: the fastest way for a few light environments.

    Rows are checked (`envs/gate.py`) and written straight into preallocated memory. An ended environment is reset in
    the same step and its true last observation is kept, so every transition is real; the numbers in its last `info` are
    the step's metrics. The tensors of a `Step` are the same every time: valid until the next `step` or `reset`.

    `make`: one function per environment (`lambda: gym.make(id, disable_env_checker=True)`); `groups`: see
    `observation_leaves`; `seed`: used by the first `reset` that gets none. Raises ValueError for no environment,
    environments of different spaces, or spaces that cannot become tensors, and `WorkerError` when one of them fails.
    """

    def __init__(
        self,
        make: Sequence[Callable[[], gym.Env[Any, Any]]],
        device: torch.device | str = "cpu",
        groups: Groups | None = None,
        seed: int | None = None,
    ) -> None:
        if not make:
            raise ValueError("an environment needs at least one copy: give at least one function in `make`")
        self.envs: list[gym.Env[Any, Any]] = []
        try:
            for build in make:
                self.envs.append(built(build, len(self.envs)))
            self._check_same_spaces()
            self._leaves = observation_leaves(self.envs[0].observation_space, groups)
            self.action_space = check_action_space(self.envs[0].action_space)
        except BaseException:
            self.close()
            raise
        self.num_envs = len(self.envs)
        self.device = torch.device(device)
        self.observation_space = leaves_space(self._leaves)
        self._seed = seed
        self._action_shape = (self.num_envs, *shape_of(self.action_space))
        self._buffers = StepBuffers(self._leaves, self.num_envs, self.device)
        self._write_obs = row_writers(self._leaves, self._buffers.obs_arrays)
        self._write_final = row_writers(self._leaves, self._buffers.final_arrays)
        self._stepped = self._restarted = False  # whether a step, and a reset inside one, have been looked at
        self._rewards: Any = self._buffers.reward_array.data  # a memoryview writes one number faster than numpy does
        self._flags_set = False
        self._step = self._buffers.step()
        self._steps = [env.step for env in self.envs]  # bound once: looking it up costs more than writing the row

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start N fresh episodes, environment i seeded with `seed + i`; obs `[N]`."""
        seed, self._seed = (self._seed if seed is None else seed), None
        row = 0
        try:
            for row, env in enumerate(self.envs):
                obs, _ = reset_values(env.reset(seed=None if seed is None else seed + row))
                self._write_obs[row](obs)
        except Exception as error:
            raise self._failure(row, "reset", error) from error
        self._buffers.publish(ended=False)
        return self._buffers.obs

    def step(self, action: Tensor) -> Step:
        """Apply one executed action per environment, `[N, *A]`."""
        buffers, rewards = self._buffers, self._rewards
        actions = action_array(action, self.action_space, self._action_shape)
        if self._flags_set:  # flags are rare: cleared when some are set, instead of written for every row
            buffers.terminated_array.fill(False)
            buffers.truncated_array.fill(False)
        if first := not self._stepped:
            self._stepped, self._write_obs = True, row_writers(self._leaves, buffers.obs_arrays)
        metrics: dict[str, np.ndarray] = {}
        any_ended = False
        row, what = 0, "step"
        try:
            for row, (step, one, write_obs) in enumerate(zip(self._steps, actions, self._write_obs)):
                result = step(one)
                if result.__class__ is not tuple or len(result) != 5:
                    result = step_values(result)
                obs, reward, terminated, truncated, info = result
                try:
                    rewards[row] = reward_of(reward) if first else reward
                except (TypeError, ValueError):
                    rewards[row] = reward_of(reward)
                if terminated.__class__ not in FLAGS or truncated.__class__ not in FLAGS:
                    terminated, truncated = flag_of("terminated", terminated), flag_of("truncated", truncated)
                if not (terminated or truncated):
                    write_obs(obs)
                    continue
                any_ended = True
                buffers.terminated_array[row] = terminated
                buffers.truncated_array[row] = truncated
                self._write_final[row](obs)
                self._keep_numbers(row, info, metrics)
                what = "reset"
                self._restart(row)
                what = "step"
        except Exception as error:
            raise self._failure(row, what, error) from error
        self._flags_set = any_ended
        if not buffers.shared:
            buffers.publish(any_ended)
        return self._step._replace(metrics=_on(self.device, metrics)) if metrics else self._step

    def _restart(self, row: int) -> None:
        """The next episode of one environment."""
        obs, _ = reset_values(self.envs[row].reset())
        if not self._restarted:
            self._restarted, self._write_obs = True, row_writers(self._leaves, self._buffers.obs_arrays)
        self._write_obs[row](obs)

    def _keep_numbers(self, row: int, info: Any, metrics: dict[str, np.ndarray]) -> None:
        """Numbers of an episode's last info; NaN, which no mean counts, in the rows of other environments."""
        for name, value in info.items() if isinstance(info, Mapping) else ():
            _keep_number(metrics, str(name), value, row, self.num_envs)

    def render(self) -> Any:
        """A picture of the first environment, as its `render_mode` has it."""
        return self.envs[0].render()

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            close_quietly(env.close, env_name(env))

    def _check_same_spaces(self) -> None:
        first = self.envs[0]
        for index, env in enumerate(self.envs):
            if env.observation_space != first.observation_space or env.action_space != first.action_space:
                raise ValueError(
                    f"environment {index} has other spaces than environment 0: "
                    f"{env.observation_space}, {env.action_space} instead of "
                    f"{first.observation_space}, {first.action_space}; a vector needs equal ones"
                )

    def _failure(self, row: int, what: str, error: Exception) -> UnderstudyError:
        who = f"environment {row} of {self.num_envs} ({env_name(self.envs[row])})"
        if isinstance(error, EnvError):
            return EnvError(f"{who} in {what}: {error}")
        return raised(who, what, error)


class GymnasiumVectorAdapter(FixedMemory):
    """Any Gymnasium vector environment, whatever its autoreset mode, with the transitions of `InProcessVectorEnv`.

    SAME_STEP: the final observation comes from `info["final_obs"]`. DISABLED, and NEXT_STEP where the class is
    Gymnasium's own Sync- or AsyncVectorEnv: the ended environments are reset at once (`reset_mask`), so that no
    reset step exists. Other NEXT_STEP environments step all rows while one resets: that row comes with `valid` False.
    `seed`: used by the first `reset` that gets none.

    Raises ValueError if the mode is not in `metadata["autoreset_mode"]`, `WorkerError` when an environment fails.
    """

    def __init__(
        self,
        vector_env: VectorEnv[Any, Any, Any],
        device: torch.device | str = "cpu",
        groups: Groups | None = None,
        seed: int | None = None,
    ) -> None:
        mode = vector_env.metadata.get("autoreset_mode")
        if mode is None:
            raise ValueError(
                f"{vector_env} does not say how it resets: set metadata['autoreset_mode'] to one of "
                "gymnasium.vector.AutoresetMode (NEXT_STEP, SAME_STEP, DISABLED)"
            )
        self.env = vector_env
        self._seed = seed
        self.num_envs = vector_env.num_envs
        self.device = torch.device(device)
        self.mode = AutoresetMode(mode)
        self.action_space = check_action_space(vector_env.single_action_space)
        self._leaves = observation_leaves(vector_env.single_observation_space, groups)
        self.observation_space = leaves_space(self._leaves)
        self._resets_by_mask = self.mode == AutoresetMode.DISABLED or (
            self.mode == AutoresetMode.NEXT_STEP and isinstance(vector_env, SyncVectorEnv | AsyncVectorEnv)
        )
        self._resets_next_step = self.mode == AutoresetMode.NEXT_STEP and not self._resets_by_mask
        self._action_shape = (self.num_envs, *shape_of(self.action_space))
        self._buffers = StepBuffers(self._leaves, self.num_envs, self.device)
        self._write_final = row_writers(self._leaves, self._buffers.final_arrays)
        self._step = self._buffers.step()
        self._stepped = False
        self._resetting: np.ndarray | None = None  # [N] bool: rows whose next step is a reset step; None: no row

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start N fresh episodes, seeded as the vector environment does it (Gymnasium's: `seed + i`); obs `[N]`."""
        seed, self._seed = (self._seed if seed is None else seed), None
        self._resetting = None
        self._call("reset", lambda: self._write(reset_values(self.env.reset(seed=seed))[0], careful=True))
        self._buffers.publish(ended=False)
        return self._buffers.obs

    def step(self, action: Tensor) -> Step:
        """Apply one executed action per environment, `[N, *A]`."""
        rows = np.asarray(action_array(action, self.action_space, self._action_shape))
        return self._call("step", lambda: self._absorb(*step_values(self.env.step(rows))))

    def _absorb(self, obs: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> Step:
        buffers, N = self._buffers, self.num_envs
        buffers.reward_array[:] = row_values("the reward", reward, N)
        buffers.terminated_array[:] = row_values("terminated", terminated, N, flags=True)
        buffers.truncated_array[:] = row_values("truncated", truncated, N, flags=True)
        junk = self._resetting
        if junk is not None:
            buffers.reward_array[junk] = 0.0
            buffers.terminated_array[junk] = False
            buffers.truncated_array[junk] = False
        ended = buffers.terminated_array | buffers.truncated_array  # [N]
        any_ended = bool(ended.any())
        if any_ended:
            obs = self._after_end(obs, info, ended)
        self._resetting = ended if any_ended and self._resets_next_step else None
        self._write(obs, careful=not self._stepped)
        self._stepped = True
        buffers.publish(any_ended)
        metrics = _final_numbers(info, ended) if any_ended else {}
        if junk is None and not metrics:
            return self._step
        valid = None if junk is None else torch.from_numpy(~junk).to(self.device)
        return self._step._replace(valid=valid, metrics=_on(self.device, metrics))

    def _write(self, obs: Any, careful: bool) -> None:
        write_batch(self._leaves, self._buffers.obs_arrays, obs, careful=careful)

    def render(self) -> Any:
        """A picture of the first environment, as its `render_mode` has it."""
        pictures = self.env.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Close the vector environment and its processes."""
        close_quietly(self.env.close, env_name(self.env))

    def _after_end(self, obs: Any, info: dict[str, Any], ended: np.ndarray) -> Any:
        """Keep the final observations of the ended rows, and return the observations to act on next."""
        if self.mode != AutoresetMode.SAME_STEP:
            write_batch(self._leaves, self._buffers.final_arrays, obs)
            if not self._resets_by_mask:
                return obs  # the reset comes with the next step
            return self._call("reset", lambda: reset_values(self.env.reset(options={"reset_mask": ended}))[0])
        if "final_obs" not in info:
            raise EnvError(
                f"{self.env} resets in the same step but gave no info['final_obs'] where an episode ended, so a time "
                "limit cannot be bootstrapped: add it, or use AutoresetMode.DISABLED"
            )
        final = info["final_obs"]
        if isinstance(final, np.ndarray) and final.dtype == object:  # Gymnasium's: one observation per ended row
            for row in np.flatnonzero(ended):
                self._write_final[row](final[row])
        else:  # a natively vectorised environment: batched like obs
            write_batch(self._leaves, self._buffers.final_arrays, final)
        return obs

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UnderstudyError as error:
            who = f"vector environment {env_name(self.env)}"
            if isinstance(error, WorkerError) or str(error).startswith(who):  # of a reset inside this step
                raise
            raise EnvError(f"{who} in {what}: {error}") from None
        except Exception as error:
            raise raised(self._culprit(), what, error) from error

    def _culprit(self) -> str:
        """Name the environments that failed, as far as it can be told."""
        name = env_name(self.env)
        if isinstance(self.env, AsyncVectorEnv):
            # Gymnasium closes the pipe of a worker whose environment raised; a killed worker is simply not alive
            workers = zip(self.env.processes, self.env.parent_pipes)
            dead = [i for i, (process, pipe) in enumerate(workers) if pipe is None or not process.is_alive()]
            if dead:
                return f"environment {', '.join(map(str, dead))} of {self.num_envs} ({name}, its own process)"
        return f"vector environment {name} ({self.num_envs} environments)"


def built(build: Callable[[], gym.Env[Any, Any]], index: int) -> gym.Env[Any, Any]:
    """One environment. Raises WorkerError where its own code does; ImportError and ValueError say enough."""
    try:
        env = build()
    except (ImportError, ValueError, UnderstudyError):
        raise
    except Exception as error:
        raise raised(f"environment {index}", "its constructor", error) from error
    for name in ("observation_space", "action_space"):
        try:
            space = env.observation_space if name == "observation_space" else env.action_space
        except AttributeError:
            space = None
        if not isinstance(space, gym.Space):
            raise EnvError(f"{env_name(env)}.{name} must be a gymnasium.Space, set in its __init__; it is {space!r}")
    return env


def _on(device: torch.device, metrics: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values).to(device) for name, values in metrics.items()}


def _keep_number(metrics: dict[str, np.ndarray], name: str, value: Any, row: int, num_envs: int) -> None:
    number = number_of(value)
    if number is not None:
        metrics.setdefault(name, np.full(num_envs, np.nan, np.float32))[row] = number


def _final_numbers(info: Any, ended: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers that a vector environment's info has of the rows that ended, `[N]`, NaN in the others."""
    infos = info.get("final_info", info) if isinstance(info, Mapping) else {}
    numbers: dict[str, np.ndarray] = {}
    for name, values in infos.items() if isinstance(infos, Mapping) else ():
        if not isinstance(values, np.ndarray) or values.shape[:1] != ended.shape or name.startswith("_"):
            continue
        for row in np.flatnonzero(ended & infos.get(f"_{name}", True)).tolist():
            _keep_number(numbers, name, values[row], row, len(ended))
    return numbers


def env_name(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> str:
    """The registered id of an environment, or the name of its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
