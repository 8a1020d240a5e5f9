"""A minibatch keeps its names from the rollout to the loss; a surrogate of the user's own is found by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tests.fresh import Fresh
from torch import Tensor

import understudy as us
from understudy.nn.policy import PolicyOutput
from understudy.ppo import minibatch, rollout
from understudy.ppo.config import PPOConfig
from understudy.ppo.minibatch import Minibatches
from understudy.ppo.part import Losses, Part, PartContext, Weights
from understudy.runs.codec import from_plain, to_plain
from understudy.runs.config import EvaluationConfig, LoggingConfig
from understudy.tasks.point_mass import PointMass
from understudy.types import Metrics

N, T = 4, 8
OWN = """
import torch

def spo(batch):
    ratio, advantage = batch["log_ratio"].exp(), batch["advantage"]
    return advantage.abs() / (2 * batch["clip_high"]) * (ratio - 1).square() - ratio * advantage

def clip_by_hand(batch):
    ratio, advantage = batch["log_ratio"].exp(), batch["advantage"]
    bounded = torch.minimum(torch.maximum(ratio, 1 - batch["clip_low"]), 1 + batch["clip_high"])
    return -torch.minimum(ratio * advantage, bounded * advantage)

def old_policy(batch):
    return -batch["advantage"] * (batch["new_log_prob"] - batch["log_prob"]).exp() + 0 * batch["obs", "policy"].sum(-1)

