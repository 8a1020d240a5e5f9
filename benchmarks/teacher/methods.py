"""The students that the tables compare: the library's recipes, and PPO alone on what such a student sees."""

from __future__ import annotations

import dataclasses
from typing import Any

import understudy as us
from understudy.core.check import nearest

STUDENTS = ("ppo", "estimator-ppo", "distill", "tppo", "estimator-tppo")


def student(
    method: str, env_id: str, *, teachers: tuple[str, ...] = (), total_steps: int, seed: int = 0
) -> us.TrainConfig:
    """A student without velocities that learns by one of `STUDENTS`. Raises ValueError for an unknown method."""
    if method not in STUDENTS:
        raise ValueError(f"there is no method {method!r}; {nearest(method, STUDENTS)}")
    if method == "ppo":
        config = us.recipes.estimator_ppo(env_id, total_steps=total_steps, seed=seed)
        policy = dataclasses.replace(config.policy, memory="gru", estimators={})
        return dataclasses.replace(config, recipe="ppo", policy=policy, parts={})
    recipe: Any = us.recipes.find_recipe(method)
    options = {} if method == "estimator-ppo" else {"teachers": teachers}
    return recipe(env_id, total_steps=total_steps, seed=seed, **options)
