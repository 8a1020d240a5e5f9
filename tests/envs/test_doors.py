"""Environments of the user's own: as an object, as a registered maker, as "module:name"; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDict
from tests.fresh import Fresh

import understudy as us
from understudy.core import registry as core_registry
from understudy.envs import EnvConfig, StatefulEnv, as_vec_env, list_envs, make_env, make_render_env, register_env
from understudy.envs.gate import Gate
from understudy.envs.makers import ENVS
from understudy.tasks.point_mass import PointMass
from understudy.types import EnvError

BOX = spaces.Box(-1, 1, (3,), np.float32)


@pytest.fixture(autouse=True)
def unchanged_registry() -> Iterator[None]:
    before = set(ENVS)
    yield
    for name in set(ENVS) - before:
        del ENVS[name]


class Simulator:
    """rsl_rl's interface, as little of it as there must be."""

    num_envs, num_actions, device = 4, 2, "cpu"

    def __init__(self, num_envs: int = 4) -> None:
        self.num_envs = num_envs
        self.position = torch.zeros(num_envs, 2)

    def get_observations(self) -> TensorDict:
        return TensorDict({"actor": self.position.clone()}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> Any:
        self.position += actions
        return self.get_observations(), self.position.sum(-1), torch.zeros(self.num_envs), {}


class Own:
    """The least `VecEnv`."""

    def __init__(self, **changes: Any) -> None:
        self.num_envs, self.device = 3, torch.device("cpu")
        self.observation_space: Any = spaces.Dict({"policy": BOX})
        self.action_space: Any = spaces.Discrete(2)
        for name, value in changes.items():
            setattr(self, name, value)

    def reset(self, seed: int | None = None) -> TensorDict:
        return TensorDict({"policy": torch.zeros(3, 3)}, batch_size=[3])

    def step(self, action: torch.Tensor) -> us.envs.Step:
        no = torch.zeros(3, dtype=torch.bool)
        return us.envs.Step(self.reset(), torch.zeros(3), no, no, None, {})

    def close(self) -> None:
        pass


def ppo_on(env: us.envs.VecEnv) -> us.PPO:
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    return us.PPO(env, policy, us.PPOConfig(num_steps=32, minibatches=2, epochs=1), seed=1)


# ------------------------------------------------------------------------------------------- objects


@pytest.mark.parametrize(
    "build",
    [
        lambda: PointMass(4),
        lambda: gym.make("Pendulum-v1"),
        lambda: SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3),
        lambda: gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point"),
        lambda: as_vec_env(Simulator(), groups={"policy": "actor"}),
    ],
)
def test_a_policy_trains_in_any_environment_that_somebody_built(build: Any) -> None:
    env = as_vec_env(build())
    assert as_vec_env(env) is env
    metrics = ppo_on(env).iterate()
    assert np.isfinite(metrics["ppo/kl"])
    env.close()


def test_gymnasiums_default_vector_environment_trains_as_the_loop_over_copies_does() -> None:
    """NEXT_STEP's reset rows are left out: the transitions that count are those of the single environments."""
    vector = gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    env = as_vec_env(vector)
    env.reset(seed=0)
    lengths, current, junk = [], np.zeros(2, int), 0
    first = torch.ones(2, dtype=torch.bool)
    for _ in range(200):
        step = env.step(torch.ones(2, dtype=torch.int64))
        valid = np.ones(2, bool) if step.valid is None else step.valid.numpy()
        assert not (step.ended.numpy() & ~valid).any()
        assert torch.equal(step.starts_next, step.ended | torch.from_numpy(~valid))
        assert not (~valid & ~first.numpy()).any()  # a reset row follows an end, and only there
        junk += int((~valid).sum())
        current += valid
        for row in np.flatnonzero(step.ended):
            lengths.append(int(current[row]))
            current[row] = 0
        first = step.ended
    assert junk >= len(lengths) - 2 > 20
    assert set(lengths) <= set(range(8, 12))  # always pushing to one side: 8 to 11 steps
    rollout = ppo_on(env).collector.collect()
    assert not rollout["valid"].all()


