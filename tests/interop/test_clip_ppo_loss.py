from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
    set_composite_lp_aggregate,
)
from tensordict.nn.distributions import NormalParamExtractor
from torch import Tensor, nn
from torch import distributions as D

from understudy.core.schedules import Schedule, advance_all
from understudy.interop.torchrl.clip_ppo_loss import ClipPPOLoss
from understudy.ppo.losses import normalize

F64 = torch.float64
ROWS, OBS, HIDDEN, ACT = 16, 3, 5, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def independent_normal(loc: Tensor, scale: Tensor) -> D.Distribution:
    return D.Independent(D.Normal(loc, scale), 1)


def head(distribution: Any = independent_normal) -> ProbabilisticTensorDictModule:
    return ProbabilisticTensorDictModule(
        in_keys=["loc", "scale"], out_keys=["action"], distribution_class=distribution, return_log_prob=True
    )


def params(key: str, size: int) -> list[Any]:
    net = nn.Sequential(nn.Linear(size, 2 * ACT, dtype=F64), NormalParamExtractor())
    return [TensorDictModule(net, in_keys=[key], out_keys=["loc", "scale"])]


def linear(into: str, out: str, sizes: tuple[int, int]) -> Any:
    return TensorDictModule(nn.Sequential(nn.Linear(*sizes, dtype=F64), nn.Tanh()), in_keys=[into], out_keys=[out])


def modules(distribution: Any = independent_normal) -> tuple[Any, Any]:
    """Actor and critic that share nothing."""
    actor = ProbabilisticTensorDictSequential(*params("observation", OBS), head(distribution))
    return actor, TensorDictModule(nn.Linear(OBS, 1, dtype=F64), in_keys=["observation"], out_keys=["state_value"])


def make_batch(actor: Any, critic: Any, moved: float = 0.3, rows: int = ROWS) -> TensorDict:
    """A minibatch in TorchRL's shapes, collected by a policy a little away from today's.

    What that policy left in the batch (loc, scale, hidden) is stale and must not be used.
    """
    batch = TensorDict({"observation": torch.randn(rows, OBS, dtype=F64)}, batch_size=[rows])
    with torch.no_grad():
        actor(batch)
        critic(batch)
        for parameter in {*actor.parameters(), *critic.parameters()}:
            parameter += moved * torch.randn_like(parameter)
    batch["state_value"] = batch["state_value"] + torch.randn(rows, 1, dtype=F64)
    batch["advantage"] = torch.randn(rows, 1, dtype=F64)
    batch["value_target"] = torch.randn(rows, 1, dtype=F64)
    return batch


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=tolerance, atol=1e-9)


def total(out: TensorDict) -> Tensor:
    return torch.stack([x for name, x in out.to_dict().items() if name.startswith("loss_")]).sum()


def flat(actor: Any) -> list[Any]:
    """The modules of an actor in order; `get_dist` of a sequence within a sequence skips the inner one's network."""
    if not isinstance(actor, ProbabilisticTensorDictSequential):
        return [actor]
    return [inner for module in actor.module for inner in flat(module)]


def direct(actor: Any, critic: Any, batch: TensorDict, **options: Any) -> dict[str, Tensor]:
    """The page's formulas, written out with torch.min, torch.max and torch.distributions."""
    clip, clip_value = options.get("clip_epsilon", 0.2), options.get("clip_value")
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    data = batch.clone()
    dist = ProbabilisticTensorDictSequential(*flat(actor)).get_dist(data)
    log_ratio = dist.log_prob(batch["action"]) - batch["action_log_prob"]
    ratio = log_ratio.exp()
    advantage, target = batch["advantage"][:, 0], batch["value_target"][:, 0]
    if options.get("normalize_advantage"):
        advantage = (advantage - advantage.mean()) / advantage.std()
    value, old = critic(data)["state_value"][:, 0], batch["state_value"][:, 0]
    criterion = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[
        options.get("loss_critic_type", "smooth_l1")
    ]
    errors = criterion(value, target, reduction="none")
    out = {}
    if clip_value:
        radius = clip if clip_value is True else clip_value
        errors = torch.max(errors, criterion(old + (value - old).clamp(-radius, radius), target, reduction="none"))
        out["value_clip_fraction"] = ((value - old).abs() > radius).double().mean()
    out["loss_objective"] = -torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage).mean()
    out["loss_critic"] = options.get("critic_coef", 1.0) * errors.mean()
    if options.get("entropy_bonus", True):
        out["entropy"] = dist.entropy().mean()
        out["loss_entropy"] = -options.get("entropy_coef", 0.01) * dist.entropy().mean()
    out["kl_approx"], out["kl_k1"] = (ratio - 1 - log_ratio).mean(), -log_ratio.mean()
    out["clip_fraction"] = ((ratio < 1 - low) | (ratio > 1 + high)).double().mean()
    out["ESS"] = ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)
    out["max_ratio"], out["mean_ratio"] = ratio.max(), ratio.mean()
    spread = target - target.mean()
    error = target - value
    out["explained_variance"] = 1 - ((error - error.mean()) ** 2).sum() / (spread**2).sum()
    return out


