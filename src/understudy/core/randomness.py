"""Random streams: one generator per purpose, all saved and restored together."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def mix(seed: int, name: str) -> int:
    """A seed for a named stream: the same in every process and Python version (unlike `hash`)."""
    return (seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63


def env_seed(seed: int, iteration: int) -> int:
    """The seed that environments are reset with at an iteration boundary (fits 31 bits: NumPy's legacy seeds)."""
    return mix(seed, f"env/{iteration}") % 2**31


def generators(seed: int, names: tuple[str, ...], device: torch.device) -> dict[str, torch.Generator]:
    """One generator for each name."""
    return {name: torch.Generator(device=device).manual_seed(mix(seed, name)) for name in names}


def seed_everything(seed: int) -> None:
    """Seed the global streams of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (environments and user code still draw from it)
    torch.manual_seed(seed)


def state(own: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """All streams, own generators and the global ones, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "own": {name: generator.get_state() for name, generator in own.items()},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def restore(own: Mapping[str, torch.Generator], saved: Mapping[str, Any]) -> None:
    """Restore what `state` returned."""
    for name, generator in own.items():
        generator.set_state(saved["own"][name].cpu())
    torch.set_rng_state(saved["torch"].cpu())
    if torch.cuda.is_available() and saved["cuda"]:
        torch.cuda.set_rng_state_all([x.cpu() for x in saved["cuda"]])
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = saved["python"]
    random.setstate((version, tuple(internal), gauss_next))