def test_the_device_of_gymnasiums_tensors_can_be_chosen() -> None:
    assert as_vec_env(gym.make("CartPole-v1"), "meta").device.type == "meta"
    assert as_vec_env(PointMass(2), "meta").device.type == "cpu"  # an own environment stays where it is


def test_groups_and_segments_work_on_every_kind() -> None:
    own = as_vec_env(PointMass(2), groups={"actor": "policy", "critic": "critic+policy"})
    assert isinstance(own, StatefulEnv)
    assert own.reset(0)["critic", "policy"].shape == (2, 4)
    simulator = as_vec_env(Simulator(), groups={"policy": "actor"}, segments={"policy": {"x": 1, "y": 1}})
    assert simulator.reset()["policy", "y"].shape == (4, 1)
    single = as_vec_env(gym.make("CartPole-v1"), segments={"policy": {"cart": 2, "pole": 2}})
    assert single.reset(0)["policy", "pole"].shape == (1, 2)
    config = EnvConfig(id="PointMass", groups={"policy": "critic"}, segments={"policy": {"seen": 4, "wind": 2}})
    assert config.make().reset(0)["policy", "wind"].shape == (8, 2)


class ManiSkill(gym.Env[Any, Any]):
    """Stands for ManiSkill's own class: batched, but without resets."""

    num_envs, single_action_space, device, elapsed_steps = 8, BOX, "cpu", 0
    observation_space, action_space = BOX, BOX


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "NoneType is not a known kind of environment.* lacks num_envs, device, observation_space"),
        (object(), "object is not a known kind of environment"),
        ("CartPole-v1", "the id 'CartPole-v1' belongs in env.id"),
        (PointMass, r"build one: PointMass\(...\)"),
        (ManiSkill(), "ManiSkill does not reset ended copies: wrap it in ManiSkillVectorEnv"),
        (Own(num_envs=0), "num_envs must be a whole number of at least 1, got 0"),
        (Own(num_envs=2.0), "num_envs must be a whole number"),
        (Own(device="cpu"), r"must be a torch.device, got 'cpu'"),
        (Own(observation_space=BOX), "must be a gymnasium.spaces.Dict of groups"),
        (Own(observation_space=spaces.Dict({"policy": spaces.Text(3)})), "policy is a Text space"),
        (Own(action_space=spaces.Text(3)), "no action distribution covers a Text action space"),
    ],
)
def test_what_is_no_environment(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_vec_env(wrong)


def test_a_vector_environment_must_say_how_it_resets() -> None:
    vector = SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    vector.metadata = {}
    with pytest.raises(ValueError, match="does not say how it resets"):
        as_vec_env(vector)


def test_observations_and_steps_are_checked() -> None:
    env = Own()
    assert as_vec_env(env) is env
    good = env.step(torch.zeros(3))
    action = torch.zeros(3)
    gate = Gate(env)
    assert gate.step(action).obs is not gate.step(action).obs  # as the environment gives it
    for obs, message in (
        ({"policy": torch.zeros(3, 3)}, "gave a dict as observation: return a TensorDict"),
        ((env.reset(), {}), "gave a tuple as observation"),
        (TensorDict({"polcy": torch.zeros(3, 3)}, [3]), "'policy' is missing"),
        (TensorDict({"policy": torch.zeros(3, 2)}, [3]), r"'policy' has shape \(3, 2\), but its space says \(3, 3\)"),
        (TensorDict({"policy": torch.zeros(3, 3)}, []), r"batch size \[\], expected \[3\]"),
    ):
        env.reset = lambda seed=None, obs=obs: obs  # type: ignore[method-assign,misc]
        with pytest.raises(EnvError, match=message):
            Gate(env).reset()
    for step, message in (
        (tuple(good)[:5], "returned a tuple: return an understudy.envs.Step"),
        (good._replace(reward=torch.zeros(3, 1)), r"reward must be a tensor of shape \[3\]"),
        (good._replace(truncated=False), r"truncated must be a tensor of shape \[3\]"),
        (good._replace(terminated=torch.zeros(3)), "must be bool tensors"),
        (good._replace(final_obs=TensorDict({}, [3])), "'policy' is missing"),
    ):
        env.step = lambda action, step=step: step  # type: ignore[method-assign,misc]
        gate = Gate(env)
        for _ in range(2):  # the first step and every later one
            with pytest.raises(EnvError, match=message):
                gate.step(action)


def test_training_checks_the_first_observation_and_step() -> None:
    class Tuples(Own):
        def step(self, action: torch.Tensor) -> Any:
            return self.reset(), torch.zeros(3), torch.zeros(3), torch.zeros(3), {}

    with pytest.raises(ValueError, match=r"Tuples.step returned a tuple: return an understudy.envs.Step"):
        ppo_on(as_vec_env(Tuples())).iterate()

    class Dicts(Own):
        def reset(self, seed: int | None = None) -> Any:
            return {"policy": torch.zeros(3, 3)}

    with pytest.raises(ValueError, match=r"Dicts\.reset gave a dict as observation"):
        ppo_on(as_vec_env(Dicts())).iterate()


# ---------------------------------------------------------------------------------------------- ids


def make_points(num_envs: int, device: torch.device, *, far: bool = False, max_episode_steps: int = 9) -> PointMass:
    """Points with short episodes."""
    env = PointMass(num_envs, device, max_episode_steps=max_episode_steps)
    env.goal += 10.0 * far
    return env


def test_a_registered_maker_is_found_by_its_id() -> None:
    us.register_env("Points-v0", make_points)
    env = EnvConfig(id="Points-v0", num_envs=5, kwargs={"far": True}, max_episode_steps=4).make()
    assert isinstance(env, PointMass)
    assert (env.num_envs, env.max_episode_steps, float(env.goal.min())) == (5, 4, 10.0)
    entry = next(entry for entry in list_envs() if entry.id == "Points-v0")
    assert (entry.backend, entry.summary) == ("registered", "Points with short episodes")
    register_env("Points-v0", PointMass)  # a cell of a notebook runs twice
    assert make_env("Points-v0", 1).num_envs == 1
    register_env("Simulated-v0", lambda num_envs, device: Simulator(num_envs))
    assert make_env("Simulated-v0", 6).num_envs == 6
    register_env("Vector-v0", lambda num_envs, device: gym.make_vec("CartPole-v1", num_envs))
    assert make_env("Vector-v0", 2).reset(0)["policy"].shape == (2, 4)


@pytest.mark.parametrize("id", ["CartPole-v1", "PointMass"])
def test_an_id_that_is_taken_is_refused(id: str) -> None:
    with pytest.raises(ValueError, match=f"has an environment '{id}' already: register yours under another id"):
        register_env(id, make_points)


class ElsewhereEnv(Own):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs=num_envs, device=torch.device("meta"))


