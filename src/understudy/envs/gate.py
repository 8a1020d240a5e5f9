"""The gate: all that comes from an environment is checked here once, and trusted inside.

Shape and dtype are checked at every step; values (numbers, and in the range of their space) where they are new: at the
first reset, the first step, the first reset inside a step, and wherever a conversion could change them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.devices import host_is_device
from understudy.core.spaces import (
    Key,
    array_dtype,
    bounds_of,
    check_action_space,
    component,
    component_keys,
    kind_of,
    shape_of,
    tensor_dtype,
    unflatten,
)
from understudy.envs.base import FixedMemory, Step, VecEnv
from understudy.envs.observations import group_leaves
from understudy.types import EnvError, UnderstudyError, WorkerError

logger = logging.getLogger(__name__)

_MEMBERS = ("num_envs", "device", "observation_space", "action_space", "reset", "step", "close")
FLAGS = frozenset((bool, np.bool_))
"""Types of a flag that need no second look."""


# ------------------------------------------------------------------------------------------------ one value


def admit(value: Any, space: spaces.Space[Any], shape: tuple[int, ...], what: str) -> np.ndarray:
    """`value` as an array `[..., *shape]` that the tensors of `space` hold without a change, but for rounding floats.

    Raises EnvError that begins with `what` for a value that is not numbers, of another shape, floating-point where the
    space has whole numbers, or outside the range of such a space.
    """
    try:
        array = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
    except Exception as error:  # ragged lists, and whatever an object's own conversion raises
        raise EnvError(f"{what} is a {type(value).__name__} that no array can hold: {error}") from None
    if array.dtype.kind not in "biuf":
        held = "None" if value is None else f"{value!r:.60}"
        raise EnvError(f"{what} is {held} ({type(value).__name__}), not numbers of shape {shape}")
    if array.shape != shape:
        raise EnvError(f"{what} has shape {array.shape}, but its space says {shape}: correct one of them")
    low, high = map(np.atleast_1d, bounds_of(space))
    array, whole = np.atleast_1d(array), array
    if np.issubdtype(space.dtype, np.floating):
        _note_range(array, low, high, what)
    elif array.dtype.kind == "f":
        raise EnvError(
            f"{what} is {array.dtype}, but its space has whole numbers ({space.dtype}): round the values, or make the "
            "space a Box of float32"
        )
    elif array.size and not ((array >= low).all() and (array <= high).all()):
        wrong = array[(array < low) | (array > high)].flat[0]
        raise EnvError(
            f"{what} holds {wrong}, but its space goes from {low.min()} to {high.max()}: correct one of them"
        )
    return whole


def _note_range(array: np.ndarray, low: np.ndarray, high: np.ndarray, what: str) -> None:
    """Say once that floats leave their space; they are used as they are, since nothing depends on these bounds."""
    margin = 1e-3 * np.maximum(1.0, np.abs(array))
    with np.errstate(invalid="ignore"):
        outside = (array < low - margin) | (array > high + margin)
    if outside.any():
        warn_once(f"{what} holds values outside its space, {array[outside].flat[0]:g} for example; they are kept")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once per process."""
    logger.warning("%s", message)


def raised(who: str, what: str, error: Exception) -> WorkerError:
    """The error for an environment whose own code raised."""
    said = f": {error}" if str(error) else " (without a message)"
    return WorkerError(f"{who} raised {type(error).__name__} in {what}{said}")


def settled(dtype: np.dtype[Any], space: spaces.Space[Any]) -> bool:
    """Whether arrays of a dtype fit the space's tensors whatever their values: they were looked at once."""
    target = array_dtype(space)
    return dtype.kind in "biuf" and (target.kind == "f" or np.can_cast(dtype, target))


def observation_name(key: Key) -> str:
    """What messages call a component of the observation."""
    return f"observation {'/'.join(key)!r}" if key else "the observation"


def admit_tensor(
    value: Any, space: spaces.Space[Any], shape: tuple[int, ...], what: str, careful: bool = True
) -> Tensor:
    """`admit` of a tensor, which stays on its device, in the space's dtype; floats are not read unless `careful`."""
    if not isinstance(value, Tensor):
        raise EnvError(f"{what} is a {type(value).__name__}, not a tensor of shape {shape}")
    dtype = tensor_dtype(space)
    if careful or value.shape != shape or not (dtype.is_floating_point and value.dtype.is_floating_point):
        # numpy has no bfloat16
        admit(value.float() if value.dtype == torch.bfloat16 else value, space, shape, what)
    return value.to(dtype)


# --------------------------------------------------------------------------- what Gymnasium's methods return


def reset_values(result: Any) -> tuple[Any, Any]:
    """Observation and info of a reset. Raises EnvError for anything else (numpy would unpack two entries)."""
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[1], Mapping | None):
        raise EnvError(
            f"reset returned {_described(result)} instead of (observation, info): before gym 0.26 it was the "
            "observation alone; return both, or wrap the environment with shimmy's GymV21CompatibilityV0"
        )
    return result[0], result[1]


