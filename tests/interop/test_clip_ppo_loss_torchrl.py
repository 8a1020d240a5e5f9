"""`us.ClipPPOLoss` beside TorchRL's own on the same random data: losses, logs and gradients, float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
    set_composite_lp_aggregate,
)
from tensordict.nn.distributions import NormalParamExtractor
from torch import distributions as D
from torch import nn

import understudy as us

torchrl = pytest.importorskip("torchrl")
from torchrl.modules import IndependentNormal, OneHotCategorical, PercentileValueNorm, TanhNormal  # noqa: E402
from torchrl.objectives import ClipPPOLoss, SoftUpdate, ValueEstimators  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
OBS, HIDDEN, ACT = 3, 5, 2
SEED = 0
DISTRIBUTIONS: dict[str, Any] = {
    "independent": lambda loc, scale: D.Independent(D.Normal(loc, scale), 1),
    "independent_normal": IndependentNormal,
    "tanh_normal": TanhNormal,
    "categorical": D.Categorical,
    "one_hot": OneHotCategorical,
}
SHAPES: list[tuple[int, ...]] = [(16,), (4, 6)]


def linear(into: str, out: str, sizes: tuple[int, int]) -> TensorDictModule:
    return TensorDictModule(
        nn.Sequential(nn.Linear(*sizes, dtype=torch.float64), nn.Tanh()), in_keys=[into], out_keys=[out]
    )


def build(kind: str, sharing: str, log_prob_key: str | None = None) -> tuple[Any, Any, Any]:
    """Actor, critic, and a critic that is complete."""
    torch.manual_seed(SEED)
    continuous = kind not in ("categorical", "one_hot")
    trunk = linear("observation", "hidden", (OBS, HIDDEN))
    width = nn.Linear(HIDDEN, 2 * ACT, dtype=torch.float64)
    head = nn.Sequential(width, NormalParamExtractor()) if continuous else width
    params = ["loc", "scale"] if continuous else ["logits"]
    extra = {} if log_prob_key is None else {"log_prob_key": log_prob_key}
    last = ProbabilisticTensorDictModule(
        in_keys=params, out_keys=["action"], distribution_class=DISTRIBUTIONS[kind], return_log_prob=True, **extra
    )
    actor = ProbabilisticTensorDictSequential(trunk, TensorDictModule(head, in_keys=["hidden"], out_keys=params), last)
    value = linear("hidden", "state_value", (HIDDEN, 1))
    own = trunk if sharing != "none" else copy.deepcopy(trunk)
    complete = TensorDictSequential(own, value)
    return actor, value if sharing == "head" else complete, complete


def make_batch(actor: Any, critic: Any, shape: tuple[int, ...]) -> TensorDict:
    """A rollout that the actor collected, of a moment ago: its weights move afterwards."""
    torch.manual_seed(SEED + 1)
    batch = TensorDict({"observation": torch.randn(*shape, OBS, dtype=torch.float64)}, batch_size=shape)
    done = torch.rand(*shape, 1) < 0.2
    batch["next"] = TensorDict(
        {
            "observation": torch.randn(*shape, OBS, dtype=torch.float64),
            "reward": torch.randn(*shape, 1, dtype=torch.float64),
            "done": done,
            "terminated": done & (torch.rand(*shape, 1) < 0.5),
        },
        batch_size=shape,
    )
    with torch.no_grad():
        actor(batch)
        critic(batch)
        for parameter in {*actor.parameters(), *critic.parameters()}:
            parameter += 0.3 * torch.randn_like(parameter)
    batch["state_value"] = batch["state_value"] + torch.randn(*shape, 1, dtype=torch.float64)
    batch["advantage"] = torch.randn(*shape, 1, dtype=torch.float64)
    batch["value_target"] = torch.randn(*shape, 1, dtype=torch.float64)
    return batch


def original(actor: Any, critic: Any, **options: Any) -> Any:
    """TorchRL's loss, its float32 coefficients (as ours, but for their logarithms) in float64."""
    return ClipPPOLoss(actor, critic, **options).double()


def losses(out: Any) -> dict[str, torch.Tensor]:
    return {name: x for name, x in out.items() if name.startswith("loss_")}


