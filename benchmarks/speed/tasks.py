"""How fast the library's own tasks step: environment steps/s, expert labels and automatic resets included.

    python -m benchmarks.speed.tasks

Each round steps a task 100 times with actions drawn beforehand, or with its expert's. Writes results/tasks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import where
from understudy.envs import VecEnv, make_env

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["PoisonedDoors-v0", "LightHouse-v0", "PointMass"])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[20, 4096])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ["# The library's own tasks", "", "| task | copies | random actions, steps/s | expert's actions, steps/s |"]
    lines.append("|---|---|---|---|")
    for name in args.tasks:
        for num_envs in args.num_envs:
            env = make_env(name, num_envs)
            labelled = "expert_action" in env.observation_space.spaces
            random = summary([rate(env, False) for _ in range(args.rounds)])
            expert = summary([rate(env, True) for _ in range(args.rounds)]) if labelled else "-"
            lines.append(f"| {name} | {num_envs:,} | {random} | {expert} |")
            print(lines[-1], file=sys.stderr, flush=True)
    machine = where.machine()
    lines += [
        "",
        f"Median (best) of {args.rounds} rounds of {STEPS} steps; {machine['cpu']}, {machine['cores']} cores, "
        f"torch threads {args.threads}, load average {os.getloadavg()[0]:.1f}; "
        f"understudy {where.revision()}; {where.today()}; "
        "`python -m benchmarks.speed.tasks`",
        "",
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "tasks.md").write_text("\n".join(lines))
    print("\n".join(lines))


def rate(env: VecEnv, expert: bool) -> float:
    """Environment steps per second over one round."""
    obs = env.reset(seed=0)
    actions = random_actions(env)
    start = time.perf_counter()
    for action in actions:
        obs = env.step(obs["expert_action"] if expert else action).obs
    return STEPS * env.num_envs / (time.perf_counter() - start)


def summary(rates: list[float]) -> str:
    """Median and best: on a machine that does other things too the best is nearer to the truth."""
    return f"{statistics.median(rates):,.0f} ({max(rates):,.0f})"


def random_actions(env: VecEnv) -> list[Tensor]:
    """Uniform actions `[N, *A]` for every step of a round."""
    batch = torch.as_tensor(env.action_space.sample())
    if batch.ndim == 0:
        return list(torch.randint(0, int(env.action_space.n), (STEPS, env.num_envs)))  # type: ignore[attr-defined]
    return list(torch.rand(STEPS, env.num_envs, *batch.shape) * 2.0 - 1.0)


if __name__ == "__main__":
    main()
