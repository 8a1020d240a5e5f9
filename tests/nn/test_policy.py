"""`ActorCritic`: what it sees, what it gives, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import find_components
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import EncoderConfig
from understudy.nn.policy import ActorCritic, PolicyConfig


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


GROUPS = spaces.Dict({"policy": spaces.Dict({"height": box(2), "speed": box(3)}), "critic": box(4), "other": box(1)})
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def build(
    seed: int = 0, space: spaces.Dict = GROUPS, actions: spaces.Space[Any] = ACTIONS, **options: Any
) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(space, actions, PolicyConfig(**{"hidden_sizes": (8,), "memory_size": 6, **options}))


def observe(*batch: int, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.randn(*batch, size, generator=generator)

    return TensorDict(
        {"policy": {"height": draw(2), "speed": draw(3)}, "critic": draw(4), "other": draw(1)}, batch_size=list(batch)
    )


def test_a_linear_policy_by_hand() -> None:
    policy = build(
        space=spaces.Dict({"policy": box(2)}),
        hidden_sizes=(),
        normalize_observations=False,
        distribution=DistributionConfig(init_std=0.5),
    )
    with torch.no_grad():
        policy.head.linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        policy.head.linear.bias.copy_(torch.tensor([0.5, 0.0]))
        policy.value_head.weight.copy_(torch.tensor([[3.0, -1.0]]))
        policy.value_head.bias.fill_(0.25)
    out = policy(TensorDict({"policy": torch.tensor([[1.0, -1.0]])}, batch_size=[1]))
    assert out.distribution.mode().tolist() == [[-0.5, 1.0]]
    assert out.value.tolist() == [4.25]
    # log N(0; -0.5, 0.5) + log N(0; 1, 0.5) = 2 (-ln 0.5 - ln(2 pi) / 2) - (0.25 + 1) / (2 * 0.25)
    expected = -2.0 * np.log(0.5) - np.log(2 * np.pi) - 2.5
    assert out.distribution.log_prob(torch.zeros(1, 2)).item() == pytest.approx(expected, rel=1e-6)


def test_the_critic_sees_its_own_group_and_the_actor_does_not() -> None:
    policy, obs = build(), observe(5)
    before, value = policy(obs), policy.value(obs)
    assert torch.equal(before.value, value)
    assert policy.actor.keys == (("policy", "height"), ("policy", "speed"))
    assert policy.critic is not None
    assert policy.critic.keys == (("critic",),)
    changed = obs.clone()
    changed["critic"] += 1.0
    after = policy(changed)
    assert torch.equal(after.distribution.params, before.distribution.params)
    assert not torch.allclose(after.value, before.value)
    changed = obs.clone()
    changed["policy", "speed"] += 1.0
    assert torch.equal(policy(changed).value, before.value)


def test_groups_by_name_and_by_component() -> None:
    policy = build(actor_groups=("policy/speed", "other"), critic_groups=("policy",))
    assert policy.actor.keys == (("policy", "speed"), ("other",))
    assert policy.input_keys == (("policy", "speed"), ("other",), ("policy", "height"))
    assert policy(observe(3)).latents["actor/policy/speed"].shape == (3, 3)


def test_the_distribution_alone_equals_the_whole_forward() -> None:
    policy, obs = build(), observe(4)
    assert torch.equal(policy.distribution(obs).params, policy(obs).distribution.params)


def test_a_shared_trunk_is_one_trunk() -> None:
    policy = build(shared_trunk=True)
    assert policy.critic is None
    out = policy(observe(3))
    assert out.latents["actor"] is out.latents["critic"]
    out.value.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.actor.mlp.parameters())


@pytest.mark.parametrize("memory", ["lstm", "gru"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("changes", [0.0, 2.0])
def test_a_sequence_equals_its_steps(memory: Any, shared: bool, changes: float) -> None:
    policy, obs = build(memory=memory, shared_trunk=shared, memory_changes=changes), observe(6, 3)
    is_first = torch.zeros(6, 3, dtype=torch.bool)
    is_first[2, 1] = is_first[4, 0] = True
    state = policy.initial_state(3)
    whole = policy(obs, state, is_first)
    for t in range(6):
        out = policy(obs[t], state, is_first[t])
        assert torch.equal(policy.value(obs[t], state, is_first[t]), out.value)
        torch.testing.assert_close(out.value, whole.value[t])
        torch.testing.assert_close(out.distribution.params, whole.distribution.params[t])
        state = out.state
    torch.testing.assert_close(state, whole.state)


def test_a_critic_without_a_memory_beside_an_actor_that_has_one() -> None:
    policy = build(memory="gru", critic_memory=False)
    assert policy.critic is not None
    assert (policy.state_size, policy.critic.state_size) == (6, 0)
    obs, is_first = observe(5, 3), torch.zeros(5, 3, dtype=torch.bool)
    out = policy(obs, torch.randn(3, 6), is_first)
    torch.testing.assert_close(out.value[2], policy.value(obs[2], torch.zeros(3, 6)))  # whatever happened before
    assert out.state is not None
    assert out.state.shape == (3, 6)


def test_the_actor_s_state_moves_without_the_critic() -> None:
    policy, obs = build(memory="gru"), observe(2)
    state = policy.initial_state(2)
    full = policy(obs, state).state
    _, acted = policy.act(obs, state)
    assert full is not None
    assert acted is not None
    torch.testing.assert_close(acted[:, :6], full[:, :6])
    assert acted[:, 6:].abs().sum() == 0  # the critic's share did not run


def test_act_in_kind() -> None:
    policy = build()
    one = {"policy": {"height": np.zeros(2), "speed": np.ones(3)}}  # nothing for the critic, float64
    action, state = policy.act(one)
    assert isinstance(action, np.ndarray)
    assert action.shape == (2,)
    assert state is None
    assert ACTIONS.contains(action.astype(np.float32))
    many = {"policy": {"height": torch.zeros(4, 2), "speed": torch.ones(4, 3)}}
    actions, _ = policy.act(many)
    assert isinstance(actions, Tensor)
    assert actions.shape == (4, 2)
    np.testing.assert_allclose(actions[0].numpy(), action, rtol=1e-6)
    components_only, _ = policy.act({"height": np.zeros(2), "speed": np.ones(3)})
    np.testing.assert_array_equal(components_only, action)
    with pytest.raises(ValueError, match="observation 'speed' does not exist"):
        policy.act({"policy": {"height": np.zeros(2)}})


def test_sampling_and_the_mode() -> None:
    policy, obs = build(), observe(1)
    modes = torch.stack([policy.act(obs)[0] for _ in range(3)])
    samples = torch.stack([policy.act(obs, deterministic=False)[0] for _ in range(3)])
    assert (modes == modes[0]).all()
    assert not (samples == samples[0]).all()


def test_the_normaliser_moves_only_when_told() -> None:
    policy, obs = build(), observe(64)
    assert sorted(policy.normalizers) == ["critic", "policy/height", "policy/speed"]
    before = policy(obs).value
    policy.update_normalizers(obs, torch.arange(64) < 48)
    normalizer = policy.normalizers["critic"]
    torch.testing.assert_close(normalizer.mean.float(), obs["critic"][:48].mean(0))
    assert not torch.allclose(policy(obs).value, before)
    frozen = {name: x.clone() for name, x in policy.state_dict().items()}
    policy(obs)
    policy.act(obs)
    assert all(torch.equal(x, frozen[name]) for name, x in policy.state_dict().items())


def test_bfloat16_is_close_and_hands_back_float32() -> None:
    plain, half, obs = build(), build(precision="bfloat16"), observe(16)
    a, b = plain(obs), half(obs)
    assert b.value.dtype == b.distribution.params.dtype == torch.float32
    torch.testing.assert_close(a.value, b.value, atol=0.05, rtol=0.05)
    assert not torch.equal(a.value, b.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor_groups": ("polcy",)}, "observation group 'polcy' does not exist; did you mean policy"),
        ({"actor_groups": ("policy/spee",)}, "did you mean speed"),
        ({"critic_groups": ("privileged",)}, "known: critic, other, policy"),
        ({"actor_groups": ()}, "actor_groups must not be empty"),
        ({"activation": "sigmoidal"}, "sigmoidal"),
    ],
)
def test_bad_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_components_of_a_name() -> None:
    assert list(find_components(GROUPS, "policy")) == [("policy", "height"), ("policy", "speed")]
    assert list(find_components(GROUPS, "policy/speed")) == [("policy", "speed")]
    assert list(find_components(GROUPS, "critic")) == [("critic",)]


@pytest.mark.parametrize("encoder", [EncoderConfig(), EncoderConfig(embedding_size=4)], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_the_layout_of_a_policy_can_be_built_without_memory(encoder: EncoderConfig, memory: Any) -> None:
    """Reading a checkpoint compares layouts first, so every encoder must be made on the device "meta"."""
    groups = {"a": spaces.Discrete(5, start=2), "b": spaces.MultiDiscrete([3, 4]), "c": spaces.MultiBinary(3)}
    config = PolicyConfig(encoder=encoder, memory=memory)
    with torch.device("meta"):
        layout = ActorCritic(spaces.Dict({"policy": spaces.Dict(groups)}), spaces.Discrete(2), config).state_dict()
    assert {x.device.type for x in layout.values()} == {"meta"}


def test_some_components_have_an_encoder_and_the_critic_others() -> None:
    encoder = EncoderConfig(hidden_sizes=(6, 4), only=("policy/speed",))
    policy = build(encoder=encoder, critic_encoder=EncoderConfig(hidden_sizes=(3,), only=("critic",)))
    latents = policy(observe(5)).latents
    assert {
        name: latents[name].shape[-1] for name in ("actor/policy/speed", "actor/policy/height", "critic/critic")
    } == {
        "actor/policy/speed": 4,
        "actor/policy/height": 2,
        "critic/critic": 3,
    }
    assert build(encoder=EncoderConfig(hidden_sizes=(4,))).actor.in_features == 8  # all of them
    with pytest.raises(ValueError, match="'sped' does not exist; did you mean speed"):
        build(encoder=EncoderConfig(hidden_sizes=(4,), only=("policy/sped",)))
    with pytest.raises(ValueError, match=r"encoder\.only names policy/speed for an MLP"):
        EncoderConfig(only=("policy/speed",))


def test_the_head_may_have_torchs_own_initialisation() -> None:
    policy = build(init="default", distribution=DistributionConfig(head_gain=None))
    assert policy.head.linear.bias.abs().min() > 0.0
    assert policy.head.linear.weight.abs().max() <= 8**-0.5
