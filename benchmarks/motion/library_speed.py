"""How long a one-hour motion set takes to load, and a million transitions to sample. Prints one table.

    OMP_NUM_THREADS=1 python -m benchmarks.motion.library_speed

The set: 120 clips of 30 s at 60 frames a second, a root with orientation and 24 joints (31 columns); the library
derives root and joint velocities and resamples to 50 frames a second (58 features). Best of three, files in the page
cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionLibrary, MotionsConfig

CLIPS, SECONDS, RATE, JOINTS = 120, 30, 60, 24
ROOT = ("root_pos_x", "root_pos_y", "root_pos_z", "root_rot_w", "root_rot_x", "root_rot_y", "root_rot_z")
POSITIONS = tuple(f"joint{i}_dof_pos" for i in range(JOINTS))
RATES = tuple(f"joint{i}_dof_vel" for i in range(JOINTS))
TWIST = tuple(f"root_{kind}_{axis}_b" for kind in ("vel", "ang_vel") for axis in "xyz")
FEATURES = (*POSITIONS, *RATES, *TWIST, *ROOT[3:])


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


def best(function: Callable[[], object], runs: int = 3) -> float:
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
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
    generator = torch.Generator().manual_seed(0)
    sample = best(lambda: library.sample(1_000_000, generator))
    print("| what | seconds |\n|---|---|")
    print(f"| load one hour, our .npz | {load['.npz']:.2f} |")
    print(f"| load one hour, JSON text | {load['.json']:.2f} |")
    print(f"| sample 1,000,000 transitions of {len(FEATURES)} features | {sample:.2f} |")


if __name__ == "__main__":
    main()
