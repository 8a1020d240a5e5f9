"""From an environment's id to a `VecEnv`: which backend builds it, and the configuration that names it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec

from understudy.envs.base import VecEnv
from understudy.envs.envpool import has_envpool, import_envpool, make_envpool
from understudy.envs.gymnasium import InProcessVectorEnv
from understudy.envs.observations import Groups, nearest
from understudy.envs.segments import with_segments
from understudy.tasks.crossings import CROSSINGS, Crossings
from understudy.tasks.light_house import LightHouse
from understudy.tasks.point_mass import PointMass
from understudy.tasks.poisoned_doors import PoisonedDoors
from understudy.tasks.registration import SingleEnv, register_tasks

logger = logging.getLogger(__name__)

Backend = Literal["auto", "gymnasium", "envpool"]
KwargValue = int | float | bool | str

ENVPOOL_FROM = 16
"""From so many copies on, "auto" prefers EnvPool: below, calling into the thread pool costs more than a light step."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of our own environments: how to build it, and one line about it."""

    summary: str
    make: Callable[[int, torch.device, Mapping[str, KwargValue]], VecEnv]  # (num_envs, device, kwargs)
    make_render: Callable[[Mapping[str, KwargValue]], gym.Env[Any, Any]] | None = None  # kwargs -> "rgb_array" env


def _point_mass(num_envs: int, device: torch.device, options: Mapping[str, KwargValue]) -> VecEnv:
    numbers = _whole_numbers("PointMass", options, ("max_episode_steps",))
    return PointMass(num_envs, device, numbers.get("max_episode_steps", 100))


def _poisoned_doors(num_envs: int, device: torch.device, options: Mapping[str, KwargValue]) -> VecEnv:
    known = ("doors", "code_length", "max_episode_steps")
    return PoisonedDoors(num_envs, device, **_whole_numbers("PoisonedDoors-v0", options, known))


def _light_house(num_envs: int, device: torch.device, options: Mapping[str, KwargValue]) -> VecEnv:
    known = ("view_radius", "expert_radius", "world_radius", "max_episode_steps")
    return LightHouse(num_envs, device, **_whole_numbers("LightHouse-v0", options, known))


def _crossings(name: str) -> Task:
    """One of the named crossings; its options are the fields of `CrossingsConfig`."""
    config = CROSSINGS[name]
    kinds = {field.name: type(field.default) for field in dataclasses.fields(config)} | {"max_episode_steps": int}

    def make(num_envs: int, device: torch.device, options: Mapping[str, KwargValue]) -> VecEnv:
        chosen: dict[str, Any] = {}
        for option, value in options.items():
            if option not in kinds:
                raise ValueError(f"{name} has no option {option!r}: {nearest(option, tuple(kinds))}")
            if type(value) is not kinds[option]:
                raise ValueError(f"{name}: {option} is of type {kinds[option].__name__}, got {value!r}")
            chosen[option] = value
        return Crossings(num_envs, device, dataclasses.replace(config, **chosen))

    view = "" if config.switch == "none" else ", a view that has to be switched on"
    expert = ", a corrupt expert" if config.corrupt else ""
    rivers = f"{config.crossings} rivers of {config.obstacle}, {config.size} x {config.size}{view}{expert}"
    return Task(summary=f"MiniGrid: cross {rivers}; batched torch", make=make)


def _whole_numbers(task: str, options: Mapping[str, KwargValue], known: Sequence[str]) -> dict[str, int]:
    """The options of a task; ValueError for one that it does not know or that is no whole number."""
    numbers = {}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{task} has no option {name!r}: {nearest(name, known)}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{task}: {name} is a whole number, got {value!r}")
        numbers[name] = value
    return numbers


OWN_TASKS: dict[str, Task] = {
    "PointMass": Task(
        summary="fly to a goal against a wind that only the critic sees; batched torch", make=_point_mass
    ),
    "PoisonedDoors-v0": Task(
        summary="choose a door that only the expert can tell, or learn a code; batched torch", make=_poisoned_doors
    ),
    "LightHouse-v0": Task(
        summary="find the good corner of a dark square, the expert sees further; batched torch", make=_light_house
    ),
    **{name: _crossings(name) for name in CROSSINGS},
}
"""Our own environments by id; a task is one file in `tasks/` and one entry here."""

register_tasks(OWN_TASKS)


