"""What parts that learn from demonstrations share: opening them for the environment that a part is built for."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.data.demonstrations import Demonstrations
from understudy.data.recordings import Key
from understudy.envs.actions import ActionMap
from understudy.parts.part import PartContext


def open_demonstrations(
    context: PartContext,
    source: str,
    *,
    keys: Sequence[Key],
    action_map: ActionMap | None = None,
    num_trajectories: int | None = None,
    step_stride: int = 1,
) -> Demonstrations:
    """`Demonstrations.load`, checked against the spaces of the context's environment; raises as it does."""
    return Demonstrations.load(
        source,
        observation_space=context.observation_space,
        action_space=context.action_space,
        action_map=action_map,
        keys=keys,
        num_trajectories=num_trajectories,
        step_stride=step_stride,
        device=context.device,
        env_id=context.env_id,
    )
