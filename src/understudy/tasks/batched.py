"""What the batched tasks share: copies, device, random stream, saving, and the groups of an expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.check import In, fit
from understudy.core.devices import host_is_device


class BatchedTask(ABC):
    """A `VecEnv` in torch, on any device, without a loop over copies, whose state can be saved.

    Raises ValueError for no copy and no step.
    """

    STATE: ClassVar[tuple[str, ...]]
    """Attributes, all tensors, that `step` depends on beside the generator."""

    def __init__(
        self, num_envs: int, device: torch.device | str, max_episode_steps: int, groups: dict[str, Any], action: Any
    ) -> None:
        self.num_envs = fit(Annotated[int, In(1)], num_envs, "num_envs")
        self.max_episode_steps = fit(Annotated[int, In(1)], max_episode_steps, "max_episode_steps")
        self.device = torch.device(device)
        self.host_is_device = host_is_device(self.device)
        self.observation_space, self.action_space = spaces.Dict(groups), action
        self.generator = torch.Generator(device=self.device)
        self._success = torch.ones(num_envs, dtype=torch.int64, device=self.device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    def reset(self, seed: int | None = None) -> TensorDict:
        """Fresh episodes everywhere."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self._restart(~self._never)
        return self.observe()

    @abstractmethod
    def observe(self) -> TensorDict:
        """The current observation `[N]`."""

    @abstractmethod
    def _restart(self, ended: Tensor) -> None:
        """Begin an episode where one ended; drawn for all copies, so that nothing waits for a count."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that `step` depends on."""
        return {**{name: getattr(self, name) for name in self.STATE}, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError for another shape or dtype."""
        for name in self.STATE:
            x = getattr(self, name)
            if (state[name].shape, state[name].dtype) != (x.shape, x.dtype):
                raise ValueError(f"{name} is {state[name].dtype} {[*state[name].shape]}, not {x.dtype} {[*x.shape]}")
            setattr(self, name, state[name].to(self.device, copy=True))
        self.generator.set_state(state["generator"].cpu())

    def close(self) -> None:  # noqa: B027 (meant to be empty)
        """Nothing to free."""

    def _groups(self, groups: dict[str, Tensor]) -> TensorDict:
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def _with_expert(self, policy: Tensor, action: Tensor) -> TensorDict:
        return self._groups({"policy": policy, "expert_action": action, "expert_success": self._success})


def expert_groups(policy: spaces.Space[Any], num_actions: int) -> dict[str, spaces.Space[Any]]:
    """Spaces of what the policy sees, of the expert's action, and of its success, which is always 1."""
    return {
        "policy": policy,
        "expert_action": spaces.Discrete(num_actions),
        "expert_success": spaces.Discrete(2),
    }
