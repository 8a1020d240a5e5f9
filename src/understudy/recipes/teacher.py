"""Learning from a teacher and from privileged state: TPPO, EstimatorPPO, EstimatorTPPO, and distillation alone.

The student never sees velocities: it has a memory, an estimator, a teacher that sees everything, or several of these.
"""

from __future__ import annotations

import dataclasses

from understudy.core.check import checked
from understudy.core.schedules import Number, Schedule
from understudy.envs.makers import is_simulator
from understudy.envs.registry import EnvConfig
from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.protocol import PolicyConfig
from understudy.parts.estimator import EstimatorConfig
from understudy.parts.teacher import TeacherConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartConfig
from understudy.recipes.mujoco_tasks import mujoco
from understudy.runs.config import TrainConfig

_SIZES = {"Hopper-v5": (5, 6), "HalfCheetah-v5": (8, 9), "Walker2d-v5": (8, 9)}
"""Positions and velocities in the observations of Gymnasium's MuJoCo tasks."""
_CHANGES = 5.0
"""In one step positions change by some hundredths to tenths of their standard deviations."""
_GO1_REWARD = {
    "tracking_lin_vel_scale": 3.0,
    "tracking_ang_vel_scale": 1.5,
    "pose_scale": 0.2,
    "energy_scale": -0.0005,
    "feet_clearance_scale": -0.5,
    "feet_air_time_scale": 0.5,
}
"""With the weights of MuJoCo Playground (1, 0.5, 0.5, -0.001, -2, 0.1) a robot that stands gets half of what one that
walks well gets, and a reward is never negative: few million steps lead no further than standing."""
_GO1_STATE = {"velocity": 3, "proprioception": 45}
_GO1_PRIVILEGED = {"noisy_state_and_imu": 57, "velocity": 3, "rest": 63}
"""The first segment of `state` is a noisy velocity that no robot measures; `privileged_state` has the true one."""


