"""Observation groups: naming, regrouping, conversions, and errors that name the nearest key."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.envs.buffers import StepBuffers, row_writers, write_batch
from understudy.envs.observations import leaves_space, observation_leaves

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
FLAT = spaces.Dict({"state": BOX, "rgb": spaces.Box(0, 255, (4, 4, 3), np.uint8), "goal": spaces.Discrete(3)})
NESTED = spaces.Dict({"robot": spaces.Dict({"joints": BOX, "base": BOX}), "task": BOX})
NAMED = spaces.Dict({"policy": spaces.Dict({"joints": BOX, "base": BOX}), "critic": BOX})


def keys(space: spaces.Space[Any], groups: Any = None) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {leaf.key: leaf.source for leaf in observation_leaves(space, groups)}


def test_groups_without_a_choice() -> None:
    assert keys(BOX) == {("policy",): ()}
    assert keys(FLAT) == {("policy", k): (k,) for k in ("state", "rgb", "goal")}
    assert keys(NAMED) == {
        ("policy", "joints"): ("policy", "joints"),
        ("policy", "base"): ("policy", "base"),
        ("critic",): ("critic",),
    }


def test_groups_by_name() -> None:
    assert keys(BOX, {"policy": "policy", "critic": "policy"}) == {("policy",): (), ("critic",): ()}
    chosen = {"policy": "state", "critic": ["state", "rgb"]}
    expected = {("policy",): ("state",), ("critic", "state"): ("state",), ("critic", "rgb"): ("rgb",)}
    assert keys(FLAT, chosen) == keys(FLAT, {"policy": "state", "critic": "state+rgb"}) == expected
    assert keys(NESTED, {"policy": "robot"}) == {
        ("policy", "joints"): ("robot", "joints"),
        ("policy", "base"): ("robot", "base"),
    }
    assert keys(NESTED, {"policy": ["robot.joints", "task"]}) == {
        ("policy", "robot_joints"): ("robot", "joints"),
        ("policy", "task"): ("task",),
    }


def test_the_space_keeps_the_order_given() -> None:
    space = leaves_space(observation_leaves(FLAT, {"z": ["state", "goal"], "a": "rgb"}))
    assert list(space.spaces) == ["z", "a"]
    assert list(space["z"].spaces) == ["state", "goal"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("space", "groups", "message"),
    [
        (FLAT, {"policy": "stat"}, "group 'policy' asks for 'stat', which the environment lacks: did you mean state"),
        (FLAT, {"critic": ["state", "RGBB"]}, "did you mean rgb"),
        (FLAT, {"critic": "zzzzz"}, "known: goal, rgb, state"),
        (FLAT, {"policy": []}, "group 'policy' is empty"),
        (FLAT, {}, "no observation group"),
        (FLAT, {"policy": ["state", "state"]}, "names a component twice"),
        (NESTED, None, r"'robot' in observation group 'policy' is itself a Dict.*robot.joints"),
        (spaces.Tuple((BOX, BOX)), None, "Tuple space.*a Tuple: into a Dict of named parts"),
        (spaces.Dict({"state": BOX, "mission": spaces.Text(9)}), None, "mission is a Text space.*FilterObservation"),
    ],
)
def test_bad_groups(space: spaces.Space[Any], groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        observation_leaves(space, groups)


def test_an_unsupported_key_may_be_left_out() -> None:
    assert keys(spaces.Dict({"state": BOX, "mission": spaces.Text(9)}), {"policy": "state"}) == {
        ("policy",): ("state",)
    }


def test_bounds_beyond_float32_become_infinite_quietly() -> None:
    big = np.finfo(np.float64).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (leaf,) = observation_leaves(
            spaces.Box(np.array([-big, -1.0, 2.0]), np.array([big, 1.0, big]), dtype=np.float64)
        )
    assert leaf.space.low.tolist() == [-np.inf, -1.0, 2.0]  # type: ignore[attr-defined]
    assert leaf.space.high.tolist() == [np.inf, 1.0, np.inf]  # type: ignore[attr-defined]


def test_buffers_rows_and_batches() -> None:
    leaves = observation_leaves(NESTED, {"policy": "robot", "critic": ["robot.base", "task"]})
    buffers = StepBuffers(leaves, 2, "cpu")
    one = {"robot": {"joints": np.array([1, 2]), "base": np.array([3, 4])}, "task": np.array([5, 6])}
    row_writers(buffers.leaves, buffers.obs_arrays)[1](one)
    assert buffers.obs["policy", "joints"].tolist() == [[0, 0], [1, 2]]
    assert buffers.obs["critic", "robot_base"].tolist() == [[0, 0], [3, 4]]
    assert buffers.obs["critic", "task"].tolist() == [[0, 0], [5, 6]]
    assert buffers.final_obs["policy", "joints"].sum() == 0
    task = buffers.obs["critic", "task"]
    both = {"robot": {"joints": np.ones((2, 2)), "base": np.ones((2, 2))}, "task": np.full((2, 2), 7)}
    write_batch(buffers.leaves, buffers.obs_arrays, both)
    assert task.tolist() == [[7, 7], [7, 7]]
    first = {"robot": {"joints": np.ones((1, 2)), "base": np.ones((1, 2))}, "task": np.full((1, 2), 9)}
    write_batch(buffers.leaves, buffers.obs_arrays, first, rows=np.array([0]))
    assert task.tolist() == [[9, 9], [7, 7]]
    with pytest.raises(ValueError, match=r"robot/base. has shape \(1, 2\), but its space says \(2, 2\)"):
        write_batch(buffers.leaves, buffers.obs_arrays, first)
    for tensor in buffers.obs.values(include_nested=True, leaves_only=True):
        assert tensor.data_ptr() % 64 == 0


def test_scalars_get_a_dimension() -> None:
    buffers = StepBuffers(observation_leaves(spaces.Box(-1, 1, (), np.float32)), 3, "cpu")
    row_writers(buffers.leaves, buffers.obs_arrays)[2](0.5)
    assert torch.equal(buffers.obs["policy"], torch.tensor([[0.0], [0.0], [0.5]]))
