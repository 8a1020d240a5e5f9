"""The doors for environments: from an id, or an object of the user's own, to a `VecEnv`; the config that names one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv

from understudy.core.check import Config, Filled, In, checked, fit, nearest
from understudy.core.devices import cores
from understudy.core.extras import install
from understudy.core.registry import Registry, load_object
from understudy.envs.base import VecEnv
from understudy.envs.envpool import has_envpool, import_envpool, make_envpool
from understudy.envs.gate import check_vec_env, raised
from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
from understudy.envs.observations import Groups, Segments
from understudy.envs.processes import STEP_PAYS_FROM, process_vector_env, seconds_per_step
from understudy.envs.regrouped import ungrouped, with_groups
from understudy.envs.simulator import Simulator, SimulatorAdapter, TorchVectorEnv
from understudy.envs.simulators import KINDS, Order, SimulatorKind, simulator_of
from understudy.types import UnderstudyError

logger = logging.getLogger(__name__)

Backend = Literal["auto", "gymnasium", "processes", "envpool"]
KwargValue = int | float | bool | str
Maker = Callable[..., Any]
"""`make(num_envs, device, **options)` -> a `VecEnv`, a Gymnasium vector environment or an rsl_rl-style simulator."""

ENVPOOL_FROM = 16
"""From so many copies on, "auto" prefers EnvPool: below, calling into the thread pool costs more than a light step."""

_CROSSINGS = "WallCrossing LavaCrossing WallCrossingCorrupt LavaCrossingCorrupt WallCrossingFaulty LavaCrossingFaulty"
OWN_TASKS = {
    "PointMass": "understudy.tasks.point_mass:PointMass",
    "PoisonedDoors-v0": "understudy.tasks.poisoned_doors:PoisonedDoors",
    "LightHouse-v0": "understudy.tasks.light_house:LightHouse",
    **{
        f"{name}-v0": f"understudy.tasks.crossings:{name}"
        for name in (*_CROSSINGS.split(), "WallCrossingOnce", "LavaCrossingOnce")
    },
}
"""The library's own tasks by id, as "module:maker": imported when somebody asks for one."""

ENVS: Registry[Maker] = Registry("environment", "understudy.envs", OWN_TASKS)
"""Id -> maker: own tasks, those of packages (entry points "understudy.envs"), those of `register_env`."""


@checked
def register_env(id: str, make: Maker) -> None:
    """Let `EnvConfig.id`, `make_env` and the command line build an environment by this id.

    `make(num_envs, device, **options)` returns whatever `as_vec_env` takes. Its further parameters are the options
    of the environment (`env.kwargs`, and `max_episode_steps` if there is such a parameter); their annotations are
    checked. A second call with the same id replaces the first. Raises ValueError for an id of the library, of a
    package or of Gymnasium, and for a `make` that cannot be called.
    """
    if not callable(make):
        raise ValueError(f"the maker of environment {id!r} must be a function (num_envs, device, ...), got {make!r}")
    if ENVS.reserved(id) or id in gym.registry:
        owner = "Gymnasium" if id in gym.registry else "the library or a package"
        raise ValueError(f"{owner} has an environment {id!r} already: register yours under another id")
    ENVS[id] = make


