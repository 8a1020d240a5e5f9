"""What collecting costs on top of the environment: steps/s while collecting, against random actions.

    python -m benchmarks.speed.collection --rounds 20

The same vector environment is stepped with actions drawn beforehand, and by `PPO.iterate` (its "time/collect": acting,
stepping, storing, the finiteness check). Rounds are interleaved; the update is cut to one gradient step, so that the
policy stays as random as the random actions and episodes are as long. Writes results/collection.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import where

HERE = Path(__file__).resolve().parent

if TYPE_CHECKING:
    from torch import Tensor

    from understudy.envs.base import VecEnv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2"])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    setup(args.threads)

    lines = [
        "# Collection",
        "",
        "| workload | environment alone, steps/s | collecting, steps/s | share (median of pairs) |",
        "|---|---|---|---|",
    ]
    for name in args.workloads:
        for variant in ("", "envpool") if name != "W3" else ("",):
            alone, collecting, share = measure(name, variant, args.rounds)
            label = f"{name}, EnvPool" if variant else name
            lines.append(f"| {label} | {alone:,.0f} | {collecting:,.0f} | {share:.0%} |")
            print(lines[-1], file=sys.stderr, flush=True)
    machine = where.machine()
    lines += [
        "",
        f"{args.rounds} interleaved rounds; {machine['cpu']}, {machine['cores']} cores, torch threads {args.threads}; "
        f"understudy {where.revision()}; {where.today()}; "
        f"`python -m benchmarks.speed.collection --rounds {args.rounds} --threads {args.threads}`",
        "",
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "collection.md").write_text("\n".join(lines))
    print("\n".join(lines))


def setup(threads: int) -> None:
    """Limit the threads before torch is imported."""
    where.threads(threads)
    import torch

    torch.set_num_threads(threads)


def measure(name: str, variant: str, rounds: int) -> tuple[float, float, float]:
    """(steps/s alone, steps/s collecting, median of their paired ratio)."""
    from benchmarks.speed.harness import Job
    from benchmarks.speed.peers import understudy
    from benchmarks.speed.workloads import WORKLOADS

    workload = replace(WORKLOADS[name], num_epochs=1, num_minibatches=1)
    job = Job(workload=workload, seed=0, device="cpu", variant=variant)
    ppo = understudy.build(job).ppo
    alone_env = understudy.build(job).ppo.env
    alone_env.reset(0)
    actions = random_actions(alone_env, workload.num_steps)
    ppo.iterate()
    drive(alone_env, actions)
    steps = workload.steps_per_iteration
    alone, collecting = [], []
    for _ in range(rounds):
        alone.append(steps / drive(alone_env, actions))
        collecting.append(steps / ppo.iterate()["time/collect"])
    share = statistics.median(c / a for c, a in zip(collecting, alone))
    return statistics.median(alone), statistics.median(collecting), share


def random_actions(env: VecEnv, num_steps: int) -> list[Tensor]:
    """Executed actions of `num_steps` steps, drawn uniformly beforehand."""
    import numpy as np
    import torch

    env.action_space.seed(0)
    rows = [[env.action_space.sample() for _ in range(env.num_envs)] for _ in range(num_steps)]
    return list(torch.as_tensor(np.asarray(rows), device=env.device).unbind(0))


def drive(env: VecEnv, actions: list[Tensor]) -> float:
    """Seconds to step through all actions."""
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
