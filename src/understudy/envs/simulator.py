"""rsl_rl-style GPU simulators (Isaac Lab, mjlab, Genesis, legged_gym forks) as a `VecEnv`, without a host sync."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import Step
from understudy.envs.gate import metric, raised
from understudy.envs.observations import DEFAULT_GROUP, Groups, group_leaves, leaves_space, regroup
from understudy.types import EnvError


@runtime_checkable
class Simulator(Protocol):
    """rsl_rl's environment interface, as far as it is used."""

    num_envs: int
    num_actions: int
    device: Any

    def get_observations(self) -> Any:
        """TensorDict `[N]`, or the older (obs `[N, D]`, extras)."""

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        """obs, reward `[N]`, dones `[N]`, extras."""


@runtime_checkable
class _Resets(Protocol):
    def reset(self) -> Any: ...


@runtime_checkable
class _Seeds(Protocol):
    def seed(self, seed: int) -> Any: ...


@runtime_checkable
class _Closes(Protocol):
    def close(self) -> None: ...


class SimulatorAdapter:
    """A simulator with rsl_rl's interface: ended environments are reset by the simulator.

    Per step, from `obs, reward, dones, extras = env.step(actions)`:

        truncated  = dones & extras["time_outs"]      (absent: no time limit, every end is a termination)
        terminated = dones & ~extras["time_outs"]
        final_obs  = extras["final_obs"], if given: TensorDict (or the "policy" tensor alone) with N rows, of which
                     only the ended ones count, or with only the K ended rows, in order of their environment
        metrics    = extras["log"] or extras["episode"], as they come

    `dones` and `time_outs` may be bool, int or float, `[N]` or `[N, 1]`. Nothing here waits for the device.
    Observations: a TensorDict of groups, or a tensor with `extras["observations"]` holding further groups (as before
    rsl_rl 3): the tensor is then "policy". `groups` regroups them by name, see `observation_leaves`. Spaces are
    unbounded Boxes made from the shapes, unless `action_space` is given.

    Raises ValueError if shapes do not fit, `WorkerError` when the simulator raises.
    """

    def __init__(
        self, env: Simulator, groups: Groups | None = None, action_space: spaces.Space[Any] | None = None
    ) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.device = torch.device(env.device)
        self.action_space = action_space or _unbounded((env.num_actions,))
        first = _as_groups(env.get_observations())
        if first.batch_size != (self.num_envs,):
            raise EnvError(
                f"the simulator has {self.num_envs} environments, but its observations have batch size "
                f"{tuple(first.batch_size)}"
            )
        self._leaves = group_leaves(_tree_space(first), groups)
        self.observation_space = leaves_space(self._leaves)
        # where the groups are the simulator's own, its TensorDict is handed on untouched
        self._as_is = {leaf.key for leaf in self._leaves} == _paths(first) and all(
            leaf.key == leaf.source and leaf.env_shape and leaf.of(value := first.get(leaf.source)) is value
            for leaf in self._leaves
        )

    def reset(self, seed: int | None = None) -> TensorDict:
        """Reset all environments if the simulator has `reset()` (and `seed(seed)`), else continue; obs `[N]`."""
        if seed is not None and isinstance(self.env, _Seeds):
            self.env.seed(seed)
        if isinstance(self.env, _Resets):
            self.env.reset()
        return self._regroup(_as_groups(self.env.get_observations()))

    def step(self, action: Tensor) -> Step:
        """Apply one action per environment, `[N, A]`."""
        name = type(self.env).__name__
        try:
            result = self.env.step(action)
        except Exception as error:
            raise raised(f"simulator {name}", "step", error) from error
        if len(result) != 4:
            raise EnvError(
                f"{name}.step returned {len(result)} values instead of (obs, reward, dones, extras): wrap it; "
                "legged_gym's privileged observations belong in extras['observations']['critic']"
            )
        raw_obs, reward, raw_dones, extras = result
        obs = self._regroup(_as_groups((raw_obs, extras) if isinstance(raw_obs, Tensor) else raw_obs))
        dones = self._flag("dones", raw_dones)
        truncated = dones & self._flag("time_outs", extras.get("time_outs", torch.zeros_like(dones)))
        final = self._final(extras["final_obs"], obs, dones) if extras.get("final_obs") is not None else None
        log = extras.get("log", extras.get("episode")) or {}
        metrics = {name: self._metric(name, value) for name, value in log.items()}
        return Step(obs, self._row("reward", reward).float(), dones & ~truncated, truncated, final, metrics)

    def close(self) -> None:
        """Close the simulator, if it can be closed."""
        if isinstance(self.env, _Closes):
            self.env.close()

    def _regroup(self, obs: TensorDict) -> TensorDict:
        return obs if self._as_is else regroup(obs, self._leaves)

    def _final(self, raw: Any, obs: TensorDict, dones: Tensor) -> TensorDict:
        """The final observations as `[N]`, whatever form they came in."""
        final = _as_groups(raw)
        missing = {leaf.source for leaf in self._leaves} - _paths(final)
        if missing:
            raise EnvError(
                f"extras['final_obs'] lacks {', '.join(sorted('.'.join(source) for source in missing))}: the value of "
                "the final observation needs every group; give all of them or leave final_obs out"
            )
        final = self._regroup(final)
        rows = final.batch_size[0]
        if rows == self.num_envs:
            return final
        if rows == 0:
            return obs  # no episode ended: no row of it is read
        # the k-th ended environment takes row k; the others take any. Static shapes, so no wait for the device
        index = (dones.cumsum(0) - 1).clamp_(0, rows - 1)  # [N]
        return final[index]

    def _metric(self, name: str, value: Any) -> Tensor:
        value = metric(f"the simulator's log {name!r}", value, self.device).detach().float()
        return value.reshape(()) if value.numel() == 1 else self._row(name, value)

    def _flag(self, name: str, value: Tensor) -> Tensor:
        value = self._row(name, value)
        return value if value.dtype == torch.bool else value != 0

    def _row(self, name: str, value: Tensor) -> Tensor:
        """`[N]` from `[N]` or `[N, 1]`; ValueError for anything else (it would broadcast)."""
        if value.shape == (self.num_envs,):
            return value
        if value.shape == (self.num_envs, 1):
            return value.squeeze(-1)
        raise EnvError(f"the simulator's {name} has shape {tuple(value.shape)}, expected [{self.num_envs}]")