def unlimited(num_envs: int, device: torch.device, scale: float = 1.0) -> PointMass:
    return PointMass(num_envs, device)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (make_points, {"env_kwargs": {"fra": True}}, "Rubbish-v0 has no option 'fra': did you mean far"),
        (make_points, {"env_kwargs": {"far": 1}}, "Rubbish-v0: far must be true or false, got 1"),
        (unlimited, {"max_episode_steps": 5}, "Rubbish-v0 has no option 'max_episode_steps'"),
        (unlimited, {"env_kwargs": {"scale": "big"}}, "scale must be a number"),
        (unlimited, {"backend": "envpool"}, "leave the backend at 'auto'"),
        (unlimited, {"groups": {"policy": "polcy"}}, "asks for 'polcy'.*did you mean policy"),
        (lambda num_envs: None, {}, r"a maker takes \(num_envs, device, \*\*options\), this one takes \(num_envs\)"),
        (lambda num_envs, device: None, {}, "the maker of Rubbish-v0 returned no environment: NoneType"),
        (lambda num_envs, device: 3, {}, "returned no environment: int is not a known kind of environment"),
        (lambda num_envs, device: gym.make("CartPole-v1"), {}, "asked for 4 copies on cpu and returned 1 on cpu"),
        (lambda num_envs, device: PointMass(2), {}, "asked for 4 copies on cpu and returned 2"),
        (lambda num_envs, device: ElsewhereEnv(num_envs), {}, "asked for 4 copies on cpu and returned 4 on meta"),
    ],
)
def test_what_a_maker_and_its_options_can_get_wrong(make: Any, options: dict[str, Any], message: str) -> None:
    register_env("Rubbish-v0", make)
    with pytest.raises(ValueError, match=message):
        make_env("Rubbish-v0", 4, **options)


