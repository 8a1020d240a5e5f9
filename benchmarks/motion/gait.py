"""The motion benchmark's robots, and how their gait is measured: distances to clips, joint angles, foot contacts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from understudy.data.demonstrations.write import Episode
    from understudy.envs.registry import EnvConfig
    from understudy.nn.policy import ActorCritic
    from understudy.parts import MotionPriorConfig

BINS = 20
"""Parts of the gait cycle in the picture."""
SKIP = 20
"""First frames of each episode that are not measured: starting from rest is no gait."""
COPIES = 50
"""Of the pool's environments that play at a time: each of the Go1's takes 52 MB."""
CYCLES = 200
"""Frames that a clip which wraps is repeated for."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A robot: where its joints are among the observations, and how to tell which of its feet touch the ground."""

    env_id: str
    recorded: bool  # clips from a PPO run; else from a script
    joints: Mapping[str, int]  # angle -> column of the observation; the first one's swing tells the gait's phase
    feet: tuple[str, ...]  # geometries of the model, or names
    step_time: float = 0.05  # s
    lowest: float = 0.0  # frequency of a gait (Hz): slower changes are those of the joystick
    contact: tuple[int, ...] = ()  # columns of the observation that tell contacts; empty: asked of the simulation
    bounce: int = 0  # steps that a foot may be in the air and has not stepped
    commanded: tuple[int, ...] = ()  # columns that hold the velocity that the joystick asks for (m/s)
    velocity: tuple[int, ...] = ()  # and the one there is

    @property
    def style(self) -> MotionPriorConfig:
        """The recipe's motion prior: its columns and fields are the style features."""
        from understudy.parts import MotionPriorConfig
        from understudy.recipes import appo, go1_trot

        part = (go1_trot if self.contact else appo)(self.env_id).parts["motion"]
        assert isinstance(part, MotionPriorConfig)
        return part

    @property
    def joint_places(self) -> list[int]:
        """The joints' places among the style features."""
        return [self.style.columns.index(column) for column in self.joints.values()]


