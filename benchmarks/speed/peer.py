"""Run one peer on one workload in this process and print one JSON line.

    benchmarks/.venvs/skrl/bin/python -m benchmarks.speed.peer skrl --workload W1 --seed 0 --threads 1

The environment and the agent are built, one whole iteration (rollout and update) is run to warm up, and only then the
clock starts. The optimizer steps of the warm-up iteration and the environment steps of the timed ones are counted and
compared with the workload: a peer that does less work is an error, not a fast peer.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import time
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

from benchmarks.speed.workloads import NUM_ENVS_ON_GPU, PEERS, WORKLOADS, module_of

if TYPE_CHECKING:
    from benchmarks.speed import harness


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch (and BLAS) threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=None, help="timed iterations, instead of the workload's")
    parser.add_argument(
        "--check", action="store_true", help="evaluate the policy before the warm-up and after the clock has stopped"
    )
    return parser.parse_args()


def peer_module(peer: str, method: str) -> ModuleType:
    """The module in peers/ that does it."""
    return importlib.import_module(f"benchmarks.speed.peers.{module_of(peer, method)}")


def version(name: str) -> str:
    """Installed version of a package, or "-"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def main() -> None:
    args = parse_args()
    # before torch is imported: BLAS libraries read these once
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    import torch

    from benchmarks.speed import harness

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    peer = PEERS[args.peer]
    workload = WORKLOADS[args.workload]
    if args.device.startswith("cuda"):
        workload = replace(workload, num_envs=NUM_ENVS_ON_GPU.get(workload.name, workload.num_envs))
    if args.iterations is not None:
        workload = replace(workload, num_iterations=args.iterations)
    job = harness.Job(workload=workload, seed=args.seed, device=args.device, variant=peer.variant)
    trainer: harness.Trainer = peer_module(args.peer, workload.method).build(job)

    check_before = harness.check_score(trainer, job) if args.check else None
    started = time.perf_counter()
    gradient_steps = warm_up(trainer)
    warmup = time.perf_counter() - started
    wanted = workload.gradient_steps_per_iteration
    if gradient_steps != wanted:
        sys.exit(f"{args.peer} took {gradient_steps} optimizer steps in one iteration of {workload.name}, not {wanted}")

    trainer.clock.update_s = 0.0
    steps_before, load = trainer.steps, os.getloadavg()[0]
    cpu_start, start = time.process_time(), trainer.clock.now()
    trainer.run(workload.num_iterations)
    wall, cpu = trainer.clock.now() - start, time.process_time() - cpu_start
    steps = trainer.steps - steps_before
    if steps != workload.total_steps:
        sys.exit(f"{args.peer} took {steps} environment steps in {workload.name}, not {workload.total_steps}")

    result = {
        "peer": args.peer,
        "version": version(peer.package),
        "workload": workload.name,
        "seed": args.seed,
        "threads": args.threads,
        "device": args.device,
        "wall_s": wall,
        "cpu_s": cpu,
        "collect_s": wall - trainer.clock.update_s,
        "update_s": trainer.clock.update_s,
        "warmup_s": warmup,
        "steps": steps,
        "gradient_steps": gradient_steps * workload.num_iterations,
        "iterations": workload.num_iterations,
        "load_before": load,
        "check_before": check_before,
        "check_return": harness.check_score(trainer, job) if args.check else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "gymnasium": version("gymnasium"),
        "mujoco": version("mujoco"),
        "numpy": version("numpy"),
    }
    print(json.dumps(result), flush=True)


def warm_up(trainer: harness.Trainer) -> int:
    """Run one iteration and return the number of optimizer steps it took, by torch's count or the trainer's own."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    count = 0

    def on_step(*_: object) -> None:
        nonlocal count
        count += 1

    handle = register_optimizer_step_post_hook(on_step)
    before = trainer.gradient_steps()
    trainer.run(1)
    handle.remove()  # the clock must not pay for counting
    after = trainer.gradient_steps()
    return count if before is None or after is None else after - before


if __name__ == "__main__":
    main()
