"""What parts that learn from demonstrations share: where these are, and opening them for an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.read import Key
from understudy.envs.actions import ActionMap
from understudy.ppo.part import PartConfig, PartContext


@dataclass(frozen=True, kw_only=True)
class DemonstratedConfig(PartConfig):
    """Options of every part that learns from demonstrations."""

    demonstrations: str = ""
    """Demonstrations of the expert: a path, or the id of a local Minari dataset."""
    num_trajectories: int | None = None
    """Use only the first so many trajectories; None: all."""
    min_return: float | None = None
    """Use only trajectories (among those) that returned at least so much: what fails is imitated as well."""
    step_stride: int = 1
    """Use only every n-th transition of each, as papers do; 1 where a memory is trained on them."""

    def __post_init__(self) -> None:
        if self.step_stride < 1:
            raise ValueError(f"step_stride must be at least 1, got {self.step_stride}")

    def open(self, context: PartContext, keys: Sequence[Key], action_map: ActionMap | None = None) -> Demonstrations:
        """`Demonstrations.load`, checked against the spaces of the context's environment; raises as it does."""
        return Demonstrations.load(
            self.demonstrations,
            observation_space=context.observation_space,
            action_space=context.action_space,
            action_map=action_map,
            keys=keys,
            num_trajectories=self.num_trajectories,
            min_return=self.min_return,
            step_stride=self.step_stride,
            device=context.device,
            env_id=context.env_id,
        )


def check_windows(config: DemonstratedConfig, batch_size: int, sequence_length: int) -> None:
    """Raises ValueError unless a policy with a memory can learn from windows of these demonstrations."""
    if config.step_stride != 1 or batch_size % sequence_length:
        raise ValueError(
            f"a policy with a memory needs step_stride 1 and a batch_size that sequence_length divides, got "
            f"{config.step_stride}, {batch_size} and {sequence_length}"
        )