def near(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    """1e-6 of the largest number."""
    theirs = theirs.detach().reshape(ours.shape)
    error, size = float((ours.detach() - theirs).abs().max()), float(theirs.abs().max())
    assert error <= 1e-6 * size + 1e-12, f"{name}: {error:.1e} of {size:.1e}"


def same(ours: Any, theirs: Any, batch: TensorDict) -> None:
    """Equal losses, logs and gradients."""
    torch.manual_seed(5)  # for entropies from samples
    mine = ours(batch)
    torch.manual_seed(5)
    other = theirs(batch)
    assert losses(mine).keys() == losses(other).keys()
    for name, x in other.items():
        if name == "composite_entropy" or (batch.ndim > 1 and name in ("explained_variance", "ESS")):
            continue  # those are over the first dimension only there
        near(mine["kl_k1" if name == "kl_approx" else name], x, name)
    gradients = []
    for out, loss in ((mine, ours), (other, theirs)):
        loss.zero_grad()
        sum(x.sum() for x in losses(out).values()).backward()
        gradients.append({name: p.grad for name, p in weights(loss).items()})
    found = 0
    for name, wanted in gradients[1].items():
        slope = gradients[0][name]
        if wanted is None or not wanted.any():
            assert slope is None or not slope.any(), name
        else:
            near(slope, wanted, f"gradient of {name}")
            found += 1
    assert found > 2


def weights(loss: Any) -> dict[str, Any]:
    """The weights of a loss by their names; the critic's own ones only, where a trunk is shared."""
    actor, critic = loss.actor_network, loss.critic_network
    if isinstance(loss, ClipPPOLoss):  # which took them out of its modules
        parts = {"actor": loss.actor_network_params, "critic": loss.critic_network_params}
        found = {f"{name}.{key}": x for name, part in parts.items() for key, x in part.flatten_keys(".").items()}
    else:
        parts = {"actor": actor, "critic": critic}
        found = {f"{name}.{key}": x for name, part in parts.items() for key, x in part.named_parameters()}
    return {name: x for name, x in found.items() if isinstance(x, nn.Parameter)}


def compare(
    kind: str = "independent",
    sharing: str = "none",
    shape: tuple[int, ...] = (16,),
    without: tuple[str, ...] = (),
    **options: Any,
) -> None:
    actor, critic, complete = build(kind, sharing)
    batch = make_batch(actor, complete, shape).exclude(*without)
    # one copy of both, so that they still share: TorchRL takes the weights out of the modules that it gets
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    ours = us.ClipPPOLoss(actor, critic, **options)
    theirs = original(theirs_actor, theirs_critic, **options)
    same(ours, theirs, batch)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("sharing", ["none", "trunk", "head"])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_distributions_and_trunks(kind: str, sharing: str, separate: bool, shape: tuple[int, ...]) -> None:
    compare(kind, sharing, shape, separate_losses=separate, entropy_coeff=0.3, critic_coeff=0.5)


OPTIONS: list[dict[str, Any]] = [
    *({"loss_critic_type": kind, "clip_value": clip} for kind in ("l1", "l2", "smooth_l1") for clip in (None, 0.4)),
    *({"reduction": x, "clip_value": clip} for x in ("mean", "sum", "none") for clip in (None, True)),
    {"clip_epsilon": (0.1, 0.3), "clip_value": 0.2},
    {"clip_epsilon": 0.05},
    {"normalize_advantage": True},
    {"entropy_bonus": False},
    {"entropy_coeff": 0.7, "critic_coeff": 0.25},
    {"max_importance_ratio": 1.1},
    {"max_importance_ratio": 0.7, "clip_epsilon": 0.3, "reduction": "none"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    compare(shape=shape, **options)


@pytest.mark.parametrize("exclude", [(0,), (1,), (-2,), (-1,)])
def test_dimensions_of_their_own(exclude: tuple[int, ...]) -> None:
    compare(shape=(4, 6), normalize_advantage=True, normalize_advantage_exclude_dims=exclude)


@pytest.mark.parametrize("samples", [1, 4, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_entropy_from_samples(samples: int, shape: tuple[int, ...]) -> None:
    compare("tanh_normal", shape=shape, samples_mc_entropy=samples)


@pytest.mark.parametrize("key", [("collector", "mask"), "shifted_valid"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_padding_does_not_count(key: Any, reduction: str) -> None:
    actor, critic, complete = build("independent", "none")
    batch = make_batch(actor, complete, (16,))
    batch[key] = torch.rand(16, 1) < 0.6
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    ours = us.ClipPPOLoss(actor, critic, reduction=reduction)(batch)
    theirs = original(theirs_actor, theirs_critic, reduction=reduction)(batch)
    for name, x in losses(theirs).items():
        near(ours[name], x, name)


ESTIMATORS = [
    (ValueEstimators.GAE, {"gamma": 0.97, "lmbda": 0.9}),
    (ValueEstimators.TDLambda, {"gamma": 0.97, "lmbda": 0.8}),
    (ValueEstimators.TD1, {"gamma": 0.9}),
    (ValueEstimators.TD0, {"gamma": 0.9}),
    (None, {}),
]


@pytest.mark.parametrize("shape", [(12,), (4, 6)], ids=str)
@pytest.mark.parametrize(("kind", "numbers"), ESTIMATORS, ids=str)
def test_value_estimators(kind: Any, numbers: dict[str, float], shape: tuple[int, ...]) -> None:
    actor, critic, complete = build("independent", "trunk")
    batch = make_batch(actor, complete, shape).exclude("advantage", "value_target", "state_value")
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    ours, theirs = us.ClipPPOLoss(actor, critic), original(theirs_actor, theirs_critic)
    ours.make_value_estimator(kind, **numbers)
    theirs.make_value_estimator(kind, **numbers)
    same(ours, theirs, batch)
    mine, other = batch.clone(), batch.clone()
    ours.value_estimator(mine)
    theirs.value_estimator(other, params=theirs.critic_network_params, target_params=theirs.critic_network_params)
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        near(mine[key], other[key], str(key))
        assert mine[key].shape == other[key].shape


def test_torchrl_s_own_estimator_is_used_as_it_is() -> None:
    from torchrl.objectives.value import GAE

    actor, critic, complete = build("independent", "none")
    batch = make_batch(actor, complete, (4, 6)).exclude("advantage", "value_target", "state_value")
    named = us.ClipPPOLoss(actor, critic).make_value_estimator("gae", gamma=0.9, lmbda=0.8)(batch)
    given = us.ClipPPOLoss(actor, critic).make_value_estimator(
        GAE(gamma=0.9, lmbda=0.8, value_network=critic).double()
    )(batch)
    for name, x in named.items():
        near(given[name], x, name)


def test_keys_are_renamed_alike() -> None:
    actor, critic, complete = build("independent", "none")
    batch = make_batch(actor, complete, (16,))
    names: dict[str, Any] = {
        "advantage": ("gae", "a"),
        "value_target": "target",
        "sample_log_prob": "old",
        "action": "act",
    }
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    ours, theirs = us.ClipPPOLoss(actor, critic), original(theirs_actor, theirs_critic)
    for old, new in {**names, "action_log_prob": names.pop("sample_log_prob")}.items():
        if old in batch:
            batch.rename_key_(old, new)
    for loss in (ours, theirs):
        loss.set_keys(sample_log_prob="old", **names)
    assert ours.tensor_keys.action == theirs.tensor_keys.action == "act"
    same(ours, theirs, batch)


def test_the_log_prob_lies_where_the_actor_writes_it() -> None:
    actor, critic, complete = build("independent", "none", log_prob_key="logp")
    batch = make_batch(actor, complete, (16,))
    assert "logp" in batch
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    ours, theirs = us.ClipPPOLoss(actor, critic), original(theirs_actor, theirs_critic)
    same(ours, theirs, batch)


def test_advantage_norm() -> None:
    """Divided by the scale; statistics move where the loss computes advantages, not where they came with the batch."""
    actor, critic, complete = build("independent", "none")
    batch = make_batch(actor, complete, (4, 6))
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    norms = [PercentileValueNorm(rate=0.5, min_scale=1e-3).double() for _ in range(2)]
    ours = us.ClipPPOLoss(actor, critic, advantage_norm=norms[0]).make_value_estimator()
    theirs = original(theirs_actor, theirs_critic, advantage_norm=norms[1])
    without = batch.exclude("advantage", "value_target", "state_value")
    for rows in (without, batch, without):
        same(ours, theirs, rows)
        near(norms[0].scale(), norms[1].scale(), "scale")


def test_a_delayed_actor_and_its_moving_average() -> None:
    actor, critic, complete = build("independent", "trunk")
    batch = make_batch(actor, complete, (16,))
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    options: dict[str, Any] = {"delay_actor": True, "max_importance_ratio": 1.5, "entropy_coeff": 0.1}
    ours, theirs = us.ClipPPOLoss(actor, critic, **options), original(theirs_actor, theirs_critic, **options)
    updater = SoftUpdate(theirs, eps=0.8)
    for step in range(3):
        same(ours, theirs, batch)
        torch.manual_seed(step)
        moves = [0.3 * torch.randn_like(p) for p in actor.parameters()]
        with torch.no_grad():
            for parameters in (actor.parameters(), theirs.actor_network_params.parameters()):
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter += move
        ours.update_target(eps=0.8)
        updater.step()


def composite() -> tuple[Any, Any, TensorDict]:
    def split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x[..., :2], x[..., 2:4].exp(), x[..., 4:]

    net = TensorDictModule(nn.Linear(OBS, 7, dtype=torch.float64), in_keys=["observation"], out_keys=["raw"])
    out: list[Any] = [("params", "move", "loc"), ("params", "move", "scale"), ("params", "grip", "logits")]
    last = ProbabilisticTensorDictModule(
        in_keys=["params"],
        out_keys=["move", "grip"],
        distribution_class=CompositeDistribution,
        distribution_kwargs={"distribution_map": {"move": IndependentNormal, "grip": D.Categorical}},
        return_log_prob=True,
    )
    actor = ProbabilisticTensorDictSequential(net, TensorDictModule(split, in_keys=["raw"], out_keys=out), last)
    _, critic, complete = build("independent", "none")
    return actor, critic, make_batch(actor, complete, (16,))


@pytest.mark.parametrize(
    "coeff", [0.4, {"move_log_prob": 0.1, "grip_log_prob": 0.3}, {"move": 0.1, "grip": 0.3}], ids=str
)
def test_composite_actions_and_their_entropies(coeff: Any) -> None:
    with set_composite_lp_aggregate(False):
        actor, critic, batch = composite()
        theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
        ours = us.ClipPPOLoss(actor, critic, entropy_coeff=coeff)
        named = {"move_entropy": 0.1, "grip_entropy": 0.3} if isinstance(coeff, dict) else coeff
        theirs = original(theirs_actor, theirs_critic, entropy_coeff=named)
        same(ours, theirs, batch)


@pytest.mark.parametrize("kind", ["categorical", "independent_normal"])
@pytest.mark.parametrize("sharing", ["none", "trunk"])
def test_training_gives_the_same_weights(kind: str, sharing: str) -> None:
    """Three iterations, six steps each, with the origin's optimizer and clipping: 2e-5 relative in the weights."""
    actor, critic, complete = build(kind, sharing)
    batch = make_batch(actor, complete, (24,))
    theirs_actor, theirs_critic = copy.deepcopy((actor, critic))
    ours = us.ClipPPOLoss(actor_network=actor, critic_network=critic, normalize_advantage=True)
    theirs = original(theirs_actor, theirs_critic, normalize_advantage=True)
    trained = [[*ours.parameters()], [*theirs.parameters()]]
    optimizers = [torch.optim.Adam(own, lr=3e-3) for own in trained]
    for step in range(18):
        rows = batch[torch.randperm(24, generator=torch.Generator().manual_seed(step))[:8]]
        for loss, own, optimizer in zip((ours, theirs), trained, optimizers):
            optimizer.zero_grad()
            sum(losses(loss(rows)).values()).backward()
            nn.utils.clip_grad_norm_(own, 0.5)
            optimizer.step()
    mine = weights(ours)
    for name, x in weights(theirs).items():
        torch.testing.assert_close(mine[name].detach(), x.detach(), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("sharing", ["head", "none"])
def test_a_memory_over_whole_columns(kind: str, sharing: str) -> None:
    """An actor (and critic) with TorchRL's memory: both losses run it over columns, from states of collection."""
    from torchrl.modules import GRUModule, LSTMModule

    torch.manual_seed(SEED)

    def memory(out: str, prefix: str) -> Any:
        state = [f"{prefix}{name}" for name in (("h", "c") if kind == "lstm" else ("h",))]
        return (LSTMModule if kind == "lstm" else GRUModule)(
            input_size=OBS,
            hidden_size=HIDDEN,
            in_keys=["observation", *state],
            out_keys=[out, *(("next", key) for key in state)],
        ).double()

    trunk = memory("hidden", "")
    head = TensorDictModule(nn.Linear(HIDDEN, ACT, dtype=torch.float64), in_keys=["hidden"], out_keys=["logits"])
    last = ProbabilisticTensorDictModule(
        in_keys=["logits"], out_keys=["action"], distribution_class=D.Categorical, return_log_prob=True
    )
    actor = ProbabilisticTensorDictSequential(trunk, head, last)
    value = linear("hidden", "state_value", (HIDDEN, 1))
    critic: Any = value
    if sharing == "none":
        critic = TensorDictSequential(memory("seen", "critic_"), linear("seen", "state_value", (HIDDEN, 1)))
    shape = (4, 6)
    batch = TensorDict({"observation": torch.randn(*shape, OBS, dtype=torch.float64)}, batch_size=shape)
    batch["is_init"] = torch.rand(*shape, 1) < 0.3
    for key in ("h", "c", "critic_h", "critic_c"):  # states of collection; where an episode begins, there is none
        batch[key] = torch.randn(*shape, 1, HIDDEN, dtype=torch.float64) * ~batch["is_init"].unsqueeze(-1)
    batch["action"] = torch.randint(ACT, shape)
    for key in ("action_log_prob", "advantage", "value_target", "state_value"):
        x = torch.randn(*shape, 1, dtype=torch.float64)
        batch[key] = -x.abs().squeeze(-1) if key == "action_log_prob" else x
    ours = us.ClipPPOLoss(actor, critic, loss_critic_type="l2")
    theirs = original(actor, critic, loss_critic_type="l2")
    same(ours, theirs, batch)