TASKS = {
    "cheetah": Task(
        env_id="HalfCheetah-v5",
        recorded=True,
        joints={"bthigh": 2, "bshin": 3, "bfoot": 4, "fthigh": 5, "fshin": 6, "ffoot": 7},
        feet=("bfoot", "ffoot"),
    ),
    "ant": Task(
        env_id="Ant-v5",
        recorded=False,
        joints={f"{kind}_{leg}": 3 + 2 * leg + (kind == "ankle") for leg in (1, 2, 3, 4) for kind in ("hip", "ankle")},
        feet=("left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom"),
    ),
    "go1": Task(
        env_id="Go1JoystickFlatTerrain-v1",
        recorded=False,
        joints={
            f"{leg} {joint}": 63 + 3 * number + place
            for place, joint in ((1, "thigh"), (2, "calf"))
            for number, leg in enumerate(("FR", "FL", "RR", "RL"))
        },
        feet=("FR", "FL", "RR", "RL"),
        step_time=0.02,
        lowest=1.5,
        contact=(99, 100, 101, 102),
        bounce=2,
        commanded=(45, 46),
        velocity=(57, 58),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Played:
    """Episodes of one policy, without their first frames."""

    frames: list[np.ndarray]  # [F, D] style features
    contact: list[np.ndarray]  # [F, feet] bool
    scores: list[float]
    velocity_error: float | None  # m/s, root mean square over all frames, where something is commanded


def play(task: Task, policy: ActorCritic, env_config: EnvConfig, episodes: int, seed: int) -> Played:
    """Deterministic episodes, and which feet touch the ground."""
    recorded, contact = (_play_pool if task.contact else _play_simulation)(task, policy, env_config, episodes, seed)
    columns = list(task.style.columns)
    return Played(
        frames=[episode.observations["policy",][SKIP:-1, columns] for episode in recorded],
        contact=[rows[SKIP:] for rows in contact],
        scores=[episode.score for episode in recorded],
        velocity_error=velocity_error(task, [episode.observations["policy",][SKIP:-1] for episode in recorded]),
    )


def velocity_error(task: Task, observations: Sequence[np.ndarray]) -> float | None:
    """Root mean square of the distance between horizontal velocity and command (m/s), observations `[F, D]`."""
    if not task.commanded:
        return None
    rows = np.concatenate(observations)
    return float(np.sqrt(np.square(rows[:, list(task.velocity)] - rows[:, list(task.commanded)]).sum(1).mean()))


def _play_pool(
    task: Task, policy: ActorCritic, env_config: EnvConfig, episodes: int, seed: int
) -> tuple[list[Episode], list[np.ndarray]]:
    """Episodes side by side; contacts are among the observations."""
    from understudy.tools.play import PolicyActor
    from understudy.tools.record import record_episodes

    def some(count: int, first: int) -> list[Episode]:  # its memory is free again at its end
        env = dataclasses.replace(env_config, num_envs=count).make("cpu", first)
        played = record_episodes(env, PolicyActor(policy), count, first)
        env.close()
        return played

    recorded: list[Episode] = []
    while len(recorded) < episodes:
        recorded += some(min(COPIES, episodes - len(recorded)), seed + len(recorded))
    return recorded, [episode.observations["policy",][:-1, list(task.contact)] > 0.5 for episode in recorded]


def _play_simulation(
    task: Task, policy: ActorCritic, env_config: EnvConfig, episodes: int, seed: int
) -> tuple[list[Episode], list[np.ndarray]]:
    """One episode after another, in a simulation that can be asked for contacts; none are known of a final frame."""
    from understudy.envs.gymnasium import InProcessVectorEnv
    from understudy.envs.gymnasium_ids import gymnasium_maker
    from understudy.tools.play import PolicyActor
    from understudy.tools.record import record_episodes

    env = InProcessVectorEnv([gymnasium_maker(env_config.id, env_config.kwargs)])
    act, contact = PolicyActor(policy), []

    def act_and_look(obs: Any, is_first: Any) -> Any:
        if bool(is_first):
            contact.append([])
        contact[-1].append(touching(env.envs[0].unwrapped, task.feet))
        return act(obs, is_first)

    recorded = record_episodes(env, act_and_look, episodes, seed)
    env.close()
    return recorded, [np.array(rows) for rows in contact]


def touching(env: Any, feet: Sequence[str]) -> list[bool]:
    """Whether each foot touches anything, `[feet]`."""
    touched = set(env.data.contact.geom.ravel().tolist())
    return [env.model.geom(foot).id in touched for foot in feet]


def measure(played: Played, task: Task, held_out: Path) -> dict[str, Any]:
    """Returns, distances to the held-out clips, and the gait: one row of the table."""
    from benchmarks.motion.measures import contact_timing, motion_distance

    episodes = [x for x in zip(played.frames, played.contact) if len(x[0]) > 2 * SKIP]  # a fall at once has no gait
    frames = [x for x, _ in episodes]
    distance = motion_distance(frames, clip_frames(task, held_out))
    row = {
        "test_return": statistics.fmean(played.scores),
        "velocity_error": played.velocity_error,
        "energy": distance.energy,
        "frechet": distance.frechet,
        **gait(task, frames),
    }
    timing = contact_timing([x for _, x in episodes], task.bounce)
    return {**row, "duty": timing.duty_factor.round(3).tolist(), "phase": timing.phase.round(3).tolist()}


def gait(task: Task, frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """Frequency, and mean and deviation of every joint's angle over the gait cycle."""
    from benchmarks.motion.measures import gait_cycle, gait_frequency, gait_phase

    joints = task.joint_places
    longest = max(frames, key=len)
    frequency = gait_frequency(longest[:, joints], task.step_time, task.lowest)
    phase = np.concatenate([gait_phase(x[:, joints[0]], task.step_time, frequency) for x in frames])
    mean, deviation = gait_cycle(np.concatenate(frames)[:, joints], phase, BINS)
    return {"frequency": frequency, "cycle": mean.round(4).tolist(), "cycle_deviation": deviation.round(4).tolist()}


def clip_frames(task: Task, path: Path) -> list[np.ndarray]:
    """The clips' style features at the task's step time, `[F, D]` each: recorded ones without their first frames,
    cycles repeated."""
    from understudy.data.motions.files import read_motions
    from understudy.data.motions.library import MotionLibrary

    style, clips = task.style, read_motions(path)
    fields = style.fields or tuple(f"policy[{column}]" for column in style.columns)
    wraps = clips[0].loop == "wrap"
    library = MotionLibrary(clips, fields, task.step_time, CYCLES if wraps else 2)
    rows = zip(library.offsets.tolist(), (library.offsets + library.starts + library.window - 1).tolist())
    cut = slice(None) if wraps else slice(SKIP, -1)
    return [library.frames[start:end].double().numpy()[cut] for start, end in rows]


def measure_clips(task: Task, clips: Path, held_out: Path) -> dict[str, Any]:
    """The held-out clips' gait, and how far the clips are from them: the least distance that can be expected."""
    from benchmarks.motion.measures import motion_distance

    learnt, other = clip_frames(task, clips), clip_frames(task, held_out)
    distance = motion_distance(learnt, other)
    return {"energy": distance.energy, "frechet": distance.frechet, **gait(task, other)}
