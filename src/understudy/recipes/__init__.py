"""Recipes: functions that return a complete, runnable `TrainConfig`. `understudy train <name>` runs one."""

from __future__ import annotations

from understudy.recipes.adversarial import airl, bc_gail, gail
from understudy.recipes.advisor import advisor, crossings, light_house, poisoned_doors
from understudy.recipes.basic import a2c, cartpole, ppo
from understudy.recipes.imitation import bc, dagger
from understudy.recipes.motion import appo, atppo, go1_trot
from understudy.recipes.mujoco_tasks import demo_mujoco, mujoco
from understudy.recipes.registry import RECIPES, find_recipe, summary
from understudy.recipes.teacher import distill, estimator_ppo, estimator_tppo, go1_student, go1_teacher, tppo

__all__ = [
    "RECIPES",
    "a2c",
    "advisor",
    "airl",
    "appo",
    "atppo",
    "bc",
    "bc_gail",
    "cartpole",
    "crossings",
    "dagger",
    "demo_mujoco",
    "distill",
    "estimator_ppo",
    "estimator_tppo",
    "find_recipe",
    "gail",
    "go1_student",
    "go1_teacher",
    "go1_trot",
    "light_house",
    "mujoco",
    "poisoned_doors",
    "ppo",
    "summary",
    "tppo",
]
