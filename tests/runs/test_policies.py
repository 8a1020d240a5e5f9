"""Policies on disk: loading needs no part and imports nothing unasked; checkpoints of older versions load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fresh import Fresh
from tests.nn.own_networks import Constant, save_module
from torch import Tensor

import understudy as us
from understudy.envs.registry import EnvConfig
from understudy.runs.config import EvaluationConfig, LoggingConfig, TrainConfig, from_yaml
from understudy.runs.folder import read_policy
from understudy.tools.evaluate import evaluate
from understudy.types import CheckpointError

OLD = Path(__file__).parent / "fixtures" / "policy_of_0.1.0.pt"

PART = """
from dataclasses import dataclass
import understudy as us

@dataclass(frozen=True, kw_only=True)
class NothingConfig(us.PartConfig):
    scale: float = 2.0
    def build(self, context):
        return us.Part(context)

us.parts.PARTS["nothing"] = NothingConfig
"""


def config(path: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "total_steps": 32,
        "env": EnvConfig(id="CartPole-v1", num_envs=2),
        "ppo": us.PPOConfig(num_steps=8, epochs=1, minibatches=2),
        "policy": us.PolicyConfig(hidden_sizes=(4,)),
        "device": "cpu",
        "evaluation": EvaluationConfig(episodes=0),
        "logging": LoggingConfig(console=False, tensorboard=False),
        "run_dir": str(path / "run"),
    }
    return TrainConfig(**{**options, **changes})


def in_a_fresh_process(fresh: Fresh, code: str, folder: Path) -> str:
    """The last line that `code` prints, or of the error that ends it."""
    done = fresh("-c", code, check=False, cwd=folder)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def test_a_policy_loads_where_its_part_is_unknown(tmp_path: Path, fresh: Fresh) -> None:
    (tmp_path / "nothing_part.py").write_text(PART)
    code = (
        "import nothing_part, understudy as us\n"
        "from pathlib import Path\nfrom tests.runs.test_policies import config\n"
        "us.train(config(Path('.'), parts={'mine': nothing_part.NothingConfig()}))\nprint('trained')"
    )
    environment = f"import sys; sys.path[:0] = [{str(Path(__file__).parents[2])!r}, '.']\n"
    assert in_a_fresh_process(fresh, environment + code, tmp_path) == "trained"
    found = in_a_fresh_process(
        fresh,
        "import torch, understudy as us\npolicy = us.load('run')\nprint(policy.act(torch.ones(4))[0].shape)",
        tmp_path,
    )
    assert found == "torch.Size([])"
    policy, read = read_policy(tmp_path / "run")  # what the commands evaluate, record and export use
    assert read.env.id == "CartPole-v1"
    assert not read.parts
    assert policy.built_from == us.PolicyConfig(hidden_sizes=(4,))
    with pytest.raises(ValueError, match="nothing"):  # only a training needs the part
        from_yaml((tmp_path / "run" / "config.yaml").read_text())


def test_a_checkpoint_of_0_1_0_acts_as_it_did() -> None:
    policy = us.load(OLD)
    obs = torch.linspace(-1.0, 1.0, 20).view(5, 4)
    action, state = policy.act(obs)
    assert action.tolist() == [0] * 5
    assert state is not None
    kept = [-7.9098e-01, 1.9970e-03, -4.8113e-03, 0.0, 0.0, 0.0]
    torch.testing.assert_close(state[1], torch.tensor(kept), rtol=1e-4, atol=1e-7)
    value = policy.value(policy.observation(obs)[0])
    torch.testing.assert_close(value, torch.tensor([-0.6146, -0.7173, 0.2266, 0.5209, 0.4961]), rtol=0, atol=1e-4)
    _, read = read_policy(OLD)
    assert evaluate(policy, env=read.env, episodes=2).episodes == 2


# ------------------------------------------------------------------ consent


def test_a_module_is_imported_only_if_the_caller_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    monkeypatch.syspath_prepend(save_module(tmp_path, "trusted_nets"))
    run = us.train(config(tmp_path, policy=us.PolicyConfig(trunk="trusted_nets:Doubling")))
    assert "trusted_nets" in sys.modules
    with pytest.raises(
        CheckpointError, match=r"'trusted_nets'.*--allow-import trusted_nets.*allow=\('trusted_nets',\)"
    ):
        us.load(run.path)  # already imported, but not allowed
    with pytest.raises(CheckpointError, match="trusted_nets"):
        us.load(run.path, allow=("trusted", "trusted_nets.inner"))
    loaded = us.load(run.path, allow=("trusted_nets",))
    obs = torch.ones(3, 4)
    assert torch.equal(loaded.act(obs)[0], run.policy.act(obs)[0])
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport understudy as us\n"
        "try:\n    us.load('run')\nexcept us.types.CheckpointError:\n    refused = 'trusted_nets' not in sys.modules\n"
        "print(refused, type(us.load('run', allow=['trusted_nets']).actor.own))"
    )
    assert in_a_fresh_process(fresh, code, tmp_path) == "True <class 'trusted_nets.Doubling'>"


def test_resuming_asks_for_consent_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(save_module(tmp_path, "resumed_nets"))
    run = us.train(config(tmp_path, policy=us.PolicyConfig(trunk="resumed_nets:Doubling")))
    with pytest.raises(ValueError, match="--allow-import resumed_nets"):
        us.resume(run.path, total_steps=64)
    assert us.resume(run.path, total_steps=64, allow=("resumed_nets",)).env_steps == 64


def test_an_object_comes_from_the_caller(tmp_path: Path) -> None:
    def build() -> Constant:
        env = EnvConfig(id="CartPole-v1", num_envs=1).make(torch.device("cpu"), 0)
        torch.manual_seed(3)
        return Constant(env.observation_space, env.action_space)

    run = us.train(config(tmp_path), policy=build())
    with pytest.raises(CheckpointError, match=r"given as an object \(.*Constant\).*us.load\(source, policy=...\)"):
        us.load(run.path)
    with pytest.raises(CheckpointError, match="given as an object"):
        us.resume(run.path, total_steps=64)
    mine = build()
    with torch.no_grad():
        mine.logits.add_(1.0)
    assert us.load(run.path, policy=mine) is mine
    assert torch.equal(mine.logits, run.policy.get_parameter("logits"))
    assert us.resume(run.path, total_steps=64, policy=mine).env_steps == 64
    with pytest.raises(CheckpointError, match="another architecture"):
        us.load(run.path, policy=us.ActorCritic(mine.observation_space, mine.action_space))


def test_a_policy_for_other_spaces_is_refused(tmp_path: Path) -> None:
    env = EnvConfig(id="Acrobot-v1", num_envs=1).make(torch.device("cpu"), 0)
    with pytest.raises(ValueError, match="made for the observations"):
        us.train(config(tmp_path), policy=Constant(env.observation_space, env.action_space))
    assert not (tmp_path / "run").exists()


def test_the_weights_of_a_run_can_be_read_by_name(tmp_path: Path) -> None:
    run = us.train(config(tmp_path))
    weights: dict[str, Tensor] = us.load(run.path).state_dict()
    assert {"actor.mlp.layers.0.weight", "head.linear.weight", "value_head.weight"} <= set(weights)
