"""What is captured computes the same bits as the function it stands for, call after call, or refuses loudly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from understudy.core.capture import Batch, CaptureMode, unbind
from understudy.core.capture import capture as by_name
from understudy.core.lowering import _is_random
from understudy.nn.memory import Memory

Function = Callable[..., tuple[Tensor, ...]]


def capture(function: Function, mode: CaptureMode = "trace", out: Sequence[Tensor] = ()) -> Function:
    """`by_name` for functions of several tensors that return several: names are the places."""
    prepared = by_name(lambda batch: dict(enumerate(function(*batch.values()))), mode, out=dict(enumerate(out)))
    return lambda *args: tuple(prepared(dict(enumerate(args))).values())


def inputs(call: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(call)
    return [torch.randn(shape, generator=generator) for shape in shapes or ((4, 6),)]


def same_bits(function: Function, *shapes: tuple[int, ...], calls: int = 3) -> None:
    """Eager and traced results of several calls with different numbers, and the global random stream after them."""
    results, streams = [], []
    for mode in ("eager", "trace"):
        prepared = capture(function, mode)
        torch.manual_seed(7)
        results.append([[x.clone() for x in prepared(*inputs(call, *shapes))] for call in range(calls)])
        streams.append(torch.get_rng_state())
    for eager, traced in zip(*results):
        assert len(eager) == len(traced)
        for a, b in zip(eager, traced):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert torch.equal(a, b)
    assert torch.equal(*streams)


def gradient(function: Callable[..., Tensor]) -> Function:
    """The function's value and its gradients with respect to all arguments."""

    def with_gradient(*args: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in args]
        with torch.enable_grad():
            value = function(*leaves)
            return (value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))

    return with_gradient


# ---------------------------------------------------------------------- numbers


def views(x: Tensor) -> tuple[Tensor, ...]:
    a, b = x.split(3, dim=-1)
    c, d = x.chunk(2, dim=0)
    return (
        x.t() @ x, x[1], x[:, 2:4] * 2, x.view(-1)[::5], x.unsqueeze(0).expand(3, -1, -1) + 1,
        x.permute(1, 0).reshape(3, 8), a * b, c - d, torch.stack(x.unbind(0)[:2]), x.diagonal() * 3, x.flatten(),
        x.unfold(1, 2, 2).sum(-1),
    )  # fmt: skip


def literals(x: Tensor) -> tuple[Tensor, ...]:
    ones = torch.ones(4, 6)
    return (
        x * ones + torch.full_like(x, 0.5),
        torch.zeros(3),
        torch.arange(6) * 2,
        x + torch.tensor([1.0, 2.0, 3.0] * 2),
    )


def scalars(x: Tensor) -> tuple[Tensor, ...]:
    return (
        x * 0.1, x + 2, 3 - x, x / 3.0, x - 0.7, x.add(x, alpha=0.3), x**2, x**1, x**3, x.sub(1, alpha=2), 1.0 / x,
        x * True, x.double() * 0.1, x.long() * 2, x.sum() * 0.1, torch.rsub(x, 1.5, alpha=2),
    )  # fmt: skip


def dtypes(x: Tensor) -> tuple[Tensor, ...]:
    return x > 0, x.argmax(-1), (x > 0) & (x < 1), (x * 10).long() % 3, x.sort(-1).indices, ~(x > 0), x.bool().sum()


def several_results(x: Tensor) -> tuple[Tensor, ...]:
    top, where = x.topk(2)
    variance, mean = torch.var_mean(x, dim=0)
    return top, where, variance, mean, F.layer_norm(x, (6,)), x.cumsum(0), x.log_softmax(-1)


def random_numbers(x: Tensor) -> tuple[Tensor, ...]:
    torch.rand(3)  # drawn and dropped: the stream moves on all the same
    return x + torch.randn(4, 6), torch.rand_like(x), F.dropout(x, 0.5), torch.randint(5, (3,)), torch.randperm(4)


def two_draws_are_two(x: Tensor) -> tuple[Tensor, ...]:
    return torch.rand(3), torch.rand(3), x


