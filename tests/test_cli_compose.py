"""Trainings composed on the command line: parts added and removed, config files, own parts, consent to imports."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.fresh import Fresh
from tests.test_cli import TINY, fits, run

import understudy as us
from understudy.cli.compose import parse_training
from understudy.runs.checkpoint import latest_checkpoint
from understudy.runs.config import from_yaml
from understudy.runs.folder import RunFolder

OWN_PART = '''
from dataclasses import dataclass
import understudy as us

@dataclass(frozen=True, kw_only=True)
class PullConfig(us.PartConfig):
    """Own."""
    coef: float = 0.5
    def build(self, context):
        return Pull(context, self)

class Pull(us.Part, us.Losses):
    """Own."""
    def __init__(self, context, config):
        super().__init__(context)
        self.coef = config.coef
    def loss(self, policy, batch, out):
        loss = self.coef * (out.value ** 2).mean()
        return loss, {"size": loss.detach()}

@dataclass(frozen=True, kw_only=True)
class NeedyConfig(us.PartConfig):
    x: int
'''
TRAP = "import pathlib; pathlib.Path('imported').touch()\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with two modules of the user's: a part, and one whose import leaves a file behind."""
    (tmp_path / "my_parts.py").write_text(OWN_PART)
    (tmp_path / "my_trap.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_parts", "my_trap"):
        sys.modules.pop(name, None)


def config_of(path: Path, allow: tuple[str, ...] = ()) -> us.TrainConfig:
    return RunFolder(path).read_config(allow)


def test_parts_are_added_and_their_options_are_parsed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--with", "random-network-distillation", "--with", "second=random-network-distillation"]
    options = ["--parts.random-network-distillation.epochs", "2", "--parts.second.reward-weight", "0.25"]
    code, _, err = run(capsys, "train", "ppo", *words, *TINY, *options, "--run-dir", "run")
    assert code == 0, err
    parts = config_of(here / "run").parts
    assert list(parts) == ["random_network_distillation", "second"]
    assert (parts["random_network_distillation"].epochs, parts["second"].reward_weight) == (2, 0.25)  # type: ignore[attr-defined]
    assert '"reward/second"' in (here / "run" / "metrics.jsonl").read_text()


def test_help_shows_the_options_of_added_parts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "gail", "--without", "gail", "--with=bc=behavior-cloning", "--help")
    assert code == 0
    assert "--parts.bc.coef" in out
    assert "--parts.gail" not in out
    assert "--without" in out


def test_a_part_is_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--without", "gail", "--with", "gail=random-network-distillation"]
    code, _, err = run(capsys, "train", "gail", *words, *TINY, "--env.id", "Pendulum-v1", "--run-dir", "run")
    assert code == 0, err
    assert config_of(here / "run").parts == {"gail": us.parts.RandomNetworkDistillationConfig()}


def test_a_runs_config_trains_again_with_options_over_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--with", "c=random-network-distillation", "--parts.c.epochs", "2"]
    assert run(capsys, "train", "ppo", *words, *TINY, "--run-dir", "first")[0] == 0
    again = ["--config", "first/config.yaml", "--seed", "9", "--parts.c.epochs", "3", "--run-dir", "second"]
    code, _, err = run(capsys, "train", *again)
    assert code == 0, err
    first, second = config_of(here / "first"), config_of(here / "second")
    assert (second.seed, second.parts["c"].epochs) == (9, 3)  # type: ignore[attr-defined]
    assert (second.ppo, second.env, second.policy, second.recipe) == (first.ppo, first.env, first.policy, "ppo")


def test_a_runs_config_does_not_send_the_next_run_into_its_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "train", "ppo", *TINY, "--run-dir", "first")[0] == 0
    code, out, err = run(capsys, "train", "--config", "first/config.yaml")
    assert code == 0, err
    assert "run: runs/ppo-CartPole-v1-" in out


def test_a_partial_file_lies_over_the_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text(
        "ppo: {gamma: 0.9, optimizer: {learning_rate: 'linear:1e-3:0'}}\n"
        "parts: {gail: {part: random-network-distillation, epochs: 2}}\nevaluation: {episodes: 0}\n"
    )
    words = ["gail", "--config", "mine.yaml", *TINY, "--env.id", "Pendulum-v1", "--run-dir", "run"]
    code, _, err = run(capsys, "train", *words)
    assert code == 0, err
    config = config_of(here / "run")
    assert (config.ppo.gamma, str(config.ppo.optimizer.learning_rate)) == (0.9, "linear:0.001:0.0")
    assert config.ppo.optimizer.eps == us.recipes.gail().ppo.optimizer.eps
    assert config.parts == {"gail": us.parts.RandomNetworkDistillationConfig(epochs=2)}
    code, _, err = run(capsys, "train", "--config", "mine.yaml")
    assert code == 2
    assert fits("mine.yaml: the config lacks total_steps, env", err)


