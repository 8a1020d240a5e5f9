"""What grows with environments and networks: steps/s of whole iterations, and memory.

    python -m benchmarks.speed.growth --rounds 5        (--quick: four points, a minute)

Environments: 8 to 8,192 copies, at the same number of gradient steps per iteration, so that a larger rollout is larger
minibatches: what a GPU simulator does. Until the device is full, four times the environments should give at least 2.6
times the steps/s (ten times: five). Width: 1,024 copies of W3's environment and two hidden layers of 32 to 1,024 units.
Memory is the peak of the process, less what it had before the training was built. Each point is a process of its own.
Writes results/growth.md and results/growth.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks import where
from benchmarks.speed.collection import setup
from benchmarks.speed.workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
COUNTS = (8, 32, 128, 512, 2048, 8192)
WIDTHS = (32, 64, 128, 256, 512, 1024)
QUICK = (8, 64)
"""Of both, for a try."""


class Point(NamedTuple):
    """What one training took."""

    speed: float  # environment steps per second of whole iterations
    cpu: float  # CPU seconds for a million environment steps
    memory: float  # MiB


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the figure."""

    name: str
    workload: Workload
    variant: str = ""
    widths: bool = False  # what grows: the network, not the number of environments
    most: int = COUNTS[-1]  # environments

    def sizes(self, quick: bool) -> tuple[int, ...]:
        """The sizes to measure."""
        chosen = QUICK if quick else WIDTHS if self.widths else COUNTS
        return tuple(size for size in chosen if size <= self.most)

    def job(self, size: int) -> Workload:
        """The workload of one point."""
        if self.widths:
            return replace(self.workload, hidden=(size, size))
        return replace(self.workload, num_envs=size)


CURVES = (
    Curve(
        name="tensor environment, 2 x 64 tanh", workload=replace(WORKLOADS["W3"], hidden=(64, 64), activation="tanh")
    ),
    Curve(name="tensor environment, 512-256-128 ELU (W3)", workload=WORKLOADS["W3"]),
    Curve(
        name="CartPole-v1 in EnvPool, 2 x 64 tanh",
        workload=replace(WORKLOADS["W1"], num_steps=32),
        variant="envpool",
        most=512,
    ),
    Curve(name="tensor environment, width of two layers", workload=WORKLOADS["W3"], widths=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed iterations per point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="the two smallest points, one iteration each")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument(
        "--point", nargs=2, metavar=("CURVE", "SIZE"), help=argparse.SUPPRESS
    )  # in a process of its own
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    if args.point:
        setup(args.threads)
        curve, size = CURVES[int(args.point[0])], int(args.point[1])
        print(json.dumps(measure(curve, size, rounds, args.device)))
        return
    points: dict[str, dict[int, Point]] = {}
    for number, curve in enumerate(CURVES):
        points[curve.name] = {}
        for size in curve.sizes(args.quick):
            point = points[curve.name][size] = in_own_process(number, size, rounds, args.threads, args.device)
            print(f"{curve.name}: {size} -> {point.speed:,.0f} steps/s", file=sys.stderr, flush=True)
    machine = where.machine()
    line = (
        f"{machine['cpu']}, {machine['cores']} cores, device {args.device}, torch threads {args.threads}; "
        f"understudy {where.revision()}; {where.today()}; "
        f"`python -m benchmarks.speed.growth --rounds {args.rounds} --threads {args.threads}`"
    )
    args.output.mkdir(parents=True, exist_ok=True)
    report = markdown(points, line)
    (args.output / "growth.md").write_text(report)
    plot(points, args.output / "growth.png")
    print(report)


def in_own_process(curve: int, size: int, rounds: int, threads: int, device: str) -> Point:
    """`measure` in a process, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "benchmarks.speed.growth", "--point", str(curve), str(size)]
    command += ["--rounds", str(rounds), "--threads", str(threads), "--device", device]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(where.ROOT / "src"), str(where.ROOT)))}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=where.ROOT, env=environment)
    return Point(*json.loads(done.stdout.splitlines()[-1]))


def measure(curve: Curve, size: int, rounds: int, device: str) -> Point:
    """Medians over whole iterations (collect and update), and the peak of this process's memory."""
    from benchmarks.speed.harness import Job
    from benchmarks.speed.peers import understudy

    before, job = peak(), curve.job(size)
    trainer = understudy.build(Job(workload=job, seed=0, device=device, variant=curve.variant))
    trainer.run(2)  # capture, and the first full minibatches
    speeds, cpu = [], []
    for _ in range(rounds):
        start = os.times()
        speeds.append(trainer.ppo.iterate()["time/steps_per_second"])
        end = os.times()
        cpu.append((end.user + end.system - start.user - start.system) * 1e6 / job.steps_per_iteration)
    trainer.ppo.env.close()
    return Point(statistics.median(speeds), statistics.median(cpu), peak() - before)


def peak() -> float:
    """The most memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth(points: Mapping[int, Point]) -> list[tuple[int, int, float]]:
    """(n, m, steps/s at m over steps/s at n) of neighbouring sizes."""
    return [(n, m, points[m].speed / points[n].speed) for n, m in itertools.pairwise(points)]


def markdown(points: Mapping[str, Mapping[int, Point]], line: str) -> str:
    """A table per curve, and what each step of growth brings."""
    lines = ["# Growth", "", "![steps/s and memory against environments and width](growth.png)", ""]
    for name, curve in points.items():
        grows = "width" if "width" in name else "environments"
        lines += [f"**{name}**", "", f"| {grows} | " + " | ".join(f"{n:,}" for n in curve) + " |"]
        lines.append("|---" * (len(curve) + 1) + "|")
        for what, column in zip(("steps/s", "CPU s per million steps", "peak memory, MiB"), zip(*curve.values())):
            lines.append(f"| {what} | " + " | ".join(f"{number:,.{int('CPU' in what)}f}" for number in column) + " |")
        factors = ", ".join(f"{n:,} to {m:,}: {factor:.2f}x" for n, m, factor in growth(curve))
        lines += ["", f"Steps/s: {factors or '-'}.", ""]
    return "\n".join([*lines, line, ""])


def plot(points: Mapping[str, Mapping[int, Point]], path: Path) -> None:
    """Steps/s and memory, against environments (with the line of proportional growth) and against width; log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10.0, 7.0), layout="constrained")
    for name, curve in points.items():
        column, sizes = int("width" in name), list(curve)
        axes[0, column].plot(sizes, [point.speed for point in curve.values()], marker="o", label=name)
        axes[1, column].plot(sizes, [point.memory for point in curve.values()], marker="o", label=name)
        if not column:
            first = curve[sizes[0]].speed / sizes[0]
            axes[0, 0].plot(sizes, [first * n for n in sizes], color="0.8", zorder=0, linewidth=1)
    for column, grows in enumerate(("environments", "units of each of two hidden layers")):
        axes[0, column].set(ylabel="environment steps per second, training")
        axes[1, column].set(ylabel="peak memory of the training, MiB", xlabel=grows)
    for one in axes.flat:
        one.set(xscale="log", yscale="log")
        one.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(title="grey: proportional growth", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
