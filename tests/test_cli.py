from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from understudy import cli
from understudy.cli import commands
from understudy.recipes import RECIPES
from understudy.runs.codec import to_plain

TINY = [
    *("--total-steps", "64", "--seed", "3", "--device", "cpu", "--env.num-envs", "2", "--policy.hidden-sizes", "8"),
    *("--ppo.num-steps", "16", "--ppo.minibatches", "2", "--ppo.epochs", "1", "--ppo.capture", "eager"),
    *("--ppo.warmup-steps", "0", "--evaluation.episodes", "2", "--logging.no-tensorboard"),
]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def fits(message: str, output: str) -> bool:
    """Whether a message is in the output; the frame that tyro draws around it and line breaks do not count."""
    return " ".join(message.split()) in " ".join(re.sub(r"[│─╭╮╰╯]", " ", output).split())


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, out, err = run(capsys, "train", "ppo", *TINY, "--run-dir", str(tmp_path / "run"))
    assert code == 0, err
    assert f"run: {tmp_path / 'run'}" in out
    assert "deterministic episodes" in out
    return tmp_path / "run"


def test_train_evaluate_plot(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (trained / "config.yaml").read_text()
    assert "total_steps: 64" in config
    assert "hidden_sizes: [8]" in config
    code, out, _ = run(capsys, "evaluate", str(trained), "--episodes", "3", "--json")
    assert code == 0
    result = json.loads(out.splitlines()[-1])
    assert result["episodes"] == 3
    assert {"mean_return", "std_return", "mean_length", "env", "run", "seed", "deterministic"} <= result.keys()
    assert result["deterministic"] is True
    checkpoint = next((trained / "checkpoints").glob("step_*.pt"))
    code, out, _ = run(capsys, "evaluate", str(checkpoint), "--episodes", "3", "--sample", "--seed", "5", "--json")
    assert json.loads(out.splitlines()[-1])["deterministic"] is False
    assert json.loads(out.splitlines()[-1])["seed"] == 5
    pytest.importorskip("matplotlib")
    # 64 steps finish few episodes: draw what is always there
    code, out, err = run(capsys, "plot", str(trained), "--metric", "ppo/entropy", "--output", str(trained / "c.png"))
    assert code == 0, err
    assert (trained / "c.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_repeats_the_training_evaluation(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final = json.loads((trained / "evaluation.json").read_text())
    _, out, _ = run(capsys, "evaluate", str(trained), "--episodes", "2", "--json")
    assert json.loads(out.splitlines()[-1])["mean_return"] == final["mean_return"]


def test_export(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from understudy.runs.folder import load

    assert cli.main(["export", str(trained), "--format", "torchscript"]) == 0
    assert str(trained / "policy.pt") in capsys.readouterr().out
    act = torch.jit.load(str(trained / "policy.pt"))
    obs = torch.randn(5, 4)
    (action,) = act(obs)
    assert torch.equal(action, load(trained).act(obs)[0])
    assert cli.main(["export", str(trained), "--format", "torchscript", "--output", str(trained / "p" / "a.pt")]) == 0
    assert (trained / "p" / "a.pt").is_file()
    assert cli.main(["export", str(trained), "--format", "onx"]) == 2


def test_resume(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "--resume", str(trained))
    assert code == 2
    assert "--total-steps" in err
    code, _, _ = run(capsys, "train", "--resume", str(trained), "--total-steps", "96")
    assert code == 0
    steps = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps == [32, 64, 96]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trane"], "unknown command 'trane'; did you mean train"),
        (["train"], "no recipe is given: name one (a2c, "),
        (["train", "pppo"], "unknown recipe 'pppo'; did you mean ppo"),
        (["train", "ppo", "--total-stps", "5"], "--total-steps"),
        (["train", "ppo", "--total-steps", "0"], "total_steps must be at least 1"),
        (["train", "ppo", "--total-steps", "-5"], "total_steps must be at least 0, got -5"),
        (["train", "ppo", "--total-steps"], "Missing value"),
        (["train", "ppo", "--env.num-envs", "0"], "num_envs"),
        (["train", "ppo", "--env.id", "CartPol-v1"], "did you mean"),
        (["train", "ppo", "--ppo.clip-epsilon", "liner:1:0"], "did you mean linear"),
        (["train", "ppo", "--ppo.minibatches", "3"], "does not divide"),
        (["train", "ppo", "--with", "gale"], "--with gale: unknown part 'gale'; did you mean gail"),
        (["train", "ppo", "--with", "x=os:system"], "'os:system' is not the config of a part"),
        (["train", "ppo", "--with", "x=no_module:Config"], "names a module that cannot be imported"),
        (
            ["train", "ppo", "--with", "understudy.parts.gail:GailConfig"],
            "--with NAME=understudy.parts.gail:GailConfig",
        ),
        (["train", "ppo", "--with", "my part=gail"], "use a plain identifier"),
        (["train", "gail", "--with", "gail"], "there is a part 'gail' already: add another with --with gail_2=gail"),
        (["train", "gail", "--without", "gale"], "--without gale: the parts are gail"),
        (["train", "ppo", "--with", "gail", "--parts.gail.reward-wight", "1"], "--parts.gail.reward-weight"),
        (["train", "ppo", "--config", "nowhere.yaml"], "--config nowhere.yaml: there is no such file"),
        (["train", "ppo", "--demonstrations", "x.npz"], "takes no --demonstrations: no part (it has none)"),
        (["train", "--resme", "x"], "no option --resme; did you mean --resume?"),
        (["train", "--total-steps", "5"], "no option --total-steps; no recipe is given"),
        (["train", "ppo", "--env", "X"], "no option --env; did you mean --env.id?"),
        (["train", "ppo", "--lr", "1e-3"], "no option --lr; did you mean --ppo.optimizer.learning-rate?"),
        (["train", "ppo", "--num-envs=3"], "no option --num-envs; did you mean --env.num-envs?"),
        (["train", "ppo", "--total-steps", "1.5"], "1.5 is not a whole number"),
        (["train", "cartpole", "--resume", "x"], "with the run's own recipe: leave 'cartpole' out"),
        (["train", "--resume", "x", "--seed", "3"], "no option --seed; a resumed run keeps its options"),
        (["train", "ppo", "--seed", "1e30"], "seed must fit 64 bits"),
        (["train", "ppo", "--torch-threads", "1e9"], "torch_threads must be at most 512"),
        (["train", "ppo", "--policy.hidden-sizes", "30000"], "policy.hidden_sizes must"),
        (
            ["train", "ppo", "--env.id", "PointMass", "--ppo.num-steps", "1e5", "--env.num-envs", "1e5"],
            "reduce ppo.num_steps or env.num_envs",
        ),
        (["train", "--resume", "nowhere"], "is not a run"),
        (["train", "--resume", "nowhere", "--total-stps", "3"], "--total-steps"),
        (["evaluate"], "RUN"),
        (["evaluate", "nowhere"], "no run or checkpoint nowhere"),
        (["evaluate", "x", "--episods", "3"], "no option --episods; did you mean --episodes?"),
        (["evaluate", "x", "--sample", "--deterministic"], "not allowed with"),
        (["plot"], "name the folders of the runs"),
        (["plot", "nowhere"], "is not a run"),
        (["list", "recipe"], "recipes"),
        (["motions"], "inspect, convert, film"),
        (["motions", "inspct", "x"], "did you mean motions inspect"),
        (["motions", "inspect", "nowhere.npz"], "there is no file"),
    ],
)
def test_users_errors_are_one_clear_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert fits(message, err)
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # no work, no folder


def test_debug_shows_the_error_itself() -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        cli.main(["train", "pppo", "--debug"])


def test_runtime_failures_print_their_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.types import WorkerError

    def fail(words: list[str]) -> Callable[[], None]:
        error = WorkerError("environment 3 died")
        error.add_note("Checkpoint: here.pt")
        raise error

    monkeypatch.setattr(commands, "parse", fail)
    code, _, err = run(capsys, "train", "x")
    assert code == 1
    assert err == "understudy: error: environment 3 died\nCheckpoint: here.pt\n"

    def bug(words: list[str]) -> Callable[[], None]:
        raise TypeError("a bug keeps its traceback")

    monkeypatch.setattr(commands, "parse", bug)
    with pytest.raises(TypeError):
        cli.main(["train", "x"])


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "recipes")
    assert code == 0
    assert len(out.splitlines()) == len(RECIPES)
    assert "cartpole" in out
    _, out, _ = run(capsys, "list", "parts")
    assert any(line.startswith("random-network-distillation  ") for line in out.splitlines())
    _, out, _ = run(capsys, "list")
    assert out.startswith("recipes:\n  a2c  ")
    assert "\nparts:\n  advisor  " in out
    assert "envs:\n" in out


