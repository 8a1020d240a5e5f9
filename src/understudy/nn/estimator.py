"""Estimators inside a policy: what cannot be measured is predicted from what can, and the actor sees the prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from gymnasium import spaces
from torch import Tensor, nn

from understudy.core.check import Config, Filled, In, Size
from understudy.core.spaces import Key, is_vector
from understudy.nn.networks import MLP, Activation
from understudy.nn.trunk import Trunk


@dataclass(frozen=True, kw_only=True)
class EstimatorHeadConfig(Config):
    """One estimator of a policy (st_rl's estimator); it learns from the part `Estimator`."""

    targets: Annotated[tuple[str, ...], Filled()]
    """Groups or group/components to predict; the actor sees the prediction in their place, or besides its groups."""
    inputs: tuple[str, ...] = ()
    """Groups or group/components to predict from; earlier estimators' targets come as estimates. Empty: the actor's."""
    hidden_sizes: tuple[Size, ...] = (128, 64)
    """Hidden layers."""
    activation: Activation = "elu"
    """Hidden activation."""
    memory: Literal["none", "lstm", "gru", "actor"] = "none"
    """Own memory, or "actor": on the output of the actor's, which it shapes; then nothing is replaced."""
    memory_size: Size = 64
    """Width of an own memory."""
    memory_layers: Annotated[int, In(1, 64)] = 1
    """Depth of an own memory."""
    memory_changes: Annotated[float, In(0.0, 1e6)] = 0.0
    """If > 0, an own memory also receives its inputs' change since the last step, scaled by this."""
    replace_prob: Annotated[float, In(0.0, 1.0)] = 1.0
    """Share of training steps at which the actor sees the estimate, else the truth; drawn once per step and kept. In
    use it always sees the estimate."""
    feeds_actor: bool = True
    """False: the actor sees what it is given, also in use; the estimate only trains a network beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_actor_memory and (self.inputs or self.replace_prob):
            raise ValueError(
                "an estimator on the actor's memory reads that and comes too late to be the actor's input: leave "
                "inputs empty and set replace_prob=0"
            )

    @property
    def on_actor_memory(self) -> bool:
        """Whether it reads the actor's memory instead of components."""
        return self.memory == "actor"


class Estimated(nn.Module):
    """What an estimator predicts: target components `[..., D]`, in the units in which the networks see them.

    All that the part `Estimator` asks; a policy whose forward pass puts `estimate/NAME` into the latents by itself uses
    one in its `estimators`. Raises ValueError for a target that is not a vector.
    """

    def __init__(self, name: str, targets: Mapping[Key, spaces.Space[Any]]) -> None:
        super().__init__()
        for key, space in targets.items():
            if not is_vector(space):
                raise ValueError(f"estimator {name!r} cannot predict {'/'.join(key)}: {space} is not a vector")
        self.name, self.targets = name, tuple(targets)
        self.sizes = [math.prod(space.shape or ()) for space in targets.values()]


class EstimatorHead(Estimated):
    """Predicts components from others, inside a policy.

    `trunk` reads its inputs; None: it reads the actor's memory, `feature_size` wide.
    """

    def __init__(
        self,
        name: str,
        config: EstimatorHeadConfig,
        trunk: Trunk | None,
        targets: Mapping[Key, spaces.Space[Any]],
        *,
        feature_size: int,
    ) -> None:
        super().__init__(name, targets)
        self.config, self.trunk = config, trunk
        self.feeds_actor = trunk is not None and config.feeds_actor  # else nobody sees the estimate
        self.mixes = self.feeds_actor and config.replace_prob < 1.0  # the actor sees the truth at some training steps
        self.keys: tuple[Key, ...] = () if trunk is None else trunk.keys  # components that it reads
        self.state_size = 0 if trunk is None else trunk.state_size  # of its own memory
        self.mlp = MLP(feature_size, config.hidden_sizes, activation=config.activation) if trunk is None else None
        features = cast("Trunk | MLP", trunk or self.mlp).out_features
        self.linear = nn.Linear(features, sum(self.sizes))
        nn.init.orthogonal_(self.linear.weight, gain=0.01)  # the first estimates are the mean
        nn.init.zeros_(self.linear.bias)

    def forward(
        self, inputs: Mapping[Key, Tensor], state: Tensor | None, is_first: Tensor | None, latents: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The estimate `[..., D]` from components, also put into `latents` as `estimate/NAME`, and the next state."""
        assert self.trunk is not None
        side = f"estimator/{self.name}"
        latent, new_state = self.trunk(inputs, state, is_first, side=side, latents=latents)
        latents[f"estimate/{self.name}"] = estimate = self.linear(latent)
        return estimate, new_state

    def read_memory(self, latents: dict[str, Tensor]) -> None:
        """The estimate from the actor's memory, put into `latents` as `estimate/NAME`."""
        assert self.mlp is not None
        latents[f"estimate/{self.name}"] = self.linear(self.mlp(latents["actor/memory"]))

    def split(self, estimate: Tensor) -> dict[Key, Tensor]:
        """The estimate `[..., D]` by target."""
        return dict(zip(self.targets, estimate.split(self.sizes, dim=-1)))
