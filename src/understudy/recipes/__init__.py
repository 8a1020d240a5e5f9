"""Recipes: functions that return a complete, runnable `TrainConfig`. `understudy train NAME` runs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from understudy.core.registry import Registry

if TYPE_CHECKING:
    from understudy.recipes.adversarial import airl, bc_gail, gail
    from understudy.recipes.basic import a2c, cartpole, ppo
    from understudy.recipes.expert_tasks import advisor, crossings, light_house, poisoned_doors
    from understudy.recipes.imitation import bc, dagger
    from understudy.recipes.motion import appo, atppo, go1_trot
    from understudy.recipes.mujoco_tasks import demo_mujoco, mujoco
    from understudy.recipes.teacher import (
        distill,
        distill_then_ppo,
        estimator_ppo,
        estimator_tppo,
        go1_student,
        go1_teacher,
        tppo,
    )
    from understudy.runs.config import TrainConfig

__all__ = ["RECIPES", "find_recipe"]
__all__ += ["airl", "bc_gail", "gail"]
__all__ += ["a2c", "cartpole", "ppo"]
__all__ += ["advisor", "crossings", "light_house", "poisoned_doors"]
__all__ += ["bc", "dagger"]
__all__ += ["appo", "atppo", "go1_trot"]
__all__ += ["demo_mujoco", "mujoco"]
__all__ += ["distill", "distill_then_ppo", "estimator_ppo", "estimator_tppo", "go1_student", "go1_teacher", "tppo"]

_FILES = {
    "adversarial": ("airl", "bc_gail", "gail"),
    "expert_tasks": ("advisor", "crossings", "light_house", "poisoned_doors"),
    "basic": ("a2c", "cartpole", "ppo"),
    "imitation": ("bc", "dagger"),
    "motion": ("appo", "atppo", "go1_trot"),
    "mujoco_tasks": ("demo_mujoco", "mujoco"),
    "teacher": ("distill", "distill_then_ppo", "estimator_ppo", "estimator_tppo", "go1_student", "go1_teacher", "tppo"),
}


def command_name(name: str) -> str:
    """`demo_mujoco` as the command line writes it: `demo-mujoco`."""
    return name.replace("_", "-")


RECIPES: Registry[Callable[..., TrainConfig]] = Registry(
    "recipe",
    "understudy.recipes",
    {command_name(name): f"understudy.recipes.{file}:{name}" for file, names in _FILES.items() for name in names},
)
"""Command-line name -> recipe, imported on first use. A recipe can be called without arguments."""


def find_recipe(name: str) -> Callable[..., TrainConfig]:
    """The recipe called `name`, or `module:function`. Raises ValueError with the nearest names if there is none."""
    return RECIPES.find(name if ":" in name else command_name(name))


def __getattr__(name: str) -> Any:
    if name.startswith("_") or command_name(name) not in RECIPES:
        raise AttributeError(f"module 'understudy.recipes' has no attribute {name!r}")
    return RECIPES[command_name(name)]
