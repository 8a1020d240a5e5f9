"""ActionMap: hand-computed values, inverse, identities, tracing, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.envs import ActionMap

# low (-2, 0), high (2, 3): half-width (2, 1.5), centre (0, 1.5)
UNEVEN = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 3.0], np.float32))
RAW = torch.tensor([[0.5, 0.5], [-3.0, 2.0], [1.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("scaling", "bound", "expected"),
    [
        (True, "clip", [[1.0, 2.25], [-2.0, 3.0], [2.0, 0.0]]),
        ("auto", "clip", [[1.0, 2.25], [-2.0, 3.0], [2.0, 0.0]]),
        (False, "clip", [[0.5, 0.5], [-2.0, 2.0], [1.0, 0.0]]),  # to the space's own bounds
        (True, None, [[1.0, 2.25], [-6.0, 4.5], [2.0, 0.0]]),
        (False, None, [[0.5, 0.5], [-3.0, 2.0], [1.0, -1.0]]),
        # tanh: .5 -> .46211716, -3 -> -.99505475, 2 -> .96402758, 1 -> .76159416
        (True, "tanh", [[0.92423431, 2.19317574], [-1.99010951, 2.94604137], [1.52318831, 0.35760877]]),
        (False, "tanh", [[0.46211716, 0.46211716], [-0.99505475, 0.96402758], [0.76159416, 0.0]]),
    ],
)
def test_box_by_hand(scaling: Any, bound: Any, expected: list[list[float]]) -> None:
    executed = ActionMap(UNEVEN, scaling, bound).double()(RAW)
    torch.testing.assert_close(executed, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_even_bounds_by_hand() -> None:
    humanoid = ActionMap(spaces.Box(-0.4, 0.4, (2,), np.float32))
    torch.testing.assert_close(humanoid(torch.tensor([0.5, -7.0])), torch.tensor([0.2, -0.4]))
    unit = ActionMap(spaces.Box(0.0, 1.0, (2,), np.float32))
    torch.testing.assert_close(unit(torch.tensor([0.5, -7.0])), torch.tensor([0.75, 0.0]))


def test_infinite_bounds() -> None:
    half = spaces.Box(np.array([-1.0, -np.inf], np.float32), np.array([np.inf, np.inf], np.float32))
    raw = torch.tensor([-5.0, -5.0])
    assert ActionMap(half)(raw).tolist() == [-1.0, -5.0]
    free = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert ActionMap(free)(raw) is raw
    torch.testing.assert_close(ActionMap(free, bound="tanh")(raw), torch.full((2,), -0.99990920))
    with pytest.raises(ValueError, match=r"scaling needs finite bounds.*scaling=False"):
        ActionMap(half, scaling=True)


@pytest.mark.parametrize("bound", ["clip", "tanh"])
def test_executed_actions_never_leave_the_space_by_rounding(bound: Any) -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=2000)
    dtype: Any
    for dtype in (np.float32, np.float64):
        space = spaces.Box(low.astype(dtype), (low + rng.uniform(0.01, 3, 2000)).astype(dtype), dtype=dtype)
        executed = ActionMap(space, bound=bound)(torch.tensor([-50.0, 50.0]).unsqueeze(-1).expand(2, 2000))
        assert (executed.double().numpy() >= space.low).all()
        assert (executed.double().numpy() <= space.high).all()
        torch.testing.assert_close(executed[1].double(), torch.as_tensor(space.high).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaling", [True, False])
@pytest.mark.parametrize("bound", ["clip", "tanh", None])
def test_inverse_undoes_what_can_be_undone(scaling: bool, bound: Any) -> None:
    action_map = ActionMap(UNEVEN, scaling, bound).double()
    raw = torch.tensor([[0.5, 0.25], [-0.75, 0.999], [0.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(action_map.inverse(action_map(raw)), raw, rtol=1e-6, atol=1e-9)


def test_inverse_at_the_edges() -> None:
    tanh = ActionMap(UNEVEN, bound="tanh").double()
    # atanh(1 - 1e-6) = 0.5 ln((2 - 1e-6) / 1e-6) = 7.2543286
    edge = torch.tensor([7.2543286, -7.2543286], dtype=torch.float64)
    torch.testing.assert_close(tanh.inverse(torch.tensor([2.0, 0.0], dtype=torch.float64)), edge, rtol=1e-6, atol=0)
    assert ActionMap(UNEVEN).inverse(torch.tensor([2.0, 0.0])).tolist() == [1.0, -1.0]
    fixed = spaces.Box(np.array([0.0, 2.0], np.float32), np.array([1.0, 2.0], np.float32))
    assert ActionMap(fixed)(torch.tensor([1.0, 0.3])).tolist() == [1.0, 2.0]
    assert ActionMap(fixed).inverse(torch.tensor([1.0, 2.0])).tolist() == [1.0, 0.0]


def test_box_of_any_shape_and_leading_dimensions() -> None:
    matrix = ActionMap(spaces.Box(-2, 2, (2, 2), np.float32))
    raw = torch.tensor([0.5, 1.0, -1.0, 9.0]).expand(3, 5, 4)
    executed = matrix(raw)
    assert executed.shape == (3, 5, 2, 2)
    assert executed[1, 1].tolist() == [[1.0, 2.0], [-2.0, 2.0]]
    assert matrix.inverse(executed).shape == (3, 5, 4)
    scalar = ActionMap(spaces.Box(-2, 2, (), np.float32))
    assert scalar(torch.tensor([[0.5], [1.0]])).tolist() == [1.0, 2.0]
    assert scalar.inverse(torch.tensor([1.0, 2.0])).tolist() == [[0.5], [1.0]]


def test_integer_box_is_rounded() -> None:
    pixels = ActionMap(spaces.Box(0, 255, (2,), np.uint8))
    assert pixels(torch.tensor([0.0, 0.9])).tolist() == [128.0, 242.0]  # 127.5 (to even), 242.25


def test_discrete_spaces_add_their_start() -> None:
    raw = torch.tensor([0, 2])
    assert ActionMap(spaces.Discrete(3))(raw) is raw
    shifted = ActionMap(spaces.Discrete(3, start=-1))
    assert shifted(raw).tolist() == [-1, 1]
    assert shifted(raw).dtype == torch.int64
    assert shifted.inverse(shifted(raw)).tolist() == [0, 2]
    multi = ActionMap(spaces.MultiDiscrete([3, 4], start=[1, 10]))
    assert multi(torch.tensor([[0, 3]])).tolist() == [[1, 13]]
    assert multi.inverse(torch.tensor([[1, 13]])).tolist() == [[0, 3]]
    assert ActionMap(spaces.MultiDiscrete([3, 4]))(raw) is raw
    bits = torch.tensor([[1, 0, 1]])
    assert ActionMap(spaces.MultiBinary(3))(bits) is bits


@pytest.mark.parametrize("bound", ["clip", "tanh", None])
def test_captures_as_few_pure_operations(bound: Any) -> None:
    counts = {}
    for name, space in {"unit": spaces.Box(-1, 1, (2,), np.float32), "uneven": UNEVEN}.items():
        action_map = ActionMap(space, bound=bound)
        raw = torch.randn(4, 2)
        graph = make_fx(action_map)(raw)
        torch.testing.assert_close(graph(raw), action_map(raw))
        counts[name] = sum(node.op == "call_function" for node in graph.graph.nodes)
    assert (
        counts
        == {"clip": {"unit": 1, "uneven": 2}, "tanh": {"unit": 1, "uneven": 2}, None: {"unit": 0, "uneven": 1}}[bound]
    )


def test_nan_passes_and_bad_options_are_refused() -> None:
    assert ActionMap(UNEVEN)(torch.tensor([np.nan, 0.0])).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="action_bound must be one of clip, tanh"):
        ActionMap(UNEVEN, bound="squash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be true or false or be one of auto"):
        ActionMap(UNEVEN, scaling="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no action distribution covers a Dict"):
        ActionMap(spaces.Dict({"a": UNEVEN}))


@pytest.mark.parametrize("bound", ["tanh", "unit", "clip"])
@pytest.mark.parametrize(("low", "high"), [(2, 5), (0, np.inf), (-np.inf, -3), (0, 3.4e38), (-0.5, 0.5)])
def test_bounded_actions_stay_in_a_space_that_is_not_scaled(bound: Any, low: float, high: float) -> None:
    space = spaces.Box(low, high, (3,), np.float32)
    executed = ActionMap(space, False, bound)(torch.tensor([-1.0, 0.0, 1.0]))
    assert all(row.numpy() in space for row in executed.expand(1, 3))


def test_the_largest_numbers_are_no_bounds(caplog: pytest.LogCaptureFixture) -> None:
    raw, largest = torch.tensor([0.1, -3.0]), float(np.finfo(np.float32).max)
    assert torch.equal(ActionMap(spaces.Box(-largest, largest, (2,), np.float32))(raw), raw)
    assert "taken for no bounds" in caplog.text
    with pytest.raises(ValueError, match="action scaling needs finite bounds"):
        ActionMap(spaces.Box(-largest, largest, (2,), np.float32), scaling=True)
