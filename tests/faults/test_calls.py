"""Arguments of the public functions that cannot be meant: one ValueError that names them, before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from benchmarks.faults.options import tiny

import understudy as us
from understudy.tools.record import record
from understudy.types import CheckpointError

WRONG: tuple[Any, ...] = (
    *(np.array([1, 2]), torch.tensor([1, 2]), 10**5000, -(10**400), b"x", object(), int, {1, 2}, range(3), complex(1)),
    *(Ellipsis, np.bool_(True), np.str_("x"), "\ud800", float("nan"), {"a": {"b": {}}}, gym.spaces.Discrete(2)),
)


@pytest.mark.parametrize("kind", [us.PPOConfig, us.PolicyConfig, us.EvaluationConfig, us.OptimizerConfig])
def test_every_option_names_itself_whatever_it_is_given(kind: type) -> None:
    for field in dataclasses.fields(kind):
        for value in WRONG:
            said = field.name
            try:
                kind(**{field.name: value})
            except ValueError as error:
                said = str(error)
            assert field.name in said, value


@pytest.mark.parametrize("config", ["ppo", None, {"env": {"id": "CartPole-v1"}}, us.TrainConfig, us.PPOConfig()])
def test_what_is_trained_is_a_config(config: Any) -> None:
    with pytest.raises(ValueError, match=r"config must be a TrainConfig, written TrainConfig\(total_steps=..., env="):
        us.train(config)


@pytest.mark.parametrize("source", [None, 3, b"run", ["run"]])
def test_a_run_is_a_path(source: Any, tmp_path: Path) -> None:
    for name, call in {"run": us.resume, "source": us.load}.items():
        with pytest.raises(ValueError, match=f"{name} must be text or be a Path"):
            call(source)
    with pytest.raises(ValueError, match="run_or_policy must be text"):
        us.evaluate(source, env=us.EnvConfig(id="CartPole-v1"))
    with pytest.raises(CheckpointError, match="is not a run, and holds no checkpoint"):
        us.load(tmp_path)


@pytest.mark.parametrize("allow", ["my_parts", None, 3, [3], {"my_parts": True}])
def test_consent_is_a_list_of_names(allow: Any, tmp_path: Path) -> None:
    run = str(tmp_path)
    for call in (us.load, us.resume, us.evaluate, lambda path, allow: record("x.npz", run=Path(path), allow=allow)):
        with pytest.raises(ValueError, match=r"allow must (be a list of texts|in each entry be text)"):
            call(run, allow=allow)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("episodes", x) for x in (0, -1, 1.5, "3", None, True, 10**20)),
        *(("seed", x) for x in (-1, "x", 2**64, 1.5)),
        *(("deterministic", x) for x in ("no", 1, None)),
        ("video", 3),
    ],
)
def test_numbers_of_an_evaluation(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must "):
        us.evaluate(tmp_path, **{name: value})


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x\ud800"])
def test_a_run_folder_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write run folder .*choose another --run-dir"):
        us.train(tiny(run_dir=str(tmp_path / name)))


@pytest.mark.parametrize("name", ["evaluation", "offline", "episode", "ppo"])
def test_a_part_does_not_take_the_name_of_other_metrics(name: str, tmp_path: Path) -> None:
    parts = {name: us.parts.RandomNetworkDistillationConfig()}
    with pytest.raises(ValueError, match=f"a part cannot be called '{name}'"):
        us.train(tiny(run_dir=str(tmp_path / "run"), parts=parts))


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (
            gym.spaces.Discrete(10**11),
            gym.spaces.Discrete(2),
            "classes would take .* reduce the observ",
        ),
        (
            gym.spaces.Box(-1, 1, (2,)),
            gym.spaces.Discrete(10**11),
            "outputs would take .* reduce the size of",
        ),
        (gym.spaces.Dict({1: gym.spaces.Box(-1, 1, (2,))}), gym.spaces.Discrete(2), "must be text, got 1"),
    ],
)
def test_spaces_of_which_no_policy_can_be_made(
    observation: Any, action: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wide(gym.Env[Any, Any]):
        observation_space, action_space = observation, action

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return (0 if isinstance(observation, gym.spaces.Discrete) else np.zeros(2, np.float32)), {}

    monkeypatch.setitem(gym.registry, "Wide-v0", gym.envs.registration.EnvSpec("Wide-v0", entry_point=Wide))
    with pytest.raises(ValueError, match=message):
        us.train(tiny(run_dir=str(tmp_path / "run"), env=us.EnvConfig(id="Wide-v0", num_envs=1)))
