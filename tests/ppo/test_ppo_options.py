"""What PPO's options do, what it refuses, that the first ratio is 1, that it does not grow, and that it learns."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.schedules import Scalar, Schedule
from understudy.envs.registry import make_env
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.ppo import losses, minibatch
from understudy.ppo.config import PPOConfig
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import Labels, Part, PartContext, Rewards
from understudy.ppo.ppo import PPO
from understudy.ppo.returns import gae
from understudy.tasks.point_mass import PointMass

T, N = 8, 4


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if not k.startswith("time/") and v == v}


# ---------------------------------------------------------------------- the first ratio


@pytest.mark.parametrize("memory", ["none", "lstm", "gru"])
@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_first_ratio_is_one(scripted_env: Any, make_ppo: Any, memory: str, minibatches: int) -> None:
    """Normaliser on, rollouts with terminations, time limits and open ends; the policy far from where it began."""
    env = scripted_env(N)
    options = {"optimizer": OptimizerConfig(learning_rate=1e-2), "warmup_steps": 4, "epochs": 4}
    ppo = make_ppo(env, policy={"memory": memory}, minibatches=minibatches, **options)
    for _ in range(4):
        metrics = ppo.iterate()
        assert metrics["ppo/first_ratio_error"] < 1e-5
    assert metrics["ppo/ratio_max"] > 1.01  # later ones are not
    data, flags = ppo.collector.collect(), ppo.collector.data["is_first"]
    ppo.collector.evaluate()
    with torch.no_grad():  # and of every row, by one forward pass over the whole rollout
        obs = data["obs"] if ppo.policy.recurrent else data["obs"].flatten(0, 1)
        out = ppo.policy(obs, data["state"][0], flags) if ppo.policy.recurrent else ppo.policy(obs)
        shape = data["action"].shape if ppo.policy.recurrent else (T * N, 2)
        log_prob = out.distribution.log_prob(data["action"].view(shape)).view(T, N)
    assert flags.any()
    assert (torch.exp(log_prob - data["log_prob"]) - 1.0).abs().max() < 1e-5


def test_the_first_ratio_metric_sees_a_normaliser_that_moved(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N))
    ppo.iterate()
    evaluate = ppo.collector.evaluate

    def moves(*args: Any) -> None:
        evaluate(*args)
        ppo.policy.update_normalizers(ppo.collector.data["obs"] * 3.0)

    ppo.collector.evaluate = moves
    assert ppo.iterate()["ppo/first_ratio_error"] > 1e-4


# ---------------------------------------------------------------------- schedules

COEFFICIENTS: dict[str, tuple[str, str, dict[str, Any]]] = {  # option -> its buffer, schedule, other options
    "clip_epsilon": ("clip_low", "step:0it=0.2,2it=0.01", {}),
    "clip_epsilon_high": ("clip_high", "step:0it=0.2,2it=0.01", {}),
    "value_coef": ("value", "step:0it=0.5,2it=0.05", {}),
    "value_clip": ("value_clip", "step:0it=0.5,2it=0.001", {}),
    "entropy_coef": ("entropy", "step:0it=0,2it=0.1", {}),
    "reward_weight": ("reward", "step:0it=1,2it=0.1", {"advantage_normalization": "none"}),
}


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("option", COEFFICIENTS)
def test_a_scheduled_coefficient_is_the_constant_of_its_iteration(
    scripted_env: Any, make_ppo: Any, option: str, memory: str
) -> None:
    """Captured code sees the new number: the run equals one in which somebody sets it by hand, and no other run."""
    buffer, text, others = COEFFICIENTS[option]
    schedule = Schedule.parse(text)
    others = {"optimizer": OptimizerConfig(learning_rate=1e-2), "policy": {"memory": memory}, **others}
    scheduled = make_ppo(scripted_env(N), **{option: schedule}, **others)
    by_hand = make_ppo(scripted_env(N), **{option: schedule.points[0][1]}, **others)
    unchanged = make_ppo(scripted_env(N), **{option: schedule.points[0][1]}, **others)
    if option == "clip_epsilon":  # the upper clip follows the lower one if it is not given
        by_hand.coefficients["clip_high"].source = schedule
    for iteration in range(3):
        if iteration == 2:
            by_hand.coefficients[buffer].source = schedule.points[1][1]
        for ppo in (scheduled, by_hand, unchanged):
            ppo.iterate()
    assert torch.equal(scheduled.optimizer.flat, by_hand.optimizer.flat)
    assert not torch.equal(scheduled.optimizer.flat, unchanged.optimizer.flat)


def test_a_scheduled_discount_is_the_one_of_its_iteration(scripted_env: Any, make_ppo: Any) -> None:
    """Advantages and scaled rewards of every iteration follow the schedule, as if somebody had set a constant."""
    gamma, others = Schedule.parse("step:0it=0.5,1it=0.9"), {"reward_normalization": True, "value_coef": 0.0}
    scheduled = make_ppo(scripted_env(N), gamma=gamma, **others)
    by_hand = make_ppo(scripted_env(N), gamma=0.5, **others)
    for discount in (0.5, 0.9):
        by_hand.gamma = by_hand.reward_scaler.gamma = discount
        for ppo in (scheduled, by_hand):
            ppo.iterate()
        data = scheduled.collector.data
        flags = (data["terminated"], data["truncated"])
        advantage, _ = gae(data["reward"], data["value"], data["next_value"], *flags, gamma=discount)
        torch.testing.assert_close(data["advantage"], advantage)
        torch.testing.assert_close(data["reward"], by_hand.collector.data["reward"])
    wrong, _ = gae(data["reward"], data["value"], data["next_value"], *flags, gamma=0.5)
    assert (data["advantage"] - wrong).abs().max() > 1e-3
    assert PPOConfig(gamma=gamma).last_gamma == 0.9
    assert PPOConfig(gamma=0.5).last_gamma == 0.5
    with pytest.raises(ValueError, match=r"ppo\.gamma must lie in \[0, 1\], got linear:0\.9:1\.5"):
        PPOConfig(gamma=Schedule.parse("linear:0.9:1.5"))


def test_without_the_surrogate_only_the_critic_learns(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N), surrogate_coef=0.0)
    actor = [p.detach().clone() for p in (*ppo.policy.actor.parameters(), *ppo.policy.head.parameters())]
    critic = ppo.policy.value_head.weight.detach().clone()
    ppo.iterate()
    assert all(map(torch.equal, actor, (*ppo.policy.actor.parameters(), *ppo.policy.head.parameters())))
    assert not torch.equal(critic, ppo.policy.value_head.weight)


def test_the_gradient_does_not_go_through_a_critic_without_weight(
    scripted_env: Any, make_ppo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: list[int] = []
    grad = torch.autograd.grad

    def spy(loss: Tensor, targets: list[Tensor], **options: Any) -> Any:
        found = grad(loss, targets, retain_graph=True, allow_unused=True)
        missing.append(sum(g is None for g in found))
        return grad(loss, targets, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    for coefficient in (0.0, 0.5):
        make_ppo(scripted_env(N), value_coef=coefficient, capture="eager", epochs=1, minibatches=1).iterate()
    assert missing[0] > 0
    assert missing[1] == 0


def test_a_schedule_may_wait_for_a_metric(scripted_env: Any, make_ppo: Any) -> None:
    waiting = Schedule.parse("when:episode/finished>=1:0.5:0.25")
    ppo = make_ppo(scripted_env(N), surrogate_coef=waiting)
    ppo.iterate()
    assert float(ppo.coefficients["surrogate"]()) == 0.5
    resumed = make_ppo(scripted_env(N), surrogate_coef=waiting, seed=1)
    resumed.load_state_dict(ppo.state_dict())
    for follower in (ppo, resumed):
        follower.iterate()
        assert float(follower.coefficients["surrogate"]()) == 0.25


def test_a_schedule_that_waits_for_an_unknown_metric_is_refused(scripted_env: Any, make_ppo: Any) -> None:
    with pytest.raises(ValueError, match="did you mean episode/return"):
        make_ppo(scripted_env(N), entropy_coef=Schedule.parse("when:episode/retrun>=1:1:0"))
    ppo = make_ppo(scripted_env(N), entropy_coef=Schedule.parse("when:time/speeed>=1:1:0"))
    with pytest.raises(ValueError, match="waits for a metric that does not exist"):
        ppo.iterate()
    make_ppo(scripted_env(N), entropy_coef=Schedule.parse("when:evaluation/return>=1:1:0")).iterate()


def test_the_learning_rate_follows_its_schedule(scripted_env: Any, make_ppo: Any) -> None:
    rate = Schedule.parse("linear:0.01:0")
    ppo = make_ppo(
        scripted_env(N), optimizer=OptimizerConfig(learning_rate=rate), warmup_steps=4, total_steps=4 * T * N
    )
    rates = [ppo.iterate()["ppo/learning_rate"] for _ in range(3)]
    done = [0, 4 * N + T * N, 4 * N + 2 * T * N]  # the warm-up's steps count, too
    assert rates == pytest.approx([0.01 * (1 - steps / (4 * T * N)) for steps in done])


def test_a_torch_scheduler_moves_the_rate_once_an_iteration(scripted_env: Any, make_ppo: Any) -> None:
    chosen = LRSchedulerConfig(name="LinearLR", options={"start_factor": 0.5, "total_iters": 2})
    options = {"optimizer": OptimizerConfig(learning_rate=0.01), "lr_scheduler": chosen}
    ppo = make_ppo(scripted_env(N), **options)
    moved = [ppo.optimizer.flat.clone()]
    rates = [float(ppo.optimizer.learning_rate.value)]
    for _ in range(2):
        ppo.iterate()
        moved.append(ppo.optimizer.flat.clone())
        rates.append(float(ppo.optimizer.learning_rate.value))
    assert rates == pytest.approx([0.005, 0.0075, 0.01])
    resumed = make_ppo(scripted_env(N), seed=1, **options)
    resumed.load_state_dict(ppo.state_dict())
    assert float(resumed.optimizer.learning_rate.value) == rates[-1]
    resumed.iterate()
    assert float(resumed.optimizer.learning_rate.value) == pytest.approx(0.01)


def test_a_plateau_moves_the_rate_by_a_logged_metric(scripted_env: Any, make_ppo: Any) -> None:
    """The metric never falls below 0: with no patience each iteration but the first halves the rate."""
    chosen = LRSchedulerConfig(
        name="ReduceLROnPlateau", metric="ppo/skipped_steps", options={"factor": 0.5, "patience": 0}
    )
    ppo = make_ppo(scripted_env(N), optimizer=OptimizerConfig(learning_rate=0.01), lr_scheduler=chosen)
    rates = []
    for _ in range(3):
        ppo.iterate()
        rates.append(float(ppo.optimizer.learning_rate.value))
    assert rates == pytest.approx([0.01, 0.005, 0.0025])
    unknown = LRSchedulerConfig(name="ReduceLROnPlateau", metric="episode/retrun")
    with pytest.raises(ValueError, match=r"ppo\.lr_scheduler waits for 'episode/retrun', which is not logged; did you"):
        make_ppo(scripted_env(N), lr_scheduler=unknown)


def test_the_adaptive_rate_moves_by_the_rule_and_is_saved(scripted_env: Any, make_ppo: Any) -> None:
    """One minibatch an epoch: KL 0 first, then it is measured. Far too large, far too small, at the ends."""
    for start, desired, expected in ((1e-3, 1e-9, 1e-3 / 1.5**3), (1e-5, 10.0, 1e-5 * 1.5**3), (5e-3, 10.0, 1e-2)):
        options = {"desired_kl": desired, "epochs": 4, "optimizer": OptimizerConfig(learning_rate=start)}
        ppo = make_ppo(scripted_env(N), **options)
        assert ppo.iterate()["ppo/learning_rate"] == pytest.approx(expected, rel=1e-5)
        other = make_ppo(scripted_env(N), seed=1, **options)
        other.load_state_dict(ppo.state_dict())
        assert torch.equal(other.optimizer.learning_rate.value, ppo.optimizer.learning_rate.value)


def test_between_half_and_double_the_rate_rests(scripted_env: Any, make_ppo: Any) -> None:
    measured = make_ppo(scripted_env(N), desired_kl=1e-30, learning_rate_range=(3e-4, 3e-4), epochs=2).iterate()
    kl = 2.0 * measured["ppo/kl_exact"]  # the mean of 0 and the second minibatch's
    for factor, moved in ((0.6, 1.0), (1.9, 1.0), (0.4, 1 / 1.5), (2.1, 1.5)):
        metrics = make_ppo(scripted_env(N), desired_kl=kl * factor, epochs=2).iterate()
        assert metrics["ppo/learning_rate"] == pytest.approx(3e-4 * moved, rel=1e-5), factor


def test_target_kl_stops_the_iteration_and_not_the_training(scripted_env: Any, make_ppo: Any) -> None:
    options = {"epochs": 4, "minibatches": 2, "optimizer": OptimizerConfig(learning_rate=1e-2)}
    ppo = make_ppo(scripted_env(N), target_kl=1e-9, **options)
    metrics = ppo.iterate()
    assert ppo.optimizer.steps == 1.0  # KL 0, a step; then a KL above, none
    assert metrics["ppo/skipped_steps"] == 0.0
    ppo.iterate()
    assert ppo.optimizer.steps == 2.0
    loose, free = make_ppo(scripted_env(N), target_kl=1000.0, **options), make_ppo(scripted_env(N), **options)
    loose.iterate()
    free.iterate()
    assert loose.optimizer.steps == 8.0
    assert torch.equal(loose.optimizer.flat, free.optimizer.flat)


def test_shuffling_is_new_in_every_epoch_and_iteration(
    scripted_env: Any, make_ppo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []
    randperm = torch.randperm

    def watched(n: int, **options: Any) -> Tensor:
        order = randperm(n, **options)
        orders.append(order.tolist())
        return order

    monkeypatch.setattr(minibatch.torch, "randperm", watched)
    ppo = make_ppo(scripted_env(N), epochs=3)
    ppo.iterate()
    ppo.iterate()
    assert len(orders) == 6
    assert all(sorted(order) == list(range(T * N)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate": "clipp"}, "ppo.surrogate must be one of clip, a2c or 'module:function' .did you mean clip"),
        (
            {"advantage_normalization": "batch"},
            "ppo.advantage_normalization must be one of minibatch, rollout, none .did you mean minibatch",
        ),
        ({"value_normalization": "std"}, "ppo.value_normalization must be one of none, scale"),
        ({"loss_critic_type": "mse"}, "ppo.loss_critic_type must be one of l1"),
        ({"on_nonfinite": "ignore"}, "ppo.on_nonfinite must be one of mask"),
        ({"capture": "jit"}, "ppo.capture must be one of eager"),
        ({"num_steps": 0}, "ppo.num_steps must be at least 1, got 0"),
        ({"num_steps": 2.5}, "ppo.num_steps must be a whole number, got 2.5"),
        ({"epochs": 0}, "ppo.epochs must be at least 1"),
        ({"minibatches": 0}, "ppo.minibatches must be at least 1"),
        ({"samples_mc_entropy": 0}, "ppo.samples_mc_entropy must be at least 1"),
        ({"warmup_steps": -1}, "ppo.warmup_steps must be at least 0"),
        ({"gamma": 1.01}, r"ppo.gamma must lie in \[0, 1\], got 1.01"),
        ({"gamma": Schedule.parse("linear:0.9:1.1")}, r"ppo.gamma must lie in \[0, 1\]"),
        ({"gae_lambda": math.nan}, "ppo.gae_lambda must be finite"),
        ({"clip_epsilon": -0.2}, "clip_epsilon must be at least 0"),
        ({"clip_epsilon_high": -0.2}, "clip_epsilon_high must be at least 0"),
        ({"value_clip": -0.2}, "value_clip must be at least 0"),
        ({"dual_clip": 1.0}, "dual_clip must be greater than 1"),
        ({"desired_kl": 0.0}, "desired_kl must be greater than 0"),
        ({"target_kl": -0.01}, "target_kl must be greater than 0"),
        ({"reward_clip": 0.0}, "reward_clip must be greater than 0"),
        ({"learning_rate_range": (1e-2, 1e-5)}, "learning_rate_range must be"),
        (
            {"desired_kl": 0.01, "optimizer": OptimizerConfig(learning_rate=Schedule.parse("linear:1:0"))},
            "at most one mechanism may change the learning rate, got desired_kl and a schedule",
        ),
        ({"desired_kl": 0.01, "lr_scheduler": LRSchedulerConfig(name="StepLR")}, "at most one mechanism may change"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ({}, {"minibatches": 7}, "minibatches = 7 does not divide 8 steps x 4 environments.*nearest.* is 8"),
        ({}, {"minibatches": 100}, "nearest number that does is 32"),
        ({"memory": "lstm"}, {"minibatches": 8}, r"4 environments \(a recurrent policy.*nearest.* is 4"),
        ({"memory": "gru"}, {"recompute_advantage": True}, "recompute_advantage needs a feed-forward policy"),
        (
            {},
            {"clip_epsilon": Schedule.parse("linear:0.2:0")},
            "linear:0.2:0.0 runs over the whole training.*total_steps",
        ),
        ({}, {"optimizer": OptimizerConfig(learning_rate=Schedule.parse("exp:1:0"))}, "runs over the whole training"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    scripted_env: Any, make_ppo: Any, policy: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_ppo(scripted_env(N), policy=policy, **options)


def test_no_environments_are_refused(scripted_env: Any, make_ppo: Any) -> None:
    with pytest.raises(ValueError, match="at least one environment"):
        make_ppo(scripted_env(0))


class Scheduled(Part, Rewards):
    """A reward of zero with a weight that changes."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self.weight = Scalar(Schedule.parse("linear:1:0"))

    @property
    def reward_weight(self) -> Tensor:
        return self.weight()

    def reward(self, rollout: TensorDict) -> Tensor:
        return torch.zeros_like(rollout["task_reward"])


