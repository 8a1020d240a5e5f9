"""The novelty bonus, by hand and over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.parts.harness import context_of
from torch import Tensor

from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts.random_network_distillation import RandomNetworkDistillation, RandomNetworkDistillationConfig
from understudy.ppo.optim import OptimizerConfig

SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)
POLICY = ActorCritic(SPACE, ACTIONS, PolicyConfig(hidden_sizes=(4,)))


def build(
    num_envs: int = 1, space: spaces.Dict = SPACE, gamma: float = 0.5, **options: Any
) -> RandomNetworkDistillation:
    context = context_of(space, ACTIONS, POLICY, num_envs, gamma=gamma)
    torch.manual_seed(0)
    return RandomNetworkDistillationConfig(**options).build(context)


def linear(**options: Any) -> RandomNetworkDistillation:
    """predictor(s) = s, target(s) = -s: the bonus is 2 ||s||."""
    none: tuple[int, ...] = ()
    part = build(num_outputs=2, predictor_hidden_sizes=none, target_hidden_sizes=none, **options)
    with torch.no_grad():
        for net, gain in ((part.predictor, 1.0), (part.target, -1.0)):
            weight, bias = net.parameters()
            weight.copy_(gain * torch.eye(2))
            bias.zero_()
    return part


def rollout(states: Tensor, valid: Tensor | None = None) -> TensorDict:
    T, N = states.shape[:2]
    data = TensorDict({"next_obs": {"policy": states}}, batch_size=[T, N])
    data["valid"] = torch.ones(T, N, dtype=torch.bool) if valid is None else valid
    return data


def bonus(part: RandomNetworkDistillation, rows: TensorDict) -> Tensor:
    with torch.no_grad():  # as the core calls it
        return part.reward(rows)


STATES = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])  # [2, 1, 2], norms 5 and 1


def test_the_bonus_by_hand() -> None:
    part = linear(normalize_observations=False, normalize_reward=False, reward_weight=0.25)
    torch.testing.assert_close(bonus(part, rollout(STATES)), torch.tensor([[10.0], [2.0]]))
    assert part.reward_weight.item() == 0.25


def test_the_bonus_in_units_of_its_discounted_sum() -> None:
    part = linear(normalize_observations=False)  # gamma 0.5
    # sums: 10, 10 * .5 + 2 = 7; population standard deviation 1.5
    torch.testing.assert_close(bonus(part, rollout(STATES)), torch.tensor([[10.0], [2.0]]) / 1.5)
    # the sum goes on over rollouts: 7 * .5 + 10 = 13.5, 8.75
    expected = float(np.std([10.0, 7.0, 13.5, 8.75]))
    torch.testing.assert_close(bonus(part, rollout(STATES)), torch.tensor([[10.0], [2.0]]) / expected)


def test_statistics_move_after_learning_not_before() -> None:
    part = linear(normalize_reward=False)
    torch.testing.assert_close(bonus(part, rollout(STATES)), torch.tensor([[10.0], [2.0]]))  # the identity at first
    assert part.normalizer is not None
    part.update(POLICY, rollout(STATES, torch.tensor([[True], [False]])))
    assert part.normalizer.count.item() == 1  # rows that are no transition are left out
    torch.testing.assert_close(part.normalizer.mean.float(), torch.tensor([3.0, 4.0]))


def test_what_is_visited_often_loses_its_bonus() -> None:
    part = build(
        num_envs=32,
        normalize_reward=False,
        normalize_observations=False,
        epochs=20,
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    known = torch.randn(2, 32, 2, generator=torch.Generator().manual_seed(1)) * 0.3
    new = known + 3.0
    target = [p.clone() for p in part.target.parameters()]
    before = bonus(part, rollout(known)).mean(), bonus(part, rollout(new)).mean()
    first = part.update(POLICY, rollout(known))["loss"]
    last = part.update(POLICY, rollout(known))["loss"]
    assert last < 0.3 * first
    after = bonus(part, rollout(known)).mean(), bonus(part, rollout(new)).mean()
    assert after[0] < 0.1 * before[0]
    assert after[1] > 20 * after[0]
    assert all(torch.equal(a, b) for a, b in zip(target, part.target.parameters()))


def test_rows_that_are_no_transition_teach_nothing() -> None:
    part = build(num_envs=2, epochs=1, minibatches=1)
    before = [p.clone() for p in part.predictor.parameters()]
    part.update(POLICY, rollout(torch.randn(2, 2, 2), torch.zeros(2, 2, dtype=torch.bool)))
    assert all(torch.equal(a, b) for a, b in zip(before, part.predictor.parameters()))


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        build(epochs=0)
    with pytest.raises(ValueError, match=r"did you mean '?policy"):
        build(observations=("polcy",))
    with pytest.raises(ValueError, match="only vectors"):
        build(space=spaces.Dict({"policy": spaces.Discrete(3)}))
    with pytest.raises(ValueError, match="observations must not be empty"):
        build(observations=())
