"""GAIL: its reward by hand, one normalisation for both sides, absorbing states, and that it learns from an expert."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tests.parts.harness import LEARNING, Replayed, beside_ppo, collected, record, steer
from torch import Tensor

from understudy.envs.base import VecEnv
from understudy.nn.heads import DistributionConfig
from understudy.parts.gail import Gail, GailConfig
from understudy.parts.shared.adversarial import add_policy_noise
from understudy.parts.shared.discriminator import DiscriminatorConfig, discriminator_reward
from understudy.ppo.ppo import PPO
from understudy.tasks.point_mass import PointMass

T, N = 8, 4
SMALL = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=2)
LINEAR = DiscriminatorConfig(hidden_sizes=(), disc_update_num=1)


def build(env: VecEnv, demonstrations: Any, *, policy: Any = None, ppo: Any = None, **options: Any) -> tuple[PPO, Gail]:
    settings = {"num_steps": T, "gamma": 0.9, "epochs": 2, "reward_weight": 0.0, "warmup_steps": 8, "minibatches": 1}
    config = GailConfig(demonstrations=str(demonstrations), **{"discriminator": SMALL, **options})
    return beside_ppo(env, config, "gail", policy=policy, **settings | (ppo or {}))


def test_the_reward_by_hand(point_mass: Any) -> None:
    """A linear discriminator on normalised state and action, in float64."""
    ppo, part = build(PointMass(N), point_mass, discriminator=LINEAR, reward_form="softplus")
    rollout = collected(ppo)
    layer = part.discriminator.network.mlp.layers[0]  # type: ignore[union-attr, index]
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    normalizer: Any = ppo.policy.normalizers["policy"]
    state = (rollout["obs", "policy"].double() - normalizer.mean) / (normalizer.var + 1e-8).sqrt()
    rows = torch.cat((state.clamp(-10.0, 10.0), rollout["action"].double().clamp(-1.0, 1.0)), dim=-1)
    expected = torch.log1p(torch.exp((rows @ weight.T).squeeze(-1) + bias))
    found = part.reward(rollout)
    assert found.shape == (T, N)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalization", ["policy", "own", "none"])
def test_equal_rows_look_equal_whatever_the_units(normalization: str, point_mass: Any) -> None:
    """Expert rows equal to the policy's cannot be told apart: they could, were either side alone normalised."""
    ppo, part = build(PointMass(N), point_mass, discriminator=LINEAR, normalization=normalization)
    rollout = collected(ppo)
    rollout["obs", "policy"].mul_(30.0).add_(100.0)  # units in which raw and normalised are far apart
    part.adversary.demonstrations = Replayed(rollout)  # type: ignore[assignment]
    ppo.policy.update_normalizers(rollout["obs"])
    for _ in range(3):
        part.reward(rollout)
        metrics = part.update(ppo.policy, rollout)
        torch.testing.assert_close(metrics["logit_pi"], metrics["logit_exp"], rtol=1e-4, atol=1e-4)
        assert metrics["acc_pi"] + metrics["acc_exp"] == pytest.approx(1.0)
    assert metrics["loss"] >= 2.0 * math.log(2.0) - 1e-4  # nothing to be learnt


def test_the_discriminator_sees_what_was_executed(point_mass: Any) -> None:
    ppo, part = build(PointMass(N), point_mass, policy={"distribution": DistributionConfig(init_std=5.0)})
    rollout = collected(ppo)
    assert rollout["action"].abs().max() > 1.0
    before = part.reward(rollout)
    rollout["action"].mul_(3.0)
    assert torch.equal(part.reward(rollout), before)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("policy", [{}, {"memory": "gru"}, {"action_bound": "tanh"}], ids=str)
