"""Does a long training grow? Resident memory over 1,000 iterations, sampled from the kernel.

    python -m benchmarks.memory --iterations 1000

A whole training (`us.train`: PPO, observation normaliser, metrics file, TensorBoard, evaluation, checkpoints)
runs in this process; a thread reads /proc/self/statm. Growth is what memory gained after the first fifth, as the
difference of two medians, so that one transient does not decide. Exits with 1 if it exceeds --limit MiB.
Writes results/memory.md and results/memory.json. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import where

HERE = Path(__file__).resolve().parent
MIB = 2**20


class Sampler(threading.Thread):
    """Reads this process's resident memory at an interval until it is stopped."""

    def __init__(self, interval: float) -> None:
        super().__init__(daemon=True)
        self.interval, self.samples, self._stopped = interval, [resident()], threading.Event()

    def run(self) -> None:
        """The thread's loop."""
        while not self._stopped.wait(self.interval):
            self.samples.append(resident())

    def stop(self) -> list[int]:
        """All samples, bytes."""
        self._stopped.set()
        self.join()
        return self.samples


def resident() -> int:
    """Resident set size of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(samples: Sequence[float], warmup: float = 0.2, share: float = 0.1) -> float:
    """Median of the last tenth minus median of the first tenth after the warm-up fifth, in the samples' unit.

    Raises ValueError if there are fewer than ten samples.
    """
    if len(samples) < 10:
        raise ValueError(f"{len(samples)} samples are too few: run more iterations or sample more often")
    kept = samples[int(len(samples) * warmup) :]
    width = max(1, int(len(samples) * share))
    return statistics.median(kept[-width:]) - statistics.median(kept[:width])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=64)
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between samples")
    parser.add_argument("--limit", type=float, default=8.0, help="MiB of growth that count as a leak")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    started = time.perf_counter()
    samples = train(args)
    seconds = time.perf_counter() - started
    gained = growth(samples) / MIB
    report = markdown(args, samples, gained, seconds)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "memory.md").write_text(report)
    stride = max(1, len(samples) // 500)
    raw = {"interval_s": args.interval * stride, "growth_mib": gained, "rss_mib": [s / MIB for s in samples[::stride]]}
    (args.output / "memory.json").write_text(json.dumps(raw) + "\n")
    print(report)
    sys.exit(int(gained > args.limit))


def train(args: argparse.Namespace) -> list[int]:
    """Train for the asked number of iterations and return the samples."""
    import understudy as us
    from understudy.envs.registry import EnvConfig
    from understudy.ppo.config import PPOConfig
    from understudy.runs.config import CheckpointConfig, EvaluationConfig, LoggingConfig, TrainConfig

    total = args.iterations * args.num_envs * args.num_steps
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            env=EnvConfig(id=args.env, num_envs=args.num_envs),
            ppo=PPOConfig(num_steps=args.num_steps),
            total_steps=total,
            run_dir=f"{folder}/run",
            torch_threads=1,
            evaluation=EvaluationConfig(interval=max(1, total // 10), episodes=2),
            checkpoint=CheckpointConfig(interval=max(1, total // 10)),
            logging=LoggingConfig(console=False),
        )
        sampler = Sampler(args.interval)
        sampler.start()
        try:
            us.train(config)
        finally:
            samples = sampler.stop()
    return samples


def markdown(args: argparse.Namespace, samples: Sequence[int], gained: float, seconds: float) -> str:
    """The result in one paragraph and a small table."""
    points = [samples[min(len(samples) - 1, int(len(samples) * q))] / MIB for q in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    return "\n".join(
        (
            "# Memory",
            "",
            f"Resident memory of a training of {args.iterations:,} iterations ({args.env}, {args.num_envs} "
            f"environments x {args.num_steps} steps; {seconds:.0f} s, {len(samples):,} samples):",
            "",
            "| share of the run | start | 20 % | 40 % | 60 % | 80 % | end |",
            "|---|---|---|---|---|---|---|",
            "| MiB | " + " | ".join(f"{p:.1f}" for p in points) + " |",
            "",
            f"Growth after the first fifth: **{gained:+.2f} MiB** ({gained * 1024 / (0.7 * args.iterations):+.2f} KiB "
            "per iteration).",
            "",
            f"{where.machine()['cpu']}; understudy {where.revision()}; {where.today()}; "
            f"`python -m benchmarks.memory --iterations {args.iterations}`",
            "",
        )
    )


if __name__ == "__main__":
    main()