def step_values(result: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The five values of a step; EnvError for anything else."""
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise EnvError(
            f"step returned {_described(result)} instead of (observation, reward, terminated, truncated, info): before "
            "gym 0.26 there was one flag `done`; return both flags, or wrap the environment with shimmy's "
            "GymV21CompatibilityV0"
        )
    return (result[0], result[1], result[2], result[3], result[4])


def _described(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"


def number_of(value: Any) -> float | None:
    """A number, also as an array or tensor of one entry; None for anything else."""
    try:
        array = np.asarray(value)
    except Exception:  # whatever an object's own conversion raises
        return None
    return float(array.reshape(())) if array.size == 1 and array.dtype.kind in "biuf" else None


def reward_of(value: Any) -> float:
    """One environment's reward; EnvError unless it is one number."""
    number = number_of(value)
    if number is None:
        raise EnvError(f"the reward is {value!r:.60} ({type(value).__name__}): return one number")
    return number


def flag_of(name: str, value: Any) -> bool:
    """`terminated` or `truncated` of one environment; EnvError unless it is true or false."""
    number = number_of(value)
    if number not in (0.0, 1.0):
        raise EnvError(f"{name} is {value!r:.60} ({type(value).__name__}): return True or False")
    return bool(number)


def row_values(name: str, value: Any, num_envs: int, flags: bool = False) -> np.ndarray:
    """Rewards or flags of all environments, `[N]`; EnvError for another shape, and flags other than 0 and 1."""
    array = np.asarray(value)
    if array.shape not in ((num_envs,), (num_envs, 1)) or array.dtype.kind not in "biuf":
        held = f"shape {array.shape}" if array.dtype.kind in "biuf" else f"type {array.dtype}"
        raise EnvError(f"{name} has {held}: return an array of {num_envs} {'flags' if flags else 'numbers'}")
    if flags and array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise EnvError(f"{name} holds {array[~np.isin(array, (0, 1))].flat[0]}: return an array of True and False")
    return array.reshape(num_envs)


def close_quietly(close: Callable[[], Any], who: str) -> None:
    """Close an environment; one that fails to is reported, since all that it was needed for is done."""
    try:
        close()
    except Exception as error:
        logger.warning("%s", raised(who, "close", error))


# --------------------------------------------------------------------------------------------------- VecEnv


def check_vec_env(env: Any) -> None:
    """Raise ValueError, with what is missing or wrong, unless an object is a `VecEnv`."""
    kind = env.__name__ if isinstance(env, type) else type(env).__name__
    if isinstance(env, str | type):
        what = f"the id {env!r} belongs in env.id" if isinstance(env, str) else f"build one: {kind}(...)"
        raise ValueError(f"an environment must be an object, got a {type(env).__name__}: {what}")
    missing = [name for name in _MEMBERS if name not in dir(env)]
    if missing:
        raise ValueError(
            f"{kind} is not a known kind of environment: a VecEnv has {', '.join(_MEMBERS)}, and this object "
            f"lacks {', '.join(missing)}; a Gymnasium (vector) environment or a simulator with rsl_rl's "
            "get_observations and step is taken as it is"
        )
    if not isinstance(env.num_envs, int) or env.num_envs < 1:
        raise ValueError(f"{kind}.num_envs must be a whole number of at least 1, got {env.num_envs!r}")
    if not isinstance(env.device, torch.device):
        raise ValueError(f"{kind}.device must be a torch.device, got {env.device!r}")
    if kind_of(env.observation_space) != "dict":
        raise ValueError(
            f"{kind}.observation_space must be a gymnasium.spaces.Dict of groups, as "
            f"{{'policy': Box(...)}}, got {env.observation_space}"
        )
    group_leaves(env.observation_space)
    check_action_space(env.action_space)


class Gate:
    """Steps a `VecEnv`, and checks what it returns. Whoever collects, evaluates or records does so through a gate.

    Observations of another dtype become the space's, where no number changes. On an accelerator nothing waits for the
    device, but for the first reset and the first step. Raises EnvError that names what is wrong, and WorkerError for an
    environment that raises.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env, self._who = env, type(env).__name__
        self.keys = component_keys(env.observation_space)
        found = {key: component(env.observation_space, key) for key in self.keys}
        self._leaves = [
            (key, space, (env.num_envs, *shape_of(space)), tensor_dtype(space)) for key, space in found.items()
        ]
        self._batch, self._rows = torch.Size([env.num_envs]), torch.Size([env.num_envs])
        self._host_is_device = host_is_device(env.device)
        self._new = {"reset", "step", "end"}  # what has not been seen yet
        self._known: Step | None = None  # a step whose tensors were looked at, and are the same for good
        self.leaves: tuple[Tensor, ...] = ()
        """The observation's tensors, in the order of `keys`."""

    def reset(self, seed: int | None = None) -> TensorDict:
        """As the environment's."""
        try:
            obs = self.env.reset(seed)
        except UnderstudyError:  # as in `step`
            raise
        except Exception as error:
            raise raised(self._who, "reset", error) from error
        obs, self.leaves = self._admit(obs, "reset", self._first("reset"))
        return obs

    def resume(self, obs: Any) -> TensorDict:
        """Go on from an observation that the environment gave without a step."""
        obs, self.leaves = self._admit(obs, "observe", careful=True)
        return obs

    def step(self, action: Tensor) -> Step:
        """As the environment's."""
        try:
            step = self.env.step(action)
        except UnderstudyError:  # an adapter's: it has named the environment already
            raise
        except Exception as error:
            raise raised(self._who, "step", error) from error
        if step is self._known:
            return self._known
        given = step
        if not isinstance(step, Step):
            raise EnvError(f"{self._who}.step returned a {type(step).__name__}: return an understudy.envs.Step")
        self._check_flags(step)
        careful = self._first("step")
        if "end" in self._new and self._host_is_device and bool(step.ended.any()):
            careful = self._first("end")
        obs, self.leaves = self._admit(step.obs, "step", careful)
        # rows that did not end may hold anything
        final = None if step.final_obs is None else self._admit(step.final_obs, "step", careful=False)[0]
        if obs is not step.obs or final is not step.final_obs:
            step = step._replace(obs=obs, final_obs=final)
        if not _are_tensors(step.metrics):
            step = step._replace(metrics=self._numbers(step.metrics))
        if step is given and isinstance(self.env, FixedMemory) and not self._new:
            self._known = step
        return step

    def _first(self, what: str) -> bool:
        new = what in self._new
        self._new.discard(what)
        return new

    def _admit(self, obs: Any, where: str, careful: bool) -> tuple[TensorDict, tuple[Tensor, ...]]:
        """The observation with every component as its space has it, and its tensors."""
        if not isinstance(obs, TensorDict):
            raise EnvError(
                f"{self._who}.{where} gave a {type(obs).__name__} as observation: return a TensorDict, for example "
                f"TensorDict({{'policy': tensor}}, batch_size=[{self.env.num_envs}])"
            )
        if obs.batch_size != self._batch:
            found = f"{self._who}.{where}: observations have batch size {list(obs.batch_size)}"
            raise EnvError(f"{found}, expected {list(self._batch)}")
        as_it_is, leaves = True, []
        for key, space, shape, dtype in self._leaves:
            x = value = obs.get(key, None)
            if careful or not isinstance(value, Tensor) or value.dtype is not dtype or value.shape != shape:
                what = f"{self._who}.{where}: {observation_name(key)}"
                if value is None:
                    raise EnvError(f"{what} is missing, but observation_space has it")
                x = admit_tensor(value, space, shape, what, careful)
                as_it_is = as_it_is and x is value
            leaves.append(x)
        if not as_it_is:
            obs = unflatten(self.keys, leaves, self._batch)
        return obs, tuple(leaves)

    def _check_flags(self, step: Step) -> None:
        rows = self._rows
        for name, value in (("reward", step.reward), ("terminated", step.terminated), ("truncated", step.truncated)):
            if not isinstance(value, Tensor) or value.shape != rows:
                raise EnvError(f"{self._who}.step: {name} must be a tensor of shape {list(rows)}, got {value!r:.80}")
        if step.terminated.dtype is not torch.bool or step.truncated.dtype is not torch.bool:
            raise EnvError(f"{self._who}.step: terminated and truncated must be bool tensors")
        if step.valid is not None and (step.valid.dtype is not torch.bool or step.valid.shape != rows):
            raise EnvError(f"{self._who}.step: valid must be a bool tensor of shape {list(rows)}")

    def _numbers(self, metrics: Any) -> dict[str, Tensor]:
        if not isinstance(metrics, Mapping):
            raise EnvError(f"{self._who}.step: metrics are a {type(metrics).__name__}: return a dict of tensors")
        return {name: metric(f"{self._who}.step: metrics[{name!r}]", x, self.env.device) for name, x in metrics.items()}


def _are_tensors(metrics: Any) -> bool:
    return isinstance(metrics, dict) and all(isinstance(x, Tensor) for x in metrics.values())


def metric(what: str, value: Any, device: torch.device) -> Tensor:
    """A metric as a tensor of floats; numbers, lists and arrays of them become one. EnvError for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float):
        return torch.full((), float(value), device=device)  # a fill, not a copy from the host: no wait
    try:
        array = np.asarray(value)
        assert array.dtype.kind in "biuf"
        return torch.as_tensor(array.astype(np.float32), device=device)
    except Exception:
        raise EnvError(f"{what} is {value!r:.60} ({type(value).__name__}): metrics are numbers") from None
