"""ADVISOR against hand-computed numbers, on every kind of action and label, in both stages, and on Poisoned Doors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.parts.harness import beside_ppo, context_of
from torch import Tensor

from understudy.core.schedules import Schedule, advance_all
from understudy.data.demonstrations.write import write_npz
from understudy.nn.distributions import Categorical, DiagGaussian, Distribution, MultiCategorical
from understudy.nn.policy import ActorCritic, PolicyConfig, PolicyOutput
from understudy.parts import Advisor, AdvisorConfig
from understudy.parts.advisor import expert_weight, imitation_loss, smooth_over_time, smoothing_steps
from understudy.parts.shared.expert_labels import ExpertLabelsConfig, masked_mean
from understudy.ppo.losses import clipped_surrogate, value_loss
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartContext
from understudy.ppo.ppo import PPO
from understudy.tasks.poisoned_doors import PoisonedDoors
from understudy.tools.record import record_episodes

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
EXACT = {"rel": 1e-9, "abs": 1e-12}


def log(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# The vector of four steps, three actions: policy, auxiliary head, expert, label there or not, and what PPO saw
MAIN = log([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.25, 0.25, 0.5]])
AUX = log([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.05, 0.9, 0.05], [0.2, 0.3, 0.5]])
EXPERT, SUCCESS = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 1, 0])
ACTION, OLD_PROB = torch.tensor([0, 2, 2, 1]), torch.tensor([0.4, 0.2, 0.8, 0.25], dtype=torch.float64)
ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
VALUE, OLD_VALUE, TARGET = torch.tensor(
    [[0.1, 0.2, 0.3, 0.4], [0.0, 0.3, 0.3, 0.1], [1.0, 0.0, 0.5, 0.2]], dtype=torch.float64
)


def context(
    action_space: spaces.Space[Any], groups: dict[str, spaces.Space[Any]], memory: str = "none", **options: Any
) -> PartContext:
    observation_space = spaces.Dict({"policy": spaces.Discrete(4), **groups})
    config = PolicyConfig(hidden_sizes=(), memory=memory, memory_size=4, **options)  # type: ignore[arg-type]
    policy = ActorCritic(observation_space, action_space, config)
    return context_of(observation_space, action_space, policy, name="advisor", num_steps=4)


def with_expert(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    return {"expert_action": space, "expert_success": spaces.Discrete(2)}


def build(
    action_space: spaces.Space[Any],
    aux: Tensor,
    groups: dict[str, spaces.Space[Any]] | None = None,
    memory: str = "none",
    **options: Any,
) -> Advisor:
    """In float64, with an auxiliary head whose outputs at the four one-hot latents are the rows of `aux`."""
    part = Advisor(
        context(action_space, groups or with_expert(action_space), memory), AdvisorConfig(**{"bound": 0.0} | options)
    ).double()
    with torch.no_grad():
        part.head.linear.weight.copy_(aux.t())
        part.head.linear.bias.zero_()
    return part


def batch_of(is_first: Tensor | None = None, **obs: Tensor) -> TensorDict:
    size = next(iter(obs.values())).shape[:1]
    first = torch.zeros(size, dtype=torch.bool) if is_first is None else is_first
    valid = torch.ones(size, dtype=torch.bool)
    groups = {"policy": torch.zeros(size, dtype=torch.int64), **obs}
    return TensorDict({"obs": groups, "is_first": first, "valid": valid}, batch_size=size)


def output(distribution: Distribution, rows: int = 4) -> PolicyOutput:
    latent = torch.eye(4, dtype=torch.float64)[:rows]
    return PolicyOutput(distribution, VALUE[:rows], None, {"actor": latent, "critic": latent})


def run(part: Advisor, batch: TensorDict, out: PolicyOutput) -> tuple[float, dict[str, float], Tensor]:
    loss, metrics = part.loss(None, batch, out)  # type: ignore[arg-type]
    with torch.no_grad():  # as the core does
        weight = part.weight(batch, out)
    return float(loss.detach()), {name: float(x) for name, x in metrics.items()}, weight


LABELLED = batch_of(expert_action=EXPERT, expert_success=SUCCESS)
DISCRETE = spaces.Discrete(3)


# ---------------------------------------------------------------------- the two stages, by hand


@pytest.mark.parametrize(
    ("alpha", "bound", "weights", "mean", "nonzero", "imitation", "policy", "entropy", "total", "alone"),
    [
        (1, 0.0, (0.9, 0.6, 0.05, 0), 0.3875, 0.75, 0.212249, -0.55625, -0.005176, 0.912920, 1.416221),
        (4, 0.0, (0.6561, 0.1296, 6.25e-6, 0), 0.196427, 0.75, 0.125250, -0.523732, -0.006827, 0.856789, 1.329223),
        (4, 0.1, (0.6561, 0.1296, 0, 0), 0.196425, 0.5, 0.125250, -0.523733, -0.006827, 0.856788, 1.329223),
        (1, 0.7, (0.9, 0, 0, 0), 0.225, 0.25, 0.155958, -0.4275, -0.006459, 0.984097, 1.359931),
    ],
)
def test_the_weighted_stage(
    alpha: float,
    bound: float,
    weights: tuple[float, ...],
    mean: float,
    nonzero: float,
    imitation: float,
    policy: float,
    entropy: float,
    total: float,
    alone: float,
) -> None:
    """The numbers of the published class (PPO: clip .1, value .5 of half the square, entropy .01)."""
    part, main = build(DISCRETE, AUX, alpha=float(alpha), bound=bound), Categorical(MAIN)
    loss, metrics, kept = run(part, LABELLED, output(main))
    torch.testing.assert_close(kept, 1.0 - torch.tensor(weights, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    expected = {"aux_loss": 1.203973, "imitation_loss": imitation, "weight": mean, "nonzero_weight": nonzero}
    assert metrics == pytest.approx(expected, abs=6e-7)
    assert loss == pytest.approx(alone, abs=6e-7)
    surrogate = clipped_surrogate(main.log_prob(ACTION) - OLD_PROB.log(), ADVANTAGE, 0.1, 0.1)
    bonus = -0.01 * (kept * main.entropy()).mean()
    critic = 0.25 * value_loss(VALUE, TARGET, OLD_VALUE, 0.1).mean()
    assert float((kept * surrogate).mean()) == pytest.approx(policy, abs=6e-7)
    assert float(bonus) == pytest.approx(entropy, abs=6e-7)
    assert float(critic) == pytest.approx(0.058125, abs=6e-7)
    assert loss + float((kept * surrogate).mean() + bonus + critic) == pytest.approx(total, abs=1e-6)


def test_the_imitation_stage() -> None:
    part = build(DISCRETE, AUX, stage=Schedule.parse("step:0=1,100=0"))
    loss, metrics, kept = run(part, LABELLED, output(Categorical(MAIN)))
    assert metrics["imitation_loss"] == pytest.approx(0.424322, abs=6e-7)
    assert metrics["aux_loss"] == pytest.approx(1.203973, abs=6e-7)
    assert loss == pytest.approx(1.628295, abs=6e-7)
    assert torch.equal(kept, torch.zeros_like(kept))  # neither surrogate nor entropy
    advance_all(part, 100, 1, 1000, 10)
    assert run(part, LABELLED, output(Categorical(MAIN)))[0] == pytest.approx(1.416221, abs=6e-7)


@pytest.mark.parametrize("alpha", [1.0, 4.0])
@pytest.mark.parametrize("bound", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("stage", [0.0, 0.25, 1.0])
def test_against_the_formulas_written_as_loops(alpha: float, bound: float, masked: bool, stage: float) -> None:
    success = SUCCESS if masked else torch.ones_like(SUCCESS)
    part = build(DISCRETE, AUX, alpha=alpha, bound=bound, stage=stage)
    batch = batch_of(expert_action=EXPERT, expert_success=success)
    loss, _, kept = run(part, batch, output(Categorical(MAIN)))
    n, aux, imitated, weighted, rest = 0, 0.0, 0.0, 0.0, []
    for t in range(4):
        m, main_prob, aux_prob = int(success[t]), math.exp(MAIN[t, EXPERT[t]]), math.exp(AUX[t, EXPERT[t]])
        w = m * aux_prob**alpha if aux_prob >= bound else 0.0
        n += m
        aux -= m * math.log(aux_prob)
        imitated -= m * math.log(main_prob)
        weighted -= w * math.log(main_prob) / 4
        rest.append((1 - stage) * (1 - w))
    assert loss == pytest.approx(aux / n + stage * imitated / n + (1 - stage) * weighted, rel=1e-7)
    assert kept.tolist() == pytest.approx(rest, rel=1e-7)


def test_a_batch_without_labels_is_plain_reinforcement_learning() -> None:
    part, main = build(DISCRETE, AUX, alpha=4.0), MAIN.clone().requires_grad_()
    nowhere = batch_of(expert_action=torch.tensor([7, -1, 2, 0]), expert_success=torch.zeros(4, dtype=torch.int64))
    out = output(Categorical(main))
    loss, metrics = part.loss(None, nowhere, out)  # type: ignore[arg-type]
    assert (float(loss.detach()), metrics["weight"], metrics["nonzero_weight"]) == (0.0, 0.0, 0.0)
    assert torch.equal(run(part, nowhere, out)[2], torch.ones(4, dtype=torch.float64))
    gradient = torch.autograd.grad(loss, [main, part.head.linear.weight])
    assert all(not bool(g.any()) for g in gradient)


def test_steps_that_are_no_transition_do_not_count() -> None:
    part, batch = build(DISCRETE, AUX), LABELLED.clone()
    batch["valid"][2] = False
    fewer = batch_of(expert_action=EXPERT, expert_success=torch.tensor([1, 1, 0, 0]))
    assert run(part, batch, output(Categorical(MAIN)))[:2] == run(part, fewer, output(Categorical(MAIN)))[:2]


def test_where_the_gradients_go() -> None:
    """The weight is a constant; both heads' losses reach the latent."""
    part, latent = build(DISCRETE, AUX), torch.eye(4, dtype=torch.float64).requires_grad_()
    main = MAIN.clone().requires_grad_()
    out = PolicyOutput(Categorical(main), VALUE, None, {"actor": latent, "critic": latent})
    loss, metrics = part.loss(None, LABELLED, out)  # type: ignore[arg-type]
    by_aux, by_main = torch.autograd.grad(loss, [part.head.linear.weight, main])
    mask, n = SUCCESS.double(), 3
    wrong = AUX.exp() - torch.nn.functional.one_hot(EXPERT, 3)  # d(-log softmax)/d logits
    torch.testing.assert_close(by_aux, (wrong * (mask / n).unsqueeze(-1)).t())
    off = MAIN.exp() - torch.nn.functional.one_hot(EXPERT, 3)
    weights = torch.tensor([0.9, 0.6, 0.05, 0.0], dtype=torch.float64)
    torch.testing.assert_close(by_main, off * (weights / 4).unsqueeze(-1))
    assert not any(x.requires_grad for x in metrics.values())


