"""Ids of simulators that cannot be installed here: our builders call their published functions, as stubs have them."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import pytest
import torch
from tests.envs.test_simulator_interfaces import IsaacInner, IsaacWrapper, ManiSkill, Playground

import understudy as us
from understudy.envs import SimulatorAdapter, make_env
from understudy.envs.simulators import KINDS

Pretend = Callable[..., types.ModuleType]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """Make a package importable that has these names; forget our builders that have imported it afterwards."""

    def make(name: str, **names: Any) -> types.ModuleType:
        parent, _, last = name.rpartition(".")
        if parent and parent not in sys.modules:
            make(parent)
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
        if parent:
            monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
        return module

    yield make
    for kind in KINDS:
        sys.modules.pop(f"understudy.envs.simulators.{kind}", None)


@pytest.fixture
def registered() -> Iterator[None]:
    """Take back what a test registers with Gymnasium."""
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def trains(env: Any) -> SimulatorAdapter:
    """The adapter, after one iteration of PPO."""
    assert isinstance(env, SimulatorAdapter)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    us.PPO(env, policy, us.PPOConfig(num_steps=4, minibatches=1, epochs=1), seed=1).iterate()
    return env


@pytest.mark.filterwarnings("ignore:the environment does not give final observations")
@pytest.mark.usefixtures("registered")
def test_isaac_lab(pretend: Pretend) -> None:
    """Isaac Sim starts first, headless, once; then tasks are known, configured and wrapped as rsl_rl's script does."""
    calls: list[Any] = []

    class AppLauncher:
        def __init__(self, launcher_args: Any = None, **options: Any) -> None:
            calls.append(("app", options))
            self.app = object()
            # importing isaaclab_tasks needs a running app, and registers
            pretend("isaaclab_tasks")
            pretend("isaaclab_tasks.utils", parse_env_cfg=parse_env_cfg, load_cfg_from_registry=load_cfg_from_registry)
            pretend("isaaclab_rl.rsl_rl", RslRlVecEnvWrapper=wrap)
            kwargs = {"env_cfg_entry_point": "stub:Cfg", "rsl_rl_cfg_entry_point": "stub:Runner"}
            gym.register("Isaac-Stub-v0", lambda cfg, **_: built(cfg), kwargs=kwargs, disable_env_checker=True)

    def parse_env_cfg(task_name: str, device: str = "cuda:0", num_envs: int | None = None) -> Any:
        calls.append(("cfg", task_name, device, num_envs))
        rewards = types.SimpleNamespace(track=types.SimpleNamespace(weight=1.0))
        return types.SimpleNamespace(
            seed=None, decimation=4, episode_length_s=20.0, sim=types.SimpleNamespace(dt=0.005), rewards=rewards
        )

    def load_cfg_from_registry(task_name: str, entry_point_key: str) -> Any:
        assert gym.spec(task_name).kwargs[entry_point_key] == "stub:Runner"
        return types.SimpleNamespace(clip_actions=1.5)

    class Inner(IsaacInner, gym.Env):  # type: ignore[type-arg]
        """What gym.make gives back."""

    def built(cfg: Any) -> Inner:
        calls.append(("built", cfg))
        return Inner()

    def wrap(env: Any, clip_actions: float | None = None) -> IsaacWrapper:
        calls.append(("wrapped", clip_actions))
        return IsaacWrapper(env.unwrapped)

    pretend("isaaclab.app", AppLauncher=AppLauncher)
    id = "isaaclab:Isaac-Stub-v0"
    env = make_env(id, 4, env_kwargs={"rewards.track.weight": 3.0}, max_episode_steps=50, seed=7)
    trains(env)
    cfg = dict(call[:2] for call in calls)["built"]
    assert calls == [
        ("app", {"headless": True, "device": "cpu", "enable_cameras": False}),
        ("cfg", "Isaac-Stub-v0", "cpu", 4),
        ("built", cfg),
        ("wrapped", 1.5),
    ]
    assert (cfg.seed, cfg.rewards.track.weight, cfg.episode_length_s) == (7, 3.0, 1.0)
    with pytest.raises(ValueError, match="runs one simulator per process"):
        make_env(id, 4)
    env.close()
    with pytest.raises(ValueError, match=r"isaaclab has no task 'Isaac-Stup-v0': did you mean Isaac-Stub-v0"):
        make_env("isaaclab:Isaac-Stup-v0", 4)
    with pytest.raises(ValueError, match=r"has no option 'rewards.trak': did you mean track"):
        make_env(id, 4, env_kwargs={"rewards.trak.weight": 3.0})
    assert [call[0] for call in calls].count("app") == 1  # the app lives on