# ---- numbers


def four_samples() -> tuple[TensorDict, ClipPPOLoss]:
    """Action 1 of a Bernoulli has exactly the log-probs wanted."""
    now, then = torch.tensor([-0.6, -0.9, -2.05, -0.1], dtype=F64), torch.tensor([-1.0, -0.5, -2.0, -0.1], dtype=F64)
    batch = TensorDict(
        {
            "probs": now.exp(),
            "action": torch.ones(4, dtype=F64),
            "action_log_prob": then,
            "advantage": torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=F64),
            "value_target": torch.tensor([1.0, 0.0, 2.0, 4.0], dtype=F64),
            "guess": torch.tensor([0.5, 0.0, 0.0, 4.0], dtype=F64),
        },
        batch_size=[4],
    )
    actor = ProbabilisticTensorDictModule(in_keys=["probs"], out_keys=["action"], distribution_class=D.Bernoulli)
    critic = TensorDictModule(nn.Identity(), in_keys=["guess"], out_keys=["state_value"])
    return batch, ClipPPOLoss(actor, critic)


def test_the_four_sample_vector() -> None:
    batch, loss = four_samples()
    out = loss(batch)
    close(out["loss_objective"], -0.45061471)
    close(out["clip_fraction"], 0.5)
    close(out["kl_approx"], 0.04084354)
    close(out["kl_k1"], 0.0125)
    close(out["ESS"], 0.92363143)
    close(out["max_ratio"], math.exp(0.4))
    close(out["mean_ratio"], 1.02834354)
    close(out["loss_critic"], (0.125 + 0.0 + 1.5 + 0.0) / 4)
    close(out["explained_variance"], 1 - 0.671875 / 2.1875)  # errors .5 0 2 0, targets 1 0 2 4: biased variances
    loss.normalize_advantage = True
    close(loss(batch)["loss_objective"], -0.058238, 1e-5)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_epsilon": 0.05},
    {"clip_epsilon": (0.1, 0.3)},
    {"entropy_bonus": False},
    {"entropy_coef": 0.5, "critic_coef": 0.25},
    {"loss_critic_type": "l1"},
    {"loss_critic_type": "l2"},
    {"normalize_advantage": True},
    {"clip_value": True, "clip_epsilon": 0.3},
    {"clip_value": 0.5},
    {"clip_value": 0.7, "loss_critic_type": "l2", "clip_epsilon": (0.1, 0.2), "normalize_advantage": True},
    {"clip_value": False},
    {"separate_losses": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_equals_the_direct_computation(options: dict[str, Any]) -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    loss = ClipPPOLoss(actor, critic, **options)
    out, expected = loss(batch), direct(actor, critic, batch, **options)
    assert set(out.keys()) == set(expected) == set(loss.out_keys)
    for name, x in expected.items():
        close(out[name], x)
        assert out[name].requires_grad == name.startswith("loss_"), name
    assert out.batch_size == ()
    assert all(x.shape == () for x in out.values())
    parameters = list(loss.parameters())
    expected_total = torch.stack([x for name, x in expected.items() if name.startswith("loss_")]).sum()
    for slope, other in zip(
        torch.autograd.grad(total(out), parameters), torch.autograd.grad(expected_total, parameters)
    ):
        close(slope, other)


def test_defaults_are_the_page_s() -> None:
    loss = ClipPPOLoss(*modules())
    scalars = [loss.clip_low(), loss.clip_high(), loss.entropy_coef(), loss.critic_coef()]
    assert [round(float(x), 6) for x in scalars] == [0.2, 0.2, 0.01, 1.0]
    assert (loss.entropy_bonus, loss.samples_mc_entropy, loss.loss_critic_type) == (True, 1, "smooth_l1")
    assert (loss.normalize_advantage, loss.clip_value) == (False, None)
    keys = loss.tensor_keys
    assert (keys.advantage, keys.value_target, keys.value) == ("advantage", "value_target", "state_value")
    assert (keys.action, keys.sample_log_prob) == ("action", "action_log_prob")


def test_the_first_ratio_is_one() -> None:
    actor, critic = modules()
    out = ClipPPOLoss(actor, critic)(make_batch(actor, critic, moved=0.0))
    close(out["max_ratio"], 1.0, 1e-12)
    close(out["kl_approx"], 0.0)


def test_schedules_move_the_coefficients() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    fade = Schedule.parse("linear:1:0:10it")
    loss = ClipPPOLoss(actor, critic, clip_epsilon=fade, entropy_coef=fade, critic_coef=fade, clip_value=fade)
    advance_all(loss, 0, 5, 1, 10)
    options = {"clip_epsilon": 0.5, "entropy_coef": 0.5, "critic_coef": 0.5, "clip_value": 0.5}
    for name, x in direct(actor, critic, batch, **options).items():
        close(loss(batch)[name], x)


def test_keys_may_be_renamed_and_nested() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    expected = ClipPPOLoss(actor, critic, clip_value=0.3)(batch)
    critic = TensorDictModule(critic.module, in_keys=["observation"], out_keys=[("critic", "value")])
    keys: dict[str, Any] = {"advantage": ("gae", "a"), "state_value": ("critic", "value")}
    for old, new in {**keys, "value_target": "target", "action_log_prob": "old_log_prob"}.items():
        batch.rename_key_(old, new)
    loss = ClipPPOLoss(
        actor,
        critic,
        clip_value=0.3,
        advantage_key=("gae", "a"),
        value_target_key="target",
        value_key=("critic", "value"),
        log_prob_key="old_log_prob",
    )
    out = loss(batch)
    for name, x in expected.items():
        assert torch.equal(out[name], x)
    assert set(loss.in_keys) == {
        "observation", "action", "old_log_prob", ("gae", "a"), "target", ("critic", "value"),
    }  # fmt: skip


def test_the_input_is_left_as_it_is() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic).exclude("loc", "scale")
    before = batch.clone()
    ClipPPOLoss(actor, critic)(batch)
    assert set(batch.keys(True)) == set(before.keys(True))
    assert (batch == before).all()


