"""AllenAct's words over the formulas of ADVISOR: the vectors of the published classes, in its shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from understudy.interop.allenact import (
    A2C,
    PPO,
    ActorCriticOutput,
    AdvisorImitationStage,
    AdvisorWeightedStage,
    GroupedActionImitation,
    LinearAlphaScheduler,
)

MAIN = [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.25, 0.25, 0.5]]
AUX = [[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.05, 0.9, 0.05], [0.2, 0.3, 0.5]]


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1)  # [T, 1, 1]


def output(**extras: Any) -> ActorCriticOutput:
    main, aux = (torch.tensor(p, dtype=torch.float64).unsqueeze(1).log() for p in (MAIN, AUX))
    main.requires_grad_()
    return ActorCriticOutput(
        Categorical(logits=main), column(0.1, 0.2, 0.3, 0.4), {"auxiliary_distributions": Categorical(logits=aux)}
    )


def batch(masks: Tensor | None = None) -> dict[str, Any]:
    expert, success = column(0, 1, 2, 0), column(1, 1, 1, 0)
    return {
        "observations": {"expert_action": torch.cat((expert, success), -1).long()},
        "actions": column(0, 2, 2, 1).long(),
        "old_action_log_probs": column(0.4, 0.2, 0.8, 0.25).log(),
        "adv_targ": column(1, -1, 0.5, 2),
        "norm_adv_targ": column(1, -1, 0.5, 2),
        "values": column(0, 0.3, 0.3, 0.1),
        "returns": column(1, 0, 0.5, 0.2),
        "masks": torch.ones(4, 1, 1, dtype=torch.float64) if masks is None else masks,
    }


def test_the_imitation_stage_counts_both_actors_alike() -> None:
    loss, info = AdvisorImitationStage().loss(0, batch(), output())
    assert float(loss.detach()) == pytest.approx(1.628295, abs=1e-6)
    assert info == pytest.approx(
        {"main_expert_ce_loss": 0.424322, "aux_expert_ce_loss": 1.203973, "total_loss": 1.628295}, abs=1e-6
    )


@pytest.mark.parametrize(
    ("alpha", "bound", "weight", "non_zero", "total", "alone"),
    [
        (1, 0, 0.3875, 0.75, 0.912920, 1.416221),
        (4, 0, 0.196427, 0.75, 0.856789, 1.329223),
        (4, 0.1, 0.196425, 0.5, 0.856788, 1.329223),
        (1, 0.7, 0.225, 0.25, 0.984097, 1.359931),
    ],
)
def test_the_weighted_stage_gives_the_published_numbers(
    alpha: float, bound: float, weight: float, non_zero: float, total: float, alone: float
) -> None:
    ppo = PPO(clip_param=0.1, value_loss_coef=0.5, entropy_coef=0.01)
    for rl_loss in (ppo, lambda: ppo):  # a builder of one, too
        loss, info = AdvisorWeightedStage(rl_loss, alpha, bound).loss(0, batch(), output())
        assert float(loss.detach()) == pytest.approx(total, abs=2e-6)
        assert info["weight"] == pytest.approx(weight, abs=1e-6)
        assert info["non_zero_weight"] == non_zero
        assert info["value_loss"] == pytest.approx(0.11625)
        assert info["entropy_loss"] == pytest.approx(-0.877556, abs=1e-6)
    loss, info = AdvisorWeightedStage(None, alpha, bound).loss(0, batch(), output())
    assert float(loss.detach()) == pytest.approx(alone, abs=2e-6)
    assert "value_loss" not in info


def test_a2c_takes_plain_advantages() -> None:
    loss, info = A2C(value_loss_coef=0.5, entropy_coef=0.0).loss(0, batch(), output())
    action = -(math.log(0.5) - math.log(0.1) + 0.5 * math.log(0.8) + 2 * math.log(0.25)) / 4
    value = 0.5 * (0.9**2 + 0.2**2 + 0.2**2 + 0.2**2) / 4
    assert info["action"] == pytest.approx(action)
    assert float(loss.detach()) == pytest.approx(action + 0.5 * value)


def test_without_a_label_reinforcement_learning_goes_on() -> None:
    """The published class returns (0, {}) there, and AllenAct's engine then fails."""
    silent = batch()
    silent["observations"]["expert_action"][..., 1] = 0
    silent["observations"]["expert_action"][..., 0] = 99  # a failing expert may write anything
    ppo = PPO(clip_param=0.1, value_loss_coef=0.5, entropy_coef=0.01)
    loss, info = AdvisorWeightedStage(ppo).loss(0, silent, output())
    assert float(loss.detach()) == pytest.approx(float(ppo.loss(0, silent, output())[0].detach()))
    assert info["weight"] == 0.0