def repeats(x: Tensor) -> tuple[Tensor, ...]:
    return (x.tanh() + x.tanh()) * (x * 2), x * 2, x * 2.0, x + 1, x + True


def integer_and_mask_indices(x: Tensor) -> tuple[Tensor, ...]:
    rows = torch.arange(3)
    filled = x.clone()
    filled[rows, rows] = 5.0
    masked = x.clone()
    masked[x > 0] = 1.0
    return x[rows], x[rows, rows + 1], filled, masked, x.gather(1, x.argmax(-1, keepdim=True))


@pytest.mark.parametrize(
    "function",
    [
        views,
        literals,
        scalars,
        dtypes,
        several_results,
        random_numbers,
        two_draws_are_two,
        repeats,
        integer_and_mask_indices,
    ],
)
def test_the_same_bits(function: Function) -> None:
    same_bits(function)


# ---------------------------------------------------------------------- in place


def constructor(x: Tensor) -> tuple[Tensor, ...]:
    out = torch.zeros_like(x)
    out.masked_fill_(x > 0, 1.0)
    return (out,)


def constructor_filled_twice(x: Tensor) -> tuple[Tensor, ...]:
    out = torch.zeros(4, 6)
    out.masked_fill_(x > 0, 1.0)
    out.add_(x).mul_(2.0)
    return out, torch.zeros(4, 6)


