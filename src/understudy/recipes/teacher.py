"""Learning from a teacher and from privileged state: TPPO, EstimatorPPO, EstimatorTPPO, and distillation alone.

The student never sees velocities: it has a memory, an estimator, a teacher that sees everything, or several of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from understudy.recipes.mujoco_tasks import mujoco
from understudy.recipes.registry import recipe

if TYPE_CHECKING:
    from understudy.envs.registry import EnvConfig
    from understudy.nn.policy import PolicyConfig
    from understudy.parts.part import PartConfig
    from understudy.parts.teacher import TeacherConfig
    from understudy.train.config import TrainConfig

_SIZES = {"Hopper-v5": (5, 6), "HalfCheetah-v5": (8, 9), "Walker2d-v5": (8, 9)}
"""Positions and velocities in the observations of Gymnasium's MuJoCo tasks."""
_GO1_STATE = {"velocity": 3, "proprioception": 45}
_GO1_PRIVILEGED = {"noisy_state_and_imu": 57, "velocity": 3, "rest": 63}
"""The first segment of `state` is a noisy velocity that no robot measures; `privileged_state` has the true one."""


@recipe
def tppo(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """TPPO: PPO of a recurrent student without velocities, drawn to a teacher (--parts.teacher.checkpoints RUN)."""
    parts = {"teacher": _teacher(teachers, total_steps)}
    return _hidden_velocity("tppo", env_id, total_steps, seed, parts, memory=True)


@recipe
def distill(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 300_000, seed: int = 0
) -> TrainConfig:
    """DAgger from a teacher (--parts.teacher.checkpoints RUN) to a recurrent student without velocities; no reward."""
    parts = {"teacher": dataclasses.replace(_teacher(teachers, total_steps), coef=1.0, rollouts=4.0)}
    config = _hidden_velocity("distill", env_id, total_steps, seed, parts, memory=True)
    ppo = dataclasses.replace(config.ppo, surrogate_coef=0.0, value_coef=0.0, entropy_coef=0.0)
    return dataclasses.replace(config, ppo=ppo)


@recipe
def estimator_ppo(env_id: str = "Hopper-v5", *, total_steps: int = 1_000_000, seed: int = 0) -> TrainConfig:
    """EstimatorPPO: PPO of a student that estimates its velocities from its past positions."""
    return _hidden_velocity("estimator-ppo", env_id, total_steps, seed, _estimator(), memory=False)


@recipe
def estimator_tppo(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """EstimatorTPPO: estimated velocities and a teacher that has the true ones (--parts.teacher.checkpoints RUN)."""
    parts = {**_estimator(), "teacher": _teacher(teachers, total_steps)}
    return _hidden_velocity("estimator-tppo", env_id, total_steps, seed, parts, memory=False)


@recipe
def go1_teacher(
    env_id: str = "Go1JoystickFlatTerrain-v1", *, total_steps: int = 100_000_000, seed: int = 0
) -> TrainConfig:
    """A Go1 that follows a joystick, with everything that the simulator knows: the teacher of go1-student."""
    from understudy.envs.registry import EnvConfig
    from understudy.nn.policy import PolicyConfig

    env = EnvConfig(id=env_id, num_envs=256, backend="envpool", groups={"policy": "privileged_state"})
    return _locomotion("go1-teacher", env, PolicyConfig(), total_steps, seed, {})


@recipe
def go1_student(
    env_id: str = "Go1JoystickFlatTerrain-v1",
    *,
    teachers: tuple[str, ...] = (),
    total_steps: int = 100_000_000,
    seed: int = 0,
) -> TrainConfig:
    """A Go1 that acts on what a robot measures, with an estimated velocity and a teacher (go1-teacher's run)."""
    from understudy.envs.registry import EnvConfig
    from understudy.nn.estimator import EstimatorHeadConfig
    from understudy.nn.policy import PolicyConfig

    env = EnvConfig(
        id=env_id,
        num_envs=256,
        backend="envpool",
        groups={"policy": "state", "teacher": "privileged_state", "truth": "privileged_state"},
        segments={"policy": _GO1_STATE, "truth": _GO1_PRIVILEGED},
    )
    velocity = EstimatorHeadConfig(targets=("truth/velocity",), memory="gru", hidden_sizes=(128, 64))
    policy = PolicyConfig(
        actor_groups=("policy/proprioception",), critic_groups=("teacher",), estimators={"velocity": velocity}
    )
    parts = {**_estimator(), "teacher": _teacher(teachers, total_steps)}
    return _locomotion("go1-student", env, policy, total_steps, seed, parts)


def _hidden_velocity(
    name: str, env_id: str, total_steps: int, seed: int, parts: Mapping[str, PartConfig], *, memory: bool
) -> TrainConfig:
    """A MuJoCo task whose actor sees positions only; critic and teacher see the whole observation, group "teacher"."""
    from understudy.nn.estimator import EstimatorHeadConfig

    if env_id not in _SIZES:
        raise ValueError(f"this recipe knows where the velocities are in {', '.join(_SIZES)}, not in {env_id}")
    config = mujoco(env_id, total_steps=total_steps, seed=seed)
    position, velocity = _SIZES[env_id]
    env = dataclasses.replace(
        config.env,
        num_envs=16,
        groups={"policy": "policy", "teacher": "policy"},
        segments={"policy": {"position": position, "velocity": velocity}},
    )
    head = EstimatorHeadConfig(targets=("policy/velocity",), memory="gru", memory_size=64, hidden_sizes=(64,))
    policy = dataclasses.replace(
        config.policy,
        actor_groups=("policy/position",),
        critic_groups=("teacher",),
        memory="gru" if memory else "none",
        memory_size=64,
        estimators={} if memory else {"velocity": head},
    )
    # whole columns of environments are one minibatch's rows: fewer, longer ones than a feed-forward policy has
    ppo = dataclasses.replace(config.ppo, num_steps=128, minibatches=8, recompute_advantage=False)
    return dataclasses.replace(config, recipe=name, env=env, policy=policy, ppo=ppo, parts=dict(parts))


def _locomotion(
    name: str, env: EnvConfig, policy: PolicyConfig, total_steps: int, seed: int, parts: Mapping[str, PartConfig]
) -> TrainConfig:
    """The numbers that legged robots are trained with on GPU simulators (rsl_rl's), with fewer environments."""
    from understudy.nn.heads import DistributionConfig
    from understudy.ppo.optim import OptimizerConfig
    from understudy.ppo.ppo import PPOConfig
    from understudy.train.config import TrainConfig

    return TrainConfig(
        recipe=name,
        env=env,
        policy=dataclasses.replace(
            policy, hidden_sizes=(512, 256, 128), activation="elu", distribution=DistributionConfig(init_std=1.0)
        ),
        ppo=PPOConfig(
            num_steps=24,
            epochs=5,
            minibatches=4,
            entropy_coef=0.01,
            value_coef=1.0,
            desired_kl=0.01,
            optimizer=OptimizerConfig(learning_rate=1e-3, max_grad_norm=1.0),
        ),
        parts=dict(parts),
        total_steps=total_steps,
        seed=seed,
    )


def _teacher(checkpoints: tuple[str, ...], total_steps: int) -> TeacherConfig:
    """A teacher that sees the group "teacher" as its own, acts in the first episodes, and fades."""
    from understudy.parts.teacher import TeacherConfig
    from understudy.ppo.schedules import Schedule

    return TeacherConfig(
        checkpoints=tuple(checkpoints),
        groups={"policy": "teacher"},
        teacher_forcing=Schedule(kind="linear", start=1.0, end=0.0, length=max(total_steps // 10, 1)),
        coef=Schedule(kind="linear", start=1.0, end=0.0),
    )


def _estimator() -> dict[str, PartConfig]:
    from understudy.parts.estimator import EstimatorConfig

    return {"estimator": EstimatorConfig(estimator="velocity")}
