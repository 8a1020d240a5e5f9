"""Damaged files of runs give their content or one error that names them; and the inputs that once went wrong."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import re
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.faults import files, mutate
from benchmarks.faults.kills import begin, end
from gymnasium import spaces

import understudy as us
from understudy.core.borders import parse_json, parse_yaml
from understudy.runs.archive import archived
from understudy.runs.checkpoint import (
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    step_checkpoints,
)
from understudy.runs.config import from_yaml, read_config
from understudy.runs.folder import CHECKPOINT_KIND, RunFolder
from understudy.runs.metrics import read_metrics
from understudy.runs.spaces import space_from_plain
from understudy.tools.export import ExportError, export_policy, read_safetensors
from understudy.types import CheckpointError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.sound_run(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def newest(run: Path) -> Path:
    return step_checkpoints(run / "checkpoints")[-1]


# ------------------------------------------------------------------------------------------------- the campaign


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_the_campaign(sound: Path, tmp_path: Path) -> None:
    verdicts = mutate.run_cases(files.cases(sound), 160, 7, tmp_path)
    assert len(verdicts) == 160
    assert not [v for v in verdicts if v.outcome not in mutate.RIGHT]
    assert len({v.mutation for v in verdicts}) > 10


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    def read(path: Path) -> Any:
        data = path.read_bytes()
        if len(data) < 4:
            raise KeyError("short")
        if data.startswith(b"\x00"):
            raise ValueError("zeros")
        if data.count(b"a") > 8:
            signal.raise_signal(signal.SIGSEGV)
        if b"b" not in data:
            np.ones(2**34).sum()
        return data[:8]

    case = mutate.Case("text", b"aaaabbbb" * 1, "x.txt", read)
    outcomes = {v.outcome for v in mutate.run_cases([case], 150, 0, tmp_path)}
    assert {"traceback", "unnamed", "other", "crash", "memory"} <= outcomes
    endless = mutate.Case(
        "endless", b"abc", "x.txt", lambda path: None if path.read_bytes() == b"abc" else signal.pause()
    )
    assert {v.outcome for v in mutate.run_cases([endless], 2, 0, tmp_path, mutate.Limits(seconds=0.2))} == {"hang"}


# -------------------------------------------------------------------------------------------------- checkpoints


def test_every_flipped_bit_of_a_checkpoint_is_seen(run: Path) -> None:
    path, seen = newest(run), 0
    sound, data = load_checkpoint(path, CHECKPOINT_KIND), path.read_bytes()
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            assert mutate.equal(load_checkpoint(path, CHECKPOINT_KIND), sound)  # padding
        except CheckpointError as error:
            seen += path.name in str(error)
    assert seen > len(data) / 97 / 2


def test_exchanged_tensors_are_seen(run: Path) -> None:
    path = newest(run)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    tensors = itertools.combinations([name for name in members if "/data/" in name], 2)
    a, b = next((a, b) for a, b in tensors if len(members[a]) == len(members[b]) and members[a] != members[b])

    def write(changed: dict[str, bytes]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in changed.items():
                archive.writestr(name, content)

    write(members | {a: members[b], b: members[a]})
    with pytest.raises(CheckpointError, match="checksum is another"):
        load_checkpoint(path, CHECKPOINT_KIND)
    write(members)
    load_checkpoint(path, CHECKPOINT_KIND)


def test_torch_reads_what_is_written_and_old_files_have_their_zip_checked(tmp_path: Path) -> None:
    path, payload = (
        tmp_path / "a.pt",
        {"x": torch.arange(4.0)[1:], "n": [1, -(2**70), 0.5, None, True, "é"], "t": (1, ())},
    )
    save_checkpoint(path, "k", payload)
    assert mutate.equal(torch.load(path, weights_only=True), load_checkpoint(path, "k"))
    torch.save({"format_version": 1, "kind": "k", **payload}, path)
    assert mutate.equal(load_checkpoint(path, "k")["x"], payload["x"])
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(4.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch does not see it
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged .*another checksum"):
        load_checkpoint(path, "k")


class Expanded:
    """Pickles as a tensor whose shape exceeds its storage."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.size, self.stride = size, stride

    def __reduce__(self) -> Any:
        numbers = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32)
        return torch._utils._rebuild_tensor_v2, (numbers, 0, self.size, self.stride, False, {})


@pytest.mark.parametrize(
    ("size", "stride", "said"),
    [
        ((5,), (1,), "exceeds its storage"),
        ((2**40,), (1,), "exceeds its storage"),
        ((2**33,), (0,), "claims 32.0 GiB"),
        ((2**61, 2**61), (0, 0), "has the shape"),
        ((4,), (-1,), "has the shape"),
    ],
)
def test_sizes_of_tensors_are_checked_before_memory_is_taken(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], said: str
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archived({"format_version": 1, "kind": "k", "x": Expanded(size, stride)}))
    with pytest.raises(CheckpointError, match=rf"a\.pt .*{said}"):
        load_checkpoint(path, "k")


