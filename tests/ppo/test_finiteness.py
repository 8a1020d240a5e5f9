"""NaN and infinity from the environment, a part or the policy: named, left out, survived."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import capture
from understudy.envs.base import Step
from understudy.nn.policy import PolicyOutput
from understudy.parts import RandomNetworkDistillationConfig
from understudy.ppo.part import Labels, Losses, Part, PartContext, Rewards
from understudy.tasks.point_mass import PointMass
from understudy.types import Metrics, NonFiniteError

T, N = 8, 3
NAN, INF = math.nan, math.inf
SPACE = spaces.Dict(
    {
        "policy": spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,)), "b": spaces.Box(-np.inf, np.inf, (3,))}),
        "critic": spaces.Box(-np.inf, np.inf, (4,)),
    }
)


def observation(*places: tuple[int, int], bad: float = NAN, key: Any = "policy") -> Callable[[int, Step], Step]:
    """Poison the observation that step t of environment n returns."""

    def edit(t: int, step: Step) -> Step:
        for n in [n for s, n in places if s == t]:
            step.obs[key][n, 1] = bad
            if step.final_obs is not None and not bool(step.terminated[n] | step.truncated[n]):
                step.final_obs[key][n, 1] = bad
        return step

    return edit


def reward(t0: int, n: int, bad: float = NAN) -> Callable[[int, Step], Step]:
    def edit(t: int, step: Step) -> Step:
        if t == t0:
            step.reward[n] = bad
        return step

    return edit


def final(t0: int, n: int, key: Any = "policy", bad: float = NAN) -> Callable[[int, Step], Step]:
    def edit(t: int, step: Step) -> Step:
        if t == t0:
            assert step.final_obs is not None
            step.final_obs[key][n, 0] = bad
        return step

    return edit


def never(t: int, n: int) -> str:
    return ""


def invalid(ppo: Any) -> list[tuple[int, int]]:
    return [(t, n) for t, n in (~ppo.collector.data["valid"]).nonzero().tolist()]


# ---------------------------------------------------------------------- named


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize(
    ("key", "name"), [(("policy", "b"), "policy/b"), (("policy", "a"), "policy/a"), ("critic", "critic")]
)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_an_observation_is_named_and_both_transitions_that_touch_it_are_left_out(
    scripted_env: Any, make_ppo: Any, key: Any, name: str, bad: float, memory: str
) -> None:
    env = scripted_env(N, observation_space=SPACE, ends=never, edit=observation((4, 1), bad=bad, key=key))
    ppo = make_ppo(env, policy={"memory": memory}, entropy_coef=0.01)
    metrics = ppo.iterate()
    assert invalid(ppo) == [(4, 1), (5, 1)]  # the one that leads there, the one that starts there
    where = f"observation {name} of environment 1 is not finite at step 5 (1 cases in this rollout)"
    assert ppo.last_report == f"{where}; {2 / 24:.2%} of the rollout's transitions are left out"
    assert_healthy(ppo, metrics)
    ppo.iterate()
    assert ppo.last_report == ""
    assert invalid(ppo) == []


def test_the_first_and_the_last_observation_of_a_rollout(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(N, ends=never, edit=observation((T - 1, 0)))
    ppo = make_ppo(env)
    ppo.iterate()
    assert invalid(ppo) == [(T - 1, 0)]
    assert "environment 0 is not finite at step 8" in ppo.last_report
    assert_healthy(ppo, ppo.iterate())
    assert invalid(ppo) == [(0, 0)]
    assert "environment 0 is not finite at step 8" in ppo.last_report  # the same one


def test_an_end_shields_the_episode_before(scripted_env: Any, make_ppo: Any) -> None:
    """The step before returned a bad first observation of the next episode: it is none the worse for it."""
    env = scripted_env(N, ends=lambda t, n: "terminated" if t == 4 else "", edit=observation((4, 1)))
    ppo = make_ppo(env)
    ppo.iterate()
    assert invalid(ppo) == [(5, 1)]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_reward_is_named(scripted_env: Any, make_ppo: Any, bad: float) -> None:
    ppo = make_ppo(scripted_env(N, ends=never, edit=reward(3, 2, bad)), reward_normalization=True)
    metrics = ppo.iterate()
    assert invalid(ppo) == [(3, 2)]
    assert ppo.last_report.startswith("reward of environment 2 is not finite at step 3 (1 cases")
    assert_healthy(ppo, metrics)
    assert float(ppo.episodes.running[1, 2]) == T - 1  # counted without the step


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("flag", ["truncated", "terminated"])
@pytest.mark.parametrize("keeps_next_obs", [False, True])
def test_a_final_observation_is_named(
    scripted_env: Any, make_ppo: Any, memory: str, flag: str, keeps_next_obs: bool
) -> None:
    """After a termination nobody reads it, unless a part wants the next observations."""
    env = scripted_env(N, ends=lambda t, n: flag if t == 4 else "", edit=final(4, 1))
    ppo = make_ppo(env, policy={"memory": memory}, parts={"watcher": Watcher()} if keeps_next_obs else {})
    metrics = ppo.iterate()
    if flag == "terminated" and not keeps_next_obs:
        assert invalid(ppo) == []
    else:
        assert invalid(ppo) == [(4, 1)]
        expected = "final observation policy of environment 1 is not finite at step 4 (1 cases in this rollout); "
        assert ppo.last_report.startswith(expected)
        assert ppo.last_report.count("final observation") == 1
    assert_healthy(ppo, metrics)


def test_a_final_observation_that_only_the_actor_sees_does_no_harm(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(
        N,
        observation_space=SPACE,
        ends=lambda t, n: "truncated" if t == 4 else "",
        edit=final(4, 1, key=("policy", "a")),
    )
    ppo = make_ppo(env)
    assert_healthy(ppo, ppo.iterate())
    assert invalid(ppo) == []


def test_steps_are_counted_from_the_beginning_of_the_training(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N, ends=never, edit=observation((2, 0), (21, 1))), warmup_steps=4)
    with_warm_up: list[str] = []
    logger = logging.getLogger("understudy.ppo.ppo")
    handler = logging.Handler()
    handler.emit = lambda record: with_warm_up.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        for _ in range(3):
            ppo.iterate()
    finally:
        logger.removeHandler(handler)
    assert len(with_warm_up) == 2
    assert "observation policy of environment 0 is not finite at step 3 " in with_warm_up[0]
    assert "observation policy of environment 1 is not finite at step 22 " in with_warm_up[1]
    assert torch.isfinite(ppo.policy.normalizers["policy"].mean).all()


def test_several_cases_are_counted(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(N, ends=never, edit=observation((2, 0), (4, 2), (4, 1)))
    ppo = make_ppo(env)
    ppo.iterate()
    assert "observation policy of environment 0 is not finite at step 3 (3 cases in this rollout)" in ppo.last_report
    assert "25.00% of the rollout's transitions" in ppo.last_report


# ---------------------------------------------------------------------- refused


def test_raise_stops_before_learning(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N, edit=observation((4, 1))), on_nonfinite="raise")
    before = ppo.optimizer.flat.clone()
    with pytest.raises(
        NonFiniteError, match=r"observation policy of environment 1 is not finite at step 5.*on_nonfinite"
    ):
        ppo.iterate()
    assert torch.equal(ppo.optimizer.flat, before)


@pytest.mark.parametrize("policy", ["mask", "raise"])
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_nothing_finite_from_the_first_step_on_is_an_error(
    scripted_env: Any, make_ppo: Any, policy: str, warmup: int, what: str
) -> None:
    def edit(t: int, step: Step) -> Step:
        if what == "reward":
            return step._replace(reward=torch.full((N,), NAN))
        step.obs["policy"].fill_(NAN)
        return step

    ppo = make_ppo(scripted_env(N, ends=never, edit=edit), on_nonfinite=policy, warmup_steps=warmup)
    message = f"{what}.* of environment 0 is not finite at step {int(what == 'observation')}"
    with pytest.raises(NonFiniteError, match=message):
        ppo.iterate()
    assert torch.isfinite(ppo.optimizer.flat).all()


def test_a_policy_that_is_not_finite_is_an_error(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N))
    with torch.no_grad():
        ppo.policy.head.linear.bias.fill_(NAN)
    with pytest.raises(NonFiniteError, match="action of environment 0 is not finite at step 0"):
        ppo.iterate()


def test_one_broken_environment_does_not_stop_the_others(scripted_env: Any, make_ppo: Any) -> None:
    def edit(t: int, step: Step) -> Step:
        step.obs["policy"][2] = NAN
        step.reward[2] = NAN
        return step

    ppo = make_ppo(scripted_env(N, edit=edit), warmup_steps=4)
    before = ppo.optimizer.flat.clone()
    for _ in range(3):
        metrics = ppo.iterate()
    assert_healthy(ppo, metrics)
    assert not torch.equal(before, ppo.optimizer.flat)
    assert ppo.collector.data["valid"].all(0).tolist() == [True, True, False]


# ---------------------------------------------------------------------- no influence


class Watcher(Part, Labels):
    """Sees what parts see, and wants next observations."""

    uses_next_obs = True

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.name = "watcher"
        self.finite: list[bool] = []

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        self.finite.append(bool(torch.isfinite(obs["policy"]).all()))
        return TensorDict({"copy": obs["policy"] * 2.0}, batch_size=[N])


def leave_out(ppo: Any, places: list[tuple[int, int]]) -> Any:
    """Clear these rows (step of the training, environment) of a clean rollout, as the check does with broken ones."""
    check = ppo._check_finite

    def checked(rollout: TensorDict, steps: int) -> bool:
        assert not check(rollout, steps)
        first = ppo.env_steps // N - steps
        for t, n in places:
            if first <= t < first + steps:
                rollout["valid"][t - first, n] = False
        return True

    ppo._check_finite = checked
    return ppo


@pytest.mark.parametrize(
    ("memory", "garbage"), [("none", NAN), ("none", -INF), ("none", 123.0), ("lstm", NAN), ("lstm", 0.0)]
)
def test_what_stood_there_moves_no_weight(scripted_env: Any, make_ppo: Any, memory: str, garbage: float) -> None:
    """Infinity, NaN or a number in rows that are left out: the same bits, in weights and statistics.

    (A memory sees a zero where a NaN stood, so for it the number is zero.)
    """
    runs = []
    for bad in (INF, garbage):
        env = scripted_env(N, ends=never, edit=observation((4, 1), (9, 0), bad=bad))
        options = {"entropy_coef": 0.01, "value_normalization": "standardize", "reward_normalization": True}
        ppo = make_ppo(env, policy={"memory": memory}, minibatches=3, **options)
        if math.isfinite(bad):
            leave_out(ppo, [(4, 1), (5, 1), (9, 0), (10, 0)])
        for _ in range(2):
            metrics = ppo.iterate()
        assert_healthy(ppo, metrics)
        assert len(invalid(ppo)) == 2
        runs.append(ppo)
    assert torch.equal(runs[0].optimizer.flat, runs[1].optimizer.flat)
    for name in ("reward_scaler", "value_normalizer", "policy", "episodes"):
        for key, x in getattr(runs[0], name).state_dict().items():
            assert torch.equal(x, getattr(runs[1], name).state_dict()[key]), (name, key)


def test_parts_see_no_nan_and_keep_none(scripted_env: Any, make_ppo: Any, make_policy: Any) -> None:
    edit = observation((4, 1), (6, 0), bad=NAN)
    env = scripted_env(
        N, edit=lambda t, step: final(6, 0)(t, edit(t, step)), ends=lambda t, n: "truncated" if t == 6 else ""
    )
    context = PartContext.of(env, make_policy(env), name="rnd", num_steps=T)
    rnd = RandomNetworkDistillationConfig(num_outputs=4, predictor_hidden_sizes=(8,)).build(context)
    watcher = Watcher()
    ppo = make_ppo(env, parts={"rnd": rnd, "watcher": watcher})
    for _ in range(2):
        metrics = ppo.iterate()
    assert_healthy(ppo, metrics)
    assert all(watcher.finite)
    assert all(torch.isfinite(x).all() for x in rnd.state_dict().values())
    assert metrics["rnd/loss"] > 0.0
    data = ppo.collector.data
    assert all(torch.isfinite(x).all() for x in data.values(True, True) if x.is_floating_point())


def test_a_memory_is_not_poisoned(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N, ends=never, edit=observation((4, 1))), policy={"memory": "lstm"})
    ppo.iterate()
    assert torch.isfinite(ppo.collector.state).all()
    assert torch.isfinite(ppo.collector.data["value"]).all()


# ---------------------------------------------------------------------- gradients


class Poison(Part, Losses, Rewards):
    """Returns a NaN when told to."""

    def __init__(self, where: str) -> None:
        nn.Module.__init__(self)
        self.name, self.where = "poison", where
        self.register_buffer("factor", torch.tensor(1.0))
        self.factor: Tensor

    @property
    def reward_weight(self) -> Tensor:
        return torch.tensor(0.1)

    def reward(self, rollout: TensorDict) -> Tensor:
        reward = rollout["obs", "policy"][..., 0].clone()
        reward[3, 1] *= self.factor if self.where == "reward" else 1.0
        return reward

    def loss(self, policy: Any, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        factor = self.factor if self.where == "loss" else 1.0
        return (out.value * factor).square().mean(), {}


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize("value_normalization", ["none", "scale"])
def test_a_gradient_that_is_not_finite_skips_the_step_and_training_goes_on(
    scripted_env: Any, make_ppo: Any, where: str, value_normalization: str
) -> None:
    part = Poison(where)
    ppo = make_ppo(
        scripted_env(N), parts={"poison": part}, epochs=2, minibatches=2, value_normalization=value_normalization
    )
    ppo.iterate()
    before = ppo.optimizer.flat.clone()
    part.factor.fill_(NAN)
    metrics = ppo.iterate()
    assert metrics["ppo/skipped_steps"] == (4.0 if where == "loss" else metrics["ppo/skipped_steps"])
    assert metrics["ppo/skipped_steps"] > 0.0
    assert torch.isfinite(ppo.optimizer.flat).all()
    if where == "loss":
        assert torch.equal(ppo.optimizer.flat, before)
    skipped = metrics["ppo/skipped_steps"]
    part.factor.fill_(1.0)
    metrics = ppo.iterate()
    assert metrics["ppo/skipped_steps"] == skipped  # a total
    assert not torch.equal(ppo.optimizer.flat, before)
    assert_healthy(ppo, metrics, skipped)


# ---------------------------------------------------------------------- finite, but absurd


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("bad", [3e38, 1e30, -1e20, 1e10])
@pytest.mark.parametrize("what", ["observation", "reward", "final"])
def test_an_absurd_number_is_named_left_out_and_moves_nothing(
    scripted_env: Any, make_ppo: Any, what: str, bad: float, memory: str
) -> None:
    """In the first rollout, which is judged by itself, and in a later one."""
    runs = []
    for number in (bad, NAN):
        edits = {
            "observation": observation((4, 1), (12, 0), bad=number),
            "reward": lambda t, step, x=number: reward(12, 0, x)(t, reward(4, 1, x)(t, step)),
            "final": lambda t, step, x=number: final(12, 0, bad=x)(t, final(4, 1, bad=x)(t, step)),
        }
        ends = {(4, 1), (12, 0)} if what == "final" else set()
        env = scripted_env(N, ends=lambda t, n, e=ends: "truncated" if (t, n) in e else "", edit=edits[what])
        options = {"value_normalization": "standardize", "reward_normalization": True}
        ppo = make_ppo(env, policy={"memory": memory}, **options)
        for places in ({(4, 1), (5, 1)}, {(4, 0), (5, 0)}):
            metrics = ppo.iterate()
            assert set(invalid(ppo)) == (places if what == "observation" else {min(places)})
            assert_healthy(ppo, metrics)
            if number is bad:
                assert f"is of size {abs(bad):.0e} at step" in ppo.last_report
                assert "more than 1,000,000 times its usual size (1 cases" in ppo.last_report
        runs.append(ppo)
    if memory == "none" or what != "observation":  # a memory saw the first one: nothing was known then
        assert torch.equal(runs[0].optimizer.flat, runs[1].optimizer.flat)


def test_numbers_are_judged_by_what_came_before(scripted_env: Any, make_ppo: Any) -> None:
    """A whole rollout of faults does not become usual; `absurd=None` takes everything finite."""

    def edit(t: int, step: Step) -> Step:
        if 4 * T <= t < 5 * T:
            step.obs["policy"][1:, 0] = 1e30
        return step

    counts = {}
    for absurd in (1e6, None):
        ppo = make_ppo(scripted_env(N, ends=never, edit=edit), absurd=absurd)
        for _ in range(8):
            metrics = ppo.iterate()
            assert_healthy(ppo, metrics)
            counts[absurd] = counts.get(absurd, 0) + len(invalid(ppo))
        large = float(ppo.policy.normalizers["policy"].var[0]) > 1e50
        assert large == (absurd is None)
    assert counts == {1e6: 2 * (T + 1), None: 0}


@pytest.mark.parametrize("scale", [1e-20, 1e9, 1e25])
def test_data_of_any_size_are_data(scripted_env: Any, make_ppo: Any, scale: float) -> None:
    def edit(t: int, step: Step) -> Step:
        step.obs["policy"].mul_(scale)
        return step._replace(reward=step.reward * min(scale, 1e9))

    ppo = make_ppo(scripted_env(N, edit=edit), value_normalization="scale")
    for _ in range(3):
        metrics = ppo.iterate()
        assert ppo.last_report == ""
    assert_healthy(ppo, metrics)


def test_rare_large_rewards_among_zeros_become_usual(scripted_env: Any, make_ppo: Any) -> None:
    def edit(t: int, step: Step) -> Step:
        return step._replace(reward=torch.full((N,), 1e8 if t % 5 == 4 else 0.0))

    ppo = make_ppo(scripted_env(N, edit=edit), value_normalization="scale")
    for _ in range(4):
        ppo.iterate()
    assert ppo.last_report == ""


def test_what_is_usual_is_kept_in_the_state(scripted_env: Any, make_ppo: Any) -> None:
    ppo, again = (make_ppo(scripted_env(N, ends=never, edit=observation((T + 4, 1), bad=1e30))) for _ in range(2))
    ppo.iterate()
    again.load_state_dict(ppo.state_dict())
    for name, x in ppo.finiteness.state_dict().items():
        assert torch.equal(x, again.finiteness.state_dict()[name]), name
    old = ppo.state_dict()
    del old["finiteness"]  # a checkpoint from before this check
    again.load_state_dict(old)


def test_large_finite_numbers_are_no_fault(scripted_env: Any, make_ppo: Any) -> None:
    def edit(t: int, step: Step) -> Step:
        step.obs["policy"].mul_(1e30)
        return step

    ppo = make_ppo(scripted_env(N, edit=edit), warmup_steps=4)
    for _ in range(2):
        metrics = ppo.iterate()
    assert ppo.last_report == ""
    assert_healthy(ppo, metrics)


def test_a_clean_run_pays_one_program_and_a_mask_another(scripted_env: Any, make_ppo: Any, monkeypatch: Any) -> None:
    recorded: list[set[Any]] = []
    trace = capture.trace
    monkeypatch.setattr(
        capture, "trace", lambda function, batch, out: recorded.append({*batch}) or trace(function, batch, out)
    )

    def learning() -> list[bool]:
        return ["mask" in names for names in recorded if "advantage" in names]

    ppo = make_ppo(scripted_env(N, edit=observation((12, 1), bad=NAN)))
    ppo.iterate()
    assert learning() == [False]
    ppo.iterate()
    assert learning() == [False, True]


def assert_healthy(ppo: Any, metrics: dict[str, float], skipped: float = 0.0) -> None:
    """Finite weights, statistics, rollout and metrics; no step was skipped."""
    assert torch.isfinite(ppo.optimizer.flat).all()
    assert metrics["ppo/skipped_steps"] == skipped
    for module in (ppo.policy, ppo.reward_scaler, ppo.value_normalizer, ppo.episodes, ppo.optimizer):
        for name, x in module.state_dict().items():
            assert torch.isfinite(x).all(), name
    for name in ("advantage", "value_target", "value", "next_value", "reward", "log_prob", "params"):
        assert torch.isfinite(ppo.collector.data[name]).all(), name
    assert all(math.isfinite(x) for name, x in metrics.items() if not name.startswith("episode/")), metrics


def test_an_iteration_that_learns_nothing_is_reported(make_ppo: Any, caplog: pytest.LogCaptureFixture) -> None:
    ppo = make_ppo(PointMass(4, max_episode_steps=5))
    ppo.iterate()
    assert not caplog.records
    with torch.no_grad():
        ppo.policy.value_head.bias.fill_(torch.nan)
    ppo.iterate()
    assert "no gradient was finite" in caplog.text
