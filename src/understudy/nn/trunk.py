"""One side of a policy (actor, critic or estimator): encoders of its components, memory, hidden layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.core.spaces import Key, size_of
from understudy.nn.interactions import ActiveLinear
from understudy.nn.memory import Changes, Memory
from understudy.nn.networks import MLP, Activation, Encoder, EncoderConfig, Init, make_encoder

MemoryKind = Literal["none", "lstm", "gru"]
Precision = Literal["float32", "bfloat16"]


@runtime_checkable
class _Sized(Protocol):
    out_features: int


@runtime_checkable
class _Recurrent(Protocol):
    state_size: int


class Trunk(nn.Module):
    """Components `[..., *shape]` by key to one latent `[..., out_features]`; their encodings are readable by name.

    `own` makes a network of the user's in place of memory and hidden layers, from the number of encoded features: an
    nn.Module from x `[..., F]` to `[..., out_features]`. With a `state_size` it is recurrent: from x, state `[B, S]`
    and is_first `[B]` or `[T, B]` to the latent and the next state.

    Raises ValueError where the encoder's interactions are not the only layer, and for an own network without
    `out_features` or beside a memory.
    """

    def __init__(
        self,
        components: Mapping[Key, spaces.Space[Any]],
        hidden_sizes: Sequence[int],
        *,
        encoder: EncoderConfig,
        activation: Activation,
        init: Init,
        memory: MemoryKind = "none",
        memory_size: int = 0,
        memory_layers: int = 1,
        memory_changes: float = 0.0,
        precision: Precision = "float32",
        own: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.keys = tuple(components)
        self.precision = precision
        if empty := ["/".join(key) for key, space in components.items() if not size_of(space)]:
            raise ValueError(f"the observations {', '.join(empty)} have no entries (a size is 0): choose other groups")
        encoders = [make_encoder(space, encoder.of(key)) for key, space in components.items()]
        self.encoders = nn.ModuleList(encoders)
        features = sum(encoder.out_features for encoder in encoders)
        self.in_features, self.active_columns = features, encoder.interactions
        if self.active_columns:
            _check_linear(encoders, hidden_sizes, memory, precision)
        self.memory: Memory | None = None
        self.changes: Changes | None = None
        self.own: nn.Module | None = None
        self.state_size = 0
        if own is not None:
            if memory != "none" or self.active_columns:
                raise ValueError("an own trunk has its own memory and reads plain features: set policy.memory='none'")
            self.own = own(features)
            if not isinstance(self.own, nn.Module) or not isinstance(self.own, _Sized):
                raise ValueError(f"a trunk is an nn.Module with out_features, got {type(self.own).__name__}")
            self.out_features = int(self.own.out_features)
            self.state_size = int(self.own.state_size) if isinstance(self.own, _Recurrent) else 0
            return
        if memory != "none":
            if memory_changes:
                self.changes = Changes(features, memory_changes)
                features, self.state_size = self.changes.out_features, self.changes.state_size
            self.memory = Memory(memory, features, memory_size, memory_layers)
            features, self.state_size = memory_size, self.state_size + self.memory.state_size
        self.mlp = MLP(features, hidden_sizes, activation=activation, init=init)
        self.out_features = self.mlp.out_features

    @torch.no_grad()
    def check_own(self) -> None:
        """Raise ValueError, with what is wrong, unless the own network makes of its features what it says."""
        if self.own is None:
            return
        who, training = f"the trunk {type(self.own).__name__}", self.own.training
        device = next(self.own.parameters(), torch.zeros(0)).device
        x, expected = torch.zeros(2, self.in_features, device=device), (2, self.out_features)
        inputs = (x, x.new_zeros(2, self.state_size), x.new_zeros(2).bool()) if self.state_size else (x,)
        try:
            with torch.random.fork_rng([]):
                out = self.own.eval()(*inputs)
        except Exception as error:  # whatever a network of the user's own raises
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"{who} cannot read features [2, {self.in_features}] ({said})") from error
        finally:
            self.own.train(training)
        if self.state_size:
            if not isinstance(out, tuple) or len(out) != 2:
                raise ValueError(
                    f"{who} has a state_size, so it must return (latent, state), not a {type(out).__name__}"
                )
            out = out[0]
        if not isinstance(out, Tensor):
            raise ValueError(f"{who} must return one tensor {list(expected)}, it returns a {type(out).__name__}")
        if out.shape != expected:
            raise ValueError(f"{who} returns {list(out.shape)} for two rows, but out_features says {list(expected)}")
        if out.dtype != torch.float32:
            raise ValueError(f"{who} returns {out.dtype}: policies compute in float32, so call .float() on it")
        if not torch.isfinite(out).all():
            raise ValueError(f"{who} returns numbers that are not finite for zeros")

    def reader(self, linear: nn.Linear) -> nn.Linear:
        """`linear` (in_features: `out_features`) as the layer that reads this trunk's output, with the same parameters.

        Every layer on top of a trunk, a part's included, passes through here: interactions come as active columns.
        """
        return ActiveLinear.like(linear) if self.active_columns else linear

    def forward(
        self,
        inputs: Mapping[Key, Tensor],
        state: Tensor | None = None,
        is_first: Tensor | None = None,
        *,
        side: str,
        latents: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """The latent and the state after it (None without a memory).

        Inputs `[B, *shape]`, or with a memory also `[T, B, *shape]`. `state=None` is the start of an episode,
        `is_first=None` stands for no start. What is computed on the way is put into `latents`, as `side/...`.
        """
        if self.precision == "float32":
            return self._run(inputs, state, is_first, side, latents)
        with torch.autocast(next(iter(inputs.values())).device.type, torch.bfloat16):
            latent, new_state = self._run(inputs, state, is_first, side, latents)
        return latent.float(), None if new_state is None else new_state.float()

    def _run(
        self,
        inputs: Mapping[Key, Tensor],
        state: Tensor | None,
        is_first: Tensor | None,
        side: str,
        latents: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        encoded = [encoder(inputs[key]) for key, encoder in zip(self.keys, self.encoders)]
        latents.update((f"{side}/{'/'.join(key)}", latent) for key, latent in zip(self.keys, encoded))
        x = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=-1)
        if self.memory is not None:
            x = x.to(self.memory.get_parameter("weight_hh_l0").dtype)
        if self.state_size:  # what was left out: an episode's start, and none later on
            state = x.new_zeros(x.shape[-2], self.state_size) if state is None else state
            is_first = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device) if is_first is None else is_first
        if self.own is not None:
            return self.own(x, state, is_first) if self.state_size else (self.own(x), None)
        if self.memory is None or state is None or is_first is None:
            return self.mlp(x), None
        # a recurrence adds up its rounding, and its hand-written backward knows one type: no autocast in it
        with torch.autocast(x.device.type, enabled=False) if self.precision != "float32" else nullcontext():
            x, state = self._remember(self.memory, inputs, x, state, is_first)
        latents[f"{side}/memory"] = x
        return self.mlp(x), state

    def _remember(
        self, memory: Memory, inputs: Mapping[Key, Tensor], x: Tensor, state: Tensor, is_first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The memory's output for encodings x, and the state after it."""
        own, projected = state[:, -memory.state_size :], None
        if self.changes is not None:
            x, before = self.changes(x, state[:, : self.changes.state_size], is_first)
        elif x.ndim == 3 and len(self.encoders) == 1:
            encoder = cast(Encoder, self.encoders[0])
            projected = encoder.projected(inputs[self.keys[0]], *memory.input_weights())
        if x.ndim == 3:
            x, own = memory.sequence(x, own, is_first, projected)
        else:
            x, own = memory.step(x, own, is_first)
        return x, own if self.changes is None else torch.cat((before, own), dim=-1)


def _check_linear(encoders: Sequence[Encoder], hidden: Sequence[int], memory: str, precision: str) -> None:
    """Raise ValueError unless nothing stands between the interactions and the heads."""
    if len(encoders) != 1 or not encoders[0].active_columns:
        raise ValueError(
            "encoder.interactions needs one Discrete or MultiDiscrete component as the whole observation of actor and "
            "critic: choose it in actor_groups and critic_groups"
        )
    if hidden or memory != "none" or precision != "float32":
        raise ValueError(
            "encoder.interactions is for policies that are one linear layer: set hidden_sizes=(), "
            "critic_hidden_sizes=None, memory='none' and precision='float32'"
        )
