"""The policy's protocol: one method makes a policy, and what it does wrongly is named when it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tests.nn.own_networks import Constant, Counter, Forgetless, Unordered, save_module
from torch import Tensor, nn

import understudy as us
from understudy.nn import check_policy, unroll
from understudy.nn.policy import ActorCritic, build_policy

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SPACE = spaces.Dict({"policy": BOX})
WIDER = spaces.Dict({"policy": BOX, "critic": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


def rows(*batch: int) -> Any:
    obs = torch.randn(*batch, 3, generator=torch.Generator().manual_seed(0))
    return us.ActorCritic(SPACE, ACTIONS).blank_observation(1).new_zeros(*batch).set("policy", obs)


# ------------------------------------------------------------------ one method is enough


def test_forward_alone_makes_a_policy() -> None:
    policy = check_policy(Constant(SPACE, ACTIONS, us.PolicyConfig(action_bound="tanh")))
    obs = rows(5)
    assert not policy.recurrent
    assert policy.initial_state(5) is None
    assert policy.sensor_keys == policy.input_keys == policy.value_keys == (("policy",),)
    torch.testing.assert_close(policy.distribution(obs).params[0], 0.1 * torch.arange(4.0))
    torch.testing.assert_close(policy.value(obs), obs["policy"].mean(-1) + 0.15)
    action, state = policy.act(np.zeros(3, np.float32))
    assert state is None
    np.testing.assert_allclose(action, np.tanh([0.0, 0.1]), rtol=1e-6)


def test_the_normaliser_belongs_to_every_policy() -> None:
    policy = Constant(SPACE, ACTIONS)
    obs = rows(50)
    policy.update_normalizers(obs)
    seen = policy.observe(obs)["policy"]
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.raw(("policy",), seen), obs["policy"])


def test_a_recurrent_policy_writes_one_step() -> None:
    policy = check_policy(Counter(SPACE, ACTIONS))
    is_first = torch.tensor([[True, True], [False, True], [False, False]])
    out = policy(rows(3, 2), torch.full((2, 1), 7.0), is_first)
    assert out.state is not None
    assert out.state.tolist() == [[3.0], [2.0]]
    torch.testing.assert_close(out.latents["actor"][..., 1], torch.tensor([[0.1, 0.1], [0.2, 0.1], [0.3, 0.2]]))
    assert policy.act(rows(2))[1].tolist() == [[1.0], [1.0]]  # type: ignore[union-attr]


def test_unroll_restarts_by_filling() -> None:
    def step(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return x + state, state + x

    x, poisoned = torch.ones(2, 1, 1), torch.full((1, 1), float("nan"))
    y, state = unroll(step, x, poisoned, torch.tensor([[True], [False]]))
    assert y.flatten().tolist() == [1.0, 2.0]
    assert state.tolist() == [[2.0]]
    assert unroll(step, x[0], torch.ones(1, 1))[0].tolist() == [[2.0]]


# ------------------------------------------------------------------ what is refused


class _WrongValue(Constant):
    def forward(self, obs: Any, state: Any = None, is_first: Any = None) -> us.PolicyOutput:
        out = super().forward(obs)
        return us.PolicyOutput(out.distribution, out.value.unsqueeze(-1))


class _Tuple(Constant):
    def forward(self, obs: Any, state: Any = None, is_first: Any = None) -> Any:
        return obs, state


class _OtherActor(Constant):
    def run_actor(self, obs: Any, state: Any = None, is_first: Any = None) -> Any:
        return self.head.from_params(torch.zeros(obs.shape[0], 4)), None, {}


class _Greedy(Constant):
    def forward(self, obs: Any, state: Any = None, is_first: Any = None) -> us.PolicyOutput:
        self.observe(obs, self.input_keys)  # the critic's, too
        return super().forward(obs)


@pytest.mark.parametrize(
    ("kind", "space", "message"),
    [
        (_WrongValue, SPACE, r"_WrongValue gives value \(2, 1\) for two rows; it must be \(2,\)"),
        (_Tuple, SPACE, "must return a PolicyOutput from forward, it returns a tuple"),
        (_OtherActor, SPACE, "different distributions"),
        (_Greedy, WIDER, "cannot act on policy alone .* override run_actor"),
        (Forgetless, SPACE, "remembers what came before is_first"),
        (Unordered, SPACE, "other results for a sequence"),
    ],
)
def test_a_policy_that_breaks_the_protocol_is_named(kind: Any, space: spaces.Dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_policy(kind(space, ACTIONS))


def test_the_check_changes_nothing() -> None:
    policy = Counter(SPACE, ACTIONS)
    before, drawn = {k: v.clone() for k, v in policy.state_dict().items()}, torch.get_rng_state()
    assert check_policy(policy) is policy
    assert policy.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_a_factory_that_makes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factories.py").write_text("def make(observations, actions, config, *, size):\n    return size\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = us.PolicyConfig(factory="factories:make", factory_kwargs={"size": 3})
    assert config.modules == ("factories",)
    with pytest.raises(ValueError, match=r"makes a int, not an us\.Policy"):
        build_policy(SPACE, ACTIONS, config)
    with pytest.raises(ValueError, match="did you mean make"):
        build_policy(SPACE, ACTIONS, us.PolicyConfig(factory="factories:mke"))
    with pytest.raises(ValueError, match=r"'factories:make' cannot be called with the options \{\}: missing.*'size'"):
        build_policy(SPACE, ACTIONS, us.PolicyConfig(factory="factories:make"))


# ------------------------------------------------------------------ own trunks


class _Rows(nn.Module):
    """A recurrent trunk: the mean of the episode's features so far."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features, self.state_size = in_features, in_features + 1

    def forward(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        return unroll(self.step, x, state, is_first)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + torch.cat((x, torch.ones_like(x[:, :1])), dim=-1)
        return state[:, :-1] / state[:, -1:], state


def test_a_trunk_by_name_serves_actor_and_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(save_module(tmp_path, "named_nets"))
    config = us.PolicyConfig(trunk="named_nets:Doubling", trunk_kwargs={"times": 3})
    policy = build_policy(WIDER, ACTIONS, config)
    assert isinstance(policy, ActorCritic)
    assert policy.critic is not None
    assert (policy.actor.out_features, policy.critic.out_features) == (9, 6)
    one_sided = us.PolicyConfig(trunk="named_nets:Doubling", critic_trunk="mlp", critic_hidden_sizes=(5,))
    policy = ActorCritic(WIDER, ACTIONS, one_sided)
    assert policy.critic is not None
    assert (policy.actor.out_features, policy.critic.out_features) == (6, 5)
    assert policy.built_from == one_sided


def test_a_trunk_as_an_object() -> None:
    trunk = nn.Sequential(nn.Linear(3, 7))
    trunk.out_features = 7  # type: ignore[assignment]
    policy = ActorCritic(SPACE, ACTIONS, trunk=trunk)
    assert policy.critic is not None
    assert policy.built_from is None
    assert policy.actor.own is trunk
    own, copied = policy.actor.get_parameter("own.0.weight"), policy.critic.get_parameter("own.0.weight")
    assert own is not copied
    assert torch.equal(own, copied)
    obs = rows(4)
    latent = policy(obs).latents["actor"]
    torch.testing.assert_close(latent, trunk(obs["policy"].clamp(-10.0, 10.0)))


def test_a_recurrent_trunk_carries_its_state() -> None:
    policy = ActorCritic(SPACE, ACTIONS, us.PolicyConfig(normalize_observations=False), trunk=_Rows)
    assert (policy.state_size, policy.actor_state_size) == (8, 4)
    obs = rows(3, 2)
    is_first = torch.tensor([[True, True], [False, True], [False, False]])
    out = policy(obs, torch.ones(2, 8), is_first)
    torch.testing.assert_close(out.latents["actor"][2, 0], obs["policy"][:, 0].mean(0))
    torch.testing.assert_close(out.latents["actor"][2, 1], obs["policy"][1:, 1].mean(0))
    with torch.no_grad():
        alone, state, _ = policy.run_actor(obs[0], torch.zeros(2, 4))  # the actor's share is enough
    assert state is not None
    assert state.shape == (2, 4)
    torch.testing.assert_close(alone.params, policy(obs[0]).distribution.params)


@pytest.mark.parametrize(
    ("trunk", "options", "message"),
    [
        (nn.Identity(), {}, "out_features, got Identity"),
        (lambda features: features, {}, "an nn.Module with out_features, got int"),
        (_Rows, {"memory": "gru"}, "has its own memory"),
    ],
)
def test_a_trunk_that_does_not_fit(trunk: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorCritic(SPACE, ACTIONS, us.PolicyConfig(**options), trunk=trunk)


# ------------------------------------------------------------------ parts


def test_an_auxiliary_head_needs_the_actor_s_latent() -> None:
    policy = Counter(SPACE, ACTIONS)
    head = policy.auxiliary_head(same=True)
    assert torch.equal(head.linear.weight, policy.get_parameter("head.linear.weight"))
    with pytest.raises(ValueError, match='latents\\["actor"\\]'):
        Constant(SPACE, ACTIONS).auxiliary_head(same=False)


@pytest.mark.parametrize(("wrong", "hint"), [(nn.Linear(4, 2), "inherit us.Policy"), (us.ActorCritic, "build one")])
def test_ppo_says_what_is_no_policy(wrong: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=f"policy must be an us.Policy object, got .*; {hint}"):
        us.PPO(us.make_env("CartPole-v1", 2), wrong)
