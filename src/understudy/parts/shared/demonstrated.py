"""Learn from demonstrations: the options that name them, opening them for an environment, drawing from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from tensordict import TensorDict

from understudy.core.check import Config, In
from understudy.core.spaces import Key
from understudy.data.demonstrations.check import Actions
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.envs.actions import ActionMap
from understudy.ppo.part import PartContext

BatchSize = Annotated[int, In(1, 1_000_000)]
SequenceLength = Annotated[int, In(1, 10_000)]


@dataclass(frozen=True, kw_only=True)
class DemonstrationOptions(Config):
    """Options of every part that learns from demonstrations."""

    demonstrations: str = ""
    """Demonstrations of the expert: a path, or the id of a local Minari dataset."""
    num_trajectories: Annotated[int | None, In(1)] = None
    """Use only the first n trajectories; None: all."""
    subset: str = ""
    """Only the trajectories of this list in the file: robomimic's filter keys, such as train; empty: all."""
    only_success: bool = False
    """Only trajectories that the file calls successful, among these."""
    file_observations: tuple[str, ...] = ()
    """Vectors of the file, joined in this order into the one that the environment has; empty: as it names them."""
    min_return: float | None = None
    """Minimum return, among these trajectories; failed ones would be imitated too."""
    step_stride: Annotated[int, In(1)] = 1
    """Use only every n-th transition of each trajectory, as papers do; 1 for a policy with a memory."""
    actions: Actions = "executed"
    """scaled: the file's lie in [-1, 1] and the environment has another range, as in Tianshou's buffers."""

    def open(self, context: PartContext, keys: Sequence[Key], action_map: ActionMap | None = None) -> Demonstrations:
        """`Demonstrations.load`, checked against the spaces of the context's environment; raises as it does."""
        return Demonstrations.load(
            self.demonstrations,
            observation_space=context.observation_space,
            action_space=context.action_space,
            action_map=action_map,
            keys=keys,
            num_trajectories=self.num_trajectories,
            subset=self.subset,
            only_success=self.only_success,
            file_observations=self.file_observations,
            min_return=self.min_return,
            step_stride=self.step_stride,
            device=context.device,
            env_id=context.env_id,
            groups=context.groups,
            segments=context.segments,
            actions=self.actions,
        )


def check_windows(options: DemonstrationOptions, batch_size: int, sequence_length: int) -> None:
    """Raise ValueError unless a policy with a memory can learn from windows of these demonstrations."""
    if options.step_stride != 1 or batch_size % sequence_length:
        raise ValueError(
            f"a policy with a memory needs step_stride 1 and a batch_size that sequence_length divides, got "
            f"{options.step_stride}, {batch_size} and {sequence_length}"
        )


def draw_actions(
    demonstrations: Demonstrations, batch_size: int, sequence_length: int | None, generator: torch.Generator
) -> TensorDict:
    """`obs`, `action` and `is_first` of steps `[B]`, or of windows `[L, B / L]` with L = `sequence_length`."""
    if sequence_length is None:
        drawn = demonstrations.sample(batch_size, generator, next_obs=False)
    else:
        drawn = demonstrations.sequences(sequence_length, batch_size // sequence_length, generator)
    return drawn.select("obs", "action", "is_first")