@checked
def tppo(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """TPPO: PPO of a recurrent student without velocities, drawn to a teacher (--parts.teacher.checkpoints RUN)."""
    return _student("tppo", env_id, total_steps, seed, teachers=teachers)


@checked
def distill(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 300_000, seed: int = 0
) -> TrainConfig:
    """DAgger from a teacher (--parts.teacher.checkpoints RUN) to a recurrent student without velocities; no reward."""
    config = _student("distill", env_id, total_steps, seed, teachers=teachers, teacher_coef=1.0)
    ppo = dataclasses.replace(config.ppo, surrogate_coef=0.0, value_coef=0.0, entropy_coef=0.0)
    return dataclasses.replace(config, ppo=ppo)


@checked
def distill_then_ppo(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """Distillation for the first third, then PPO, whose critic has learned by then; the teacher (its RUN) fades."""
    begin = max(total_steps // 3, 1)
    fading = Schedule(kind="piecewise", points=((begin, 1.0), (2 * begin, 0.2)))
    config = _student("distill-then-ppo", env_id, total_steps, seed, teachers=teachers, teacher_coef=fading)
    surrogate = Schedule(kind="step", points=((0, 0.0), (begin, 1.0)))
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, surrogate_coef=surrogate, entropy_coef=0.0))


@checked
def estimator_ppo(env_id: str = "Hopper-v5", *, total_steps: int = 1_000_000, seed: int = 0) -> TrainConfig:
    """EstimatorPPO: PPO of a student that estimates its velocities from its past positions."""
    return _student("estimator-ppo", env_id, total_steps, seed, estimates=True)


@checked
def estimator_tppo(
    env_id: str = "Hopper-v5", *, teachers: tuple[str, ...] = (), total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """EstimatorTPPO: estimated velocities and a teacher that has the true ones (--parts.teacher.checkpoints RUN)."""
    return _student("estimator-tppo", env_id, total_steps, seed, teachers=teachers, estimates=True)


@checked
def go1_teacher(
    env_id: str = "Go1JoystickFlatTerrain-v1", *, total_steps: int = 5_000_000, seed: int = 0
) -> TrainConfig:
    """A Go1 that follows a joystick, with everything that the simulator knows: the teacher of go1-student."""
    return TrainConfig(
        recipe="go1-teacher",
        # each copy of the simulator takes 52 MB
        env=EnvConfig(
            id=env_id, num_envs=128, backend="envpool", groups={"policy": "privileged_state"}, kwargs=dict(_GO1_REWARD)
        ),
        policy=_locomotion_policy(PolicyConfig(), env_id),
        # for millions of steps, not a GPU simulator's hundreds of millions: small rollouts, many iterations
        ppo=PPOConfig(
            num_steps=32,
            epochs=5,
            minibatches=4,
            # 0.99 from the start: 1.3 and 1.9 million steps found no gait; 0.97 to the end: it runs until it falls
            gamma=Schedule(kind="step", points=((0, 0.97), (1_500_000, 0.99))),
            value_normalization="scale",
            desired_kl=0.03,
            optimizer=OptimizerConfig(learning_rate=3e-4, max_grad_norm=1.0),
        ),
        total_steps=total_steps,
        seed=seed,
    )


@checked
def go1_student(
    env_id: str = "Go1JoystickFlatTerrain-v1",
    *,
    teachers: tuple[str, ...] = (),
    total_steps: int = 5_000_000,
    seed: int = 0,
) -> TrainConfig:
    """A Go1 that acts on what a robot measures, with an estimated velocity and a teacher (go1-teacher's run)."""
    return _student("go1-student", env_id, total_steps, seed, teachers=teachers, estimates=True)


_FADING = Schedule(kind="linear", start=1.0, end=0.5)
"""A teacher's weight beside a reward. Never fade to 0: PPO only sees the noisy policy, and without the teacher the
noise-free policy falls over."""


def _student(
    recipe: str,
    env_id: str,
    total_steps: int,
    seed: int,
    *,
    teachers: tuple[str, ...] | None = None,
    teacher_coef: Number = _FADING,
    estimates: bool = False,
) -> TrainConfig:
    """A student without velocities (in a simulator: what the critic sees): it estimates them, has a teacher, or both.

    Critic and teacher see the whole observation, group "teacher". Raises ValueError for a task whose velocities are not
    known here.
    """
    if is_simulator(env_id):
        config = _simulated(env_id, total_steps, seed, estimates=estimates)
    elif env_id.startswith("Go1"):
        config = _go1(env_id, total_steps, seed, has_teacher=teachers is not None, estimates=estimates)
    else:
        config = _hidden_velocity(env_id, total_steps, seed, estimates=estimates)
    parts: dict[str, PartConfig] = {"estimator": EstimatorConfig(estimator="velocity")} if estimates else {}
    if teachers is not None:
        parts["teacher"] = TeacherConfig(
            checkpoints=tuple(teachers),
            groups={} if is_simulator(env_id) else {"policy": "teacher"},
            target="kl",  # copies the deviation too: a student that explores more falls where the teacher does not
            coef=teacher_coef,
        )
    return dataclasses.replace(config, recipe=recipe, parts=parts)


def _hidden_velocity(env_id: str, total_steps: int, seed: int, *, estimates: bool) -> TrainConfig:
    """A MuJoCo task whose actor sees positions only."""
    if env_id not in _SIZES:
        raise ValueError(f"this recipe knows where the velocities are in {', '.join(_SIZES)}, not in {env_id}")
    config = mujoco(env_id, total_steps=total_steps, seed=seed)
    position, velocity = _SIZES[env_id]
    env = dataclasses.replace(
        config.env,
        num_envs=128,
        groups={"policy": "policy", "teacher": "policy"},
        segments={"policy": {"position": position, "velocity": velocity}},
    )
    head = EstimatorHeadConfig(
        targets=("policy/velocity",), memory="gru", memory_size=64, memory_changes=_CHANGES, hidden_sizes=(64,)
    )
    policy = dataclasses.replace(
        config.policy,
        actor_groups=("policy/position",),
        critic_groups=("teacher",),
        memory="none" if estimates else "gru",
        memory_size=64,
        memory_changes=_CHANGES,
        critic_memory=False,
        estimators={"velocity": head} if estimates else {},
    )
    # velocities are in the last few positions: many short columns, whose steps in sequence are few
    ppo = dataclasses.replace(
        config.ppo,
        num_steps=16,
        epochs=10,
        minibatches=8,
        recompute_advantage=False,
        optimizer=OptimizerConfig(learning_rate=Schedule(kind="linear", start=1e-3, end=0.0), eps=1e-8),
    )
    return dataclasses.replace(config, env=env, policy=policy, ppo=ppo)


def _simulated(env_id: str, total_steps: int, seed: int, *, estimates: bool) -> TrainConfig:
    """A simulator's task, in which a memory or an estimator makes up for what only the group "critic" shows."""
    config = mujoco(env_id, total_steps=total_steps, seed=seed)
    head = EstimatorHeadConfig(targets=("critic",), memory="gru", memory_size=64, hidden_sizes=(64,))
    policy = dataclasses.replace(
        config.policy,
        memory="none" if estimates else "gru",
        critic_memory=False,
        estimators={"velocity": head} if estimates else {},
    )
    ppo = dataclasses.replace(config.ppo, num_steps=24, epochs=5, minibatches=4, recompute_advantage=False)
    return dataclasses.replace(config, env=dataclasses.replace(config.env, num_envs=64), policy=policy, ppo=ppo)


def _go1(env_id: str, total_steps: int, seed: int, *, has_teacher: bool, estimates: bool) -> TrainConfig:
    """A Go1 that acts on its proprioception."""
    config = go1_teacher(env_id, total_steps=total_steps, seed=seed)
    ppo = config.ppo
    if has_teacher:  # nobody has to discover a gait then, and the KL rule would throttle learning
        optimizer = dataclasses.replace(ppo.optimizer, learning_rate=Schedule(kind="linear", start=1e-3, end=0.0))
        ppo = dataclasses.replace(ppo, gamma=0.99, desired_kl=None, optimizer=optimizer)
    env = dataclasses.replace(
        config.env,
        groups={"policy": "state", "teacher": "privileged_state", "truth": "privileged_state"},
        segments={"policy": _GO1_STATE, "truth": _GO1_PRIVILEGED},
    )
    velocity = EstimatorHeadConfig(targets=("truth/velocity",), memory="gru", hidden_sizes=(128, 64))
    policy = PolicyConfig(
        actor_groups=("policy/proprioception",),
        critic_groups=("teacher",),
        memory="gru",  # beside an estimator, too: what is measured is noisy (its effect was not measured)
        critic_memory=False,
        estimators={"velocity": velocity} if estimates else {},
    )
    return dataclasses.replace(config, env=env, policy=_locomotion_policy(policy, env_id), ppo=ppo)


def _locomotion_policy(policy: PolicyConfig, env_id: str) -> PolicyConfig:
    """The networks that legged robots are trained with (Isaac Lab's, smaller ones on flat ground)."""
    sizes = (128, 128, 128) if "Flat" in env_id else (512, 256, 128)
    # more noise than this throws the robot over before it gets any reward; less finds no gait
    noise = DistributionConfig(init_std=0.3, min_std=0.1)
    return dataclasses.replace(policy, hidden_sizes=sizes, activation="elu", observation_clip=5.0, distribution=noise)
