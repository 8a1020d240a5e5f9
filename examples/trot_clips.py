"""Motion clips of a trotting quadruped (Unitree Go1), made of foot trajectories and inverse kinematics; no recording.

Diagonal legs step together. On the ground a foot moves backwards under the body at the body's own speed, in the air it
swings forwards on a smooth curve; the joint angles follow in closed form. Each speed is one clip: a cycle that wraps.

Run it with `python examples/trot_clips.py`, then look at it with `understudy motions inspect trot.npz`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from understudy.data.motions.files import MotionClip, write_motions

Array = NDArray[np.float64]

LEGS = ("FR", "FL", "RR", "RL")
PHASES = (0.0, 0.5, 0.5, 0.0)  # of a cycle: diagonal legs together
HIPS = np.array([[x, y, 0.0] for x in (0.1881, -0.1881) for y in (-0.04675, 0.04675)])  # in the trunk's frame, m
SIDES = (-1.0, 1.0, -1.0, 1.0)  # right, left
ABDUCTION_OFFSET, LINK = 0.08, 0.213  # hip axis to leg plane; thigh and calf, m
HEIGHT, LIFT = 0.27, 0.07  # of the trunk above the feet; of a swinging foot, m
PERIOD, ON_GROUND = 0.36, 0.55  # of a cycle, s; the share of it that a foot stands
FRAME_TIME = 0.01  # s
STANDING = {"FR": (0.1, 0.9, -1.8), "FL": (-0.1, 0.9, -1.8), "RR": (0.1, 0.9, -1.8), "RL": (-0.1, 0.9, -1.8)}
"""MuJoCo Playground's Go1 observes its joints' angles as offsets from this pose (rad)."""
COMMANDS = (
    *((forward, 0.0, 0.0) for forward in (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)),
    *((forward, 0.0, turning) for forward in (-0.8, 0.0, 0.8) for turning in (-0.8, 0.8)),
    *((forward, sideways, 0.0) for forward in (-0.6, 0.6) for sideways in (-0.5, 0.5)),
)
"""Forward and sideways velocity (m/s), turning rate (rad/s): what the joystick of MuJoCo Playground's Go1 asks for."""
HELD_OUT = (
    *((forward, 0.0, 0.0) for forward in (-1.2, -0.7, -0.2, 0.2, 0.7, 1.2)),
    *((forward, 0.0, turning) for forward in (-0.4, 0.4) for turning in (-0.5, 0.5)),
    *((forward, sideways, 0.0) for forward in (-0.3, 0.3) for sideways in (-0.3, 0.3)),
)
"""Others of the same range, to compare a policy with."""


def inverse_kinematics(foot: Array, side: float) -> Array:
    """Abduction, hip and knee angles `[F, 3]` (rad) that bring the foot to `[F, 3]` (m), seen from the leg's hip."""
    x, y, z = foot.T
    d = side * ABDUCTION_OFFSET
    depth = np.sqrt(y**2 + z**2 - d**2)  # below the hip, in the leg's plane
    abduction = np.arctan2(depth * y + d * z, d * y - depth * z)
    knee = -np.arccos((x**2 + depth**2) / (2.0 * LINK**2) - 1.0)
    hip = np.arctan2(-x, depth) - 0.5 * knee
    return np.stack((abduction, hip, knee), axis=1)


def forward_kinematics(angles: Array, side: float) -> Array:
    """Where the foot is `[F, 3]`, seen from the leg's hip: the inverse of `inverse_kinematics`."""
    abduction, hip, knee = angles.T
    x = -LINK * (np.sin(hip) + np.sin(hip + knee))
    depth = LINK * (np.cos(hip) + np.cos(hip + knee))
    d = side * ABDUCTION_OFFSET
    y = d * np.cos(abduction) + depth * np.sin(abduction)
    z = d * np.sin(abduction) - depth * np.cos(abduction)
    return np.stack((x, y, z), axis=1)