def test_a_scheduler_moves_alpha_with_the_steps_of_the_stage() -> None:
    scheduler = LinearAlphaScheduler(4.0, 1.0, 100)
    assert [scheduler.next(step_count=step) for step in (0, 50, 100, 200)] == [4.0, 2.5, 1.0, 1.0]
    stage = AdvisorWeightedStage(None, fixed_alpha=9.0, fixed_bound=0.0, alpha_scheduler=scheduler)
    assert stage.loss(100, batch(), output())[1]["weight"] == pytest.approx(0.3875)


def test_smoothing_stays_within_episodes() -> None:
    """r = .5 spreads over 4 steps; w = .9, .6, .05 and no label; the third step starts an episode."""
    stage = AdvisorWeightedStage(None, 1.0, 0.0, smooth_expert_weight_decay=0.5)
    assert stage.smooth_expert_steps == 4
    _, info = stage.loss(0, batch(masks=column(1, 1, 0, 1)), output())
    assert info["weight"] == pytest.approx((0.9 + (0.6 + 0.45) / 1.5 + 0.05 + 0.0) / 4)
    with pytest.raises(ValueError, match="masks"):
        stage.loss(0, {key: x for key, x in batch().items() if key != "masks"}, output())


def test_an_expert_s_policy_counts_by_its_divergence() -> None:
    """KL(expert || aux) weighs, the cross-entropy is imitated; a policy of one action is that action."""
    certain = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).double().unsqueeze(1)
    with_policy = batch()
    with_policy["observations"] = {"expert_policy": torch.cat((certain, column(1, 1, 1, 0)), -1)}
    stage = AdvisorWeightedStage(None, 1.0, 0.0)
    assert float(stage.loss(0, with_policy, output())[0].detach()) == pytest.approx(1.416221, abs=2e-6)
    soft = torch.tensor(AUX, dtype=torch.float64).unsqueeze(1)  # the auxiliary actor's own: a divergence of 0
    with_policy["observations"] = {"expert_policy": torch.cat((soft, column(1, 1, 1, 0)), -1)}
    assert stage.loss(0, with_policy, output())[1]["weight"] == pytest.approx(0.75)


def test_the_weight_has_no_gradient() -> None:
    out = output()
    aux = torch.tensor(AUX, dtype=torch.float64).unsqueeze(1).log().requires_grad_()
    out.extras["auxiliary_distributions"] = Categorical(logits=aux)
    loss, _ = AdvisorWeightedStage(None, 1.0, 0.0).loss(0, batch(), out)
    loss.backward()
    onehot = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).double().unsqueeze(1)
    # of the auxiliary term alone: sum(m (pi_aux - e)) / 3
    expected = (torch.tensor(AUX).double().unsqueeze(1) - onehot) * column(1, 1, 1, 0) / 3
    torch.testing.assert_close(aux.grad, expected)


def test_grouped_actions() -> None:
    """-log of .5 + .2, of .7, of 1 (the expert says nothing) and of .25 + .5."""
    groups = GroupedActionImitation(3, [{0, 2}, {1}])
    loss, _ = groups.loss(0, {"observations": {"expert_group_action": torch.tensor([[0], [1], [2], [0]])}}, output())
    assert float(loss.detach()) == pytest.approx(-(math.log(0.7) + math.log(0.7) + math.log(0.75)) / 4)
    with pytest.raises(ValueError, match="each of the actions 0 to 2 once"):
        GroupedActionImitation(3, [{0}, {0, 1}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, o: b["observations"].pop("expert_action"), "needs an observation expert_action or expert_policy"),
        (lambda b, o: b["observations"].update(expert_action=torch.zeros(4, 1, 3)), r"expected \[..., 2\]"),
        (lambda b, o: o.extras.clear(), "auxiliary_distributions"),
    ],
)
def test_missing_pieces_are_named(change: Any, message: str) -> None:
    b, o = batch(), output()
    change(b, o)
    for stage in (AdvisorImitationStage(), AdvisorWeightedStage(None)):
        with pytest.raises(ValueError, match=message):
            stage.loss(0, b, o)
    with pytest.raises(ValueError, match=r"\(0, 1\), got 1"):
        AdvisorWeightedStage(None, smooth_expert_weight_decay=1.0)