# ---- TorchRL's words


def test_today_s_names_are_the_page_s() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    new = ClipPPOLoss(actor_network=actor, critic_network=critic, entropy_coeff=0.3, critic_coeff=0.7, device="cpu")
    old = ClipPPOLoss(actor=actor, critic=critic, entropy_coef=0.3, critic_coef=0.7)
    for name, x in old(batch).items():
        assert torch.equal(new(batch)[name], x)
    assert (new.actor_network, new.critic_network) == (actor, critic)
    new.clip_epsilon.copy_(0.05)  # what TorchRL's scripts do to anneal it
    new.entropy_coeff.copy_(0.0)
    new.critic_coeff.copy_(2.0)
    for name, x in direct(actor, critic, batch, clip_epsilon=0.05, entropy_coef=0.0, critic_coef=2.0).items():
        close(new(batch)[name], x)
    with pytest.raises(ValueError, match=r"clip_low\.value"):
        _ = ClipPPOLoss(actor, critic, clip_epsilon=(0.1, 0.2)).clip_epsilon


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entropy_coef": 0.01, "entropy_coeff": 0.01}, "entropy_coef and entropy_coeff are two spellings"),
        ({"critic_coef": 1.0, "critic_coeff": 0.5}, "critic_coef and critic_coeff are two spellings"),
        ({"actor_network": None, "actor_networks": None}, "no option 'actor_networks': did you mean actor_network"),
        ({"clip_epsilons": 0.2}, r"ClipPPOLoss has no option 'clip_epsilons': did you mean clip_epsilon"),
        ({"gamma": 0.9}, r"no option 'gamma': it belongs to the returns: us.gae\(gamma=\)"),
        ({"functional": False}, "no option 'functional': modules are used as they are"),
        ({"reduction": "max"}, "reduction must be one of mean, sum, none, got 'max'"),
        ({"max_importance_ratio": 0.0}, "max_importance_ratio must be greater than 0"),
        ({"normalize_advantage": True, "advantage_norm": nn.Identity()}, "exclude each other"),
        ({"entropy_coeff": {"move": 0.1}}, r"numbers for \['move'\], but the actor samples \['action'\]"),
    ],
)
def test_options_that_are_wrong_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipPPOLoss(*modules(), **options)


def test_an_actor_given_twice_or_never() -> None:
    actor, critic = modules()
    with pytest.raises(ValueError, match="actor and actor_network are two spellings"):
        ClipPPOLoss(actor, critic, actor_network=actor)
    with pytest.raises(ValueError, match=r"actor must be a Probabilistic.*got NoneType"):
        ClipPPOLoss(critic=critic)


def test_set_keys() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    loss = ClipPPOLoss(actor, critic, clip_value=0.3)
    expected = loss(batch)
    names: dict[str, Any] = {"advantage": ("gae", "a"), "action": "act", "sample_log_prob": "old"}
    for old, new in {"advantage": ("gae", "a"), "action": "act", "action_log_prob": "old"}.items():
        batch.rename_key_(old, new)
    loss.set_keys(**names)
    out = loss(batch)
    for name, x in expected.items():
        assert torch.equal(out[name], x)
    assert {"act", "old", ("gae", "a")} <= set(loss.in_keys)
    with pytest.raises(ValueError, match="TensorKeys has no option 'advantages': did you mean advantage"):
        loss.set_keys(advantages="a")
    with pytest.raises(ValueError, match="critic writes"):
        loss.set_keys(value="v")
    with pytest.raises(ValueError, match="lists 2 keys"):
        loss.set_keys(action=["a", "b"])


def test_the_log_prob_lies_where_the_actor_writes_it() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    last = ProbabilisticTensorDictModule(
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=independent_normal,
        return_log_prob=True,
        log_prob_key="logp",
    )
    renamed = ProbabilisticTensorDictSequential(actor[0], last)
    moved = batch.clone().rename_key_("action_log_prob", "logp")
    close(ClipPPOLoss(renamed, critic)(moved)["loss_objective"], ClipPPOLoss(actor, critic)(batch)["loss_objective"])


