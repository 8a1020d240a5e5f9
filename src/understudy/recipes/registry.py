"""The recipes by name. Nothing heavy is imported here, so that listing them is quick."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from understudy.runs.config import TrainConfig

Recipe = Callable[[], "TrainConfig"]
F = TypeVar("F", bound=Callable[..., "TrainConfig"])

RECIPES: dict[str, Recipe] = {}
"""Command-line name -> recipe. A recipe can be called without arguments."""


def recipe(function: F) -> F:
    """Register a function under its own name, `_` written as `-`; the docstring's first line describes it."""
    RECIPES[command_name(function.__name__)] = function
    return function


def command_name(name: str) -> str:
    """`demo_mujoco` as the command line writes it: `demo-mujoco`."""
    return name.replace("_", "-")


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`. Raises ValueError with the nearest names if there is none."""
    key = command_name(name)
    if key not in RECIPES:
        near = get_close_matches(key, RECIPES, n=3, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(RECIPES))}"
        raise ValueError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[key]


def summary(item: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(item) or "").split("\n")[0]
