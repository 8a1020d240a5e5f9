"""Training speed against the number of environments: steps/s of whole iterations, from 1x to 1,000x.

    python -m benchmarks.speed.growth --rounds 7

The number of gradient steps per iteration stays the same, so that a larger rollout is larger minibatches: what a GPU
simulator does. Until the device is full, ten times the environments should give at least five times the steps/s.
Writes results/growth.md and results/growth.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import where
from benchmarks.speed.collection import setup
from benchmarks.speed.workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
COUNTS = (1, 3, 10, 30, 100, 300, 1000)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the figure."""

    name: str
    workload: Workload
    variant: str = ""
    most: int = COUNTS[-1]  # environments


CURVES = (
    Curve(
        name="tensor environment, 2 x 64 tanh", workload=replace(WORKLOADS["W3"], hidden=(64, 64), activation="tanh")
    ),
    Curve(name="tensor environment, 512-256-128 ELU (W3)", workload=WORKLOADS["W3"]),
    Curve(
        name="CartPole-v1 in EnvPool, 2 x 64 tanh",
        workload=replace(WORKLOADS["W1"], num_steps=32),
        variant="envpool",
        most=300,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed iterations per point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="largest number of environments")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    setup(args.threads)

    points: dict[str, dict[int, float]] = {}
    for curve in CURVES:
        points[curve.name] = {}
        for count in [n for n in COUNTS if n <= min(args.most, curve.most)]:
            points[curve.name][count] = steps_per_second(curve, count, args.rounds, args.device)
            print(f"{curve.name}: {count} -> {points[curve.name][count]:,.0f} steps/s", file=sys.stderr, flush=True)
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


def steps_per_second(curve: Curve, count: int, rounds: int, device: str) -> float:
    """Median over whole iterations (collect and update) at `count` environments."""
    from benchmarks.speed.harness import Job
    from benchmarks.speed.peers import understudy

    workload = replace(curve.workload, num_envs=count)
    trainer = understudy.build(Job(workload=workload, seed=0, device=device, variant=curve.variant))
    trainer.run(2)  # capture, and the first full minibatches
    speed = statistics.median(trainer.ppo.iterate()["time/steps_per_second"] for _ in range(rounds))
    trainer.ppo.env.close()
    return speed


def growth(points: dict[int, float]) -> list[tuple[int, int, float]]:
    """(n, 10 n, steps/s at 10 n over steps/s at n), where both were measured."""
    return [(n, 10 * n, points[10 * n] / speed) for n, speed in points.items() if 10 * n in points]


def markdown(points: dict[str, dict[int, float]], line: str) -> str:
    """A table per curve, and what ten times the environments bring."""
    lines = ["# Growth", "", "![steps/s against environments](growth.png)", ""]
    for name, curve in points.items():
        lines += [f"**{name}**", "", "| environments | " + " | ".join(f"{n:,}" for n in curve) + " |"]
        lines.append("|---" * (len(curve) + 1) + "|")
        lines.append("| steps/s | " + " | ".join(f"{speed:,.0f}" for speed in curve.values()) + " |")
        factors = ", ".join(f"{n:,} to {ten:,}: {factor:.1f}x" for n, ten, factor in growth(curve))
        lines += ["", f"Ten times the environments: {factors or '-'}.", ""]
    return "\n".join([*lines, line, ""])


def plot(points: dict[str, dict[int, float]], path: Path) -> None:
    """Steps/s against environments, log-log, with the line of proportional growth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, curve in points.items():
        counts: Sequence[int] = list(curve)
        axes.plot(counts, list(curve.values()), marker="o", label=name)
        first = curve[counts[0]] / counts[0]
        axes.plot(counts, [first * n for n in counts], color="0.8", zorder=0, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="environments", ylabel="environment steps per second, training")
    axes.legend(title="grey: proportional growth", frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
