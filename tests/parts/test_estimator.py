"""The estimator's loss: by hand, in training, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tests.parts.contract import timeless
from torch import Tensor

import understudy as us
from understudy.core.schedules import Schedule
from understudy.envs import EnvConfig, with_groups
from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.policy import REPLACED, ActorCritic, PolicyConfig, PolicyOutput
from understudy.parts import EstimatorConfig
from understudy.parts.estimator import elementwise_loss
from understudy.ppo.config import PPOConfig
from understudy.ppo.part import PartContext
from understudy.ppo.ppo import PPO
from understudy.runs.config import EvaluationConfig
from understudy.tasks.point_mass import PointMass

SEGMENTS = {"policy": {"offset": 2, "speed": 2}}
STILL = {"surrogate_coef": 0.0, "value_coef": 0.0}  # only the estimator learns
SPEED = EstimatorHeadConfig(targets=("policy/speed",), memory="gru", memory_size=16, hidden_sizes=(16,))
MIXED = EstimatorHeadConfig(
    targets=("policy/speed",), memory="lstm", memory_size=8, hidden_sizes=(8,), replace_prob=0.5
)
GUESS = EstimatorHeadConfig(targets=("policy/speed",), hidden_sizes=(8,), replace_prob=0.5)


def build(
    heads: Mapping[str, EstimatorHeadConfig],
    parts: Mapping[str, EstimatorConfig] | None = None,
    *,
    num_envs: int = 4,
    policy: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> PPO:
    env = with_groups(PointMass(num_envs, max_episode_steps=12), segments=SEGMENTS)
    torch.manual_seed(seed)
    built = ActorCritic(
        env.observation_space,
        env.action_space,
        PolicyConfig(**{"hidden_sizes": (8,), "memory_size": 8, **(policy or {})}, estimators=dict(heads)),
    )
    config = PPOConfig(**{"num_steps": 8, "epochs": 2, "minibatches": 2, "warmup_steps": 8, **options})
    made = {
        name: part.build(PartContext.of(env, built, name=name, num_steps=config.num_steps))
        for name, part in (parts or {name: EstimatorConfig(estimator=name) for name in heads}).items()
    }
    return PPO(env, built, config, made, seed=seed, total_steps=10_000)


@pytest.mark.parametrize(
    ("loss", "options", "per_row"),
    [  # errors (1, -3) and (0, 2): sums over entries, the second row is no transition
        ("mse_loss", {}, 10.0),
        ("l1_loss", {}, 4.0),
        ("smooth_l1_loss", {}, 0.5 + 2.5),
        ("huber_loss", {"delta": 2.0}, 0.5 + 2.0 * (3.0 - 1.0)),
    ],
)
def test_the_loss_by_hand(loss: str, options: dict[str, float], per_row: float) -> None:
    config = EstimatorConfig(loss=loss, loss_kwargs=dict(options), coef=0.25)
    ppo = build({"e": GUESS}, {"e": config}, policy={"normalize_observations": True})
    rows = torch.tensor([[1.0, 10.0], [3.0, 30.0]])  # means 2 and 20, standard deviations 1 and 10
    obs = TensorDict({"policy": {"offset": torch.zeros(2, 2), "speed": rows}, "critic": torch.zeros(2, 6)}, [2])
    ppo.policy.update_normalizers(obs)
    truth = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    estimate = truth + torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    out = PolicyOutput(ppo.policy.head(torch.zeros(2, 8)), torch.zeros(2), latents={"estimate/e": estimate})
    batch = TensorDict({"obs": obs, "valid": torch.tensor([True, False])}, batch_size=[2])
    loss_value, metrics = ppo.parts["e"].loss(ppo.policy, batch, out)  # type: ignore[attr-defined]
    assert float(metrics["loss"]) == pytest.approx(per_row / 2, rel=1e-5)
    assert float(loss_value) == pytest.approx(0.25 * per_row / 2, rel=1e-5)
    # raw errors 1 and -30 of the one valid row
    assert float(metrics["rmse/policy/speed"]) == pytest.approx(((1.0 + 900.0) / 2) ** 0.5, rel=1e-5)


KINDS = [
    ({"e": GUESS}, {}),
    ({"e": MIXED}, {}),
    ({"e": SPEED}, {"memory": "lstm"}),
    ({"e": GUESS}, {"shared_trunk": True, "critic_groups": ("policy",)}),
    ({"a": GUESS, "b": EstimatorHeadConfig(targets=("critic",), inputs=("policy/speed",))}, {"memory": "gru"}),
    ({"e": EstimatorHeadConfig(targets=("policy/speed",), memory="actor", replace_prob=0.0)}, {"memory": "gru"}),
]


@pytest.mark.parametrize(("heads", "policy"), KINDS)
def test_the_update_sees_what_the_actor_saw(heads: dict[str, EstimatorHeadConfig], policy: dict[str, Any]) -> None:
    traced, eager = build(heads, policy=policy), build(heads, policy=policy, capture="eager")
    for _ in range(3):
        found, expected = traced.iterate(), eager.iterate()
        assert timeless(found) == timeless(expected)
        assert found["ppo/first_ratio_error"] < 1e-6
    if traced.policy.mixes_estimates:
        replaced = traced.collector.data["obs", *REPLACED]
        assert replaced.any()
        assert not replaced[..., 0].all()


def test_a_fresh_mask_would_be_seen_in_the_ratio() -> None:
    """The measure above notices what it is there for."""
    ppo = build({"e": GUESS})
    with torch.no_grad():
        ppo.policy.estimators["e"].linear.weight.normal_()
    ppo.collector.collect()
    ppo.collector.evaluate()
    data = ppo.collector.data
    data["obs", *REPLACED].logical_not_()
    log_prob = ppo.policy(data["obs"].flatten(0, 1)).distribution.log_prob(data["action"].flatten(0, 1))
    assert (log_prob - data["log_prob"].flatten()).abs().max() > 1e-3


@pytest.mark.parametrize("heads", [{"e": MIXED}, {"e": GUESS}])
def test_resumes_bit_for_bit(heads: dict[str, EstimatorHeadConfig]) -> None:
    straight, first, second = build(heads), build(heads), build(heads, seed=1)
    straight.iterate()
    expected = straight.iterate()
    first.iterate()
    second.load_state_dict(first.state_dict())
    assert timeless(second.iterate()) == timeless(expected)
    assert torch.equal(second.optimizer.flat, straight.optimizer.flat)


@pytest.mark.parametrize("memory", ["none", "lstm", "gru"])
def test_it_learns(memory: str) -> None:
    head = EstimatorHeadConfig(
        targets=("policy/speed",),
        inputs=("critic",),
        memory=memory,
        hidden_sizes=(32,),  # type: ignore[arg-type]
    )
    optimizer = us.OptimizerConfig(learning_rate=1e-2)
    ppo = build({"e": head}, num_envs=32, epochs=4, optimizer=optimizer, **STILL)
    rmse = [ppo.iterate()["e/rmse/policy/speed"] for _ in range(12)]
    assert rmse[-1] < 0.4 * rmse[0], rmse


def test_the_coefficient_is_a_schedule() -> None:
    ppo = build({"e": GUESS}, {"e": EstimatorConfig(coef=Schedule.parse("linear:1:0:2it"))})
    values = []
    for _ in range(3):
        ppo.iterate()
        values.append(float(ppo.parts["e"].coef()))  # type: ignore[operator]
    assert values == [1.0, 0.5, 0.0]


def test_a_run_is_loaded_with_its_estimator_and_acts_without_the_truth(tmp_path: Path) -> None:
    config = us.TrainConfig(
        env=EnvConfig(id="PointMass", num_envs=4, segments=SEGMENTS),
        policy=PolicyConfig(hidden_sizes=(8,), estimators={"speed": MIXED}),
        ppo=PPOConfig(num_steps=8, epochs=1, minibatches=1),
        parts={"speed": EstimatorConfig()},
        total_steps=64,
        run_dir=str(tmp_path / "run"),
        evaluation=EvaluationConfig(episodes=2),
    )
    run = us.train(config)
    policy = us.load(run.path)
    assert policy.config == config.policy
    offset: Any = {"policy": {"offset": torch.ones(2)}}
    action, state = policy.act(offset)
    assert action.shape == (2,)
    assert isinstance(state, Tensor)
    assert torch.equal(action, run.policy.act(offset)[0])


def test_what_is_refused() -> None:
    for config, heads, message in (
        (EstimatorConfig(), {}, "the policy has no estimator; describe one in policy.estimators"),
        (EstimatorConfig(estimator="sped"), {"speed": GUESS, "b": SPEED}, "did you mean speed"),
        (EstimatorConfig(), {"speed": GUESS, "a": MIXED}, "2 estimators"),
        (EstimatorConfig(loss="mse_los"), {"e": GUESS}, "unknown loss 'mse_los' .*did you mean mse_loss"),
        (EstimatorConfig(loss_kwargs={"delta": 1.0}), {"e": GUESS}, r"mse_loss fails with loss_kwargs .*'delta'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(heads, {"e": config})
    for name in ("cross_entropy", "nll_loss", "cosine_embedding_loss"):
        with pytest.raises(ValueError, match="unknown loss"):
            elementwise_loss(name, {})
    with pytest.raises(ValueError, match="loss_kwargs"):
        elementwise_loss("torch.nn.functional:cosine_similarity", {})
    own = elementwise_loss("torch.nn.functional:huber_loss", {"delta": 0.5})
    assert own(torch.zeros(1), torch.ones(1)).tolist() == [0.5 * (1.0 - 0.25)]
    with pytest.raises(ValueError, match="one shape"):
        elementwise_loss("mse_loss", {})(torch.zeros(2, 1), torch.zeros(2, 2))