# ---------------------------------------------------------------------- smoothing


def test_smoothing_steps() -> None:
    decays = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
    assert [smoothing_steps(r) for r in decays] == [2, 2, 4, 7, 11, 14, 18, 19]
    for r in (x / 500 for x in range(1, 500)):
        K = smoothing_steps(r)
        shares = [r**k / sum(r**i for i in range(1, k + 1)) for k in (K, K + 1)]
        assert shares[0] > 0.05 or K == 1
        assert shares[1] <= 0.05
        assert 1 <= K <= 19


@pytest.mark.parametrize(
    ("goes_on", "expected"),
    [
        ((0, 1, 1, 0, 1, 1), (1, 1 / 3, 1 / 7, 0.5, 1 / 6, 9 / 14)),
        ((0, 1, 1, 1, 1, 1), (1, 1 / 3, 1 / 7, 1 / 3, 5 / 31, 18 / 31)),
        ((1, 1, 1, 1, 1, 1), (1, 1 / 3, 1 / 7, 1 / 3, 5 / 31, 18 / 31)),  # before the rollout: absent
    ],
)
def test_smoothing(goes_on: tuple[int, ...], expected: tuple[float, ...]) -> None:
    weight = torch.tensor([1, 0, 0, 0.5, 0, 1], dtype=torch.float64)
    is_first = torch.tensor(goes_on) == 0
    assert smooth_over_time(weight, is_first, 0.5).tolist() == pytest.approx(expected, **EXACT)
    columns = smooth_over_time(torch.stack((weight, 1 - weight), -1), is_first.unsqueeze(-1).expand(-1, 2), 0.5)
    assert columns[:, 0].tolist() == pytest.approx(expected, **EXACT)
    assert columns.sum(-1).tolist() == pytest.approx([1.0] * 6, **EXACT)