class Labelled(Part, Labels):
    """Labels nothing."""

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        return TensorDict({}, batch_size=[N])


def context(env: Any, policy: ActorCritic) -> PartContext:
    return PartContext.of(env, policy, name="part", num_steps=T)


def test_the_schedule_of_a_part_needs_the_length_too(scripted_env: Any, make_ppo: Any, make_policy: Any) -> None:
    env = scripted_env(N)
    part = Scheduled(context(env, make_policy(env)))
    with pytest.raises(ValueError, match="runs over the whole training"):
        make_ppo(env, parts={"part": part})
    ppo = make_ppo(env, parts={"part": part}, total_steps=4 * T * N)
    for expected in (1.0, 0.75, 0.5):
        ppo.iterate()
        assert float(part.weight()) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["obs", "value", "state", "advantage", "ppo", "time", "a/b", ""])
def test_a_part_must_not_hide_what_is_there(scripted_env: Any, make_ppo: Any, make_policy: Any, name: str) -> None:
    env = scripted_env(N)
    with pytest.raises(ValueError, match="a part cannot be called"):
        make_ppo(env, parts={name: Labelled(context(env, make_policy(env)))})


def test_a_checkpoint_with_other_parts_is_refused(scripted_env: Any, make_ppo: Any, make_policy: Any) -> None:
    env = scripted_env(N)
    ppo = make_ppo(env, parts={"mine": Labelled(context(env, make_policy(env)))})
    with pytest.raises(ValueError, match=r"the checkpoint has parts \['mine'\], the run has \[\]"):
        make_ppo(scripted_env(N)).load_state_dict(ppo.state_dict())


