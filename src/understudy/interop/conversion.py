"""Networks that another program wrote, as an `ActorCritic` with the same answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from understudy.core.spaces import module_name
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import ActorCritic
from understudy.nn.protocol import PolicyConfig
from understudy.runs.checkpoint import all_finite, check_same_layout
from understudy.types import CheckpointError

logger = logging.getLogger(__name__)

_EPS = 1e-8
"""What our normaliser adds to a variance."""


@dataclass
class Statistics:
    """A normaliser: `(x - mean) / deviation`, each `[D]`, after `count` rows, clipped to +- `clip`."""

    mean: Tensor
    deviation: Tensor
    count: float
    clip: float | None = None


@dataclass
class Side:
    """The networks of an actor or a critic, as its file has them."""

    group: str
    layers: list[tuple[Tensor, Tensor]]
    """Weight and bias of each linear layer; the last one is the output."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """The state dict of an nn.LSTM or nn.GRU in front of the layers."""
    statistics: Statistics | None = None
    space: spaces.Space[Any] | None = None
    """What it sees; None: a vector, whose size the weights tell."""
    encoder: dict[str, Tensor] = field(default_factory=dict)
    """Of an image: the state dict of our encoder."""

    @property
    def observed(self) -> spaces.Space[Any]:
        """The space of what it sees."""
        first = self.memory["weight_ih_l0"] if self.memory else self.layers[0][0]
        return self.space or unbounded(first.shape[1])

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(len(bias) for _, bias in self.layers[:-1])

    def memory_options(self, source: str) -> tuple[str, int, int]:
        """Kind, size and layers of the memory. Raises CheckpointError for another kind than LSTM and GRU."""
        if not self.memory:
            return "none", 128, 1
        gates, size = self.memory["weight_hh_l0"].shape
        kind = {4 * size: "lstm", 3 * size: "gru"}.get(gates)
        if kind is None:
            raise CheckpointError(f"{source} has a memory that is neither an LSTM nor a GRU")
        return kind, size, len(self.memory) // 4

    def weights(self, name: str, output: str) -> dict[str, Tensor]:
        """As our state dict has them, under `name`, the last layer under `output`."""
        *hidden, last = self.layers
        found = {f"{name}.memory.{key}": x for key, x in self.memory.items()}
        found |= {f"{name}.encoders.0.{key}": x for key, x in self.encoder.items()}
        for i, (weight, bias) in enumerate(hidden):
            found |= {f"{name}.mlp.layers.{2 * i}.weight": weight, f"{name}.mlp.layers.{2 * i}.bias": bias}
        found |= {f"{output}.weight": last[0], f"{output}.bias": last[1]}
        if self.statistics is not None:
            found |= normalizer_state(module_name((self.group,)), self.statistics)
        return found


def normalizer_state(name: str, statistics: Statistics) -> dict[str, Tensor]:
    """The state of our normaliser that gives the same numbers, and goes on from the same count."""
    mean, deviation = statistics.mean.double(), statistics.deviation.double()
    scale = 1.0 / deviation
    state = {
        "mean": mean,
        "var": (deviation * deviation - _EPS).clamp(min=0.0),
        "count": torch.tensor(statistics.count, dtype=torch.float64),
        "shift": (-mean * scale).float(),
        "scale": scale.float(),
    }
    return {f"normalizers.{name}.{key}": x for key, x in state.items()}


def unbounded(size: int) -> spaces.Box:
    """The space of vectors of any numbers."""
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def read_layers(state: Mapping[str, Tensor], prefix: str, source: str) -> list[tuple[Tensor, Tensor]]:
    """The linear layers `prefix` + `N.weight`, N ascending. Raises CheckpointError if they are no chain of layers."""
    numbers = sorted(int(name[len(prefix) : -7]) for name in state if _numbered(name, prefix, ".weight"))
    layers: list[tuple[Tensor, Tensor]] = []
    for number in numbers:
        weight, bias = state[f"{prefix}{number}.weight"], state.get(f"{prefix}{number}.bias")
        if weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
            raise CheckpointError(f"{source}: {prefix}{number} is not a linear layer with a bias")
        if layers and len(layers[-1][1]) != weight.shape[1]:
            raise CheckpointError(f"{source}: {prefix}{number} does not read what the layer before it gives")
        layers.append((weight, bias))
    if not layers:
        raise CheckpointError(f"{source} has no layer {prefix}0.weight")
    return layers


def _numbered(name: str, prefix: str, suffix: str) -> bool:
    return name.startswith(prefix) and name.endswith(suffix) and name[len(prefix) : -len(suffix)].isdigit()


def inner(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries under a prefix, without it."""
    return {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}


def convert(
    source: str,
    actor: Side,
    critic: Side | None,
    action_space: spaces.Space[Any],
    log_std: Tensor | None = None,
    *,
    distribution: DistributionConfig | None = None,
    **options: Any,
) -> ActorCritic:
    """An `ActorCritic` with these networks; `options` are those of `PolicyConfig` that the tensors do not tell.

    A critic that our networks cannot hold beside this actor is left out, with a warning: `has_critic` is False then.
    Raises CheckpointError where the tensors do not fit together or are not finite.
    """
    kind, size, layers = actor.memory_options(source)
    if critic is not None:
        differs = {
            "memory": critic.memory and critic.memory_options(source) != (kind, size, layers),
            "normalisation": (critic.statistics is None) != (actor.statistics is None),
            "output": len(critic.layers[-1][1]) != 1,
        }
        if wrong := [name for name, different in differs.items() if different]:
            logger.warning("%s: the critic's %s has no counterpart beside the actor's: left out", source, wrong[0])
            critic = None
    other = critic or dataclasses.replace(actor, memory={})
    config = PolicyConfig(
        actor_groups=(actor.group,),
        critic_groups=None if other.group in ("critic", actor.group) else (other.group,),
        hidden_sizes=actor.hidden_sizes,
        critic_hidden_sizes=other.hidden_sizes,
        init="default",
        memory=kind,  # type: ignore[arg-type]
        memory_size=size,
        memory_layers=layers,
        critic_memory=bool(other.memory),
        distribution=distribution or DistributionConfig(),
        normalize_observations=actor.statistics is not None,
        **options,
    )
    observed: dict[str, spaces.Space[Any]] = {other.group: other.observed, actor.group: actor.observed}
    with torch.random.fork_rng([]):  # the initial weights are drawn, and then replaced
        policy = ActorCritic(spaces.Dict(observed), action_space, config)
    weights = actor.weights("actor", "head.linear")
    if log_std is not None:
        weights["head.std.log_std"] = log_std
    if critic is not None:
        weights |= critic.weights("critic", "value_head")
    expected = policy.state_dict()
    weights |= {
        name: x
        for name, x in expected.items()
        if (critic is None and name.startswith(("critic.", "value_head."))) or (log_std is None and "log_std" in name)
    }
    check_same_layout(expected, weights, source)
    if not all_finite(weights):
        raise CheckpointError(f"{source} has weights that are not finite; use an older checkpoint")
    policy.load_state_dict(weights)
    policy.has_critic = critic is not None
    return policy.eval()
