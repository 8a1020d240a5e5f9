"""Read a flat feature vector from raw observations by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor

from understudy.core.spaces import Key, find_components, is_box, is_real, shape_of


class FeatureReader:
    """Concatenates named observation components, flattened to float, in the order of the names.

    A name is a group ("policy": all its components) or group/component. `matrices`: also `[H, D]`, H
    frames of features, flattened. Raises ValueError for images, discrete components, and unknown names (with the
    nearest one).
    """

    def __init__(self, space: spaces.Dict, names: Sequence[str], *, matrices: bool = False) -> None:
        if not names:
            raise ValueError("name at least one observation group or group/component")
        self.shapes: dict[Key, tuple[int, ...]] = {}
        for name in names:
            for key, component in find_components(space, name).items():
                if not is_box(component) or len(shape_of(component)) > (2 if matrices and is_real(component) else 1):
                    raise ValueError(f"{'/'.join(key)} is {component}, but only vectors can be features here")
                self.shapes[key] = shape_of(component)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        self.names = [name for key, shape in self.shapes.items() for name in _column_names("/".join(key), shape)]
        """A name for each column: `group[3]`, `group/component[0]`; without an index for a scalar."""

    def __call__(self, obs: TensorDictBase) -> Tensor:
        """`[..., size]` from observations `[...]`."""
        columns = []
        for key, shape in self.shapes.items():
            x = obs.get(key).float()
            columns.append(x.flatten(-2) if len(shape) > 1 else x if shape else x.unsqueeze(-1))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def _column_names(name: str, shape: tuple[int, ...]) -> list[str]:
    return [f"{name}[{i}]" for i in range(math.prod(shape))] if shape else [name]