def whole(batch):
    return batch["log_ratio"].mean()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `own_losses` of a user."""
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield None
    sys.modules.pop("own_losses", None)


class Reader(Part, Weights, Losses):
    """Draws rows of its own, weighs samples, and remembers which names it saw."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self.seen: list[set[Any]] = []

    def sample(self, batch: TensorDict) -> TensorDict:
        self.seen.append(set(batch.keys(True, True)))
        return TensorDict({"x": torch.ones(3), "deep": {"y": torch.full((3,), 2.0)}}, batch_size=[3])

    def weight(self, batch: TensorDict, out: PolicyOutput) -> Tensor:
        return torch.full_like(out.value, 0.5)

    def loss(self, policy: Any, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        drawn = batch[self.name, "sample"]
        total = (drawn["x"] + drawn["deep", "y"]).sum()
        return total, {"drawn": total}


def learned(ppo: Any, iterations: int = 2) -> tuple[dict[str, float], Tensor]:
    for _ in range(iterations):
        metrics = ppo.iterate()
    return {k: v for k, v in metrics.items() if not k.startswith("time/") and v == v}, ppo.optimizer.flat


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_every_row_comes_once_under_its_name(make_ppo: Any, memory: str) -> None:
    ppo = make_ppo(
        PointMass(N, max_episode_steps=5), policy={"memory": memory}, minibatches=2, value_clip=0.2, dual_clip=3.0
    )
    ppo.iterate()
    rollout = ppo.collector.data
    batches = list(ppo.minibatches.epoch(rollout, masked=False))
    assert len(batches) == 2
    names = {"action", "log_prob", "advantage", "value_target", "value", "cost", "floor", "ceiling", "value_floor"}
    memories = {"state", "is_first"} if memory == "gru" else set()
    assert set(batches[0]) == names | memories | {("obs", *key) for key in ppo.policy.input_keys}
    assert list(batches[0]) == list(batches[1])
    size = (T, N // 2) if memory == "gru" else (T * N // 2,)
    for batch in batches:
        assert batch["log_prob"].shape == size
        assert torch.equal(batch["cost"], -batch["advantage"])
        assert batch["advantage"].mean().abs() < 1e-6
    for name in ("log_prob", "value_target", ("obs", "policy")):
        rows = torch.cat([batch[name].flatten(0, len(size) - 1) for batch in batches])
        expected = rollout[name].flatten(0, 1)
        assert torch.equal(rows.view(T * N, -1).sort(0).values, expected.reshape(T * N, -1).sort(0).values)


def test_a_part_reads_the_rollout_and_what_it_drew(make_ppo: Any, make_policy: Any) -> None:
    env = PointMass(N)
    reader = Reader(PartContext.of(env, make_policy(env), name="reader", num_steps=T))
    ppo = make_ppo(env, parts={"reader": reader})
    metrics, _ = learned(ppo, 1)
    assert metrics["reader/drawn"] == 9.0
    read = {"is_first", "terminated", "truncated", "params", "value", "valid", ("obs", "critic"), ("obs", "policy")}
    assert all(read <= seen for seen in reader.seen)
    assert not any(name in seen for seen in reader.seen for name in ("reward", "next_value", "executed_action"))
    batch = next(iter(ppo.minibatches.epoch(ppo.collector.data, masked=False)))
    assert batch["reader", "sample", "deep", "y"].tolist() == [2.0] * 3
    # half of every weight: half of the surrogate and of the entropy
    plain, _ = learned(make_ppo(PointMass(N)), 1)
    assert metrics["ppo/entropy"] == pytest.approx(0.5 * plain["ppo/entropy"], rel=1e-3)


@pytest.mark.parametrize("name", ["cost", "floor", "mask", "advantage"])
def test_a_part_cannot_take_a_name_of_the_minibatch(make_ppo: Any, make_policy: Any, name: str) -> None:
    env = PointMass(N)
    with pytest.raises(ValueError, match=f"a part cannot be called '{name}'"):
        make_ppo(env, parts={name: Reader(PartContext.of(env, make_policy(env), name=name, num_steps=T))})


# ---------------------------------------------------------------------- a surrogate of one's own


def test_spo_by_hand(own: None, make_ppo: Any) -> None:
    ppo = make_ppo(PointMass(N), surrogate="own_losses:spo", clip_epsilon=0.2)
    ppo.iterate()
    batch = dict(next(iter(ppo.minibatches.epoch(ppo.collector.data, masked=False))))
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 1.0]), torch.tensor([2.0, -2.0, 1.0, 3.0])
    with torch.no_grad():
        log_prob = ppo.policy(
            TensorDict({"policy": batch["obs", "policy"][:4], "critic": batch["obs", "critic"][:4]}, [4])
        )
        log_prob = log_prob.distribution.log_prob(batch["action"][:4])
    small = {name: x[:4] for name, x in batch.items()}
    stats = ppo.loss_and_gradient({**small, "log_prob": log_prob - ratio.log(), "advantage": advantage})
    # |A| / .4 (r - 1)^2 - r A: 5/4 - 3; 5/4 + 3; 5/8 - .5; -3
    by_hand = [-1.75, 4.25, 0.125, -3.0]
    assert float(stats["surrogate_loss"]) == pytest.approx(sum(by_hand) / 4, rel=1e-5)
    torch.testing.assert_close(stats["log_ratio"].exp(), ratio)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_the_clip_written_as_one_s_own_learns_the_same(own: None, make_ppo: Any, memory: str) -> None:
    runs = [
        learned(
            make_ppo(PointMass(N), surrogate=name, clip_epsilon=0.1, clip_epsilon_high=0.3, policy={"memory": memory})
        )
        for name in ("clip", "own_losses:clip_by_hand")
    ]
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-5, atol=1e-6)
    for name, number in runs[0][0].items():
        assert runs[1][0][name] == pytest.approx(number, rel=1e-4, abs=1e-5), name


def test_it_reads_the_old_policy_and_the_observations(own: None, make_ppo: Any) -> None:
    metrics, _ = learned(make_ppo(PointMass(N), surrogate="own_losses:old_policy", epochs=1), 1)
    assert metrics["ppo/first_ratio_error"] < 1e-5
    assert metrics["ppo/skipped_steps"] == 0.0


def test_its_loss_must_be_one_for_each_sample(own: None, make_ppo: Any) -> None:
    with pytest.raises(ValueError, match=r"own_losses:whole returned .*return one loss for each sample"):
        make_ppo(PointMass(N), surrogate="own_losses:whole").iterate()


