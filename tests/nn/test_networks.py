"""Networks: shapes, initialisation, and encoders of every space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.nn.networks import (
    ACTIVATIONS,
    CNN,
    MLP,
    CNNConfig,
    EmbeddingEncoder,
    EncoderConfig,
    OneHotEncoder,
    VectorEncoder,
    make_activation,
    make_encoder,
)


def test_activations_by_name() -> None:
    assert set(ACTIVATIONS) >= {"elu", "relu", "tanh", "gelu", "silu", "leaky_relu", "selu", "sigmoid", "softplus"}
    assert make_activation("elu")(torch.tensor(-1.0)).item() == pytest.approx(math.exp(-1.0) - 1.0)
    assert make_activation("identity")(torch.tensor(-1.0)).item() == -1.0
    assert make_activation("relu") is not make_activation("relu")
    with pytest.raises(ValueError, match="did you mean relu"):
        make_activation("ReLU")
    with pytest.raises(ValueError, match="known: elu"):
        make_activation("zzz")


def test_mlp_by_hand() -> None:
    mlp = MLP(2, (1,), 1, activation="relu")
    with torch.no_grad():
        mlp.layers[0].weight.copy_(torch.tensor([[1.0, -2.0]]))  # type: ignore[operator]
        mlp.layers[0].bias.fill_(0.5)  # type: ignore[operator]
        mlp.layers[2].weight.fill_(3.0)  # type: ignore[operator]
        mlp.layers[2].bias.fill_(-1.0)  # type: ignore[operator]
    assert mlp(torch.tensor([[3.0, 1.0], [0.0, 1.0]])).tolist() == [[3.5], [-1.0]]


@pytest.mark.parametrize(
    ("hidden", "out", "last", "modules"),
    [
        ((8, 6), None, False, ["Linear", "Tanh", "Linear", "Tanh"]),
        ((8, 6), 4, False, ["Linear", "Tanh", "Linear", "Tanh", "Linear"]),
        ((8, 6), 4, True, ["Linear", "Tanh", "Linear", "Tanh", "Linear", "Tanh"]),
        ((), 4, False, ["Linear"]),
        ((), None, False, []),
    ],
)
def test_mlp_layers(hidden: tuple[int, ...], out: int | None, last: bool, modules: list[str]) -> None:
    mlp = MLP(5, hidden, out, activate_last=last)
    assert [type(layer).__name__ for layer in mlp.layers] == modules
    assert mlp(torch.zeros(3, 7, 5)).shape == (3, 7, mlp.out_features)
    assert mlp.out_features == (out or (hidden or (5,))[-1])


def test_mlp_initialisation() -> None:
    mlp = MLP(5, (4,), 2, out_gain=0.01)
    first, last = mlp.layers[0].weight, mlp.layers[2].weight
    assert isinstance(first, Tensor)
    assert isinstance(last, Tensor)
    torch.testing.assert_close(first @ first.T, 2.0 * torch.eye(4))  # orthogonal rows, gain sqrt(2)
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(2))
    assert mlp.layers[0].bias.abs().sum() == 0.0  # type: ignore[operator]
    torch.manual_seed(3)
    ours = MLP(5, (4,), init="default").layers[0].weight
    torch.manual_seed(3)
    assert torch.equal(ours, nn.Linear(5, 4).weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown init"):
        MLP(5, (4,), init="xavier")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        MLP(5, (0,))


# ---------------------------------------------------------------------- images


def test_nature_cnn_has_the_paper_s_sizes() -> None:
    cnn = CNN((4, 84, 84))
    shapes = [tuple(m.weight.shape) for m in cnn.convolutions if isinstance(m, nn.Conv2d)]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert cnn.mlp.layers[0].in_features == 64 * 7 * 7
    assert cnn.out_features == 512
    assert cnn(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 512)
    assert CNN((84, 84), CNNConfig(hidden_sizes=(16,)))(torch.zeros(1, 84, 84)).shape == (1, 16)


SMALL = CNNConfig(channels=(4, 6), kernel_sizes=(3, 3), strides=(2, 1), paddings=(1, 0), hidden_sizes=(5,))


@pytest.mark.parametrize(("shape", "last"), [((12, 10, 3), True), ((3, 12, 10), False), ((1, 9, 9), False)])
def test_channel_axis_is_the_shorter_end(shape: tuple[int, ...], last: bool) -> None:
    cnn = CNN(shape, SMALL)
    assert cnn.channels_last is last
    assert cnn.convolutions[0].in_channels == (shape[-1] if last else shape[0])
    assert cnn(torch.rand(2, *shape)).shape == (2, 5)


def test_channels_last_equals_channels_first() -> None:
    torch.manual_seed(0)
    last = CNN((12, 10, 3), SMALL)
    first = CNN((3, 12, 10), SMALL)
    first.load_state_dict(last.state_dict())
    image = torch.randint(0, 256, (2, 12, 10, 3), dtype=torch.uint8)
    torch.testing.assert_close(last(image), first(image.permute(0, 3, 1, 2)))
    torch.testing.assert_close(last(image), last(image.float() / 255.0))  # only uint8 is scaled


def test_cnn_takes_sequences_and_one_environment() -> None:
    cnn = CNN((12, 10, 3), SMALL)
    image = torch.rand(4, 3, 12, 10, 3)
    torch.testing.assert_close(cnn(image)[2], cnn(image[2]))
    assert cnn(image[:1, :1]).shape == (1, 1, 5)
    assert cnn(image[0, 0]).shape == (5,)


def test_max_pool_replaces_strides() -> None:
    config = CNNConfig(channels=(4,), kernel_sizes=(3,), strides=(2,), paddings=(1,), max_pool=True, hidden_sizes=())
    cnn = CNN((8, 8), config)
    assert [type(m).__name__ for m in cnn.convolutions] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert cnn.out_features == 4 * 4 * 4
    assert cnn(torch.rand(2, 8, 8)).shape == (2, 64)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(7, 7, 3\) is too small for layer 0 .* smaller ones"):
        CNN((7, 7, 3))
    with pytest.raises(ValueError, match="cannot tell channels from pixels"):
        CNN((8, 4, 8), SMALL)
    assert CNN((8, 8, 8), CNNConfig(**{**vars(SMALL), "channel_axis": "last"})).channels_last
    with pytest.raises(ValueError, match="one entry per layer"):
        CNNConfig(channels=(32,))
    with pytest.raises(ValueError, match="an image is"):
        CNN((2, 8, 8, 3), SMALL)


# -------------------------------------------------------------------- encoders


def test_vector_encoder() -> None:
    encoder = make_encoder(spaces.Box(-1, 1, (3,)))
    x = torch.rand(4, 5, 3)
    assert encoder(x) is x
    assert encoder.out_features == 3
    assert make_encoder(spaces.Box(-1, 1, ()))(torch.rand(4)).shape == (4, 1)
    deep = make_encoder(spaces.Box(-1, 1, (3,)), EncoderConfig(hidden_sizes=(7, 2), activation="elu"))
    assert deep.out_features == 2
    assert deep(x).shape == (4, 5, 2)
    assert deep(x).min() > -1.0  # after the activation
    assert make_encoder(spaces.Box(0, 255, (2,), np.uint8))(torch.tensor([[0, 255]], dtype=torch.uint8)).tolist() == [
        [0.0, 1.0]
    ]
    assert make_encoder(spaces.Box(0, 9, (2,), np.int64))(torch.tensor([[3, 9]])).tolist() == [[3.0, 9.0]]


def test_kind_vector_flattens_images() -> None:
    encoder = make_encoder(spaces.Box(-1, 1, (4, 6)), EncoderConfig(kind="vector"))
    x = torch.rand(5, 4, 6)
    assert torch.equal(encoder(x), x.reshape(5, 24))
    assert isinstance(encoder, VectorEncoder)


def test_images_get_a_cnn() -> None:
    encoder = make_encoder(spaces.Box(0, 255, (12, 10, 3), np.uint8), EncoderConfig(cnn=SMALL))
    assert isinstance(encoder, CNN)
    assert isinstance(make_encoder(spaces.Box(0, 1, (48, 64))), CNN)


def test_multi_binary_is_float() -> None:
    encoder = make_encoder(spaces.MultiBinary(3))
    for dtype in (torch.int8, torch.uint8, torch.bool, torch.int64):
        assert encoder(torch.tensor([[0, 1, 1]], dtype=dtype)).tolist() == [[0.0, 1.0, 1.0]]


def test_one_hot_of_discrete() -> None:
    encoder = make_encoder(spaces.Discrete(3, start=-1))
    assert isinstance(encoder, OneHotEncoder)
    assert encoder(torch.tensor([-1, 1])).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert encoder(torch.tensor([[0]])).shape == (1, 1, 3)
    assert encoder(torch.tensor([5])).tolist() == [[0.0, 0.0, 0.0]]


def test_one_hot_of_multi_discrete() -> None:
    encoder = make_encoder(spaces.MultiDiscrete([2, 3], start=[0, 4]))
    assert encoder(torch.tensor([[1, 4], [0, 6]])).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    grid = make_encoder(spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])))
    assert grid.out_features == 9
    assert grid(torch.tensor([[[1, 2], [0, 1]]])).tolist() == [[0, 1, 0, 0, 1, 1, 0, 0, 1]]


def test_embeddings() -> None:
    config = EncoderConfig(embedding_size=4)
    single = make_encoder(spaces.Discrete(3, start=10), config)
    assert isinstance(single, EmbeddingEncoder)
    assert torch.equal(single(torch.tensor([10, 12])), single.embedding.weight[[0, 2]])
    double = make_encoder(spaces.MultiDiscrete([2, 3], start=[0, 1]), config)
    assert isinstance(double, EmbeddingEncoder)
    assert double.out_features == 8
    x = double(torch.tensor([[[1, 1]], [[0, 3]]]))
    assert x.shape == (2, 1, 8)
    assert torch.equal(x[0, 0], double.embedding.weight[[1, 2]].flatten())
    assert torch.equal(x[1, 0], double.embedding.weight[[0, 4]].flatten())
    grid = make_encoder(spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])), config)
    assert grid(torch.zeros(5, 2, 2, dtype=torch.int64)).shape == (5, 16)


def test_positions_of_an_image_of_categories_share_embeddings() -> None:
    config = EncoderConfig(embedding_size=4, share_embeddings=True)
    space = spaces.MultiDiscrete(np.broadcast_to([2, 3], (5, 7, 2)), dtype=np.uint8)
    encoder = make_encoder(space, config)
    assert isinstance(encoder, EmbeddingEncoder)
    assert encoder.embedding.weight.shape == (5, 4)
    assert encoder.out_features == 5 * 7 * 2 * 4
    x = torch.as_tensor(np.stack([space.sample() for _ in range(6)])).view(2, 3, 5, 7, 2)
    rows = torch.stack((x[..., 0].long(), 2 + x[..., 1].long()), dim=-1)
    assert torch.equal(encoder(x), encoder.embedding.weight[rows].flatten(2))
    vector = make_encoder(spaces.MultiDiscrete([2, 3]), config)  # one position: nothing to share
    assert isinstance(vector, EmbeddingEncoder)
    assert vector.embedding.weight.shape == (5, 4)
    with pytest.raises(ValueError, match="same range at every position"):
        make_encoder(spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])), config)


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(-1, 1, (2, 3, 4, 5))], ids=str
)
def test_other_spaces_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="no encoder covers"):
        make_encoder(space)