def test_every_recipe_describes_itself_and_names_itself() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.__doc__, name
        assert recipe().recipe == name
        assert to_plain(recipe())


def test_help_and_listing_load_no_torch() -> None:
    code = (
        "import sys; from understudy import cli; cli.main(['list', 'recipes']); cli.main(['list', 'parts']); "
        "cli.main(['--help']); cli.main(['evaluate', '--help']); cli.main(['train', '--help']); "
        "cli.main(['--version']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "understudy", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: understudy")


def test_sigterm_leaves_cleanly_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = ["train", "ppo", *TINY, "--total-steps", "100000000", "--run-dir", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "understudy", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"stopped by SIGTERM; continue with: understudy train --resume {path}" in out
    assert "Traceback" not in err
    [checkpoint] = (path / "checkpoints").glob("step_*.pt")
    last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert checkpoint.name == f"step_{last:012d}.pt"


@pytest.mark.slow
def test_film_of_a_mujoco_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    imageio = pytest.importorskip("imageio")
    path = str(tmp_path / "run")
    code, _, err = run(capsys, "train", "ppo", *TINY, "--env.id", "InvertedPendulum-v5", "--run-dir", path)
    assert code == 0, err
    code, out, err = run(capsys, "evaluate", path, "--episodes", "1", "--video", "--json")
    assert code == 0
    result = json.loads(out.splitlines()[-1])
    if result["video"] is None:
        assert result["video_error"] in err
        pytest.skip(f"this machine cannot render: {result['video_error']}")
    assert imageio.get_reader(result["video"]).get_meta_data()["duration"] > 0