def test_reductions() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    options: dict[str, Any] = {"clip_value": 0.3, "entropy_coef": 0.5}
    mean = ClipPPOLoss(actor, critic, **options)(batch)
    each, summed = (ClipPPOLoss(actor, critic, reduction=x, **options)(batch) for x in ("none", "sum"))
    for name in mean.keys():  # noqa: SIM118
        if name.startswith("loss_"):
            assert each[name].shape == (ROWS,)
            close(each[name].mean(), mean[name])
            close(summed[name] / ROWS, mean[name])
        else:
            assert torch.equal(each[name], mean[name])


@pytest.mark.parametrize("key", [("collector", "mask"), "shifted_valid"])
def test_rows_of_padding_do_not_count(key: Any) -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    loss = ClipPPOLoss(actor, critic, clip_value=0.3, normalize_advantage=True)
    kept = torch.rand(ROWS, 1) < 0.6
    expected = loss(batch[kept[:, 0]])
    padded = batch.clone()
    padded[key] = kept
    for name in ("advantage", "value_target", "state_value"):
        padded[name] = torch.where(kept, padded[name], torch.nan)
    out = loss(padded)
    for name, x in expected.items():
        close(out[name], x)
    total(out).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


def test_capped_ratios_keep_a_rescaled_gradient() -> None:
    batch, loss = four_samples()
    log_ratio = torch.tensor([0.4, -0.4, -0.05, 0.0], dtype=F64)
    capped = ClipPPOLoss(loss.actor, loss.critic, max_importance_ratio=1.1, reduction="none")
    out, free = capped(batch), ClipPPOLoss(loss.actor, loss.critic, reduction="none")(batch)
    factor = torch.tensor([1.1 / math.exp(0.4), 1.0, 1.0, 1.0], dtype=F64)
    close(out["loss_objective"], factor * free["loss_objective"])
    close(out["max_ratio"], 1.1)
    close(out["kl_k1"], -log_ratio.mean())  # of the ratio that is clipped


def test_a_delayed_actor_is_clipped_around() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    loss = ClipPPOLoss(actor, critic, delay_actor=True, reduction="none")
    with torch.no_grad():
        actor[0].module[0].weight += 0.2
        near, now = (a.get_dist(batch.copy()).log_prob(batch["action"]) for a in (loss.target_actor, actor))
    ratio, advantage = (now - near).exp(), batch["advantage"][:, 0]
    gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    out = loss(batch)
    close(out["loss_objective"], -(near - batch["action_log_prob"]).exp() * gain)
    close(out["mean_ratio"], (now - batch["action_log_prob"]).exp().mean())
    assert not any(p.requires_grad for p in loss.target_actor.parameters())
    before = loss.target_actor[0].module[0].weight.clone()
    loss.update_target(0.75)
    close(loss.target_actor[0].module[0].weight, 0.75 * before + 0.25 * actor[0].module[0].weight)
    with pytest.raises(ValueError, match="delay_actor=True"):
        ClipPPOLoss(actor, critic).update_target()


