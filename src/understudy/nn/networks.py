"""Building blocks: activations, MLP, CNN, encoders of one observation component."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.core.check import Config, Filled, In, Size, fit
from understudy.core.devices import check_memory
from understudy.core.spaces import Key, classes_of, is_box, kind_of, shape_of
from understudy.nn.cells import MAX_KINDS, cell_linear, worthwhile
from understudy.nn.interactions import active_columns

Init = Literal["orthogonal", "default"]
Activation = Literal[
    "elu", "relu", "tanh", "gelu", "silu", "leaky_relu", "selu", "sigmoid", "softplus", "identity"
]  # fmt: skip

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def make_activation(name: Activation) -> nn.Module:
    """A new activation module by name; raises ValueError with the nearest names if it is unknown."""
    known: Activation = fit(Activation, name, "an activation")
    return ACTIVATIONS[known]()


class MLP(nn.Module):
    """Hidden layers, each followed by the activation, then a linear layer if `out_features` is given.

    Maps `[..., in_features]` to `[..., out_features]`; without `out_features` the output is the last activation (the
    input itself if there is no hidden layer). `init`: orthogonal weights with `gain` in hidden layers and `out_gain`
    in the last, zero biases; or torch's own.
    """

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        out_features: int | None = None,
        activation: Activation = "tanh",
        activate_last: bool = False,
        init: Init = "orthogonal",
        gain: float = math.sqrt(2.0),
        out_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if min((in_features, *hidden_sizes, 1 if out_features is None else out_features)) < 1:
            raise ValueError(f"layer sizes must be positive, got {in_features}, {tuple(hidden_sizes)}, {out_features}")
        weights = sum(a * b for a, b in pairwise([in_features, *hidden_sizes, out_features or 0]))
        # each with its gradient and two moments
        check_memory(16.0 * weights, f"a network of {weights:,} weights", "hidden_sizes or the size of the observation")
        layers: list[nn.Module] = []
        size = in_features
        for hidden in hidden_sizes:
            layers += [_init(nn.Linear(size, hidden), init, gain), make_activation(activation)]
            size = hidden
        if out_features is not None:
            layers.append(_init(nn.Linear(size, out_features), init, out_gain))
            if activate_last:
                layers.append(make_activation(activation))
            size = out_features
        self.layers = nn.Sequential(*layers)
        self.out_features = size

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return self.layers(x)


class Encoder(nn.Module, ABC):
    """Turns one observation component `[..., *shape]` into features `[..., out_features]`."""

    out_features: int
    active_columns: bool = False  # True: features are zeros and ones, given as the indices of the ones (`ActiveLinear`)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """`[..., *shape]` to `[..., out_features]`."""

    def projected(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
        """`F.linear(self(x), weight, bias)` `[..., G]` where the encoder knows a shorter way to it, else None."""
        return None


@dataclass(frozen=True, kw_only=True)
class CNNConfig(Config):
    """A stack of convolutions and an MLP on top; the defaults are the Nature CNN (Mnih et al. 2015)."""

    channels: Annotated[tuple[Size, ...], Filled()] = (32, 64, 64)
    """Output channels of each convolution."""
    kernel_sizes: Annotated[tuple[int, ...], In(1, 1024)] = (8, 4, 3)
    """Kernel size of each convolution."""
    strides: Annotated[tuple[int, ...], In(1, 1024)] = (4, 2, 1)
    """Stride of each convolution, or of its max-pooling."""
    paddings: Annotated[tuple[int, ...], In(0, 1024)] = (0, 0, 0)
    """Zero padding of each convolution."""
    max_pool: bool = False
    """Convolve with stride 1 and reduce by max-pooling (window = stride) after the activation instead."""
    hidden_sizes: tuple[Size, ...] = (512,)
    """MLP on the flattened image."""
    activation: Activation = "relu"
    """Activation after every layer."""
    channel_axis: Literal["auto", "first", "last"] = "auto"
    """Where channels are in a 3-D image; auto: the shorter of first and last axis."""

    def __post_init__(self) -> None:
        """Refuse lists of unequal length."""
        super().__post_init__()
        lengths = [len(x) for x in (self.channels, self.kernel_sizes, self.strides, self.paddings)]
        if len(set(lengths)) != 1:
            raise ValueError(
                f"channels, kernel_sizes, strides and paddings need one entry per layer each, got {lengths} entries"
            )


class CNN(Encoder):
    """Images `[..., H, W]`, `[..., H, W, C]` or `[..., C, H, W]` to features; uint8 is scaled by 1/255, float is not.

    With `channel_axis="auto"` the shorter of the first and the last axis is the channels'; if they are equal, that is
    a ValueError. Raises ValueError too if the image is too small for the kernels.
    """

    def __init__(self, shape: Sequence[int], config: CNNConfig | None = None) -> None:
        super().__init__()
        config = config or CNNConfig()
        self.shape = tuple(shape)
        self.channels_last, (channels, height, width) = _image(self.shape, config.channel_axis)
        layers: list[nn.Module] = []
        rows = zip(config.channels, config.kernel_sizes, config.strides, config.paddings)
        for i, (out_channels, kernel, stride, padding) in enumerate(rows):
            step = 1 if config.max_pool else stride
            conv = nn.Conv2d(channels, out_channels, kernel, step, padding)
            layers += [_init(conv, "orthogonal", math.sqrt(2.0)), make_activation(config.activation)]
            height, width = ((x + 2 * padding - kernel) // step + 1 for x in (height, width))
            if config.max_pool and stride > 1:
                layers.append(nn.MaxPool2d(stride))
                height, width = height // stride, width // stride
            if min(height, width) < 1:
                raise ValueError(
                    f"an image of shape {self.shape} is too small for layer {i} of kernels {config.kernel_sizes}, "
                    f"strides {config.strides}: use smaller ones, channels=(32,), kernel_sizes=(3,), strides=(1,), "
                    "paddings=(1,) for example; or kind='vector' in the encoder to flatten it"
                )
            channels = out_channels
        self.convolutions = nn.Sequential(*layers)
        self.mlp = MLP(channels * height * width, config.hidden_sizes, activation=config.activation)
        self.out_features = self.mlp.out_features

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *shape]`, uint8 or float, to `[..., out_features]`."""
        leading = x.shape[: x.ndim - len(self.shape)]
        x = _float(x.reshape(-1, *self.shape))
        if len(self.shape) == 2:
            x = x.unsqueeze(1)
        elif self.channels_last:
            x = x.permute(0, 3, 1, 2)
        features = self.mlp(self.convolutions(x).flatten(1))
        return features if len(leading) == 1 else features.view(*leading, self.out_features)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """How observation components become features."""

    cnn: CNNConfig = field(default_factory=CNNConfig)
    """For images: Box of 2 or 3 dimensions."""
    kind: Literal["auto", "vector"] = "auto"
    """vector: flatten every Box, also those of 2 or 3 dimensions."""
    hidden_sizes: tuple[Size, ...] = ()
    """MLP on each Box that is not an image, and on MultiBinary; empty: pass it through."""
    only: tuple[str, ...] = ()
    """Groups or group/components that get this MLP, while the others are passed through; empty: all get it."""
    activation: Activation = "tanh"
    """Activation of that MLP."""
    embedding_size: Size | None = None
    """Learned embedding of this size for each Discrete and MultiDiscrete entry; None: one-hot."""
    share_embeddings: bool = False
    """Images of categories (MultiDiscrete of 2 or more dimensions): one table per entry of the last axis, shared by all
    positions, instead of one per entry."""
    interactions: bool = False
    """Discrete and MultiDiscrete as their saturated interaction design, for policies that are one linear layer."""

    def __post_init__(self) -> None:
        """Refuse two encodings of one thing."""
        super().__post_init__()
        if self.interactions and self.embedding_size is not None:
            raise ValueError("interactions and embedding_size are two encodings of the same entries: choose one")
        if self.only and not self.hidden_sizes:
            raise ValueError(
                f"encoder.only names {', '.join(self.only)} for an MLP, but encoder.hidden_sizes are empty"
            )

    def of(self, key: Key) -> EncoderConfig:
        """The config of one component's encoder."""
        meant = not self.only or key[0] in self.only or "/".join(key) in self.only
        return self if meant else dataclasses.replace(self, only=(), hidden_sizes=())


