"""Tasks of GPU simulators by id: `mjlab:TASK`, `isaaclab:TASK`, `maniskill:TASK`, `playground:TASK`."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch

from understudy.core.check import fit, nearest
from understudy.core.extras import install
from understudy.envs.observations import Groups
from understudy.envs.simulator import SimulatorAdapter


class Order(NamedTuple):
    """What is asked of a simulator."""

    task: str
    num_envs: int
    device: torch.device
    options: Mapping[str, Any]
    max_episode_steps: int | None = None
    seed: int | None = None
    render: bool = False  # build it so that `render` gives a picture


class Built(NamedTuple):
    """A simulator, and what only its builder knows."""

    env: Any
    groups: Groups | None = None  # None: by convention
    reseed: Callable[[int], None] | None = None


@dataclass(frozen=True)
class SimulatorKind:
    """One family of simulators; the module `understudy.envs.simulators.<name>` has `tasks`, `build` and `numbers`."""

    name: str
    package: str
    """Whose import says whether it is installed."""
    title: str
    hint: str
    """How to install it."""
    alone: bool = False
    """Whether a process holds at most one of it."""
    unbounded: bool = False
    """Whether its actions have no bounds: a policy's are not to be clipped to [-1, 1]."""

    @property
    def installed(self) -> bool:
        """Whether the package is there; it is not imported."""
        return importlib.util.find_spec(self.package) is not None

    def require(self, task: str) -> Any:
        """The module that speaks to it. Raises ImportError that says how to install the simulator."""
        if not self.installed:
            raise ImportError(f"{self.name}:{task} needs {self.title} (package {self.package}): {self.hint}")
        return import_module(f"{__name__}.{self.name}")

    def tasks(self) -> Sequence[str]:
        """Names of all tasks that are registered."""
        found: Sequence[str] = self.require("TASK").tasks()
        return found

    def numbers(self, task: str) -> Any | None:
        """The task's own configuration of rsl_rl's runner, None if it has none. Raises as `build`."""
        module = self.require(task)
        if self.alone:  # its tasks are known once it runs
            module.prepare(Order(task, 1, torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), {}))
        check_task(self.name, task, module.tasks())
        return module.numbers(task)

    def build(self, order: Order, groups: Groups | None = None) -> SimulatorAdapter:
        """The task's environment. Raises ValueError for an unknown task or option (with the nearest), ImportError."""
        module = self.require(order.task)
        if self.alone and (other := _OPEN.get(self.name)) is not None:
            raise ValueError(
                f"{self.title} runs one simulator per process, and {self.name}:{other} is open: close it first, or "
                "pass that environment on (env=...)"
            )
        if self.alone:
            module.prepare(order)
        check_task(self.name, order.task, module.tasks())
        built: Built = module.build(order)
        closed = functools.partial(_OPEN.pop, self.name, None)
        env = SimulatorAdapter(built.env, groups or built.groups, reseed=built.reseed, on_close=closed)
        if self.alone:
            _OPEN[self.name] = order.task
        return env


_OPEN: dict[str, str] = {}
"""Kind -> task of the simulator that is open, for kinds of which a process holds one."""

KINDS = {
    kind.name: kind
    for kind in (
        SimulatorKind("mjlab", "mjlab", "mjlab", install("mjlab"), unbounded=True),
        SimulatorKind(
            "isaaclab",
            "isaaclab",
            "Isaac Lab",
            "install Isaac Sim and Isaac Lab (https://isaac-sim.github.io/IsaacLab) and understudy-rl in their Python",
            alone=True,
            unbounded=True,
        ),
        SimulatorKind("maniskill", "mani_skill", "ManiSkill", install("maniskill")),
        SimulatorKind("playground", "mujoco_playground", "MuJoCo Playground", install("playground")),
    )
}
"""Every kind by the first part of its ids."""


def simulator_of(id: str) -> tuple[SimulatorKind, str] | None:
    """Kind and task of a simulator's id, None for any other id."""
    name, colon, task = id.partition(":")
    return (KINDS[name], task) if colon and name in KINDS else None


def check_task(kind: str, task: str, known: Sequence[str]) -> None:
    """Raise ValueError with the nearest names for a task that is not registered."""
    if task not in known:
        raise ValueError(f"{kind} has no task {task!r}: {nearest(task, known)}")


def set_options(cfg: Any, options: Mapping[str, Any], id: str) -> None:
    """Set options in a simulator's configuration by their dotted place: `scene.num_envs`, `rewards.upright.weight`.

    Raises ValueError for a place that does not exist (with the nearest), or a value of another type than there is.
    """
    for place, value in options.items():
        *outer, last = place.split(".")
        holder, passed = cfg, ""
        for name in outer:
            holder, passed = _entry(holder, name, id, passed + name), f"{passed}{name}."
        before = _entry(holder, last, id, place)
        if before is not None and isinstance(before, bool | int | float | str):
            value = fit(type(before), value, f"{id}: {place}")
        if isinstance(holder, MutableMapping):
            holder[last] = value
        else:
            setattr(holder, last, value)


def _entry(holder: Any, name: str, id: str, place: str) -> Any:
    entries = holder if isinstance(holder, Mapping) else vars(holder)
    if name not in entries:
        raise ValueError(f"{id} has no option {place!r}: {nearest(name, map(str, entries))}")
    return entries[name]