@pytest.mark.usefixtures("registered")
def test_maniskill(pretend: Pretend) -> None:
    """gym.make with the backend of the device, then its own vector wrapper with partial resets and statistics."""
    calls: list[Any] = []

    def built(**options: Any) -> Any:
        if "control" in options:
            raise TypeError("unexpected keyword 'control'")
        calls.append(options)
        return ManiSkill()._env

    def vector(env: Any, num_envs: int = 1, **options: Any) -> ManiSkill:
        calls.append((num_envs, options))
        return ManiSkill()

    pretend("mani_skill.envs")
    pretend("mani_skill.utils.registration", REGISTERED_ENVS={"StubPick-v1": None})
    pretend("mani_skill.utils.wrappers.flatten", FlattenRGBDObservationWrapper=None)
    pretend("mani_skill.vector.wrappers.gymnasium", ManiSkillVectorEnv=vector)
    gym.register("StubPick-v1", built, disable_env_checker=True, order_enforce=False)
    env = make_env("maniskill:StubPick-v1", 1, env_kwargs={"control_mode": "pd_joint_delta_pos"}, max_episode_steps=9)
    trains(env)
    given, wrapped = calls
    assert given == {
        "num_envs": 1,
        "obs_mode": "state",
        "control_mode": "pd_joint_delta_pos",
        "sim_backend": "physx_cpu",
        "render_mode": None,
    }
    assert wrapped == (1, {"record_metrics": True})
    make_env("maniskill:StubPick-v1", 1, env_kwargs={"ignore_terminations": True})
    assert calls[-1] == (1, {"record_metrics": True, "ignore_terminations": True})
    with pytest.raises(ValueError, match="one copy on a CPU"):
        make_env("maniskill:StubPick-v1", 2)
    with pytest.raises(ValueError, match=r"refuses the options \{'control': 'x'\}"):
        make_env("maniskill:StubPick-v1", 1, env_kwargs={"control": "x"})
    assert KINDS["maniskill"].numbers("StubPick-v1") is None


@pytest.mark.filterwarnings("ignore:the environment does not give final observations")
def test_playground(pretend: Pretend) -> None:
    """The task's configuration with options, its domain randomisation, and a seed for the next reset."""
    calls: list[Any] = []

    class Config(dict):  # type: ignore[type-arg]
        """ml_collections' ConfigDict, as far as it is used."""

        episode_length = 1000

        @contextmanager
        def unlocked(self) -> Iterator[None]:
            calls.append("unlocked")
            yield

    class Wrapper(Playground):
        def __init__(self, env: Any, num_actors: int, seed: int, episode_length: int, action_repeat: int, **o: Any):
            super().__init__()
            self.seed = seed
            calls.append((env, num_actors, seed, episode_length, action_repeat, o))

    registry = types.SimpleNamespace(
        ALL_ENVS=("StubJoystick",),
        get_default_config=lambda task: Config(noise_config=Config(level=1.0)),
        load=lambda task, config: (task, config["noise_config"]["level"]),
        get_domain_randomizer=lambda task: f"randomizer of {task}",
    )
    random = types.SimpleNamespace(PRNGKey=lambda seed: ("key", seed), split=lambda key, count: (key, count))
    pretend("jax", random=random)
    pretend("mujoco_playground", registry=registry, locomotion=types.SimpleNamespace(ALL_ENVS=("StubJoystick",)))
    pretend("mujoco_playground.wrapper_torch", RSLRLBraxWrapper=Wrapper)
    params = types.SimpleNamespace(rsl_rl_config=lambda task: types.SimpleNamespace(to_dict=lambda: {"task": task}))
    pretend("mujoco_playground.config", locomotion_params=params)
    id = "playground:StubJoystick"
    env = trains(make_env(id, 4, env_kwargs={"noise_config.level": 0.5}, seed=11))
    assert calls == [
        "unlocked",
        (
            ("StubJoystick", 0.5),
            4,
            11,
            1000,
            1,
            {"randomization_fn": "randomizer of StubJoystick", "device_rank": None},
        ),
    ]
    assert env.device == torch.device("cpu")
    env.reset(seed=5)
    assert env.raw.key_reset == (("key", 5), 4)
    assert KINDS["playground"].numbers("StubJoystick") == {"task": "StubJoystick"}
