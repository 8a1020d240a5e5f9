"""Our tasks as Gymnasium environments: Gymnasium's own checker, the same episodes as the batch, bad input."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from understudy.envs import make_env
from understudy.envs.makers import OWN_TASKS
from understudy.tasks.poisoned_doors import PoisonedDoors
from understudy.tasks.registration import SingleEnv

TASKS = ("PointMass", "PoisonedDoors-v0", "LightHouse-v0", "WallCrossingFaulty-v0", "LavaCrossingCorrupt-v0")


@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")  # PointMass is unbounded
@pytest.mark.parametrize("name", TASKS)
def test_gymnasiums_checker(name: str) -> None:
    env = gym.make(f"understudy/{name}")
    check_env(env.unwrapped)
    env.close()


def test_every_task_is_registered() -> None:
    assert set(TASKS) <= set(OWN_TASKS)
    assert all(f"understudy/{name}" in gym.registry for name in OWN_TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_one_copy_plays_as_the_batch_does(name: str) -> None:
    env, batch = gym.make(f"understudy/{name}").unwrapped, make_env(name, 1)
    assert env.observation_space == batch.observation_space
    env.action_space.seed(0)
    obs, ended = env.reset(seed=5)[0], 0
    expected = batch.reset(5)
    for _ in range(150):
        for key, value in expected.items():
            assert np.array_equal(obs[key], value[0].numpy())
        action = env.action_space.sample()
        obs, reward, terminated, truncated, info = env.step(action)
        step = batch.step(torch.as_tensor(np.asarray(action))[None])
        assert (reward, terminated, truncated) == (float(step.reward), bool(step.terminated), bool(step.truncated))
        assert set(info) == {key for key, value in step.metrics.items() if not value.isnan()}
        expected = step.obs
        if terminated or truncated:
            ended += 1
            assert step.final_obs is not None
            for key, value in step.final_obs.items():
                assert np.array_equal(obs[key], value[0].numpy())
            obs, expected = env.reset()[0], batch.reset()
    assert ended or name in ("LightHouse-v0", "WallCrossingFaulty-v0")


def test_options_and_seeds() -> None:
    env: Any = gym.make("understudy/LightHouse-v0", options={"view_radius": 15}).unwrapped
    goals = {tuple(env.reset(seed=seed)[0]["policy"][:4]) for seed in range(40)}
    assert len(goals) == 4  # all corners in sight from the centre
    first = [gym.make("understudy/PoisonedDoors-v0").reset()[0]["expert_action"] for _ in range(30)]
    assert len(set(first)) == 3  # no seed: random, not the same every time


def test_bad_input() -> None:
    env = SingleEnv(PoisonedDoors(1))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 7 is not in Discrete\(7\)"):
        env.step(7)
    with pytest.raises(ValueError, match="one copy, got a batch of 2"):
        SingleEnv(PoisonedDoors(2))
    with pytest.raises(ValueError, match="no option 'view'"):
        gym.make("understudy/LightHouse-v0", options={"view": 15})
