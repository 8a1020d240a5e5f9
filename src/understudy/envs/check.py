"""The gate for environments of the user's own: what is wrong with a `VecEnv`, its observations, its steps."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import check_action_space, component, component_keys, kind_of, shape_of
from understudy.envs.base import Step, VecEnv
from understudy.envs.observations import group_leaves

_MEMBERS = ("num_envs", "device", "observation_space", "action_space", "reset", "step", "close")


def check_vec_env(env: Any) -> None:
    """Raise ValueError, with what is missing or wrong, unless an object is a `VecEnv`."""
    kind = env.__name__ if isinstance(env, type) else type(env).__name__
    if isinstance(env, str | type):
        what = f"the id {env!r} belongs in env.id" if isinstance(env, str) else f"build one: {kind}(...)"
        raise ValueError(f"an environment must be an object, got a {type(env).__name__}: {what}")
    missing = [name for name in _MEMBERS if name not in dir(env)]
    if missing:
        raise ValueError(
            f"{kind} is no environment that this library knows: a VecEnv has {', '.join(_MEMBERS)}, and this object "
            f"lacks {', '.join(missing)}; a Gymnasium (vector) environment or a simulator with rsl_rl's "
            "get_observations and step is taken as it is"
        )
    if not isinstance(env.num_envs, int) or env.num_envs < 1:
        raise ValueError(f"{kind}.num_envs must be a whole number of at least 1, got {env.num_envs!r}")
    if not isinstance(env.device, torch.device):
        raise ValueError(f"{kind}.device must be a torch.device, got {env.device!r}")
    if kind_of(env.observation_space) != "dict":
        raise ValueError(
            f"{kind}.observation_space must be a gymnasium.spaces.Dict of groups, as "
            f"{{'policy': Box(...)}}, got {env.observation_space}"
        )
    group_leaves(env.observation_space)
    check_action_space(env.action_space)


def check_observation(env: VecEnv, obs: Any) -> TensorDict:
    """The observation, if it is a TensorDict `[N]` of what the environment's space names; else ValueError."""
    kind = type(env).__name__
    if not isinstance(obs, TensorDict):
        raise ValueError(
            f"{kind} gave a {type(obs).__name__} as observation: return a TensorDict, for example "
            f"TensorDict({{'policy': tensor}}, batch_size=[{env.num_envs}])"
        )
    for key in component_keys(env.observation_space):
        value, name = obs.get(key, None), "/".join(key)
        shape = (env.num_envs, *shape_of(component(env.observation_space, key)))
        if value is None:
            raise ValueError(f"{kind} gave an observation without {name!r}, which its observation_space has")
        if value.shape != shape:
            raise ValueError(f"{kind}: observation {name!r} has shape {tuple(value.shape)}, its space says {shape}")
    if obs.batch_size != (env.num_envs,):
        raise ValueError(f"{kind}: observations have batch size {list(obs.batch_size)}, expected [{env.num_envs}]")
    return obs


def check_step(env: VecEnv, step: Any) -> Step:
    """The step, if it is a `Step` whose fields have one row per environment; else ValueError."""
    kind = type(env).__name__
    if not isinstance(step, Step):
        raise ValueError(f"{kind}.step returned a {type(step).__name__}: return an understudy.envs.Step")
    for name, value in (("reward", step.reward), ("terminated", step.terminated), ("truncated", step.truncated)):
        if not isinstance(value, Tensor) or value.shape != (env.num_envs,):
            raise ValueError(f"{kind}.step: {name} must be a tensor of shape [{env.num_envs}], got {value!r}")
    if step.terminated.dtype != torch.bool or step.truncated.dtype != torch.bool:
        raise ValueError(f"{kind}.step: terminated and truncated must be bool tensors")
    check_observation(env, step.obs)
    if step.final_obs is not None:
        check_observation(env, step.final_obs)
    return step