def test_a_packed_checkpoint_takes_no_memory(tmp_path: Path) -> None:
    path, buffer = tmp_path / "a.pt", io.BytesIO()
    torch.save({"format_version": 1, "kind": "k", "x": torch.zeros(2**22)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(CheckpointError, match=r"a\.pt .*compressed"):
        load_checkpoint(path, "k")


def test_deep_and_multiplying_data_is_refused(tmp_path: Path) -> None:
    path, deep, wide = tmp_path / "a.pt", [], []
    for _ in range(150):
        deep = [deep]
    for _ in range(40):
        wide = [wide, wide]
    for value, said in ((deep, "levels deep"), (wide, "more than")):
        save_checkpoint(path, "k", {"x": value})
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(path, "k")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("state"),
        lambda p: p["state"].pop("counters"),
        lambda p: p["state"]["counters"].update(iteration="3"),
        lambda p: p.update(env_steps=-1),
        lambda p: p.update(config=3),
        lambda p: p.update(config="{"),
        lambda p: p.update(config="env: 3"),
        lambda p: p.update(surprise=1),
        lambda p: p["state"]["policy"].update(x=3),
        lambda p: p.update(offline={"finished": True}),
        lambda p: p.update(policy=[1]),
        lambda p: p["state"]["rng"].update(numpy=[1]),
    ],
)
def test_entries_of_a_checkpoint_have_types(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = newest(run)
    payload = load_checkpoint(path, CHECKPOINT_KIND)
    change(payload)
    path.write_bytes(archived(payload))
    with pytest.raises(CheckpointError, match=path.name):
        read_checkpoint(path, CHECKPOINT_KIND)


def test_sizes_in_a_policy_are_compared_with_its_weights_first(run: Path) -> None:
    path = newest(run)
    payload = load_checkpoint(path, CHECKPOINT_KIND)
    payload["policy"]["hidden_sizes"] = [10**4, 10**4]
    path.write_bytes(archived(payload))
    with pytest.raises(CheckpointError, match=rf"{path.name} was written by another architecture"):
        us.load(path)
    payload["policy"]["hidden_sizes"] = [8]
    payload["observation_space"]["spaces"]["policy"].update(shape=[10**12], low=0.0, high=1.0)
    path.write_bytes(archived(payload))
    with pytest.raises(CheckpointError, match=rf"{path.name} .*claims"):
        us.load(path)


def test_weights_that_are_not_finite_are_refused(run: Path) -> None:
    path = newest(run)
    payload = load_checkpoint(path, CHECKPOINT_KIND)
    payload["state"]["policy"]["value_head.bias"][0] = torch.inf
    path.write_bytes(archived(payload))
    with pytest.raises(CheckpointError, match="not finite"):
        us.load(path)


def test_damage_names_an_older_checkpoint_and_a_run_resumes_from_any(run: Path) -> None:
    paths = step_checkpoints(run / "checkpoints")
    assert len(paths) >= 2
    paths[-1].write_bytes(paths[-1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{paths[-1].name} is damaged.*{paths[-2].name} is whole"):
        us.load(run)
    us.load(paths[-2])
    resumed = us.resume(paths[-2], total_steps=64)
    assert resumed.env_steps == 64
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 64
    assert newest(run).name == paths[-1].name  # written anew
    assert (run / "checkpoints" / f"{paths[-1].name}.replaced").is_file()
    us.load(run)


def test_a_damaged_newest_checkpoint_does_not_stop_a_resume(run: Path) -> None:
    newest(run).write_bytes(b"")
    assert us.resume(run, total_steps=96).env_steps == 96


def test_another_number_of_environments_is_named(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("num_envs: 2", "num_envs: 4"))
    with pytest.raises(ValueError, match=r"trained with env\.num_envs 2, now it is 4"):
        us.resume(run, total_steps=128)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"space": "tuple"},
        {"space": "box", "shape": [2], "low": 0.0},
        {"space": "box", "shape": "ab", "dtype": "float32", "low": 0.0, "high": 1.0},
        {"space": "box", "shape": [2], "dtype": "O", "low": 0.0, "high": 1.0},
        {"space": "box", "shape": [10**6, 10**6], "dtype": "float32", "low": 0.0, "high": 1.0},
        {"space": "discrete", "n": 0, "start": 0},
        {"space": "dict", "spaces": {"a": 3}},
        {"space": "multi_binary", "shape": [-1]},
    ],
)
def test_spaces_have_a_schema(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="space"):
        space_from_plain(plain)
    assert space_from_plain({"space": "discrete", "n": 3, "start": 1}) == spaces.Discrete(3, start=1)


# --------------------------------------------------------------------------------------------- YAML, JSON, metrics


