"""Behaviour cloning, PPO and ADVISOR side by side on Poisoned Doors: when should one imitate an expert who knows more?

Of four doors one is good (return 2) and two are poisoned (-2); only the expert can tell which. The fourth asks for a
code of ten digits that anybody could learn (return 1). Whoever clones the expert takes a door at random, whoever
explores alone finds the doors bad and never meets the code; ADVISOR imitates the digits and leaves the choice of the
door to reinforcement learning. Takes about a minute on two cores; what `make demo` runs.

Run it with `python examples/poisoned_doors_demo.py --output demo`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

import understudy as us
from understudy.nn.networks import EncoderConfig
from understudy.parts.advisor import AdvisorConfig
from understudy.parts.scripted_expert import ScriptedExpertConfig
from understudy.runs.config import CheckpointConfig, EvaluationConfig, LoggingConfig
from understudy.runs.folder import RunFolder
from understudy.runs.metrics import read_metrics
from understudy.tools.plot import plot_learning_curves
from understudy.training.loop import train

METHODS = {"behaviour cloning": "bc", "PPO": "ppo", "ADVISOR": "advisor"}
"""What the picture calls it -> the name of its run's folder."""
OPTIMUM = 1.0
"""The best return without the expert's knowledge: 11 steps to the last digit."""
LAST = 10
"""Iterations, of 2,000 steps each, that the sentences at the end are about."""


def make_config(method: str, total_steps: int, folder: Path, seed: int) -> us.TrainConfig:
    """One of the three trainings: the same core with one part, another part or none."""
    parts: dict[str, dict[str, us.PartConfig]] = {
        "bc": {"expert": ScriptedExpertConfig()},
        "ppo": {},
        "advisor": {"advisor": AdvisorConfig(alpha=16.0, bound=0.0, aux_init="orthogonal")},
    }
    imitation_alone = method == "bc"  # no reinforcement learning: only the part's loss is left
    return us.TrainConfig(
        env=us.EnvConfig(id="PoisonedDoors-v0", num_envs=20),
        policy=us.PolicyConfig(
            hidden_sizes=(), memory="lstm", shared_trunk=True, encoder=EncoderConfig(embedding_size=128)
        ),
        ppo=us.PPOConfig(
            num_steps=100,
            minibatches=2,
            gae_lambda=1.0,
            clip_epsilon=us.Schedule(kind="linear", start=0.1),
            surrogate_coef=0.0 if imitation_alone else 1.0,
            entropy_coef=0.0 if imitation_alone else 0.01,
            optimizer=us.OptimizerConfig(learning_rate=us.Schedule(kind="linear", start=3.5e-3)),
        ),
        parts=parts[method],
        total_steps=total_steps,
        seed=seed,
        run_dir=str(folder),
        torch_threads=1,
        evaluation=EvaluationConfig(episodes=0),
        checkpoint=CheckpointConfig(interval=None),
        logging=LoggingConfig(console=False, tensorboard=False),
    )


def progress(folders: Mapping[str, Path]) -> dict[str, tuple[int, float]]:
    """Steps and mean return of the last episodes, so far."""
    found = {}
    for name, folder in folders.items():
        metrics = RunFolder(folder).metrics
        rows = read_metrics(metrics) if metrics.exists() else []
        found[name] = (int(rows[-1]["step"]), rows[-1]["episode/return"]) if rows else (0, float("nan"))
    return found


def table(state: Mapping[str, tuple[int, float]], total_steps: int) -> Table:
    """The live display."""
    grid = Table.grid(padding=(0, 2))
    for name, (step, mean) in state.items():
        bar = ProgressBar(total=total_steps, completed=min(step, total_steps), width=40)
        grid.add_row(name, bar, f"{step:>7,} steps", f"return {mean:+.2f}" if step else "starting")
    return grid


def watch(processes: list[multiprocessing.process.BaseProcess], folders: Mapping[str, Path], total_steps: int) -> None:
    """Show the three trainings until all are over, or one has failed."""

    def running() -> bool:
        return any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes)

    console = Console(highlight=False)
    if console.is_terminal:
        with Live(table(progress(folders), total_steps), console=console) as live:
            while running():
                time.sleep(0.25)
                live.update(table(progress(folders), total_steps))
        return
    while running():
        time.sleep(5.0)
        state = progress(folders)
        parts = [f"{name} {step / total_steps:4.0%} return {mean:+.2f}" for name, (step, mean) in state.items() if step]
        console.print(" | ".join(parts) or "starting", soft_wrap=True)


def last_episodes(metrics: Path) -> dict[str, float]:
    """Mean return and shares of the ends of the last episodes."""
    rows = read_metrics(metrics)[-LAST:]
    names = ("episode/return", "env/good_door", "env/bad_door", "env/opened_lock")
    return {name.split("/")[1]: sum(row[name] for row in rows) / len(rows) for name in names}


def sentence(name: str, last: Mapping[str, float]) -> str:
    """What happened, read off the last episodes."""
    good, lock = last["good_door"], last["opened_lock"]
    doors = good + last["bad_door"]
    start = f"{name}: return {last['return']:+.2f}; in its last episodes it"
    if lock > 0.5:
        return f"{start} opened the lock {lock:.0%} of the time, the best one can do without knowing the good door."
    if doors > 0.5:
        return (
            f"{start} took one of the unknown doors {doors:.0%} of the time, the good one in {good / doors:.0%} of "
            "these cases: it copies a choice whose reason it cannot see."
        )
    return (
        f"{start} took one of the unknown doors only {doors:.0%} of the time and opened the lock {lock:.0%}: it avoids "
        "the doors that cost, and has not found the code."
    )


def main(total_steps: int = 120_000, output: Path = Path("demo"), seed: int = 1) -> dict[str, str]:
    start = time.monotonic()
    folders = {name: output / method for name, method in METHODS.items()}
    forks = "forkserver" in multiprocessing.get_all_start_methods()  # imports once what `spawn` imports three times
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["understudy.training.loop"])
    processes = [
        context.Process(target=train, args=(make_config(METHODS[name], total_steps, folder, seed),), name=name)
        for name, folder in folders.items()
    ]
    for process in processes:
        process.start()
    try:
        watch(processes, folders, total_steps)
    finally:
        for process in processes:
            process.terminate()  # where this was interrupted; SIGTERM ends a training with a checkpoint
            process.join()
    failed = [process.name for process in processes if process.exitcode]
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed, see above")
    runs = {name: RunFolder(folder).metrics for name, folder in folders.items()}
    picture = plot_learning_curves(
        runs,
        output / "poisoned-doors.png",
        title="Poisoned Doors: the expert knows the good door, the policy does not",
        levels={"optimum without the expert's knowledge": OPTIMUM},
    )
    sentences = {name: sentence(name, last_episodes(metrics)) for name, metrics in runs.items()}
    print("", *sentences.values(), "", sep="\n")
    print(f"The curves are {picture}; it all took {time.monotonic() - start:.0f} s.")
    return sentences


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", type=int, default=120_000)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.total_steps, arguments.output, arguments.seed)
