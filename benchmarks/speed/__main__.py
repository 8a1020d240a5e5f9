"""Compare the library with its peers on one workload, side by side on this machine.

    python -m benchmarks.speed --workload W1 --runs 5 --threads 1

Every peer gets a virtual environment of its own (made on first use), every run a process of its own. Rounds are
interleaved (A B C A B C ...), so that what disturbs the machine disturbs all; medians and round-by-round ratios are
reported. Writes results/<workload>.md and the raw numbers in results/<workload>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import where
from benchmarks.speed import tables
from benchmarks.speed.venvs import InstallError, python_of
from benchmarks.speed.workloads import EPISODE_LENGTH, OURS, PEERS, WORKLOADS, Workload, default_peers

HERE = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--runs", type=int, default=5, help="rounds; each peer runs once per round")
    parser.add_argument("--threads", default="1", help='torch threads, or "all"')
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", nargs="+", choices=sorted(PEERS), help="default: who can do it")
    parser.add_argument("--iterations", type=int, default=None, help="timed iterations, instead of the workload's")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has understudy and its dependencies")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which one run is given up")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the tables")
    parser.add_argument("--name", default=None, help="name of the files; default: the workload, threads and device")
    args = parser.parse_args()
    args.peers = args.peers or list(default_peers(args.workload))
    args.threads = os.cpu_count() if args.threads == "all" else int(args.threads)
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    return args


def main() -> None:
    args = parse_args()
    pythons, failures = prepare(args.peers, args.workload, args.python)
    results: list[dict[str, Any]] = []
    for round_number in range(args.runs):
        for peer in [p for p in pythons if p not in failures]:
            outcome = run_once(peer, pythons[peer], args, round_number)
            if isinstance(outcome, str):
                failures[peer] = outcome
                print(f"round {round_number} {peer}: {outcome}", file=sys.stderr, flush=True)
                continue
            results.append(outcome)
            print(f"round {round_number} {peer}: {outcome['wall_s']:.2f} s", file=sys.stderr, flush=True)
    if not results:
        sys.exit("no peer ran: " + "; ".join(f"{peer}: {why}" for peer, why in failures.items()))
    report = write(args, results, failures)
    print(report)


def prepare(peers: Sequence[str], workload: str, ours: str) -> tuple[dict[str, str], dict[str, str]]:
    """Interpreter per peer, and why the others cannot run."""
    pythons: dict[str, str] = {}
    failures: dict[str, str] = {}
    for peer in peers:
        unsupported = dict(PEERS[peer].unsupported)
        if WORKLOADS[workload].method not in PEERS[peer].methods:
            unsupported[workload] = f"no {WORKLOADS[workload].method}"
        if workload in unsupported:
            failures[peer] = unsupported[workload]
            continue
        try:
            pythons[peer] = python_of(peer, ours)
        except InstallError as error:
            failures[peer] = f"could not be installed ({error})"
    return pythons, failures


def run_once(peer: str, python: str, args: argparse.Namespace, round_number: int) -> dict[str, Any] | str:
    """One process; its JSON line, or why there is none."""
    command = [python, "-m", "benchmarks.speed.peer", peer, "--workload", args.workload]
    command += ["--seed", str(round_number), "--threads", str(args.threads), "--device", args.device]
    if args.iterations is not None:
        command += ["--iterations", str(args.iterations)]
    if round_number == 0:
        command.append("--check")  # outside the clock: did it learn?
    environment = {**os.environ, "PYTHONPATH": str(where.ROOT / "src") if peer.startswith(OURS) else ""}
    environment["PYTHONWARNINGS"] = "ignore"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=args.timeout, env=environment, check=False, cwd=where.ROOT
        )
    except subprocess.TimeoutExpired:
        return f"no result after {args.timeout:.0f} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        return f"failed: {last[:200]}"
    result: dict[str, Any] = json.loads(lines[-1])
    result["round"] = round_number
    if peer.startswith(OURS):
        result["version"] = where.revision()
    return result


def write(args: argparse.Namespace, results: list[dict[str, Any]], failures: dict[str, str]) -> str:
    """Write table and raw numbers, return the table."""
    workload = WORKLOADS[args.workload]
    suffix = ("" if args.threads == 1 else f"-{args.threads}-threads") + ("" if args.device == "cpu" else "-gpu")
    name = args.name or args.workload + suffix
    rows = tables.summarize(results, OURS)
    machine, first = where.machine(), results[0]
    command = command_line(args)
    versions = ", ".join(f"{key} {first[key]}" for key in ("python", "torch", "gymnasium", "mujoco", "numpy"))
    load = max(result["load_before"] for result in results)
    report = "\n".join(
        (
            f"# {name}",
            "",
            describe(workload, first),
            "",
            tables.markdown(rows, failures, OURS),
            "",
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['system']}; device {args.device}, "
            f"torch threads: {args.threads}; highest load average before a run: {load:.1f}",
            f"- {versions}; {where.today()}",
            f"- `{command}`",
            "- What each peer does differently is stated at the top of `benchmarks/speed/peers/<peer>.py`.",
            "",
        )
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{name}.md").write_text(report)
    raw = {"machine": machine, "command": command, "failures": failures, "results": results}
    (args.output / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    return report


def command_line(args: argparse.Namespace) -> str:
    """The command that repeats this comparison anywhere."""
    words = ["--workload", args.workload, "--runs", str(args.runs), "--threads", str(args.threads)]
    if args.device != "cpu":
        words += ["--device", args.device]
    if args.iterations is not None:
        words += ["--iterations", str(args.iterations)]
    if tuple(args.peers) != default_peers(args.workload):
        words += ["--peers", *args.peers]
    return "python -m benchmarks.speed " + shlex.join(words)


def describe(workload: Workload, first: dict[str, Any]) -> str:
    """What was timed, and how."""
    what = describe_bc(workload, first) if workload.method == "bc" else describe_rollouts(workload, first)
    reward = "mean reward per step" if workload.env_id == "tensor" or workload.images else "mean return"
    score = {"bc": "squared error on other pairs", "distill": "squared error"}.get(workload.method, reward)
    return (
        f"{what}. Timed after one whole iteration of warm-up ('first iteration'); both counts of steps are checked. "
        "Medians of interleaved runs. Score: the deterministic policy's "
        f"{score} in the first round, to show that the work "
        "was done."
    )


def describe_bc(workload: Workload, first: dict[str, Any]) -> str:
    """Behaviour cloning in words."""
    return (
        f"Behaviour cloning of {workload.episodes * EPISODE_LENGTH:,} made-up pairs of {workload.env_id}'s shapes: "
        f"{workload.num_iterations} epochs (iterations), {first['gradient_steps']:,} gradient steps of "
        f"{workload.minibatch_size} pairs, hidden layers {widths(workload)}"
    )


def describe_rollouts(workload: Workload, first: dict[str, Any]) -> str:
    """PPO or GAIL in words."""
    num_envs = first["steps"] // first["iterations"] // workload.num_steps
    text = (
        f"{workload.env_id}: {first['steps']:,} environment steps and {first['gradient_steps']:,} gradient steps per "
        f"run ({workload.num_steps} steps x {num_envs} environments per rollout, {workload.num_epochs} epochs x "
        f"{workload.num_minibatches} minibatches, {networks(workload)}"
    )
    if workload.method == "distill":
        text += "; an untrained teacher of the same size labels each step"
    if workload.lstm:
        text += f", behind an LSTM of {workload.lstm} each"
    if workload.method == "gail":
        rows = workload.steps_per_iteration // workload.disc_updates
        text += (
            f"; {workload.disc_updates} discriminator steps of {rows:,} policy rows and as many of "
            f"{workload.episodes * EPISODE_LENGTH:,} made-up expert rows per rollout, hidden layers "
            f"{'-'.join(map(str, workload.disc_hidden))} tanh"
        )
    return text + ")"


def networks(workload: Workload) -> str:
    """Actor and critic in words."""
    if workload.images:
        return "the Nature CNN, shared by actor and critic"
    return f"hidden layers {widths(workload)}, actor and critic separate"


def widths(workload: Workload) -> str:
    """The policy's hidden layers in words."""
    return f"{'-'.join(map(str, workload.hidden))} {workload.activation}"


if __name__ == "__main__":
    main()