def seen_through_a_detached_alias(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    alias = y.detach()
    y.masked_fill_(x > 0, 1.0)
    return y, alias * 1


def diagonal(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    y[:, :4].diagonal().masked_fill_(x[:, 0] > 0, 9.0)
    return (y,)


def piece_of_a_split(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    left, _ = y.split(3, -1)
    left.masked_fill_(x[:, :3] > 0, 9.0)
    return (y,)


def chain_on_a_row(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    y[0].add_(1.0).masked_fill_(x[0] > 0, 9.0)
    return (y,)


def old_value_still_used(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    before = y + 1
    y.masked_fill_(x > 0, 0.0)
    return before, y + 1


def view_made_afterwards(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    y.add_(1.0)
    y.view(-1)[3].fill_(7.0)
    return (y,)


def narrower_dtype(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    y.add_(torch.ones(6, dtype=torch.float64) / 3)  # stays float32, where y + ... would not
    return (y,)


def shape_changed_in_place(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    alias = y.detach()
    y.unsqueeze_(0)
    return y, alias


@pytest.mark.parametrize(
    "function",
    [
        constructor,
        constructor_filled_twice,
        seen_through_a_detached_alias,
        diagonal,
        piece_of_a_split,
        chain_on_a_row,
        old_value_still_used,
        view_made_afterwards,
        narrower_dtype,
        shape_changed_in_place,
    ],
)
def test_in_place_operators_keep_their_meaning(function: Function) -> None:
    same_bits(function)


# ---------------------------------------------------------------------- autograd


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        square = x * x
        ctx.save_for_backward(x, square)
        return square * x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _, square = ctx.saved_tensors
        return grads[0] * 3.0 * square


def masks(x: Tensor) -> Tensor:
    y = torch.min(x * 2, x.sigmoid()).sum() + torch.where(x > 0, x, -x * x).mean() + x.clamp(-0.5, 0.5).sum()
    return y + x.amax(-1).sum() + F.relu(x).sum() + torch.maximum(x, x.tanh()).sum() + x.abs().max()


def saved_outputs(x: Tensor) -> Tensor:
    return (x.tanh() * x.exp() * x.sigmoid() * F.softplus(x) * x.softmax(-1)).sum()


def own_function(x: Tensor) -> Tensor:
    y: Tensor = Cube.apply(x)
    return (y * x).sum()


def checkpointed(x: Tensor) -> Tensor:
    y: Tensor = checkpoint(lambda z: (z.tanh() * z).exp(), x, use_reentrant=False)
    return y.sum()


def twice_differentiated(x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad((x.tanh() * x).sum(), x, create_graph=True)
    return (slope * slope).sum()


def partly_detached(x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = x.softmax(-1)
    return (weight * x + x.detach() * x * x).sum()


def interpolated(x: Tensor) -> Tensor:
    return torch.lerp(x.tanh(), x, x.sigmoid()).sum()


def integers_inside(x: Tensor) -> Tensor:
    chosen = x.argmax(-1, keepdim=True)
    return x.log_softmax(-1).gather(-1, chosen).sum() + (chosen == torch.arange(6)).mul(x).sum()


@pytest.mark.parametrize(
    "function",
    [
        masks,
        saved_outputs,
        own_function,
        checkpointed,
        twice_differentiated,
        partly_detached,
        interpolated,
        integers_inside,
    ],
)
def test_gradients_are_the_same_bits(function: Callable[[Tensor], Tensor]) -> None:
    same_bits(gradient(function))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_network_is_the_same_bits(kind: Any) -> None:
    torch.manual_seed(0)
    memory = Memory(kind, 6, 5, layers=2)

    def run(x: Tensor, state: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y, new = memory.sequence(x, state, first > 0.5)
            gradients = torch.autograd.grad((y * y).sum() + new.sum(), list(memory.parameters()))
        return (y.detach(), new.detach(), *gradients)

    same_bits(run, (7, 3, 6), (3, memory.state_size), (7, 3))


def test_a_parameter_used_twice_and_its_steps() -> None:
    torch.manual_seed(0)
    results = []
    for mode in ("eager", "trace"):
        weight = nn.Parameter(torch.linspace(-1, 1, 36).view(6, 6))

        def run(x: Tensor, weight: Tensor = weight) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                loss = ((x @ weight).tanh() @ weight.t() @ weight).sum()
            return loss.detach(), *torch.autograd.grad(loss, [weight])

        prepared, losses = capture(run, mode), []
        for call in range(4):
            loss, slope = prepared(*inputs(call))
            losses.append(loss.item())
            with torch.no_grad():
                weight.sub_(0.1 * slope)
        results.append((losses, weight.detach().clone()))
    assert results[0][0] == results[1][0]
    assert len(set(results[0][0])) == 4
    assert torch.equal(results[0][1], results[1][1])


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_results_come_back_under_their_names(mode: CaptureMode) -> None:
    total, batch = torch.zeros(()), {"x": torch.arange(3.0), ("obs", "y"): torch.ones(3)}

    def run(batch: Batch) -> dict[Any, Tensor]:
        both = batch["x"] + 2 * batch["obs", "y"]
        return {"both": both, "total": both.sum(), ("a", "b"): batch["x"] - 1}

    prepared = by_name(run, mode, out={"total": total})
    for scale in (1.0, 2.0):
        found = prepared({name: scale * x for name, x in batch.items()})
        assert list(found) == ["both", ("a", "b")]
        assert found["both"].tolist() == [scale * 2.0, scale * 3.0, scale * 4.0]
        assert found["a", "b"].tolist() == [-1.0, scale - 1.0, 2 * scale - 1.0]
        assert total == scale * 9.0


def test_every_set_of_names_has_its_own_program() -> None:
    recorded = []

    def run(batch: Batch) -> dict[Any, Tensor]:
        recorded.append(list(batch))
        return {
            "y": batch["x"] * batch["mask"] if "mask" in batch else batch["x"],
            **({"n": batch["mask"].sum()} if "mask" in batch else {}),
        }

    prepared, x, mask = by_name(run), torch.arange(3.0), torch.tensor([1.0, 0.0, 1.0])
    for _ in range(2):
        assert prepared({"x": x})["y"].tolist() == [0.0, 1.0, 2.0]
        masked = prepared({"x": x, "mask": mask})
        assert (masked["y"].tolist(), masked["n"].item()) == ([0.0, 0.0, 2.0], 2.0)
        assert prepared({"mask": mask, "x": x})["y"].tolist() == [0.0, 0.0, 2.0]  # another order: not mixed up
    assert recorded == [["x"], ["x", "mask"], ["mask", "x"]]  # each once


def test_a_stack_of_batches_comes_apart() -> None:
    first, second = unbind({"x": torch.tensor([[1, 2], [3, 4]]), ("obs", "y"): torch.tensor([5, 6])})
    assert first["x"].tolist() == [1, 2]
    assert list(second) == ["x", ("obs", "y")]
    assert second["obs", "y"] == 6


# ---------------------------------------------------------------------- constants, shapes, results


def test_constants_that_change_in_place_are_seen() -> None:
    coefficient, table = torch.tensor(2.0), torch.arange(6.0)
    prepared = capture(lambda x: (x * coefficient + table[2:4].sum(),))
    (x,) = inputs(0)
    assert torch.equal(prepared(x)[0], x * 2.0 + 5.0)
    coefficient.fill_(3.0)
    table.add_(1.0)
    assert torch.equal(prepared(x)[0], x * 3.0 + 7.0)


def test_literals_made_inside_do_not_change() -> None:
    prepared = capture(lambda x: (x + torch.tensor(2.0), torch.zeros(3)))
    (x,) = inputs(0)
    for _ in range(2):
        total, zeros = prepared(x)
        assert torch.equal(total, x + 2.0)
        assert torch.equal(zeros, torch.zeros(3))
        with torch.inference_mode():
            zeros += 1.0  # the caller's own


def test_a_buffer_that_is_returned_is_the_live_one() -> None:
    buffer = torch.zeros(3)
    prepared = capture(lambda x: (x * 2, buffer))
    buffer_out = prepared(*inputs(0))[1]
    assert torch.equal(buffer_out, torch.zeros(3))
    buffer.fill_(4.0)
    assert torch.equal(prepared(*inputs(0))[1], torch.full((3,), 4.0))


def test_every_shape_has_its_own_program() -> None:
    recorded = []

    def run(x: Tensor) -> tuple[Tensor, ...]:
        recorded.append(tuple(x.shape))
        return x.sum(0) / x.shape[0], x.view(-1)

    prepared = capture(run)
    for _ in range(2):
        for shape in ((4, 6), (2, 6), (1, 1), (0, 3)):
            (x,) = inputs(1, shape)
            mean, flat = prepared(x)
            torch.testing.assert_close(mean, x.sum(0) / shape[0], equal_nan=True)
            assert torch.equal(flat, x.flatten())
    assert recorded == [(4, 6), (2, 6), (1, 1), (0, 3)]  # each once


def test_non_contiguous_inputs() -> None:
    """Recorded with a transposed input it runs with both; recorded with a dense one, a view of it is refused loudly."""
    (x,) = inputs(0, (6, 4))
    dense, transposed = x.t().contiguous(), x.t()
    general = capture(lambda x: (x.reshape(-1) * 2,))
    assert torch.equal(general(transposed)[0], dense.flatten() * 2)
    assert torch.equal(general(dense)[0], dense.flatten() * 2)
    quick = capture(lambda x: (x.reshape(-1) * 2, x @ x.t(), x.sum(0)))
    assert torch.equal(quick(dense)[1], dense @ dense.t())
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        quick(transposed)
    without_views = capture(lambda x: (x @ x.t(), x.sum(0), x.exp()))
    without_views(dense)
    for a, b in zip(without_views(transposed), (dense @ dense.t(), dense.sum(0), dense.exp())):
        torch.testing.assert_close(a, b)


def test_the_first_results_are_written_where_asked() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 5), nn.Linear(5, 1)
    shared = nn.Parameter(torch.ones(6))
    targets = [*first.parameters(), *second.parameters(), shared]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = (second(first(x * shared).tanh()) * 2).mean() + shared.sum()
            gradients = torch.autograd.grad(loss, targets)
        return *gradients, loss.detach(), gradients[0]  # one of them twice

    expected = [run(*inputs(call)) for call in range(3)]
    for mode in ("eager", "trace"):
        out = [torch.full_like(p, torch.nan) for p in targets]
        addresses = [x.data_ptr() for x in out]
        prepared = capture(run, mode, out)
        for call in range(3):
            rest = prepared(*inputs(call))
            assert len(rest) == 2
            for a, b in zip((*out, *rest), expected[call]):
                assert torch.equal(a, b)
        assert [x.data_ptr() for x in out] == addresses


def test_one_result_in_two_places() -> None:
    targets = [torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 6)]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        product = x @ x.t()
        return product, product, x, product + 1, product

    prepared = capture(run, "trace", targets)
    for call in range(2):
        (x,) = inputs(call)
        rest = prepared(x)
        for a, b in zip((*targets, *rest), run(x)):
            assert torch.equal(a, b)


def test_results_carry_no_graph() -> None:
    weight = nn.Parameter(torch.ones(6))
    for mode in ("eager", "trace"):
        with torch.enable_grad():
            (y,) = capture(lambda x: (x * weight,), mode)(*inputs(0))
        assert not y.requires_grad


# ---------------------------------------------------------------------- refusals


def reads_item(x: Tensor) -> tuple[Tensor, ...]:
    return (x * x.sum().item(),)


def reads_float(x: Tensor) -> tuple[Tensor, ...]:
    return (x * float(x[0, 0]),)


def branches(x: Tensor) -> tuple[Tensor, ...]:
    return (x if x.sum() > 0 else -x,)


def counts(x: Tensor) -> tuple[Tensor, ...]:
    return (x[(x > 0).any(-1).nonzero().squeeze(-1)],)


def selects_by_mask(x: Tensor) -> tuple[Tensor, ...]:
    return (x[x > 0].sum(),)


def compares(x: Tensor) -> tuple[Tensor, ...]:
    return (x if torch.equal(x, x * 2) else -x,)


def checks_classes(x: Tensor) -> tuple[Tensor, ...]:
    return (F.one_hot(x.argmax(-1), 6) * x,)  # looks for negative classes


def lists(x: Tensor) -> tuple[Tensor, ...]:
    return (x * x.tolist()[0][0],)


def goes_to_numpy(x: Tensor) -> tuple[Tensor, ...]:
    return (x * float(x.numpy().mean()),)


@pytest.mark.parametrize(
    "function",
    [reads_item, reads_float, branches, counts, selects_by_mask, compares, checks_classes, lists, goes_to_numpy],
)
def test_reading_a_number_is_refused(function: Function) -> None:
    with pytest.raises(ValueError, match="keep it on the device as a 0-D tensor"):
        capture(function)(*inputs(0))
    assert (torch.ones(2) > 0).all().item()  # nothing of the recording is left behind


def test_an_own_generator_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        capture(lambda x: (x + torch.randn(4, 6, generator=generator),))(*inputs(0))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="capture must be one of eager, trace, compile, cudagraph"):
        capture(lambda x: (x,), "fast")  # type: ignore[arg-type]


def test_an_error_inside_comes_out_and_leaves_nothing_behind() -> None:
    state = torch.get_rng_state()

    def fails(x: Tensor) -> tuple[Tensor, ...]:
        torch.rand(3)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        capture(fails)(*inputs(0))
    assert torch.equal(torch.get_rng_state(), state)
    same_bits(gradient(masks))


def test_random_operators_are_recognised() -> None:
    """Two equal random calls are not one: the tag that says so exists in this version of torch."""
    graph = torch.fx.Graph()
    assert _is_random(graph.call_function(torch.ops.aten.rand.default, ([3],)))
    assert not _is_random(graph.call_function(torch.ops.aten.zeros.default, ([3],)))


# ---------------------------------------------------------------------- other modes


@pytest.mark.slow
def test_compile_computes_the_same() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    out = [torch.zeros(3, 6), torch.zeros(3)]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = layer(x).tanh().square().mean()
            return *torch.autograd.grad(loss, list(layer.parameters())), loss.detach()

    prepared = capture(run, "compile", out)
    for call in range(2):
        (loss,) = prepared(*inputs(call))
        for a, b in zip((*out, loss), run(*inputs(call))):
            torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph_computes_the_same() -> None:
    torch.manual_seed(0)
    layer, coefficient = nn.Linear(6, 3).cuda(), torch.tensor(1.0, device="cuda")

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = layer(x).tanh().square().mean() * coefficient
            return *torch.autograd.grad(loss, list(layer.parameters())), loss.detach()

    prepared = capture(run, "cudagraph")
    for call in range(3):
        coefficient.fill_(float(call))
        x = inputs(call)[0].cuda()
        for a, b in zip(prepared(x), run(x)):
            torch.testing.assert_close(a, b)