def test_the_experts_actions_take_on_the_policys_noise(scale: float, policy: dict[str, Any], point_mass: Any) -> None:
    """Raw 0.1 of a space [-scale, scale] becomes 0.1 + std e, bounded as the policy's own actions are."""
    env = PointMass(N)
    env.action_space = spaces.Box(-scale, scale, (2,), np.float32)
    ppo, _ = build(env, point_mass, policy=policy, expert_noise=True)
    n = 20_000
    raw = torch.full((n, 2), 0.1)
    executed = scale * (raw.tanh() if policy.get("action_bound") == "tanh" else raw)
    log_std = torch.tensor([0.2, 0.5]).log()
    params = torch.cat((torch.randn(T, N, 2), log_std.expand(T, N, 2)), dim=-1)
    noise = add_policy_noise(ppo.policy, executed, params, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= scale
    if policy.get("action_bound") == "tanh":
        noise = torch.atanh((noise / scale).clamp(-1.0 + 1e-6, 1.0 - 1e-6)) * scale
    else:
        assert ((noise[:, 1] == scale).float().mean() - 0.0359).abs() < 0.01  # P(e > (1 - 0.1) / 0.5 = 1.8)
    # quantiles, which clipping leaves as they are
    quantiles = torch.quantile(noise / scale, torch.tensor([0.159, 0.5, 0.841]), dim=0)
    expected = torch.tensor([[-0.1, -0.4], [0.1, 0.1], [0.3, 0.6]])
    torch.testing.assert_close(quantiles, expected, atol=0.03, rtol=0.0)


def test_a_policy_that_explores_around_the_experts_actions_looks_like_the_expert(point_mass: Any) -> None:
    """The same mean, one side without noise: told apart; with the policy's noise on it: not."""

    def accuracy(expert_noise: bool) -> float:
        env = PointMass(N)
        config = DiscriminatorConfig(hidden_sizes=(32,), disc_update_num=4)
        ppo, part = build(env, point_mass, discriminator=config, expert_noise=expert_noise)
        rollout = collected(ppo)
        means, log_std = rollout["params"].chunk(2, dim=-1)
        part.adversary.demonstrations = Replayed(rollout)  # type: ignore[assignment]
        part.adversary.demonstrations.rows["executed_action"] = means.flatten(0, 1).clone()
        for _ in range(100):
            noise = torch.randn(means.shape, generator=part.generator)
            rollout["executed_action"] = (means + log_std.exp() * noise).clamp(-1.0, 1.0)
            metrics = part.update(ppo.policy, rollout)
        return float(metrics["acc_pi"] + metrics["acc_exp"]) / 2.0

    assert accuracy(expert_noise=False) > 0.8
    assert accuracy(expert_noise=True) < 0.6


def test_without_a_gaussian_policy_there_is_no_expert_noise(point_mass: Any) -> None:
    beta = {"distribution": DistributionConfig(kind="beta")}
    assert build(PointMass(N), point_mass, expert_noise=None)[1].adversary.noisy
    assert not build(PointMass(N), point_mass, expert_noise=None, policy=beta)[1].adversary.noisy
    assert not build(PointMass(N), point_mass)[1].adversary.noisy


def test_rows_of_an_overriding_expert_are_no_policy_rows(point_mass: Any) -> None:
    def learnt(spoil: bool) -> Tensor:
        ppo, part = build(PointMass(N), point_mass)
        rollout = collected(ppo)
        rollout["on_policy"] = torch.ones(T, N, dtype=torch.bool)
        rollout["on_policy"][2:4] = False
        if spoil:
            rollout["executed_action"][2:4] = 0.77
        part.reward(rollout)
        part.update(ppo.policy, rollout)
        return part.discriminator.optimizer.flat.clone()

    assert torch.equal(learnt(spoil=False), learnt(spoil=True))


def test_absorbing_states_by_hand(point_mass: Any) -> None:
    ppo, part = build(PointMass(N, max_episode_steps=5), point_mass, absorbing_states=True, reward_form="logit")
    rollout = collected(ppo)
    rollout["terminated"].zero_()
    plain = part.reward(rollout)
    rollout["terminated"][3, 1] = True
    loop = torch.zeros(1, part.features.size)
    loop[0, 4] = 1.0  # the indicator behind the four numbers of the state
    value = discriminator_reward(part.discriminator.logit(part.normalizer(loop)), "logit")
    expected = plain.clone()
    expected[3, 1] += 0.9 / (1.0 - 0.9) * value.item()  # 0.9 + 0.81 + ...
    torch.testing.assert_close(part.reward(rollout), expected)


def test_a_centred_reward_by_hand(point_mass: Any) -> None:
    """A constant taken off every step, those in the absorbing state included, of the mean over valid rows."""
    ppo, part = build(PointMass(N, max_episode_steps=5), point_mass, absorbing_states=True, center_reward=True)
    rollout = collected(ppo)
    rollout["terminated"].zero_()
    rollout["valid"][0] = False
    rollout["terminated"][3, 1] = True
    part.centers = False
    plain = part.reward(rollout)
    clean = rollout.clone()
    clean["terminated"].zero_()
    mean = part.reward(clean)[1:].mean()
    part.centers = True
    expected = plain - mean
    expected[3, 1] -= 0.9 / (1.0 - 0.9) * mean
    torch.testing.assert_close(part.reward(rollout), expected)
    assert part.reward(clean)[1:].mean().abs() < 1e-6


def test_one_loop_for_each_end(point_mass: Any) -> None:
    _, part = build(PointMass(N), point_mass, absorbing_states=True)
    state, generator = part.adversary.absorbing, torch.Generator().manual_seed(0)
    assert state is not None
    rows, terminated = torch.zeros(40_000, part.features.size), torch.arange(40_000) % 4 == 0
    loops = state.with_loops(rows, terminated, generator)[:, 4].mean()
    assert loops == pytest.approx(0.2, abs=0.01)  # one loop beside every four rows
    assert state.with_loops(rows, ~terminated & False, generator).sum() == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": "state"},
        {"inputs": "state-next-state", "absorbing_states": True, "expert_noise": None, "center_reward": True},
        {"inputs": "state-action-next-state", "reward_form": "log_d", "normalization": "own"},
        {"discriminator": DiscriminatorConfig(hidden_sizes=(8,), gradient_penalty=5.0, replay_size=64)},
        {"discriminator": DiscriminatorConfig(hidden_sizes=(8,), loss="least_squares"), "reward_form": "least_squares"},
        {"discriminator": DiscriminatorConfig(hidden_sizes=(8,), spectral_norm=True)},
        {"policy": {"memory": "gru", "memory_size": 8}},
        {"policy": {"memory": "gru", "memory_size": 8}, "expert_noise": True},
    ],
    ids=str,
)
def test_every_option_trains(options: dict[str, Any], point_mass: Any) -> None:
    ppo, part = build(PointMass(N, max_episode_steps=6), point_mass, **options)
    before = part.discriminator.optimizer.flat.clone()
    for _ in range(2):
        metrics = ppo.iterate()
    assert not torch.equal(part.discriminator.optimizer.flat, before)
    for name in ("loss", "acc_pi", "acc_exp", "logit_pi", "logit_exp", "penalty", "grad_norm"):
        assert math.isfinite(metrics[f"gail/{name}"])
    assert metrics["reward/gail"] == metrics["reward/gail"]
    assert ppo.collector.keeps_next_obs == ("next-state" in options.get("inputs", "state-action"))