class Doubling(nn.Module):
    """An `advantage_norm`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def update(self, value_target: Tensor) -> None:
        self.seen.append(value_target)

    def scale(self) -> Tensor:
        return torch.tensor([0.5], dtype=F64)


def test_advantage_norm_divides_and_learns_from_fresh_targets_only() -> None:
    actor, critic = modules()
    batch, norm = make_batch(actor, critic), Doubling()
    doubled = batch.clone()
    doubled["advantage"] = 2.0 * batch["advantage"]
    loss = ClipPPOLoss(actor, critic, advantage_norm=norm).make_value_estimator()
    close(loss(batch)["loss_objective"], ClipPPOLoss(actor, critic)(doubled)["loss_objective"])
    assert not norm.seen
    loss(six_steps(batch[:6]).exclude("advantage", "value_target"))
    assert [x.shape for x in norm.seen] == [(6, 1)]


def six_steps(batch: TensorDict) -> TensorDict:
    """One rollout [6]: the task ends in row 1, time is up in row 3."""
    flags = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]]).bool().unsqueeze(-1)
    after = {"reward": torch.tensor([[1.0, 0.5, -0.2, 0.3, 0.8, 0.1]], dtype=F64).T}
    after |= {"terminated": flags[0], "done": flags[1], "observation": batch["observation"].clone()}
    return batch.clone().set("next", TensorDict(after, [6]))


@pytest.mark.parametrize(
    ("name", "numbers", "advantage"),
    [
        ("gae", {}, [0.990050, 0.1, -0.204743, -0.206, 1.008028, -0.303]),  # TorchRL's own numbers
        ("TDLambda", {"lmbda": 0.5}, [0.9455, 0.1, -0.11297, -0.206, 1.143015, -0.303]),
        ("td1", {}, [0.995, 0.1, -0.21494, -0.206, 0.99303, -0.303]),
        ("td0", {"gamma": 0.9}, [0.86, 0.1, -0.11, -0.26, 1.23, -0.33]),
    ],
)
def test_value_estimators(name: str, numbers: dict[str, float], advantage: list[float]) -> None:
    """The values are read from the observations."""
    actor, _ = modules()
    critic = TensorDictModule(lambda x: x[..., :1], in_keys=["observation"], out_keys=["state_value"])
    batch = six_steps(make_batch(*modules())[:6]).exclude("advantage", "value_target", "state_value")
    value = torch.tensor([0.5, 0.4, 0.9, 1.1, 0.2, 0.7], dtype=F64)
    batch["observation"][:, 0] = value
    batch["next", "observation"][:, 0] = torch.tensor([0.4, 9.9, 1.1, 0.6, 0.7, 0.3], dtype=F64)
    loss = ClipPPOLoss(actor, critic)
    with pytest.raises(ValueError, match="no 'advantage'"):  # nobody asked for it
        loss(batch)
    assert loss.make_value_estimator(name, **numbers) is loss
    found = batch.clone()
    assert loss.value_estimator is not None
    loss.value_estimator(found)
    close(found["advantage"][:, 0], torch.tensor(advantage, dtype=F64), 1e-5)
    close(found["value_target"][:, 0], found["advantage"][:, 0] + value)
    out, ready = loss(batch), ClipPPOLoss(actor, critic)(found)
    if not numbers:
        close(ClipPPOLoss(actor, critic, value_estimator_type=name)(batch)["loss_objective"], out["loss_objective"])
    for key, x in ready.items():
        close(out[key], x)
    if name == "td1":  # what the critic says after a step does not count where the episode goes on
        found["next", "observation"][4, 0] = 5.7
        loss.value_estimator(found)
        close(found["advantage"][:, 0], torch.tensor(advantage, dtype=F64), 1e-5)
    columns = torch.stack((batch, batch))  # [2, T]: time is the last dimension
    loss.value_estimator(columns, params=loss.critic_network_params, target_params=loss.target_critic_network_params)
    close(columns["advantage"][..., 0], torch.tensor([advantage, advantage], dtype=F64), 1e-5)


def test_value_estimators_that_are_none() -> None:
    loss = ClipPPOLoss(*modules())
    with pytest.raises(ValueError, match=r"one of gae, tdlambda, td1, td0, got 'vtrace'"):
        loss.make_value_estimator("vtrace")
    with pytest.raises(ValueError, match="make_value_estimator has no option 'lambda_': did you mean lmbda"):
        loss.make_value_estimator(lambda_=0.9)
    with pytest.raises(ValueError, match=r"object to call, got <class.*build it"):
        loss.make_value_estimator(nn.Linear)
    with pytest.raises(ValueError, match='with the entries of "next"'):
        loss.make_value_estimator()(make_batch(*modules()).exclude("advantage"))


# ---- shapes


def test_trailing_ones_are_taken_off_never_broadcast() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    loss = ClipPPOLoss(actor, critic, clip_value=0.3)
    expected = loss(batch)
    flat = batch.clone()
    for key in ("advantage", "value_target", "state_value"):
        flat[key] = flat[key].squeeze(-1)
    flat["action_log_prob"] = flat["action_log_prob"].unsqueeze(-1)
    out = loss(flat)
    for name, x in expected.items():
        assert torch.equal(out[name], x)


def test_sequences_and_single_rows() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    loss = ClipPPOLoss(actor, critic, clip_value=0.3)
    expected = loss(batch)
    for shape in ((4, 4), (1, ROWS), (ROWS, 1)):
        out = loss(batch.reshape(shape))
        for name, x in expected.items():
            close(out[name], x)
    one = batch[:1]
    for name, x in direct(actor, critic, one, clip_value=0.3).items():
        if name != "explained_variance":  # undefined for one row by the formula
            close(loss(one)[name], x)
    assert float(loss(one)["explained_variance"]) == 0.0


@pytest.mark.parametrize("key", ["advantage", "value_target", "action_log_prob", "state_value"])
def test_refuses_another_shape(key: str) -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    batch[key] = torch.zeros(ROWS, 2, dtype=F64)
    with pytest.raises(ValueError, match=rf"'{key}' has shape \(16, 2\).*batch size is \(16,\)"):
        ClipPPOLoss(actor, critic, clip_value=0.2)(batch)


def test_refuses_a_tensordict_without_its_batch_size() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    batch.batch_size = torch.Size([])
    with pytest.raises(ValueError, match=r"batch size is \(\): give the tensordict its batch size"):
        ClipPPOLoss(actor, critic)(batch)


def test_refuses_a_distribution_over_components() -> None:
    actor, critic = modules(D.Normal)
    batch = make_batch(*modules())
    with pytest.raises(ValueError, match=r"\(16, 2\).*Independent"):
        ClipPPOLoss(actor, critic)(batch)


def test_refuses_a_column_of_discrete_actions() -> None:
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(OBS, 4, dtype=F64), in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(in_keys=["logits"], out_keys=["action"], distribution_class=D.Categorical),
    )
    _, critic = modules()
    batch = make_batch(*modules())
    batch["action"] = torch.randint(4, (ROWS,))
    assert ClipPPOLoss(actor, critic)(batch)["loss_objective"].isfinite()
    batch["action"] = batch["action"].unsqueeze(-1)  # would make log-probs [B, B]
    with pytest.raises(ValueError, match=r"\(16, 16\).*store the action"):
        ClipPPOLoss(actor, critic)(batch)


def test_refuses_an_empty_batch() -> None:
    actor, critic = modules()
    with pytest.raises(ValueError, match="empty"):
        ClipPPOLoss(actor, critic)(make_batch(actor, critic)[:0])


# ---- what the batch must hold


@pytest.mark.parametrize("key", ["advantage", "value_target"])
def test_never_computes_advantages(key: str) -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    del batch[key]
    batch["next"] = TensorDict({"reward": torch.zeros(ROWS, 1), "done": torch.zeros(ROWS, 1).bool()}, [ROWS])
    with pytest.raises(ValueError, match=rf"no '{key}'.*whole rollout.*us\.gae"):
        ClipPPOLoss(actor, critic)(batch)


def test_names_what_is_missing() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    with pytest.raises(ValueError, match=r"no 'action_log_prob' \(did you mean action_logprob\?\).*return_log_prob"):
        ClipPPOLoss(actor, critic)(batch.clone().rename_key_("action_log_prob", "action_logprob"))
    with pytest.raises(ValueError, match=r"no 'action'.*store the action"):
        ClipPPOLoss(actor, critic)(batch.exclude("action"))
    with pytest.raises(ValueError, match=r"no 'state_value'.*clip_value needs"):
        ClipPPOLoss(actor, critic, clip_value=0.2)(batch.exclude("state_value"))
    ClipPPOLoss(actor, critic)(batch.exclude("state_value"))


@pytest.mark.parametrize("key", ["action", "action_log_prob", "advantage", "value_target", "state_value"])
def test_data_must_not_require_grad(key: str) -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    batch[key] = batch[key].clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"'{key}' requires grad.*detach"):
        ClipPPOLoss(actor, critic, clip_value=0.2)(batch)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss_critic_type": "huber"}, "must be one of"),
        ({"samples_mc_entropy": 0}, "at least 1"),
        ({"clip_epsilon": -0.1}, "clip_epsilon must not be negative"),
        ({"clip_epsilon": (0.1, -0.1)}, "clip_epsilon must not be negative"),
        ({"clip_value": -1.0}, "clip_value must not be negative"),
        ({"clip_value": True, "clip_epsilon": (0.1, 0.2)}, "two values"),
        ({"value_key": "value"}, "not 'value': set value_key"),
    ],
)
def test_refuses_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ClipPPOLoss(*modules(), **options)


def test_refuses_modules() -> None:
    actor, critic = modules()
    with pytest.raises(ValueError, match=r"actor must be a Probabilistic.*got Linear"):
        ClipPPOLoss(nn.Linear(1, 1), critic)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"critic must be a tensordict.nn module, got Linear"):
        ClipPPOLoss(actor, nn.Linear(1, 1))  # type: ignore[arg-type]


# ---- shared trunks


def two_calls() -> tuple[Any, Any, Any, Any]:
    """Complete actor and complete critic over one trunk, which then runs twice."""
    trunk, value = linear("observation", "hidden", (OBS, HIDDEN)), linear("hidden", "state_value", (HIDDEN, 1))
    actor = ProbabilisticTensorDictSequential(trunk, *params("hidden", HIDDEN), head())
    return actor, TensorDictSequential(trunk, value), trunk, value


def one_call() -> tuple[Any, Any, Any, Any]:
    """The critic is only the value head; the actor's pass leaves the hidden entry."""
    actor, critic, trunk, value = two_calls()
    return actor, critic[1], trunk, value


