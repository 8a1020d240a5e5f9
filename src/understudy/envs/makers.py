"""Ids that are not Gymnasium's or EnvPool's: registered makers, "module:function", simulators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import torch

from understudy.core.check import checked, fit, nearest
from understudy.core.registry import Registry, load_object
from understudy.envs.base import VecEnv
from understudy.envs.gymnasium_ids import gymnasium_spec, import_named
from understudy.envs.objects import as_vec_env
from understudy.envs.observations import Groups, Segments
from understudy.envs.regrouped import with_groups
from understudy.envs.simulator import SimulatorAdapter
from understudy.envs.simulators import SimulatorKind, simulator_of

Maker = Callable[..., Any]
"""`make(num_envs, device, **options)` -> a `VecEnv`, a Gymnasium vector environment or an rsl_rl-style simulator."""

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


def find_simulator(id: str) -> tuple[SimulatorKind, str] | None:
    """Kind and task of a simulator's id, unless somebody has registered a maker under it."""
    return None if id in ENVS else simulator_of(id)


def is_simulator(id: str) -> bool:
    """Whether the id is a simulator's task."""
    return find_simulator(id) is not None


def runs_alone(id: str) -> bool:
    """Whether the id is a task of a simulator of which a process holds one."""
    simulator = find_simulator(id)
    return simulator is not None and simulator[0].alone


def find_maker(id: str) -> Maker | None:
    """The maker of a registered id or of "module:function"; None where Gymnasium or EnvPool may have the id."""
    if id in ENVS:
        return ENVS[id]
    module_name, colon, name = id.partition(":")
    if not colon:
        return None
    module = import_named(module_name, id)  # which may register the name, with us or with Gymnasium
    if name in ENVS:
        return ENVS[name]
    if gymnasium_spec(name) is not None:
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


def call_maker(
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


def summary_of(id: str) -> str:
    """First line of a maker's docstring, with the options that it fixes; or the reason why it cannot be loaded."""
    try:
        make = ENVS[id]
    except (ImportError, ValueError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    function, fixed = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    line = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
    return line + (f" ({', '.join(f'{name} {value}' for name, value in fixed.items())})" if fixed else "")
