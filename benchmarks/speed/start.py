"""W9: how long a start takes, in processes of their own: help, lists, and the first iteration of a first training.

    python -m benchmarks.speed.start --rounds 5

    peers' interpreters: --python stable-baselines3=/path/to/python rsl-rl-lib=/path/to/python

The commands take turns, each with a warm disk (a first round is not counted). CPU seconds count where the machine does
other things too. Peers import their library, build CartPole-v1 (rsl_rl, which has no discrete actions: W3's tensor
environment) with the sizes of the recipe `cartpole`, and make one iteration; Python's own start is in all numbers.
Writes results/W9.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import where
from benchmarks.speed.venvs import InstallError, python_of

HERE = Path(__file__).resolve().parent
FIRST = 8 * 128
"""Environment steps of an iteration of `cartpole`."""

OURS = {
    "train --help": ("train", "--help"),
    "list recipes": ("list", "recipes"),
    "list": ("list",),
    "train ppo --help": ("train", "ppo", "--help"),
    "first iteration of train cartpole": (
        *("train", "cartpole", "--total-steps", str(FIRST), "--evaluation.episodes", "0"),
        *("--logging.no-console", "--logging.no-tensorboard"),
    ),
}
ITERATION = """
from dataclasses import replace
from benchmarks.speed import harness, peer, workloads
sizes = dict(num_envs=8, num_steps=128, num_epochs=10, num_minibatches=4, hidden=(64, 64), activation="tanh")
job = replace(workloads.WORKLOADS["{workload}"], **sizes)
peer.peer_module("{peer}", "ppo").build(harness.Job(workload=job, seed=0, device="cpu", variant="")).run(1)
"""
PEERS = {"stable-baselines3": "W1", "rsl-rl-lib": "W3", "plain": "W1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=sorted(PEERS))
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="instead of a new environment")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in args.python)
    commands = {f"**understudy** {name}": [sys.executable, "-m", "understudy", *words] for name, words in OURS.items()}
    failures: dict[str, str] = {}
    for peer in args.peers:
        try:
            python = given.get(peer) or python_of(peer, sys.executable)
        except InstallError as error:
            failures[f"{peer}, first iteration"] = str(error)
            continue
        code = ITERATION.format(workload=PEERS[peer], peer=peer)
        commands[f"{peer}, import and first iteration"] = [python, "-c", code]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for round_number in range(args.rounds + 1):
        for name, command in commands.items():
            if name in failures:
                continue
            try:
                taken = timed(command)
            except subprocess.CalledProcessError as error:
                failures[name] = (error.stderr.strip() or "no output").splitlines()[-1][:200]
                continue
            if round_number:
                times[name].append(taken)
            print(f"{round_number} {name}: {taken[0]:.2f} s, CPU {taken[1]:.2f} s", file=sys.stderr, flush=True)
    report = "\n".join([*table(times, failures), "", machine_line(args.rounds), ""])
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "W9.md").write_text(report)
    print(report)


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process with one thread, and of its children; CalledProcessError if it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(where.ROOT / "src"), str(where.ROOT)))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment)
        after, wall = os.times(), time.perf_counter() - start
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def table(times: dict[str, list[tuple[float, float]]], failures: dict[str, str]) -> list[str]:
    """Medians, beside our first iteration's."""
    medians = {
        name: tuple(statistics.median(column) for column in zip(*found))
        for name, found in times.items()
        if found and name not in failures
    }
    ours = next((found for name, found in medians.items() if "first iteration of train" in name), None)
    lines = ["# W9", "", "| | wall s | CPU s | CPU / our first iteration |", "|---|---|---|---|"]
    for name, (wall, cpu) in medians.items():
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {'-' if ours is None else f'{cpu / ours[1]:.2f}'} |")
    return lines + [f"| {name} | not run: {reason} | | |" for name, reason in failures.items()]


def machine_line(rounds: int) -> str:
    """Where and how it was measured."""
    machine = where.machine()
    return (
        f"Medians of {rounds} interleaved rounds; {machine['cpu']}, {machine['cores']} cores; understudy "
        f"{where.revision()}; {where.today()}; `python -m benchmarks.speed.start --rounds {rounds}`"
    )


if __name__ == "__main__":
    main()
