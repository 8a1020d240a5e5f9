"""Losses, rewards, penalty and metrics of discriminators against hand-computed numbers; the learner and its replay."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from understudy.parts.shared.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    DiscriminatorNetwork,
    Replay,
    RewardForm,
    discriminator_loss,
    discriminator_reward,
    gradient_penalty,
    interpolate,
    weighted_mean,
)
from understudy.ppo.optim import OptimizerConfig


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def exactly(found: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- pure functions


def test_cross_entropy_by_hand() -> None:
    # policy logits -1, 2; expert logits 0.5, -3, 4
    expected = (softplus(-1.0) + softplus(2.0)) / 2 + (softplus(-0.5) + softplus(3.0) + softplus(-4.0)) / 3
    exactly(discriminator_loss(f64(-1.0, 2.0), f64(0.5, -3.0, 4.0)), expected)
    assert expected == pytest.approx(1.220095 + 1.180271, abs=2e-6)
    exactly(discriminator_loss(f64(0.0), f64(0.0)), 2.0 * math.log(2.0))


def test_least_squares_by_hand() -> None:
    # policy (-1+1)^2 = 0, (2+1)^2 = 9; expert (0.5-1)^2 = 0.25, (-3-1)^2 = 16
    found = discriminator_loss(f64(-1.0, 2.0), f64(0.5, -3.0), kind="least_squares")
    exactly(found, 0.5 * 4.5 + 0.5 * 8.125)


def test_rows_of_weight_zero_do_not_count() -> None:
    with_junk = discriminator_loss(f64(-1.0, 50.0, 2.0), f64(0.5), f64(1.0, 0.0, 1.0))
    exactly(with_junk, discriminator_loss(f64(-1.0, 2.0), f64(0.5)))
    exactly(weighted_mean(f64(3.0, 5.0), f64(0.0, 0.0)), 0.0)


def test_the_loss_stays_finite_where_probabilities_would_saturate() -> None:
    exactly(discriminator_loss(f64(200.0), f64(-200.0)), 400.0)


# softplus(x) for x = -4, -1, 0, 1, 4
SOFTPLUS = (0.018149927917809738, 0.31326168751822286, 0.6931471805599453, 1.3132616875182228, 4.01814992791781)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("softplus", SOFTPLUS),
        ("log_d", tuple(-x for x in reversed(SOFTPLUS))),
        ("logit", (-4.0, -1.0, 0.0, 1.0, 4.0)),
        ("least_squares", (0.0, 0.0, 0.75, 1.0, 0.0)),
    ],
)
def test_rewards_by_hand(form: RewardForm, expected: tuple[float, ...]) -> None:
    logit = f64(-4.0, -1.0, 0.0, 1.0, 4.0)
    exactly(discriminator_reward(logit, form), f64(*expected))


def test_reward_forms_are_what_their_names_say() -> None:
    logit = f64(-2.0, 0.3, 1.7)
    D = torch.sigmoid(logit)
    exactly(discriminator_reward(logit, "softplus"), -torch.log(1.0 - D))
    exactly(discriminator_reward(logit, "log_d"), torch.log(D))
    exactly(discriminator_reward(logit, "logit"), torch.log(D) - torch.log(1.0 - D))


def test_penalty_has_one_norm_per_row() -> None:
    # l(x) = 3 x0 + x1^2: gradients (3, 2 x1) = (3, 4), (3, 0): norms 5 and 3
    x = torch.tensor([[1.0, 2.0], [7.0, 0.0]], dtype=torch.float64, requires_grad=True)
    logit = 3.0 * x[:, 0] + x[:, 1].square()
    exactly(gradient_penalty(logit, x, target=1.0), ((5.0 - 1.0) ** 2 + (3.0 - 1.0) ** 2) / 2)
    logit = 3.0 * x[:, 0] + x[:, 1].square()
    exactly(gradient_penalty(logit, x, target=0.0), (25.0 + 9.0) / 2)


def test_penalty_can_be_differentiated_again() -> None:
    # l = w x: penalty (|w| - 1)^2, derivative 2 (w - 1) for w > 0; at w = 0 finite
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    x = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gradient_penalty((w * x).squeeze(-1), x, 1.0), w)
    exactly(gradient, 4.0)
    zero = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gradient_penalty((zero * x).squeeze(-1), x, 1.0), zero)
    assert torch.isfinite(gradient)


def test_interpolates_lie_on_the_line_between_two_rows() -> None:
    policy, expert = f64(0.0, 10.0, 2.0).view(1, 3), f64(4.0, 20.0, 2.0).view(1, 3)
    exactly(interpolate(policy, expert, f64(0.25).view(1, 1)), f64(1.0, 12.5, 2.0).view(1, 3))
    with pytest.raises(ValueError, match="one number per row"):
        interpolate(policy, expert, torch.rand(1, 3))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="squeeze the network's last dimension"):
        discriminator_loss(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="weight is"):
        discriminator_loss(torch.zeros(4), torch.zeros(4), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"expected \[B\]"):
        gradient_penalty(torch.zeros(4, 1), torch.zeros(4, 2), 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"disc_update_num": 0}, "discriminator.disc_update_num must be at least 1, got 0"),
        ({"batch_size": 0}, "discriminator.batch_size must be at least 1"),
        ({"replay_size": -1}, "discriminator.replay_size must be at least 0"),
        ({"replay_add": 0}, "discriminator.replay_add must be at least 1"),
        ({"logit_regularizer": -0.1}, "must be at least 0"),
        ({"gradient_penalty": -1.0}, "must be at least 0"),
        ({"loss": "bce_logits"}, "discriminator.loss must be one of bce, least_squares"),
        ({"penalty_on": "experts"}, "did you mean expert"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DiscriminatorConfig(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the learner


class Linear(nn.Module):
    """l = w . x with weights that start as told."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