def _as_groups(raw: Any) -> TensorDict:
    """Observations in any of the forms in use, as a TensorDict `[rows]` of groups."""
    if isinstance(raw, TensorDict):
        return raw
    extras: Mapping[str, Any] = {}
    if isinstance(raw, tuple):
        raw, extras = raw
    if isinstance(raw, Tensor):
        raw = {DEFAULT_GROUP: raw, **{k: v for k, v in extras.get("observations", {}).items() if k != DEFAULT_GROUP}}
    if isinstance(raw, Mapping):
        leaf: Any = raw
        while isinstance(leaf, Mapping):
            leaf = next(iter(leaf.values()))
        return TensorDict(dict(raw), batch_size=[leaf.shape[0]])
    raise EnvError(f"the simulator's observations are a {type(raw).__name__}; expected a TensorDict or a tensor")


def _paths(obs: TensorDict) -> set[tuple[str, ...]]:
    """The keys of all tensors, each as a tuple."""
    return {key if isinstance(key, tuple) else (key,) for key in obs.keys(include_nested=True, leaves_only=True)}


def _tree_space(obs: TensorDict) -> spaces.Dict:
    """The space of a TensorDict's rows: unbounded Boxes, images (uint8) from 0 to 255."""
    return spaces.Dict(  # an OrderedDict, or spaces.Dict would sort it
        OrderedDict(
            (name, _tree_space(value) if isinstance(value, TensorDict) else _tensor_space(value))
            for name, value in obs.items()
        )
    )


def _tensor_space(value: Any) -> spaces.Box:
    shape = tuple(value.shape[1:])
    if value.dtype.is_floating_point:
        return _unbounded(shape)  # whatever its width: the policy computes in float32
    dtype: Any = torch.empty(0, dtype=value.dtype).numpy().dtype.type
    if dtype == np.bool_:
        return spaces.Box(0, 1, shape, dtype)
    return spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype)


def _unbounded(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)
