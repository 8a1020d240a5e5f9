"""What environments may give and what is refused, at the first reset, the first step, a reset inside one, and later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDict

import understudy as us
from understudy.core.spaces import find_components, key_of, limits_of, module_name
from understudy.envs import GymnasiumVectorAdapter, InProcessVectorEnv, Step, VecEnv, with_groups
from understudy.envs.gate import Gate
from understudy.types import EnvError, WorkerError

BOX = spaces.Box(-10, 10, (2,), np.float32)
PIXELS = spaces.Box(0, 255, (2,), np.uint8)
GO = torch.zeros(2, dtype=torch.int64)


class Counting(gym.Env[Any, Any]):
    """Shows the number of its steps; `bend` may change what a method returns at a step (0: reset, -1: later resets)."""

    def __init__(self, space: spaces.Space[Any] = BOX, bend: Callable[[int, Any], Any] | None = None) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.bend, self.t, self.resets = bend or (lambda t, result: result), 0, 0

    def _obs(self) -> Any:
        return np.full(2, self.t, np.float32 if self.observation_space is BOX else np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.resets = 0, self.resets + 1
        return self.bend(0 if self.resets == 1 else -1, (self._obs(), {}))

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.bend(self.t, (self._obs(), 0.5, self.t == 3, False, {}))


def at(step: int, place: int, value: Any) -> Callable[[int, Any], Any]:
    """Put `value` at a place of what is returned at one step."""
    return lambda t, result: (*result[:place], value, *result[place + 1 :]) if t == step else result


def run(env: VecEnv, steps: int = 5) -> Step:
    gate = Gate(env)
    gate.reset(0)
    for _ in range(steps):
        step = gate.step(GO[: env.num_envs])
    return step


WRONG: list[tuple[spaces.Space[Any], Any, str]] = [
    (BOX, np.zeros(1, np.float32), r"has shape \(1,\), but its space says \(2,\)"),
    (BOX, np.float32(0), r"has shape \(\)"),
    (BOX, np.zeros((1, 2), np.float32), r"has shape \(1, 2\)"),
    (BOX, None, "is None .*not numbers"),
    (BOX, "ab", "is 'ab' .str., not numbers"),
    (BOX, [1.0, None], "not numbers"),
    (BOX, [[1.0], [1.0, 2.0]], "no array can hold"),
    (BOX, np.array([1, 2], object), "not numbers"),
    (BOX, np.array([1j, 2]), "not numbers"),
    (PIXELS, np.array([0.7, 0.2]), "is float64, but its space has whole numbers"),
    (PIXELS, np.array([256, 0]), "holds 256, but its space goes from 0 to 255"),
    (PIXELS, [-1, 0], "holds -1"),
    (spaces.Discrete(3, start=2), 5, "holds 5, but its space goes from 2 to 4"),
    (spaces.Discrete(3), 1.0, "is float64"),
    (spaces.MultiBinary(2), np.array([0, 2]), "holds 2"),
    (spaces.Dict({"a": BOX}), {"b": np.zeros(2)}, "'a' is missing: the environment's observation has 'b'"),
    (spaces.Dict({"a": BOX}), np.zeros(2), "'a' is missing: the environment's observation is a ndarray"),
]


@pytest.mark.parametrize("step", [0, 1, -1, 2])
@pytest.mark.parametrize(("space", "value", "message"), WRONG)
def test_observations_that_do_not_fit_are_refused_wherever_they_come_from(
    space: spaces.Space[Any], value: Any, message: str, step: int
) -> None:
    fine = {"a": np.zeros(2, np.float32)} if isinstance(space, spaces.Dict) else space.sample()

    def bend(t: int, result: Any) -> Any:
        return (value if t == step else fine, *result[1:])

    where = "reset" if step < 1 else "step"
    with pytest.raises(EnvError, match=rf"environment 0 of 1 \(Counting\) in {where}: .*{message}"):
        run(InProcessVectorEnv([lambda: Counting(space, bend)]))


@pytest.mark.parametrize(
    ("space", "value", "seen"),
    [
        (BOX, np.array([1, 2]), [1.0, 2.0]),
        (BOX, [1.5, 2], [1.5, 2.0]),
        (BOX, np.array([True, False]), [1.0, 0.0]),
        (BOX, np.array([1.5, 2.0]), [1.5, 2.0]),
        (BOX, torch.tensor([1.5, 2.0]), [1.5, 2.0]),
        (PIXELS, np.array([200, 3]), [200, 3]),
        (PIXELS, [200, 3], [200, 3]),
        (spaces.Discrete(3, start=2), np.array([4]).reshape(()), 4),
        (spaces.MultiBinary(2), np.array([True, False]), [1, 0]),
        (spaces.Box(-1, 1, (), np.float32), 0.5, [0.5]),
    ],
)
def test_what_can_be_converted_without_a_change_is(space: spaces.Space[Any], value: Any, seen: Any) -> None:
    env = InProcessVectorEnv([lambda: Counting(space, lambda t, result: (value, *result[1:]))])
    obs = run(env).obs["policy"][0]
    assert obs.tolist() == seen
    assert obs.dtype == torch.from_numpy(np.empty(0, space.dtype)).dtype


def test_narrowing_integers_are_looked_at_in_every_step() -> None:
    env = InProcessVectorEnv([lambda: Counting(PIXELS, at(2, 0, np.array([0, 300])))])
    with pytest.raises(EnvError, match="in step: the observation holds 300"):
        run(env)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, None, "the reward is None .NoneType.: return one number"),
        (1, "1.5", "the reward is '1.5' .str."),
        (1, np.zeros(3), r"the reward is array\(\[0., 0., 0.\]\)"),
        (1, 1j, "the reward is 1j"),
        (1, {}, "the reward is {}"),
        (2, None, "terminated is None .NoneType.: return True or False"),
        (2, "False", "terminated is 'False'"),
        (3, 0.5, "truncated is 0.5"),
        (3, np.zeros(2, bool), "truncated is array"),
        (3, float("nan"), "truncated is nan"),
    ],
)
def test_rewards_and_flags_that_are_none(place: int, value: Any, message: str, step: int) -> None:
    with pytest.raises(EnvError, match=f"environment 0 of 1 .* in step: {message}"):
        run(InProcessVectorEnv([lambda: Counting(BOX, at(step, place, value))]))


@pytest.mark.parametrize(
    ("place", "value", "reward", "ended"),
    [
        (1, np.array([1.5]), 1.5, False),
        (1, [1.5], 1.5, False),
        (1, np.float64(1.5), 1.5, False),
        (1, torch.tensor([1.5]), 1.5, False),
        (1, True, 1.0, False),
        (2, 1, 0.5, True),
        (2, np.array([True]), 0.5, True),
        (3, np.bool_(True), 0.5, True),
        (3, np.int64(0), 0.5, False),
    ],
)
def test_rewards_and_flags_of_one_entry_pass(place: int, value: Any, reward: float, ended: bool) -> None:
    for step in (1, 2):
        found = run(InProcessVectorEnv([partial(Counting, BOX, at(step, place, value))]), steps=step)
        assert (found.reward.tolist(), found.ended.tolist()) == ([reward], [ended])


def test_methods_that_return_something_else_are_named() -> None:
    def old_reset(t: int, result: Any) -> Any:
        return result if len(result) == 5 else result[0]

    def old_step(t: int, result: Any) -> Any:
        return result if len(result) == 2 else (*result[:3], {})

    for bend, message in (
        (old_reset, r"in reset: reset returned a ndarray instead of \(observation, info\).*shimmy"),
        (old_step, r"in step: step returned 4 values instead of \(observation, reward.*shimmy"),
        (lambda t, result: result if t <= 0 else None, "in step: step returned a NoneType"),
    ):
        with pytest.raises(EnvError, match=message):
            run(InProcessVectorEnv([partial(Counting, BOX, bend)]))


def test_an_error_inside_the_environment_is_told_from_its_values() -> None:
    def fail(step: int) -> Callable[[int, Any], Any]:
        def bend(t: int, result: Any) -> Any:
            return {}["contact"] if t == step else result

        return bend

    for step, where in ((0, "reset"), (2, "step"), (-1, "reset")):
        with pytest.raises(WorkerError, match=rf"environment 0 of 1 .* raised KeyError in {where}: 'contact'"):
            run(InProcessVectorEnv([partial(Counting, BOX, fail(step))]))


def test_an_environment_that_cannot_be_built_or_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Counting):
        def __init__(self) -> None:
            raise TypeError("unsupported operand")

        def close(self) -> None:
            raise OSError("no such window")

    class Bare(gym.Env[Any, Any]):
        pass

    with pytest.raises(WorkerError, match="environment 0 raised TypeError in its constructor: unsupported operand"):
        InProcessVectorEnv([Broken])
    with pytest.raises(EnvError, match=r"Bare.observation_space must be a gymnasium.Space"):
        InProcessVectorEnv([Bare])

    class Stuck(Counting):
        def close(self) -> None:
            raise OSError("no such window")

    InProcessVectorEnv([Stuck, Stuck]).close()
    assert caplog.text.count("Stuck raised OSError in close: no such window") == 2


def test_the_last_info_of_an_episode_is_logged() -> None:
    info = {"is_success": np.bool_(True), "energy": np.array([2.5]), "name": "x", "path": [1, 2], "nothing": None}
    make = [lambda: Counting(BOX, at(3, 4, info)), lambda: Counting(BOX, at(3, 4, {"energy": 1}))]
    expected = {"is_success": 1.0, "energy": 1.75}
    for env in (
        InProcessVectorEnv(make),
        GymnasiumVectorAdapter(SyncVectorEnv(make)),
        GymnasiumVectorAdapter(SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)),
    ):
        step = run(env, 3)
        found = {name: float(x.nanmean()) for name, x in step.metrics.items()}
        assert {name: found[name] for name in expected} == expected
        assert run(env, 2).metrics == {}
    ppo = us.PPO(
        InProcessVectorEnv(make),
        us.ActorCritic(spaces.Dict({"policy": BOX}), spaces.Discrete(2)),
        us.PPOConfig(num_steps=4, minibatches=2, warmup_steps=0),
    )
    metrics = ppo.iterate()
    assert (metrics["episode/success"], metrics["env/energy"]) == (1.0, 1.75)


class Natural(SyncVectorEnv):
    """A vector environment whose `bend` changes what its step returns."""

    bend: Any = staticmethod(lambda result: result)

    def step(self, actions: Any) -> Any:
        return self.bend(super().step(actions))


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (lambda r: (r[0][:, :1], *r[1:]), r"the observation has shape \(2, 1\)"),
        (lambda r: (r[0][0], *r[1:]), r"the observation has shape \(2,\)"),
        (lambda r: (r[0], 1.0, *r[2:]), r"the reward has shape \(\): return an array of 2 numbers"),
        (lambda r: (r[0], None, *r[2:]), "the reward has type object"),
        (lambda r: (*r[:2], r[2] + 2, *r[3:]), "terminated holds 2: return an array of True and False"),
        (lambda r: r[:4], "step returned 4 values"),
    ],
)
def test_vector_environments_are_checked_at_every_step(bend: Any, message: str) -> None:
    for at_step in (1, 2):
        vector = Natural([Counting, Counting])
        env = GymnasiumVectorAdapter(vector)
        gate = Gate(env)
        gate.reset(0)
        for _ in range(at_step - 1):
            gate.step(GO)
        vector.bend = bend
        with pytest.raises(EnvError, match=f"vector environment Natural in step: {message}"):
            gate.step(GO)


# ------------------------------------------------------------------------------------------------ VecEnv


class Own:
    """The least `VecEnv`; `changes[t]` changes its step number t."""

    def __init__(self, space: spaces.Space[Any] = BOX, **fields: Any) -> None:
        self.num_envs, self.device = 2, torch.device("cpu")
        self.observation_space, self.action_space = spaces.Dict({"policy": space}), spaces.Discrete(2)
        self.t, self.first, self.fields = 0, fields.pop("first", 1), fields

    def obs(self) -> TensorDict:
        dtype = torch.float32 if self.observation_space["policy"] is BOX else torch.uint8
        return TensorDict({"policy": torch.full((2, 2), self.t, dtype=dtype)}, [2])

    def reset(self, seed: int | None = None) -> TensorDict:
        self.t = 0
        return self.obs()

    def step(self, action: torch.Tensor) -> Step:
        self.t += 1
        no = torch.zeros(2, dtype=torch.bool)
        step = Step(self.obs(), torch.ones(2), no, no, None, {})
        return step._replace(**self.fields) if self.t >= self.first else step

    def close(self) -> None:
        pass


def named(**leaves: torch.Tensor) -> TensorDict:
    return TensorDict(dict(leaves), [2])


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"obs": named(other=torch.zeros(2, 2))}, "observation 'policy' is missing"),
        ({"obs": named(policy=torch.zeros(2, 3))}, r"'policy' has shape \(2, 3\)"),
        ({"obs": {"policy": torch.zeros(2, 2)}}, "gave a dict as observation"),
        ({"obs": None}, "gave a NoneType as observation"),
        ({"reward": torch.zeros(2, 1)}, r"reward must be a tensor of shape \[2\]"),
        ({"reward": [0.0, 0.0]}, r"reward must be a tensor of shape \[2\]"),
        ({"terminated": torch.zeros(2)}, "must be bool tensors"),
        ({"valid": torch.ones(2)}, "valid must be a bool tensor"),
        ({"final_obs": named(policy=torch.zeros(2, 3))}, r"'policy' has shape \(2, 3\)"),
        ({"metrics": {"why": "it fell"}}, r"metrics\['why'\] is 'it fell' .str.: metrics are numbers"),
        ({"metrics": {"why": None}}, r"metrics\['why'\] is None"),
        ({"metrics": [1.0]}, "metrics are a list: return a dict"),
    ],
)
def test_an_own_environment_is_checked_at_every_step(fields: Any, message: str, first: int) -> None:
    with pytest.raises(EnvError, match=f"Own.step.*{message}"):
        run(Own(first=first, **fields))


def test_an_own_environment_may_change_its_dtype_where_no_number_changes() -> None:
    wide = run(Own(obs=named(policy=torch.tensor([[0.5, 1.0]] * 2).double()), first=2))
    assert wide.obs["policy"].dtype == torch.float32
    assert wide.obs["policy"].tolist() == [[0.5, 1.0]] * 2
    numbers = run(Own(metrics={"a": 1, "b": [1.0, 2.0], "c": np.float32(3), "d": np.array(4)})).metrics
    assert {name: x.tolist() for name, x in numbers.items()} == {"a": 1.0, "b": [1.0, 2.0], "c": 3.0, "d": 4.0}
    for value, message in ((torch.zeros(2, 2), "is float32, but its space has whole numbers"), (300, "holds 300")):
        obs = named(policy=value if isinstance(value, torch.Tensor) else torch.full((2, 2), value))
        for first in (1, 3):
            with pytest.raises(EnvError, match=message):
                run(Own(PIXELS, obs=obs, first=first))
    assert run(Own(PIXELS, obs=named(policy=torch.full((2, 2), 200)))).obs["policy"].dtype == torch.uint8


def test_an_own_environment_that_raises_is_named_behind_groups_too() -> None:
    class Raises(Own):
        def step(self, action: torch.Tensor) -> Step:
            raise ValueError("math domain error")

    for env in (Raises(), with_groups(Raises(), segments={"policy": {"x": 1, "y": 1}})):
        with pytest.raises(WorkerError, match="Raises raised ValueError in step: math domain error"):
            run(env)
    grown = with_groups(Own(obs=named(policy=torch.zeros(2, 3))), segments={"policy": {"x": 1, "y": 1}})
    with pytest.raises(EnvError, match=r"Own.step: observation 'policy' has shape \(2, 3\)"):
        run(grown)


# ---------------------------------------------------------------------------------------------- bounds, names


def test_huge_bounds_are_none() -> None:
    largest = np.finfo(np.float32).max
    for bound in (largest, 1e30, float(np.finfo(np.float16).max), 2.0**31 - 1):
        low, high = limits_of(spaces.Box(-bound, bound, (2,), np.float32))
        assert np.isneginf(low).all()
        assert np.isposinf(high).all()
    assert limits_of(spaces.Box(0, largest, (1,), np.float32))[0].tolist() == [0.0]
    assert limits_of(spaces.Box(-1e9, 5, (1,), np.float32))[0].tolist() == [-1e9]
    assert limits_of(spaces.Discrete(3))[1] == 2


NAMES = ["train", "type", "items", "to", "keys", "a.b", "x/y", "", "%", "a%2Eb", "policy", "forward", "ü"]


def test_any_string_is_a_name() -> None:
    keys = [(name,) for name in NAMES] + [("policy", name) for name in NAMES]
    modules = torch.nn.ModuleDict({module_name(key): torch.nn.Identity() for key in keys})
    assert len(modules) == len(keys)
    assert [key_of(name) for name in modules] == keys
    assert (module_name(("policy",)), module_name(("policy", "height"))) == ("policy", "policy/height")
    space = spaces.Dict({"a/b": BOX, "a": spaces.Dict({"b": BOX, "c/d": BOX, "": BOX})})
    assert set(find_components(space, "a/b")) == {("a/b",)}
    assert set(find_components(space, "a/c/d")) == {("a", "c/d")}
    assert set(find_components(space, "a/")) == {("a", "")}
    with pytest.raises(ValueError, match="'e' does not exist"):
        find_components(space, "a/e")