class VectorEncoder(Encoder):
    """Flattens a component to float `[..., D]` (uint8 scaled by 1/255 or not), then an MLP if it has hidden layers."""

    def __init__(self, shape: Sequence[int], config: EncoderConfig | None = None, scale_bytes: bool = True) -> None:
        super().__init__()
        config = config or EncoderConfig()
        self.ndim, self.scale_bytes = len(shape), scale_bytes
        self.mlp = MLP(math.prod(shape), config.hidden_sizes, activation=config.activation)
        self.out_features = self.mlp.out_features

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *shape]` to `[..., out_features]`."""
        return self.mlp(_float(_entries(x, self.ndim), self.scale_bytes))


class OneHotEncoder(Encoder):
    """Integers of a Discrete `[...]` or MultiDiscrete `[..., *K]` space to concatenated one-hot vectors.

    A value outside its range becomes zeros.
    """

    owner: Tensor  # [sum(nvec)] int64: the entry that a column belongs to
    value: Tensor  # [sum(nvec)] int64: the value that a column stands for

    def __init__(self, nvec: Sequence[int], start: Sequence[int], ndim: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.register_buffer("owner", torch.tensor([k for k, n in enumerate(nvec) for _ in range(n)]), persistent=False)
        columns = [torch.arange(low, low + n) for n, low in zip(nvec, start)]
        self.register_buffer("value", torch.cat(columns), persistent=False)
        self.out_features = sum(nvec)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *K]` to `[..., sum(nvec)]`."""
        x = _entries(x, self.ndim)
        if self.ndim:  # one entry is compared with all columns by broadcasting
            x = x.index_select(-1, self.owner)
        return (x == self.value).to(torch.get_default_dtype())


class EmbeddingEncoder(Encoder):
    """Integers of a Discrete `[...]` or MultiDiscrete `[..., *K]` space to concatenated learned embeddings.

    With `period` P entry k has the table of entry k mod P, else a table of its own; P entries in a row are then a cell.
    Raises ValueError if entries that are to share a table differ in their range.
    """

    offset: Tensor  # [K] int64: what turns a value into a row of the tables
    kinds: Tensor | None  # [prod of the ranges in a cell, P] int64: rows of the tables
    radix: Tensor  # [P] float32: what one more in an entry of a cell adds to the number of its kind
    start: Tensor  # [P] int64: the lowest values of a cell's entries

    def __init__(
        self, nvec: Sequence[int], start: Sequence[int], ndim: int, size: int, period: int | None = None
    ) -> None:
        super().__init__()
        self.ndim = ndim
        period = len(nvec) if period is None else period
        ranges = list(zip(nvec, start))
        if ranges != ranges[:period] * (len(ranges) // period):
            raise ValueError(
                "share_embeddings needs entries with the same range at every position (all axes but the last): "
                "leave it off for this observation"
            )
        offset = torch.tensor([sum(nvec[: k % period]) - start[k] for k in range(len(nvec))])
        self.register_buffer("offset", offset, persistent=False)
        self.embedding = nn.Embedding(sum(nvec[:period]), size)
        self.out_features = len(nvec) * size
        # the rows of the tables that every kind of cell consists of, kinds in lexicographic order
        count, rows = math.prod(nvec[:period]), [torch.arange(n) + sum(nvec[:k]) for k, n in enumerate(nvec[:period])]
        kinds = torch.cartesian_prod(*rows).view(count, period) if count <= MAX_KINDS else None
        self.register_buffer("kinds", kinds, persistent=False)
        radix = [math.prod(nvec[k + 1 : period]) for k in range(period)]
        self.register_buffer("radix", torch.tensor(radix, dtype=torch.float32), persistent=False)
        self.register_buffer("start", torch.tensor(start[:period]), persistent=False)
        self.shifted = any(start)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *K]` to `[..., K * size]`."""
        return self.embedding(_entries(x, self.ndim) + self.offset).flatten(-2)

    def projected(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
        """The linear layer on a grid by the kinds of its cells (`nn/cells.py`), in large batches on a CPU."""
        if self.kinds is None or self.offset.numel() == len(self.radix):
            return None
        leading = x.shape[: x.ndim - self.ndim]
        entries = x.reshape(-1, len(self.radix))
        # in floats, a product of matrices: exact, and ten times as fast as in integers
        numbers = (entries - self.start if self.shifted else entries).to(self.radix.dtype) @ self.radix
        cells = numbers.long().view(leading.numel(), -1)
        if not worthwhile(cells, len(self.kinds)):
            return None
        out = cell_linear(cells, self.embedding(self.kinds).flatten(-2), weight, bias)
        return out.view(*leading, len(weight))


class InteractionEncoder(Encoder):
    """Integers of a Discrete `[...]` or MultiDiscrete `[..., *K]` space to the active columns of their interactions.

    `out_features` is the number of columns, the product of `nvec`; the output `[..., J]` is what `ActiveLinear` reads.
    """

    active_columns = True
    table: Tensor  # [prod(nvec), J] int64
    start: Tensor  # [K] int64
    radix: Tensor  # [K] int64: what one more in an entry adds to the row of the table

    def __init__(self, nvec: Sequence[int], start: Sequence[int], ndim: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.out_features = math.prod(nvec)
        radix = torch.tensor([math.prod(nvec[k + 1 :]) for k in range(len(nvec))])
        self.register_buffer("table", active_columns(nvec), persistent=False)
        self.register_buffer("start", torch.tensor(start), persistent=False)
        self.register_buffer("radix", radix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *K]` to `[..., J]`."""
        return self.table[((_entries(x, self.ndim) - self.start) * self.radix).sum(-1)]


def make_encoder(space: spaces.Space[Any], config: EncoderConfig | None = None) -> Encoder:
    """The encoder of one observation component; raises ValueError if no encoder covers the space."""
    config = config or EncoderConfig()
    if is_box(space):
        shape = shape_of(space)
        if config.kind == "vector" or len(shape) < 2:
            return VectorEncoder(shape, config)
        if len(shape) in (2, 3):
            return CNN(shape, config.cnn)
        raise ValueError(f"no encoder covers {space}: an image has 2 or 3 dimensions; kind='vector' flattens any Box")
    if (classes := classes_of(space)) is not None:
        shape, count = shape_of(space), sum(classes.counts)
        check_memory(16.0 * count * (config.embedding_size or 8), f"{count:,} classes", "the observation's space")
        if config.interactions:
            return InteractionEncoder(*classes, len(shape))
        if config.embedding_size is None:
            return OneHotEncoder(*classes, len(shape))
        period = shape[-1] if config.share_embeddings and len(shape) > 1 else None
        return EmbeddingEncoder(*classes, len(shape), config.embedding_size, period)
    if kind_of(space) == "multi_binary":
        return VectorEncoder(shape_of(space), config, scale_bytes=False)
    raise ValueError(f"no encoder covers {space}: supported are Box, Discrete, MultiDiscrete, MultiBinary")


def _init(layer: nn.Linear | nn.Conv2d, init: Init, gain: float) -> nn.Module:
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif init != "default":
        raise ValueError(f"unknown init {init!r}: choose 'orthogonal' or 'default'")
    return layer


def _entries(x: Tensor, ndim: int) -> Tensor:
    """A component `[..., *shape]` of so many dimensions as one row of entries, `[..., K]`."""
    return x.unsqueeze(-1) if ndim == 0 else x if ndim == 1 else x.flatten(-ndim)


def _float(x: Tensor, scale_bytes: bool = True) -> Tensor:
    """Float as it is, uint8 scaled to [0, 1], other integers cast."""
    if x.is_floating_point():
        return x
    as_float = x.to(torch.get_default_dtype())
    return as_float * (1.0 / 255.0) if scale_bytes and x.dtype == torch.uint8 else as_float


def _image(shape: tuple[int, ...], axis: str) -> tuple[bool, tuple[int, ...]]:
    """Whether an image has its channels last, and its channels, height and width."""
    if len(shape) == 2:
        return False, (1, *shape)
    if len(shape) != 3:
        raise ValueError(f"an image is [H, W], [H, W, C] or [C, H, W], got shape {shape}")
    if axis == "auto" and shape[0] == shape[2]:
        raise ValueError(f"cannot tell channels from pixels in {shape}: set channel_axis to 'first' or 'last'")
    last = shape[2] < shape[0] if axis == "auto" else axis == "last"
    return last, (shape[2], *shape[:2]) if last else shape
