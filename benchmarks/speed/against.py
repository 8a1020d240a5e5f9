"""Compare the training speed of this checkout with another one's, interleaved on this machine.

    python -m benchmarks.speed.against ../other/src --workloads W1 W2

A pair of processes, one per checkout (PYTHONPATH chooses the library), trains the same workload with the same seed. The
two take turns of a few iterations, and the order changes from turn to turn: a disturbance that lasts hits both. Turns
give ratios of the other's seconds over ours (above 1: this checkout is faster). The printed line has the median over
all turns and the lowest and highest median of a pair, of CPU seconds and of wall seconds. CPU seconds count where the
machine does other things too. "same numbers" says that both checkouts ended with the same parameters, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.where import ROOT

TURN = {"W1": 2, "W2": 1}
"""Iterations of a turn: a fraction of a second, so that what disturbs one turn disturbs its neighbour."""

Turn = Mapping[str, float]  # "cpu" and "wall" seconds


def main() -> None:
    args = parse_args()
    sources = {"ours": ROOT / "src", "other": args.other.resolve()}
    for workload in args.workloads:
        pairs, same = [], True
        for seed in range(args.pairs):
            turns, digests = run_pair(sources, workload, seed, args.turns, args.iterations or TURN[workload])
            pairs.append(turns)
            same &= digests["ours"] == digests["other"]
            print(f"{workload} pair {seed}: {summary([turns])}", file=sys.stderr, flush=True)
        print(f"{workload}: {summary(pairs)}; {'same numbers' if same else 'OTHER NUMBERS'}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout's folder `src`")
    parser.add_argument("--workloads", nargs="+", choices=tuple(TURN), default=list(TURN))
    parser.add_argument("--pairs", type=int, default=4, help="pairs of processes, each with a seed of its own")
    parser.add_argument("--turns", type=int, default=30, help="turns that each process of a pair takes")
    parser.add_argument("--iterations", type=int, help=f"iterations of a turn; default: {TURN}")
    args = parser.parse_args()
    if not (args.other / "understudy").is_dir():
        parser.error(f"{args.other} has no folder `understudy`: give the other checkout's `src`")
    return args


class Side:
    """The process of one checkout."""

    def __init__(self, source: Path, workload: str, seed: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONWARNINGS": "ignore"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-m", "benchmarks.speed.against_worker", workload, str(seed)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)
        self.source = source

    def ready(self) -> None:
        """Wait for the first iteration; refuse a library from anywhere else."""
        library = Path(self.read()["library"])
        if not library.is_relative_to(self.source):
            raise SystemExit(f"the process imported {library} instead of the library in {self.source}")

    def ask(self, line: str) -> dict[str, Any]:
        """Send one line, return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next JSON line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                message: dict[str, Any] = json.loads(line)
                return message
        raise SystemExit(f"the process of {self.source} ended: see above")


def run_pair(
    sources: Mapping[str, Path], workload: str, seed: int, turns: int, iterations: int
) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """Turns of both sides, and the digest of the parameters that each ended with."""
    sides = {name: Side(source, workload, seed) for name, source in sources.items()}
    try:
        for side in sides.values():
            side.ready()
        done: dict[str, list[Turn]] = {name: [] for name in sides}
        for number in range(turns):
            for name in order(list(sides), number):
                done[name].append(sides[name].ask(str(iterations)))
        return done, {name: side.ask("")["digest"] for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.process.kill()
            side.process.communicate()


def order(names: Sequence[str], number: int) -> Sequence[str]:
    """Who goes first changes from turn to turn."""
    return names if number % 2 == 0 else names[::-1]


def ratios(turns: Mapping[str, Sequence[Turn]], clock: str) -> list[float]:
    """The other's seconds over ours, turn by turn."""
    return [other[clock] / ours[clock] for ours, other in zip(turns["ours"], turns["other"], strict=True)]


def summary(pairs: Sequence[Mapping[str, Sequence[Turn]]]) -> str:
    """`speed 1.01 x the other's (CPU; 1.00 to 1.02), 1.02 x (wall; ...)`: medians over turns, range over pairs."""
    words = []
    for clock in ("cpu", "wall"):
        found = [ratios(turns, clock) for turns in pairs]
        medians = [statistics.median(pair) for pair in found]
        middle = statistics.median(ratio for pair in found for ratio in pair)
        ours = statistics.median(turn[clock] for turns in pairs for turn in turns["ours"])
        words.append(f"{middle:.3f} ({clock}; pairs {min(medians):.3f} to {max(medians):.3f}; turn {ours:.2f} s)")
    return "speed over the other's " + ", ".join(words)


if __name__ == "__main__":
    main()