def nested() -> tuple[Any, Any, Any, Any]:
    """The same, the actor's head a sequence of its own, as on the page."""
    _, critic, trunk, value = two_calls()
    actor_head = ProbabilisticTensorDictSequential(*params("hidden", HIDDEN), head())
    return ProbabilisticTensorDictSequential(trunk, actor_head), critic[1], trunk, value


SHARED = [two_calls, one_call, nested]


@pytest.mark.parametrize("build", SHARED)
@pytest.mark.parametrize("separate", [False, True])
def test_shared_trunk_numbers(build: Callable[[], tuple], separate: bool) -> None:
    actor, critic, trunk, value = build()
    complete = TensorDictSequential(trunk, value)
    batch = make_batch(actor, complete)
    out = ClipPPOLoss(actor, critic, separate_losses=separate, clip_value=0.3)(batch)
    for name, x in direct(actor, complete, batch, clip_value=0.3).items():
        close(out[name], x)


@pytest.mark.parametrize("build", SHARED)
def test_shared_trunk_learns_from_both_losses_by_default(build: Callable[[], tuple]) -> None:
    actor, critic, trunk, value = build()
    complete = TensorDictSequential(trunk, value)
    batch = make_batch(actor, complete)
    out = ClipPPOLoss(actor, critic)(batch)
    expected = direct(actor, complete, batch)
    shared = [*trunk.parameters(), *value.parameters()]
    for slope, other in zip(
        torch.autograd.grad(out["loss_critic"], shared), torch.autograd.grad(expected["loss_critic"], shared)
    ):
        assert other.abs().sum() > 0
        close(slope, other)


