"""The interaction design, by hand and saturated; the sparse layer against the dense one; policies on it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.envs import make_env
from understudy.nn.interactions import ActiveLinear, active_columns, interaction_terms
from understudy.nn.networks import EncoderConfig, InteractionEncoder, make_encoder
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.ppo import PPO

LIGHT_HOUSE = [4, 4, 4, 4, 5, 5]


def dense(columns: Tensor, size: int) -> Tensor:
    """The design as zeros and ones, `[..., size]`, from active columns `[..., J]`."""
    ones = torch.zeros(*columns.shape[:-1], size + 1, dtype=torch.float64)
    return ones.scatter_(-1, columns, 1.0)[..., :size]


def linear_policy(observation: spaces.Space[Any], **options: Any) -> ActorCritic:
    config = PolicyConfig(hidden_sizes=(), encoder=EncoderConfig(interactions=True), **options)
    return ActorCritic(spaces.Dict({"policy": observation}), spaces.Discrete(4), config)


def test_terms_of_two_factors_by_hand() -> None:
    # {a-}, {b-}, {a-, b-}: the third takes in the first: 1 + b[1:] + a[1:]:b, as patsy's manual has it
    assert interaction_terms(2) == [{1: False}, {0: False, 1: True}]
    assert interaction_terms(1) == [{0: False}]


def test_columns_of_two_factors_by_hand() -> None:
    # columns: 0 intercept | 1 b=1, 2 b=2 | 3 to 5: a=1 with b = 0, 1, 2; 6 is none
    expected = [[0, 6, 6], [0, 1, 6], [0, 2, 6], [0, 6, 3], [0, 1, 4], [0, 2, 5]]
    assert active_columns([2, 3]).tolist() == expected


@pytest.mark.parametrize("nvec", [[3], [2, 3], [3, 2, 4], [2, 3, 2, 3], [2, 2, 2, 2, 2]])
def test_the_design_is_saturated(nvec: list[int]) -> None:
    size = math.prod(nvec)
    assert torch.linalg.matrix_rank(dense(active_columns(nvec), size)) == size


def test_the_design_of_light_house_is_that_of_the_paper() -> None:
    columns = active_columns(LIGHT_HOUSE)
    ones = (columns < 6400).sum(-1)
    assert columns.shape == (6400, 13)
    assert (int(ones.min()), int(ones.max())) == (1, 13)
    assert float(ones.double().mean()) == pytest.approx(7.896875)  # patsy's design, which has these columns
    assert torch.equal(columns[columns < 6400].unique(), torch.arange(6400))


def test_encoder_finds_the_row_of_the_table() -> None:
    encoder = make_encoder(spaces.MultiDiscrete([2, 3], start=[5, -1]), EncoderConfig(interactions=True))
    assert isinstance(encoder, InteractionEncoder)
    assert encoder.out_features == 6
    x = torch.tensor(list(itertools.product([5, 6], [-1, 0, 1])))
    assert torch.equal(encoder(x), active_columns([2, 3]))
    assert torch.equal(encoder(x.view(2, 3, 2)), active_columns([2, 3]).view(2, 3, 3))
    single = make_encoder(spaces.Discrete(3, start=2), EncoderConfig(interactions=True))
    assert single(torch.tensor([2, 3, 4])).tolist() == [[0, 3], [0, 1], [0, 2]]


def test_active_linear_equals_the_dense_layer_with_gradients() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6400, 4).double()
    layer = ActiveLinear.like(plain)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert list(layer.state_dict()) == ["weight", "bias"]
    columns = active_columns(LIGHT_HOUSE)[torch.randint(6400, (50,))]
    target = torch.randn(50, 4, dtype=torch.float64)
    expected, actual = plain(dense(columns, 6400)), layer(columns)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((expected - target).square().sum(), plain.parameters())
    got = torch.autograd.grad((actual - target).square().sum(), layer.parameters())
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    bare = nn.Linear(6, 2, bias=False)
    rows = active_columns([2, 3])
    torch.testing.assert_close(ActiveLinear.like(bare)(rows), bare(dense(rows, 6).float()))


@pytest.mark.parametrize("shared", [False, True])
def test_heads_values_and_parts_read_the_design(shared: bool) -> None:
    torch.manual_seed(0)
    policy = linear_policy(spaces.MultiDiscrete(LIGHT_HOUSE), shared_trunk=shared)
    auxiliary = policy.actor.reader(nn.Linear(policy.actor.out_features, 4))  # what a part puts on the latent
    x = torch.stack([torch.randint(n, (30,)) for n in LIGHT_HOUSE], dim=-1)
    out = policy(TensorDict({"policy": x}, batch_size=[30]))
    design = dense(out.latents["actor"], 6400).float()
    for layer, actual in (
        (policy.head.linear, out.distribution.params),
        (policy.value_head, out.value.unsqueeze(-1)),
        (auxiliary, auxiliary(out.latents["actor"])),
    ):
        torch.testing.assert_close(actual, design @ layer.weight.t() + layer.bias)
    assert sum(p.numel() for p in policy.parameters()) == 6401 * 5


@pytest.mark.parametrize("capture", ["eager", "trace"])
def test_ppo_learns_on_it(capture: Any) -> None:
    env = make_env("LightHouse-v0", 20, env_kwargs={"view_radius": 3, "expert_radius": 3, "world_radius": 3})
    torch.manual_seed(0)
    config = PolicyConfig(hidden_sizes=(), encoder=EncoderConfig(interactions=True))
    policy = ActorCritic(env.observation_space, env.action_space, config)
    optimizer = OptimizerConfig(learning_rate=0.02)
    ppo = PPO(
        env,
        policy,
        PPOConfig(num_steps=50, minibatches=2, capture=capture, optimizer=optimizer),
        seed=0,
        total_steps=15_000,
    )
    lengths = [ppo.iterate()["episode/length"] for _ in range(15)]
    assert lengths[-1] < 7  # 6 is optimal


def test_bad_input() -> None:
    integers, box = spaces.MultiDiscrete([2, 3]), spaces.Box(-1.0, 1.0, (3,))
    for options in ({"memory": "lstm"}, {"precision": "bfloat16"}, {"critic_hidden_sizes": (8,)}):
        with pytest.raises(ValueError, match=r"set hidden_sizes=\(\)"):
            linear_policy(integers, **options)
    for observation in (box, spaces.Dict({"a": integers, "b": integers})):
        with pytest.raises(ValueError, match="one Discrete or MultiDiscrete component"):
            linear_policy(observation)
    with pytest.raises(ValueError, match="choose one"):
        EncoderConfig(interactions=True, embedding_size=3)
    for nvec in ([2] * 9, [1001, 1000]):
        with pytest.raises(ValueError, match="too many for the interaction design"):
            make_encoder(spaces.MultiDiscrete(nvec), EncoderConfig(interactions=True))
