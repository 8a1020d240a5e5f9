"""Where a number may be read: the one place that tells a processor from an accelerator."""

from __future__ import annotations

import torch


def host_is_device(device: torch.device) -> bool:
    """Whether reading a number costs nothing here; on an accelerator it would wait for everything queued before it."""
    return device.type == "cpu"
