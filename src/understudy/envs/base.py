"""The environment contract: `VecEnv`, one transition (`Step`), and what an environment may offer beyond it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor


class Step(NamedTuple):
    """One step of N environments. Tensors are only valid until the next `step` or `reset`: copy what you keep."""

    obs: TensorDict  # [N]; where an episode ended, already the next episode's first observation
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool: the task ended, no bootstrap
    truncated: Tensor  # [N] bool: a time limit, bootstrap from final_obs
    final_obs: TensorDict | None  # [N]; the true last observation in rows that ended; None if the env cannot tell
    metrics: dict[str, Tensor]  # name -> 0-D or [N] float tensor, logged as a mean (NaN: left out); may be empty
    valid: Tensor | None = None  # [N] bool; None: every row is a transition. False: the environment spent the step on
    #   a reset and ignored the action. Such a row has reward 0, no flag, and the next episode's first observation;
    #   the row before it, where the episode ended, has obs == final_obs. The core leaves it out of returns and losses.

    @property
    def ended(self) -> Tensor:
        """Rows whose episode ended with this step, `[N]` bool."""
        return self.terminated | self.truncated

    @property
    def starts_next(self) -> Tensor:
        """Rows whose next step is an episode's first, `[N]` bool: `is_first` of the row that follows."""
        return self.ended if self.valid is None else self.ended | ~self.valid


@runtime_checkable
class VecEnv(Protocol):
    """N copies of an environment stepped together; every junk (reset) transition is removed by the adapter."""

    num_envs: int
    device: torch.device
    observation_space: spaces.Dict  # per env: group -> Box / Discrete / ..., or spaces.Dict of named components
    action_space: spaces.Space[Any]  # per env

    def reset(self, seed: int | None = None) -> TensorDict:
        """Start N fresh episodes (seeded per environment when `seed` is given) and return obs `[N]`."""
        ...

    def step(self, action: Tensor) -> Step:
        """Apply one executed action per environment, `[N, *A]`."""
        ...

    def close(self) -> None:
        """Free what the environment holds (processes, windows)."""
        ...


class FixedMemory:
    """Mark of the library's own adapters that check what they write and return the same `Step`, tensors and all."""


@runtime_checkable
class SimulatedEnv(Protocol):
    """A `VecEnv` that is a simulator's: what it counts, what its observations are made of (`SimulatorAdapter`)."""

    counters: dict[str, int]  # what its curricula go by; saved with a checkpoint
    terms: dict[tuple[str, ...], tuple[str, ...]]  # observation -> name of each column's term

    def stagger(self, seed: int) -> None:
        """Give each running episode a random age."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What a robot has to know to run a policy, by mjlab's keys; empty where the simulator does not tell."""
        ...


@runtime_checkable
class StatefulEnv(Protocol):
    """A `VecEnv` whose whole state can be saved and restored (tensors only), so that a resume is exact anywhere."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything `step` depends on, as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; the next observation follows from the next `step`."""
        ...

    def observe(self) -> TensorDict:
        """The current observation `[N]`, without stepping."""
        ...
