"""APPO and ATPPO: PPO with an adversarial motion prior, without and with a teacher."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from understudy.recipes.mujoco_tasks import mujoco
from understudy.recipes.registry import recipe

if TYPE_CHECKING:
    from understudy.train.config import TrainConfig

_CHEETAH_STYLE = (*range(1, 8), *range(10, 17))
"""HalfCheetah-v5 without height and velocity of the root: pitch and joint angles, then their rates."""


@recipe
def appo(
    env_id: str = "HalfCheetah-v5",
    *,
    motions: tuple[str, ...] = (),
    task_reward_lerp: float = 0.5,
    total_steps: int = 1_000_000,
    seed: int = 0,
) -> TrainConfig:
    """APPO: PPO that keeps the style of motion clips (--parts.motion.motions.files); half task, half style."""
    from understudy.data.motions import MotionsConfig
    from understudy.parts.motion_prior import MotionPriorConfig

    if not 0.0 <= task_reward_lerp <= 1.0:
        raise ValueError(f"task_reward_lerp is the task's share of the reward, in [0, 1], got {task_reward_lerp}")
    config = mujoco(env_id, total_steps=total_steps, seed=seed)
    part = MotionPriorConfig(
        motions=MotionsConfig(files=tuple(motions)),
        columns=_CHEETAH_STYLE,
        step_time=0.05,
        reward_weight=1.0 - task_reward_lerp,
    )
    ppo = dataclasses.replace(config.ppo, reward_weight=task_reward_lerp)
    return dataclasses.replace(config, recipe="appo", ppo=ppo, parts={"motion": part})


@recipe
def atppo(
    env_id: str = "HalfCheetah-v5",
    *,
    motions: tuple[str, ...] = (),
    teachers: tuple[str, ...] = (),
    task_reward_lerp: float = 0.5,
    total_steps: int = 1_000_000,
    seed: int = 0,
) -> TrainConfig:
    """ATPPO: APPO and a teacher (--parts.teacher.checkpoints) whose actions are labels beside the rewards."""
    from understudy.parts.teacher import TeacherConfig

    config = appo(env_id, motions=motions, task_reward_lerp=task_reward_lerp, total_steps=total_steps, seed=seed)
    parts = {**config.parts, "teacher": TeacherConfig(checkpoints=tuple(teachers))}
    return dataclasses.replace(config, recipe="atppo", parts=parts)
