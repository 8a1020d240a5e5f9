"""What the library must know of a device: its memory, where a number may be read, how denormals are treated."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_TINY = 1e-310
"""A denormal: 0 as soon as it is used in this thread's arithmetic, if denormals are flushed."""


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Within it CPU arithmetic of this thread, and of threads it starts, rounds denormals (below 1.2e-38) to zero.

    A policy grown sure of itself has probabilities, and thus gradients, of that size, and on the CPU a product of
    such numbers takes more than ten times as long: cloning an expert through a memory trained at a third of its
    speed. Also a decorator. Worker threads of torch that were started within keep the setting.
    """
    already = _TINY * 2.0 == 0.0
    supported = torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if supported and not already:
            torch.set_flush_denormal(False)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory_of(device: torch.device) -> float:
    """Bytes that a device has for this process, taken or not; infinite where that cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    limits = [math.inf]
    try:
        import resource  # not on every system

        limits.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        limits += [x for x in resource.getrlimit(resource.RLIMIT_AS) if x != resource.RLIM_INFINITY]
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (ImportError, OSError, ValueError):  # of a container without a limit: "max"
        pass
    return min(limits)


def check_memory(size: float, what: str, remedy: str, device: torch.device | None = None) -> None:
    """Raise ValueError that says what to reduce if `size` bytes exceed the memory of a device (the CPU's if None)."""
    device = device or torch.device("cpu")
    available = memory_of(device)
    if size > available:
        raise ValueError(
            f"{what} would take {size / 2**30:,.1f} GiB of the {available / 2**30:,.1f} GiB that {device} has: "
            f"reduce {remedy}"
        )


@contextmanager
def allocating(remedy: str) -> Iterator[None]:
    """Turn a failure to allocate memory into a ValueError that says what to reduce."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and "allocate" not in said:
            raise
        raise ValueError(f"memory is short ({said[:200]}): reduce {remedy}") from error


def host_is_device(device: torch.device) -> bool:
    """Whether reading a number costs nothing here; on an accelerator it would wait for everything queued before it."""
    return device.type == "cpu"
