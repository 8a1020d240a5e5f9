"""Acting prepares observations as collecting does, under any name, and says what it expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

import understudy as us
from understudy.nn import check_policy
from understudy.nn.heads import DistributionConfig

ACTION = spaces.Box(-1, 1, (2,), np.float32)


def policy_for(space: spaces.Space[Any], **config: Any) -> us.ActorCritic:
    torch.manual_seed(0)
    space = space if isinstance(space, spaces.Dict) else spaces.Dict({"policy": space})
    options = us.PolicyConfig(hidden_sizes=(8,), **{"distribution": DistributionConfig(head_gain=1.0), **config})
    return us.ActorCritic(space, ACTION, options)


def test_other_dtypes_of_the_same_values_act_the_same() -> None:
    policy = policy_for(spaces.Box(0, 255, (3,), np.uint8))
    pixels = np.array([3, 200, 255], np.uint8)
    expected = policy.act(pixels)[0]
    for given in (pixels.astype(np.int64), pixels.tolist(), pixels.astype(np.uint32)):
        assert np.array_equal(policy.act(given)[0], expected)
    batch = TensorDict({"policy": torch.tensor([[3, 200, 255]])}, [1])  # int64
    assert np.array_equal(policy.act(batch)[0][0].numpy(), expected)
    real = policy_for(spaces.Box(-1, 1, (3,), np.float32))
    assert np.array_equal(real.act(np.ones(3))[0], real.act(np.ones(3, np.int8))[0])


def test_a_space_without_dimensions() -> None:
    policy = policy_for(spaces.Box(-1, 1, (1,), np.float32))  # what a Box of shape () becomes
    alone = policy.act(np.array([0.5]))[0]
    assert np.array_equal(policy.act(0.5)[0], alone)
    assert np.allclose(policy.act(np.array([0.5, 0.1, 0.2]))[0][0], alone)
    assert np.allclose(policy.act(np.array([[0.5], [0.1]]))[0][0], alone)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4), r"'policy' has shape \(4,\): act takes \(3,\), or \('N', 3\) for N of them"),
        (np.zeros((2, 2, 3)), r"has shape \(2, 2, 3\)"),
        (["a", "b", "c"], "'policy' is .*not numbers"),
        (None, r"'policy' has shape \(\)"),
        ({"polcy": np.zeros(3)}, "observation 'policy' does not exist; did you mean polcy"),
        (TensorDict({"other": torch.zeros(2, 3)}, [2]), r"act needs observation 'policy' .* got \['other'\]"),
        (TensorDict({"policy": torch.zeros(2, 4)}, [2]), r"'policy' has shape \(2, 4\)"),
        (TensorDict({"policy": torch.zeros(3)}, []), r"in a batch \[\]"),
    ],
)
def test_act_says_what_it_expected(obs: Any, message: str) -> None:
    space = spaces.Dict({"policy": spaces.Box(-1, 1, (3,), np.float32)})
    with pytest.raises(ValueError, match=message):
        policy_for(space).act(obs)


def test_act_refuses_floats_for_whole_numbers_and_what_lies_outside() -> None:
    for space, obs, message in (
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.5, 1]), "is float64, but its space has whole numbers"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([256, 1]), "holds 256"),
        (spaces.Discrete(3, start=1), 0, "holds 0"),
    ):
        with pytest.raises(ValueError, match=message):
            policy_for(space).act(obs)
    two = policy_for(spaces.Dict({"a": ACTION, "b": ACTION}), actor_groups=("a", "b"))
    with pytest.raises(ValueError, match="differ in their batch"):
        two.act({"a": np.zeros((3, 2)), "b": np.zeros(2)})


@pytest.mark.parametrize("name", ["train", "type", "items", "to", "keys", "a.b", "x/y", "", "100%"])
def test_groups_and_components_of_any_name_act_and_load(name: str) -> None:
    sample = np.array([0.3, -0.2], np.float32)
    group = policy_for(spaces.Dict({name: ACTION}), actor_groups=(name,))
    component = policy_for(spaces.Dict({"policy": spaces.Dict({name: ACTION})}))
    for policy, batch in ((group, {name: sample}), (component, {"policy": {name: sample}})):
        policy.update_normalizers(TensorDict(batch, []).apply(torch.as_tensor).unsqueeze(0).expand(9))
        action = policy.act({name: sample})[0]
        again = us.ActorCritic(policy.observation_space, ACTION, policy.config)
        again.load_state_dict(policy.state_dict())
        assert np.array_equal(again.act({name: sample})[0], action)


# ------------------------------------------------------------------------------- networks of the user's own


class Net(nn.Module):
    """A trunk of four outputs, changed by `change`."""

    out_features = 4

    def __init__(self, change: Any = lambda y: y, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.change = nn.Sequential(nn.Linear(3, 4), *layers), change

    def forward(self, x: torch.Tensor) -> Any:
        return self.change(self.layers(x))


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        (lambda: Net(lambda y: y[..., :2]), r"trunk Net returns \[2, 2\] for two rows, but out_features says \[2, 4\]"),
        (lambda: Net(lambda y: y.double()), "trunk Net returns torch.float64.*float32"),
        (lambda: Net(lambda y: (y, None)), "must return one tensor .* returns a tuple"),
        (lambda: Net(lambda y: y * float("nan")), "trunk Net returns numbers that are not finite"),
        (lambda: nn.Linear(5, 4), r"trunk Linear cannot read features \[2, 3\] .RuntimeError"),
        (
            lambda: Net(lambda y: y, nn.Dropout(0.5)),
            "for the same observation the second time: take dropout",
        ),
        (lambda: Net(lambda y: nn.functional.dropout(y, 0.5)), "the second time: take dropout"),
        (lambda: Net(lambda y: y, nn.BatchNorm1d(4)), "depend on the other rows: .*batch normalisation"),
        (lambda: Net(lambda y: y - y.mean(0, keepdim=True)), "depend on the other rows"),
    ],
)
def test_what_a_trunk_must_not_do_is_named(trunk: Any, message: str) -> None:
    spaces_ = spaces.Dict({"policy": spaces.Box(-1, 1, (3,), np.float32)}), ACTION
    with pytest.raises(ValueError, match=message):
        us.ActorCritic(*spaces_, us.PolicyConfig(memory="none"), trunk=trunk())
    fine = us.ActorCritic(*spaces_, trunk=Net(lambda y: y, nn.LayerNorm(4)))
    before = {key: x.clone() for key, x in fine.state_dict().items()}
    state = torch.get_rng_state()
    assert check_policy(fine).training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[key]) for key, x in fine.state_dict().items())


def test_observations_without_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="the observations policy have no entries"):
        policy_for(spaces.Box(-1, 1, (0,), np.float32))