def make_single_env(name: str, options: Mapping[str, KwargValue] | None = None) -> gym.Env[Any, Any]:
    """One copy of our task `name` as a Gymnasium environment, what `gym.make("understudy/<name>")` calls."""
    return SingleEnv(OWN_TASKS[name].make(1, torch.device("cpu"), options or {}))


class EnvEntry(NamedTuple):
    """One line of `list_envs`."""

    id: str
    backend: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which environment, how many copies of it, and how its observations are grouped."""

    id: str
    """Id of the environment: one of our tasks, Gymnasium's ("Hopper-v5", "module:Id-v0") or EnvPool's."""
    num_envs: int = 8
    """Copies stepped together."""
    backend: Backend = "auto"
    """Who steps it. "auto": Gymnasium below 16 copies, EnvPool from there on, whichever has the id."""
    groups: dict[str, str] = field(default_factory=dict)
    """Observation groups by name, as keys of a Dict observation: {"policy": "state", "critic": "state+privileged"}.
    Empty: the environment's own."""
    segments: dict[str, dict[str, int]] = field(default_factory=dict)
    """Groups that are flat vectors, cut into named components by size: {"policy": {"position": 5, "speed": 6}}."""
    max_episode_steps: int | None = None
    """Time limit in steps. None: the one the environment is registered with."""
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Further options, passed to the environment as they are."""

    def make(self, device: torch.device | str = "cpu", seed: int | None = None) -> VecEnv:
        """Build the environment on `device`; raises as `make_env` and `with_segments` do."""
        env = make_env(
            self.id,
            self.num_envs,
            self.backend,
            device,
            groups=self.groups or None,
            env_kwargs=self.kwargs,
            max_episode_steps=self.max_episode_steps,
            seed=seed,
        )
        return with_segments(env, self.segments)


def make_env(
    id: str,
    num_envs: int,
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
    *,
    groups: Groups | None = None,
    env_kwargs: Mapping[str, KwargValue] | None = None,
    max_episode_steps: int | None = None,
    seed: int | None = None,
) -> VecEnv:
    """N copies of the environment `id`, stepped together.

    Backend "auto": our own tasks first; else Gymnasium, in this process, for fewer than 16 copies or when
    `env_kwargs` are given (the backends name their options differently); else EnvPool where it is installed and has
    the id, else Gymnasium. Name the backend for runs to be compared: EnvPool ships its own MuJoCo, whose
    version differs from that of the `mujoco` package, and its episodes differ for the same seed.

    `groups`: see `observation_leaves`. `seed`: for the first `reset` that is given none.
    Raises ValueError for an unknown id (naming the nearest), `num_envs` < 1, options the environment refuses, and
    spaces that cannot become tensors; ImportError where a package is missing.
    """
    _check(num_envs, max_episode_steps, backend)
    options = dict(env_kwargs or {})
    chosen = _choose(id, num_envs, backend, bool(options))
    if chosen == "own":
        if groups is not None:
            raise ValueError(f"{id} defines its observation groups itself: leave groups out")
        if max_episode_steps is not None:
            options["max_episode_steps"] = max_episode_steps
        return OWN_TASKS[id].make(num_envs, torch.device(device), options)
    if chosen == "envpool":
        return make_envpool(id, num_envs, device, groups, options, max_episode_steps, seed)
    make = gymnasium_maker(id, options, max_episode_steps)
    return InProcessVectorEnv([make] * num_envs, device, groups, seed)


def as_vec_env(env: Any, device: torch.device | str = "cpu") -> VecEnv:
    """An environment of the user's own as a `VecEnv`. Raises ValueError for an object that is none."""
    if not isinstance(env, VecEnv):
        raise ValueError(f"{type(env).__name__} is no environment that steps many copies together: give a VecEnv")
    return env


def make_render_env(config: EnvConfig) -> gym.Env[Any, Any]:
    """One Gymnasium environment of the configuration that renders "rgb_array" frames.

    To drive it with a policy, wrap it: `InProcessVectorEnv([lambda: env], groups=config.groups or None)`.
    Raises ValueError for an id that only EnvPool has or a task that cannot be drawn.
    """
    if config.id in OWN_TASKS:
        make_render = OWN_TASKS[config.id].make_render
        if make_render is None:
            raise ValueError(f"{config.id} cannot be drawn: evaluate it without a video")
        return make_render(config.kwargs)
    if not _gymnasium_has(config.id):
        known = _known_ids()
        if config.id in known:
            raise ValueError(f"{config.id} exists in EnvPool only, which gives no video: evaluate it without one")
        raise ValueError(f"unknown environment {config.id!r}: {nearest(config.id, known)}")
    # without a display MuJoCo can draw offscreen through EGL; a choice made by the user stands
    if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    return gymnasium_maker(config.id, {**config.kwargs, "render_mode": "rgb_array"}, config.max_episode_steps)()


