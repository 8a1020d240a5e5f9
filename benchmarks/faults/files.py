"""Damaged runs: checkpoints, configs, run.json, metrics and exported weights, each read by all that reads it.

    python -m benchmarks.faults.files --seed 0 --count 5000

Every mutant (`mutate`) has to give the content of the sound file, or one error that names it. Prints the findings and
a summary, writes results/files.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import mutate
from benchmarks.faults.mutate import Case, Verdict

RESULTS = Path(__file__).parent / "results"


def sound_run(folder: Path) -> Path:
    """A small finished run with offline epochs, several checkpoints and an exported policy."""
    import understudy as us
    from understudy.envs.registry import EnvConfig
    from understudy.nn.protocol import PolicyConfig
    from understudy.ppo.config import PPOConfig
    from understudy.runs.config import CheckpointConfig, EvaluationConfig, LoggingConfig, TrainConfig

    config = TrainConfig(
        env=EnvConfig(id="PointMass", num_envs=2),
        total_steps=64,
        run_dir=str(folder / "run"),
        policy=PolicyConfig(hidden_sizes=(8,)),
        ppo=PPOConfig(num_steps=8, minibatches=1, epochs=1),
        checkpoint=CheckpointConfig(interval=16),
        evaluation=EvaluationConfig(episodes=1),
        logging=LoggingConfig(console=False, tensorboard=False),
        device="cpu",
        torch_threads=1,
    )
    run = us.train(config)
    from understudy.tools.export import export_policy

    export_policy(run.policy, run.path / "policy.safetensors", "safetensors")
    return run.path


def cases(run: Path) -> list[Case]:
    """The files of a run with their readers."""
    from understudy.runs.folder import RunFolder, load
    from understudy.runs.metrics import read_metrics
    from understudy.tools.export import read_safetensors
    from understudy.types import CheckpointError

    folder = RunFolder(run)
    checkpoint = max(folder.checkpoints.glob("step_*.pt"))
    both = (ValueError, CheckpointError)

    def weights(path: Path) -> dict[str, Any]:
        return dict(load(path).state_dict())

    def config(path: Path) -> Any:
        return RunFolder(path.parent).read_config()

    return [
        Case("checkpoint", checkpoint.read_bytes(), checkpoint.name, weights, both, (mutate.zip_mutation,)),
        Case("config", folder.config.read_bytes(), "config.yaml", config, mutations=(mutate.text_mutation,)),
        Case("metrics", folder.metrics.read_bytes(), "metrics.jsonl", read_metrics, mutations=(mutate.lines_mutation,)),
        Case(
            "safetensors",
            (run / "policy.safetensors").read_bytes(),
            "policy.safetensors",
            lambda path: dict(read_safetensors(path).state_dict()),
            both,
        ),
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    options = parser.parse_args(words)
    return campaign("files", lambda folder: cases(sound_run(folder)), options.seed, options.count)


def campaign(piece: str, make: Callable[[Path], list[Case]], seed: int, count: int) -> int:
    """Judge all cases, print what is wrong, write the result; 1 if anything is wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as name:
        verdicts = mutate.run_cases(make(Path(name)), count, seed, Path(name))
    wrong = [verdict for verdict in verdicts if verdict.outcome not in mutate.RIGHT]
    for verdict in wrong:
        print(*verdict, sep=" | ")
    print(mutate.summary(verdicts))
    write_result(piece, verdicts, f"python -m benchmarks.faults.{piece} --seed {seed} --count {count}")
    return int(bool(wrong))


def write_result(piece: str, verdicts: Sequence[Verdict], command: str) -> None:
    """results/<piece>.md, with the command on top."""
    RESULTS.mkdir(exist_ok=True)
    text = f"`{command}`\n\n{mutate.table(verdicts)}\n"
    if said := sum(verdict.detail == mutate.AS_SAID for verdict in verdicts):
        text += f"\n{said} of the same hold other values, without a checksum over them: so says the file.\n"
    (RESULTS / f"{piece}.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