def build(network: nn.Module, *, row_size: int = 2, rollout_size: int = 8, **options: object) -> Discriminator:
    config = DiscriminatorConfig(
        **{"optimizer": OptimizerConfig(kind="sgd", learning_rate=0.1, max_grad_norm=None), **options}  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(0)
    return Discriminator(
        network, config, num_features=2, row_size=row_size, rollout_size=rollout_size, generator=generator
    )


def test_one_step_by_hand() -> None:
    """All policy rows are (1, 0), all expert rows (0, 1): loss, statistics and the step are known."""
    network = Linear(2.0, -1.0)
    discriminator = build(network, disc_update_num=1)
    policy, expert = torch.tensor([[1.0, 0.0]]).repeat(8, 1), torch.tensor([[0.0, 1.0]]).repeat(8, 1)
    metrics = discriminator.fit(policy, expert, torch.ones(8))
    exactly(metrics["loss"].double().round(decimals=5), round(softplus(2.0) + softplus(1.0), 5))
    assert metrics["logit_pi"].item() == 2.0
    assert metrics["logit_exp"].item() == -1.0
    assert metrics["acc_pi"].item() == metrics["acc_exp"].item() == metrics["penalty"].item() == 0.0
    sigmoid = lambda x: 1.0 / (1.0 + math.exp(-x))  # noqa: E731
    expected = [2.0 - 0.1 * sigmoid(2.0), -1.0 + 0.1 * sigmoid(1.0)]
    torch.testing.assert_close(network.weight.detach(), torch.tensor(expected))
    assert metrics["grad_norm"].item() == pytest.approx(math.hypot(sigmoid(2.0), sigmoid(1.0)), rel=1e-6)


def test_accuracies_count_the_right_sides() -> None:
    discriminator = build(Linear(1.0, 0.0), disc_update_num=1)
    policy = torch.tensor([-1.0, -2.0, -3.0, 1.0, 2.0, 0.0, 4.0, -5.0])  # 4 of 8 below 0
    expert = torch.tensor([-1.0, 2.0, 3.0, 1.0, 2.0, 0.0, 4.0, 5.0])  # 6 of 8 above 0
    rows = [torch.stack((x, torch.zeros(8)), dim=-1) for x in (policy, expert)]
    metrics = discriminator.fit(*rows, torch.ones(8))
    assert metrics["acc_pi"].item() == 0.5
    assert metrics["acc_exp"].item() == 0.75


@pytest.mark.parametrize(("where", "expected"), [("interpolates", (5.0 - 1.0) ** 2), ("expert", 25.0), ("both", 25.0)])
def test_the_penalty_sees_features_and_no_other_column(where: str, expected: float) -> None:
    """Gradient (3, 4) on the features; a third column with weight 100 must not count."""
    network = Linear(3.0, 4.0, 100.0)
    discriminator = build(network, row_size=3, disc_update_num=1, gradient_penalty=2.0, penalty_on=where)
    rows = torch.zeros(8, 3)
    metrics = discriminator.fit(rows, rows, torch.ones(8))
    assert metrics["penalty"].item() == pytest.approx(expected)
    # at rows of zeros the cross-entropy has no gradient: the step is the penalty's alone
    slope = 2.0 * (5.0 - 1.0) / 5.0 if where == "interpolates" else 2.0
    moved = torch.tensor([3.0, 4.0, 0.0]) * slope * 2.0 * 0.1
    torch.testing.assert_close(network.weight.detach(), torch.tensor([3.0, 4.0, 100.0]) - moved)


@pytest.mark.parametrize("options", [{}, {"gradient_penalty": 10.0}, {"loss": "least_squares", "replay_size": 64}])
def test_it_learns_to_tell_two_clouds_apart(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = DiscriminatorConfig(hidden_sizes=(16,))
    discriminator = build(
        DiscriminatorNetwork(2, config),
        rollout_size=64,
        disc_update_num=50,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=1e-2, max_grad_norm=None),
        **options,
    )
    for _ in range(3):
        policy, expert = torch.randn(64, 2) - 1.5, torch.randn(discriminator.num_expert_rows, 2) + 1.5
        metrics = discriminator.fit(policy, expert, torch.ones(64))
    assert metrics["acc_pi"] > 0.9
    assert metrics["acc_exp"] > 0.9
    assert discriminator.logit(torch.tensor([[1.5, 1.5]])) > 0.0 > discriminator.logit(torch.tensor([[-1.5, -1.5]]))


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    discriminator = build(
        DiscriminatorNetwork(2, DiscriminatorConfig(hidden_sizes=(16, 16), spectral_norm=True)),
        rollout_size=64,
        spectral_norm=True,
        disc_update_num=60,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=1e-2, max_grad_norm=None),
    )
    expert = torch.randn(discriminator.num_expert_rows, 2) + 1.0
    metrics = discriminator.fit(torch.randn(64, 2) - 1.0, expert, torch.ones(64))
    assert metrics["acc_exp"] > 0.8
    layers = [m for m in discriminator.network.modules() if isinstance(m, nn.Linear)]
    before = [layer.state_dict() for layer in layers]
    discriminator.network.eval()
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1.0, abs=0.02)
    discriminator.network.train()
    discriminator.logit(expert)  # scoring moves nothing, the power iteration included
    for layer, old in zip(layers, before):
        assert all(torch.equal(x, old[name]) for name, x in layer.state_dict().items())


