"""A payload in every file of a run, and in the checkout around it: nothing executes or imports without consent."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.faults import files

import understudy as us
from understudy.cli import main
from understudy.runs.archive import archived
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.config import from_yaml, read_config
from understudy.runs.folder import CHECKPOINT_KIND, read_policy
from understudy.runs.provenance import git_revision
from understudy.tools.export import METADATA, read_safetensors
from understudy.types import CheckpointError

MODULE = "planted_module"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.sound_run(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def run(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run beside a module that leaves a trace when it is imported."""
    (tmp_path / f"{MODULE}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    return Path(shutil.copytree(sound, tmp_path / "run"))


def nothing_ran(tmp_path: Path) -> bool:
    return not (tmp_path / "ran").exists() and MODULE not in sys.modules


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_pickles_in_checkpoints_do_not_run(run: Path, tmp_path: Path) -> None:
    path = step_checkpoints(run / "checkpoints")[-1]
    payload = load_checkpoint(path, CHECKPOINT_KIND)
    payload["state"]["parts"] = {"x": {"y": Payload(f"touch {tmp_path}/ran")}}
    path.write_bytes(archived(payload))
    for read in (us.load, us.resume):
        with pytest.raises(CheckpointError, match=r"holds more than tensors and plain data: (posix|nt) system"):
            read(path)
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02cos\nsystem\nX\x08\x00\x00\x00touch ranR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n)R}(X\x06\x00\x00\x00__dict__K\x01ub.",
        b"\x80\x02ctorch\nSize\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R.",
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
        b"\x82\x01.",
        b"\x80\x05\x97.",
        b"0.",
        b"h\x05.",
        b"e.",
        b"(" * 1000 + b"t" * 1000 + b".",
    ],
)
def test_opcodes_that_call_build_or_corrupt_are_refused(
    tmp_path: Path, opcodes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.pt", "w") as archive:
        archive.writestr("a/data.pkl", opcodes)
    with pytest.raises(CheckpointError, match=r"a\.pt is"):
        us.load("a.pt")
    assert not Path("ran").exists()


def test_a_torchscript_program_is_not_loaded_unasked(tmp_path: Path) -> None:
    path, buffer = tmp_path / "a.pt", io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    path.write_bytes(buffer.getvalue())
    for load in (us.load, lambda file: us.evaluate(file, env=us.EnvConfig(id="PointMass"))):
        with pytest.raises(CheckpointError, match=r"a\.pt is a TorchScript program.*--allow-import torch\.jit"):
            load(path)


def test_yaml_tags_do_not_run(run: Path, tmp_path: Path) -> None:
    text = (run / "config.yaml").read_text()
    for tag in (
        f"!!python/object/apply:os.system ['touch {tmp_path}/ran']",
        f"!!python/name:{MODULE}.x",
        f"!!python/module:{MODULE}",
        "!!python/object/new:os.system [x]",
    ):
        (run / "config.yaml").write_text(text.replace("seed: 0", f"seed: {tag}"))
        with pytest.raises(ValueError, match=r"config\.yaml: it is not valid YAML"):
            read_config(run / "config.yaml")
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("id: PointMass", f"id: {MODULE}:X"),
        ("trunk: null", f"trunk: {MODULE}:X"),
        ("factory: null", f"factory: {MODULE}:X"),
        ("loggers: []", f"loggers: ['{MODULE}:X']"),
        ("parts: {}", f"parts: {{x: {{part: '{MODULE}:X'}}}}"),
        ("allow_imports: []", f"allow_imports: [{MODULE}]\nstop_when: {MODULE}:X"),
    ],
)
def test_names_of_modules_in_configs_and_checkpoints_are_not_imported(
    run: Path, tmp_path: Path, old: str, new: str
) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    changed = text.replace(old, new)
    (run / "config.yaml").write_text(changed)
    with pytest.raises(ValueError, match=r"allow|twice"):
        us.resume(run, total_steps=96)
    with pytest.raises(ValueError, match=r"allow|twice"):
        from_yaml(changed)
    path = step_checkpoints(run / "checkpoints")[-1]
    payload = load_checkpoint(path, CHECKPOINT_KIND)
    payload["config"] = payload["config"].replace(old, new)
    for name in ("trunk", "factory"):
        if name in old:
            payload["policy"][name] = f"{MODULE}:X"
    path.write_bytes(archived(payload))
    with contextlib.suppress(ValueError, CheckpointError):  # what a policy does not need is not looked at
        read_policy(path)
    assert nothing_ran(tmp_path)


