"""AIRL: f, logits and reward by hand, time limits that are no ends, and the reward function it recovers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tests.parts.harness import LEARNING, Replayed, beside_ppo, collected, record, steer
from torch import Tensor

from understudy.envs.registry import EnvConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts.airl import AirlConfig, AirlNetwork, shaped_reward
from understudy.parts.shared.discriminator import DiscriminatorConfig
from understudy.ppo.config import PPOConfig
from understudy.tasks.point_mass import PointMass

T, N = 8, 4
SMALL = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=2)


def build(env: PointMass, demonstrations: Any, *, policy: Any = None, ppo: Any = None, **options: Any) -> Any:
    settings = {"num_steps": T, "gamma": 0.9, "reward_weight": 0.0, "warmup_steps": 8, "minibatches": 1}
    config = AirlConfig(demonstrations=str(demonstrations), **{"discriminator": SMALL, **options})
    return beside_ppo(env, config, "airl", policy=policy, **settings | (ppo or {}))


# ---------------------------------------------------------------------- by hand


def test_f_by_hand() -> None:
    base, potential, following = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, -2.0], [0.5, 3.0], [4.0, 6.0]))
    continues = torch.tensor([1.0, 0.0], dtype=torch.float64)  # the second row terminated: h(s') does not count
    expected = torch.tensor([1.0 + 0.9 * 4.0 - 0.5, -2.0 - 3.0], dtype=torch.float64)
    torch.testing.assert_close(shaped_reward(base, potential, following, continues, 0.9), expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="must have one shape"):
        shaped_reward(base, potential, following, continues.unsqueeze(-1), 0.9)


def mlp64(mlp: Any, x: Tensor) -> Tensor:
    """A network of linear layers and ReLUs, in float64 and by its definition."""
    linear = [layer for layer in mlp.layers if isinstance(layer, torch.nn.Linear)]
    for layer in linear[:-1]:
        x = (x @ layer.weight.detach().double().T + layer.bias.detach().double()).clamp(min=0.0)
    return (x @ linear[-1].weight.detach().double().T + linear[-1].bias.detach().double()).squeeze(-1)


@pytest.mark.parametrize("form", ["logit", "shaped", "softplus"])
def test_the_reward_of_a_rollout_by_hand(form: str, point_mass: Any) -> None:
    """f - log pi from the networks' definition, in float64; a terminated, a truncated and an ordinary row."""
    ppo, part = build(PointMass(N, max_episode_steps=6), point_mass, reward_form=form)
    rollout = collected(ppo)
    rollout["terminated"][2, 1] = True
    assert rollout["truncated"].any()
    normalizer: Any = ppo.policy.normalizers["policy"]

    def normalized(x: Tensor) -> Tensor:
        return ((x.double() - normalizer.mean) / (normalizer.var + 1e-8).sqrt()).clamp(-10.0, 10.0)

    network = part.discriminator.network
    state, following = normalized(rollout["obs", "policy"]), normalized(rollout["next_obs", "policy"])
    action = rollout["action"].double().clamp(-1.0, 1.0)
    f = mlp64(network.base, torch.cat((state, action), dim=-1)) - mlp64(network.potential, state)
    f = f + 0.9 * (~rollout["terminated"]).double() * mlp64(network.potential, following)
    mean, log_std = rollout["params"].double().chunk(2, dim=-1)
    log_prob = (-0.5 * ((action - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)
    expected = {"logit": f - log_prob, "shaped": f, "softplus": torch.log1p(torch.exp(f - log_prob))}[form]
    torch.testing.assert_close(part.reward(rollout).double(), expected, rtol=1e-5, atol=1e-5)


def test_absorbing_states_by_hand(point_mass: Any) -> None:
    """The end leads to s_a: r there is f(s, a, s_a) - log pi, then g(s_a) + 0.9 h(s_a) - h(s_a) at each later step."""
    ppo, part = build(PointMass(N, max_episode_steps=6), point_mass, absorbing_states=True)
    rollout = collected(ppo)
    rollout["terminated"].zero_()
    plain = part.reward(rollout)
    rollout["terminated"][3, 1] = True
    network, normalizer = part.discriminator.network, part.normalizer
    # zeros before normalisation, and the indicator behind the four numbers of the state
    absorbed = torch.cat((normalizer.shift[:4].clamp(-10.0, 10.0), torch.ones(1)))
    still = network.base(torch.cat((absorbed, torch.zeros(2)))).item()
    there = network.potential(absorbed).item()
    following = normalizer.shift[:4] + rollout["next_obs", "policy"][3, 1] * normalizer.scale[:4]
    before = network.potential(torch.cat((following.clamp(-10.0, 10.0), torch.zeros(1)))).item()
    expected = plain.clone()
    expected[3, 1] += 0.9 * (there - before)  # s_a follows in place of the observation
    expected[3, 1] += 0.9 / (1.0 - 0.9) * (still + 0.9 * there - there)
    torch.testing.assert_close(part.reward(rollout), expected)


def test_log_pi_is_that_of_the_experts_noisy_action(point_mass: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo, part = build(PointMass(N), point_mass, expert_noise=True)
    rollout, seen = collected(ppo), []
    fit = part.discriminator.fit

    def watched_fit(policy: Tensor, expert: Tensor, *rest: Any) -> Any:
        seen.append(expert)
        return fit(policy, expert, *rest)

    monkeypatch.setattr(part.discriminator, "fit", watched_fit)
    part.reward(rollout)
    part.update(ppo.policy, rollout)
    state, action, log_prob = seen[0][:, :4], seen[0][:, 4:6], seen[0][:, -1]
    assert (action.abs() == 1.0).any()  # with noise of std 1, bounded as the policy's own
    behaviour = ppo.policy.distribution(TensorDict({"policy": state}, [len(state)]))
    torch.testing.assert_close(log_prob, behaviour.log_prob(action))


def test_a_time_limit_is_not_the_end_of_the_task(point_mass: Any) -> None:
    ppo, part = build(PointMass(N, max_episode_steps=6), point_mass)
    rollout = collected(ppo)
    before = part.reward(rollout)
    rollout["truncated"].logical_not_()
    assert torch.equal(part.reward(rollout), before)
    rollout["terminated"][3] = True
    changed = part.reward(rollout) != before
    assert changed[3].all()
    assert changed.sum() == N


def test_equal_rows_look_equal_to_the_last_column(point_mass: Any) -> None:
    """Expert rows equal to the policy's, clipped actions among them, cannot be told apart: states, actions, log pi."""
    wide = {"distribution": DistributionConfig(init_std=3.0)}
    config = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=1)
    ppo, part = build(PointMass(N), point_mass, policy=wide, discriminator=config)
    rollout = collected(ppo)
    assert (rollout["executed_action"].abs() == 1.0).any()
    for group in ("obs", "next_obs"):
        rollout[group, "policy"].mul_(30.0).add_(100.0)
    ppo.policy.update_normalizers(rollout["obs"])
    ppo.collector.evaluate()
    part.adversary.demonstrations = Replayed(rollout)
    part.reward(rollout)
    metrics = part.update(ppo.policy, rollout)
    torch.testing.assert_close(metrics["logit_pi"], metrics["logit_exp"], rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------- the recovered reward


def test_the_recovered_reward_is_a_function_of_raw_observations(point_mass: Any) -> None:
    ppo, part = build(PointMass(N), point_mass)
    for _ in range(2):
        ppo.iterate()
    reward = part.reward_function()
    obs = TensorDict({"policy": torch.randn(5, 4)}, batch_size=[5])
    action = torch.rand(5, 2) * 2.0 - 1.0
    normalizer = part.normalizer
    state = (normalizer.shift[:4] + obs["policy"] * normalizer.scale[:4]).clamp(-10.0, 10.0)
    rows = torch.cat((state, action), dim=-1)
    found = reward(obs, action)
    torch.testing.assert_close(found, part.discriminator.network.base(rows).squeeze(-1).detach())
    ppo.iterate()
    assert torch.equal(reward(obs, action), found)  # a copy: training goes on without it
    assert not torch.equal(part.reward_function()(obs, action), found)


def test_a_reward_of_the_next_state_asks_for_it(point_mass: Any) -> None:
    ppo, part = build(PointMass(N), point_mass, inputs="state-next-state")
    ppo.iterate()
    obs = TensorDict({"policy": torch.randn(5, 4)}, batch_size=[5])
    with pytest.raises(ValueError, match="pass next_obs"):
        part.reward_function()(obs, torch.zeros(5, 2))
    assert part.reward_function()(obs, torch.zeros(5, 2), obs).shape == (5,)


def test_the_reward_is_saved_in_the_run(point_mass: Any, tmp_path: Any) -> None:
    from understudy.runs.config import EvaluationConfig, LoggingConfig, TrainConfig
    from understudy.tools.reward import load_reward
    from understudy.training.loop import train

    config = TrainConfig(
        total_steps=2 * T * N,
        run_dir=str(tmp_path / "run"),
        env=EnvConfig(id="PointMass", num_envs=N),
        policy=PolicyConfig(hidden_sizes=(8,)),
        ppo=PPOConfig(num_steps=T, minibatches=1, warmup_steps=0),
        parts={"airl": AirlConfig(demonstrations=str(point_mass), discriminator=SMALL)},
        evaluation=EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
    )
    run = train(config)
    point_mass.unlink()  # the demonstrations are not needed any more
    reward = load_reward(run.path)
    obs = TensorDict({"policy": torch.randn(5, 4)}, batch_size=[5])
    assert reward(obs, torch.zeros(5, 2)).shape == (5,)
    saved = torch.load(next((run.path / "checkpoints").glob("step_*.pt")))["state"]["parts"]["airl"]["modules"]
    assert torch.equal(reward.normalizer.shift, saved["normalizer.shift"])
    assert (reward.normalizer.scale[:4] != 1.0).all()  # the policy's statistics came with it
    for name, x in reward.network.state_dict().items():
        assert torch.equal(x, saved[f"discriminator.network.{name}"])
    with pytest.raises(ValueError, match="no AIRL part named 'gail'"):
        load_reward(run.path, "gail")


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": "state"},
        {"expert_noise": True},
        {"absorbing_states": True, "expert_noise": None},
        {"inputs": "state-next-state", "normalization": "own"},
        {"inputs": "state-action-next-state", "normalization": "none", "reward_form": "shaped"},
        {"discriminator": DiscriminatorConfig(hidden_sizes=(8,), gradient_penalty=1.0)},
        {"discriminator": DiscriminatorConfig(hidden_sizes=(8,), spectral_norm=True)},
    ],
    ids=str,
)
def test_every_option_trains(options: dict[str, Any], point_mass: Any) -> None:
    ppo, part = build(PointMass(N, max_episode_steps=6), point_mass, **options)
    before = part.discriminator.optimizer.flat.clone()
    for _ in range(2):
        metrics = ppo.iterate()
    assert not torch.equal(part.discriminator.optimizer.flat, before)
    assert all(math.isfinite(metrics[f"airl/{name}"]) for name in ("loss", "acc_pi", "acc_exp", "penalty"))


def test_a_reward_of_the_state_alone_sees_nothing_else() -> None:
    from understudy.parts.shared.transitions import TransitionFeatures

    env = PointMass(1)
    features = TransitionFeatures(env.observation_space, env.action_space, ("policy",), "state-next-state")
    network = AirlNetwork(features, AirlConfig(inputs="state"), 0.9)
    rows = torch.randn(3, features.size + 2)
    other = rows.clone()
    other[:, 4:] = 7.0
    assert torch.equal(network.recovered(rows), network.recovered(other))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discriminator": DiscriminatorConfig(loss="least_squares")}, "must be 'bce'"),
        ({"discriminator": DiscriminatorConfig(replay_size=10)}, "Gail takes a replay"),
        ({"reward_form": "shape"}, "did you mean shaped"),
        ({"policy": {"memory": "lstm"}}, "feed-forward policy"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str, point_mass: Any) -> None:
    with pytest.raises(ValueError, match=words):
        build(PointMass(N), point_mass, **options)


@pytest.mark.parametrize(
    ("sign", "options"),
    [(1.0, {}), (-1.0, {}), (1.0, {"expert_noise": True, "absorbing_states": True})],
    ids=["right", "flipped", "noisy"],
)
def test_it_learns_a_task_from_demonstrations_alone(sign: float, options: dict[str, Any], tmp_path: Any) -> None:
    """PointMass: the first policy returns about -80, this expert about -4; without the task's reward AIRL passes -20.

    With the sign of the reward flipped it must not.
    """
    path = record(PointMass(16), steer, 48, tmp_path / "expert.npz")
    ppo, _ = build(PointMass(32), path, reward_weight=sign, **options, **LEARNING)
    returns = [ppo.iterate()["episode/return"] for _ in range(60)]
    assert (returns[-1] > -20.0) == (sign > 0.0)
