"""The recipe `ppo` fits itself to its task, and learns with nothing said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from gymnasium.spaces import Box, Discrete

import understudy as us
from understudy.core.schedules import Schedule
from understudy.nn.heads import make_family
from understudy.recipes.basic import first_learning_rate
from understudy.runs.config import EvaluationConfig, LoggingConfig


@pytest.mark.parametrize("num_envs", [1, 3, 8, 20, 64, 4096])
def test_rollouts_and_minibatches_fit_the_environments(num_envs: int) -> None:
    chosen = us.recipes.ppo(num_envs=num_envs).ppo
    assert chosen.num_steps * num_envs % chosen.minibatches == 0
    assert 1024 <= chosen.num_steps * num_envs <= max(32 * num_envs, 1024 + 16 * num_envs)
    assert chosen.minibatches == 16  # a count: with many environments minibatches grow
    recurrent = us.recipes.ppo(num_envs=num_envs, memory="gru")
    assert num_envs % recurrent.ppo.minibatches == 0
    assert recurrent.policy.memory == "gru"


def test_short_trainings_take_larger_steps() -> None:
    assert first_learning_rate(60_000) == 1e-3
    assert first_learning_rate(250_000) == pytest.approx(6e-4)
    assert first_learning_rate(1_000_000) == first_learning_rate(100_000_000) == 3e-4
    assert us.recipes.ppo(total_steps=250_000).ppo.optimizer.learning_rate == Schedule.parse("linear:6e-4:0")


@pytest.mark.parametrize("recipe", ["gail", "airl", "bc_gail"])
def test_adversarial_recipes_fit_any_actions(recipe: str) -> None:
    distribution = us.recipes.find_recipe(recipe)("CartPole-v1").policy.distribution
    assert make_family(Discrete(2), distribution).kind == "categorical"
    assert make_family(Box(-1.0, 1.0, (2,)), distribution).kind == "gaussian"
    with pytest.raises(ValueError, match="min_std would have no effect"):
        make_family(Discrete(2), dataclasses.replace(distribution, kind="categorical"))


@pytest.mark.slow
def test_cartpole_is_solved_with_nothing_said(tmp_path: Path) -> None:
    config = us.recipes.ppo("CartPole-v1", total_steps=60_000)
    quiet = LoggingConfig(console=False, tensorboard=False)
    run = us.train(
        dataclasses.replace(
            config, run_dir=str(tmp_path / "run"), logging=quiet, evaluation=EvaluationConfig(episodes=20)
        )
    )
    assert run.evaluation is not None
    assert run.evaluation.mean_return >= 475.0
