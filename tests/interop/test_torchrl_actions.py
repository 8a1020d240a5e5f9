"""Parts beside TensorDict actors of several choices, of several heads, and with an estimator: numbers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch import distributions as D

import understudy as us
from understudy.data.demonstrations.write import Episode, write_npz
from understudy.interop.torchrl import PartLoss, RewardTransform
from understudy.interop.torchrl.actions import as_distribution, fitted
from understudy.nn.distributions import Bernoulli, DiagGaussian, MultiCategorical

N, T, OBS = 2, 5, 3
Key = Any


def several(one_hot: bool) -> Any:
    """Three choices of four each, as numbers [3] or one-hot [3, 4]."""
    family = D.OneHotCategorical if one_hot else D.Categorical
    return ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(OBS, 6, dtype=torch.float64), in_keys=["observation"], out_keys=["hidden"]),
        TensorDictModule(nn.Linear(6, 12, dtype=torch.float64), in_keys=["hidden"], out_keys=["flat"]),
        TensorDictModule(lambda x: x.unflatten(-1, (3, 4)), in_keys=["flat"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=lambda logits: D.Independent(family(logits=logits), 1),
            return_log_prob=True,
        ),
    )


def composite(heads: dict[Key, tuple[Any, list[str], int]]) -> Any:
    """An actor with heads: entry -> family, names of its parameters, size of each."""
    modules: list[Any] = [
        TensorDictModule(nn.Linear(OBS, 6, dtype=torch.float64), in_keys=["observation"], out_keys=["hidden"])
    ]
    for i, (_, names, size) in enumerate(heads.values()):
        modules.append(
            TensorDictModule(
                nn.Linear(6, size, dtype=torch.float64),
                in_keys=["hidden"],
                out_keys=[("params", f"head{i}", names[0])],
            )
        )
        constant = lambda x, size=size: torch.full((*x.shape[:-1], size), 0.5, dtype=x.dtype)  # noqa: E731
        modules += [TensorDictModule(constant, ["hidden"], [("params", f"head{i}", name)]) for name in names[1:]]
    families = {f"head{i}": family for i, (family, _, _) in enumerate(heads.values())}
    last = ProbabilisticTensorDictModule(
        in_keys=["params"],
        out_keys=list(heads),
        distribution_class=CompositeDistribution,
        distribution_kwargs={
            "distribution_map": families,
            "name_map": {f"head{i}": key for i, key in enumerate(heads)},
        },
        return_log_prob=True,
    )
    return ProbabilisticTensorDictSequential(*modules, last)


def rollout_of(actor: Any) -> TensorDict:
    torch.manual_seed(1)
    batch = TensorDict({"observation": torch.randn(N, T, OBS, dtype=torch.float64)}, batch_size=[N, T])
    with torch.no_grad():
        actor(batch)
    after: dict[str, Any] = {name: torch.zeros(N, T, 1, dtype=torch.bool) for name in ("done", "terminated")}
    after |= {"observation": torch.randn(N, T, OBS, dtype=torch.float64), "reward": torch.ones(N, T, 1)}
    batch["next"] = TensorDict(after, batch_size=[N, T])
    return batch


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), reduction="none")


@pytest.mark.parametrize("one_hot", [False, True])
def test_several_choices(one_hot: bool) -> None:
    """The cross-entropy is the sum over the choices; ADVISOR's head is a copy of what follows the latent."""
    actor = several(one_hot)
    batch = rollout_of(actor)
    expert = torch.randint(4, (N, T, 3))
    batch["action"] = batch["action"].long()
    batch["expert_action"] = nn.functional.one_hot(expert, 4) if one_hot else expert
    loss = PartLoss(us.parts.ScriptedExpertConfig(imitation_coef=2.0), actor)
    loss.prepare(batch)
    assert loss.policy.action_space == spaces.MultiDiscrete([4, 4, 4])
    assert torch.equal(batch["scripted_expert", "action"], expert)
    logits = actor.get_dist_params(batch.clone())["logits"]
    costs = torch.stack([cross_entropy(logits[..., k, :], expert[..., k]) for k in range(3)], -1).sum(-1)
    out = loss(batch.reshape(-1))["loss_scripted_expert"]
    torch.testing.assert_close(out, 2.0 * costs.mean(), rtol=1e-12, atol=0.0)
    out.backward()
    assert actor[0].module.weight.grad.any()
    advisor = PartLoss(us.parts.AdvisorConfig(alpha=0.5, bound=0.0), actor, latent_key="hidden", like=batch)
    weight = advisor(batch)["weight"]  # the auxiliary head is the actor's own, for now
    torch.testing.assert_close(weight.reshape(-1), 1.0 - torch.exp(-0.5 * costs), rtol=1e-6, atol=1e-9)


