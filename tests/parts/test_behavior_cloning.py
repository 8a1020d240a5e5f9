"""Behaviour cloning: its losses by hand, its draws, and that it learns an expert, beside PPO and with a memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tests.parts.harness import beside_ppo, record, steer
from torch import Tensor

from understudy.core.schedules import Schedule
from understudy.nn.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, MultiCategorical
from understudy.parts.behavior_cloning import (
    BehaviorCloning,
    BehaviorCloningConfig,
    half_squared_norm,
    smoothed_log_prob,
    squared_error,
)
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.ppo import PPO
from understudy.tasks.point_mass import PointMass

N, T = 8, 16


def float64(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_smoothed_log_probs_by_hand() -> None:
    p = [0.5, 0.25, 0.25]
    uniform = (math.log(0.5) + 2.0 * math.log(0.25)) / 3.0
    expected = 0.9 * math.log(0.25) + 0.1 * uniform
    found = smoothed_log_prob(Categorical(float64(p).log()), torch.tensor([1]), 0.1)
    assert found.tolist() == pytest.approx([expected], rel=1e-12)
    # two blocks: the one above, and a fair coin whose smoothed log-prob is log 1/2 whatever is smoothed
    two = MultiCategorical(float64([*p, 0.5, 0.5]).log(), (3, 2))
    found = smoothed_log_prob(two, torch.tensor([[1, 0]]), 0.1)
    assert found.tolist() == pytest.approx([expected + math.log(0.5)], rel=1e-12)
    # a bit with p = 1/4: (1 - e) log p + e/2 (log p + log (1 - p))
    bit = Bernoulli(float64([math.log(1.0 / 3.0)]))
    expected = 0.9 * math.log(0.25) + 0.05 * (math.log(0.25) + math.log(0.75))
    assert smoothed_log_prob(bit, torch.tensor([[1]]), 0.1).tolist() == pytest.approx([expected], rel=1e-12)
    with pytest.raises(ValueError, match="for discrete actions"):
        smoothed_log_prob(DiagGaussian(torch.zeros(1, 2), torch.zeros(2)), torch.zeros(1, 2), 0.1)


def test_squared_error_and_norm_by_hand() -> None:
    distribution = DiagGaussian(float64([1.0, -2.0]), float64(0.0, 0.0))
    assert squared_error(distribution, float64([0.5, 0.0])).tolist() == [(0.25 + 4.0) / 2.0]
    with pytest.raises(ValueError, match="do not have the shape"):
        squared_error(distribution, float64(0.5))
    assert half_squared_norm((float64(1.0, 2.0), float64([3.0]))).item() == 7.0


def build(path: Path | str, *, memory: str = "none", ppo: Any = None, **options: Any) -> tuple[PPO, BehaviorCloning]:
    config = BehaviorCloningConfig(demonstrations=str(path), **{"batch_size": 64, **options})
    settings = {"num_steps": T, "epochs": 4, "minibatches": 4, "warmup_steps": 4, **(ppo or {})}
    policy = {"hidden_sizes": (32,), "memory": memory, "memory_size": 16}
    return beside_ppo(PointMass(N, max_episode_steps=40), config, "bc", policy=policy, **settings)


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    return record(PointMass(4, max_episode_steps=40), steer, 12, tmp_path / "expert.npz")


def test_the_loss_is_that_of_the_drawn_rows(expert: Path) -> None:
    _, part = build(expert, loss="nll", coef=0.5, entropy_coef=0.25, l2_coef=0.125)
    policy = build(expert)[0].policy
    drawn = part.draw(part.demonstrations)
    assert drawn.batch_size == (64,)
    assert set(drawn["obs"].keys()) == {"policy"}  # what only the critic sees is not even loaded
    loss, metrics = part.clone(policy, drawn["obs"], drawn["action"], drawn["is_first"])
    out = policy.distribution(drawn["obs"])
    norm = sum(float(p.detach().square().sum()) for p in (*policy.actor.parameters(), *policy.head.parameters()))
    expected = -out.log_prob(drawn["action"]).mean() - 0.25 * out.entropy().mean() + 0.125 * norm / 2.0
    torch.testing.assert_close(loss, expected)
    assert metrics["log_prob"].item() == pytest.approx(out.log_prob(drawn["action"]).mean().item(), rel=1e-6)


def test_a_memory_is_cloned_without_what_only_the_critic_sees(expert: Path) -> None:
    _, part = build(expert, memory="gru", loss="nll")
    policy = build(expert, memory="gru")[0].policy
    drawn = part.draw(part.demonstrations)
    assert drawn.batch_size == (16, 4)
    assert set(drawn["obs"].keys()) == {"policy"}
    loss, _ = part.clone(policy, drawn["obs"], drawn["action"], drawn["is_first"])
    whole = drawn["obs"].clone()
    whole["critic"] = torch.zeros(16, 4, 6)
    out = policy(whole, None, drawn["is_first"])
    torch.testing.assert_close(loss, -out.distribution.log_prob(drawn["action"]).mean())


def test_auto_is_the_squared_error_for_box_actions(expert: Path) -> None:
    _, part = build(expert)
    policy = build(expert)[0].policy
    drawn = part.draw(part.demonstrations)
    loss, metrics = part.clone(policy, drawn["obs"], drawn["action"], drawn["is_first"])
    expected = (policy.distribution(drawn["obs"]).mode() - drawn["action"]).square().mean()
    torch.testing.assert_close(loss, expected)
    assert metrics.keys() == {"loss", "mse"}


def agreement(ppo: PPO, expert: Callable[..., Tensor]) -> float:
    """Mean squared error of the policy's mode against the expert, on states that neither was trained on."""
    env = PointMass(256)
    obs, is_first = env.reset(7), torch.ones(256, dtype=torch.bool)
    state = ppo.policy.initial_state(256)
    with torch.no_grad():
        mode = ppo.policy(obs, state, is_first).distribution.mode()
    return float((mode.clamp(-1, 1) - expert(obs)).square().mean())


