"""The recipes of motion priors run, from a clip file to a policy, alone and beside a teacher."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionLibrary, MotionsConfig
from understudy.envs.registry import EnvConfig
from understudy.parts import MotionPriorConfig, TeacherConfig
from understudy.recipes.basic import ppo
from understudy.recipes.motion import appo, atppo, go1_trot
from understudy.runs.config import EvaluationConfig, LoggingConfig, TrainConfig, from_yaml, to_yaml
from understudy.training.loop import train

ROOT = Path(__file__).resolve().parents[2]


def shortened(config: TrainConfig, folder: Path) -> TrainConfig:
    """A few hundred steps of PointMass."""
    return dataclasses.replace(
        config,
        env=EnvConfig(id="PointMass", num_envs=4),
        ppo=dataclasses.replace(config.ppo, num_steps=64, minibatches=2, epochs=1),
        total_steps=512,
        run_dir=str(folder),
        evaluation=EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
    )


def clips(folder: Path) -> str:
    """One clip of PointMass's features."""
    frames = np.random.default_rng(0).normal(size=(30, 4)).cumsum(0) * 0.05
    fields = tuple(f"policy[{i}]" for i in range(4))
    return str(write_motions(folder / "m.npz", [MotionClip(name="m", fields=fields, frames=frames, frame_time=0.1)]))


def test_the_lerp_is_two_weights() -> None:
    config = appo(task_reward_lerp=0.3)
    part = config.parts["motion"]
    assert isinstance(part, MotionPriorConfig)
    assert (config.ppo.reward_weight, part.reward_weight) == (0.3, 0.7)
    assert from_yaml(to_yaml(config)) == config
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        appo(task_reward_lerp=1.5)


def test_appo_runs_from_a_file_and_atppo_with_a_teacher_beside_it(tmp_path: Path) -> None:
    teacher = train(shortened(ppo(), tmp_path / "teacher"))
    prior = MotionPriorConfig(motions=MotionsConfig(files=(clips(tmp_path),)), step_time=0.1)
    for recipe in (appo, atppo):
        config = shortened(recipe(), tmp_path / recipe.__name__)
        parts = {**config.parts, "motion": prior}
        if recipe is atppo:
            parts["teacher"] = TeacherConfig(checkpoints=(str(teacher.path),), teacher_forcing=0.5)
        run = train(dataclasses.replace(config, parts=parts))
        last = run.metrics[-1]
        for name in ("loss", "penalty", "acc_pi", "acc_exp", "logit_pi", "logit_exp", "saturated", "style_reward"):
            assert np.isfinite(last[f"motion/{name}"])
        assert any(name.startswith("teacher/") for name in last) == (recipe is atppo)


def test_the_go1_s_clips_have_the_fields_and_order_of_its_observations(tmp_path: Path) -> None:
    pytest.importorskip("envpool")
    spec = importlib.util.spec_from_file_location("trot_clips", ROOT / "examples" / "trot_clips.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    config = go1_trot(motions=(str(example.main(tmp_path / "trot.npz")),))
    part = config.parts["motion"]
    assert isinstance(part, MotionPriorConfig)
    library = MotionLibrary.load(part.motions, part.fields, part.step_time)
    env = dataclasses.replace(config.env, num_envs=24).make("cpu", 0)
    env.reset(0)
    action = torch.zeros(24, 12)
    for _ in range(25):  # stand
        obs = env.step(action).obs["policy"][:, list(part.columns)]
    assert obs[:, :12].abs().mean() < 0.15  # offsets from the pose that the clips are offset from
    assert float(library.frames[:, :12].abs().mean()) < 0.3
    action = torch.eye(12).repeat(2, 1)  # one joint in each copy, two copies of each
    for _ in range(3):
        moved = env.step(action).obs["policy"][:, list(part.columns)]
    env.close()
    change = (moved - obs)[:, :12].view(2, 12, 12).mean(0)
    assert change.argmax(1).tolist() == list(range(12))  # the joint that was asked to rises most
    names = [field.removesuffix("_offset") for field in part.fields[:12]]
    assert names == [f"{leg}_{joint}_joint" for leg in example.LEGS for joint in ("hip", "thigh", "calf")]


def test_style_features_fit_the_robot() -> None:
    for env_id, columns in (("HalfCheetah-v5", 13), ("Ant-v5", 16), ("Walker2d-v5", 0)):
        part = appo(env_id).parts["motion"]
        assert isinstance(part, MotionPriorConfig)
        assert len(part.columns) == columns  # none: all columns
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        go1_trot(task_reward_lerp=-0.1)
