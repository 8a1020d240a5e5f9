"""Batches and buffers: Tianshou's where it is installed, plain data where not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class PlainBatch(dict[str, Any]):
    """Named arrays with the same number of rows, as Tianshou's `Batch`, which takes its place where it is installed."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no {name!r}, it has {', '.join(self)}") from None

    def __getitem__(self, where: Any) -> Any:
        """The entry of a name, or these rows of all entries."""
        if isinstance(where, str):
            return super().__getitem__(where)
        return PlainBatch({name: None if x is None else x[where] for name, x in self.items()})

    def split(self, size: int, shuffle: bool = True, merge_last: bool = False) -> Iterator[PlainBatch]:
        """Parts of `size` rows (-1: all), in random order; `merge_last`: none is smaller."""
        count = len(self["act"])
        order = torch.randperm(count).numpy() if shuffle else np.arange(count)
        starts = range(0, count, count if size == -1 else size)
        last = count // size - 1 if merge_last and size != -1 and count > size else len(starts) - 1
        for start in starts[: last + 1]:
            yield self[order[start:] if start == starts[last] else order[start : start + size]]


Batch: Any = PlainBatch
try:  # its collector indexes what a policy returns
    from tianshou import data

    Batch = data.Batch
except ImportError:
    pass


@runtime_checkable
class Buffer(Protocol):
    """What policies ask of a replay buffer: Tianshou's, or one of the user's."""

    def sample(self, batch_size: int) -> tuple[Any, np.ndarray]:
        """A batch of rows drawn at random (0: of all rows in order), and the rows' numbers."""

    def unfinished_index(self) -> np.ndarray:
        """Numbers of the rows that are the last of an episode that goes on."""


def as_batch(batch: Any) -> Any:
    """A `Batch` (Tianshou's where it is installed) of a mapping or of an object with attributes; one as it is.

    Raises ValueError for what is neither, such as the path of a file.
    """
    if isinstance(batch, Batch):
        return batch
    try:
        entries = dict(batch) if isinstance(batch, Mapping) else dict(vars(batch))
    except TypeError:
        raise ValueError(
            f"a batch is a mapping of arrays or an object that has them as attributes, got {batch!r:.100}: load a file "
            "with ReplayBuffer.load_hdf5"
        ) from None
    for name, x in entries.items():
        if isinstance(x, Mapping):
            entries[name] = as_batch(x)
        elif isinstance(x, list | tuple):
            entries[name] = np.asarray(x)
    return Batch(entries)


def as_buffer(buffer: Any) -> Buffer:
    """A buffer as it is, or one of a plain batch's rows. Raises ValueError for an empty one."""
    if isinstance(buffer, Buffer) and isinstance(buffer, Sized) and len(buffer) == 0:
        raise ValueError("the buffer has no rows: collect some first")
    return buffer if isinstance(buffer, Buffer) else _Rows(complete(buffer, "obs", "act"))


class _Rows:
    """The rows of a plain batch as a buffer."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def sample(self, batch_size: int | None) -> tuple[Any, np.ndarray]:
        count = len(self.batch.act)
        if batch_size == 0:
            return self.batch, np.arange(count)
        rows = torch.randint(count, (count if batch_size is None else batch_size,)).numpy()
        return self.batch[rows], rows

    def unfinished_index(self) -> np.ndarray:
        return np.array([len(self.batch.act) - 1])


def unfinished_rows(batch: Any, buffer: Any, indices: np.ndarray | None) -> np.ndarray:
    """`[n]` bool: True in rows where the recording of an episode stopped."""
    if buffer is None or indices is None:
        return np.arange(len(batch.act)) == len(batch.act) - 1
    return np.isin(indices, buffer.unfinished_index())


def complete(batch: Any, *names: str) -> Any:
    """The batch; raises ValueError for a missing entry."""
    batch = as_batch(batch)
    missing = [name for name in names if batch.get(name) is None]
    if missing:
        raise ValueError(f"the batch has no {', '.join(missing)}: it needs {', '.join(names)}")
    rows = {name: len(batch[name]) for name in names if not isinstance(batch[name], Mapping)}
    if not rows["act"]:
        raise ValueError("the batch has no rows: collect some first")
    if len(set(rows.values())) > 1:
        raise ValueError(f"entries of a batch have the same number of rows, got {rows}")
    return batch


def array(x: Tensor | np.ndarray) -> np.ndarray:
    """An array of a tensor or an array."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def column(x: Any) -> Tensor:
    """Numbers of rows as one column in time, `[n, 1]`, on the CPU."""
    return torch.as_tensor(x).cpu().reshape(-1, 1)