def test_demonstrations_reach_added_parts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "record", "--expert", "PoisonedDoors-v0", "--episodes", "3", "--output", "doors.npz")
    assert code == 0, err
    words = ["--with", "behavior-cloning", "--demonstrations", "doors.npz", *TINY, "--run-dir", "run"]
    code, _, err = run(capsys, "train", "ppo", *words)
    assert code == 0, err
    config = config_of(here / "run")
    assert config.env.id == "PoisonedDoors-v0"
    assert config.parts == {"behavior_cloning": us.parts.BehaviorCloningConfig(demonstrations="doors.npz")}


def composed(*words: str) -> us.TrainConfig:
    """The training that `understudy train WORDS` would start."""
    (config,) = parse_training(words).args  # type: ignore[attr-defined]
    assert isinstance(config, us.TrainConfig)
    return config


def test_a_recipe_fits_itself_to_the_options(here: Path) -> None:
    assert composed("ppo", "--env.num-envs", "4096").ppo == us.recipes.ppo(num_envs=4096).ppo
    chosen = composed("ppo", "--policy.memory", "gru", "--ppo.num-steps", "7", "--total-steps", "5000000")
    fitted = us.recipes.ppo(memory="gru", total_steps=5_000_000)
    assert chosen == dataclasses.replace(fitted, ppo=dataclasses.replace(fitted.ppo, num_steps=7))  # what is said holds
    assert composed("gail", "--total-steps", "100000") == us.recipes.gail(total_steps=100_000)
    assert composed("appo", "--env.id", "Ant-v5") == us.recipes.appo("Ant-v5")
    (here / "mine.yaml").write_text("total_steps: 60000\nenv: {num_envs: 32}")
    assert composed("ppo", "--config", "mine.yaml") == us.recipes.ppo(num_envs=32, total_steps=60_000)
    assert composed("cartpole", "--total-steps", "7") == us.recipes.cartpole(total_steps=7)


# ---------------------------------------------------------------------------------------------- own parts


