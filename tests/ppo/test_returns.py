"""Reward scaling, units of the critic, advantages of a rollout with and without rows that do not count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.ppo.returns import RewardScaler, ValueNormalizer, fill_advantages

CPU = torch.device("cpu")


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(-1)


def rollout(**columns: Tensor) -> TensorDict:
    T, N = columns["reward"].shape
    data = {name: torch.zeros(T, N) for name in ("value", "next_value", "advantage", "value_target")}
    data |= {name: torch.zeros(T, N, dtype=torch.bool) for name in ("terminated", "truncated")}
    data["valid"] = torch.ones(T, N, dtype=torch.bool)
    return TensorDict({**data, **columns}, batch_size=[T, N])


def six_steps() -> TensorDict:
    """The vector of the design: terminated at t = 1, time limit at t = 3, the rollout ends at t = 5."""
    return rollout(
        reward=column(1.0, 0.5, -0.2, 0.3, 0.8, 0.1),
        value=column(0.5, 0.4, 0.9, 1.1, 0.2, 0.7),
        next_value=column(0.4, 9.9, 1.1, 0.6, 0.7, 0.3),
        terminated=column(0, 1, 0, 0, 0, 0).bool(),
        truncated=column(0, 0, 0, 1, 0, 0).bool(),
    )


def test_six_steps() -> None:
    data = six_steps()
    returns = fill_advantages(data, ValueNormalizer("none", CPU), 0.99, 0.95, masked=False)
    advantage = column(0.990050, 0.1, -0.204743, -0.206, 1.008028, -0.303)
    torch.testing.assert_close(data["advantage"], advantage, rtol=1e-5, atol=1e-6)
    expected = column(1.490050, 0.5, 0.695257, 0.894, 1.208028, 0.397)
    torch.testing.assert_close(data["value_target"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(returns, expected, rtol=1e-5, atol=1e-6)


def test_an_invalid_row_is_the_end_of_its_episode() -> None:
    """gamma = 0.5, lambda = 0.5; row 2 does not count, whatever it holds.

    t = 3: 4 + 0.5 * 8 - 2 = 6.  t = 2: 0.  t = 1: 1 + 0.5 * V(s_2) 6 - 2 = 2, nothing carried.
    t = 0: 1 + 0.5 * 2 - 1 + 0.25 * 2 = 1.5.
    """
    for junk, flags in ((0.0, False), (1e6, False), (-3.0, True)):
        data = rollout(
            reward=column(1.0, 1.0, junk, 4.0),
            value=column(1.0, 2.0, 6.0, 2.0),
            next_value=column(2.0, 6.0, 1e6 if flags else junk, 8.0),
            truncated=column(0, 0, flags, 0).bool(),
            valid=column(1, 1, 0, 1).bool(),
        )
        fill_advantages(data, ValueNormalizer("none", CPU), 0.5, 0.5, masked=True)
        torch.testing.assert_close(data["advantage"], column(1.5, 2.0, 0.0, 6.0))
        torch.testing.assert_close(data["value_target"], column(2.5, 4.0, 6.0, 8.0))


def test_masking_without_an_invalid_row_changes_no_bit() -> None:
    masked, plain = six_steps(), six_steps()
    fill_advantages(masked, ValueNormalizer("none", CPU), 0.99, 0.95, masked=True)
    fill_advantages(plain, ValueNormalizer("none", CPU), 0.99, 0.95, masked=False)
    assert torch.equal(masked["advantage"], plain["advantage"])
    assert torch.equal(masked["value_target"], plain["value_target"])


# ---------------------------------------------------------------------- units of the critic


def normalizer(kind: Any) -> ValueNormalizer:
    """After returns 1, 3, 5, 7 (and one that does not count): mean 4, variance 5."""
    made = ValueNormalizer(kind, CPU)
    made.update(torch.tensor([[1.0, 3.0], [5.0, 7.0], [999.0, 4.0]])[:, :1], torch.tensor([[True], [True], [False]]))
    made.update(torch.tensor([[3.0, 7.0]]), torch.tensor([[True, True]]))
    return made


@pytest.mark.parametrize(
    ("kind", "value", "reward_units"),
    [("none", 2.0, 2.0), ("scale", 2.0, 2.0 * math.sqrt(5.0)), ("standardize", 2.0, 2.0 * math.sqrt(5.0) + 4.0)],
)
def test_units_by_hand(kind: Any, value: float, reward_units: float) -> None:
    made = normalizer(kind)
    there = made.to_reward_units(torch.tensor(value))
    torch.testing.assert_close(there, torch.tensor(reward_units))
    torch.testing.assert_close(made.to_critic_units(there), torch.tensor(value))
    assert there.dtype == torch.float32


@pytest.mark.parametrize("kind", ["none", "scale", "standardize"])
def test_units_before_the_first_update_are_the_rewards(kind: Any) -> None:
    made = ValueNormalizer(kind, CPU)
    x = torch.tensor([-2.0, 0.0, 5.0])
    torch.testing.assert_close(made.to_reward_units(x), x)
    torch.testing.assert_close(made.to_critic_units(x), x)


def test_scaled_values_make_the_advantages_and_returns_go_back() -> None:
    """Tianshou's return scaling: V times the standard deviation before GAE, returns divided by it; the mean stays.

    std = sqrt(5), gamma = lambda = 0.5. Row 1: 3 + 0.5 * 4 sqrt5 - 2 sqrt5 = 3. Row 0: 1 + sqrt5 - sqrt5 + 0.25 * 3.
    """
    root = math.sqrt(5.0)
    data = rollout(reward=column(1.0, 3.0), value=column(1.0, 2.0), next_value=column(2.0, 4.0))
    made = normalizer("scale")
    returns = fill_advantages(data, made, 0.5, 0.5, masked=False)
    torch.testing.assert_close(data["advantage"], column(1.75, 3.0))
    torch.testing.assert_close(returns, column(1.75 + root, 3.0 + 2.0 * root))
    torch.testing.assert_close(data["value_target"], column(1.75 / root + 1.0, 3.0 / root + 2.0))
    assert made.statistics.count == 4.0  # using them does not move them


def test_standardised_values_make_the_same_advantages_as_plain_ones() -> None:
    made, plain = normalizer("standardize"), ValueNormalizer("none", CPU)
    data, reference = six_steps(), six_steps()
    for name in ("value", "next_value"):
        data[name] = made.to_critic_units(data[name])
    fill_advantages(data, made, 0.99, 0.95, masked=False)
    fill_advantages(reference, plain, 0.99, 0.95, masked=False)
    torch.testing.assert_close(data["advantage"], reference["advantage"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.to_reward_units(data["value_target"]), reference["value_target"])


# ---------------------------------------------------------------------- reward scaling


class PlainScaler:
    """One environment after another, one step after another, all sums kept."""

    def __init__(self, gamma: float, clip: float, num_envs: int) -> None:
        self.gamma, self.clip = gamma, clip
        self.running = [0.0] * num_envs
        self.sums: list[float] = []

    def __call__(self, reward: Tensor, ended: Tensor, valid: Tensor) -> Tensor:
        for n in range(reward.shape[1]):
            for t in range(reward.shape[0]):
                self.running[n] += float(reward[t, n])
                if valid[t, n]:
                    self.sums.append(self.running[n])
                self.running[n] = 0.0 if ended[t, n] else self.gamma * self.running[n]
        mean = sum(self.sums) / len(self.sums)
        variance = sum((x - mean) ** 2 for x in self.sums) / len(self.sums)
        return (reward / math.sqrt(variance + 1e-8)).clamp(-self.clip, self.clip)


@pytest.mark.parametrize("clip", [10.0, 0.5])
def test_rewards_are_scaled_as_a_plain_loop_does(clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, plain = RewardScaler(3, 0.9, clip, CPU), PlainScaler(0.9, clip, 3)
    for _ in range(3):
        reward = torch.randn(5, 3, generator=generator) * 4.0
        ended = torch.rand(5, 3, generator=generator) < 0.3
        valid = torch.rand(5, 3, generator=generator) < 0.8
        reward = torch.where(valid, reward, 0.0)
        torch.testing.assert_close(ours(reward, ended, valid), plain(reward, ended, valid), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.running, torch.tensor(plain.running))


def test_rewards_by_hand() -> None:
    """gamma 0.5: sums 2, 3 + 1 = 4, end, 6. Mean 4, variance 8/3: 2 / 1.633 = 1.2247, ..., clipped to 3."""
    scaler = RewardScaler(1, 0.5, 3.0, CPU)
    ended = column(0, 1, 0).bool()
    scaled = scaler(column(2.0, 3.0, 6.0), ended, torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(scaled, column(1.2247449, 1.8371173, 3.0))
    assert scaler.running.tolist() == [3.0]


def test_reward_statistics_are_saved(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(), reward_normalization=True, value_normalization="scale")
    ppo.iterate()
    other = make_ppo(scripted_env(), reward_normalization=True, value_normalization="scale", seed=1)
    other.load_state_dict(ppo.state_dict())
    for module in ("reward_scaler", "value_normalizer"):
        state, loaded = getattr(ppo, module).state_dict(), getattr(other, module).state_dict()
        for name, x in state.items():
            if name != "running":  # the environment cannot be restored: its episodes begin anew
                assert torch.equal(loaded[name], x), name
        assert float(state["statistics.count"]) > 0.0
    assert other.reward_scaler.running.tolist() == [0.0] * 3
