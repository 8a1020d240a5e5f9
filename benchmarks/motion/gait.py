"""The motion benchmark's robots, and how their gait is measured: distances to clips, joint angles, foot contacts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from understudy.nn.policy import ActorCritic

BINS = 20
"""Parts of the gait cycle in the picture."""
STEP_TIME = 0.05
"""Of both robots (s)."""
SKIP = 20
"""First frames of each episode that are not measured: starting from rest is no gait."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A robot: where its joints are among the observations, and its feet among the model's geometries."""

    env_id: str
    recorded: bool  # clips from a PPO run; else from a script
    joints: Mapping[str, int]  # angle -> column of the observation; the first one's swing tells the gait's phase
    feet: tuple[str, ...]


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
}


@dataclass(frozen=True, kw_only=True)
class Played:
    """Episodes of one policy, without their first frames."""

    frames: list[np.ndarray]  # [F, D] observations
    contact: list[np.ndarray]  # [F, feet] bool
    scores: list[float]


def play(task: Task, policy: ActorCritic, episodes: int, seed: int) -> Played:
    """Deterministic episodes, one after another, and which feet touch the ground."""
    from understudy.envs.gymnasium import InProcessVectorEnv
    from understudy.envs.registry import gymnasium_maker
    from understudy.train.record import PolicyActor, record_episodes

    env = InProcessVectorEnv([gymnasium_maker(task.env_id, {})])
    act, contact = PolicyActor(policy), []

    def act_and_look(obs: Any, is_first: Any) -> Any:
        if bool(is_first):
            contact.append([])
        contact[-1].append(touching(env.envs[0].unwrapped, task.feet))
        return act(obs, is_first)

    recorded = record_episodes(env, act_and_look, episodes, seed)
    env.close()
    return Played(
        frames=[episode.observations["policy",][SKIP:-1] for episode in recorded],  # contacts know no final frame
        contact=[np.array(rows)[SKIP:] for rows in contact],
        scores=[episode.score for episode in recorded],
    )


def touching(env: Any, feet: Sequence[str]) -> list[bool]:
    """Whether each foot touches anything, `[feet]`."""
    touched = set(env.data.contact.geom.ravel().tolist())
    return [env.model.geom(foot).id in touched for foot in feet]


def measure(played: Played, task: Task, held_out: Path) -> dict[str, Any]:
    """Returns, distances to the held-out clips, and the gait: one row of the table."""
    from understudy.data.motion_measures import contact_timing, gait_phase, motion_distance

    columns = style_columns(task.env_id)
    episodes = [x for x in zip(played.frames, played.contact) if len(x[0]) > 2 * SKIP]  # a fall at once has no gait
    frames = [x for x, _ in episodes]
    reference = clip_frames(held_out)
    distance = motion_distance([x[:, columns] for x in frames], [x[:, columns] for x in reference])
    row = {
        "test_return": statistics.fmean(played.scores),
        "energy": distance.energy,
        "frechet": distance.frechet,
        **gait(task, frames),
    }
    lead = next(iter(task.joints.values()))
    phase = [gait_phase(x[:, lead], STEP_TIME, row["frequency"]) for x in frames]
    timing = contact_timing(np.concatenate([x for _, x in episodes]), np.concatenate(phase))
    return {**row, "duty": timing.duty_factor.round(3).tolist(), "phase": timing.phase.round(3).tolist()}


def gait(task: Task, frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """Frequency, and mean and deviation of every joint's angle over the gait cycle."""
    from understudy.data.motion_measures import gait_cycle, gait_frequency, gait_phase

    joints = list(task.joints.values())
    longest = max(frames, key=len)
    frequency = gait_frequency(longest[:, joints], STEP_TIME)
    phase = np.concatenate([gait_phase(x[:, joints[0]], STEP_TIME, frequency) for x in frames])
    mean, deviation = gait_cycle(np.concatenate(frames)[:, joints], phase, BINS)
    return {"frequency": frequency, "cycle": mean.round(4).tolist(), "cycle_deviation": deviation.round(4).tolist()}


def clip_frames(path: Path) -> list[np.ndarray]:
    """The clips' frames, without the first ones."""
    from understudy.data.motion_formats import read_motions

    return [clip.frames[SKIP:-1] for clip in read_motions(path)]


def style_columns(env_id: str) -> list[int]:
    """The style features of the recipe."""
    from understudy.parts import MotionPriorConfig
    from understudy.recipes import appo

    part = appo(env_id).parts["motion"]
    assert isinstance(part, MotionPriorConfig)
    return list(part.columns)


def measure_clips(task: Task, clips: Path, held_out: Path) -> dict[str, Any]:
    """The held-out clips' gait, and how far the clips are from them: the least distance that can be expected."""
    from understudy.data.motion_measures import motion_distance

    columns = style_columns(task.env_id)
    learnt, other = clip_frames(clips), clip_frames(held_out)
    distance = motion_distance([x[:, columns] for x in learnt], [x[:, columns] for x in other])
    return {"energy": distance.energy, "frechet": distance.frechet, **gait(task, other)}
