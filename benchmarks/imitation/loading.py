"""How long a million recorded transitions take to load, and what memory cloning from them takes. Prints one table.

    OMP_NUM_THREADS=1 python -m benchmarks.imitation.loading

The data: 1,000 episodes of 1,000 steps in HalfCheetah-v5's shapes, float32, made up, in each format. Loading: best of
three, files in the page cache. Memory: the peak of a process that clones for one epoch from five million, above that of
one that does the same from a thousand; as a multiple of the data's size as loaded. (Starting up takes more than a
million of them do.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.where import ROOT

EPISODES, MANY_EPISODES, STEPS, OBSERVATION, ACTION = 1_000, 5_000, 1_000, 17, 6
ENV = "HalfCheetah-v5"


def write_d4rl(path: Path, episodes: int) -> Path:
    """One flat array per field, as D4RL has it."""
    rng, n = np.random.default_rng(0), episodes * STEPS
    timeouts = np.zeros(n, np.bool_)
    timeouts[STEPS - 1 :: STEPS] = True
    with h5py.File(path, "w") as file:
        file["observations"] = rng.standard_normal((n, OBSERVATION), np.float32)
        file["next_observations"] = rng.standard_normal((n, OBSERVATION), np.float32)
        file["actions"] = rng.uniform(-1.0, 1.0, (n, ACTION)).astype(np.float32)
        file["rewards"] = rng.standard_normal(n, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(n, np.bool_), timeouts
    return path


def write_ours(path: Path, episodes: int) -> Path:
    """The library's own .npz."""
    rng, n = np.random.default_rng(0), episodes * STEPS
    truncations = np.zeros(n, np.bool_)
    truncations[STEPS - 1 :: STEPS] = True
    np.savez(
        path,
        **{"observations/policy": rng.standard_normal((n + episodes, OBSERVATION), np.float32)},
        actions=rng.uniform(-1.0, 1.0, (n, ACTION)).astype(np.float32),
        rewards=rng.standard_normal(n, np.float32),
        terminations=np.zeros(n, np.bool_),
        truncations=truncations,
        lengths=np.full(episodes, STEPS, np.int64),
    )
    return path


def write_minari(path: Path, episodes: int) -> Path:
    """One group per episode, as Minari has it."""
    rng = np.random.default_rng(0)
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for number in range(episodes):
            group = file.create_group(f"episode_{number}")
            group["observations"] = rng.standard_normal((STEPS + 1, OBSERVATION), np.float32)
            group["actions"] = rng.uniform(-1.0, 1.0, (STEPS, ACTION)).astype(np.float32)
            group["rewards"] = rng.standard_normal(STEPS, np.float32)
            group["terminations"], group["truncations"] = np.zeros(STEPS, np.bool_), np.arange(1, STEPS + 1) == STEPS
    return path


WRITERS: dict[str, tuple[str, Any]] = {
    "D4RL-style HDF5": ("d4rl.hdf5", write_d4rl),
    "Minari's HDF5": ("minari", write_minari),
    "our .npz": ("ours.npz", write_ours),
}


def load(path: Path) -> Any:
    """The demonstrations of a file."""
    import gymnasium

    from understudy.data.demonstrations.demonstrations import Demonstrations
    from understudy.envs.observations import leaves_space, observation_leaves

    env = gymnasium.make(ENV)
    space = leaves_space(observation_leaves(env.observation_space))
    return Demonstrations.load(path, observation_space=space, action_space=env.action_space)


def clone(path: Path, run_dir: Path) -> None:
    """Clone for one epoch, in this process."""
    import dataclasses

    import understudy as us
    from understudy.runs.config import EvaluationConfig, LoggingConfig

    config = us.recipes.bc(ENV, demonstrations=str(path))
    assert config.offline is not None
    us.train(
        dataclasses.replace(
            config,
            offline=dataclasses.replace(config.offline, epochs=1),
            run_dir=str(run_dir),
            evaluation=EvaluationConfig(episodes=0),
            logging=LoggingConfig(console=False, tensorboard=False),
        )
    )


def peak() -> int:
    """Largest resident set of this process so far, bytes; `getrusage` also counts the process that started it."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def peak_of_cloning(path: Path, folder: Path) -> int:
    """Largest resident set of a process that clones from a file, bytes."""
    run_dir = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "benchmarks.imitation.loading", "--clone", str(path), str(Path(run_dir) / "run")]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MALLOC_ARENA_MAX": "1"}
    )
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", nargs=2, type=Path, metavar=("FILE", "RUN"), help="only clone, and print the peak")
    args = parser.parse_args()
    if args.clone:
        clone(*args.clone)
        print(peak())
    else:
        measure()


def measure() -> None:
    """Print the table."""
    print("| format | load a million, s | size as loaded, MB | peak memory of cloning five million / size |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (file, write) in WRITERS.items():
            source, seconds = write(folder / file, EPISODES), []
            for _ in range(3):
                started = time.perf_counter()
                demonstrations = load(source)
                seconds.append(time.perf_counter() - started)
            size = demonstrations.observations.bytes() + demonstrations.signals.bytes()
            del demonstrations
            many, one = (write(folder / f"{n}-{file}", n) for n in (MANY_EPISODES, 1))
            gained = peak_of_cloning(many, folder) - peak_of_cloning(one, folder)
            share = gained / (size * MANY_EPISODES / EPISODES)
            print(f"| {title} | {min(seconds):.2f} | {size / 1e6:.0f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