def test_a_smoothed_part() -> None:
    """Alone in its column, an episode starting at row 2, no label in row 3."""
    part = build(DISCRETE, AUX, memory="gru", smooth_expert_weight_decay=0.5)
    is_first = torch.tensor([False, False, True, False])
    _, metrics, kept = run(
        part, batch_of(is_first, expert_action=EXPERT, expert_success=SUCCESS), output(Categorical(MAIN))
    )
    expected = [0.9, (0.6 + 0.45) / 1.5, 0.05, 0.0]  # without a label nothing is imitated, whatever came before
    assert kept.tolist() == pytest.approx([1 - w for w in expected], rel=1e-9)
    weighted = -sum(w * float(MAIN[t, EXPERT[t]]) for t, w in enumerate(expected)) / 4
    assert metrics["imitation_loss"] == pytest.approx(weighted, rel=1e-9)


# ---------------------------------------------------------------------- other actions, other labels


def test_squared_distances() -> None:
    aux = torch.zeros(4, 2, dtype=torch.float64)
    aux[0] = torch.tensor([0.3, 0.4], dtype=torch.float64)
    part = build(BOX, aux, alpha=2.0, bound=0.5)
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    expert = torch.tensor([[0.0, 0.0], [0.0, 0.5], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    batch = batch_of(expert_action=expert, expert_success=SUCCESS)
    loss, metrics, kept = run(part, batch, output(DiagGaussian(mean, torch.zeros(2, dtype=torch.float64))))
    # d = .25, .25, 2 (exp(-2) < .5: not imitated); squared errors of the policy 1, 0, 2
    assert kept.tolist() == pytest.approx([1 - math.exp(-0.5), 1 - math.exp(-0.5), 1.0, 1.0], rel=1e-9)
    assert metrics["aux_loss"] == pytest.approx(2.5 / 3, rel=1e-9)
    assert loss == pytest.approx(2.5 / 3 + math.exp(-0.5) / 4, rel=1e-9)


def test_log_probabilities_of_continuous_actions() -> None:
    part = build(BOX, torch.zeros(4, 2, dtype=torch.float64), alpha=2.0, distance="log_prob")
    expert = torch.tensor([[0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    batch = batch_of(expert_action=expert, expert_success=torch.ones(2, dtype=torch.int64))
    main = DiagGaussian(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    log_two_pi = math.log(2 * math.pi)
    loss, metrics, kept = run(part, batch, output(main, 2))  # the policy's log_std is that of the auxiliary head: 0
    w = [math.exp(-2 * (0.125 + log_two_pi)), math.exp(-2 * log_two_pi)]
    assert kept.tolist() == pytest.approx([1 - x for x in w], rel=1e-7)
    assert metrics["aux_loss"] == pytest.approx(0.0625 + log_two_pi, rel=1e-7)
    assert loss - metrics["aux_loss"] == pytest.approx((w[0] * (0.125 + log_two_pi) + w[1] * log_two_pi) / 2, rel=1e-7)
    with torch.no_grad():
        part.head.std.log_std.fill_(-3.0)  # densities above 1 count as 1
    assert run(part, batch, output(main, 2))[2][1] == 0.0


def test_choices_of_several_digits_multiply() -> None:
    space = spaces.MultiDiscrete([2, 3])
    logits = log([[0.5, 0.5, 0.2, 0.3, 0.5]]).expand(4, -1)
    part = build(space, logits, alpha=2.0)
    batch = batch_of(expert_action=torch.tensor([[1, 0], [0, 2]]), expert_success=torch.tensor([1, 1]))
    main = MultiCategorical(log([[0.1, 0.9, 0.25, 0.25, 0.5]]).expand(2, -1), (2, 3))
    loss, _, kept = run(part, batch, output(main, 2))
    assert kept.tolist() == pytest.approx([1 - 0.1**2, 1 - 0.25**2], rel=1e-9)
    aux = -(math.log(0.1) + math.log(0.25)) / 2
    assert loss == pytest.approx(aux - (0.01 * math.log(0.225) + 0.0625 * math.log(0.05)) / 2, rel=1e-9)


def test_probabilities_as_labels() -> None:
    groups: dict[str, spaces.Space[Any]] = {"expert_policy": spaces.Box(0.0, 1.0, (3,)), **with_expert(DISCRETE)}
    part = build(DISCRETE, AUX, groups, alpha=2.0, labels=ExpertLabelsConfig(kind="policy"))
    said = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.6, 0.1], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    batch = batch_of(expert_action=EXPERT, expert_policy=said, expert_success=SUCCESS)
    loss, metrics, kept = run(part, batch, output(Categorical(MAIN)))
    kl = [0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.05), 0.0, math.log(1 / 0.9)]
    w = [math.exp(-2 * d) for d in kl]
    assert kept.tolist() == pytest.approx([*(1 - x for x in w), 1.0], rel=1e-9, abs=1e-12)
    aux, main = ([-float((said[t] * x[t]).sum()) for t in range(3)] for x in (AUX, MAIN))
    assert metrics["aux_loss"] == pytest.approx(sum(aux) / 3, rel=1e-9)
    assert loss == pytest.approx(sum(aux) / 3 + sum(a * b for a, b in zip(w, main)) / 4, rel=1e-9)


def test_pure_functions_refuse_to_broadcast() -> None:
    column, flat, mask = torch.ones(3, 1), torch.ones(3), torch.ones(3, dtype=torch.bool)
    for call in (
        lambda: expert_weight(column, mask, 1.0, 0.0),
        lambda: smooth_over_time(column, mask, 0.5),
        lambda: imitation_loss(column, flat, mask, 0.0),
        lambda: masked_mean(column, mask),
    ):
        with pytest.raises(ValueError, match="must have one shape"):
            call()


def test_the_auxiliary_head() -> None:
    same = context(DISCRETE, with_expert(DISCRETE))
    assert torch.equal(Advisor(same, AdvisorConfig()).head.linear.weight, same.policy.head.linear.weight)
    own = Advisor(same, AdvisorConfig(aux_init="orthogonal"))
    assert not torch.equal(own.head.linear.weight, same.policy.head.linear.weight)
    assert {id(p) for p in own.core_parameters()} == {id(p) for p in own.head.parameters()}


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
        ({"alpha": Schedule.parse("linear:8:-1")}, "alpha must be at least 0"),
        ({"bound": 1.5}, r"bound must lie in \[0, 1\]"),
        ({"bound": -0.1}, r"bound must lie in \[0, 1\]"),
        ({"stage": 2.0}, r"stage must lie in \[0, 1\]"),
        ({"smooth_expert_weight_decay": 1.0}, r"lie in \(0, 0.99\]"),
        ({"distance": "kl"}, "distance must be one of auto"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdvisorConfig(**options)


@pytest.mark.parametrize(
    ("action_space", "groups", "options", "message"),
    [
        (DISCRETE, {}, {}, "'expert_action' does not exist; known: policy"),
        (DISCRETE, {}, {"use_rollout_labels": False}, "nothing to imitate: name demonstrations"),
        (DISCRETE, {"expert_action": BOX}, {}, r"expert's 'expert_action' is Box.* but actions are Discrete\(3\)"),
        (BOX, {"expert_action": DISCRETE}, {}, r"expert's 'expert_action' is Discrete\(3\), but actions are Box"),
        (DISCRETE, {"expert_action": spaces.Discrete(4)}, {}, "must be the same space"),
        (DISCRETE, {"expert_action": DISCRETE, "expert_success": spaces.Discrete(3)}, {}, "0 or 1"),
        (DISCRETE, {"expert_action": DISCRETE}, {"labels": ExpertLabelsConfig(success="sucess")}, "does not exist"),
        (DISCRETE, {"expert_policy": spaces.Box(0, 1, (2,))}, {"labels": ExpertLabelsConfig(kind="policy")}, "shape"),
        (BOX, {"expert_policy": spaces.Box(0, 1, (2,))}, {"labels": ExpertLabelsConfig(kind="policy")}, "discrete"),
        (DISCRETE, {"expert_action": DISCRETE}, {"distance": "squared"}, "squared' is for Box"),
        (DISCRETE, {"expert_action": DISCRETE}, {"smooth_expert_weight_decay": 0.5}, "policy with a memory"),
    ],
)
def test_what_does_not_fit(
    action_space: spaces.Space[Any], groups: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Advisor(context(action_space, groups), AdvisorConfig(**options))


@pytest.mark.parametrize(
    ("space", "action", "success", "message"),
    [
        (DISCRETE, [0, 3], [1, 1], r"holds \[3.0\], outside Discrete\(3\)"),
        (DISCRETE, [0, -1], [1, 1], "outside"),
        (DISCRETE, [[0], [1]], [1, 1], r"has shape \(2, 1\), but its space Discrete\(3\) needs \(2,\)"),
        (DISCRETE, [0, 1], [1, 2], "0 or 1"),
        (BOX, [[0.0, 0.0], [0.0, 1.1]], [1, 1], "outside"),
        (BOX, [[0.0, 0.0], [0.0, math.nan]], [1, 1], "outside"),
    ],
)
def test_first_labels_that_are_wrong(space: Any, action: Any, success: list[int], message: str) -> None:
    part = Advisor(context(space, with_expert(space)), AdvisorConfig())
    with pytest.raises(ValueError, match=message):
        part.sample(batch_of(expert_action=torch.tensor(action), expert_success=torch.tensor(success)))


def test_a_failing_expert_may_say_anything() -> None:
    part = Advisor(context(DISCRETE, with_expert(DISCRETE)), AdvisorConfig())
    batch = batch_of(expert_action=torch.tensor([0, 99]), expert_success=torch.tensor([1, 0]))
    assert part.sample(batch) is None  # no complaint
    assert part.labels.read(batch["obs"]).target.tolist() == [0, 0]


def test_first_probabilities_that_are_none() -> None:
    groups: dict[str, spaces.Space[Any]] = {"expert_policy": spaces.Box(0.0, 1.0, (3,))}
    part = Advisor(context(DISCRETE, groups), AdvisorConfig(labels=ExpertLabelsConfig(kind="policy")))
    with pytest.raises(ValueError, match="a sum of 1"):
        part.sample(batch_of(expert_policy=torch.tensor([[0.5, 0.5, 0.5]])))


# ---------------------------------------------------------------------- in training


def train(config: AdvisorConfig, iterations: int, **options: Any) -> tuple[PPO, dict[str, float]]:
    """Poisoned Doors with a code of 2 digits, which needs no memory.

    Without the expert's knowledge the best return is 1; to imitate the expert's choice of a door gives -2/3.
    """
    env = PoisonedDoors(64, code_length=2)
    policy = {"hidden_sizes": (), "shared_trunk": True, "memory": options.pop("memory", "none"), "memory_size": 16}
    core = {
        "num_steps": 10,
        "minibatches": 2,
        "entropy_coef": 0.01,
        "optimizer": OptimizerConfig(learning_rate=0.05),
    }
    ppo, _ = beside_ppo(env, config, "advisor", policy=policy, **core | options)
    for _ in range(iterations):
        metrics = ppo.iterate()
    return ppo, metrics


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("surrogate", ["clip", "a2c"])
def test_runs_beside_ppo_and_a2c(memory: str, surrogate: str) -> None:
    _, metrics = train(AdvisorConfig(), 1, memory=memory, surrogate=surrogate, epochs=1, minibatches=1)
    assert 0.0 < metrics["advisor/weight"] < 1.0
    assert metrics["ppo/skipped_steps"] == 0.0


def test_learns_what_imitation_cannot() -> None:
    """Learns the code where it pays; imitation alone takes a random door."""
    _, advised = train(AdvisorConfig(alpha=16.0, bound=0.0), 14)
    _, imitated = train(AdvisorConfig(stage=1.0), 8)
    assert advised["episode/return"] > 0.8
    assert imitated["episode/return"] < -0.3


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = Path(tmp_path_factory.mktemp("demonstrations")) / "doors.npz"
    env = PoisonedDoors(4, code_length=2)
    write_npz(path, record_episodes(env, lambda obs, _: obs["expert_action"], 40, seed=0), {})
    return str(path)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_demonstrations_alone_teach_the_same_losses(demonstrations: str, memory: str) -> None:
    config = AdvisorConfig(
        alpha=2.0, bound=0.0, use_rollout_labels=False, demonstrations=demonstrations, batch_size=64, sequence_length=8
    )
    ppo, metrics = train(config, 1, memory=memory)
    assert metrics["advisor/demonstration_loss"] < 2 * math.log(7)  # two uniform heads
    part, batch = ppo.parts["advisor"], TensorDict({}, batch_size=[])
    assert isinstance(part, Advisor)
    drawn = part.sample(batch)
    assert drawn is not None
    batch["advisor"] = TensorDict({"sample": drawn}, batch_size=[])
    empty = PolicyOutput(Categorical(torch.zeros(5, 7)), torch.zeros(5), None, {})
    with torch.no_grad():
        loss, _ = part.loss(ppo.policy, batch, empty)
        main, _, latents = ppo.policy.run_actor(drawn["obs"], None, drawn["is_first"])
        main_log, aux_log = main.log_prob(drawn["action"]), part.head(latents["actor"]).log_prob(drawn["action"])
    assert float(loss) == pytest.approx(float(-aux_log.mean() - (aux_log.exp() ** 2 * main_log).mean()), rel=1e-5)
    assert torch.equal(part.weight(batch, empty), torch.ones(5))


def test_demonstrations_beside_the_rollout(demonstrations: str) -> None:
    config = AdvisorConfig(demonstrations=demonstrations, batch_size=64, sequence_length=8)
    _, metrics = train(config, 1)
    assert {"advisor/demonstration_loss", "advisor/weight", "advisor/aux_loss"} <= set(metrics)


def test_fewer_demonstrations(demonstrations: str) -> None:
    config = AdvisorConfig(demonstrations=demonstrations, num_trajectories=3, step_stride=2)
    part = train(config, 1)[0].parts["advisor"]
    assert isinstance(part, Advisor)
    assert part.demonstrations is not None
    assert part.demonstrations.num_trajectories == 3
    with pytest.raises(ValueError, match="memory needs step_stride 1"):
        train(config, 1, memory="lstm")
