"""The recipes of GAIL and AIRL run, from a file of demonstrations to a policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from understudy.data.demonstrations.write import write_npz
from understudy.envs.registry import EnvConfig
from understudy.recipes.adversarial import airl, bc_gail, gail
from understudy.runs.config import EvaluationConfig, LoggingConfig
from understudy.tasks.point_mass import PointMass
from understudy.tools.record import record_episodes
from understudy.training.loop import train


@pytest.mark.parametrize("recipe", [gail, airl, bc_gail])
def test_it_runs_from_a_file(recipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "expert.npz"
    episodes = record_episodes(PointMass(4), lambda obs, _: (-obs["policy"][:, :2]).clamp(-1.0, 1.0), 4, seed=0)
    write_npz(path, episodes, {})
    config = recipe("PointMass", demonstrations=str(path), total_steps=512)
    assert config.ppo.reward_weight == 0.0
    short = {"offline": dataclasses.replace(config.offline, epochs=2)} if config.offline is not None else {}
    config = dataclasses.replace(
        config,
        env=EnvConfig(id="PointMass", num_envs=4),
        ppo=dataclasses.replace(config.ppo, num_steps=64, minibatches=2, epochs=1),
        run_dir=str(tmp_path / "run"),
        evaluation=EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
        **short,
    )
    run = train(config)
    name = "airl" if recipe is airl else "gail"
    rows = [row for row in run.metrics if f"{name}/loss" in row]
    assert rows
    assert 0.0 <= rows[-1][f"{name}/acc_exp"] <= 1.0
