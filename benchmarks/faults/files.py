"""Damaged runs: checkpoints, configs, run.json, metrics and exported weights, each read by all that reads it.

    python -m benchmarks.faults.files --seed 0 --count 5000

Every mutant (`mutate`) has to give the content of the sound file, or one error that names it. Prints the findings and
a summary, writes results/files.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.faults import mutate
from benchmarks.faults.mutate import Case, Verdict
from understudy.runs.archive import archived

RESULTS = Path(__file__).parent / "results"
OLD = Path(__file__).parents[2] / "tests" / "runs" / "fixtures" / "policy_of_0.1.0.pt"


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
    import understudy as us
    from understudy.runs.codec import to_plain
    from understudy.runs.folder import RunFolder, load
    from understudy.runs.metrics import read_metrics
    from understudy.tools.export import read_safetensors
    from understudy.types import CheckpointError

    folder = RunFolder(run)
    checkpoint = max(folder.checkpoints.glob("step_*.pt"))
    both = (ValueError, CheckpointError)

    def weights(path: Path) -> dict[str, Any]:
        return dict(load(path).state_dict())

    def record(path: Path) -> Any:
        """The starts; a warning is as good as an error, as nothing depends on them."""
        said = WarningsKept()
        logging.getLogger("understudy").addHandler(said)
        found = RunFolder(path.parent).starts()
        if said.texts:
            raise ValueError(said.texts[0])
        return found

    def beside(place: Path) -> None:
        """The run around the checkpoint."""
        shutil.copy(folder.config, place)

    def resumed(path: Path) -> Any:
        """What a run goes on with."""
        (path.parent / "checkpoints").mkdir()
        inner = path.rename(path.parent / "checkpoints" / path.name)
        run = us.resume(inner, total_steps=96)
        return dict(run.policy.state_dict()), run.env_steps

    def config(path: Path) -> Any:
        return RunFolder(path.parent).read_config()

    return [
        Case("checkpoint", checkpoint.read_bytes(), checkpoint.name, weights, both, (mutate.zip_mutation,)),
        Case(
            "config",
            folder.config.read_bytes(),
            "config.yaml",
            config,
            mutations=(mutate.text_mutation,),
            faithful=lambda data, found: _says(yaml.safe_load(data), to_plain(found)),
        ),
        Case(
            "metrics",
            folder.metrics.read_bytes(),
            "metrics.jsonl",
            read_metrics,
            mutations=(mutate.lines_mutation,),
            faithful=_says_lines,
        ),
        Case(
            "run.json",
            folder.provenance.read_bytes(),
            "run.json",
            record,
            mutations=(mutate.json_mutation,),
            faithful=lambda data, found: mutate.equal(json.loads(data), found),
        ),
        Case("old checkpoint", OLD.read_bytes(), OLD.name, weights, both),
        Case("entries", checkpoint.read_bytes(), checkpoint.name, resumed, both, (entry_mutation,), None, beside),
        Case(
            "safetensors",
            (run / "policy.safetensors").read_bytes(),
            "policy.safetensors",
            lambda path: dict(read_safetensors(path).state_dict()),
            both,
        ),
    ]


class WarningsKept(logging.Handler):
    """Keeps what was warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def entry_mutation(data: bytes, rng: random.Random) -> bytes | None:
    """A sealed checkpoint with an entry missing, renamed, or of another type, shape or dtype."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.pt"
        path.write_bytes(data)
        payload = torch.load(path, weights_only=True)
    holders = [x for x in _mappings(payload) if x]
    holder = rng.choice(holders)
    key = rng.choice(list(holder))
    value = holder[key]
    what = rng.choice(("delete", "rename", "type", "shape", "dtype"))
    if what in ("delete", "rename"):
        del holder[key]
        if what == "rename":
            holder[f"{key}_"] = value
    elif isinstance(value, torch.Tensor):
        choices = {
            "type": [1.0],
            "shape": torch.cat((value.reshape(-1), value.reshape(-1)[:1])),
            "dtype": value.to(torch.complex64),
        }
        holder[key] = choices[what]
    else:
        holder[key] = rng.choice(({"a": 1}, [[]], "\ud800", torch.zeros(2), {1: 2}))
    return archived(payload)


def _mappings(plain: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(plain, dict):
        yield plain
        for inner in plain.values():
            yield from _mappings(inner)


def _says(plain: Any, found: Any) -> bool:
    """Whether what YAML says is what was found; what it does not mention has its default."""
    if isinstance(plain, dict) and isinstance(found, dict):
        return all(key == "allow_imports" or (key in found and _says(plain[key], found[key])) for key in plain)
    if isinstance(plain, list) and isinstance(found, list):
        return len(plain) == len(found) and all(map(_says, plain, found))
    if isinstance(found, float) and isinstance(plain, int | float | str):
        return float(plain) == found
    return str(plain) == str(found)


def _says_lines(data: bytes, rows: list[dict[str, Any]]) -> bool:
    """Whether these are the lines, but for half a line at the end."""
    lines = data.split(b"\n")
    if lines and (not lines[-1] or b"}" not in lines[-1]):
        lines.pop()
    said = [{key: math.nan if x is None else x for key, x in json.loads(line).items()} for line in lines]
    return mutate.equal(said, rows)


def main(words: Sequence[str] | None = None) -> int:
    return campaign("files", lambda folder: cases(sound_run(folder)), words, __doc__)


def campaign(
    piece: str,
    make: Callable[[Path], list[Case]],
    words: Sequence[str] | None,
    about: str | None,
    count: int = 5000,
) -> int:
    """Judge --count mutants of all cases, print what is wrong, write the result; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=count)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        verdicts = mutate.run_cases(make(Path(name)), options.count, options.seed, Path(name))
    wrong = [verdict for verdict in verdicts if verdict.outcome not in mutate.RIGHT]
    for verdict in wrong:
        print(*verdict, sep=" | ")
    print(mutate.summary(verdicts))
    said = f"python -m benchmarks.faults.{piece} --seed {options.seed} --count {options.count}"
    write_result(piece, verdicts, said)
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