@pytest.mark.parametrize(("memory", "loss", "share"), [("none", "nll", 0.3), ("none", "mse", 0.3), ("gru", "nll", 0.5)])
def test_it_learns_the_expert_beside_ppo(expert: Path, memory: str, loss: str, share: float) -> None:
    options = {"loss": loss, "sequence_length": 8, "coef": Schedule(kind="linear", start=4.0, end=2.0)}
    still = {"optimizer": OptimizerConfig(learning_rate=3e-3, max_grad_norm=None), "value_coef": 0.0}
    ppo, part = build(expert, memory=memory, ppo=still, **options)
    # only the expert speaks: a broken loss then learns nothing
    before = agreement(ppo, steer)
    for _ in range(15):
        ppo.iterate()
    assert before > 0.3
    assert agreement(ppo, steer) < share * before
    assert part.coef().item() == 2.0  # the schedule has run its length


def test_discrete_actions_report_their_accuracy(tmp_path: Path, scripted_env: Any) -> None:
    env = scripted_env(2, action_space=spaces.Discrete(4, start=2))
    path = record(env, lambda obs: 2 + (obs["policy"][:, 0] > 0).long(), 16, tmp_path / "bits.npz")
    ppo, part = beside_ppo(env, BehaviorCloningConfig(demonstrations=str(path), label_smoothing=0.1), "bc")
    policy = ppo.policy
    drawn = part.draw(part.demonstrations)
    assert set(drawn["action"].tolist()) == {0, 1}  # raw: counted from 0
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    for _ in range(60):
        loss, metrics = part.clone(policy, drawn["obs"], drawn["action"], drawn["is_first"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["accuracy"] > 0.95
    # the best that a smoothed target allows: 0.925 log 0.925 + 3 * 0.025 log 0.025
    assert metrics["log_prob"].item() == pytest.approx(0.925 * np.log(0.925) + 0.075 * np.log(0.025), abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing is for discrete actions"),
        ({"loss": "mle"}, "loss must be one of auto, nll, mse"),
        ({"label_smoothing": 1.0}, r"must lie in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"l2_coef": -1.0}, "l2_coef must be at least 0"),
        ({"memory": "gru", "sequence_length": 7}, "batch_size that sequence_length divides"),
    ],
)
def test_options_that_cannot_work_are_refused(expert: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(expert, **options)


def test_no_demonstrations_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="no demonstrations were named"):
        build("")


def test_every_distribution_can_be_cloned() -> None:
    families: list[Distribution] = [
        DiagGaussian(torch.zeros(3, 2), torch.zeros(2)),
        Categorical(torch.zeros(3, 4)),
        MultiCategorical(torch.zeros(3, 5), (2, 3)),
        Bernoulli(torch.zeros(3, 2)),
    ]
    for family in families:
        assert smoothed_log_prob(family, family.mode(), 0.0).shape == (3,)
