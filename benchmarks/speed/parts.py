"""W7, second table: what expert signals cost beside plain PPO, on W3's environment and sizes.

    python -m benchmarks.speed.parts --rounds 5        (--quick: small sizes, a try)

Iterations of PPO alone, with a teacher (the part `Teacher`, of the student's size), with GAIL (its defaults; made-up
demonstrations), and with both take turns in one process. Ratios are of seconds in the same round; the goal is less than
2 for all together. Writes results/W7-parts.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import where
from benchmarks.speed.collection import setup
from benchmarks.speed.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    import understudy as us

HERE = Path(__file__).resolve().parent
VARIANTS = {"PPO": (), "teacher": ("teacher",), "GAIL": ("gail",), "teacher and GAIL": ("teacher", "gail")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="16 copies and small networks, one round")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    setup(args.threads)
    workload, rounds = WORKLOADS["W3"], args.rounds
    if args.quick:
        workload, rounds = dataclasses.replace(workload, num_envs=16, hidden=(32,)), 1
    times = measure({name: build(workload, parts, args.device) for name, parts in VARIANTS.items()}, rounds)
    machine = where.machine()
    line = (
        f"{rounds} interleaved iterations of {workload.num_envs} copies; {machine['cpu']}, {machine['cores']} cores, "
        f"device {args.device}, torch threads {args.threads}; understudy {where.revision()}; {where.today()}; "
        f"`python -m benchmarks.speed.parts --rounds {args.rounds} --threads {args.threads}`"
    )
    report = "\n".join([*table(times), "", line, ""])
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "W7-parts.md").write_text(report)
    print(report)


def build(workload: Workload, names: tuple[str, ...], device: str) -> us.PPO:
    """PPO with these parts."""
    import numpy as np
    import torch

    import understudy as us
    from benchmarks.speed.harness import Demonstrations
    from benchmarks.speed.peers.understudy import TensorTask, policy_config, ppo_config
    from benchmarks.speed.peers.understudy_bc import written
    from benchmarks.speed.tensor_env import ACTION_DIM, OBS_DIM, TensorEnv
    from understudy.parts import GailConfig, TeacherConfig

    env = TensorTask(TensorEnv(workload.num_envs, device, seed=0))
    torch.manual_seed(0)
    policy, teacher = (
        us.ActorCritic(env.observation_space, env.action_space, policy_config(workload)).to(device) for _ in range(2)
    )
    rng = np.random.default_rng(0)
    obs, actions = rng.normal(size=(50, 201, OBS_DIM)), rng.uniform(-1.0, 1.0, (50, 200, ACTION_DIM))
    made_up = Demonstrations(obs=np.tanh(obs).astype(np.float32), actions=actions.astype(np.float32))
    configs: dict[str, Any] = {"teacher": TeacherConfig(checkpoints=("teacher",), target="mse_sum")}
    if "gail" in names:
        configs["gail"] = GailConfig(demonstrations=written(made_up), normalization="own")
    parts = {}
    for name in names:
        sizes = {"num_steps": workload.num_steps, "gamma": workload.gamma, "seed": 0}
        context = us.PartContext.of(env, policy, name=name, **sizes)
        parts[name] = configs[name].build(dataclasses.replace(context, load_policy=lambda _: teacher)).to(device)
    return us.PPO(env, policy, ppo_config(workload, ""), parts, seed=0)


def measure(trainers: dict[str, us.PPO], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each trainer's iterations, which take turns after two to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
    for number in range(-2, rounds):
        for name, ppo in trainers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            ppo.iterate()  # whose metrics are read on the host: the device is done
            if number >= 0:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        print(f"round {number}", file=sys.stderr, flush=True)
    return times


def table(times: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Medians, and the median of the paired ratios to PPO alone."""
    lines = ["# W7-parts", "", "| | wall s | CPU s | wall / PPO | CPU / PPO |", "|---|---|---|---|---|"]
    for name, found in times.items():
        medians = [statistics.median(column) for column in zip(*found)]
        pairs = [[mine / plain for mine, plain in zip(*both)] for both in zip(found, times["PPO"])]
        ratios = [statistics.median(column) for column in zip(*pairs)]
        lines.append(f"| {name} | " + " | ".join(f"{number:.2f}" for number in (*medians, *ratios)) + " |")
    return lines


if __name__ == "__main__":
    main()