@pytest.mark.parametrize("build", SHARED)
def test_separate_losses_keep_the_value_loss_from_the_trunk(build: Callable[[], tuple]) -> None:
    actor, critic, trunk, value = build()
    complete = TensorDictSequential(trunk, value)
    batch = make_batch(actor, complete)
    loss = ClipPPOLoss(actor, critic, separate_losses=True)
    out, expected = loss(batch), direct(actor, complete, batch)
    on_actor = torch.autograd.grad(out["loss_critic"], list(actor.parameters()), retain_graph=True, allow_unused=True)
    assert all(slope is None for slope in on_actor)
    own = list(value.parameters())
    for slope, other in zip(
        torch.autograd.grad(out["loss_critic"], own, retain_graph=True),
        torch.autograd.grad(expected["loss_critic"], own, retain_graph=True),
    ):
        assert other.abs().sum() > 0
        close(slope, other)
    # the whole backward pass trains the trunk on the policy losses, and only on them
    loss.zero_grad()
    total(out).backward()
    policy = expected["loss_objective"] + expected["loss_entropy"]
    for parameter, other in zip(trunk.parameters(), torch.autograd.grad(policy, list(trunk.parameters()))):
        assert parameter.grad is not None
        close(parameter.grad, other)


def test_separate_losses_survive_a_copy_and_leave_the_critic_whole() -> None:
    actor, critic, *_ = two_calls()
    batch = make_batch(actor, critic)
    loss = copy.deepcopy(ClipPPOLoss(actor, critic, separate_losses=True))
    out = loss(batch)
    on_actor = torch.autograd.grad(out["loss_critic"], list(loss.actor.parameters()), allow_unused=True)
    assert all(slope is None for slope in on_actor)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in loss.critic.parameters())


def test_what_collection_left_is_never_read() -> None:
    # with return_composite the actor's pass leaves nothing in the batch: only the stale entry would be there
    actor, critic, trunk, value = one_call()
    batch = make_batch(actor, TensorDictSequential(trunk, value))
    actor = ProbabilisticTensorDictSequential(*flat(actor), return_composite=True)
    with pytest.raises(ValueError, match=r"critic reads 'hidden'.*complete critic"):
        ClipPPOLoss(actor, critic)(batch)
    out = ClipPPOLoss(actor, TensorDictSequential(trunk, value))(batch)
    close(out["loss_critic"], direct(one_call()[0], TensorDictSequential(trunk, value), batch)["loss_critic"])


def test_state_dict_and_parameters() -> None:
    actor, critic, *_ = two_calls()
    loss = ClipPPOLoss(actor, critic, clip_value=0.3)
    assert len(list(loss.parameters())) == 6  # trunk, actor head, value head: each once
    other = ClipPPOLoss(*two_calls()[:2], clip_value=0.1)
    batch = make_batch(actor, critic)
    assert not torch.equal(total(other(batch)), total(loss(batch)))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(total(other(batch)), total(loss(batch)))


# ---- entropy


def gaussian_without_entropy(loc: Tensor, scale: Tensor) -> D.Distribution:
    """A TransformedDistribution has no closed form; this one is a Gaussian shifted by 1."""
    return D.TransformedDistribution(independent_normal(loc, scale), [D.AffineTransform(1.0, 1.0, event_dim=1)])


def test_sampled_entropy_and_its_gradient() -> None:
    actor, critic = modules(gaussian_without_entropy)
    batch = make_batch(actor, critic, rows=4)
    out = ClipPPOLoss(actor, critic, samples_mc_entropy=40_000)(batch)
    exact = independent_normal(*actor[0].module(batch["observation"])).entropy().mean()
    close(out["entropy"], exact, 0.01)
    close(out["loss_entropy"], -0.01 * out["entropy"])
    weights = list(actor.parameters())
    for slope, other in zip(torch.autograd.grad(out["loss_entropy"], weights), torch.autograd.grad(exact, weights)):
        torch.testing.assert_close(slope, -0.01 * other, rtol=0.05, atol=2e-4)