def test_names_of_modules_in_exported_weights_are_not_imported(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "policy.safetensors"
    read_safetensors(path)
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    planted = header[METADATA].replace('"factory": null', f'"factory": "{MODULE}:X"')
    assert planted != header[METADATA]
    save_file(load_file(path), path, metadata={METADATA: planted})
    with pytest.raises(CheckpointError, match=f"--allow-import {MODULE}"):
        read_safetensors(path)
    assert nothing_ran(tmp_path)


# --------------------------------------------------------------------------------------------------------------- git


def checkout(folder: Path) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "a.txt").write_text("one")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    "name",
    [
        "core.fsmonitor", "core.pager", "pager.status", "core.sshCommand", "core.editor", "core.askPass",
        "diff.external", "diff.planted.textconv", "diff.planted.command", "alias.status", "alias.rev-parse",
        "filter.planted.clean", "filter.planted.process", "filter.planted.smudge", "filter.a=b.clean", "gpg.program",
        "include", "hook",  "submodule", "credential.helper",
    ],
)  # fmt: skip
def test_nothing_that_a_checkout_configures_runs(tmp_path: Path, name: str) -> None:
    folder, script = checkout(tmp_path / "checkout"), tmp_path / "payload"
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/ran\ncat\n")
    script.chmod(0o755)
    filtered = "a=b" if "a=b" in name else "planted"
    (folder / ".gitattributes").write_text(f"*.txt filter={filtered} diff=planted\n")
    git(folder, "add", ".gitattributes")
    git(folder, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "y")
    if name == "include":
        (folder / ".git" / "more").write_text(
            f'[core]\n\tfsmonitor = {script}\n[filter "planted"]\n\tclean = {script}\n'
        )
        git(folder, "config", "includeIf.gitdir:/**.path", "more")
        git(folder, "config", "include.path", "more")
    elif name == "hook":
        for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit", "post-checkout"):
            shutil.copy(script, folder / ".git" / "hooks" / hook)
    elif name == "submodule":
        inner = checkout(folder / "inner")
        git(inner, "config", "core.fsmonitor", str(script))
        git(folder, "add", "inner")
        git(folder, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "z")
        (tmp_path / "ran").unlink(missing_ok=True)
        (inner / "a.txt").write_text("other")
    else:
        git(folder, "config", name, str(script))
    os.utime(folder / "a.txt", (1, 1))  # git has to look into it
    clean = git_revision(folder)
    assert clean is not None
    assert len(clean.removesuffix("-dirty")) == 40
    assert not (tmp_path / "ran").exists()
    (folder / "a.txt").write_text("three")
    assert str(git_revision(folder)).endswith("-dirty")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["core.fsmonitor", "filter.planted.clean"])
def test_these_payloads_run_where_git_is_asked_as_usual(tmp_path: Path, name: str) -> None:
    folder, script = checkout(tmp_path / "checkout"), tmp_path / "payload"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    script.chmod(0o755)
    (folder / ".gitattributes").write_text("*.txt filter=planted\n")
    git(folder, "config", name, str(script))
    os.utime(folder / "a.txt", (1, 1))
    git(folder, "status")
    assert (tmp_path / "ran").exists()


def test_objects_that_are_missing_are_not_fetched(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    for line in (
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", f"ext::sh -c 'touch {tmp_path}/ran'"),
        ("remote.origin.promisor", "true"),
        ("protocol.ext.allow", "always"),
        ("protocol.allow", "always"),
    ):
        git(folder, "config", *line)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD^{tree}"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    (folder / ".git" / "objects" / revision[:2] / revision[2:]).unlink()
    assert git_revision(folder) is not None
    assert not (tmp_path / "ran").exists()


def test_the_recipe_in_a_config_does_not_choose_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    text = (
        "total_steps: 4\nrecipe: ../../x\nenv: {id: PointMass, num_envs: 1}\nppo: {num_steps: 4, minibatches: 1}\n"
        "evaluation: {episodes: 0}\nlogging: {console: false, tensorboard: false}\ndevice: cpu\ntorch_threads: 1\n"
    )
    run = us.train(from_yaml(text))
    assert run.path.resolve().is_relative_to(tmp_path / "inner" / "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_allowed_modules_lie_where_python_looks_and_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The installed command has no working folder in its path, unlike `python -m`; a run's folder never counts."""
    (tmp_path / "own_envs.py").write_text(
        "from understudy.tasks.point_mass import PointMass\n"
        "def make(num_envs, device):\n    return PointMass(num_envs, device, max_episode_steps=4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    words = "--env.num-envs 2 --total-steps 16 --ppo.num-steps 8 --policy.hidden-sizes 4 --evaluation.episodes 0"
    words += " --logging.no-tensorboard --logging.no-console --run-dir run --device cpu"
    code = main(["train", "ppo", "--env.id", "own_envs:make", *words.split()])
    assert code == 0, capsys.readouterr().err
    (tmp_path / "run" / "own_envs.py").write_text("raise SystemExit('imported from the run')")
    for consent in (["--allow-import", "own_envs"], ["--allow_import=own_envs"], []):
        sys.modules.pop("own_envs")
        sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]
        code = main(["evaluate", "run", "--episodes", "1", *consent])
        assert code == (0 if consent else 2), capsys.readouterr().err
        sys.modules.setdefault("own_envs", sys)
    assert "would import the module 'own_envs'" in capsys.readouterr().err
    del sys.modules["own_envs"]
