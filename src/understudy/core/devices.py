"""What the library must know of a device: where a number may be read, and how a processor treats denormals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def host_is_device(device: torch.device) -> bool:
    """Whether reading a number costs nothing here; on an accelerator it would wait for everything queued before it."""
    return device.type == "cpu"