def list_envs() -> list[EnvEntry]:
    """Our own tasks, each with one line, then one line for each backend's collection."""
    entries = [EnvEntry(name, "own", task.summary) for name, task in sorted(OWN_TASKS.items())]
    count = len(gym.registry)
    entries.append(EnvEntry("CartPole-v1, Hopper-v5, ...", "gymnasium", f"{count} ids: gymnasium.pprint_registry()"))
    if has_envpool():
        total = len(import_envpool().list_all_envs())
        summary = f"{total} ids: envpool.list_all_envs()"
    else:
        summary = 'not installed: pip install "understudy[envpool]"'
    entries.append(EnvEntry("Pong-v5, Go1JoystickFlatTerrain-v1, ...", "envpool", summary))
    return entries


def gymnasium_maker(
    env_id: str, env_kwargs: Mapping[str, Any], max_episode_steps: int | None = None
) -> Callable[[], gym.Env[Any, Any]]:
    """A function that builds one copy, without Gymnasium's per-step checks (the adapter resets before it steps)."""
    spec = copy.deepcopy(_gymnasium_spec(env_id))
    spec.disable_env_checker, spec.order_enforce = True, False
    if "mujoco" in str(spec.entry_point):
        _log_mujoco_warnings_once()

    def make() -> gym.Env[Any, Any]:
        try:
            return gym.make(spec, max_episode_steps=max_episode_steps, **env_kwargs)
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            extra = 'pip install "understudy[mujoco]"' if "mujoco" in str(error).lower() else "install it"
            raise ImportError(f"{env_id} needs a package that is missing ({extra}): {error}") from error
        except TypeError as error:
            raise ValueError(f"{env_id} refuses the options {dict(env_kwargs)}: {error}") from error

    return make


def _log_mujoco_warnings_once() -> None:
    """MuJoCo prints each model's warnings from C, once per copy, and writes MUJOCO_LOG.TXT: log each text once."""
    try:
        mujoco = importlib.import_module("mujoco")
    except ImportError:
        return  # gym.make says what to install
    mujoco.set_mju_user_warning(_log_once)


@functools.cache
def _log_once(message: str) -> None:
    logger.info("MuJoCo: %s", message)


def _check(num_envs: int, max_episode_steps: int | None, backend: str) -> None:
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}: at least one environment is needed")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is {max_episode_steps}: leave it out for the registered limit")
    if backend not in ("auto", "gymnasium", "envpool"):
        raise ValueError(f"unknown backend {backend!r}: choose 'auto', 'gymnasium' or 'envpool'")


def _choose(env_id: str, num_envs: int, backend: str, has_options: bool) -> Literal["own", "gymnasium", "envpool"]:
    """The backend that builds the id; ValueError if none does."""
    if env_id in OWN_TASKS:
        if backend != "auto":
            raise ValueError(f"{env_id} is one of our own tasks: leave the backend at 'auto'")
        return "own"
    if backend == "envpool":
        return "envpool"  # make_envpool checks the id
    in_gymnasium = _gymnasium_has(env_id)
    if in_gymnasium and (backend == "gymnasium" or num_envs < ENVPOOL_FROM or has_options):
        return "gymnasium"
    if backend == "auto" and has_envpool() and env_id in import_envpool().list_all_envs():
        return "envpool"
    if in_gymnasium:
        return "gymnasium"
    known = _known_ids() if backend == "auto" else list(gym.registry)
    where = "" if backend == "auto" else " in Gymnasium"
    raise ValueError(f"unknown environment {env_id!r}{where}: {nearest(env_id, known)}")


def _known_ids() -> list[str]:
    pool = import_envpool().list_all_envs() if has_envpool() else []
    return [*OWN_TASKS, *gym.registry, *pool]


def _gymnasium_has(env_id: str) -> bool:
    try:
        _gymnasium_spec(env_id)
    except gym.error.Error:
        return False
    return True


def _gymnasium_spec(env_id: str) -> EnvSpec:
    """The registered spec; "module:Id-v0" imports the module first, which registers it."""
    if ":" in env_id:
        module, _, env_id = env_id.partition(":")
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{module}:{env_id} names a module that cannot be imported: {error}") from error
    return gym.spec(env_id)
