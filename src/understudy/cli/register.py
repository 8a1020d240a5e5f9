"""Where a function becomes a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

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
