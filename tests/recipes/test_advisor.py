"""The pipelines: every one builds and runs, and differs from its neighbours in the numbers that its name says."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from benchmarks.advisor.methods import METHODS, pipeline

import understudy as us
from understudy import cli
from understudy.cli.compose import with_demonstrations
from understudy.data.demonstrations.write import write_npz
from understudy.envs.registry import EnvConfig
from understudy.parts import AdvisorConfig, ScriptedExpertConfig
from understudy.runs.config import EvaluationConfig, LoggingConfig, TrainConfig, from_yaml, to_yaml
from understudy.tasks.poisoned_doors import PoisonedDoors
from understudy.tools.record import record, record_episodes


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = Path(tmp_path_factory.mktemp("demonstrations")) / "doors.npz"
    write_npz(path, record_episodes(PoisonedDoors(4), lambda obs, _: obs["expert_action"], 20, seed=0), {})
    return str(path)


def small(config: TrainConfig, folder: Path) -> TrainConfig:
    """Two iterations of two columns."""
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, num_envs=4),
        ppo=dataclasses.replace(config.ppo, num_steps=10, epochs=1),
        total_steps=80,
        run_dir=str(folder),
        evaluation=EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_pipeline_runs(method: str, demonstrations: str, tmp_path: Path) -> None:
    config = pipeline(method, "PoisonedDoors-v0", total_steps=80, demonstrations=demonstrations)
    assert from_yaml(to_yaml(config)) == config
    run = us.train(small(config, tmp_path / "run"))
    assert run.env_steps == 80
    assert all(bool(torch.isfinite(p).all()) for p in run.policy.parameters())


@pytest.mark.parametrize("env_id", ["LightHouse-v0", "LavaCrossingOnce-v0", "WallCrossing-v0"])
def test_other_tasks(env_id: str, tmp_path: Path) -> None:
    assert us.train(small(pipeline("advisor", env_id), tmp_path / "run")).env_steps == 80


def test_numbers() -> None:
    config = pipeline("advisor", "PoisonedDoors-v0")
    assert config.parts == {"advisor": AdvisorConfig(alpha=16.0, bound=0.0, aux_init="orthogonal")}
    assert (config.env.num_envs, config.ppo.num_steps, config.ppo.minibatches, config.ppo.epochs) == (20, 100, 2, 4)
    assert str(config.ppo.optimizer.learning_rate) == "linear:0.0035:0.0"
    forced = pipeline("dagger-then-ppo", "PoisonedDoors-v0", total_steps=1000).parts["expert"]
    assert isinstance(forced, ScriptedExpertConfig)
    assert (str(forced.teacher_forcing), str(forced.imitation_coef)) == ("linear:1.0:0.0:500", "step:0=1.0,500=0.0")
    cloning = pipeline("bc-tf1", "PoisonedDoors-v0")
    assert cloning.parts == {"expert": ScriptedExpertConfig(teacher_forcing=1.0)}
    assert (cloning.ppo.surrogate_coef, cloning.ppo.entropy_coef, cloning.ppo.value_coef) == (0.0, 0.0, 0.0)
    staged = pipeline("bc-tf1-then-advisor", "PoisonedDoors-v0", total_steps=1000)
    assert str(staged.parts["advisor"].stage) == "step:0=1.0,500=0.0"  # type: ignore[attr-defined]
    assert staged.parts["expert"].imitation_coef == 0.0  # type: ignore[attr-defined]
    assert pipeline("ppo", "PoisonedDoors-v0").parts == {}


def test_failed_grids_come_again_in_training_only() -> None:
    config = pipeline("advisor", "LavaCrossing-v0")
    assert config.env.kwargs == {"repeat_failed": True}
    assert config.evaluation_env().kwargs == {"repeat_failed": False}
    assert pipeline("advisor", "WallCrossing-v0").env.kwargs == {}


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="did you mean advisor"):
        pipeline("adviser", "PoisonedDoors-v0")
    with pytest.raises(ValueError, match="demo-ppo learns from demonstrations"):
        pipeline("demo-ppo", "PoisonedDoors-v0")


def test_crossings_take_demonstrations_beside_the_advice(tmp_path: Path) -> None:
    recorded = str(record(str(tmp_path / "lava.npz"), expert_of=EnvConfig(id="LavaCrossingFaulty-v0"), episodes=3).path)
    config = with_demonstrations(us.recipes.crossings(), recorded)
    assert config.env.id == "LavaCrossingFaulty-v0"
    advice, demonstrated = config.parts["advisor"], config.parts["demonstrations"]
    assert isinstance(advice, AdvisorConfig)
    assert isinstance(demonstrated, AdvisorConfig)
    assert (advice.demonstrations, advice.bound) == ("", 0.0)
    assert (demonstrated.demonstrations, demonstrated.bound, demonstrated.use_rollout_labels) == (recorded, 0.9, False)
    assert us.train(small(config, tmp_path / "run")).env_steps == 80
    with pytest.raises(ValueError, match="nothing to imitate: name demonstrations"):
        us.train(small(us.recipes.crossings(), tmp_path / "none"))


def test_schedules_in_a_recipe_trouble_no_command_line(tmp_path: Path) -> None:
    words = ["train", "poisoned-doors", "--total-steps", "2000", "--evaluation.episodes", "0", "--ppo.epochs", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main([*words, "--ppo.value-clip", "None", "--run-dir", str(tmp_path / "run")]) == 0
    assert "value_clip: null" in (tmp_path / "run" / "config.yaml").read_text()