HEADS: dict[str, dict[Key, Any]] = {
    "flat": {"move": (D.Categorical, ["logits"], 4), "grip": (D.Categorical, ["logits"], 2)},
    "nested": {
        ("action", "move"): (D.OneHotCategorical, ["logits"], 4),
        ("action", "grip"): (D.Categorical, ["logits"], 2),
    },
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_composite_action(kind: str, tmp_path: Path) -> None:
    actor = composite(HEADS[kind])
    batch = rollout_of(actor)
    move, grip = torch.randint(4, (N, T)), torch.randint(2, (N, T))
    said = nn.functional.one_hot(move, 4) if kind == "nested" else move
    batch["expert_action"] = TensorDict({"move": said, "grip": grip}, batch_size=[N, T])
    loss = PartLoss(us.parts.ScriptedExpertConfig(), actor)
    loss.prepare(batch)
    assert loss.policy.action_space == spaces.MultiDiscrete([4, 2])
    assert torch.equal(batch["scripted_expert", "action"], torch.stack((move, grip), -1))
    params = actor.get_dist_params(batch.clone())["params"]
    costs = cross_entropy(params["head0", "logits"], move) + cross_entropy(params["head1", "logits"], grip)
    torch.testing.assert_close(loss(batch)["loss_scripted_expert"], costs.mean(), rtol=1e-12, atol=0.0)

    # demonstrations hold the joined action
    actions = np.stack((np.arange(8) % 4, np.arange(8) % 2), -1)
    seen = np.arange(27, dtype=np.float32).reshape(9, OBS) / 10
    flags: Any = {"rewards": np.zeros(8), "terminated": True, "truncated": False}
    write_npz(tmp_path / "a.npz", [Episode(observations={("policy",): seen}, actions=actions, **flags)], {})
    cloning = PartLoss(us.parts.BehaviorCloningConfig(demonstrations=str(tmp_path / "a.npz"), batch_size=64), actor)
    cloned = cloning(batch)["loss_behavior_cloning"]
    cloning.part.generator.manual_seed(3)
    drawn = cloning.part.sample(TensorDict())  # type: ignore[operator]
    cloning.part.generator.manual_seed(3)
    cloned = cloning(batch)["loss_behavior_cloning"]
    rows = TensorDict({"observation": drawn["obs", "policy"].double()}, batch_size=[64])
    params = actor.get_dist_params(rows)["params"]
    costs = [cross_entropy(params[f"head{k}", "logits"], drawn["action"][:, k]) for k in range(2)]
    torch.testing.assert_close(cloned, sum(costs).mean(), rtol=1e-12, atol=0.0)
    gail = us.parts.GailConfig(demonstrations=str(tmp_path / "a.npz"), normalization="none")
    assert RewardTransform(gail, actor)(batch)["next", "reward_gail"].isfinite().all()


def test_gaussian_heads_are_one_vector() -> None:
    actor = composite({"arm": (D.Normal, ["loc", "scale"], 2), "leg": (D.Normal, ["loc", "scale"], 1)})
    batch = rollout_of(actor)
    batch["expert_action"] = torch.randn(N, T, 3, dtype=torch.float64)
    loss = PartLoss(
        us.parts.ScriptedExpertConfig(), actor, observation_spaces={"expert_action": spaces.Box(-np.inf, np.inf, (3,))}
    )
    loss.prepare(batch)
    params = actor.get_dist_params(batch.clone())["params"]
    mean = torch.cat((params["head0", "loc"], params["head1", "loc"]), -1)
    expected = -D.Normal(mean, 0.5).log_prob(batch["expert_action"]).sum(-1).mean()
    torch.testing.assert_close(loss(batch)["loss_scripted_expert"], expected, rtol=1e-12, atol=0.0)
    rows = loss.rows.read(batch, loss.policy)
    summed = batch["arm_log_prob"].sum(-1) + batch["leg_log_prob"].sum(-1)
    torch.testing.assert_close(rows["log_prob"], summed)  # what parts read of it


def test_heads_of_several_kinds_are_refused() -> None:
    actor = composite({"move": (D.Categorical, ["logits"], 4), "arm": (D.Normal, ["loc", "scale"], 2)})
    with pytest.raises(ValueError, match=r"one kind, the actor's heads are move \(Categorical\), arm \(DiagGaussian\)"):
        PartLoss(us.parts.ScriptedExpertConfig(), actor, like=rollout_of(actor))


def test_shapes_of_choices() -> None:
    """One-hot choices side by side, as TorchRL's environments have them, and what fits nothing."""
    space = spaces.MultiDiscrete([2, 3])
    rows = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]])
    assert fitted(rows, space, 1, "action").tolist() == [[1, 2], [0, 0]]
    assert fitted(rows.bool(), space, 1, "action").tolist() == [[1, 2], [0, 0]]
    assert fitted(torch.tensor([[1, 2]]), space, 1, "action").tolist() == [[1, 2]]
    assert fitted(rows[:0], space, 1, "action").shape == (0, 2)
    with pytest.raises(ValueError, match=r"'action' is \(4,\) for each sample, but its space is MultiDiscrete"):
        fitted(rows[:, :4], space, 1, "action")
    logits = torch.randn(5, 2, 3)
    ours = as_distribution(D.Categorical(logits=logits), torch.Size([5]))
    assert isinstance(ours, MultiCategorical)
    x = torch.randint(3, (5, 2))
    torch.testing.assert_close(ours.log_prob(x), D.Categorical(logits=logits).log_prob(x).sum(-1))
    assert isinstance(as_distribution(D.Bernoulli(logits=logits[:, 0, 0])), Bernoulli)
    assert as_distribution(D.Normal(logits[:, 0, 0], 1.0)).params.shape == (5, 2)
    assert isinstance(as_distribution(D.Normal(logits[:, 0], 1.0), torch.Size([5])), DiagGaussian)


