"""The EnvPool adapter: with the real package where it is installed, and what it does when it is not."""

from __future__ import annotations

import importlib.util
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.envs import EnvPoolAdapter, envpool, make_env
from understudy.types import WorkerError

needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs EnvPool")


@needs_envpool
def test_cartpole_has_no_reset_steps() -> None:
    env = make_env("CartPole-v1", 4, "envpool", max_episode_steps=30)
    obs = env.reset(seed=0)["policy"].clone()
    assert obs.shape == (4, 4)
    lengths, ends = torch.zeros(4), []
    for t in range(120):
        action = torch.tensor([1, t % 2, t % 2, 0])
        step = env.step(action)
        assert step.valid is None
        assert (step.reward == 1).all()  # a reset step has reward 0
        lengths += 1
        ended = step.terminated | step.truncated
        assert step.final_obs is not None
        true_next = torch.where(ended.unsqueeze(-1), step.final_obs["policy"], step.obs["policy"])
        # explicit Euler: x' = x + 0.02 v holds from obs to the true next obs, across episode ends
        torch.testing.assert_close(true_next[:, 0], obs[:, 0] + 0.02 * obs[:, 1], atol=1e-5, rtol=0)
        assert (step.obs["policy"][ended].abs() <= 0.05).all()  # first observations
        ends += [(int(n), bool(f)) for n, f in zip(lengths[ended], step.truncated[ended])]
        lengths[ended] = 0
        obs = step.obs["policy"].clone()
    assert (30, True) in ends
    assert any(n < 30 and not truncated for n, truncated in ends)
    assert all(truncated == (n == 30) for n, truncated in ends)
    env.close()


@needs_envpool
@pytest.mark.parametrize("name", ["Hopper-v5", "Hopper-v4"])
def test_hopper(name: str) -> None:
    env = make_env(name, 2, "envpool", seed=1)
    assert env.observation_space["policy"] == spaces.Box(-np.inf, np.inf, (11,), np.float32)
    env.reset()
    terminated = False
    for _ in range(200):
        step = env.step(torch.full((2, 3), 0.5))
        terminated = terminated or bool(step.terminated.any())
        assert not step.truncated.any()
    assert terminated
    assert step.obs["policy"].dtype == step.reward.dtype == torch.float32
    env.close()


@needs_envpool
def test_seeds() -> None:
    env = make_env("CartPole-v1", 2, "envpool", seed=3)
    first = env.reset()["policy"].clone()
    second = env.reset()["policy"].clone()
    assert not torch.equal(first, second)
    assert torch.equal(env.reset(seed=3)["policy"], first)
    assert not torch.equal(env.reset(seed=4)["policy"], first)
    big = make_env("CartPole-v1", 2, "envpool", seed=3)
    assert torch.equal(big.reset(seed=3 + 2**31)["policy"], first)  # EnvPool's seeds have 31 bits


@needs_envpool
def test_playground_groups() -> None:
    groups = {"policy": "state", "critic": "state+privileged_state"}
    env = make_env("Go1JoystickFlatTerrain-v1", 2, groups=groups)
    assert isinstance(env, EnvPoolAdapter)  # the only backend that has it
    obs = env.reset(seed=0)
    assert obs["policy"].shape == (2, 48)
    assert obs["critic", "privileged_state"].shape == (2, 123)
    assert env.step(torch.zeros(2, 12)).final_obs["critic", "state"].shape == (2, 48)  # type: ignore[index]
    env.close()


@needs_envpool
def test_control_suite_bounds_are_repaired() -> None:
    env = make_env("WalkerWalk-v1", 1)
    height = env.observation_space["policy"]["height"]  # type: ignore[index]
    assert (height.low, height.high, height.shape) == (-np.inf, np.inf, (1,))
    assert env.reset()["policy", "height"].shape == (1, 1)
    env.close()


@needs_envpool
def test_unknown_id_and_options() -> None:
    with pytest.raises(ValueError, match=r"EnvPool has no environment 'Hoper-v5': did you mean Hopper-v5"):
        make_env("Hoper-v5", 2, "envpool")
    with pytest.raises(ValueError, match=r"EnvPool refuses CartPole-v1 with {'gravity': 9}"):
        make_env("CartPole-v1", 2, "envpool", env_kwargs={"gravity": 9})


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "understudy-rl\[envpool\]"'):
        make_env("CartPole-v1", 2, "envpool")
    assert make_env("CartPole-v1", 16).num_envs == 16  # "auto" does without


class Pool:
    """Two environments of one number; the second ends at every third step."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, batch_size: int = 2, players: int = 1) -> None:
        self.config = {"num_envs": 2, "batch_size": batch_size}
        self.players, self.closed, self.fails = players, False, False

    def reset(self, env_id: Any = None) -> Any:
        return np.zeros((2 if env_id is None else len(env_id), 1), np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        if self.fails:
            raise RuntimeError("bad rom")
        flags = np.zeros(2, bool)
        return np.ones((2, 1), np.float32), np.zeros(2 * self.players), flags, flags, {}

    def close(self) -> None:
        self.closed = True


def test_failures() -> None:
    pool = Pool()
    env = EnvPoolAdapter(lambda seed: pool, name="Pong-v5")
    env.reset()
    pool.fails = True
    with pytest.raises(WorkerError, match=r"Pong-v5 \(EnvPool, 2 environments\) raised RuntimeError in step: bad rom"):
        env.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="asynchronous"):
        EnvPoolAdapter(lambda seed: Pool(batch_size=1))
    crowd = EnvPoolAdapter(lambda seed: Pool(players=2))
    crowd.reset()
    with pytest.raises(ValueError, match="one player each"):
        crowd.step(torch.zeros(2, dtype=torch.int64))
    env.close()
    assert pool.closed


def test_a_new_seed_builds_a_new_pool() -> None:
    seeds: list[int] = []

    def make(seed: int) -> Pool:
        seeds.append(seed)
        return Pool()

    env = EnvPoolAdapter(make, seed=5)
    env.reset()  # the pool made with seed 5
    env.reset()  # goes on
    assert seeds == [5]
    env.reset(seed=5)  # used: only a new one starts the same way
    env.reset(seed=6)
    assert seeds == [5, 5, 6]
    fresh = EnvPoolAdapter(make, seed=7)
    fresh.reset(seed=7)
    assert seeds == [5, 5, 6, 7]


def test_the_old_pool_is_freed_before_a_new_one_is_built() -> None:
    alive: list[weakref.ref[Pool]] = []

    def make(seed: int) -> Pool:
        assert all(pool() is None for pool in alive), "two pools at a time: twice the memory"
        pool = Pool()
        alive.append(weakref.ref(pool))
        return pool

    env = EnvPoolAdapter(make)
    env.reset(seed=1)
    env.step(torch.zeros(2, dtype=torch.int64))
    env.reset(seed=2)
    assert len(alive) == 3


def test_module_name_does_not_shadow_the_package() -> None:
    assert envpool.__name__ == "understudy.envs.envpool"
