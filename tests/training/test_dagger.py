"""DAgger: who acts, who labels, what is kept on the disk, and that it mends what cloning cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.nn.own_networks import save_module

from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.recipes import find_recipe
from understudy.runs.config import (
    DaggerConfig,
    EvaluationConfig,
    LoggingConfig,
    OfflineConfig,
    TrainConfig,
    from_yaml,
    to_yaml,
)
from understudy.runs.folder import RunFolder
from understudy.tasks.point_mass import PointMass
from understudy.training.dagger import Dagger, Mixture
from understudy.training.loop import resume, train
from understudy.training.offline import OfflineTraining
from understudy.types import CheckpointError


def steer(obs: Any, is_first: Any = None) -> torch.Tensor:
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., TrainConfig]:
    def build(*, dagger: Any = None, env: str = "PointMass", name: str = "run", **options: Any) -> TrainConfig:
        rounds = DaggerConfig(**{"rounds": 3, "episodes_per_round": 4, "steps_per_round": 100, **(dagger or {})})
        offline = {"epochs": 6, "learning_rate": 3e-3, "dagger": rounds, **options}
        return TrainConfig(
            env=EnvConfig(id=env, num_envs=4),
            policy=PolicyConfig(hidden_sizes=(32, 32)),
            parts={"bc": BehaviorCloningConfig(batch_size=64)},
            offline=OfflineConfig(**offline),
            evaluation=EvaluationConfig(episodes=0),
            logging=LoggingConfig(console=False, tensorboard=False),
            total_steps=0,
            run_dir=str(tmp_path / name),
            torch_threads=1,
        )

    return build


def test_the_mixture_obeys_the_expert_as_often_as_beta_says() -> None:
    ones, zeros = (lambda obs, is_first: torch.ones(4000, 2)), (lambda obs, is_first: torch.zeros(4000, 2))
    torch.manual_seed(0)
    for beta in (0.0, 0.25, 1.0):
        mixture = Mixture(ones, zeros, beta)
        action = mixture(None, torch.zeros(4000, dtype=torch.bool))  # type: ignore[arg-type]
        assert action[:, 0].mean().item() == pytest.approx(beta, abs=0.03)
        assert torch.equal(action[:, 0], action[:, 1])  # whole actions, not entries
        assert torch.equal(mixture.label(None, None), torch.ones(4000, 2))  # type: ignore[arg-type]
    wrong = Mixture(ones, lambda obs, is_first: torch.zeros(4000), 0.5)
    with pytest.raises(ValueError, match="do not fit the learner's"):
        wrong(None, torch.zeros(4000, dtype=torch.bool))  # type: ignore[arg-type]


def test_rounds_are_kept_on_the_disk_with_the_experts_labels(configure: Any) -> None:
    run = train(configure(dagger={"beta": 0.5}), expert=steer)
    files = sorted((run.path / "demonstrations").iterdir())
    assert [file.name for file in files] == [f"round_{number:03d}.npz" for number in range(4)]
    betas = []
    for file in files:
        with np.load(file) as arrays:
            betas.append(json.loads(str(arrays["metadata"]))["beta"])
            assert len(arrays["actions"]) >= 100
            assert len(arrays["lengths"]) >= 4
            ends = np.cumsum(arrays["lengths"] + 1) - 1  # the final observations have no action
            seen = np.delete(arrays["observations/policy"], ends, axis=0)
            np.testing.assert_allclose(arrays["actions"], steer({"policy": torch.as_tensor(seen)}), atol=1e-6)
    assert betas == [1.0, 0.5, 0.5, 0.5]
    rows = run.metrics
    assert len(rows) == 4 * 6
    assert [row["dagger/round"] for row in rows if "dagger/round" in row] == [1.0, 2.0, 3.0]


def test_beta_follows_its_schedule_over_the_rounds(configure: Any, tmp_path: Path) -> None:
    beta = Schedule(kind="linear", start=1.0, end=0.0, length=4, unit="iterations")
    folder = RunFolder(tmp_path)
    dagger = Dagger(configure(dagger={"beta": beta, "steps_per_round": 1}), folder, PointMass(2), steer)
    policy = torch.nn.Module()
    policy.initial_state = lambda n: None  # type: ignore[assignment]
    policy.act = lambda obs, state, deterministic: (torch.zeros(2, 2), None)  # type: ignore[assignment]
    assert [dagger.collect(n, policy)["dagger/beta"] for n in (1, 2, 4)] == [0.75, 0.5, 0.0]  # type: ignore[arg-type]


def lost(run: Any) -> float:
    """Mean squared error against the expert on the states that the policy itself gets into."""
    env = PointMass(200)
    obs, errors = env.reset(3), []
    for _ in range(60):
        action, _ = run.policy.act(obs)
        errors.append((action - steer(obs)).square().mean())
        obs = env.step(action).obs.clone()
    return float(torch.stack(errors).mean())


def test_it_learns_and_more_rounds_learn_more(configure: Any) -> None:
    few = train(configure(dagger={"rounds": 1, "beta": 0.0}, name="few"), expert=steer)
    many = train(configure(dagger={"rounds": 6, "beta": 0.0}, name="many"), expert=steer)
    assert lost(many) < 0.05
    assert lost(many) < 0.6 * lost(few)


def test_an_interrupted_run_goes_on_in_its_round(configure: Any, monkeypatch: Any) -> None:
    original = OfflineTraining.epoch

    def epoch(self: OfflineTraining) -> dict[str, float]:
        metrics = original(self)
        if self.epochs_done == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    config = configure(dagger={"rounds": 2, "beta": 0.3}, epochs=3)
    whole = train(config, expert=steer)
    monkeypatch.setattr(OfflineTraining, "epoch", epoch)
    first = train(dataclasses.replace(config, run_dir=f"{config.run_dir}-interrupted"), expert=steer)
    assert first.stopped_by == "SIGINT"
    monkeypatch.undo()
    second = resume(first.path, expert=steer)
    assert len(second.metrics) == len(whole.metrics) == 9
    for name, weight in whole.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], weight), name


def test_a_run_or_the_environment_itself_can_be_the_expert(configure: Any) -> None:
    taught = train(configure(epochs=2, dagger={"rounds": 1}), expert=steer)
    again = train(configure(epochs=1, dagger={"rounds": 1, "expert": str(taught.path)}, name="again"))
    assert again.metrics[-1]["offline/epoch"] == 2.0
    doors = train(configure(env="PoisonedDoors-v0", epochs=1, dagger={"expert": "labels"}, name="doors"))
    assert "offline/accuracy" in doors.metrics[-1]


def test_what_cannot_work_is_said(configure: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DAgger needs an expert to ask"):
        train(configure())
    with pytest.raises(ValueError, match="no scripted expert"):
        train(configure(dagger={"expert": "labels"}))
    with pytest.raises(ValueError, match=r"leave parts\.bc\.demonstrations out"):
        train(dataclasses.replace(configure(), parts={"bc": BehaviorCloningConfig(demonstrations="x")}), expert=steer)
    with pytest.raises(ValueError, match=r"offline\.dagger\.beta must lie in \[0, 1\]"):
        configure(dagger={"beta": 1.5})
    config = find_recipe("dagger")()
    assert from_yaml(to_yaml(config)) == config


def test_an_expert_of_own_networks_needs_consent(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(save_module(tmp_path, "expert_nets"))
    changes = {"offline": None, "parts": {}, "total_steps": 64, "policy": PolicyConfig(trunk="expert_nets:Doubling")}
    expert = train(dataclasses.replace(configure(name="expert"), **changes)).path
    chosen = configure(dagger={"expert": str(expert), "rounds": 1}, epochs=1)
    with pytest.raises(CheckpointError, match="--allow-import expert_nets"):
        train(chosen)
    run = train(dataclasses.replace(chosen, allow_imports=("expert_nets",)))
    assert run.config.allow_imports == ("expert_nets",)
    assert from_yaml(to_yaml(run.config)).allow_imports == ()