def test_a_maker_must_be_callable_and_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="must be a function"):
        register_env("Thing-v0", PointMass(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be drawn"):
        make_render_env(EnvConfig(id="PointMass"))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own that registers one environment here, one with Gymnasium, and has a maker."""
    name = f"lab_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "import gymnasium, understudy\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "from understudy.tasks.point_mass import PointMass\n"
        "NUMBER = 3\n"
        "def points(num_envs, device, *, max_episode_steps=7):\n"
        "    return PointMass(num_envs, device, max_episode_steps=max_episode_steps)\n"
        f"understudy.register_env('{name}-points', points)\n"
        f"gymnasium.register('{name}-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_module_registers_or_names_a_maker(lab: str) -> None:
    assert isinstance(make_env(f"{lab}:{lab}-points", 2), PointMass)
    assert make_env(f"{lab}:{lab}-v0", 2).reset(0)["policy"].shape == (2, 4)
    named = make_env(f"{lab}:points", 3, max_episode_steps=5)
    assert isinstance(named, PointMass)
    assert named.max_episode_steps == 5
    for wrong, message in (
        ("point", "registers no environment 'point' and has no such maker"),
        ("NUMBER", "which cannot be called"),
        ("CartPoleEnv", "class of single environments: have its module call gymnasium.register"),
    ):
        with pytest.raises(ValueError, match=message):
            make_env(f"{lab}:{wrong}", 2)
    with pytest.raises(ValueError, match="cannot be imported"):
        make_env("no_such_lab:points", 2)
    gym.registry.pop(f"{lab}-v0")


def test_a_package_announces_environments(lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "Lab-v0": f"{lab}:points",
        "Broken-v0": "no_such_lab:points",
    }
    monkeypatch.setattr(core_registry, "_announced", lambda group: points if group == "understudy.envs" else {})
    assert isinstance(make_env("Lab-v0", 2), PointMass)
    summaries = {entry.id: entry.summary for entry in list_envs()}
    assert summaries["Broken-v0"].startswith("cannot be loaded: 'no_such_lab:points' names a module")
    with pytest.raises(ValueError, match="a package has an environment 'Lab-v0' already"):
        register_env("Lab-v0", make_points)
    del ENVS["Lab-v0"]


def test_no_task_is_loaded_before_somebody_asks_for_one(fresh: Fresh) -> None:
    code = (
        "import sys, understudy.envs.registry as r; r.make_env('CartPole-v1', 1)\n"
        "print('understudy.tasks' in sys.modules); r.make_env('PointMass', 1)\n"
        "print('understudy.tasks.point_mass' in sys.modules, 'understudy.tasks.crossings' in sys.modules)\n"
    )
    assert fresh("-c", code).stdout.split() == ["False", "True", "False"]


def test_a_policy_loads_no_backend(fresh: Fresh) -> None:
    code = "import sys, understudy; understudy.ActorCritic; print(*sys.modules)"
    loaded = fresh("-c", code).stdout.split()
    assert "understudy.envs.actions" in loaded
    assert not {"understudy.envs.gymnasium", "understudy.envs.registry", "understudy.tasks"} & set(loaded)
