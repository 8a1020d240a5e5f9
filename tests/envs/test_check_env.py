"""`us.check_env` says what is wrong with an environment, and nothing where nothing is."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import understudy as us
from understudy.tasks.point_mass import PointMass


class Odd(gym.Env[Any, Any]):
    """A walk with one fault."""

    def __init__(self, fault: str = "") -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space, self.fault, self.t = spaces.Discrete(2, start=1), fault, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return (np.random.default_rng().random(2) if self.fault == "seed" else self.np_random.random(2)).astype(
            np.float32
        ), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        assert action in self.action_space
        obs = np.full(2, {"nan": np.nan, "large": 1e9}.get(self.fault, 0.5), np.float32)
        obs = obs[:1] if self.fault == "shape" and self.t > 2 else obs
        return obs, 1e8 if self.fault == "reward" else 0.0, self.t == 5 and self.fault != "endless", False, {}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "observation 'policy' is not always finite"),
        ("large", "observation 'policy' exceeds 1e+06"),
        ("reward", "the reward exceeds 1e+06"),
        ("seed", "two resets with the same seed"),
        ("endless", "no episode ended in 20 steps"),
        ("shape", "environment 0 of 1 (Odd) in step: the observation has shape (1,)"),
    ],
)
def test_each_fault_is_one_sentence(fault: str, said: str) -> None:
    (finding,) = us.check_env(Odd(fault), steps=20)
    assert finding.startswith(said)


def test_sound_environments_and_ids() -> None:
    assert us.check_env(Odd()) == ()
    assert us.check_env("CartPole-v1") == ()
    assert us.check_env(PointMass(2), steps=300) == ()
    (unknown,) = us.check_env("CartPol-v1")
    assert "did you mean CartPole-v1" in unknown
    (no_env,) = us.check_env(3)
    assert "int is not a known kind of environment" in no_env
    with pytest.raises(ValueError, match="steps"):
        us.check_env("CartPole-v1", steps=0)
