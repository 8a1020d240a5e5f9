"""The contract between PPO and an expert signal: `Part` and the six hooks. Nothing else crosses that border."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core.check import Config
from understudy.envs.base import VecEnv
from understudy.envs.observations import Groups, Segments
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.types import Metrics


def _no_loader(run: str) -> Policy:
    raise ValueError(f"a part cannot load {run} by itself: build the PartContext with load_policy=us.load")


@dataclass(frozen=True, kw_only=True)
class PartContext:
    """What a part may know when it is built: the spaces, the sizes, the policy it will sit beside, its RNG seed."""

    name: str  # the part's key in the config: rollout namespace, metric prefix, checkpoint key
    observation_space: spaces.Dict
    action_space: spaces.Space[Any]
    policy: Policy
    num_envs: int
    num_steps: int  # T, steps per environment in a rollout
    gamma: float  # that a training ends with, where it moves
    device: torch.device
    seed: int  # already mixed with the name: two parts never share a stream
    env_id: str | None = None  # the environment's id, where one is known: what demonstrations are compared with
    groups: Groups | None = None  # `EnvConfig.groups` and `segments`: how demonstrations of it are sorted
    segments: Segments | None = None
    load_policy: Callable[[str], Policy] = _no_loader  # `us.load`: a part does not know the trainer

    @classmethod
    def of(
        cls,
        env: VecEnv,
        policy: Policy,
        *,
        name: str,
        num_steps: int,
        gamma: float = 0.99,
        seed: int = 0,
        env_id: str | None = None,
        groups: Groups | None = None,
        segments: Segments | None = None,
        load_policy: Callable[[str], Policy] = _no_loader,
    ) -> PartContext:
        """The context of a part beside `policy` on `env`."""
        return cls(
            name=name,
            observation_space=env.observation_space,
            action_space=env.action_space,
            policy=policy,
            num_envs=env.num_envs,
            num_steps=num_steps,
            gamma=gamma,
            device=env.device,
            seed=seed,
            env_id=env_id,
            groups=groups,
            segments=segments,
            load_policy=load_policy,
        )


@dataclass(frozen=True, kw_only=True)
class PartConfig(Config, ABC):
    """Base of every `<Part>Config`: a frozen record of choices that builds its part."""

    @abstractmethod
    def build(self, context: PartContext) -> Part:
        """Build the part; every check of the configuration against the spaces happens here."""


class Part(nn.Module):
    """One expert signal. Inherit the hook interfaces you implement: the class header then says what the part does.

    A part has its own `generator` (seeded from run seed and name), so that adding or permuting parts changes no
    other random stream. A number that moves during training is a `Scalar` (`understudy.core.schedules`).
    """

    uses_next_obs: bool = False
    """True if the part (of this class, or as configured) reads `rollout["next_obs"]`; the core fills it only then."""

    def __init__(self, context: PartContext) -> None:
        super().__init__()
        self.name = context.name
        self.generator = torch.Generator(device=context.device).manual_seed(context.seed)

    def core_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that PPO's own optimizer moves: those of `Losses` parts; parts with `Updates` move their own."""
        if isinstance(self, Losses) and not isinstance(self, Updates):
            yield from (p for p in self.parameters() if p.requires_grad)

    def training_state(self) -> dict[str, Any]:
        """Everything that changes during training (own optimizers are submodules): tensors and plain values."""
        return {"modules": dict(self.state_dict()), "generator": self.generator.get_state()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned."""
        self.load_state_dict(dict(state["modules"]))
        self.generator.set_state(state["generator"].cpu())


class Labels(ABC):
    """Each environment step, without gradient: attach what an expert says about the observation."""

    @abstractmethod
    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        """From obs `[N]` and is_first `[N]`, a TensorDict `[N]`, stored under `rollout[name]`."""


class Overrides(ABC):
    """Each environment step, at most one part: replace the action in some environments (the part is also `Labels`)."""

    @abstractmethod
    def override(self, action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
        """From the sampled raw action `[N, *A]` and this part's label, (action to execute, replaced `[N]` bool)."""


class Rewards(ABC):
    """After the rollout, before GAE, without gradient: add to the reward."""

    @property
    @abstractmethod
    def reward_weight(self) -> Tensor:
        """0-D weight of this reward beside the task's."""

    @abstractmethod
    def reward(self, rollout: TensorDict) -> Tensor:
        """From the rollout `[T, N]`, a reward `[T, N]`; the core adds `reward_weight` times it."""


class Updates(ABC):
    """Before the PPO epochs, while the policy still equals the behaviour policy: take own optimizer steps."""

    @abstractmethod
    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """Learn from the rollout `[T, N]` with own optimizers, moved by `gradient_step` only."""


class Weights(ABC):
    """Each minibatch, detached and captured: scale surrogate and entropy per sample."""

    @abstractmethod
    def weight(self, batch: TensorDict, out: PolicyOutput) -> Tensor:
        """A weight in [0, 1] per sample, `[B]` (`[T, B]` for a recurrent policy)."""


class Losses(ABC):
    """Each minibatch: add a loss to PPO's. `loss` is captured: static shapes, no `.item()`, no branch on a tensor."""

    def sample(self, batch: TensorDict) -> TensorDict | None:
        """Extra rows for this minibatch (demonstrations, say), drawn eagerly; they appear as `batch[name, "sample"]`.

        The batch of the returned TensorDict may differ from the minibatch's, but must be the same every time.
        """
        return None

    @abstractmethod
    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """A scalar, coefficients included, and detached 0-D metrics."""