def test_discrete_actions_and_dict_observations(scripted_env: Callable[..., Any], tmp_path: Any) -> None:
    inner = spaces.Dict({"pose": spaces.Box(-np.inf, np.inf, (2,), np.float32), "room": spaces.Discrete(3)})
    space = {"observation_space": spaces.Dict({"policy": inner}), "action_space": spaces.Discrete(3, start=2)}
    path = record(scripted_env(2, **space), lambda obs: torch.full((2,), 4), 4, tmp_path / "dict.npz")
    ppo, part = build(scripted_env(N, **space, seed=1), path)
    assert part.features.size == 2 + 3 + 3
    for _ in range(20):
        metrics = ppo.iterate()
    assert metrics["gail/acc_exp"] > 0.6  # the expert always takes action 4
    assert metrics["reward/gail"] > 0.0


def test_one_environment_is_enough(point_mass: Any) -> None:
    ppo, _ = build(PointMass(1, max_episode_steps=6), point_mass)
    assert math.isfinite(ppo.iterate()["gail/loss"])


def test_it_adds_to_the_tasks_reward_with_its_weight(point_mass: Any) -> None:
    ppo, part = build(PointMass(N), point_mass, reward_weight=0.25, ppo={"reward_weight": 2.0})
    rollout = collected(ppo)
    ppo._rewards(rollout, masked=False)
    torch.testing.assert_close(rollout["reward"], 2.0 * rollout["task_reward"] + 0.25 * part.reward(rollout))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward_form": "softmax"}, "did you mean softplus"),
        ({"inputs": "state_action"}, "did you mean state-action"),
        ({"normalization": "policies"}, "did you mean '?policy"),
        ({"observations": ("polcy",)}, "did you mean '?policy"),
        ({"observations": ()}, "observations must not be empty"),
        ({"absorbing_states": True, "ppo": {"gamma": 1.0}}, "gamma must be below 1"),
        ({"expert_noise": True, "policy": {"distribution": DistributionConfig(kind="beta")}}, "this policy is not one"),
        ({"policy": {"normalize_observations": False}}, "choose normalization='own'"),
        ({"discriminator": DiscriminatorConfig(disc_update_num=100)}, "cannot be split"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str, point_mass: Any) -> None:
    with pytest.raises(ValueError, match=words):
        build(PointMass(N), point_mass, **options)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["right", "flipped"])
def test_it_learns_a_task_from_demonstrations_alone(sign: float, tmp_path: Any) -> None:
    """PointMass: the first policy returns about -80, this expert about -4; without the task's reward GAIL passes -15.

    With the sign of the reward flipped it must not.
    """
    path = record(PointMass(16), steer, 48, tmp_path / "expert.npz")
    ppo, _ = build(PointMass(32), path, reward_form="logit", reward_weight=sign, **LEARNING)
    returns = [ppo.iterate()["episode/return"] for _ in range(50)]
    assert (returns[-1] > -15.0) == (sign > 0.0)
    assert sign > 0.0 or returns[-1] < -25.0