def test_invalid_rows_may_hold_anything() -> None:
    def fit(policy: Tensor, weight: Tensor) -> Tensor:
        network = Linear(1.0, -1.0)
        build(network, disc_update_num=1).fit(policy, torch.ones(8, 2), weight)
        return network.weight.detach()

    policy, weight = torch.rand(8, 2), torch.ones(8)
    weight[3] = 0.0
    expected = fit(policy, weight)
    policy[3] = torch.nan
    assert torch.equal(fit(policy, weight), expected)
    assert torch.isfinite(expected).all()


def test_every_row_is_used_once_before_any_twice() -> None:
    discriminator = build(Linear(1.0, 1.0), disc_update_num=4)  # 4 steps of 2 of the 8 rows
    rows = torch.arange(8.0).view(8, 1).expand(8, 2)
    drawn, _ = discriminator._draw(rows, torch.ones(8))
    assert drawn.shape == (4, 2, 2)
    assert sorted(drawn[..., 0].flatten().tolist()) == list(range(8))
    more = build(Linear(1.0, 1.0), disc_update_num=3, batch_size=5)._draw(rows, torch.ones(8))[0]
    counts = more[..., 0].flatten().long().bincount(minlength=8)
    assert counts.min() == 1
    assert counts.max() == 2


def test_half_of_the_rows_come_from_the_past() -> None:
    discriminator = build(Linear(1.0, 1.0), disc_update_num=2, replay_size=16)
    first, second = torch.full((8, 2), 1.0), torch.full((8, 2), 2.0)
    drawn, weight = discriminator._draw(first, torch.ones(8))
    assert (weight[:, :2] == 1.0).all()
    assert (weight[:, 2:] == 0.0).all()  # nothing is in it yet
    drawn, weight = discriminator._draw(second, torch.ones(8))
    assert (weight == 1.0).all()
    assert (drawn[:, :2] == 2.0).all()
    assert (drawn[:, 2:] == 1.0).all()


