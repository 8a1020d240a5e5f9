"""Normalisers against numpy on the concatenated data; masks; frozen in forward; equal on every rank."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fresh import Fresh
from torch import Tensor, distributed
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.nn.normalization import ObservationNormalizer, RunningMeanStd


def _batches(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale, offset = torch.tensor([1.0, 100.0, 0.01]), torch.tensor([0.0, 5000.0, -3.0])
    shapes = [(7, 4, 3), (1, 1, 3), (50, 2, 3)]
    return [(torch.randn(*shape, generator=generator) * scale + offset).to(dtype) for shape in shapes]


def _concatenated(batches: list[Tensor]) -> np.ndarray:
    return np.concatenate([b.double().numpy().reshape(-1, b.shape[-1]) for b in batches])


def test_statistics_equal_numpy_on_all_data() -> None:
    normalizer, batches = ObservationNormalizer(3), _batches()
    for batch in batches:
        normalizer.update(batch)
    data = _concatenated(batches)
    np.testing.assert_allclose(normalizer.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.var, data.var(0), rtol=1e-12)
    assert normalizer.count.item() == len(data) == 7 * 4 + 1 + 50 * 2
    x = batches[0]
    expected = (x.double().numpy() - data.mean(0)) / np.sqrt(data.var(0) + 1e-8)
    np.testing.assert_allclose(normalizer(x), expected, atol=2e-4)


def test_hand_computed() -> None:
    normalizer = ObservationNormalizer(1, clip=1.5, eps=1e-12)
    normalizer.update(torch.tensor([[1.0], [3.0]]))  # mean 2, variance 1
    normalizer.update(torch.tensor([[5.0], [7.0]]))  # of 1 3 5 7: mean 4, variance 5
    assert normalizer.mean.item() == 4.0
    assert normalizer.var.item() == pytest.approx(5.0, rel=1e-15)
    assert normalizer(torch.tensor([[5.0]])).item() == pytest.approx(1.0 / 5.0**0.5, rel=1e-6)
    assert normalizer(torch.tensor([[90.0], [-90.0]])).tolist() == [[1.5], [-1.5]]


def test_identity_before_the_first_update() -> None:
    normalizer = ObservationNormalizer(3, eps=0.5)
    x = torch.tensor([[1.0, -2.5, 9.0]])
    assert torch.equal(normalizer(x), x)
    normalizer.update(x.expand(4, 3), valid=torch.zeros(4, dtype=torch.bool))  # nothing valid: still nothing seen
    assert torch.equal(normalizer(x), x)
    assert normalizer.count.item() == 0.0
    assert normalizer.var.tolist() == [1.0, 1.0, 1.0]


def test_first_update_forgets_the_initial_values() -> None:
    normalizer = ObservationNormalizer(2)
    normalizer.update(torch.tensor([[4.0, 2.0]]))
    assert normalizer.mean.tolist() == [4.0, 2.0]
    assert normalizer.var.tolist() == [0.0, 0.0]
    assert normalizer(torch.tensor([[4.0, 2.0]])).abs().max() < 1e-3  # a constant feature becomes zero, not NaN


def test_forward_never_moves_the_statistics() -> None:
    normalizer = ObservationNormalizer(3).train()
    normalizer.update(_batches()[0])
    before = {name: x.clone() for name, x in normalizer.state_dict().items()}
    normalizer(_batches()[2])
    assert all(torch.equal(before[name], x) for name, x in normalizer.state_dict().items())
    assert set(before) == {"mean", "var", "count", "shift", "scale"}


def test_invalid_rows_are_left_out_even_if_they_are_nan() -> None:
    masked, clean = ObservationNormalizer(3), ObservationNormalizer(3)
    generator = torch.Generator().manual_seed(1)
    for batch in _batches():
        valid = torch.rand(batch.shape[:-1], generator=generator) > 0.3
        dirty = batch.clone()
        dirty[~valid] = float("nan")
        masked.update(dirty, valid)
        clean.update(batch[valid])
    torch.testing.assert_close(masked.mean, clean.mean, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(masked.var, clean.var, rtol=1e-12, atol=0.0)
    assert masked.count.item() == clean.count.item() > 0


@pytest.mark.parametrize("bad", [1e10, -1e30, 1e38, float("inf"), float("nan")])
def test_an_absurd_row_is_left_out_first_and_later(bad: float) -> None:
    poisoned, clean = ObservationNormalizer(3), ObservationNormalizer(3)
    for i, batch in enumerate(_batches()):
        dirty = torch.cat((batch.flatten(0, 1), batch[0, :1]))
        dirty[-1, i % 3] = bad
        poisoned.update(dirty)
        clean.update(batch)
        assert poisoned.count == clean.count
    assert torch.equal(poisoned.mean, clean.mean)
    assert torch.equal(poisoned.scale, clean.scale)
    again = ObservationNormalizer(3)
    again.load_state_dict(poisoned.state_dict())
    again.update(torch.full((5, 3), bad))  # all of them: only what came before can tell
    assert torch.equal(again.mean, clean.mean)
    scalar = RunningMeanStd()
    scalar.update(torch.tensor([1.0, bad, 3.0]))
    assert scalar.mean == 2.0


def test_data_of_any_size_are_absorbed() -> None:
    seconds, rare = RunningMeanStd(), RunningMeanStd()
    seconds.update(1.7e9 + torch.arange(4.0) * 1e6)
    assert seconds.count == 4.0
    rare.update(torch.zeros(4))
    rare.update(torch.tensor([0.0, 1e6]))
    assert rare.count == 6.0


def test_order_and_split_of_the_data_do_not_matter() -> None:
    one, other = ObservationNormalizer(3), ObservationNormalizer(3)
    for batch in _batches():
        one.update(batch)
    for row in torch.from_numpy(_concatenated(_batches())).flip(0).split(13):
        other.update(row)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(one.var, other.var, rtol=1e-10, atol=0.0)


def test_large_offsets_keep_their_variance() -> None:
    normalizer = ObservationNormalizer(1)
    x = 1e6 + torch.randint(0, 2, (10_000, 1), generator=torch.Generator().manual_seed(0)).float()  # 1e6 or 1e6 + 1
    for part in x.split(1000):
        normalizer.update(part)
    assert normalizer.var.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-6)


def test_shapes_are_guarded() -> None:
    normalizer = ObservationNormalizer(3)
    with pytest.raises(ValueError, match="cannot absorb"):
        normalizer.update(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="valid must be"):
        normalizer.update(torch.zeros(5, 3), valid=torch.ones(5, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="positive"):
        ObservationNormalizer(3, clip=0.0)


def test_state_dict_restores_the_map() -> None:
    normalizer, again = ObservationNormalizer(3), ObservationNormalizer(3)
    for batch in _batches():
        normalizer.update(batch)
    again.load_state_dict(normalizer.state_dict())
    assert torch.equal(again(_batches()[1]), normalizer(_batches()[1]))
    again.update(_batches()[1])
    normalizer.update(_batches()[1])
    assert torch.equal(again.shift, normalizer.shift)


def test_forward_is_two_ops_and_sees_later_updates() -> None:
    normalizer, x = ObservationNormalizer(3), _batches()[0]
    graph = make_fx(normalizer)(x)
    ops = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert len(ops) == 2
    compiled = torch.compile(normalizer, fullgraph=True, backend="aot_eager")
    for batch in _batches():
        torch.testing.assert_close(compiled(x), normalizer(x))
        normalizer.update(batch)
    assert not torch.equal(normalizer(x), x)


def test_update_reads_nothing_back_to_the_host() -> None:
    class NoSync(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    normalizer = ObservationNormalizer(3)
    with NoSync():
        normalizer.update(_batches()[0], valid=torch.ones(7, 4, dtype=torch.bool))


def test_scalar_statistics() -> None:
    running = RunningMeanStd()
    assert running.std.item() == pytest.approx(1.0)
    returns = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    running.update(returns)
    assert running.mean.item() == 3.0
    assert running.var.item() == 3.5
    running.update(torch.tensor([8.0, 1e9]), valid=torch.tensor([True, False]))
    assert running.mean.item() == 4.0
    assert running.var.item() == pytest.approx((9 + 4 + 1 + 4 + 16) / 5)
    assert running.count.item() == 5.0
    assert running.std.dtype == torch.float32
    assert running.std.item() == pytest.approx(6.8**0.5)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    normalizer = ObservationNormalizer(3)
    for batch in _batches():
        rows = batch.reshape(-1, 3)
        own = rows[:1] if rank == 0 else rows[1:]  # unequal, and empty for one rank in the second batch
        normalizer.update(own, valid=torch.ones(len(own), dtype=torch.bool))
    torch.save(normalizer.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_agree_with_one_process(tmp_path: Path, fresh: Fresh) -> None:
    code = "import torch.multiprocessing as m\nfrom tests.nn.test_normalization import _rank\n"
    code += f"m.start_processes(_rank, args=({str(tmp_path)!r},), nprocs=2, start_method='fork')"
    fresh("-c", code, cwd=Path(__file__).parents[2])
    alone = ObservationNormalizer(3)
    for batch in _batches():
        alone.update(batch)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, x in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], x, rtol=1e-12 if x.dtype == torch.float64 else 1e-6, atol=0.0)