@pytest.fixture
def own_run(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    words = ["--with", "pull=my_parts:PullConfig", "--parts.pull.coef", "0.25", *TINY, "--run-dir", "run"]
    code, _, err = run(capsys, "train", "ppo", *words)
    assert code == 0, err
    return here / "run"


def test_an_own_part_is_trained_and_resumed(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "    part: my_parts:PullConfig\n    coef: 0.25\n" in (own_run / "config.yaml").read_text()
    sys.modules.pop("my_parts")
    code, _, err = run(capsys, "train", "--resume", "run", "--total-steps", "96")
    assert code == 2
    assert fits(
        "run/config.yaml: parts.pull.part is 'my_parts:PullConfig', which would import the module 'my_parts' and so "
        "run its code: allow that with --allow-import my_parts (from Python: allow=('my_parts',)) if you trust it",
        err,
    )
    assert "my_parts" not in sys.modules
    allowed = ["--allow-import", "my_parts"]
    code, _, err = run(capsys, "train", "--resume", "run", "--total-steps", "96", *allowed)
    assert code == 0, err
    assert us.resume(own_run, total_steps=128, allow=("my_parts",)).metrics[-1]["pull/size"] > 0.0
    assert run(capsys, "train", "--config", "run/config.yaml", "--run-dir", "other")[0] == 2
    assert run(capsys, "train", "--config", "run/config.yaml", *allowed, "--run-dir", "other")[0] == 0
    assert run(capsys, "train", "--config", "run/config.yaml", "--allow-import", "my", "--run-dir", "x")[0] == 2


def test_an_own_part_without_defaults(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "ppo", "--with", "needy=my_parts:NeedyConfig")
    assert code == 2
    assert "give NeedyConfig.x a default" in err


def test_a_registered_part_needs_no_consent(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = sys.modules["my_parts"].PullConfig
    monkeypatch.setitem(us.parts.PARTS._loaded, "pull", kind)
    assert config_of(own_run, ("my_parts",)).parts == {"pull": kind(coef=0.25)}
    text = us.runs.config.to_yaml(config_of(own_run, ("my_parts",)))
    assert "part: pull\n" in text
    assert from_yaml(text).parts == {"pull": kind(coef=0.25)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("part: my_parts:PullConfig", "part: os:system"),
        ("part: my_parts:PullConfig", "part: my_trap:Config"),
        ("id: CartPole-v1", "id: my_trap:CartPole-v1"),
        ("surrogate: clip", "surrogate: my_trap:surrogate"),
        ("activation: tanh", "activation: my_trap:Network"),
        ("part: my_parts:PullConfig", "part: my_trap:os.system"),
    ],
)
def test_a_hostile_config_imports_nothing(
    own_run: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (own_run / "config.yaml").read_text()
    assert old in text
    (own_run / "config.yaml").write_text(text.replace(old, new, 1))
    for words in (["--resume", "run", "--total-steps", "96"], ["--config", "run/config.yaml", "--run-dir", "other"]):
        code, _, err = run(capsys, "train", *words, "--allow-import", "my_parts")
        assert code == 2
        assert "would import the module" in " ".join(err.split())
        assert not Path("imported").exists()
        assert "my_trap" not in sys.modules
    assert not Path("other").exists()


def test_consent_for_a_module_leads_no_further(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_run / "config.yaml").write_text(
        (own_run / "config.yaml").read_text().replace("my_parts:PullConfig", "my_parts:us.parts.gail.GailConfig")
    )
    code, _, err = run(capsys, "train", "--resume", "run", "--total-steps", "96", "--allow-import", "my_parts")
    assert code == 2
    assert "leads to the module understudy" in err


# ------------------------------------------------------------------------------------------ finished runs

PLACES = {
    "trunk": ("trunk: null", "trunk: my_trap:Network"),
    "factory": ("factory: null", "factory: my_trap:make"),
    "maker": ("id: CartPole-v1", "id: my_trap:make"),
    "id": ("id: CartPole-v1", "id: mjlab:my_trap:CartPole-v1"),
    "part": ("part: my_parts:PullConfig", "part: my_trap:Config"),
    "surrogate": ("surrogate: clip", "surrogate: my_trap:surrogate"),
    "logger": ("loggers: []", "loggers: ['my_trap:Logger']"),
}
COMMANDS = {
    "evaluate": ("evaluate", "run", "--episodes", "1"),
    "record": ("record", "run", "--episodes", "1", "--output", "out.npz"),
    "export": ("export", "run", "--format", "torchscript", "--output", "out.pt"),
    "plot": ("plot", "run", "--metric", "ppo/kl"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_what_a_downloaded_run_names(
    own_run: Path, command: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = PLACES[place]
    text = (own_run / "config.yaml").read_text()
    assert old in text
    assert "allow_imports: []" in text
    plant(own_run, text.replace(old, new, 1).replace("allow_imports: []", "allow_imports: [my_trap]"))
    code, _, err = run(capsys, *COMMANDS[command])
    needed = {"evaluate": ("trunk", "factory", "maker", "id"), "export": ("trunk", "factory"), "plot": ()}
    if place in needed.get(command, needed["evaluate"]):
        assert code == 2
        assert "'my_trap' and so run its code: allow that with --allow-import my_trap" in " ".join(err.split())
    else:
        assert code == 0, err  # nobody needs it
    assert not Path("imported").exists()
    assert "my_trap" not in sys.modules


def plant(folder: Path, text: str) -> None:
    """Give a run another config, in its file and in its checkpoint."""
    (folder / "config.yaml").write_text(text)
    path = latest_checkpoint(folder / "checkpoints")
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, "config": text, "policy": yaml.safe_load(text)["policy"]}, path)


def test_commands_import_what_the_caller_allows(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_run.parent / "my_envs.py").write_text(
        "from understudy.envs.registry import make_env\n"
        "def make(num_envs, device):\n    return make_env('CartPole-v1', num_envs, 'gymnasium', device)\n"
    )
    plant(own_run, (own_run / "config.yaml").read_text().replace("id: CartPole-v1", "id: my_envs:make"))
    for name in ("evaluate", "record"):
        code, _, err = run(capsys, *COMMANDS[name])
        assert code == 2
        assert "env.id is 'my_envs:make'" in " ".join(err.split())
        code, _, err = run(capsys, *COMMANDS[name], "--allow-import", "my_envs")
        assert code == 0, err
    sys.modules.pop("my_envs")
    with pytest.raises(us.types.CheckpointError, match="allow=\\('my_envs',\\)"):
        us.evaluate(own_run, episodes=1)
    assert us.evaluate(own_run, episodes=1, env=us.EnvConfig(id="CartPole-v1", num_envs=1)).episodes == 1
    assert us.evaluate(own_run, episodes=1, allow=("my_envs",)).episodes == 1
    sys.modules.pop("my_envs")


def test_a_file_allows_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", "ppo", *TINY, "--run-dir", "run")[0] == 0
    text = (here / "run" / "config.yaml").read_text()
    plant(here / "run", text.replace("trunk: null", "trunk: my_trap:Network", 1))
    (here / "mine.yaml").write_text("start_from: run\nallow_imports: [my_trap]\n")
    for words in (["ppo", "--config", "mine.yaml"], ["ppo", "--start-from", "run"]):
        code, _, err = run(capsys, "train", *words, *TINY, "--run-dir", "other")
        assert code == 2
        assert "'my_trap' and so run its code" in " ".join(err.split())
    assert not Path("imported").exists()
    code, _, err = run(capsys, "train", "ppo", "--start-from", "run", "--allow-import", "my_trap", *TINY)
    assert code == 2
    assert Path("imported").exists()  # and has no such network


def test_a_files_loss_of_an_estimator_asks_for_consent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text(
        "env: {segments: {policy: {place: 1, rest: 3}}}\n"
        "policy: {estimators: {e: {targets: [policy/place]}}}\n"
        "parts: {e: {part: estimator, loss: 'my_trap:loss'}}\n"
    )
    code, _, err = run(capsys, "train", "ppo", "--config", "mine.yaml", *TINY)
    assert code == 2
    assert "parts.e.loss is 'my_trap:loss', which would import the module 'my_trap'" in " ".join(err.split())
    assert not Path("imported").exists()
    code, _, err = run(capsys, "train", "ppo", "--config", "mine.yaml", *TINY, "--allow-import", "my_trap")
    assert code == 2
    assert "my_trap" in err
    assert Path("imported").exists()  # and has no such loss


def test_demonstrations_choose_no_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "record", "--expert", "PoisonedDoors-v0", "--episodes", "2", "--output", "doors.npz")
    assert code == 0, err
    with np.load("doors.npz") as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        evil = {name: array for name, array in arrays.items() if name != "checksums"}
    np.savez("evil.npz", **{**evil, "metadata": json.dumps({**metadata, "env": "my_trap:Doors-v0"})})
    code, _, err = run(capsys, "train", "bc", "--demonstrations", "evil.npz", *TINY)
    assert code == 2
    assert "evil.npz.id is 'my_trap:Doors-v0'" in " ".join(err.split())
    assert not Path("imported").exists()


# ---------------------------------------------------------------------------------------------- scripts

SCRIPT = f"""{OWN_PART}
if __name__ == "__main__":
    run = us.train(us.TrainConfig(
        env=us.EnvConfig(id="CartPole-v1", num_envs=2), policy=us.PolicyConfig(hidden_sizes=(8,)),
        ppo=us.PPOConfig(num_steps=16, epochs=1, minibatches=1, capture="eager"), parts={{"pull": PullConfig()}},
        total_steps=32, run_dir="run", device="cpu", evaluation=us.runs.config.EvaluationConfig(episodes=0),
    ))
    assert type(us.resume("run", total_steps=128, allow=("my_script",)).config.parts["pull"]) is PullConfig
"""


def test_a_part_defined_in_a_script_resumes_from_the_command_line(here: Path, fresh: Fresh) -> None:
    (here / "my_script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(us.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "my_script.py"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "part: my_script:PullConfig" in (here / "run" / "config.yaml").read_text()
    words = ["--resume", "run", "--total-steps", "192", "--allow-import", "my_script"]
    fresh("-m", "understudy", "train", *words)


def test_a_part_that_nobody_could_import_is_refused_before_any_work(here: Path, fresh: Fresh) -> None:
    result = fresh("-c", SCRIPT, check=False)
    assert result.returncode == 1
    assert "PullConfig cannot be found again by name, because it is defined in an interactive session" in result.stderr
    assert not (here / "run").exists()