def test_few_rows_of_each_rollout_reach_far_back() -> None:
    discriminator = build(Linear(1.0, 1.0), disc_update_num=2, replay_size=16, replay_add=2)
    for value in range(8):
        discriminator._draw(torch.full((8, 2), float(value)), torch.ones(8))
    assert discriminator.replay is not None
    assert discriminator.replay.rows[:, 0].tolist() == [float(i // 2) for i in range(16)]


def test_the_penalty_on_both_sides_skips_rows_left_out() -> None:
    class Bowl(Linear):
        def forward(self, rows: Tensor) -> Tensor:
            return rows.square() @ self.weight  # its gradient is 2 w x

    rows, left_out = torch.tensor([[1.0, 0.0]]).repeat(8, 1), torch.tensor([[0.0, 5.0]]).repeat(8, 1)
    options = {"disc_update_num": 1, "gradient_penalty": 1.0, "penalty_on": "both"}
    both = build(Bowl(1.0, 1.0), **options).fit(left_out, rows, torch.ones(8))
    assert both["penalty"].item() == pytest.approx((4.0 + 100.0) / 2)
    expert_only = build(Bowl(1.0, 1.0), **options).fit(left_out, rows, torch.zeros(8))
    assert expert_only["penalty"].item() == pytest.approx(4.0)


def test_the_logit_regularizer_pulls_the_last_layer_alone() -> None:
    config = DiscriminatorConfig(hidden_sizes=(4,))
    networks = [DiscriminatorNetwork(2, config) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    before = [p.detach().clone() for p in networks[0].parameters()]
    policy, expert = torch.randn(8, 2), torch.randn(8, 2)
    for network, weight in zip(networks, (0.0, 0.5)):
        build(network, disc_update_num=1, logit_regularizer=weight).fit(policy, expert, torch.ones(8))
    hidden, bias, last, last_bias = (b.detach() - a.detach() for a, b in zip(*(n.parameters() for n in networks)))
    for same in (hidden, bias, last_bias):
        torch.testing.assert_close(same, torch.zeros_like(same), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(last, -0.1 * 0.5 * 2.0 * before[2], rtol=1e-4, atol=1e-6)


def test_the_replay_forgets_the_oldest_rows() -> None:
    replay, generator = Replay(5, 1, torch.device("cpu")), torch.Generator().manual_seed(0)
    replay.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3))
    drawn, weight = replay.draw(200, generator)
    assert set(drawn.flatten().tolist()) == {1.0, 2.0, 3.0}
    assert (weight == 1.0).all()
    replay.add(torch.tensor([[4.0], [5.0], [6.0]]), torch.tensor([1.0, 0.0, 1.0]))
    drawn, weight = replay.draw(500, generator)
    assert set(drawn.flatten().tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0}
    assert (weight[drawn.flatten() == 5.0] == 0.0).all()
    with pytest.raises(ValueError, match="do not fit"):
        replay.add(torch.zeros(6, 1), torch.ones(6))


def test_both_sides_go_through_one_normalizer_together() -> None:
    seen: list[Tensor] = []

    def spy(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows

    discriminator = build(Linear(1.0, 1.0), disc_update_num=2)
    discriminator.fit(torch.full((8, 2), 3.0), torch.full((8, 2), 5.0), torch.ones(8), spy)
    (rows,) = seen
    assert rows.shape == (2, 2, 4, 2)
    assert (rows[0] == 3.0).all()
    assert (rows[1] == 5.0).all()


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be split among disc_update_num = 9"):
        build(Linear(1.0, 1.0), disc_update_num=9)
    with pytest.raises(ValueError, match="fit takes expert rows"):
        build(Linear(1.0, 1.0)).fit(torch.zeros(8, 2), torch.zeros(3, 2), torch.ones(8))


@pytest.mark.parametrize("options", [{}, {"gradient_penalty": 3.0}, {"gradient_penalty": 3.0, "penalty_on": "expert"}])
def test_the_captured_step_equals_the_eager_one(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> Tensor:
        torch.manual_seed(0)
        network = DiscriminatorNetwork(2, DiscriminatorConfig(hidden_sizes=(8, 8)))
        discriminator = build(network, **options)
        policy, expert = torch.randn(8, 2), torch.randn(8, 2)
        for _ in range(3):
            discriminator.fit(policy, expert, torch.ones(8))
        return discriminator.optimizer.flat.clone()

    captured = fit()
    from understudy.parts.shared import discriminator as module

    program: Callable[..., object] = module.capture_gradient
    monkeypatch.setattr(module, "capture_gradient", lambda loss, optimizer, mode: program(loss, optimizer, "eager"))
    torch.testing.assert_close(captured, fit(), rtol=0.0, atol=0.0)
