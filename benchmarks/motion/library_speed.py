"""How long a one-hour motion set takes to load, and a million transitions to sample. Prints one table.

    OMP_NUM_THREADS=1 python -m benchmarks.motion.library_speed

The set: 120 clips of 30 s at 60 frames a second, a root with orientation and 24 joints (31 columns); the library
derives root and joint velocities and resamples to 50 frames a second (58 features). Then one clip of an hour in files
of other programs: 216,001 frames of a robot with 29 joints, with 15 bodies where bodies are written. CPU seconds, best
of three, files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionLibrary, MotionsConfig
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.pickled import read_any_motions

CLIPS, SECONDS, RATE, JOINTS = 120, 30, 60, 24
ROOT = ("root_pos_x", "root_pos_y", "root_pos_z", "root_rot_w", "root_rot_x", "root_rot_y", "root_rot_z")
POSITIONS = tuple(f"joint{i}_dof_pos" for i in range(JOINTS))
RATES = tuple(f"joint{i}_dof_vel" for i in range(JOINTS))
TWIST = tuple(f"root_{kind}_{axis}_b" for kind in ("vel", "ang_vel") for axis in "xyz")
FEATURES = (*POSITIONS, *RATES, *TWIST, *ROOT[3:])
ROBOT, BODIES = tuple(f"joint{i}" for i in range(29)), tuple(f"body{i}" for i in range(15))


def one_hour() -> list[MotionClip]:
    rng = np.random.default_rng(0)
    t = np.arange(SECONDS * RATE + 1)[:, None] / RATE
    clips = []
    for number in range(CLIPS):
        phase, rate = rng.uniform(0, 2 * np.pi, JOINTS), rng.uniform(0.5, 2.0, JOINTS)
        joints = 0.5 * np.sin(2 * np.pi * rate * t + phase)
        yaw = 0.3 * np.sin(0.5 * t)
        root = np.concatenate((t, 0 * t, 0 * t + 0.8, np.cos(yaw / 2), 0 * t, 0 * t, np.sin(yaw / 2)), axis=1)
        frames = np.concatenate((root, joints), axis=1)
        clips.append(MotionClip(name=f"clip{number}", fields=(*ROOT, *POSITIONS), frames=frames, frame_time=1 / RATE))
    return clips


def as_others_write(folder: Path) -> dict[str, Path]:
    """One clip of an hour, in files laid out as other programs lay them out."""
    rng, t = np.random.default_rng(0), np.arange(3600 * RATE + 1)[:, None] / RATE
    turns, phases = rng.uniform(0.5, 2.0, len(ROBOT)), rng.uniform(0.0, 6.0, len(ROBOT))
    joints = (0.5 * np.sin(2 * np.pi * turns * t + phases)).astype(np.float32)
    yaw, zero = 0.3 * np.sin(0.5 * t), 0.0 * t
    position = np.concatenate((0.1 * t, zero, zero + 0.8), axis=1).astype(np.float32)
    wxyz = np.concatenate((np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)), axis=1).astype(np.float32)
    bodies = position[:, None] + 0.2 * rng.normal(size=(len(BODIES), 3)).astype(np.float32)
    bodies[:, 0] = position
    moving, turning = np.gradient(position, 1 / RATE, axis=0), np.concatenate((zero, zero, 0.15 * np.cos(0.5 * t)), 1)
    files = {name: folder / name for name in ("amp-rsl-rl.npy", "lists.pkl", "array.pkl", "isaac-lab.npz")}
    amp = {"joints_list": list(ROBOT), "joint_positions": list(joints), "root_position": list(position), "fps": 60.0}
    np.save(files["amp-rsl-rl.npy"], np.array(amp | {"root_quaternion": list(np.roll(wxyz, -1, 1))}), allow_pickle=True)
    frames = np.concatenate((position, zero, zero, yaw, joints), axis=1).astype(np.float32)
    for name, values in (("lists.pkl", frames.tolist()), ("array.pkl", frames)):
        files[name].write_bytes(pickle.dumps({"loop_mode": 0, "fps": RATE, "frames": values}))
    each = [np.repeat(x.astype(np.float32)[:, None], len(BODIES), axis=1) for x in (wxyz, moving, turning)]
    keys = ("body_rotations", "body_linear_velocities", "body_angular_velocities")
    whole = {"dof_positions": joints, "dof_velocities": np.gradient(joints, 1 / RATE, axis=0).astype(np.float32)}
    np.savez(
        files["isaac-lab.npz"], fps=RATE, dof_names=np.array(ROBOT), body_names=np.array(BODIES), body_positions=bodies,
        **whole, **dict(zip(keys, each)),
    )  # fmt: skip
    return files


def best(function: Callable[[], object], runs: int = 3) -> float:
    seconds = []
    for _ in range(runs):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    clips = one_hour()
    with tempfile.TemporaryDirectory() as folder:
        ours = write_motions(Path(folder) / "hour.npz", clips)
        text = Path(folder) / "hour.json"
        text.write_text(
            json.dumps(
                {
                    c.name: {"FrameDuration": c.frame_time, "Fields": c.fields, "Frames": c.frames.tolist()}
                    for c in clips
                }
            )
        )
        load = {
            file.suffix: best(lambda: MotionLibrary.load(MotionsConfig(files=(str(file),)), FEATURES, 0.02))  # noqa: B023
            for file in (ours, text)
        }
        library = MotionLibrary.load(MotionsConfig(files=(str(ours),)), FEATURES, 0.02)
        options = ReadOptions(joints=ROBOT)
        others = {
            name: best(lambda: read_any_motions(file, options))  # noqa: B023
            for name, file in as_others_write(Path(folder)).items()
        }
    generator = torch.Generator().manual_seed(0)
    sample = best(lambda: library.sample(1_000_000, generator))
    print("| what | CPU seconds |\n|---|---|")
    print(f"| load one hour, our .npz | {load['.npz']:.2f} |")
    print(f"| load one hour, JSON text | {load['.json']:.2f} |")
    print(f"| sample 1,000,000 transitions of {len(FEATURES)} features | {sample:.2f} |")
    for name, seconds in others.items():
        print(f"| read one clip of an hour, {name} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