@pytest.mark.parametrize("name", ["own_losses:none_such", "no_such_module:f"])
def test_a_name_that_leads_nowhere_is_refused_when_ppo_is_built(own: None, make_ppo: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_ppo(PointMass(N), surrogate=name)


def test_its_name_goes_through_a_config_file() -> None:
    config = PPOConfig(surrogate="own_losses:spo")  # nothing is imported
    assert from_plain(PPOConfig, to_plain(config)) == config


def test_a_policy_loads_without_it(own: None, tmp_path: Path, fresh: Fresh) -> None:
    run = us.train(
        us.TrainConfig(
            total_steps=64,
            run_dir=str(tmp_path / "run"),
            env=us.EnvConfig(id="CartPole-v1", num_envs=4),
            ppo=us.PPOConfig(num_steps=8, epochs=1, surrogate="own_losses:spo"),
            evaluation=EvaluationConfig(episodes=0),
            logging=LoggingConfig(console=False, tensorboard=False),
        )
    )
    code = f"import sys, understudy as us; us.load({str(run.path)!r}); assert 'own_losses' not in sys.modules"
    fresh("-c", code, cwd=Path("/"))


@pytest.mark.parametrize("reshuffle", [True, False])
def test_passes_share_their_minibatches_unless_they_are_reshuffled(reshuffle: bool) -> None:
    env = us.make_env("CartPole-v1", 2, seed=0)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    ppo = us.PPO(env, policy, us.PPOConfig(num_steps=16, minibatches=4, epochs=3, reshuffle=reshuffle), seed=0)
    ppo.iterate()
    seen = [batch["log_prob"].sort().values for batch in ppo._epochs(ppo.collector.data, False)]
    passes = [torch.stack(seen[i : i + 4]) for i in (0, 4, 8)]
    assert all(torch.equal(x.sort().values.flatten().sort().values, passes[0].flatten().sort().values) for x in passes)
    assert torch.equal(passes[0], passes[1]) is not reshuffle
    assert torch.equal(passes[0], passes[2]) is not reshuffle


def test_the_memory_of_a_rollout_counts_one_minibatch_of_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(rollout, "check_memory", lambda size, *_: asked.append(size))
    for bound in (4096, 16):  # bytes of CartPole's observation: 16
        monkeypatch.setattr(rollout, "LARGE", bound)
        env = us.make_env("CartPole-v1", 2, seed=0)
        policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
        us.PPO(env, policy, us.PPOConfig(num_steps=32, minibatches=4), seed=0)
    assert asked[0] - asked[1] == 32 * 2 * 16 * 0.75


@pytest.mark.parametrize("recurrent", [False, True])
def test_images_are_not_copied_for_a_whole_epoch(recurrent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SimpleNamespace(recurrent=recurrent, input_keys=[("policy",)])
    data = TensorDict({"obs": {"policy": torch.randint(0, 256, (T, N, 4, 32, 32), dtype=torch.uint8)}}, [T, N])
    for name in ("action", "log_prob", "advantage", "value_target", "is_first"):
        data[name] = torch.randn(T, N)
    data["state"] = torch.randn(1, N, 3).expand(T, N, 3)
    config = PPOConfig(num_steps=T, minibatches=2, surrogate="a2c")
    drawer = Minibatches(policy, {}, config, torch.nn.ModuleDict(), torch.Generator())  # type: ignore[arg-type]
    order, gathered = drawer.order(data), []
    shuffle = Minibatches._shuffle

    def remember(self: Any, data: TensorDict, name: Any, order: Tensor) -> Tensor:
        gathered.extend([order.numel()] * (name == ("obs", "policy")))
        return shuffle(self, data, name, order)

    monkeypatch.setattr(Minibatches, "_shuffle", remember)
    lazily = [*drawer.epoch(data, masked=False, order=order)]
    assert gathered == [order.shape[1]] * 2  # a minibatch each
    monkeypatch.setattr(minibatch, "LARGE", 10**9)
    at_once = [*drawer.epoch(data, masked=False, order=order)]
    assert gathered[2:] == [order.numel()]
    for one, other in zip(lazily, at_once, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
