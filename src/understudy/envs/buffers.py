"""What environments on the CPU share with tensors: the memory of their steps, written row by row or as a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key, array_dtype, is_discrete
from understudy.envs.base import Step
from understudy.envs.observations import Leaf

_Fields = dict[Key, tuple[tuple[int, ...], np.dtype[Any]]]  # name -> shape, type
_ALIGNMENT = 64  # bytes: one cache line, and enough for any vectorised load


class StepBuffers:
    """The memory of a CPU environment's step, allocated once: numpy arrays to write, tensors on `device` to hand out.

    On the CPU both are the same memory. On another device the arrays of one step lie in one (pinned) block and
    `publish` is one copy for it and one for the final observations, which waits: the arrays are rewritten next step.
    """

    def __init__(self, leaves: Sequence[Leaf], num_envs: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.num_envs = num_envs
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


def row_writers(arrays: Mapping[Key, np.ndarray]) -> list[Callable[[Any], None]]:
    """One function per row that writes one environment's observation there."""
    num_envs = len(next(iter(arrays.values())))
    return [_row_writer({source: array[row : row + 1] for source, array in arrays.items()}) for row in range(num_envs)]


def _row_writer(arrays: Mapping[Key, np.ndarray]) -> Callable[[Any], None]:
    # bound once, views taken once: this runs for every environment and step
    puts = [
        (source, partial(array[0].__setitem__ if array.ndim > 1 else array.__setitem__, ...))
        for source, array in arrays.items()
    ]
    if list(arrays) == [()]:
        return puts[0][1]
    if all(len(source) == 1 for source in arrays):
        flat = [(source[0], put) for source, put in puts]

        def write_flat(obs: Any) -> None:
            for key, put in flat:
                put(obs[key])

        return write_flat

    def write_nested(obs: Any) -> None:
        for source, put in puts:
            put(pick(obs, source))

    return write_nested


def write_batch(arrays: Mapping[Key, np.ndarray], obs: Any, rows: Any = None) -> None:
    """Write a batched observation into all rows (checked: same shape), or row by row into the named `rows`."""
    for source, array in arrays.items():
        value = np.asarray(pick(obs, source))
        target = array.shape if rows is None else (len(rows), *array.shape[1:])
        if value.shape != target:  # numpy would broadcast
            raise ValueError(f"observation {'.'.join(source) or 'array'} has shape {value.shape}, expected {target}")
        array[... if rows is None else rows] = value


def check_row(leaves: Sequence[Leaf], obs: Any) -> None:
    """Raise ValueError where one environment's observation has another shape than its space (numpy would broadcast)."""
    for leaf in leaves:
        shape = np.shape(pick(obs, leaf.source))
        if shape != leaf.env_shape:
            name = ".".join(leaf.source) or "the observation"
            raise ValueError(f"{name} has shape {shape}, but its space says {leaf.env_shape}: correct one of them")


def pick(obs: Any, source: Key) -> Any:
    """Follow `source` into nested observation dicts."""
    for key in source:
        obs = obs[key]
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
