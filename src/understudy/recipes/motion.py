"""APPO and ATPPO: PPO with an adversarial motion prior, without and with a teacher."""

from __future__ import annotations

import dataclasses

from understudy.core.check import checked
from understudy.core.schedules import Schedule
from understudy.data.motions.library import MotionsConfig
from understudy.parts.motion_prior import MotionPriorConfig
from understudy.parts.teacher import TeacherConfig
from understudy.recipes.mujoco_tasks import mujoco
from understudy.recipes.teacher import go1_teacher
from understudy.runs.config import TrainConfig

_STYLE = {
    # joint angles, rates of pitch and joints; the pitch itself would be off by 2 pi after a somersault
    "HalfCheetah-v5": (*range(2, 8), *range(10, 17)),
    "Ant-v5": (*range(5, 13), *range(19, 27)),  # joint angles, then their rates
}
"""Columns of the observation that are style: neither height nor place, nor the speed that the task asks for."""

_GO1_JOINTS = tuple(f"{leg}_{joint}_joint" for leg in ("FR", "FL", "RR", "RL") for joint in ("hip", "thigh", "calf"))
_GO1_STYLE = tuple(range(63, 87))
"""Columns of the Go1's `privileged_state` that hold its joints' offsets and rates without noise."""


@checked
def appo(
    env_id: str = "HalfCheetah-v5",
    *,
    motions: tuple[str, ...] = (),
    task_reward_lerp: float = 0.4,
    total_steps: int = 1_000_000,
    seed: int = 0,
) -> TrainConfig:
    """APPO: PPO that keeps the style of motion clips (--parts.motion.motions.files); 0.4 x task, 0.6 x style."""
    config = mujoco(env_id, total_steps=total_steps, seed=seed)
    part = MotionPriorConfig(columns=_STYLE.get(env_id, ()), step_time=0.05)
    return _with_style("appo", config, part, motions, task_reward_lerp)


@checked
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
    config = appo(env_id, motions=motions, task_reward_lerp=task_reward_lerp, total_steps=total_steps, seed=seed)
    # as in TPPO's recipes: the deviation is the teacher's too, and the teacher fades where there is a reward
    coef = Schedule(kind="linear", start=1.0, end=0.5)
    parts = {**config.parts, "teacher": TeacherConfig(checkpoints=tuple(teachers), target="kl", coef=coef)}
    return dataclasses.replace(config, recipe="atppo", parts=parts)


@checked
def go1_trot(
    env_id: str = "Go1JoystickFlatTerrain-v1",
    *,
    motions: tuple[str, ...] = (),
    task_reward_lerp: float = 0.15,
    total_steps: int = 2_000_000,
    seed: int = 0,
) -> TrainConfig:
    """APPO: a Go1 that follows a joystick (--start-from a go1-teacher's RUN) learns the trot of examples/trot_clips.py.

    From fresh weights it leads no further than standing (1.5 and 3 million steps, one seed each): noise is punished
    before there is a gait, and so fades before one is found.
    """
    config = go1_teacher(env_id, total_steps=total_steps, seed=seed)
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, gamma=0.99))
    part = MotionPriorConfig(
        columns=_GO1_STYLE,
        fields=(*(f"{joint}_offset" for joint in _GO1_JOINTS), *(f"{joint}_dof_vel" for joint in _GO1_JOINTS)),
        step_time=0.02,
        scale_by_step_time=True,  # as the task's reward is
    )
    return _with_style("go1-trot", config, part, motions, task_reward_lerp)


def _with_style(
    recipe: str, config: TrainConfig, part: MotionPriorConfig, motions: tuple[str, ...], lerp: float
) -> TrainConfig:
    """The training with `lerp` times the task's reward and the rest the motion prior's."""
    if not 0.0 <= lerp <= 1.0:
        raise ValueError(f"task_reward_lerp is the task's share of the reward, in [0, 1], got {lerp}")
    part = dataclasses.replace(
        part,
        motions=MotionsConfig(files=tuple(motions)),
        reward_weight=1.0 - lerp,
        # AMP's penalty of 10 keeps the scores of both sides close together
        discriminator=dataclasses.replace(part.discriminator, gradient_penalty=1.0),
    )
    ppo = dataclasses.replace(config.ppo, reward_weight=lerp)
    return dataclasses.replace(config, recipe=recipe, ppo=ppo, parts={"motion": part})
