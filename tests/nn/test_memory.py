"""Memories against torch's own, with and without restarts; forward and backward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.core.capture import capture
from understudy.nn import fused_lstm
from understudy.nn.memory import Changes, Memory
from understudy.nn.protocol import PolicyConfig

T, B, F, H = 6, 4, 5, 3


def _pair(kind: Any, layers: int) -> tuple[Memory, nn.LSTM | nn.GRU]:
    torch.manual_seed(0)
    ours = Memory(kind, F, H, layers).double()
    theirs = (nn.LSTM if kind == "lstm" else nn.GRU)(F, H, layers).double()
    theirs.load_state_dict(ours.state_dict())  # same names and shapes
    return ours, theirs


def _unpack(kind: str, layers: int, state: Tensor) -> Any:
    parts = state.view(len(state), -1, layers, H).permute(1, 2, 0, 3).contiguous()  # [h or c, L, B, H]
    return (parts[0], parts[1]) if kind == "lstm" else parts[0]


def _packed(final: Any) -> Tensor:
    parts = final if isinstance(final, tuple) else (final,)
    return torch.cat([layer for part in parts for layer in part], dim=-1)


KINDS = [("lstm", 1), ("lstm", 2), ("gru", 1), ("gru", 3)]


def _random_state(memory: Memory, batch: int = B) -> Tensor:
    return torch.randn(batch, memory.state_size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _inputs() -> Tensor:
    return torch.randn(T, B, F, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_memory_equals_torch_without_resets(kind: str, layers: int) -> None:
    ours, theirs = _pair(kind, layers)
    state, x = _random_state(ours).requires_grad_(), _inputs()
    y, final = ours.sequence(x, state, torch.zeros(T, B, dtype=torch.bool))
    expected, last = theirs(x, _unpack(kind, layers, state))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(final, _packed(last), rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(y.sin().sum() + final.cos().sum(), (state, *ours.parameters()))
    wanted = torch.autograd.grad(expected.sin().sum() + _packed(last).cos().sum(), (state, *theirs.parameters()))
    names = dict(theirs.named_parameters())
    ordered = [wanted[0], *(wanted[1 + list(names).index(name)] for name, _ in ours.named_parameters())]
    for got, want in zip(gradients, ordered):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_memory_with_resets_equals_one_run_per_episode(kind: str, layers: int) -> None:
    ours, theirs = _pair(kind, layers)
    state, x = _random_state(ours), _inputs()
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0, 1] = is_first[3, 1] = is_first[2, 2] = is_first[5, 3] = is_first[4, 3] = True
    y, final = ours.sequence(x, state, is_first)
    for b in range(B):
        starts = sorted({0, *is_first[:, b].nonzero().flatten().tolist()})
        for start, stop in zip(starts, [*starts[1:], T]):
            initial = torch.zeros_like(state[:1]) if is_first[start, b] else state[b : b + 1]
            expected, last = theirs(x[start:stop, b : b + 1], _unpack(kind, layers, initial))
            torch.testing.assert_close(y[start:stop, b : b + 1], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(final[b : b + 1], _packed(last), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_gradients_with_resets_are_those_of_autograd_through_single_steps(kind: str, layers: int) -> None:
    ours, _ = _pair(kind, layers)
    is_first = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3
    x, state = _inputs().requires_grad_(), _random_state(ours).requires_grad_()
    y, final = ours.sequence(x, state, is_first)
    carried, outputs = state, []
    for t in range(T):
        out, carried = ours.step(x[t], carried, is_first[t])
        outputs.append(out)
    sources = (x, state, *ours.parameters())
    got = torch.autograd.grad(y.sin().sum() + final.cos().sum(), sources)
    wanted = torch.autograd.grad(torch.stack(outputs).sin().sum() + carried.cos().sum(), sources)
    for ours_, theirs in zip(got, wanted):
        torch.testing.assert_close(ours_, theirs, rtol=1e-9, atol=1e-12)
    (unused_final,) = torch.autograd.grad(
        ours.sequence(x, state, is_first)[0].sum(), x
    )  # the final state not asked for
    assert unused_final.isfinite().all()


@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_steps_equal_the_sequence(kind: str, layers: int) -> None:
    ours, _ = _pair(kind, layers)
    x, is_first = _inputs(), torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3
    state = _random_state(ours)
    y, final = ours.sequence(x, state, is_first)
    for t in range(T):
        step, state = ours.step(x[t], state, is_first[t])
        torch.testing.assert_close(step, y[t], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state, final, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_reset_cuts_gradients_and_kills_nan(kind: Any) -> None:
    memory = Memory(kind, F, H)
    state = torch.full((B, memory.state_size), float("nan"), requires_grad=True)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0] = True
    y, final = memory.sequence(_inputs().float(), state, is_first)
    assert y.isfinite().all()
    assert final.isfinite().all()
    (gradient,) = torch.autograd.grad(y.sum(), state)
    assert gradient.abs().max() == 0.0
    y, _ = memory.step(_inputs()[0].float(), state, is_first[0])
    assert y.isfinite().all()


@pytest.mark.parametrize(("kind", "layers", "size"), [("lstm", 2, 4 * H), ("gru", 2, 2 * H), ("lstm", 1, 2 * H)])
def test_memory_sizes(kind: Any, layers: int, size: int) -> None:
    memory = Memory(kind, F, H, layers)
    assert memory.state_size == size
    assert memory.out_features == H
    bound = 1.0 / math.sqrt(H)
    assert all(0.5 * bound < p.abs().max() <= bound for p in memory.parameters())
    y, state = memory.step(torch.zeros(1, F), torch.zeros(1, size), torch.zeros(1, dtype=torch.bool))
    assert (y.shape, state.shape) == ((1, H), (1, size))


def test_memory_refuses_what_does_not_fit() -> None:
    memory = Memory("gru", F, H)
    state, is_first = torch.zeros(B, memory.state_size), torch.zeros(B, dtype=torch.bool)
    with pytest.raises(ValueError, match="disagree"):
        memory.step(torch.zeros(B, F), state, is_first.unsqueeze(-1))
    with pytest.raises(ValueError, match="disagree"):
        memory.step(torch.zeros(B, F), state[:1], is_first)
    with pytest.raises(ValueError, match="disagree"):
        memory.sequence(torch.zeros(T, B, F), state, is_first)
    with pytest.raises(ValueError, match="memory_size must be at least 1"):
        PolicyConfig(memory="gru", memory_size=0)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_memory_traces(kind: Any) -> None:
    memory = Memory(kind, F, H)
    x, is_first = _inputs().float(), torch.rand(T, B) < 0.3
    state = torch.randn(B, memory.state_size)

    def f(x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, ...]:
        y, final = memory.sequence(x, state, is_first)
        return y, final, *torch.autograd.grad(y.sum() + final.sum(), tuple(memory.parameters()))

    graph = make_fx(f)(x, state, is_first)
    other = (x.flip(0), state.flip(0), ~is_first)
    for got, expected in zip(graph(*other), f(*other)):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)


def test_changes_by_hand() -> None:
    changes = Changes(2, gain=10.0)
    x = torch.tensor([[[1.0, 2.0], [5.0, 5.0]], [[1.5, 2.0], [6.0, 4.0]], [[1.0, 1.0], [6.0, 4.5]]]).double()
    state = torch.tensor([[0.5, 4.0, 1.0], [9.0, 9.0, 0.0]]).double()  # the second row has not seen anything
    is_first = torch.tensor([[False, False], [False, False], [True, False]])
    out, new_state = changes(x, state, is_first)
    expected = torch.tensor([[[5.0, -20.0], [0.0, 0.0]], [[5.0, 0.0], [10.0, -10.0]], [[0.0, 0.0], [0.0, 5.0]]])
    assert torch.equal(out, torch.cat((x, expected.double()), dim=-1))
    assert new_state.tolist() == [[1.0, 1.0, 1.0], [6.0, 4.5, 1.0]]
    for t in range(3):
        stepped, state = changes(x[t], state, is_first[t])
        assert torch.equal(stepped, out[t])
    assert torch.equal(state, new_state)


def test_a_change_from_what_was_not_finite_ends_with_the_episode() -> None:
    out, state = Changes(1, gain=1.0)(torch.ones(1, 1), torch.tensor([[math.nan, 1.0]]), torch.tensor([True]))
    assert (out.tolist(), state.tolist()) == ([[1.0, 0.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match="memory_changes must be at least 0"):
        PolicyConfig(memory_changes=-1.0)


@pytest.mark.skipif(not fused_lstm.worthwhile(torch.zeros(1, 1, 1)), reason="oneDNN's kernel is for x86")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_onednn_gives_the_loops_numbers(layers: int, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 sequences of few rows run through `fused_lstm`: outputs, states and gradients, cut at every start."""
    torch.manual_seed(0)
    memory = Memory("lstm", F, H, layers)
    sources = {"x": torch.randn(T, B, F), "state": torch.randn(B, memory.state_size)}
    sources["state"][1] = torch.nan  # before an episode's start
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0, 1] = is_first[3, 0] = is_first[3, 2] = is_first[T - 1, 1] = True
    used: list[int] = []
    kernel = fused_lstm.fused_lstm

    def counted(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        used.append(1)
        return kernel(*inputs)

    monkeypatch.setattr("understudy.nn.memory.fused_lstm", counted)

    def run(batch: Any) -> dict[str, Tensor]:
        x, state = batch["x"].requires_grad_(), batch["state"].requires_grad_()
        y, final = memory.sequence(x, state, batch["is_first"])
        loss = (y * torch.arange(float(H))).square().sum() + final.sin().sum()
        found = torch.autograd.grad(loss, (x, state, *memory.parameters()))
        return {"y": y, "final": final, **{f"d{i}": d for i, d in enumerate(found)}}

    def results() -> dict[str, Tensor]:
        batch = {name: value.clone() for name, value in (sources | {"is_first": is_first}).items()}
        function = capture(run, mode)
        function(batch)
        return {name: value.clone() for name, value in function(batch).items()}

    ours = results()
    assert used
    monkeypatch.setattr("understudy.nn.memory.worthwhile", lambda x: False)
    loop = results()
    assert ours["y"].isfinite().all()
    for name, expected in loop.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
