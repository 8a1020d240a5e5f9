"""Trainings that are killed, interrupted, starved of disk and robbed of their folder, and then continued.

    python -m benchmarks.faults.kills --seed 0 --count 60

Short real trainings run in child processes. Each is disturbed at a random moment: a time, or its k-th operation on the
run's folder (start-up included). Then every file under its final name has to be whole, and what is left has to go on:
after SIGKILL and after one signal to the weights, metrics and evaluation of the uninterrupted training, bit for bit.
Prints the findings and a summary, writes results/kills.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import understudy as us
from understudy.data.demonstrations.write import write_npz
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.parts.gail import GailConfig
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.config import CheckpointConfig, DaggerConfig, EvaluationConfig, LoggingConfig, OfflineConfig
from understudy.runs.folder import CHECKPOINT_KIND, RunFolder
from understudy.runs.metrics import read_metrics
from understudy.tasks.point_mass import PointMass
from understudy.tools.record import record_episodes
from understudy.types import UnderstudyError

RESULTS = Path(__file__).parent / "results"
STEPS = 32  # of one iteration
EXPECTED = (ValueError, OSError, UnderstudyError)  # errors of one sentence; all others are tracebacks
WRITING = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "tempfile.mkdtemp")
"""Audit events in which a folder changes."""


def steer(obs: Any, is_first: Any = None) -> torch.Tensor:
    """The expert: a damped spring."""
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


def jobs(folder: Path) -> dict[str, us.TrainConfig]:
    """Trainings of under a second."""
    source = folder / "demonstrations.npz"
    env = PointMass(4, max_episode_steps=20)
    write_npz(source, record_episodes(env, steer, 8, seed=0), {"env": "PointMass"})
    plain = us.TrainConfig(
        total_steps=6 * STEPS,
        env=us.EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": 9}),
        policy=us.PolicyConfig(hidden_sizes=(8,)),
        ppo=us.PPOConfig(num_steps=16, epochs=1, minibatches=1, warmup_steps=16, capture="eager"),
        evaluation=EvaluationConfig(episodes=2, interval=3 * STEPS),
        checkpoint=CheckpointConfig(interval=2 * STEPS),
        logging=LoggingConfig(console=False),
        device="cpu",
        torch_threads=1,
    )
    cloning = BehaviorCloningConfig(batch_size=32, demonstrations=str(source))
    dagger = DaggerConfig(rounds=3, episodes_per_round=2, steps_per_round=30, beta=0.5)
    return {
        "ppo": plain,
        "bc+ppo": dataclasses.replace(plain, parts={"bc": cloning}, offline=OfflineConfig(epochs=14)),
        "dagger": dataclasses.replace(
            plain,
            parts={"bc": dataclasses.replace(cloning, demonstrations="")},
            offline=OfflineConfig(epochs=4, evaluation_interval=5, dagger=dagger),
            total_steps=2 * STEPS,
        ),
        "gail": dataclasses.replace(plain, parts={"gail": GailConfig(demonstrations=str(source))}),
    }


# --------------------------------------------------------------------------------------------- child processes


def begin(work: Callable[[], Any], log: Path) -> int:
    """Do `work` in a fork; its exit code is 0, the one of sys.exit, or 1 with the error in `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        try:
            work()
            code = 0
        except BaseException as error:  # everything is judged
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            kind = "expected" if isinstance(error, (*EXPECTED, SystemExit, KeyboardInterrupt)) else "traceback"
            os.write(2, f"{kind} {type(error).__name__}: {error} {vars(error).get('__notes__', '')}".encode())
    finally:
        os._exit(code)


def end(pid: int, seconds: float = 120.0) -> int:
    """The exit code of a child, negative for a signal; -1000 for one that hangs."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1000


def counted(folder: Path, act: Callable[[], Any], at: int = -1) -> list[int]:
    """Count what changes in `folder` from now on, and `act` before the change number `at`."""
    seen, place = [0], str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WRITING or not any(str(each).startswith(place) for each in arguments[:2]):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        seen[0] += 1
        if seen[0] == at:
            act()

    sys.addaudithook(hook)
    return seen


# --------------------------------------------------------------------------------------------- what is left


class Left(NamedTuple):
    """What can be compared of a run."""

    weights: dict[str, torch.Tensor]
    metrics: list[dict[str, float]]
    evaluation: str
    events: dict[str, list[int]]


def read(run: Path) -> Left:
    """A finished run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    newest = step_checkpoints(run / "checkpoints")[-1]
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(run / "metrics.jsonl")]
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    events = {tag: [event.step for event in board.Scalars(tag)] for tag in ("ppo/kl", "evaluation/return")}
    weights = load_checkpoint(newest, CHECKPOINT_KIND)["state"]["policy"]
    return Left(weights, rows, (run / "evaluation.json").read_text(), events)


def differences(left: Left, right: Left) -> str:
    """Names of what is not equal."""
    weights = left.weights.keys() == right.weights.keys() and all(
        torch.equal(x, right.weights[name]) for name, x in left.weights.items()
    )
    same = {"weights": weights, "metrics": str(left.metrics) == str(right.metrics)}
    same |= {"evaluation": left.evaluation == right.evaluation, "TensorBoard": left.events == right.events}
    return ", ".join(name for name, equal in same.items() if not equal)


def check_whole(run: Path) -> None:
    """Raise whatever a torn file raises."""
    folder = RunFolder(run)
    if folder.config.exists():
        folder.read_config()
    for file in (folder.provenance, folder.evaluation):
        if file.exists():
            json.loads(file.read_text())
    if folder.metrics.exists():
        read_metrics(folder.metrics)
    for file in run.glob("checkpoints/*.pt"):
        load_checkpoint(file, CHECKPOINT_KIND)
    for file in run.glob("demonstrations/*.npz"):
        with np.load(file) as arrays:
            assert all(len(arrays[name]) for name in ("actions", "rewards"))


# --------------------------------------------------------------------------------------------- the campaign

DISTURBANCES = {
    "SIGKILL": 30,
    "SIGKILL twice": 6,
    "SIGTERM": 4,
    "SIGINT": 4,
    "SIGTERM twice": 4,
    "full disk": 4,
    "read-only folder": 3,
    "folder deleted": 3,
    "two in one folder": 2,
}
"""What happens, and how often of 60 times."""


TOO_LATE = "after the end"


class Campaign:
    """The uninterrupted trainings, and the judge of the disturbed ones."""

    def __init__(self, folder: Path, names: Sequence[str] = ("ppo", "bc+ppo", "dagger", "gail")) -> None:
        torch.set_num_threads(1)
        self.folder, self.configs, self.whole = folder, jobs(folder), {}
        self.seconds: dict[str, float] = {}
        self.changes: dict[str, int] = {}
        for name in names:
            self._measure(name, folder / f"whole-{name.replace('+', '-')}")

    def _measure(self, name: str, run: Path) -> None:
        def work() -> None:
            seen = counted(run, lambda: None)
            self.train(name, run)
            (self.folder / "changes").write_text(str(seen[0]))

        began, log = time.monotonic(), self.folder / "log"
        code = end(begin(work, log))
        assert code == 0, log.read_text()
        self.seconds[name], self.whole[name] = time.monotonic() - began, read(run)
        self.changes[name] = int((self.folder / "changes").read_text())

    def train(self, name: str, run: Path) -> None:
        """Start a training, or start it again."""
        config = dataclasses.replace(self.configs[name], run_dir=str(run))
        us.train(config, expert=steer if name == "dagger" else None)

    def resume(self, name: str, run: Path) -> None:
        """Continue it."""
        us.resume(run, expert=steer if name == "dagger" else None)

    def go_on(self, name: str, run: Path) -> None:
        """Continue what can be continued; start the rest again."""
        (self.resume if RunFolder(run).config.exists() else self.train)(name, run)

    def judge(self, name: str, what: str, dice: random.Random) -> tuple[str, str]:
        """Disturb a training; the moment, and a complaint (empty: all is right)."""
        run, log = Path(tempfile.mkdtemp(dir=self.folder)) / "run", self.folder / "log"
        start = self.train
        exact = True
        for _ in range(2 if what == "SIGKILL twice" else 1):
            moment, code = self._disturb(name, what, run, log, dice, start)
            said = log.read_text()
            if complaint := _complaint(what, code, said):
                return moment, complaint
            exact &= what in ("SIGKILL", "SIGKILL twice", "SIGTERM", "SIGINT") or code == 0
            try:
                check_whole(run)
            except Exception as error:
                return moment, f"a torn file: {type(error).__name__}: {error}"
            if (run / "evaluation.json").exists():
                return TOO_LATE, ""
            start = self.go_on
        code = end(begin(lambda: self.go_on(name, run), log))
        if what == "folder deleted" and "is gone, so the training cannot continue" in log.read_text():
            return moment, ""  # DAgger's rounds were in it
        if code:
            return moment, f"it does not go on ({code}): {log.read_text()[-300:]}"
        if leftovers := [str(file.relative_to(run)) for file in run.rglob("*.tmp")]:
            return moment, f"leftovers: {leftovers}"
        different = differences(self.whole[name], read(run)) if exact else ""
        shutil.rmtree(run.parent)
        return moment, different and f"different: {different}"

    def _disturb(
        self, name: str, what: str, run: Path, log: Path, dice: random.Random, start: Callable[[str, Path], None]
    ) -> tuple[str, int]:
        """Start, disturb; the moment and the exit code."""
        if what == "two in one folder":
            return "after the lock", self._second(name, run, log)
        change, delay = dice.randrange(1, self.changes[name] + 1), dice.uniform(0.0, self.seconds[name])
        in_time = what in ("SIGTERM", "SIGINT", "SIGTERM twice") or (what.startswith("SIGKILL") and dice.random() < 0.4)
        inside: dict[str, Callable[[], Any]] = {
            "full disk": lambda: _fill(dice.choice((0, 1, 300, 5000))),
            "read-only folder": lambda: _deny(run),
            "folder deleted": lambda: shutil.rmtree(run, ignore_errors=True),
        }

        def work() -> None:
            if not in_time:
                counted(run, inside.get(what, lambda: os.kill(os.getpid(), signal.SIGKILL)), change)
            start(name, run)

        pid = begin(work, log)
        if not in_time:
            return f"change {change} of {self.changes[name]}", end(pid)
        time.sleep(delay)
        sent = signal.SIGKILL if what.startswith("SIGKILL") else signal.Signals[what.split()[0]]
        for _ in range(2 if what == "SIGTERM twice" else 1):
            os.kill(pid, sent)
            time.sleep(0.02 * (what == "SIGTERM twice"))
        return f"{delay:.2f} s of {self.seconds[name]:.2f}", end(pid)

    def _second(self, name: str, run: Path, log: Path) -> int:
        """Start a second training beside the first; its exit code, if the first one ends well."""
        first = begin(lambda: self.train(name, run), self.folder / "first")
        while not (run / "config.yaml").exists():
            time.sleep(0.001)
        code = end(begin(lambda: self.resume(name, run), log))
        return code if end(first) == 0 and f"process {first} on" in log.read_text() else -2000


def _fill(limit: int) -> None:
    """No file may grow beyond `limit` bytes: what a full disk is like for whoever writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def _deny(folder: Path) -> None:
    """No file in `folder` may be written, also by root."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event in WRITING and writes and any(str(each).startswith(str(folder)) for each in arguments[:2]):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    sys.addaudithook(hook)


def _complaint(what: str, code: int, said: str) -> str:
    """What is wrong with how a disturbed training ended."""
    if code == -1000:
        return "it hangs"
    if "traceback " in said or "Traceback" in said:
        return f"a traceback: {said[-300:]}"
    allowed = {
        "SIGKILL": (-9, 0),
        "SIGKILL twice": (-9, 0),
        "SIGTERM": (-15, 0),  # before and in the training
        "SIGINT": (1, 0),
        "SIGTERM twice": (-15, 143, 0),
        "two in one folder": (1,),
    }.get(what, (1, 0))
    return "" if code in allowed else f"exit code {code}: {said[-300:]}"


def plan(count: int, seed: int, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which job meets what, in a random order."""
    dice = random.Random(seed)
    total = sum(DISTURBANCES.values())
    kinds = [what for what, share in DISTURBANCES.items() for _ in range(max(1, round(share * count / total)))]
    dice.shuffle(kinds)
    return [(names[number % len(names)], what) for number, what in enumerate(kinds[:count])]


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    options = parser.parse_args(words)
    logging.disable()
    rows, late, wrong = (Counter[tuple[str, str]]() for _ in range(3))
    with tempfile.TemporaryDirectory() as name:
        campaign = Campaign(Path(name))
        for number, (job, what) in enumerate(plan(options.count, options.seed, [*campaign.configs])):
            moment, complaint = campaign.judge(job, what, random.Random(f"{options.seed}/{number}"))
            rows[what, job] += 1
            late[what, job] += moment == TOO_LATE
            if complaint:
                wrong[what, job] += 1
                print(f"{number} | {job} | {what} | {moment} | {complaint}", flush=True)
    count = sum(rows.values())
    summary = f"{count} trainings, {count - sum(late.values())} disturbed in time, {sum(wrong.values())} wrong"
    print(summary)
    lines = [
        f"| {what} | {job} | {rows[what, job]} | {late[what, job]} | {wrong[what, job]} |" for what, job in sorted(rows)
    ]
    text = ["| disturbance | training | times | of these too late | wrong |", "|---|---|---|---|---|", *lines]
    RESULTS.mkdir(exist_ok=True)
    command = f"`python -m benchmarks.faults.kills --seed {options.seed} --count {options.count}`"
    (RESULTS / "kills.md").write_text("\n".join([command, "", f"{summary}.", "", *text, ""]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