def test_a_checkpoint_of_another_architecture_is_refused(scripted_env: Any, make_ppo: Any) -> None:
    state = make_ppo(scripted_env(N), policy={"hidden_sizes": (16,)}).state_dict()
    with pytest.raises(ValueError, match=r"(?s)the checkpoint's policy does not fit.*size mismatch"):
        make_ppo(scripted_env(N)).load_state_dict(state)


# ---------------------------------------------------------------------- it does not grow


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_a_hundred_iterations_leave_nothing_behind(make_ppo: Any, memory: str) -> None:
    env = PointMass(N, max_episode_steps=7)
    ppo = make_ppo(env, policy={"memory": memory}, num_steps=4, epochs=1, desired_kl=0.01, reward_normalization=True)
    for _ in range(60):  # the window of finished episodes fills first
        ppo.iterate()
    gc.collect()
    objects, tensors = len(gc.get_objects()), count_tensors()
    for _ in range(100):
        ppo.iterate()
    gc.collect()
    assert count_tensors() < tensors + 50  # an iteration may end with a few final observations in hand
    # resident memory is the business of benchmarks/memory: it needs a process to itself
    assert len(gc.get_objects()) < objects + 700


def count_tensors() -> int:
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


# ---------------------------------------------------------------------- it learns


def cart_pole(iterations: int) -> float:
    """Mean return of the last 100 episodes."""
    torch.manual_seed(0)
    env = make_env("CartPole-v1", 8, backend="gymnasium")
    try:
        policy = ActorCritic(env.observation_space, env.action_space, PolicyConfig(hidden_sizes=(32, 32)))
        config = PPOConfig(num_steps=64, epochs=8, minibatches=4, optimizer=OptimizerConfig(learning_rate=2e-3))
        ppo = PPO(env, policy, config, seed=0)
        for _ in range(iterations):
            metrics = ppo.iterate()
    finally:
        env.close()
    return metrics["episode/return"]


def test_cart_pole_is_learnt_and_not_with_the_sign_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cart_pole(48) >= 150.0  # 25,000 steps
    bounded: Callable[..., Tensor] = losses.bounded_surrogate
    monkeypatch.setattr(losses, "bounded_surrogate", lambda *args: -bounded(*args))
    assert cart_pole(12) < 30.0
