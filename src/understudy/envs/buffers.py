"""What environments on the CPU share with tensors: the memory of their steps, written row by row or as a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key, array_dtype, is_discrete
from understudy.envs.base import Step
from understudy.envs.gate import admit, observation_name, settled
from understudy.envs.observations import Leaf
from understudy.types import EnvError

_Fields = dict[Key, tuple[tuple[int, ...], np.dtype[Any]]]  # name -> shape, type
_ALIGNMENT = 64  # bytes: one cache line, and enough for any vectorised load


class StepBuffers:
    """The memory of a CPU environment's step, allocated once: numpy arrays to write, tensors on `device` to hand out.

    On the CPU both are the same memory. On another device the arrays of one step lie in one (pinned) block and
    `publish` is one copy for it and one for the final observations, which waits: the arrays are rewritten next step.
    """

    def __init__(self, leaves: Sequence[Leaf], num_envs: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.num_envs, self.leaves = num_envs, leaves
        fields: _Fields = {leaf.source: ((num_envs, *leaf.env_shape), array_dtype(leaf.space)) for leaf in leaves}
        kinds = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_}
        flags: _Fields = {(name,): ((num_envs,), np.dtype(kind)) for name, kind in kinds.items()}
        self._observations = _Block(fields, self.device)
        self._finals = _Block(fields, self.device)
        self._flags = _Block(flags, self.device)
        self.obs_arrays, self.final_arrays = self._observations.arrays, self._finals.arrays
        self.obs = self._tree(leaves, self._observations.tensors)
        self.final_obs = self._tree(leaves, self._finals.tensors)
        self.reward_array, self.terminated_array, self.truncated_array = self._flags.arrays.values()
        self.reward, self.terminated, self.truncated = self._flags.tensors.values()
        self.shared = self.device.type == "cpu"  # arrays and tensors are the same memory: nothing to publish

    def step(self) -> Step:
        """The `Step` of these tensors: the same object serves every step, since the tensors are the same."""
        return Step(self.obs, self.reward, self.terminated, self.truncated, self.final_obs, {})

    def publish(self, ended: bool) -> None:
        """Bring what was written to the arrays to the device; `ended`: final observations were written too."""
        if self.shared:
            return
        self._flags.publish()
        if ended:
            self._finals.publish()
        self._observations.publish()

    def _tree(self, leaves: Sequence[Leaf], tensors: Mapping[Key, Tensor]) -> TensorDict:
        """The tensors under their group keys; leaves of one source share memory."""
        tree = TensorDict({}, batch_size=[self.num_envs], device=self.device)
        for leaf in leaves:
            tree.set(leaf.key, leaf.of(tensors[leaf.source]))
        return tree


class _Block:
    """Arrays that lie in one piece of host memory, and their twins on the device (the same memory on the CPU)."""

    def __init__(self, fields: _Fields, device: torch.device) -> None:
        size, offsets = 0, {}
        for name, (shape, dtype) in fields.items():
            offsets[name] = size
            size += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = self._host if device.type == "cpu" else torch.zeros(size, dtype=torch.uint8, device=device)
        self.arrays: dict[Key, np.ndarray] = {}
        self.tensors: dict[Key, Tensor] = {}
        for name, (shape, dtype) in fields.items():
            span = slice(offsets[name], offsets[name] + int(np.prod(shape)) * dtype.itemsize)
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            self.arrays[name] = self._host[span].view(kind).view(shape).numpy()
            self.tensors[name] = self._device[span].view(kind).view(shape)

    def publish(self) -> None:
        self._device.copy_(self._host)


def row_writers(leaves: Sequence[Leaf], arrays: Mapping[Key, np.ndarray]) -> list[Callable[[Any], None]]:
    """One function per row that writes one environment's observation there, after a check of it (`gate.admit`).

    The first observation that a function gets is looked at as a whole, later ones where type or shape are new. Make new
    functions where observations are to be looked at again.
    """
    num_envs, sources = len(next(iter(arrays.values()))), {leaf.source: leaf for leaf in leaves}
    return [
        _row_writer([(leaf, arrays[leaf.source][row : row + 1]) for leaf in sources.values()])
        for row in range(num_envs)
    ]


def _row_writer(fields: Sequence[tuple[Leaf, np.ndarray]]) -> Callable[[Any], None]:
    puts = [(leaf.source, _component_writer(leaf, array)) for leaf, array in fields]
    if puts[0][0] == ():
        return puts[0][1]
    if all(len(source) == 1 for source, _ in puts):
        flat = [(source[0], put) for source, put in puts]

        def write_flat(obs: Any) -> None:
            try:
                for key, put in flat:
                    put(obs[key])
            except (KeyError, TypeError, IndexError):
                pick(obs, (key,))  # says what is missing
                raise

        return write_flat

    def write_nested(obs: Any) -> None:
        for source, put in puts:
            put(pick(obs, source))

    return write_nested


def _component_writer(leaf: Leaf, array: np.ndarray) -> Callable[[Any], None]:
    # bound once, view taken once: this runs for every environment and step
    view, kind = array[0] if array.ndim > 1 else array, np.ndarray
    shape, what = leaf.env_shape, observation_name(leaf.source)
    known: Any = None  # dtype of arrays, or type of other numbers, whose values need no second look

    def write(value: Any) -> None:
        nonlocal known
        if value.__class__ is kind:
            if value.dtype is not known or value.shape != shape:
                value = admit(value, leaf.space, shape, what)
                known = value.dtype if settled(value.dtype, leaf.space) else None
        elif value.__class__ is not known:
            given, value = value, admit(value, leaf.space, shape, what)
            scalar = isinstance(given, int | float | np.generic)
            known = given.__class__ if scalar and settled(value.dtype, leaf.space) else None
        view[...] = value

    return write


def write_batch(
    leaves: Sequence[Leaf], arrays: Mapping[Key, np.ndarray], obs: Any, rows: Any = None, careful: bool = False
) -> None:
    """Write a batched observation into all rows, or row by row into the named `rows`, after a check of it."""
    for leaf in leaves:
        value, array = pick(obs, leaf.source), arrays[leaf.source]
        shape = array.shape if rows is None else (len(rows), *array.shape[1:])
        known = value.__class__ is np.ndarray and value.shape == shape and settled(value.dtype, leaf.space)
        if careful or not known:
            value = admit(value, leaf.space, shape, observation_name(leaf.source))
        array[... if rows is None else rows] = value


def pick(obs: Any, source: Key) -> Any:
    """Follow `source` into nested observation dicts."""
    for key in source:
        try:
            obs = obs[key]
        except (KeyError, TypeError, IndexError):
            held = f"has {', '.join(map(repr, obs))}" if isinstance(obs, Mapping) else f"is a {type(obs).__name__}"
            raise EnvError(f"{observation_name(source)} is missing: the environment's observation {held}") from None
    return obs


def action_array(action: Tensor, space: spaces.Space[Any], shape: tuple[int, ...]) -> Any:
    """Executed actions as fresh numpy rows of the space's dtype (Discrete: Python ints), safe to keep by the env.

    Environments keep actions (for a rate penalty, for example), so they must never see the caller's memory.
    Raises ValueError if the shape is not `(N, *A)`.
    """
    if action.shape != shape:
        raise ValueError(f"step takes actions of shape {shape}, got {tuple(action.shape)}")
    if is_discrete(space):
        return action.tolist()
    return np.array(action.numpy(force=True), dtype=space.dtype)
