"""How long a million recorded transitions take to load, and what memory cloning from them takes. Prints one table.

    OMP_NUM_THREADS=1 python -m benchmarks.imitation.loading

The data: 1,000 episodes of 1,000 steps in HalfCheetah-v5's shapes, float32, made up, in each format; robomimic's and
LeRobot's: four vectors of an arm (23 numbers) and 7 actions. Loading: CPU seconds, best of three, files in the page
cache. Memory: the peak of a process that clones for one epoch from five million, above that of one that does the same
from a thousand; as a multiple of the data's size as loaded. (Starting up takes more than a million of them do.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.where import ROOT

EPISODES, MANY_EPISODES, STEPS, OBSERVATION, ACTION = 1_000, 5_000, 1_000, 17, 6
ENV = "HalfCheetah-v5"
ARM = {"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
ARM_EPISODES, ARM_STEPS, ARM_ACTION = 1_000, 1_000, 7


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


def write_robomimic(path: Path, episodes: int) -> Path:
    """One group per episode, with its observations and the next ones, as robomimic's `dataset_states_to_obs` has it."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {}}'
        for number in range(episodes):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = ARM_STEPS
            group["states"] = rng.standard_normal((ARM_STEPS, 32))
            group["actions"] = rng.uniform(-1.0, 1.0, (ARM_STEPS, ARM_ACTION))
            group["rewards"] = rng.standard_normal(ARM_STEPS)
            group["dones"] = np.arange(1, ARM_STEPS + 1) // ARM_STEPS
            for name, size in ARM.items():
                seen = rng.standard_normal((ARM_STEPS + 1, size))
                group[f"obs/{name}"], group[f"next_obs/{name}"] = seen[:-1], seen[1:]
    return path


def write_lerobot(path: Path, episodes: int) -> Path:
    """One Parquet file of all frames, as LeRobot v3 has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, n = np.random.default_rng(0), episodes * ARM_STEPS

    def rows(size: int) -> Any:
        return pa.FixedSizeListArray.from_arrays(rng.uniform(-1.0, 1.0, n * size).astype(np.float32), size)

    columns = {"observation.state": rows(sum(ARM.values())), "action": rows(ARM_ACTION)}
    columns["next.reward"] = pa.array(rng.standard_normal(n, np.float32))
    columns["next.done"] = pa.array(np.arange(1, n + 1) % ARM_STEPS == 0)
    columns["frame_index"] = pa.array(np.arange(n) % ARM_STEPS)
    columns["episode_index"] = pa.array(np.arange(n) // ARM_STEPS)
    (path / "meta").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), path / "data/chunk-000/file-000.parquet")
    sizes = {"observation.state": sum(ARM.values()), "action": ARM_ACTION}
    features = {name: {"dtype": "float32", "shape": [size], "names": None} for name, size in sizes.items()}
    told = {"codebase_version": "v3.0", "fps": 10, "total_episodes": episodes, "features": features}
    (path / "meta/info.json").write_text(json.dumps(told))
    return path


WRITERS: dict[str, tuple[str, Any]] = {
    "D4RL-style HDF5": ("d4rl.hdf5", write_d4rl),
    "Minari's HDF5": ("minari", write_minari),
    "our .npz": ("ours.npz", write_ours),
}


ARM_WRITERS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "robomimic's HDF5": ("robomimic.hdf5", write_robomimic, tuple(ARM)),
    "LeRobot's Parquet": ("lerobot", write_lerobot, ()),
}


def load_arm(path: Path, joined: tuple[str, ...]) -> Any:
    """The demonstrations of an arm's file, its observations as one vector."""
    from gymnasium import spaces

    from understudy.data.demonstrations.demonstrations import Demonstrations

    seen = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (sum(ARM.values()),), np.float32)})
    done = spaces.Box(-1.0, 1.0, (ARM_ACTION,), np.float32)
    return Demonstrations.load(path, observation_space=seen, action_space=done, file_observations=joined)


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


def timed(function: Callable[[], Any]) -> tuple[float, int]:
    """CPU seconds of loading, best of three, and the size of what was loaded, bytes."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        demonstrations = function()
        seconds.append(time.process_time() - started)
    return min(seconds), demonstrations.observations.bytes() + demonstrations.signals.bytes()


def measure() -> None:
    """Print the table."""
    print("| format | load a million, s | size as loaded, MB | peak memory of cloning five million / size |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (file, write_arm, joined) in ARM_WRITERS.items():
            source = write_arm(folder / file, ARM_EPISODES)
            seconds, size = timed(lambda: load_arm(source, joined))  # noqa: B023
            print(f"| {title} | {seconds:.2f} | {size / 1e6:.0f} | |", flush=True)
        for title, (file, write) in WRITERS.items():
            source = write(folder / file, EPISODES)
            seconds, size = timed(lambda: load(source))  # noqa: B023
            many, one = (write(folder / f"{n}-{file}", n) for n in (MANY_EPISODES, 1))
            gained = peak_of_cloning(many, folder) - peak_of_cloning(one, folder)
            share = gained / (size * MANY_EPISODES / EPISODES)
            print(f"| {title} | {seconds:.2f} | {size / 1e6:.0f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