@dataclass(frozen=True, kw_only=True)
class EnvConfig(Config):
    """Which environment, how many copies of it, and how its observations are grouped."""

    PREFIX = "env."

    id: Annotated[str, Filled()]
    """Id of the environment: a registered one (`understudy list envs`), Gymnasium's ("Hopper-v5"), EnvPool's, a
    simulator's task ("mjlab:TASK"), "module:Id" (the module registers it) or "module:function" (a maker)."""
    num_envs: Annotated[int, In(1, 100_000)] = 8
    """Copies stepped together."""
    backend: Backend = "auto"
    """Backend that steps the environments: gymnasium (in this process), processes (Gymnasium's, each in one of its own)
    or envpool. auto: Gymnasium below 16 copies, EnvPool from there on, whichever has the id; processes instead of
    gymnasium if a step is measured to take 2 ms or more."""
    worker_timeout: Annotated[float, In(0.1, 1e6)] = 300.0
    """Seconds without an answer after which an environment in a process of its own is taken to hang."""
    groups: dict[str, str] = field(default_factory=dict)
    """Observation groups by name, as keys of a Dict observation: {"policy": "state", "critic": "state+privileged"}.
    Empty: the environment's own."""
    segments: dict[str, dict[str, int]] = field(default_factory=dict)
    """Groups that are flat vectors, cut into named components by size: {"policy": {"position": 5, "speed": 6}}."""
    max_episode_steps: Annotated[int | None, In(1, 2**31 - 1)] = None
    """Time limit in steps. None: the one the environment is registered with."""
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Further options, passed to the environment as they are; in a simulator's configuration by their place:
    {"scene.env_spacing": 2.0}."""
    random_episode_lengths: bool = True
    """Start a training's episodes at random ages, where a simulator counts their steps: else all of them reach the
    time limit at once (rsl_rl's init_at_random_ep_len)."""

    def make(self, device: torch.device | str = "cpu", seed: int | None = None, *, render: bool = False) -> VecEnv:
        """Build the environment on `device`, to be filmed if `render`; raises as `make_env` and `with_groups` do."""
        env = make_env(
            self.id,
            self.num_envs,
            self.backend,
            device,
            groups=self.groups or None,
            segments=self.segments,
            env_kwargs=self.kwargs,
            max_episode_steps=self.max_episode_steps,
            seed=seed,
            render=render,
            worker_timeout=self.worker_timeout,
        )
        if isinstance(simulator := ungrouped(env), SimulatorAdapter):
            simulator.random_episode_lengths = self.random_episode_lengths
        return env


@checked
def make_env(
    id: str,
    num_envs: int,
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
    *,
    groups: Groups | None = None,
    segments: Segments | None = None,
    env_kwargs: Mapping[str, KwargValue] | None = None,
    max_episode_steps: int | None = None,
    seed: int | None = None,
    render: bool = False,
    worker_timeout: float = 300.0,
) -> VecEnv:
    """N copies of the environment `id`, stepped together.

    Backend "auto": registered makers (see `register_env`; they know no `seed`) and simulators first; else Gymnasium for
    fewer than 16 copies or when `env_kwargs` are given (the backends name their options differently); else EnvPool
    where it is installed and has the id, else Gymnasium. Gymnasium's environments are stepped in this process; in
    processes of their own (`process_vector_env`, with `worker_timeout`) if a step takes 2 ms or more, measured in a
    copy built for that, and there is more than one core. Name the backend for runs to be compared: EnvPool
    ships its own MuJoCo, whose version differs from that of the `mujoco` package, and its episodes differ for the same
    seed.

    `groups`: see `observation_leaves`. `segments`: see `with_groups`. `seed`: for the first `reset` that is given
    none, and for what a simulator draws while it is built. `render`: build a simulator so that it draws. Raises
    ValueError for an unknown id (naming the nearest), `num_envs` < 1, options that the environment refuses, and spaces
    that cannot become tensors; ImportError where a package is missing.
    """
    fit(Annotated[int, In(1)], num_envs, "num_envs")
    fit(Annotated[int | None, In(1)], max_episode_steps, "max_episode_steps")
    fit(Backend, backend, "backend")
    options: dict[str, Any] = dict(env_kwargs or {})
    simulator = _find_simulator(id)
    maker = None if simulator else _find_maker(id)
    if (simulator or maker) and backend != "auto":
        raise ValueError(f"{id} is built by its own maker: leave the backend at 'auto'")
    if simulator is not None:
        kind, task = simulator
        order = Order(task, num_envs, torch.device(device), options, max_episode_steps, seed, render)
        return with_groups(kind.build(order, groups), segments=segments)
    if maker is not None:
        if max_episode_steps is not None:
            options["max_episode_steps"] = max_episode_steps
        return _call_maker(id, maker, num_envs, torch.device(device), options, groups, segments)
    env: VecEnv
    chosen = _choose(id, num_envs, backend, bool(options))
    if chosen == "envpool":
        env = make_envpool(id, num_envs, device, groups, options, max_episode_steps, seed)
    else:
        makes = [gymnasium_maker(id, options, max_episode_steps)] * num_envs
        if chosen == "processes" or (backend == "auto" and num_envs > 1 and _is_slow(id, options, makes[0])):
            env = process_vector_env(makes, device, groups, seed, timeout=worker_timeout)
        else:
            env = InProcessVectorEnv(makes, device, groups, seed)
    return with_groups(env, segments=segments)


_SECONDS: dict[str, float] = {}
"""What a step takes, by id and options: measured once, though every evaluation builds its environment anew."""


def _is_slow(id: str, options: Mapping[str, Any], make: Callable[[], gym.Env[Any, Any]]) -> bool:
    """Whether a step takes so long that a process for each copy pays."""
    if cores() == 1:
        return False
    if (key := f"{id} {options}") not in _SECONDS:
        _SECONDS[key] = seconds_per_step(make)
        if _SECONDS[key] >= STEP_PAYS_FROM:
            logger.info("%s: a step takes %.1f ms: a process for each copy", id, 1e3 * _SECONDS[key])
    return _SECONDS[key] >= STEP_PAYS_FROM


def with_copies(config: EnvConfig, num_envs: int) -> EnvConfig:
    """`config` with fewer copies, which the backend steps that "auto" chooses for all of them."""
    by_auto = config.backend == "auto" and not is_simulator(config.id) and _find_maker(config.id) is None
    pool = by_auto and _choose(config.id, config.num_envs, "auto", bool(config.kwargs)) == "envpool"
    return dataclasses.replace(config, num_envs=num_envs, backend="envpool" if pool else config.backend)


def backend_of(config: EnvConfig, env: VecEnv) -> str:
    """Name of what steps the environment that the configuration has built, for people."""
    if (simulator := _find_simulator(config.id)) is not None:
        return simulator[0].title
    if _find_maker(config.id) is not None:
        return "its own maker"
    inner = ungrouped(env)
    if isinstance(inner, GymnasiumVectorAdapter):
        return f"gymnasium, {inner.num_envs} processes"
    return "gymnasium" if isinstance(inner, InProcessVectorEnv) else "envpool"


@runtime_checkable
class _ResetsByItself(Protocol):
    """Mark of ManiSkill's environments, which reset only in its vector environment."""

    elapsed_steps: Any


def as_vec_env(
    env: Any,
    device: torch.device | str = "cpu",
    *,
    groups: Groups | None = None,
    segments: Segments | None = None,
) -> VecEnv:
    """A `VecEnv` of an environment that somebody has built.

    Takes a `VecEnv`, a Gymnasium vector environment (any autoreset mode), one Gymnasium environment (one copy), a
    simulator with rsl_rl's interface (`num_envs`, `num_actions`, `device`, `get_observations`, `step`), or one that
    takes and gives tensors in Gymnasium's form (ManiSkill's vector environment; mjlab's and Isaac Lab's environments).
    `device` is where Gymnasium's observations go; a `VecEnv` and a simulator stay on their own.

    Raises ValueError that says what is missing for anything else, and for spaces that cannot become tensors.
    """
    inner = env.unwrapped if isinstance(env, gym.Env | VectorEnv) else env
    if isinstance(inner, VectorEnv):
        return with_groups(GymnasiumVectorAdapter(env, device, groups), segments=segments)
    if isinstance(env, Simulator) or isinstance(inner, TorchVectorEnv):
        if isinstance(inner, _ResetsByItself) and not isinstance(env, VectorEnv):
            raise ValueError(f"{type(inner).__name__} does not reset ended copies: wrap it in ManiSkillVectorEnv")
        return with_groups(SimulatorAdapter(env, groups), segments=segments)
    if isinstance(env, gym.Env):
        return with_groups(InProcessVectorEnv([lambda: env], device, groups), segments=segments)
    check_vec_env(env)
    return with_groups(env, groups, segments)


def make_render_env(config: EnvConfig) -> gym.Env[Any, Any]:
    """One Gymnasium environment of the configuration that renders "rgb_array" frames.

    To drive it with a policy: `as_vec_env(env, device, groups=..., segments=...)`. Raises ValueError for an id that
    only EnvPool or a maker has: neither draws. A simulator draws itself (`EnvConfig.make(render=True)`).
    """
    if _find_simulator(config.id) is not None:
        raise ValueError(f"{config.id} is a simulator: build it with EnvConfig.make(render=True)")
    if _find_maker(config.id) is not None:
        raise ValueError(f"{config.id} cannot be drawn: evaluate it without a video")
    if _gymnasium_spec(config.id) is None:
        known = _known_ids()
        if config.id in known:
            raise ValueError(f"{config.id} exists in EnvPool only, which gives no video: evaluate it without one")
        raise ValueError(f"unknown environment {config.id!r}: {nearest(config.id, known)}")
    # without a display MuJoCo can draw offscreen through EGL; a choice made by the user stands
    if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    return gymnasium_maker(config.id, {**config.kwargs, "render_mode": "rgb_array"}, config.max_episode_steps)()


class EnvEntry(NamedTuple):
    """One line of `list_envs`."""

    id: str
    backend: str
    summary: str


def list_envs() -> list[EnvEntry]:
    """Every registered environment, each with one line, then one line for each backend's collection."""
    entries = [EnvEntry(id, "own" if id in OWN_TASKS else "registered", _summary(id)) for id in ENVS]
    count = len(gym.registry)
    entries.append(EnvEntry("CartPole-v1, Hopper-v5, ...", "gymnasium", f"{count} ids: gymnasium.pprint_registry()"))
    summary = f"not installed: {install('envpool')}"
    if has_envpool():
        summary = "envpool.list_all_envs() has their ids"  # importing it takes 6 seconds
    entries.append(EnvEntry("Pong-v5, Go1JoystickFlatTerrain-v1, ...", "envpool", summary))
    for kind in KINDS.values():
        entries += _simulator_entries(kind)
    return entries


def _simulator_entries(kind: SimulatorKind) -> list[EnvEntry]:
    """The installed tasks of a simulator; one line where that would start Isaac Sim, and where there is none."""
    if not kind.installed or kind.alone:
        summary = "its own scripts list its tasks" if kind.installed else f"not installed: {kind.hint}"
        return [EnvEntry(f"{kind.name}:TASK", kind.name, summary)]
    with contextlib.redirect_stdout(sys.stderr):  # of packages that greet
        return [EnvEntry(f"{kind.name}:{task}", kind.name, f"a task of {kind.title}") for task in kind.tasks()]


def gymnasium_maker(
    env_id: str, env_kwargs: Mapping[str, Any], max_episode_steps: int | None = None
) -> Callable[[], gym.Env[Any, Any]]:
    """A function that builds one copy, without Gymnasium's per-step checks (the adapter resets before it steps)."""
    spec = copy.deepcopy(_gymnasium_spec(env_id))
    assert spec is not None, env_id
    spec.disable_env_checker, spec.order_enforce = True, False
    if "mujoco" in str(spec.entry_point):
        _log_mujoco_warnings_once()

    def make() -> gym.Env[Any, Any]:
        try:
            return gym.make(spec, max_episode_steps=max_episode_steps, **env_kwargs)
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            if newest := _newest(spec) if "have been moved" in str(error) else None:
                raise ValueError(f"{env_id} was removed from Gymnasium: use {newest}") from error
            extra = next((install(name) for name in ("mujoco", "box2d") if name in str(error).lower()), "install it")
            raise ImportError(f"{env_id} needs a package that is missing ({extra}): {error}") from error
        except UnderstudyError:
            raise
        except Exception as error:
            if isinstance(error, TypeError) and _refuses(spec, env_kwargs):
                raise ValueError(f"{env_id} refuses the options {dict(env_kwargs)}: {error}") from error
            if isinstance(error, ValueError):  # options of a wrong value, most likely
                raise ValueError(f"{env_id} raised {type(error).__name__} in its constructor: {error}") from error
            raise raised(env_id, "its constructor", error) from error

    return make


def _refuses(spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> bool:
    """Whether the constructor has no such options, as opposed to an error of its own."""
    entry: Any = spec.entry_point
    try:
        signature = inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry)
        signature.bind(**{**spec.kwargs, **env_kwargs})
    except (TypeError, ValueError):
        return True
    return False


def _newest(spec: EnvSpec) -> str | None:
    """The id of an environment's newest version, if it is another one."""
    known = [x for x in gym.registry.values() if (x.namespace, x.name) == (spec.namespace, spec.name) and x.version]
    newest = max(known, key=lambda x: x.version or 0, default=spec)
    return None if newest.version == spec.version else newest.id


# --------------------------------------------------------------------------------------------- makers


def _find_simulator(id: str) -> tuple[SimulatorKind, str] | None:
    """Kind and task of a simulator's id, unless somebody has registered a maker under it."""
    return None if id in ENVS else simulator_of(id)


def is_simulator(id: str) -> bool:
    """Whether the id is a simulator's task."""
    return _find_simulator(id) is not None


def runs_alone(id: str) -> bool:
    """Whether the id is a task of a simulator of which a process holds one."""
    simulator = _find_simulator(id)
    return simulator is not None and simulator[0].alone


def _find_maker(id: str) -> Maker | None:
    """The maker of a registered id or of "module:function"; None where Gymnasium or EnvPool may have the id."""
    if id in ENVS:
        return ENVS[id]
    module_name, colon, name = id.partition(":")
    if not colon:
        return None
    module = _import(module_name, id)  # which may register the name, with us or with Gymnasium
    if name in ENVS:
        return ENVS[name]
    if _gymnasium_spec(name) is not None:
        return None
    if name not in dir(module):
        raise ValueError(f"{id!r} names nothing: {module_name} registers no environment {name!r} and has no such maker")
    maker: Maker = load_object(id)
    if isinstance(maker, type) and issubclass(maker, gym.Env):
        new = f"gymnasium.register('{name}-v0', '{id}')"
        raise ValueError(
            f"{id} is a class of single environments: have its module call gymnasium.register for it, as in {new}, and "
            f"name it '{module_name}:{name}-v0'"
        )
    return maker


def _call_maker(
    id: str,
    make: Maker,
    num_envs: int,
    device: torch.device,
    options: Mapping[str, Any],
    groups: Groups | None,
    segments: Segments | None,
) -> VecEnv:
    """The environment of a maker, after a check of its options, and of what came back."""
    if not callable(make):
        raise ValueError(f"{id} names {make!r}, which cannot be called: name a maker (num_envs, device, ...)")
    _check_options(id, make, num_envs, device, options)
    made = make(num_envs, device, **options)
    try:
        env = as_vec_env(made, device)
    except ValueError as error:
        raise ValueError(f"the maker of {id} returned no environment: {error}") from error
    if (env.num_envs, env.device.type) != (num_envs, device.type):
        env.close()
        raise ValueError(
            f"the maker of {id} was asked for {num_envs} copies on {device.type} and returned {env.num_envs} on "
            f"{env.device.type}: have it use num_envs and device"
        )
    if groups and isinstance(env, SimulatorAdapter) and env is not made:
        return as_vec_env(made, device, groups=groups, segments=segments)  # by the simulator's own names
    return with_groups(env, groups, segments)


def _check_options(id: str, make: Maker, num_envs: int, device: torch.device, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the maker does not have, or of another type than annotated."""
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # annotations that only a type checker can resolve
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # written in C, without a signature
        return
    known = {name: parameter.annotation for name, parameter in [*signature.parameters.items()][2:]}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for name, value in options.items():
        if name not in known and not takes_any:
            raise ValueError(f"{id} has no option {name!r}: {nearest(name, known)}")
        fit(Any if known.get(name) in (None, inspect.Parameter.empty) else known[name], value, f"{id}: {name}")
    try:
        signature.bind(num_envs, device, **options)
    except TypeError as error:
        raise ValueError(f"{id}: a maker takes (num_envs, device, **options), this one takes {signature}") from error


def _summary(id: str) -> str:
    """First line of a maker's docstring, with the options that it fixes; or the reason why it cannot be loaded."""
    try:
        make = ENVS[id]
    except (ImportError, ValueError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    function, fixed = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    line = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
    return line + (f" ({', '.join(f'{name} {value}' for name, value in fixed.items())})" if fixed else "")


# ------------------------------------------------------------------------------------------- backends


def _choose(
    env_id: str, num_envs: int, backend: str, has_options: bool
) -> Literal["gymnasium", "processes", "envpool"]:
    """The backend that builds the id; ValueError if none does."""
    if backend == "envpool":
        return "envpool"  # make_envpool checks the id
    in_gymnasium = _gymnasium_spec(env_id) is not None
    if in_gymnasium and backend == "processes":
        return "processes"
    if in_gymnasium and (backend == "gymnasium" or num_envs < ENVPOOL_FROM or has_options):
        return "gymnasium"
    if backend == "auto" and has_envpool() and env_id in import_envpool().list_all_envs():
        return "envpool"
    if in_gymnasium:
        return "gymnasium"
    known, where = (_known_ids(), "") if backend == "auto" else (list(gym.registry), " in Gymnasium")
    own = "" if ":" in env_id else f' (registered in a module of your own: write "module:{env_id}")'
    raise ValueError(f"unknown environment {env_id!r}{where}: {nearest(env_id, known)}{own}")


def _known_ids() -> list[str]:
    pool = import_envpool().list_all_envs() if has_envpool() else []
    return [*ENVS, *gym.registry, *pool]


def _gymnasium_spec(env_id: str) -> EnvSpec | None:
    """The registered spec, if there is one; "module:Id-v0" imports the module first, which registers it."""
    module_name, colon, name = env_id.rpartition(":")
    if colon:
        _import(module_name, env_id)
    try:
        return gym.spec(name)
    except gym.error.Error:
        return None


def _import(module_name: str, id: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{id} names a module that cannot be imported: {error}") from error


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
