"""The processes of one training, each a rank (`torchrun`): what they sum, average and tell one another.

A process alone is rank 0 of 1, and every function here leaves it what it has. Elsewhere all ranks call the same
functions in the same order. `torch.distributed` carries the numbers: gloo on the CPU, NCCL on GPUs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from understudy.core.randomness import mix

_PATIENCE = timedelta(days=1)
"""How long a rank waits for another that lives: rank 0 films alone. The end of a process is noticed at once."""


class RankError(RuntimeError):
    """Another rank ended, or does not answer."""


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def own_seed(seed: int) -> int:
    """The seed of what each rank draws for itself; rank 0's is `seed`."""
    return seed if rank() == 0 else mix(seed, f"rank/{rank()}")


# ---------------------------------------------------------------------- numbers


def mean_(x: Tensor) -> Tensor:
    """The mean of `x` over the ranks, in place."""
    if count() > 1:
        _reduce(x, dist.ReduceOp.SUM)
        x /= count()
    return x


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over the ranks; `x` itself for one."""
    return mean_(x.clone()) if count() > 1 else x


def total(x: Tensor) -> Tensor:
    """The sum of `x` over the ranks; `x` itself for one."""
    return _reduce(x.clone(), dist.ReduceOp.SUM) if count() > 1 else x


def maximum(x: Tensor) -> Tensor:
    """The largest `x` of any rank, entry by entry; `x` itself for one."""
    return _reduce(x.clone(), dist.ReduceOp.MAX) if count() > 1 else x


def share(weight: Tensor) -> Tensor | None:
    """What `weight`, a sum of weights w, is on an average rank, at least 1 over all of them; None for a process alone.

    The mean over the ranks of sum(w x) / share is the mean over all that they have, which a mean of their means is not.
    """
    return total(weight).clamp(min=1.0) / count() if count() > 1 else None


def broadcast_(module: nn.Module) -> None:
    """Give the parameters and buffers of `module` the numbers that they have on rank 0."""
    if count() > 1:
        with _failure_named(), torch.no_grad():
            for x in (*module.parameters(), *module.buffers()):
                told = x.contiguous()
                dist.broadcast(told, 0)
                x.copy_(told)


def _reduce(x: Tensor, operation: Any) -> Tensor:
    with _failure_named():
        dist.all_reduce(x, operation)
    return x


# ---------------------------------------------------------------------- plain data


def gather(value: Any) -> list[Any]:
    """What every rank has, in the order of ranks (plain data, tensors on the CPU)."""
    if count() == 1:
        return [value]
    gathered = [None] * count()
    with _failure_named():
        dist.all_gather_object(gathered, value)
    return gathered


def gather_first(value: Any) -> list[Any]:
    """`gather` for rank 0 alone; the others get an empty list."""
    if count() == 1:
        return [value]
    gathered = [None] * count() if rank() == 0 else None
    with _failure_named():
        dist.gather_object(value, gathered)
    return gathered or []


def shared(value: Any) -> Any:
    """What rank 0 has."""
    told = [value]
    if count() > 1:
        with _failure_named():
            dist.broadcast_object_list(told, 0)
    return told[0]


def check_same(what: str, value: str, remedy: str) -> None:
    """Raise ValueError, on all ranks, if the text `value` is not the same on all."""
    for number, theirs in enumerate(values := gather(value)):
        if theirs != values[0]:
            pairs = zip(values[0].splitlines(), theirs.splitlines())
            ours, other = next((pair for pair in pairs if pair[0] != pair[1]), (values[0], theirs))
            raise ValueError(
                f"{what} of rank {number} differs from rank 0's: {other.strip()!r:.300} and {ours.strip()!r:.300}: "
                f"{remedy}"
            )


# ---------------------------------------------------------------------- meeting


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes that torchrun started, until the block ends; nothing for a process alone.

    A process group that is there already is used as it is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _failure_named():
        store, number, size = _fresh_store()
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _fresh_store() -> tuple[Any, int, int]:
    """Where the ranks find each other, this one's number, and how many there are.

    torchrun's own store outlives the processes: after a restart it has the addresses of those that died. Rank 0 serves
    another one, whose port the old one tells; an old port refuses.
    """
    store, number, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, number, size
    host, port = os.environ["MASTER_ADDR"], 0
    while number and not port:
        with suppress(OSError), socket.create_connection((host, told := int(store.get("understudy"))), 5.0):
            port = told
        time.sleep(0.1)
    fresh = dist.TCPStore(host, port, size, number == 0, _PATIENCE, wait_for_workers=False)
    if number == 0:
        store.set("understudy", str(fresh.port))
    return fresh, number, size


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank, where `device` is "cuda" and torchrun started several processes on this machine.

    Raises ValueError where there are fewer GPUs than processes, or all would share the one that is named.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type != "cuda" or here == 1:
        return device
    if device.index is not None and device.index != int(os.environ["LOCAL_RANK"]):
        raise ValueError(f"device {device} would be shared by {here} processes: set device to cuda, one for each")
    if (found := torch.cuda.device_count()) < here:
        raise ValueError(
            f"torchrun started {here} processes on this machine, which has {found} GPUs: use --nproc-per-node {found}, "
            "or --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def restarted() -> bool:
    """Whether torchrun has started these processes again; it counts on each machine, for those that ended there."""
    return max(gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))) > 0


def restarts_allowed() -> bool:
    """Whether torchrun would start these processes again, if one ended."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def _failure_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"another rank ended, or cannot be reached: its own error says why, if it could write one ({error!s:.200})"
        ) from error