def foot_trajectory(phase: Array, stance: Array, velocity: Array) -> Array:
    """Foot positions `[F, 3]` in the trunk's frame at phases `[F]` of the cycle, around the place `stance` `[3]`.

    `velocity` `[3]` is that of the ground under the foot. The swing is the cubic that meets it at both ends.
    """
    standing, swinging = ON_GROUND * PERIOD, (1.0 - ON_GROUND) * PERIOD
    half = 0.5 * standing * velocity
    on_ground = stance - half + velocity * (phase * PERIOD)[:, None]
    s = np.clip((phase - ON_GROUND) / (1.0 - ON_GROUND), 0.0, 1.0)[:, None]
    # cubic Hermite from +half back to -half, both ends at the ground's velocity
    swing = half * (1.0 - 6.0 * s**2 + 4.0 * s**3) + swinging * velocity * (s - 3.0 * s**2 + 2.0 * s**3)
    lift = np.array([0.0, 0.0, LIFT]) * 16.0 * (s * (1.0 - s)) ** 2
    return np.where((phase < ON_GROUND)[:, None], on_ground, stance + swing + lift)


def trot(forward: float, sideways: float, turning: float) -> MotionClip:
    """One cycle at a constant velocity (m/s, rad/s), as a clip that wraps."""
    time = np.linspace(0.0, PERIOD, round(PERIOD / FRAME_TIME) + 1)
    columns: dict[str, Array] = dict(zip(ROOT, _root(time, forward, sideways, turning).T))
    for leg, shift, hip, side in zip(LEGS, PHASES, HIPS, SIDES):
        stance = hip + np.array([0.0, side * ABDUCTION_OFFSET, -HEIGHT])
        velocity = -np.array([forward - turning * stance[1], sideways + turning * stance[0], 0.0])
        foot = foot_trajectory((time / PERIOD + shift) % 1.0, stance, velocity)
        angles = inverse_kinematics(foot - hip, side)
        for joint, values, standing in zip(("hip", "thigh", "calf"), angles.T, STANDING[leg]):
            columns[f"{leg}_{joint}_joint_dof_pos"] = values
            columns[f"{leg}_{joint}_joint_offset"] = values - standing
        for axis, values in zip("xyz", foot.T):
            columns[f"{leg}_foot_pos_{axis}_b"] = values
    return MotionClip(
        name=f"trot {forward:g} {sideways:g} {turning:g}",
        fields=tuple(columns),
        frames=np.stack(list(columns.values()), axis=1),
        frame_time=FRAME_TIME,
        loop="wrap",
        cycle_offset_position=True,
        cycle_offset_rotation=turning != 0.0,
    )


ROOT = (*(f"root_pos_{axis}" for axis in "xyz"), *(f"root_rot_{axis}" for axis in "wxyz"))


def _root(time: Array, forward: float, sideways: float, turning: float) -> Array:
    """Position and orientation `[F, 7]` of a trunk that moves at a constant velocity in its own frame."""
    heading = turning * time
    velocity = forward * np.exp(1j * heading) + sideways * 1j * np.exp(1j * heading)
    steps = 0.5 * (velocity[1:] + velocity[:-1]) * np.diff(time)
    place = np.concatenate(([0.0], np.cumsum(steps)))
    zero = np.zeros_like(time)
    return np.stack(
        (place.real, place.imag, zero + HEIGHT, np.cos(heading / 2), zero, zero, np.sin(heading / 2)), axis=1
    )


def main(output: Path = Path("trot.npz"), commands: Sequence[tuple[float, float, float]] = COMMANDS) -> Path:
    """Write one clip for each command and return the file."""
    clips = [trot(*command) for command in commands]
    path = write_motions(output, clips)
    print(f"wrote {len(clips)} clips of {PERIOD} s: {path}")
    return path


if __name__ == "__main__":
    main()