def test_an_estimator_of_the_actor() -> None:
    """loss = coef mean_B sum_D (estimate - truth)^2, in the units of the entries."""
    torch.manual_seed(0)
    guess = nn.Linear(OBS, 2, dtype=torch.float64)
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(guess, in_keys=["observation"], out_keys=["velocity_estimate"]),
        TensorDictModule(nn.Linear(2, 4, dtype=torch.float64), in_keys=["velocity_estimate"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(in_keys=["logits"], out_keys=["action"], distribution_class=D.Categorical),
    )
    batch = rollout_of(actor)
    batch["velocity"] = 100.0 * torch.randn(N, T, 2, dtype=torch.float64)  # beyond what a normaliser keeps
    config = us.parts.EstimatorConfig(coef=0.5)
    loss = PartLoss(config, actor, estimates={"velocity_estimate": "velocity"})
    out = loss(batch.reshape(-1))
    error = (guess(batch["observation"]) - batch["velocity"]).square()
    torch.testing.assert_close(out["loss_estimator"], 0.5 * error.sum(-1).mean(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(out["estimator/rmse/velocity"], error.mean().sqrt().detach(), rtol=1e-12, atol=0.0)
    out["loss_estimator"].backward()
    slope = (2.0 * 0.5 / (N * T)) * (guess(batch["observation"]) - batch["velocity"]).reshape(-1, 2).T
    torch.testing.assert_close(guess.weight.grad, slope.detach() @ batch["observation"].reshape(-1, OBS))
    with pytest.raises(ValueError, match=r"Estimator compares .* estimates=.*; the actor's are \['velocity_estimate'"):
        PartLoss(config, actor)
    with pytest.raises(ValueError, match=r"names 'speed' as the truth, but parts see \['observation', 'velocity'"):
        PartLoss(config, actor, estimates={"velocity_estimate": "speed"}, like=batch)
    with pytest.raises(ValueError, match="the actor's pass leaves no 'guess', but"):
        PartLoss(config, actor, estimates={"guess": "velocity"}, like=batch)(batch)
