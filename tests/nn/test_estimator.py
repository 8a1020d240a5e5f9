"""Estimators inside a policy: what the actor sees, whom gradients reach, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.policy import REPLACED, ActorCritic, PolicyConfig

ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


SPACE = spaces.Dict(
    {
        "policy": spaces.Dict(OrderedDict(pose=box(3), speed=box(2))),
        "critic": spaces.Dict(OrderedDict(speed=box(2), friction=box(1))),
        "terrain": spaces.Discrete(3),
    }
)
HEAD = {"hidden_sizes": (4,)}


def build(space: spaces.Dict = SPACE, seed: int = 0, **options: Any) -> ActorCritic:
    torch.manual_seed(seed)
    policy = ActorCritic(space, ACTIONS, PolicyConfig(**{"hidden_sizes": (8,), "memory_size": 6, **options}))
    with torch.no_grad():  # estimates start near zero: make them visible
        for head in policy.estimators.values():
            head.linear.weight.normal_()
    return policy


def observe(*batch: int, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.randn(*batch, size, generator=generator)

    groups = {"policy": {"pose": draw(3), "speed": draw(2)}, "critic": {"speed": draw(2), "friction": draw(1)}}
    return TensorDict(groups, batch_size=list(batch))


def blind(obs: TensorDict) -> TensorDict:
    return TensorDict({"policy": {"pose": obs["policy", "pose"]}}, batch_size=obs.batch_size)


SPEED = {"speed": EstimatorHeadConfig(targets=("policy/speed",), **HEAD)}


def test_the_actor_sees_the_estimate_in_place_of_the_truth() -> None:
    policy = build(estimators=SPEED)
    assert policy.sensor_keys == policy.actor_keys == (("policy", "pose"),)
    assert policy.actor.keys == (("policy", "pose"), ("policy", "speed"))
    obs = observe(5)
    out = policy(obs)
    estimate = out.latents["estimate/speed"]
    assert estimate.shape == (5, 2)
    plain = build()
    plain.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("estimators")})
    told = obs.clone()
    told["policy", "speed"] = estimate.detach()
    assert torch.equal(out.distribution.mode(), plain(told).distribution.mode())
    # the critic sees the truth, and so does nobody in use: the truth may be missing there
    assert torch.equal(out.value, plain(obs).value)
    assert torch.equal(policy.act(blind(obs))[0], policy.action_map(out.distribution.mode()))
    assert policy.act({"policy": {"pose": np.zeros(3, np.float32)}})[0].shape == (2,)


def test_an_estimator_that_feeds_nobody_leaves_the_actor_its_observations() -> None:
    head = EstimatorHeadConfig(targets=("policy/speed",), inputs=("policy/pose",), feeds_actor=False, **HEAD)
    policy, plain = build(estimators={"speed": head}), build()
    plain.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("estimators")})
    obs = observe(5)
    out = policy(obs)
    assert torch.equal(out.distribution.mode(), plain(obs).distribution.mode())
    assert out.latents["estimate/speed"].shape == (5, 2)
    assert not policy.mixes_estimates
    assert policy.sensor_keys == (("policy", "pose"), ("policy", "speed"))
    beside = EstimatorHeadConfig(targets=("critic/friction",), feeds_actor=False, **HEAD)
    assert build(estimators={"friction": beside}).actor.keys == (("policy", "pose"), ("policy", "speed"))


def test_a_privileged_target_is_appended_to_what_the_actor_sees() -> None:
    head = EstimatorHeadConfig(targets=("critic/friction",), inputs=("policy/pose",), **HEAD)
    policy = build(estimators={"friction": head}, actor_groups=("policy/pose",))
    assert policy.actor.keys == (("policy", "pose"), ("critic", "friction"))
    assert policy.act(blind(observe(2)))[0].shape == (2, 2)


def test_estimates_are_normalised_as_the_truth_is() -> None:
    policy = build(estimators=SPEED)
    rows = TensorDict(
        {"policy": {"pose": torch.zeros(2, 3), "speed": torch.tensor([[1.0, 10.0], [3.0, 30.0]])}}, batch_size=[2]
    )
    rows["critic"] = {"speed": torch.zeros(2, 2), "friction": torch.zeros(2, 1)}
    policy.update_normalizers(rows)  # means 2 and 20, standard deviations 1 and 10
    seen = policy.normalized(rows, ("policy", "speed"))
    torch.testing.assert_close(seen, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(policy.raw(("policy", "speed"), seen), rows["policy", "speed"])
    plain = build(estimators=SPEED, normalize_observations=False)
    assert torch.equal(plain.raw(("policy", "speed"), seen), seen)


def test_only_its_own_loss_moves_an_estimator() -> None:
    policy = build(estimators=SPEED)
    out = policy(observe(5))
    head, actor = list(policy.estimators.parameters()), list(policy.actor.parameters())
    by_action = torch.autograd.grad(out.distribution.mode().sum(), head + actor, allow_unused=True, retain_graph=True)
    assert all(g is None for g in by_action[: len(head)])
    assert all(g is not None for g in by_action[len(head) :])
    by_estimate = torch.autograd.grad(out.latents["estimate/speed"].sum(), head + actor, allow_unused=True)
    assert all(g is not None for g in by_estimate[: len(head)])
    assert all(g is None for g in by_estimate[len(head) :])


def test_where_the_actor_sees_the_truth_is_read_from_the_rollout() -> None:
    head = EstimatorHeadConfig(targets=("policy/speed",), replace_prob=0.5, **HEAD)
    policy, plain = build(estimators={"speed": head}), build(estimators=SPEED)
    assert policy.actor_keys == (("policy", "pose"), ("policy", "speed"), REPLACED)
    obs = observe(4)
    obs[REPLACED] = torch.tensor([[True], [False], [True], [False]])
    mode = policy(obs).distribution.mode()
    estimated = plain(obs).distribution.mode()
    truth = build()
    truth.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("estimators")})
    assert torch.equal(mode[::2], estimated[::2])
    assert torch.equal(mode[1::2], truth(obs).distribution.mode()[1::2])
    assert torch.equal(policy.act(obs.exclude("estimated"))[0], policy.action_map(estimated))  # in use: always
    drawn = policy.draw_replacements((2000, 3), torch.Generator().manual_seed(0))
    assert drawn.shape == (2000, 3, 1)
    assert float(drawn.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_second_estimator_reads_the_estimate_of_the_first() -> None:
    second = EstimatorHeadConfig(targets=("critic/friction",), inputs=("policy/speed",), **HEAD)
    policy = build(estimators={**SPEED, "friction": second})
    assert policy.sensor_keys == (("policy", "pose"),)
    out = policy(observe(3))
    friction = policy.estimators["friction"]
    by_hand = friction.linear(friction.trunk.mlp(out.latents["estimate/speed"].detach()))  # type: ignore[union-attr]
    assert torch.equal(out.latents["estimate/friction"], by_hand)
    with pytest.raises(ValueError, match="are read before they are estimated"):
        build(estimators={"friction": second, **SPEED})


@pytest.mark.parametrize("own", ["none", "lstm", "gru"])
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_sequence_equals_its_steps(own: str, memory: str) -> None:
    head = EstimatorHeadConfig(targets=("policy/speed",), memory=own, memory_size=5, **HEAD)  # type: ignore[arg-type]
    policy = build(estimators={"speed": head}, memory=memory)
    assert policy.state_size == {"none": 0, "lstm": 10, "gru": 5}[own] + {"none": 0, "lstm": 24}[memory]
    T, B = 5, 3
    obs, is_first = observe(T, B), torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.4
    state = policy.initial_state(B)
    if state is None:
        return
    whole = policy(obs, state, is_first)
    for t in range(T):
        step = policy(obs[t], state, is_first[t])
        torch.testing.assert_close(step.distribution.mode(), whole.distribution.mode()[t])
        torch.testing.assert_close(step.latents["estimate/speed"], whole.latents["estimate/speed"][t])
        torch.testing.assert_close(step.value, whole.value[t])
        torch.testing.assert_close(policy.value(obs[t], state, is_first[t]), whole.value[t])
        state = step.state
    torch.testing.assert_close(state, whole.state)


def test_on_the_actors_memory_it_shapes_the_memory_and_feeds_nobody() -> None:
    head = EstimatorHeadConfig(targets=("critic/friction",), memory="actor", replace_prob=0.0, **HEAD)
    policy = build(estimators={"friction": head}, memory="gru")
    assert policy.actor.keys == (("policy", "pose"), ("policy", "speed"))
    out = policy(observe(3), policy.initial_state(3), torch.zeros(3, dtype=torch.bool))
    estimate = out.latents["estimate/friction"]
    assert estimate.shape == (3, 1)
    memory = [p for p in policy.actor.memory.parameters() if p.ndim > 1]  # type: ignore[union-attr]
    assert any(float(g.abs().sum()) > 0 for g in torch.autograd.grad(estimate.sum(), memory))
    with pytest.raises(ValueError, match=r"policy\.memory is 'none'"):
        build(estimators={"friction": head})
    with pytest.raises(ValueError, match="comes too late"):
        EstimatorHeadConfig(targets=("critic/friction",), memory="actor")


def test_without_estimators_nothing_changes() -> None:
    policy = build()
    assert policy.sensor_keys == policy.actor_keys == policy.actor.keys
    assert not policy.mixes_estimates


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"targets": ("policy/sped",)}, "did you mean speed"),
        ({"targets": ("terrain",)}, "cannot predict terrain"),
        ({"targets": ("policy/speed",), "inputs": ("policy",)}, "from itself"),
    ],
)
def test_what_is_refused(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(estimators={"e": EstimatorHeadConfig(**head)})


def test_what_a_head_refuses() -> None:
    with pytest.raises(ValueError, match="targets must not be empty"):
        EstimatorHeadConfig(targets=())
    with pytest.raises(ValueError, match=r"replace_prob must lie in \[0, 1\], got 2"):
        EstimatorHeadConfig(targets=("policy/speed",), replace_prob=2.0)
    with pytest.raises(ValueError, match="cannot be called"):
        build(estimators={"a/b": SPEED["speed"]})
