"""Transitions as rows: which columns there are, what absorbing states look like, and the shared normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts.shared.transitions import Inputs, SharedNormalizer, TransitionFeatures

VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)
SPACE = spaces.Dict(
    {
        "policy": spaces.Dict({"drift": VECTOR, "gear": spaces.Discrete(3)}),
        "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        "load": spaces.Box(0.0, 1.0, (), np.float32),
    }
)
ARM = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def observations(*rows: tuple[float, float, int]) -> TensorDict:
    drift = torch.tensor([row[:2] for row in rows])
    gear = torch.tensor([row[2] for row in rows])
    inner = TensorDict({"drift": drift, "gear": gear}, batch_size=[len(rows)])
    return TensorDict({"policy": inner, "load": drift[:, 0] / 10.0}, batch_size=[len(rows)])


def policy_with(space: spaces.Dict = SPACE, action_space: spaces.Space[Any] = ARM, **options: Any) -> ActorCritic:
    return ActorCritic(space, action_space, PolicyConfig(hidden_sizes=(4,), **options))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("state", [[1, 2, 0, 0, 1], [3, 4, 1, 0, 0]]),
        ("state-action", [[1, 2, 0, 0, 1, -2, 1], [3, 4, 1, 0, 0, 2, 0]]),
        ("state-next-state", [[1, 2, 0, 0, 1, 5, 6, 0, 1, 0], [3, 4, 1, 0, 0, 7, 8, 0, 1, 0]]),
        (
            "state-action-next-state",
            [[1, 2, 0, 0, 1, -2, 1, 5, 6, 0, 1, 0], [3, 4, 1, 0, 0, 2, 0, 7, 8, 0, 1, 0]],
        ),
    ],
)
def test_columns_of_every_kind_of_input(inputs: Inputs, expected: list[list[float]]) -> None:
    features = TransitionFeatures(SPACE, ARM, ("policy",), inputs)
    obs, following = observations((1, 2, 2), (3, 4, 0)), observations((5, 6, 1), (7, 8, 1))
    rows = features(obs, torch.tensor([[-2.0, 1.0], [2.0, 0.0]]), following, torch.tensor([True, False]))
    assert rows.shape[-1] == features.size
    assert rows.tolist() == expected


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3, start=5), torch.tensor([5, 7]), [[1, 0, 0], [0, 0, 1]]),
        (spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 0], [0, 2]]), [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
        (spaces.MultiBinary(2), torch.tensor([[1, 0], [0, 1]]), [[1, 0], [0, 1]]),
        (spaces.Box(-1, 1, (2, 1)), torch.tensor([[[0.5], [-1.0]], [[1.0], [0.0]]]), [[0.5, -1.0], [1.0, 0.0]]),
    ],
)
def test_discrete_actions_are_one_hot(space: Any, action: torch.Tensor, expected: list[list[float]]) -> None:
    features = TransitionFeatures(SPACE, space, ("load",), "state-action")
    rows = features(observations((1, 2, 2), (3, 4, 0)), action, None, torch.zeros(2, dtype=torch.bool))
    assert rows[:, 1:].tolist() == expected


def test_the_state_after_the_end_is_zeros_and_a_one() -> None:
    features = TransitionFeatures(SPACE, ARM, ("policy",), "state-action-next-state", absorbing=True)
    obs, following = observations((1, 2, 2), (3, 4, 0)), observations((5, 6, 1), (7, 8, 1))
    rows = features(obs, torch.zeros(2, 2), following, torch.tensor([True, False]))
    assert rows.tolist() == [
        [1, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [3, 4, 1, 0, 0, 0, 0, 0, 7, 8, 0, 1, 0, 0],
    ]
    loop = features.absorbing_row(torch.device("cpu"))
    assert loop.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_the_policys_own_statistics_by_hand() -> None:
    policy = policy_with(actor_groups=("policy",))
    speeds = torch.tensor([[1.0, 0.0], [3.0, 8.0]])  # means 2, 4; standard deviations 1, 4
    policy.normalizers["policy/drift"].update(speeds)  # type: ignore[operator]
    features = TransitionFeatures(SPACE, ARM, ("policy",), "state-action-next-state")
    normalizer = SharedNormalizer(features, "policy", policy, extra=1)
    normalizer.refresh()
    row = torch.tensor([5.0, 0.0, 1, 0, 0, -1.0, 0.25, 2.0, 1000.0, 0, 1, 0, 77.0])
    expected = torch.tensor([3.0, -1.0, 1, 0, 0, -0.5, -0.5, 0.0, 10.0, 0, 1, 0, 77.0])
    torch.testing.assert_close(normalizer(row), expected)
    through_the_policy = policy._normalized(observations((5.0, 0.0, 0)), [("policy", "drift")])["policy", "drift"]
    torch.testing.assert_close(normalizer(row)[:2], through_the_policy[0])


def test_statistics_stay_until_they_are_refreshed() -> None:
    policy = policy_with(actor_groups=("policy",))
    features = TransitionFeatures(SPACE, ARM, ("policy",), "state")
    normalizer = SharedNormalizer(features, "policy", policy)
    policy.normalizers["policy/drift"].update(torch.tensor([[1.0, 0.0], [3.0, 8.0]]))  # type: ignore[operator]
    row = torch.tensor([5.0, 0.0, 1, 0, 0])
    assert torch.equal(normalizer(row), row)
    normalizer.refresh()
    assert not torch.equal(normalizer(row), row)
    assert not [name for name in normalizer.state_dict() if "drift" in name]  # the policy keeps its statistics


def test_own_statistics_absorb_what_they_are_given() -> None:
    features = TransitionFeatures(SPACE, ARM, ("policy/drift", "load"), "state")
    normalizer = SharedNormalizer(features, "own", policy_with(actor_groups=("policy",)))
    normalizer.absorb(observations((1, 0, 0), (3, 8, 0)))
    normalizer.refresh()
    expected = torch.tensor([3.0, -1.0, 1.0])  # load 0.1, 0.3: mean 0.2, standard deviation 0.1
    torch.testing.assert_close(normalizer(torch.tensor([5.0, 0.0, 0.3])), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="image is an image"):
        TransitionFeatures(SPACE, ARM, ("image",), "state")
    with pytest.raises(ValueError, match="did you mean policy"):
        TransitionFeatures(SPACE, ARM, ("polcy",), "state")
    with pytest.raises(ValueError, match="observations is empty"):
        TransitionFeatures(SPACE, ARM, (), "state")
    features = TransitionFeatures(SPACE, ARM, ("load",), "state")
    with pytest.raises(ValueError, match="does not normalise 'load'"):
        SharedNormalizer(features, "policy", policy_with(actor_groups=("policy",)))
