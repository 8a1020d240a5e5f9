"""What the collector stores, against a scripted environment that remembers everything it gave and got."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.envs.base import Step
from understudy.nn.heads import DistributionConfig
from understudy.ppo.part import Labels, Overrides, Part

T, N = 8, 3


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


class Watcher(Part, Labels):
    """Keeps what a Labels part sees."""

    uses_next_obs = True

    def __init__(self, name: str = "watcher") -> None:
        nn.Module.__init__(self)
        self.name, self.generator = name, torch.Generator()
        self.seen: list[tuple[TensorDict, Tensor]] = []

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        self.seen.append((obs.clone(), is_first.clone()))
        return TensorDict({"index": torch.full((obs.shape[0],), float(len(self.seen)))}, batch_size=[obs.shape[0]])


class Expert(Watcher, Overrides):
    """Acts in environment 1 with the constant 0.25."""

    def override(self, action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
        mask = torch.arange(len(action)) == 1
        action[mask] = 0.25  # in place, as people write it
        return action, mask


def rollout(ppo: Any) -> TensorDict:
    data = ppo.collector.collect()
    ppo.collector.evaluate()
    return data


def eager(ppo: Any, env: Any, start: int, steps: int = T) -> dict[str, Tensor]:
    """Values, next values and parameters of the steps from `start` on, one at a time, by the policy as it is."""
    policy, value, next_value, params = ppo.policy, [], [], []
    state = ppo.memory_before  # the recurrent state before step `start`, or None
    with torch.no_grad():
        for t in range(start, start + steps):
            step, first = env.steps[t], first_flags(env, t)
            out = policy(env.seen[t], state, first)
            value.append(out.value)
            params.append(out.distribution.params)
            after = out.state
            follows = policy(env.seen[t + 1], after, first_flags(env, t + 1)).value
            if step.final_obs is not None:
                final = policy(step.final_obs, after, torch.zeros(env.num_envs, dtype=torch.bool)).value
                follows = torch.where(step.truncated, final, follows)
            else:
                follows = torch.where(step.truncated, out.value, follows)
            next_value.append(follows)
            state = after
    ppo.memory_before = state
    return {"value": torch.stack(value), "next_value": torch.stack(next_value), "params": torch.stack(params)}


def first_flags(env: Any, t: int) -> Tensor:
    """Whether the observation before step t starts an episode: nothing but resets, ends and junk rows can do that."""
    if t == 0:
        return torch.ones(env.num_envs, dtype=torch.bool)
    before = env.steps[t - 1]
    ended = before.terminated | before.truncated
    return ended if before.valid is None else ended | ~before.valid


def lively(ppo: Any) -> Any:
    """Weights large enough that values differ by far more than rounding."""
    with torch.no_grad():
        for p in ppo.policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    ppo.memory_before = ppo.policy.initial_state(ppo.env.num_envs)
    return ppo


@pytest.mark.parametrize("memory", ["none", "lstm", "gru"])
def test_values_of_every_row_over_three_rollouts(scripted_env: Any, make_ppo: Any, memory: str) -> None:
    env = scripted_env(N)
    ppo = lively(make_ppo(env, policy={"memory": memory, "memory_layers": 2}))
    truncated_at = set()
    for i in range(3):
        data, expected = rollout(ppo), eager(ppo, env, i * T)
        for name, x in expected.items():
            torch.testing.assert_close(data[name], x, rtol=1e-5, atol=1e-5)
        truncated_at |= {int(t) for t in data["truncated"].any(-1).nonzero()}
    assert {0, T - 1} <= truncated_at  # the first and the last row of a rollout are among them


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_time_limit_in_the_last_row_takes_the_true_final_observation(
    scripted_env: Any, make_ppo: Any, memory: str
) -> None:
    env = scripted_env(2, ends=lambda t, n: "truncated" if t == T - 1 and n == 0 else "")
    ppo = lively(make_ppo(env, policy={"memory": memory}))
    data, expected = rollout(ppo), eager(ppo, env, 0)
    torch.testing.assert_close(data["next_value"], expected["next_value"])
    with torch.no_grad():
        reset_value = ppo.policy(env.seen[T], ppo.collector.state, ppo.collector.is_first).value[0]
    assert (data["next_value"][-1, 0] - reset_value).abs() > 0.01  # and not that of the next episode


def test_memory_goes_on_through_a_rollout_boundary_and_stops_at_an_episode(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(2, ends=lambda t, n: "terminated" if t == T - 1 and n == 0 else "")
    ppo = lively(make_ppo(env, policy={"memory": "lstm"}))
    first = rollout(ppo)
    assert torch.equal(first["state"], torch.zeros(T, 2, ppo.policy.state_size))
    after = ppo.collector.state.clone()
    second = rollout(ppo)
    assert torch.equal(second["state"][0], after)
    assert torch.equal(second["state"][0], second["state"][-1])
    assert second["is_first"][0].tolist() == [True, False]
    with torch.no_grad():
        fresh = ppo.policy(env.seen[T], torch.zeros_like(after), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(second["value"][0, 0], fresh.value[0])  # forgotten
    assert (second["value"][0, 1] - fresh.value[1]).abs() > 1e-3  # remembered


# ---------------------------------------------------------------------- no final observations


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_without_final_observations_it_warns_once_and_takes_the_value_of_the_last_observation(
    scripted_env: Any, make_ppo: Any, memory: str
) -> None:
    env = scripted_env(N, gives_final=False)
    ppo = lively(make_ppo(env, policy={"memory": memory}))
    with pytest.warns(UserWarning, match=r"does not give final observations.*final_obs"):
        first = rollout(ppo)["next_value"].clone()
    torch.testing.assert_close(first, eager(ppo, env, 0)["next_value"], rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = rollout(ppo)
    assert second["truncated"].any()
    torch.testing.assert_close(second["next_value"], eager(ppo, env, T)["next_value"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_final_observations_only_where_something_ended_are_enough(
    scripted_env: Any, make_ppo: Any, memory: str
) -> None:
    def edit(t: int, step: Step) -> Step:
        return step if (step.terminated | step.truncated).any() else step._replace(final_obs=None)

    env = scripted_env(N, ends=lambda t, n: "truncated" if t == 3 and n == 1 else "", edit=edit)
    ppo = lively(make_ppo(env, policy={"memory": memory}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = rollout(ppo)
    torch.testing.assert_close(data["next_value"], eager(ppo, env, 0)["next_value"])


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_one_time_limit_with_and_one_without_a_final_observation(scripted_env: Any, make_ppo: Any, memory: str) -> None:
    def edit(t: int, step: Step) -> Step:
        return step._replace(final_obs=None) if t == 5 else step

    env = scripted_env(N, ends=lambda t, n: "truncated" if (t, n) in ((3, 1), (5, 2)) else "", edit=edit)
    ppo = lively(make_ppo(env, policy={"memory": memory}))
    with pytest.warns(UserWarning, match="does not give final observations"):
        data = rollout(ppo)
    torch.testing.assert_close(data["next_value"], eager(ppo, env, 0)["next_value"])


# ---------------------------------------------------------------------- flags


def with_junk(t: int, step: Step) -> Step:
    """As NEXT_STEP autoreset does: the step after an end is no transition."""
    junk = torch.tensor([(t, n) in {(3, 0), (7, 1)} for n in range(N)])
    flags = {name: getattr(step, name) & ~junk for name in ("terminated", "truncated")}
    return step._replace(valid=~junk, reward=torch.where(junk, 0.0, step.reward), **flags)


def ends_before_junk(t: int, n: int) -> str:
    return {(2, 0): "terminated", (6, 1): "truncated"}.get((t, n), "")


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("warmup", [0, 4])
def test_is_first_follows_ends_and_junk_rows_over_rollouts(
    scripted_env: Any, make_ppo: Any, labelled: bool, warmup: int
) -> None:
    """A rollout boundary is none; the warm-up is followed by the rows that follow it."""
    env = scripted_env(N, ends=ends_before_junk, edit=with_junk)
    watcher = Watcher()
    ppo = make_ppo(env, parts={"watcher": watcher} if labelled else {}, warmup_steps=warmup)
    rows = []
    for _ in range(2):
        ppo.iterate()
        rows.append(ppo.collector.data["is_first"].clone())
    expected = torch.stack([first_flags(env, t) for t in range(warmup, warmup + 2 * T)])
    assert torch.equal(torch.cat(rows), expected)
    assert expected[:T].any()
    if labelled:
        seen = torch.stack([is_first for _, is_first in watcher.seen])
        assert torch.equal(seen, torch.stack([first_flags(env, t) for t in range(warmup + 2 * T)]))


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_rollout_after_a_short_one(scripted_env: Any, make_ppo: Any, memory: str) -> None:
    """As after the warm-up: an episode that ended in its last step is forgotten, another is not."""
    env = scripted_env(2, ends=lambda t, n: "terminated" if t == 3 and n == 0 else "")
    ppo = lively(make_ppo(env, policy={"memory": memory}))
    ppo.collector.collect(4)
    eager(ppo, env, 0, 4)
    data, expected = rollout(ppo), eager(ppo, env, 4)
    assert data["is_first"][0].tolist() == [True, False]
    torch.testing.assert_close(data["value"], expected["value"])
    torch.testing.assert_close(data["next_value"], expected["next_value"])


def test_junk_rows_have_no_advantage_and_cut_the_episode(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(N, ends=ends_before_junk, edit=with_junk)
    ppo = make_ppo(env)
    ppo.iterate()
    data = ppo.collector.data
    assert (~data["valid"]).nonzero().tolist() == [[3, 0], [7, 1]]
    assert data["advantage"][~data["valid"]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(data["value_target"][~data["valid"]], data["value"][~data["valid"]])
    # (2, 0) terminated: reward only. (6, 1) hit a time limit: its final observation. Neither sees the junk row
    torch.testing.assert_close(data["advantage"][2, 0], data["reward"][2, 0] - data["value"][2, 0])
    bootstrapped = data["reward"][6, 1] + 0.99 * data["next_value"][6, 1] - data["value"][6, 1]
    torch.testing.assert_close(data["advantage"][6, 1], bootstrapped)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_what_a_junk_row_holds_changes_nothing(scripted_env: Any, make_ppo: Any, memory: str) -> None:
    """Its action was ignored by the environment: another one there must leave the same weights behind."""
    results = []
    for scale in (1.0, -3.0):
        env = scripted_env(N, ends=ends_before_junk, edit=with_junk)
        ppo = make_ppo(env, policy={"memory": memory}, entropy_coef=0.01, value_clip=0.1)
        collect = ppo.collector.collect

        def altered(num_steps: int | None = None, *, collect: Any = collect, scale: float = scale) -> TensorDict:
            data = collect(num_steps)
            data["action"][~data["valid"]] *= scale
            return data

        ppo.collector.collect = altered
        metrics = [ppo.iterate() for _ in range(2)]
        results.append((ppo.optimizer.flat.clone(), metrics[-1]["ppo/kl"], metrics[-1]["ppo/surrogate_loss"]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


# ---------------------------------------------------------------------- storage


def test_rows_are_what_the_environment_gave_and_got(scripted_env: Any, make_ppo: Any) -> None:
    space = spaces.Dict({"policy": spaces.Dict({"a": box(3), "b": spaces.Discrete(4)}), "critic": box(5)})
    env = scripted_env(N, observation_space=space, action_space=spaces.Box(-2.0, 3.0, (2,)))
    ppo = make_ppo(env)
    ppo.iterate()
    data, policy = ppo.collector.data, ppo.policy
    for t in range(T):
        for key in (("policy", "a"), ("policy", "b"), ("critic",)):
            assert torch.equal(data["obs", *key][t], env.seen[t][key])
        assert torch.equal(data["executed_action"][t], env.actions[t])
        assert torch.equal(policy.action_map(data["action"][t]), env.actions[t])
        assert torch.equal(data["task_reward"][t], env.steps[t].reward)
        assert torch.equal(data["terminated"][t], env.steps[t].terminated)
        assert torch.equal(data["truncated"][t], env.steps[t].truncated)
    assert env.actions[0].min() >= -2.0
    assert (data["action"] != data["executed_action"]).any()
    again = policy.head.from_params(data["params"]).log_prob(data["action"])
    torch.testing.assert_close(data["log_prob"], again)


def test_next_observations_are_the_true_ones(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(N)
    ppo = make_ppo(env, parts={"watcher": Watcher()})
    ppo.iterate()
    data = ppo.collector.data
    for t in range(T):
        step = env.steps[t]
        ended = (step.terminated | step.truncated).unsqueeze(-1)
        expected = torch.where(ended, step.final_obs["policy"], step.obs["policy"])
        assert torch.equal(data["next_obs", "policy"][t], expected)
    assert (data["terminated"] | data["truncated"]).any()
    assert data["watcher", "index"][:, 0].tolist() == [float(t + 1) for t in range(T)]
    assert "next_obs" not in make_ppo(scripted_env(N)).collector.data.keys()  # noqa: SIM118


def test_an_override_is_what_is_executed_stored_and_counted(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(N)
    ppo = make_ppo(env, parts={"expert": Expert("expert")}, epochs=1)
    metrics = ppo.iterate()
    data = ppo.collector.data
    assert torch.equal(data["action"][:, 1], torch.full((T, 2), 0.25))
    assert torch.equal(torch.stack(env.actions)[:, 1], torch.full((T, 2), 0.25))
    assert data["on_policy"].all(0).tolist() == [True, False, True]
    expected = ppo.policy.head.from_params(data["params"]).log_prob(data["action"])
    torch.testing.assert_close(data["log_prob"], expected)
    assert metrics["ppo/first_ratio_error"] < 1e-5


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_nothing_is_allocated_twice(scripted_env: Any, make_ppo: Any, memory: str) -> None:
    ppo = make_ppo(scripted_env(N), policy={"memory": memory}, parts={"watcher": Watcher()}, warmup_steps=4)
    ppo.iterate()
    data = ppo.collector.data

    def places() -> list[tuple[Any, int]]:
        return [(key, x.data_ptr()) for key, x in ppo.collector.data.items(True, True)]

    before = places()
    for _ in range(3):
        ppo.iterate()
    assert ppo.collector.data is data
    assert places() == before


def test_the_environment_may_write_into_its_action(scripted_env: Any, make_ppo: Any) -> None:
    env = scripted_env(N)
    step = env.step

    def clips(action: Tensor) -> Step:
        return step(action.clamp_(-0.1, 0.1))

    env.step = clips
    ppo = make_ppo(env)
    ppo.iterate()
    assert ppo.collector.data["action"].abs().max() > 0.1  # what the policy chose, log-probs are of this


def test_environment_metrics_are_means(scripted_env: Any, make_ppo: Any) -> None:
    def edit(t: int, step: Step) -> Step:
        arrived = torch.full((N,), torch.nan)
        arrived[0] = t  # one row has something to say, in every step
        speed = torch.full((N,), float(t))
        return step._replace(metrics={"speed": speed, "count": torch.tensor(2), "arrived": arrived})

    metrics = make_ppo(scripted_env(N, edit=edit)).iterate()
    assert metrics["env/speed"] == 3.5
    assert metrics["env/count"] == 2.0
    assert metrics["env/arrived"] == 3.5


# ---------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(("asked", "taken"), [(4, 4), (100, T), (0, 0)])
def test_the_warm_up_gives_the_first_statistics(scripted_env: Any, make_ppo: Any, asked: int, taken: int) -> None:
    env = scripted_env(N)
    ppo = make_ppo(env, warmup_steps=asked)
    normalizer = ppo.policy.normalizers["policy"]
    at_collect = []
    collect = ppo.collector.collect

    def watched(num_steps: int | None = None) -> TensorDict:
        at_collect.append(normalizer.mean.clone())
        return collect(num_steps)

    ppo.collector.collect = watched
    ppo.iterate()
    assert ppo.env_steps == (taken + T) * N
    if taken:
        seen = torch.stack([obs["policy"] for obs in env.seen[:taken]]).flatten(0, 1)
        torch.testing.assert_close(at_collect[1], seen.double().mean(0))
    everything = torch.stack([obs["policy"] for obs in env.seen[: taken + T]]).flatten(0, 1).double()
    torch.testing.assert_close(normalizer.mean, everything.mean(0))
    torch.testing.assert_close(normalizer.var, everything.var(0, unbiased=False))
    ppo.iterate()
    assert ppo.env_steps == (taken + 2 * T) * N  # once only


def test_no_warm_up_without_a_normaliser(scripted_env: Any, make_ppo: Any) -> None:
    ppo = make_ppo(scripted_env(N), policy={"normalize_observations": False}, warmup_steps=4)
    ppo.iterate()
    assert ppo.env_steps == T * N


# ---------------------------------------------------------------------- every space, every size

OBSERVATIONS: dict[str, spaces.Dict] = {
    "vector": spaces.Dict({"policy": box(3)}),
    "scalar": spaces.Dict({"policy": spaces.Dict({"a": box(), "b": box(2)})}),
    "float64": spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (3,), np.float64)}),
    "integers": spaces.Dict({"policy": spaces.Box(0, 9, (3,), np.int32)}),
    "image": spaces.Dict({"policy": spaces.Box(0, 255, (36, 36, 3), np.uint8)}),
    "discrete": spaces.Dict({"policy": spaces.Discrete(5, start=2)}),
    "multi-discrete": spaces.Dict({"policy": spaces.MultiDiscrete([3, 4])}),
    "multi-binary": spaces.Dict({"policy": spaces.MultiBinary(4)}),
    "asymmetric": spaces.Dict(
        {
            "policy": spaces.Dict({"a": box(3), "image": spaces.Box(0, 255, (36, 36, 1), np.uint8)}),
            "critic": box(5),
            "teacher": box(2),
        }
    ),
}


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_observation_space_trains(scripted_env: Any, make_ppo: Any, name: str, memory: str) -> None:
    ppo = make_ppo(scripted_env(2, observation_space=OBSERVATIONS[name]), policy={"memory": memory}, num_steps=4)
    check_two_iterations(ppo)


ACTIONS: dict[str, tuple[spaces.Space[Any], DistributionConfig]] = {
    "discrete": (spaces.Discrete(4, start=-1), DistributionConfig()),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), DistributionConfig()),
    "multi-binary": (spaces.MultiBinary(3), DistributionConfig()),
    "gaussian": (spaces.Box(-2.0, 3.0, (2,)), DistributionConfig()),
    "unbounded": (box(2), DistributionConfig(state_dependent_std=True)),
    "matrix": (spaces.Box(-1.0, 1.0, (2, 3)), DistributionConfig()),
    "tanh": (spaces.Box(-2.0, 3.0, (2,)), DistributionConfig(kind="tanh_gaussian")),
    "beta": (spaces.Box(-2.0, 3.0, (2,)), DistributionConfig(kind="beta")),
}


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_space_trains(scripted_env: Any, make_ppo: Any, name: str, memory: str) -> None:
    space, distribution = ACTIONS[name]
    env = scripted_env(2, action_space=space)
    options = {"entropy_coef": 0.01, "desired_kl": 0.01, "target_kl": 5.0, "samples_mc_entropy": 2}
    ppo = make_ppo(env, policy={"memory": memory, "distribution": distribution}, num_steps=4, **options)
    check_two_iterations(ppo)
    for action in env.actions:
        assert all(space.contains(row.numpy().astype(space.dtype)) for row in action)


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (1, 4), (8, 1), (2, 2)])
def test_small_sizes_train(scripted_env: Any, make_ppo: Any, steps: int, envs: int, memory: str) -> None:
    ppo = make_ppo(scripted_env(envs), policy={"memory": memory}, num_steps=steps, value_clip=0.2, warmup_steps=2)
    check_two_iterations(ppo)


def check_two_iterations(ppo: Any) -> None:
    before = ppo.optimizer.flat.clone()
    for _ in range(2):
        metrics = ppo.iterate()
        assert metrics["ppo/first_ratio_error"] < 1e-5
    assert metrics["ppo/skipped_steps"] == 0.0
    assert torch.isfinite(ppo.optimizer.flat).all()
    assert not torch.equal(before, ppo.optimizer.flat)
    assert ppo.last_report == ""


def test_the_same_seed_gives_the_same_training(scripted_env: Any, make_ppo: Callable[..., Any]) -> None:
    flat = []
    for seed in (0, 0, 1):
        ppo = make_ppo(scripted_env(N), seed=seed)
        ppo.iterate()
        flat.append(ppo.optimizer.flat)
        assert ppo.env.seeds[0] is not None
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


@pytest.mark.parametrize("field", ["reward", "terminated", "obs"])
def test_a_shape_that_changes_within_a_rollout_does_not_broadcast(scripted_env: Any, make_ppo: Any, field: str) -> None:
    def shrink(t: int, step: Step) -> Step:
        if t != 3:
            return step
        if field == "obs":
            return step._replace(obs=TensorDict({"policy": step.obs["policy"][:, :1]}, batch_size=[3]))
        return step._replace(**{field: step._asdict()[field][:1]})

    with pytest.raises(
        ValueError, match="policy' has shape" if field == "obs" else f"{field} must be a tensor of shape"
    ):
        make_ppo(scripted_env(3, edit=shrink)).iterate()
