"""`cell_linear` against the plain product, by hand and in a recorded update."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional as F

from understudy.core.capture import capture
from understudy.core.spaces import Key
from understudy.nn.cells import MIN_ROWS, cell_linear, worthwhile
from understudy.nn.networks import EmbeddingEncoder, EncoderConfig, make_encoder
from understudy.nn.trunk import MemoryKind, Precision, Trunk

GRID = np.broadcast_to([11, 6, 3], (4, 4, 3)).copy()
"""Kinds of objects, colours and states at every position, as in MiniGrid."""


def test_by_hand() -> None:
    cells = torch.tensor([[0, 2], [2, 2], [0, 0]])  # 3 rows of 2 cells; kind 1 does not occur
    embedded = torch.tensor([[1.0, 2.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0], [3.0, 0.0, 0.0, 1.0]])
    weight = torch.tensor([[1.0, 1.0, 0.0, 0.0, 10.0, 10.0, 0.0, 10.0]])
    out = cell_linear(cells, embedded, weight, torch.tensor([0.5]))
    # (1 + 2) + 10 (3 + 1) + .5; 3 + 40 + .5; 3 + 30 + .5
    assert out.flatten().tolist() == [43.5, 43.5, 33.5]


@pytest.mark.parametrize("occurring", [2, 7], ids=["few kinds", "too many kinds"])
def test_value_and_gradients_are_those_of_the_plain_product(occurring: int) -> None:
    cells = torch.randint(0, occurring, (40, 9))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((8, 6), (5, 54), (5,))]
    factor = torch.randn(40, 5, dtype=torch.float64)
    plain = F.linear(leaves[0][cells].flatten(-2), leaves[1], leaves[2])
    expected = torch.autograd.grad((plain * factor).sum(), leaves)
    ours = cell_linear(cells, *leaves)
    torch.testing.assert_close(ours, plain)
    for found, wanted in zip(torch.autograd.grad((ours * factor).sum(), leaves), expected):
        torch.testing.assert_close(found, wanted)


def test_operator_is_sound() -> None:
    """torch's own check of a custom operator: schema, fake tensors, autograd registration."""
    embedded, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 18, requires_grad=True)
    torch.library.opcheck(cell_linear, (torch.randint(0, 2, (7, 3)), embedded, weight, torch.randn(5)))


def grid_encoder(start: int = 0) -> EmbeddingEncoder:
    space = spaces.MultiDiscrete(GRID, start=np.full_like(GRID, start))
    encoder = make_encoder(space, EncoderConfig(embedding_size=4, share_embeddings=True))
    assert isinstance(encoder, EmbeddingEncoder)
    return encoder


@pytest.mark.parametrize("start", [0, 2])
def test_encoder_projects_large_batches_as_it_encodes(start: int) -> None:
    encoder = grid_encoder(start)
    x = torch.randint(0, 3, (8, MIN_ROWS // 8, 4, 4, 3)) + start
    weight, bias = torch.randn(10, encoder.out_features), torch.randn(10)
    projected = encoder.projected(x, weight, bias)
    assert projected is not None
    torch.testing.assert_close(projected, F.linear(encoder(x), weight, bias), rtol=1e-4, atol=1e-4)
    assert encoder.projected(x[:1], weight, bias) is None, "a small batch gains nothing"


def test_encoders_without_cells_take_the_plain_way() -> None:
    for space in (spaces.Discrete(4), spaces.MultiDiscrete([3, 4])):
        for config in (EncoderConfig(embedding_size=4), EncoderConfig()):
            encoder = make_encoder(space, config)
            x = torch.zeros(MIN_ROWS, *space.shape or (), dtype=torch.int64)
            assert encoder.projected(x, torch.randn(3, encoder.out_features), torch.randn(3)) is None
    assert not worthwhile(torch.zeros(MIN_ROWS, 1, dtype=torch.int64), 4), "one cell"
    assert not worthwhile(torch.zeros(MIN_ROWS, 4, dtype=torch.int64), 10**6), "too many kinds"


@pytest.mark.parametrize("memory", ["lstm", "gru"])
@pytest.mark.parametrize("columns", [4, MIN_ROWS // 8], ids=["plain", "by kinds"])
def test_memories_work_beside_bfloat16(memory: MemoryKind, columns: int) -> None:
    config = EncoderConfig(embedding_size=4, share_embeddings=True)
    keys: dict[Key, spaces.Space[Any]] = {("policy",): spaces.MultiDiscrete(GRID)}
    x = torch.randint(0, 2, (8, columns, 4, 4, 3))
    half, full = (
        Trunk(
            keys, (8,), encoder=config, activation="tanh", init="orthogonal", memory=memory, memory_size=6, precision=p
        )
        for p in get_args(Precision)[::-1]
    )
    full.load_state_dict(half.state_dict())
    outputs = [trunk({("policy",): x}, side="actor", latents={})[0] for trunk in (half, full)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0.0, atol=0.05)
    outputs[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in half.parameters())


def test_recorded_recurrent_trunk_with_other_kinds_than_at_recording() -> None:
    """The recorded program looks at the kinds of each batch anew."""
    space = spaces.MultiDiscrete(GRID)
    config = EncoderConfig(embedding_size=4, share_embeddings=True)
    trunk = Trunk(
        {("policy",): space}, (), encoder=config, activation="tanh", init="orthogonal", memory="lstm", memory_size=6
    )
    weights = list(trunk.parameters())

    def gradients(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        latent, _ = trunk({("policy",): x}, side="actor", latents={})
        return latent.detach(), *torch.autograd.grad(latent.square().sum(), weights)

    recorded = capture(lambda batch: dict(enumerate(gradients(batch["x"]))))
    for high in (1, 2, 3):
        x = torch.randint(0, high, (8, MIN_ROWS // 8, 4, 4, 3))
        features = trunk.encoders[0](x)
        assert trunk.memory is not None
        latent, _ = trunk.memory.sequence(
            features, torch.zeros(x.shape[1], trunk.state_size), torch.zeros(x.shape[:2], dtype=torch.bool)
        )
        expected = (latent, *torch.autograd.grad(latent.square().sum(), weights))
        for found, wanted in zip(recorded({"x": x}).values(), expected):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
