"""Where a function becomes a command, and the options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff

F = TypeVar("F", bound=Callable[..., None])
Flag = FlagCreatePairsOff[bool]

COMMANDS: dict[str, Callable[..., None]] = {}
app = tyro.extras.SubcommandApp()


def command(name: str, of: tyro.extras.SubcommandApp = app) -> Callable[[F], F]:
    """Register a function as a command."""

    def register(function: F) -> F:
        COMMANDS[name] = function
        of.command(name=name.split()[-1])(function)
        return function

    return register


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """Another environment than the run's; another program's file and demonstrations have none."""

    id: str | None = None
    """Its id, as in training; None: the run's own."""
    backend: str = "auto"
    """What steps it, as in training."""
    groups: dict[str, str] = field(default_factory=dict)
    """Observation groups by name, {"policy": "state+height"}; empty: the environment's own."""
    kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Options of the environment."""
    max_episode_steps: int | None = None
    """Time limit in steps."""

    def config(self) -> Any:
        """An `EnvConfig`, or None. Raises ValueError for options of no environment."""
        from understudy.envs.registry import EnvConfig

        options = {name: value for name, value in vars(self).items() if value != vars(EnvOptions())[name]}
        if self.id is None and options:
            raise ValueError(f"--env.{next(iter(options))} goes with --env.id, which names the environment")
        return EnvConfig(**options) if options else None


NO_ENV = EnvOptions()
"""The default: the run's own, or none."""
