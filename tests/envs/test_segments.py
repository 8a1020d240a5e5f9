"""Named segments of flat observation vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from understudy.envs import EnvConfig, StatefulEnv, make_env, with_groups

SEGMENTS = {"policy": {"offset": 2, "speed": 2}}


def test_segments_are_views_by_name() -> None:
    env = with_groups(make_env("PointMass", 3), segments=SEGMENTS)
    plain = make_env("PointMass", 3)
    assert list(env.observation_space["policy"].spaces) == ["offset", "speed"]
    assert env.observation_space["policy"]["speed"].shape == (2,)
    cut, whole = env.reset(0), plain.reset(0)
    for _ in range(4):
        assert torch.equal(torch.cat((cut["policy", "offset"], cut["policy", "speed"]), -1), whole["policy"])
        assert torch.equal(cut["critic"], whole["critic"])
        ours, theirs = env.step(torch.ones(3, 2)), plain.step(torch.ones(3, 2))
        cut, whole = ours.obs, theirs.obs
        assert ours.final_obs is not None
        assert theirs.final_obs is not None
        assert torch.equal(ours.final_obs["policy", "speed"], theirs.final_obs["policy"][:, 2:])
        assert torch.equal(ours.reward, theirs.reward)


def test_the_environments_own_tensors_stay_whole() -> None:
    inner = make_env("CartPole-v1", 2)  # hands out the same TensorDict every step
    env = with_groups(inner, segments={"policy": {"cart": 2, "pole": 2}})
    first = env.reset(0)["policy", "pole"].clone()
    second = env.step(torch.zeros(2, dtype=torch.int64)).obs["policy", "pole"]
    assert first.shape == second.shape == (2, 2)
    assert not torch.equal(first, second)


def test_state_can_be_saved_where_the_environment_can() -> None:
    env = with_groups(make_env("PointMass", 3), segments=SEGMENTS)
    assert isinstance(env, StatefulEnv)
    env.reset(0)
    state = env.state_dict()
    assert torch.equal(env.observe()["policy", "offset"], state["position"] - state["goal"])
    env.load_state_dict(state)
    assert not isinstance(with_groups(make_env("CartPole-v1", 2), segments={"policy": {"all": 4}}), StatefulEnv)


def test_the_config_names_them(scripted_env: Callable[..., Any]) -> None:
    env = EnvConfig(id="PointMass", num_envs=2, segments=SEGMENTS).make()
    assert env.reset(0)["policy", "speed"].shape == (2, 2)
    plain = scripted_env(2)
    assert with_groups(plain, segments={}) is plain


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({"polcy": {"a": 4}}, "'polcy', which does not exist; did you mean policy"),
        ({"policy": {"a": 2}}, "add up to 2 entries, the vector has 4"),
        ({"policy": {"a": 4, "b": 0}}, "each with at least one"),
        ({"policy": {}}, "add up to 0"),
    ],
)
def test_what_is_refused(segments: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_groups(make_env("PointMass", 2), segments=segments)
    with pytest.raises(ValueError, match="segments are of a vector"):
        with_groups(make_env("PoisonedDoors-v0", 2), segments={"policy": {"a": 1}})
