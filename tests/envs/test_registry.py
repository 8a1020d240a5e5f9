"""Which backend builds an id, the configuration, rendering, and bad input."""

from __future__ import annotations

import importlib.util
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.envs import (
    EnvConfig,
    EnvPoolAdapter,
    InProcessVectorEnv,
    as_vec_env,
    list_envs,
    make_env,
    make_render_env,
    registry,
)
from understudy.types import WorkerError

needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs EnvPool")


def test_few_copies_run_in_process_without_gymnasiums_checkers() -> None:
    env = make_env("CartPole-v1", 2, max_episode_steps=7)
    assert isinstance(env, InProcessVectorEnv)
    wrappers, layer = [], env.envs[0]
    while isinstance(layer, gym.Wrapper):
        wrappers.append(type(layer).__name__)
        layer = layer.env
    assert wrappers == ["TimeLimit"]
    assert gym.spec("CartPole-v1").order_enforce  # the registered spec is untouched
    env.reset(seed=0)
    assert [bool(env.step(torch.tensor([0, 1])).truncated[0]) for _ in range(7)] == [False] * 6 + [True]


@needs_envpool
def test_many_copies_run_in_envpool_unless_options_or_the_backend_say_otherwise() -> None:
    assert isinstance(make_env("CartPole-v1", registry.ENVPOOL_FROM), EnvPoolAdapter)
    assert isinstance(make_env("CartPole-v1", registry.ENVPOOL_FROM, "gymnasium"), InProcessVectorEnv)
    assert isinstance(make_env("Pendulum-v1", 16, env_kwargs={"g": 9.0}), InProcessVectorEnv)
    assert isinstance(make_env("CartPole-v1", 1, "envpool"), EnvPoolAdapter)


def test_seed_is_used_by_the_first_reset() -> None:
    env, other = make_env("CartPole-v1", 2, seed=4), make_env("CartPole-v1", 2)
    first = env.reset()["policy"].clone()
    assert torch.equal(first, other.reset(seed=4)["policy"])
    assert not torch.equal(first, env.reset()["policy"])
    assert not torch.equal(first[0], first[1])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown environment 'CartPol-v1': did you mean CartPole-v1"):
        make_env("CartPol-v1", 2)
    with pytest.raises(ValueError, match="unknown environment 'hopper-v55' in Gymnasium: did you mean Hopper-v5"):
        make_env("hopper-v55", 2, "gymnasium")
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="num_envs must be at least 1"):
            make_env("CartPole-v1", wrong)
    with pytest.raises(ValueError, match="backend must be one of auto, gymnasium, processes, envpool"):
        make_env("CartPole-v1", 1, "sync")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1"):
        make_env("CartPole-v1", 1, max_episode_steps=0)
    with pytest.raises(ValueError, match=r"refuses the options {'gravty': 9.8}"):
        make_env("CartPole-v1", 1, env_kwargs={"gravty": 9.8})
    with pytest.raises(ValueError, match="names a module that cannot be imported"):
        make_env("no_such_module:Env-v0", 1)
    with pytest.raises(ValueError, match="Tuple space"):
        make_env("Blackjack-v1", 1)


def test_missing_dependency_names_the_extra() -> None:
    def absent(**kwargs: Any) -> gym.Env[Any, Any]:
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed, run `pip install gymnasium[mujoco]`")

    gym.register("UnderstudyAbsent-v0", absent)
    try:
        with pytest.raises(ImportError, match=r'pip install "understudy-rl\[mujoco\]"'):
            make_env("UnderstudyAbsent-v0", 1)
    finally:
        del gym.registry["UnderstudyAbsent-v0"]


def test_config_builds_environment_and_action_map() -> None:
    config = EnvConfig(
        id="Pendulum-v1", num_envs=3, max_episode_steps=5, kwargs={"g": 9.0}, groups={"policy": "policy"}
    )
    env = config.make(seed=1)
    assert isinstance(env, InProcessVectorEnv)
    assert env.num_envs == 3
    assert env.envs[0].unwrapped.g == 9.0  # type: ignore[attr-defined]
    assert list(env.observation_space.spaces) == ["policy"]
    assert EnvConfig(id="Pendulum-v1") == EnvConfig(id="Pendulum-v1")


def test_list_has_one_line_per_backend() -> None:
    backends = [entry.backend for entry in list_envs()]
    assert backends.count("gymnasium") == backends.count("envpool") == 1
    assert all(entry.summary for entry in list_envs())
    lava = next(entry for entry in list_envs() if entry.id == "LavaCrossing-v0")
    assert (lava.backend, lava.summary[-16:]) == ("own", " (obstacle lava)")


class Drawn(gym.Env[Any, Any]):
    """Draws how many steps it has taken."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, size: int = 1) -> None:
        self.render_mode, self.size = render_mode, size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        return np.full((self.size, self.size, 3), self.t, np.uint8)


def test_render_env_draws_and_can_be_driven_as_a_vec_env() -> None:
    gym.register("UnderstudyDrawn-v0", cast(Any, Drawn))
    try:
        config = EnvConfig(id="UnderstudyDrawn-v0", max_episode_steps=3, kwargs={"size": 4})
        single = make_render_env(config)
        env = as_vec_env(single)
        env.reset(seed=0)
        env.step(torch.tensor([0]))
        frame: Any = single.render()
        assert frame.shape == (4, 4, 3)
        assert frame.max() == 1
        assert [bool(env.step(torch.tensor([0])).truncated) for _ in range(2)] == [False, True]
    finally:
        del gym.registry["UnderstudyDrawn-v0"]
    with pytest.raises(ValueError, match="unknown environment 'CartPol-v1': did you mean CartPole-v1"):
        make_render_env(EnvConfig(id="CartPol-v1"))


@needs_envpool
def test_envpool_only_ids_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="EnvPool only"):
        make_render_env(EnvConfig(id="Go1JoystickFlatTerrain-v1"))


def test_ids_that_were_removed_and_ids_of_own_modules() -> None:
    with pytest.raises(ValueError, match="Hopper-v3 was removed from Gymnasium: use Hopper-v5"):
        make_env("Hopper-v3", 1)
    with pytest.raises(ValueError, match=r'unknown environment .* write "module:Seeker-v0"'):
        make_env("Seeker-v0", 1)


def test_a_constructor_that_raises_is_told_from_options_that_it_refuses() -> None:
    class Broken(gym.Env[Any, Any]):
        def __init__(self, size: int = 1) -> None:
            if size > 1:
                raise ValueError("size is too large")
            raise TypeError("unsupported operand") if size else NotImplementedError

    gym.register("Broken-v0", Broken)
    try:
        for options, error, message in (
            ({}, WorkerError, "Broken-v0 raised TypeError in its constructor: unsupported operand"),
            ({"size": 0}, WorkerError, "Broken-v0 raised NotImplementedError in its constructor .without a message"),
            ({"size": 2}, ValueError, "Broken-v0 raised ValueError in its constructor: size is too large"),
            ({"sise": 2}, ValueError, "Broken-v0 refuses the options {'sise': 2}"),
        ):
            with pytest.raises(error, match=message):
                make_env("Broken-v0", 1, env_kwargs=options)
    finally:
        gym.registry.pop("Broken-v0")
