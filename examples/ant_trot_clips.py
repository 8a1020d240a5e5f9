"""Motion clips of a trotting Ant: a scripted controller swings diagonal legs together in MuJoCo; no learning.

Each hip swings back while its foot presses down and forth while the foot is lifted; a spring and damper at every joint
follow these angles. What the joints really do is recorded, so every clip is a motion that the robot can make. The
clips' fields are called as the columns of Ant-v5's observations.

Run it with `python examples/ant_trot_clips.py`, then look at it with `understudy motions inspect ant-trot.npz`.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from understudy.data.motions.files import MotionClip, write_motions

Array = NDArray[np.float64]

# found by trying 130 random settings: 1.2 to 1.5 m/s
PERIOD = 0.7  # s, one cycle
SWING, REACH, LIFT = 0.45, 0.65, 0.35  # rad: of the hips, of standing feet downwards, of swinging feet from there up
DELAY = 0.23  # of a cycle: by how much lifting lags behind swinging
STEERING = 1.0  # share by which the left legs swing further and the right ones less, per rad turned to the left
STIFFNESS, DAMPING = 0.6, 0.04  # share of the largest torque per rad, per rad/s
PHASES = np.array([0.0, 0.5, 0.0, 0.5])  # of a cycle: legs 1 and 3, 2 and 4 together
BACKWARDS = np.array([1.0, 1.0, -1.0, -1.0])  # sign of a hip's angle that moves its foot back
LEFT = np.array([1.0, 1.0, -1.0, -1.0])  # legs 1 and 2; the others are right
DOWN = np.array([1.0, -1.0, -1.0, 1.0])  # sign of an ankle's angle that presses its foot down
ACTUATORS = [3, 0, 1, 2]  # leg of each pair of actuators: the model lists leg 4 first
STEPS = 400


def trot_angles(time: float, heading: float) -> Array:
    """Wanted hip and ankle angles `[4, 2]` (rad) of all legs at a time (s), which turn the heading (rad) towards 0."""
    cycle = 2.0 * np.pi * (time / PERIOD + PHASES)
    swing = SWING * (1.0 + LEFT * np.clip(STEERING * heading, -0.5, 0.5))
    hip = -swing * np.cos(cycle)  # backwards in the first half of the cycle, forwards in the second
    lift = np.maximum(-np.sin(cycle - 2.0 * np.pi * DELAY), 0.0)
    return np.stack((BACKWARDS * hip, DOWN * (REACH - LIFT * lift)), axis=1)


def torques(angles: Array, rates: Array, wanted: Array) -> Array:
    """Actions `[8]` in [-1, 1] from joint angles and rates `[4, 2]` and the wanted angles, in the actuators' order."""
    push = STIFFNESS * (wanted - angles) - DAMPING * rates
    return np.clip(push[ACTUATORS].ravel(), -1.0, 1.0)


def trot(seed: int, steps: int = STEPS) -> tuple[MotionClip, float]:
    """One episode of Ant-v5 as a clip, and its return."""
    env = gym.make("Ant-v5", max_episode_steps=steps)
    obs, _ = env.reset(seed=seed)
    frames, total, step_time = [obs], 0.0, float(env.unwrapped.dt)
    for number in range(steps):
        angles, rates = obs[5:13].reshape(4, 2), obs[19:27].reshape(4, 2)
        w, x, y, z = obs[1:5]
        heading = float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))
        obs, reward, terminated, _, _ = env.step(torques(angles, rates, trot_angles(number * step_time, heading)))
        frames.append(obs)
        total += float(reward)
        if terminated:
            break
    env.close()
    fields = tuple(f"policy[{k}]" for k in range(len(obs)))
    return MotionClip(name=f"trot {seed}", fields=fields, frames=np.stack(frames), frame_time=step_time), total


def main(output: Path = Path("ant-trot.npz"), episodes: int = 5, seed: int = 0) -> Path:
    """Write clips, each from another start, and return the file."""
    played = [trot(seed + number) for number in range(episodes)]
    path = write_motions(output, [clip for clip, _ in played])
    print(f"wrote {episodes} clips, mean return {np.mean([score for _, score in played]):.0f} in {STEPS} steps: {path}")
    return path


if __name__ == "__main__":
    main()
