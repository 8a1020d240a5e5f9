"""The door for environments: from an id and its options to a `VecEnv`; the config that names one; the list of ids."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import torch

from understudy.core.check import Config, Filled, In, checked, fit, nearest
from understudy.core.devices import cores
from understudy.core.extras import install
from understudy.envs.base import VecEnv
from understudy.envs.envpool import has_envpool, import_envpool, make_envpool
from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
from understudy.envs.gymnasium_ids import gymnasium_maker, gymnasium_spec
from understudy.envs.makers import (
    ENVS,
    OWN_TASKS,
    call_maker,
    find_maker,
    find_simulator,
    is_simulator,
    summary_of,
)
from understudy.envs.observations import Groups, Segments
from understudy.envs.processes import STEP_PAYS_FROM, process_vector_env, seconds_per_step
from understudy.envs.regrouped import ungrouped, with_groups
from understudy.envs.simulator import SimulatorAdapter
from understudy.envs.simulators import KINDS, Order, SimulatorKind

logger = logging.getLogger(__name__)

Backend = Literal["auto", "gymnasium", "processes", "envpool"]
KwargValue = int | float | bool | str
ENVPOOL_FROM = 16
"""From so many copies on, "auto" prefers EnvPool: below, calling into the thread pool costs more than a light step."""


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
    simulator = find_simulator(id)
    maker = None if simulator else find_maker(id)
    if (simulator or maker) and backend != "auto":
        raise ValueError(f"{id} is built by its own maker: leave the backend at 'auto'")
    if simulator is not None:
        kind, task = simulator
        order = Order(task, num_envs, torch.device(device), options, max_episode_steps, seed, render)
        return with_groups(kind.build(order, groups), segments=segments)
    if maker is not None:
        if max_episode_steps is not None:
            options["max_episode_steps"] = max_episode_steps
        return call_maker(id, maker, num_envs, torch.device(device), options, groups, segments)
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
    by_auto = config.backend == "auto" and not is_simulator(config.id) and find_maker(config.id) is None
    pool = by_auto and _choose(config.id, config.num_envs, "auto", bool(config.kwargs)) == "envpool"
    return dataclasses.replace(config, num_envs=num_envs, backend="envpool" if pool else config.backend)


def backend_of(config: EnvConfig, env: VecEnv) -> str:
    """Name of what steps the environment that the configuration has built, for people."""
    if (simulator := find_simulator(config.id)) is not None:
        return simulator[0].title
    if find_maker(config.id) is not None:
        return "its own maker"
    inner = ungrouped(env)
    if isinstance(inner, GymnasiumVectorAdapter):
        return f"gymnasium, {inner.num_envs} processes"
    return "gymnasium" if isinstance(inner, InProcessVectorEnv) else "envpool"


def make_render_env(config: EnvConfig) -> gym.Env[Any, Any]:
    """One Gymnasium environment of the configuration that renders "rgb_array" frames.

    To drive it with a policy: `as_vec_env(env, device, groups=..., segments=...)`. Raises ValueError for an id that
    only EnvPool or a maker has: neither draws. A simulator draws itself (`EnvConfig.make(render=True)`).
    """
    if find_simulator(config.id) is not None:
        raise ValueError(f"{config.id} is a simulator: build it with EnvConfig.make(render=True)")
    if find_maker(config.id) is not None:
        raise ValueError(f"{config.id} cannot be drawn: evaluate it without a video")
    if gymnasium_spec(config.id) is None:
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
    entries = [EnvEntry(id, "own" if id in OWN_TASKS else "registered", summary_of(id)) for id in ENVS]
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


def _choose(
    env_id: str, num_envs: int, backend: str, has_options: bool
) -> Literal["gymnasium", "processes", "envpool"]:
    """The backend that builds the id; ValueError if none does."""
    if backend == "envpool":
        return "envpool"  # make_envpool checks the id
    in_gymnasium = gymnasium_spec(env_id) is not None
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
