"""Packed images inside other files: JPEG and PNG, opened by Pillow, which comes with Minari and imageio."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
"""The first bytes of every JPEG, of every PNG."""


def image_size(packed: bytes) -> tuple[int, ...]:
    """Shape (height, width, channels; grey: no channels) of a packed image, from its header; empty for other data."""
    return _shape(_open(packed)) if packed.startswith(MAGIC) else ()


def decode(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The image, uint8. Raises ValueError for one of another shape, before it takes memory."""
    image = _open(packed)
    if _shape(image) != shape:
        raise ValueError(f"an image has shape {_shape(image)}, the first one {shape}")
    return np.array(image, dtype=np.uint8)


def _open(packed: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(packed), formats=("JPEG", "PNG"))


def _shape(image: Any) -> tuple[int, ...]:
    bands = len(image.getbands())
    return (image.height, image.width, bands) if bands > 1 else (image.height, image.width)