def test_yaml_bombs_are_refused_and_small_aliases_read() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    merges = ["m0: &m0 {x: 1}"] + [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 40)]
    for text in ("\n".join(lines), "\n".join(merges), "a: &a [*a]", "[" * 10_000, "a: " + "{a: " * 10_000):
        with pytest.raises(ValueError, match="it "):
            parse_yaml(text)
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 3}}") == {"a": [1, 2], "b": [1, 2], "c": {"d": 3}}
    with pytest.raises(ValueError, match="'a' twice"):
        parse_yaml("a: 1\na: 2")
    with pytest.raises(ValueError, match="characters"):
        parse_yaml("#" * 2**21)
    with pytest.raises(ValueError, match="seed"):
        from_yaml("total_steps: 1\nenv: {id: x}\nseed: 1e999")


def test_json_is_strict() -> None:
    for text in ("NaN", "-Infinity", "1e999", '{"a": 1, "a": 2}', "[" * 50_000, "[" * 200 + "]" * 200, ""):
        with pytest.raises((ValueError, RecursionError)):
            parse_json(text)
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def test_a_config_knows_how_many_options_it_had(run: Path) -> None:
    path = run / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    config = read_config(path)
    path.write_text("".join(lines[:40]))
    with pytest.raises(ValueError, match=r"config\.yaml: the first line counts \d+ options, but there are \d+"):
        read_config(path)
    path.write_text("".join(lines[1:40]))  # without that line it may be partial
    read_config(path)
    path.write_text("".join(lines))
    assert read_config(path) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"step": 1}\n[]\n', "line 2 .*mapping"),
        ('{"step": 1}\n\n{"step": 2}\n', "line 2 "),
        ('{"step": 1}\n{"step": 2, "a": NaN}\n', "line 2 .*finite"),
        ('{"step": 1}\n{"step": 2, "a": "x"}\n', "line 2 .*number"),
        ('{"step": 1}\n{"step": 2, "a": 1' + "0" * 400 + "}\n", "line 2 "),
        ('{"step": 2}\n{"step": 1}\n', "line 2 .*step 1 follows step 2"),
        ('{"step": 1}\n{"step": 1}\n', "line 2 .*step 1 follows step 1"),
        ('{"step": 1}\n{"a": 1}\n', "line 2 .*step"),
        ('{"step": 1}\n{"step": 2, "step": 3}\n', "line 2 .*twice"),
        ('{"step": 1}\n{"step": 2]\n', "line 2 "),
        ('{"step": 1}\n\x00\x00', "line 2 "),
    ],
)
def test_lines_of_metrics_have_a_schema(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {said}.*delete that line"):
        read_metrics(path)


def test_epochs_come_before_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9, "offline/epoch": 9.0}\n{"step": 4, "x": 1e300}\n{"st')
    assert [row["step"] for row in read_metrics(path)] == [9, 4]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 9999, "nonsense"])
def test_a_damaged_run_json_is_named(run: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (run / "run.json").write_text(text)
    assert us.resume(run, total_steps=96).env_steps == 96
    assert "run.json is damaged" in caplog.text
    assert len(json.loads((run / "run.json").read_text())) == 1


def test_folders_and_links_in_place_of_files(run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "policy.safetensors"):
        (run / name).unlink()
        (run / name).symlink_to(name)
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        RunFolder(run).read_config()
    for read in (read_metrics, read_safetensors):
        with pytest.raises(ValueError, match="there is no file"):
            read(run / "metrics.jsonl")


# ------------------------------------------------------------------------------------------------------- exported


def test_damaged_weights_are_seen(run: Path) -> None:
    path = run / "policy.safetensors"
    data = path.read_bytes()
    read_safetensors(path)
    for damaged in (data[:-8] + bytes(8), data[:100], b"", data[:8] + b"{" + data[9:]):
        path.write_bytes(damaged if damaged != data else data[:-1] + b"\x01")
        with pytest.raises(ValueError, match=r"policy\.safetensors .*export the policy again"):
            read_safetensors(path)


@pytest.mark.parametrize("format", ["safetensors", "torchscript"])
def test_a_full_disk_is_one_sentence(run: Path, tmp_path: Path, format: Any) -> None:
    policy, target, log = us.load(run), tmp_path / "policy.x", tmp_path / "log"
    target.write_text("older")

    def export() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
        export_policy(policy, target, format)

    assert end(begin(export, log)) == 1  # a process of its own: torch's writer aborts on a full disk
    assert re.search("expected ExportError.*policy.x: File too large; make room", log.read_text())
    assert target.read_text() == "older"


def test_an_export_into_a_folder_that_cannot_be_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"could not write .*policy\.safetensors"):
        export_policy(us.load(run), tmp_path / "file" / "policy.safetensors", "safetensors")


def test_pickles_of_other_programs_are_not_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged or of another format"):
        us.load(path)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # the judge's limits are its children's
