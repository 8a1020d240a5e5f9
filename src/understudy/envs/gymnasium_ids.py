"""Gymnasium's ids: finding the specification of one, and building a copy of it."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from understudy.core.extras import install
from understudy.envs.gate import raised
from understudy.types import UnderstudyError

logger = logging.getLogger(__name__)


def gymnasium_maker(
    env_id: str, env_kwargs: Mapping[str, Any], max_episode_steps: int | None = None
) -> Callable[[], gym.Env[Any, Any]]:
    """A function that builds one copy, without Gymnasium's per-step checks (the adapter resets before it steps)."""
    spec = copy.deepcopy(gymnasium_spec(env_id))
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


def gymnasium_spec(env_id: str) -> EnvSpec | None:
    """The registered spec, if there is one; "module:Id-v0" imports the module first, which registers it."""
    module_name, colon, name = env_id.rpartition(":")
    if colon:
        import_named(module_name, env_id)
    try:
        return gym.spec(name)
    except gym.error.Error:
        return None


def import_named(module_name: str, id: str) -> Any:
    """The module that an id names; ValueError if it cannot be imported."""
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