class Opaque(D.Distribution):
    """A categorical without a closed-form entropy and without reparameterised samples."""

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, logits: Tensor) -> None:
        self.inner = D.Categorical(logits=logits)
        super().__init__(self.inner.batch_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.inner.log_prob(value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.inner.sample(sample_shape)


def test_sampled_entropy_without_reparameterisation_has_the_right_gradient() -> None:
    net = nn.Linear(OBS, 3, dtype=F64)
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(in_keys=["logits"], out_keys=["action"], distribution_class=Opaque),
    )
    _, critic = modules()
    batch = make_batch(*modules(), rows=2)
    batch["action"] = torch.tensor([0, 2])
    out = ClipPPOLoss(actor, critic, samples_mc_entropy=200_000, entropy_coef=1.0)(batch)
    exact = D.Categorical(logits=net(batch["observation"])).entropy().mean()
    close(out["entropy"], exact, 0.01)
    weights = list(actor.parameters())
    for slope, other in zip(torch.autograd.grad(-out["loss_entropy"], weights), torch.autograd.grad(exact, weights)):
        torch.testing.assert_close(slope, other, rtol=0.05, atol=0.01)


# ---- composite actions


def composite() -> tuple[Any, Any, TensorDict]:
    def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[..., :2], x[..., 2:4].exp(), x[..., 4:]

    net = TensorDictModule(nn.Sequential(nn.Linear(OBS, 7, dtype=F64)), in_keys=["observation"], out_keys=["raw"])
    cut = TensorDictModule(
        split,
        in_keys=["raw"],
        out_keys=[("params", "move", "loc"), ("params", "move", "scale"), ("params", "grip", "logits")],
    )
    last = ProbabilisticTensorDictModule(
        in_keys=["params"],
        out_keys=["move", "grip"],
        distribution_class=CompositeDistribution,
        distribution_kwargs={"distribution_map": {"move": D.Normal, "grip": D.Categorical}},
    )
    actor = ProbabilisticTensorDictSequential(net, cut, last)
    _, critic = modules()
    batch = make_batch(*modules()).exclude("action", "action_log_prob", "loc", "scale")
    batch["move"], batch["grip"] = torch.randn(ROWS, 2, dtype=F64), torch.randint(3, (ROWS,))
    batch["move_log_prob"], batch["grip_log_prob"] = torch.randn(2, ROWS, dtype=F64).unbind()
    return actor, critic, batch


@pytest.mark.parametrize("flag", [False, True])
def test_composite_actions_do_not_depend_on_a_global_flag(flag: bool) -> None:
    actor, critic, batch = composite()
    raw = actor[0].module(batch["observation"])
    move, grip = independent_normal(raw[:, :2], raw[:, 2:4].exp()), D.Categorical(logits=raw[:, 4:])
    log_prob = move.log_prob(batch["move"]) + grip.log_prob(batch["grip"])
    old = batch["move_log_prob"] + batch["grip_log_prob"]
    ratio, advantage = (log_prob - old).exp(), batch["advantage"][:, 0]
    expected = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    with set_composite_lp_aggregate(flag):
        loss = ClipPPOLoss(actor, critic)
        out = loss(batch)
        close(out["loss_objective"], expected)
        close(out["entropy"], (move.entropy() + grip.entropy()).mean())
        joint = batch.exclude("move_log_prob", "grip_log_prob").set("action_log_prob", old)
        close(loss(joint)["loss_objective"], expected)
        with pytest.raises(ValueError, match="grip_log_prob"):
            loss(batch.exclude("grip_log_prob"))


def test_entropy_coefficients_of_heads() -> None:
    actor, _, batch = composite()
    _, critic = modules()
    raw = actor[0].module(batch["observation"])
    move, grip = independent_normal(raw[:, :2], raw[:, 2:4].exp()), D.Categorical(logits=raw[:, 4:])
    for names in (("move", "grip"), ("move_log_prob", "grip_log_prob"), ("move_entropy", "grip_entropy")):
        out = ClipPPOLoss(actor, critic, entropy_coeff=dict(zip(names, (0.1, 0.4))))(batch)
        close(out["loss_entropy"], -(0.1 * move.entropy() + 0.4 * grip.entropy()).mean())
    listed = ClipPPOLoss(actor, critic)
    listed.set_keys(action=["move", "grip"], sample_log_prob=["a", "b"])
    moved = batch.clone().rename_key_("move_log_prob", "a").rename_key_("grip_log_prob", "b")
    close(listed(moved)["loss_objective"], ClipPPOLoss(actor, critic)(batch)["loss_objective"])


# ---- learning


def test_it_learns() -> None:
    """The loss a user would write a loop around: a two-armed bandit is solved, with a shared trunk."""
    actor = ProbabilisticTensorDictSequential(
        linear("observation", "hidden", (1, 8)),
        TensorDictModule(nn.Linear(8, 2, dtype=F64), in_keys=["hidden"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"], out_keys=["action"], distribution_class=D.Categorical, return_log_prob=True,
            default_interaction_type=InteractionType.RANDOM,
        ),
    )  # fmt: skip
    critic = TensorDictModule(nn.Linear(8, 1, dtype=F64), in_keys=["hidden"], out_keys=["state_value"])
    loss = ClipPPOLoss(actor, critic, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(30):
        batch = TensorDict({"observation": torch.ones(64, 1, dtype=F64)}, [64])
        with torch.no_grad():
            critic(actor(batch))
        reward = batch["action"].double()
        batch["advantage"], batch["value_target"] = reward - batch["state_value"][:, 0], reward
        for _ in range(2):
            optimizer.zero_grad()
            total(loss(batch)).backward()
            optimizer.step()
    assert batch["action"].double().mean() > 0.9


def test_normalisation_is_the_library_s() -> None:
    actor, critic = modules()
    batch = make_batch(actor, critic)
    ready = batch.clone().set("advantage", normalize(batch["advantage"]))
    once = ClipPPOLoss(actor, critic, normalize_advantage=True)(batch)
    close(once["loss_objective"], ClipPPOLoss(actor, critic)(ready)["loss_objective"], 1e-12)
