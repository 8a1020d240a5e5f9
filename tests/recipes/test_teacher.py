"""The recipes with teachers and estimators run, from a teacher's training to a student that acts without the truth."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from benchmarks.teacher.methods import STUDENTS, student

import understudy as us
from understudy.recipes import RECIPES
from understudy.runs.config import EvaluationConfig, LoggingConfig, TrainConfig
from understudy.tools.export import export_policy

NAMES = ("tppo", "distill", "estimator-ppo", "estimator-tppo")
needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the extra mujoco")
needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs the extra envpool")


def shortened(config: TrainConfig, path: Path, teacher: Path | None = None) -> TrainConfig:
    """Three rollouts of eight steps."""
    env = dataclasses.replace(config.env, num_envs=16)
    ppo = dataclasses.replace(config.ppo, num_steps=8, epochs=1, minibatches=1, warmup_steps=8)
    parts = dict(config.parts)
    if "teacher" in parts:
        parts["teacher"] = dataclasses.replace(parts["teacher"], checkpoints=(str(teacher),))  # type: ignore[call-arg]
    return dataclasses.replace(
        config,
        env=env,
        ppo=ppo,
        parts=parts,
        total_steps=400,
        run_dir=str(path),
        evaluation=EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
        torch_threads=1,
    )


@needs_mujoco
def test_students_of_a_mujoco_teacher(tmp_path: Path) -> None:
    teacher = us.train(shortened(us.recipes.mujoco("Hopper-v5"), tmp_path / "teacher"))
    for name in NAMES:
        run = us.train(shortened(RECIPES[name](), tmp_path / name, teacher.path))
        last = run.metrics[-1]
        assert run.config.recipe == name
        assert last["ppo/first_ratio_error"] < 1e-5
        assert ("teacher/distance" in last) == (name != "estimator-ppo")
        assert ("estimator/rmse/policy/velocity" in last) == name.startswith("estimator")
        action, state = us.load(run.path).act({"policy": {"position": torch.zeros(5)}})  # without velocities
        assert action.shape == (3,)
        assert state is not None


@needs_mujoco
def test_distillation_goes_over_into_ppo(tmp_path: Path) -> None:
    teacher = us.train(shortened(us.recipes.mujoco("Hopper-v5"), tmp_path / "teacher"))
    config = shortened(us.recipes.distill_then_ppo(total_steps=400), tmp_path / "run", teacher.path)
    first = us.train(dataclasses.replace(config, total_steps=128, run_dir=str(tmp_path / "first")))
    start = us.train(dataclasses.replace(config, total_steps=128, run_dir=str(tmp_path / "no"), parts={}))
    run = us.train(config)
    assert [row["ppo/value_loss"] > 0.0 for row in run.metrics] == [True] * len(run.metrics)
    # before PPO begins, the teacher alone moves the actor: without it nothing does
    fresh = us.train(dataclasses.replace(config, total_steps=1, run_dir=str(tmp_path / "fresh"), parts={}))
    heads = [r.policy.state_dict()["head.linear.weight"] for r in (start, fresh, first)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert run.config.ppo.surrogate_coef == us.Schedule.parse("step:0=0,133=1")


@pytest.mark.slow
@needs_envpool
def test_a_student_of_the_go1_teacher_can_be_exported(tmp_path: Path) -> None:
    teacher = us.train(shortened(us.recipes.go1_teacher(), tmp_path / "teacher"))
    run = us.train(shortened(us.recipes.go1_student(), tmp_path / "student", teacher.path))
    assert run.metrics[-1]["estimator/rmse/truth/velocity"] > 0.0
    policy = us.load(run.path)
    assert policy.sensor_keys == (("policy", "proprioception"),)
    export_policy(policy, tmp_path / "go1.pt", "torchscript")


def test_another_task_needs_its_own_segments() -> None:
    with pytest.raises(ValueError, match="knows where the velocities are in Hopper-v5"):
        us.recipes.tppo("Ant-v5")


@pytest.mark.parametrize("task", ["Hopper-v5", "Go1JoystickFlatTerrain-v1"])
@pytest.mark.parametrize("method", STUDENTS)
def test_a_students_numbers_do_not_depend_on_how_long_it_is_built_for(method: str, task: str) -> None:
    config = student(method, task, teachers=("run",), total_steps=1_000, seed=3)
    assert config == dataclasses.replace(
        student(method, task, teachers=("run",), total_steps=9, seed=3), total_steps=1_000
    )
    assert (config.recipe, config.seed, config.env.id) == (method, 3, task)
    assert ("estimator" in config.parts) == bool(config.policy.estimators)
    assert (config.policy.memory == "none") == (bool(config.policy.estimators) and task == "Hopper-v5")
    assert ("teacher" in config.parts) == (method not in ("ppo", "estimator-ppo"))
    assert (config.ppo.surrogate_coef == 0.0) == (method == "distill")
