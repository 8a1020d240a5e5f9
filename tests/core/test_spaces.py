"""One space: size, dtype, bounds, blank; a Dict: components and keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.core import spaces as ours

BOX = spaces.Box(np.array([0.0, -1.0]), np.array([1.0, np.inf]), dtype=np.float64)
PIXELS = spaces.Box(0, 255, (4, 4, 3), np.uint8)
LETTERS = spaces.Discrete(3, start=5)
PAIRS: Any = spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [2, 3]]))
BITS = spaces.MultiBinary((2, 2))


@pytest.mark.parametrize(
    ("space", "kind", "dtype", "size", "first"),
    [
        (BOX, "box", torch.float32, 2, [0.0, 0.0]),
        (PIXELS, "box", torch.uint8, 48, np.zeros((4, 4, 3)).tolist()),
        (LETTERS, "discrete", torch.int64, 1, 5),
        (PAIRS, "multi_discrete", torch.int64, 4, [[0, 1], [2, 3]]),
        (BITS, "multi_binary", torch.int8, 4, [[0, 0], [0, 0]]),
        (spaces.MultiDiscrete([3, 2], dtype=np.uint16), "multi_discrete", torch.int32, 2, [0, 0]),
    ],
)
def test_one_space(space: spaces.Space[Any], kind: str, dtype: torch.dtype, size: int, first: Any) -> None:
    assert (ours.kind_of(space), ours.tensor_dtype(space), ours.size_of(space)) == (kind, dtype, size)
    blank = ours.blank(space, [2])
    assert blank.dtype == dtype
    assert blank.tolist() == [first, first]
    low, high = ours.bounds_of(space)
    assert low.shape == high.shape == space.shape
    assert ours.check_action_space(space) is space
    assert ours.same_values(space, space)


def test_bounds_and_classes() -> None:
    assert [side.tolist() for side in ours.bounds_of(BOX)] == [[0.0, -1.0], [1.0, np.inf]]
    assert [int(side) for side in ours.bounds_of(LETTERS)] == [5, 7]
    assert [side.tolist() for side in ours.bounds_of(PAIRS)] == [[[0, 1], [2, 3]], [[1, 3], [5, 7]]]
    assert [side.tolist() for side in ours.bounds_of(BITS)] == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    assert ours.classes_of(LETTERS) == ([3], [5])
    assert ours.classes_of(PAIRS) == ([2, 3, 4, 5], [0, 1, 2, 3])
    assert ours.classes_of(BOX) is ours.classes_of(BITS) is None


def test_what_a_box_is() -> None:
    assert [ours.is_vector(space) for space in (BOX, PIXELS, LETTERS, spaces.Box(0, 255, (3,), np.uint8))] == [
        *(True, False, False, False)
    ]
    assert [ours.is_real(space) for space in (BOX, PIXELS, BITS)] == [True, False, False]


def test_same_values() -> None:
    assert ours.same_values(BOX, spaces.Box(-9, 9, (2,)))  # bounds are looked at when actions come
    assert not ours.same_values(BOX, spaces.Box(-9, 9, (3,)))
    assert not ours.same_values(LETTERS, spaces.Discrete(3))
    assert ours.same_values(spaces.Discrete(3), spaces.Discrete(3, dtype=np.int32))
    assert not ours.same_values(spaces.Discrete(2), spaces.MultiDiscrete([2]))
    assert not ours.same_values(PAIRS, spaces.MultiDiscrete(PAIRS.nvec))


def test_spaces_without_tensors() -> None:
    for space in (spaces.Text(3), spaces.Tuple((BOX,)), spaces.Dict({"a": BOX})):
        with pytest.raises(ValueError, match="no action distribution covers a"):
            ours.check_action_space(space)
    assert ours.kind_of(spaces.Text(3)) is None


def test_components_and_keys() -> None:
    tree = spaces.Dict({"policy": spaces.Dict({"height": BOX, "speed": BOX}), "critic": PIXELS})
    assert ours.component_keys(tree) == (("critic",), ("policy", "height"), ("policy", "speed"))
    assert ours.component(tree, ("policy", "speed")) == BOX
    assert list(ours.find_components(tree, "policy")) == [("policy", "height"), ("policy", "speed")]
    assert list(ours.find_components(tree, "policy/speed")) == [("policy", "speed")]
    for name, message in (
        ("polcy", "observation group 'polcy' does not exist; did you mean policy"),
        ("policy/sped", "'sped' does not exist; did you mean speed"),
        ("critic/red", "'red' does not exist; none is known"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.find_components(tree, name)
    keys = [("critic",), ("policy", "height")]
    obs = ours.unflatten(keys, [torch.zeros(3, 1), torch.ones(3, 2)], [3])
    assert obs["policy", "height"].shape == (3, 2)
