"""Batches and rollouts of a TensorDict loop under the names that parts read (`understudy.types.ROLLOUT_KEYS`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from understudy.core.spaces import Key
from understudy.interop.torchrl.actions import Heads, fitted, joined_entry
from understudy.interop.torchrl.entries import MASKS, head_key, key_name, mask_of, number, per_sample, stored
from understudy.interop.torchrl.modules import Actor, add_heads, inputs_of, memory_of
from understudy.nn.protocol import Policy

_NAMES: dict[str, NestedKey] = {
    "log_prob": "action_log_prob",
    "advantage": "advantage",
    "value_target": "value_target",
    "value": "state_value",
}
"""Numbers of a batch that parts read, and TorchRL's names of them."""

_RESERVED = {*_NAMES.values(), "next", "collector", "reward", "done", "terminated", "truncated", "is_init", "index"}
_RESERVED |= {key for key in MASKS if isinstance(key, str)} | {"episode_reward", "step_count", "sample_log_prob"}
"""Entries that are no observations."""

_ACTION = "store the sampled action when collecting"
_NEXT = 'pass the rollout as the collector gives it, with the entries of "next"'
PRIMER = "append the memory's make_tensordict_primer() to the environment, as TorchRL's page does, and an InitTracker"


class Rows:
    """Reads batches like the first one, `like`, for a part beside an actor and a critic.

    The actor's entries are the group "policy", those of a critic that reads others "critic", every other entry a group
    of its own name: floating ones, flags, and what looks like the action. `given` are spaces of entries that cannot be
    told by their type. Raises ValueError for entries that are missing.
    """

    def __init__(
        self,
        like: TensorDictBase,
        actor: Actor,
        critic: TensorDictModuleBase | None,
        heads: Heads,
        action_space: spaces.Space[Any],
        given: Mapping[str, spaces.Space[Any]],
    ) -> None:
        self.heads, self.action_space = heads, action_space
        self.memory = memory_of(actor, critic)
        made = {*actor.out_keys, *([] if critic is None else critic.out_keys)}
        inner = {*self.memory, "is_init"} if self.memory else set()
        groups: dict[str, list[NestedKey]] = {"policy": [key for key in inputs_of(actor) if key not in inner]}
        of_critic = [] if critic is None else [key for key in critic.in_keys if key not in made | inner]
        if set(of_critic) - set(actor.in_keys):
            groups["critic"] = of_critic
        self.places: dict[Key, tuple[NestedKey, torch.dtype]] = {}
        self.spaces: dict[str, Any] = {}
        for group, entries in groups.items():
            leaves = {key_name(key): stored(like, key, "the actor or the critic reads it") for key in entries}
            observed = {name: _observed(x, like.ndim) for name, x in leaves.items()}
            several = len(observed) > 1
            self.spaces[group] = spaces.Dict(observed) if several else next(iter(observed.values()))
            for key, (name, x) in zip(entries, leaves.items()):
                self.places[(group, name) if several else (group,)] = key, x.dtype
        self.composed: dict[str, Heads] = {}
        action = joined_entry(like, heads, _ACTION) if len(heads) > 1 else stored(like, next(iter(heads)), _ACTION)
        taken = {
            *_RESERVED,
            *made,
            *inner,
            *actor.in_keys,
            *self.spaces,
            *(key if isinstance(key, str) else key[0] for key in heads),
        }
        for name in (str(key) for key in like.sorted_keys if key not in taken):
            self._add(name, like.get(name), action, like.ndim, given)
        if unknown := given.keys() - self.spaces.keys():
            raise ValueError(f"observation_spaces names {sorted(unknown)}, but the batch has {sorted(self.spaces)}")

    def _add(self, name: str, x: Any, action: Tensor, dims: int, given: Mapping[str, spaces.Space[Any]]) -> None:
        """A group for an entry that neither network reads, if a part could read it."""
        if isinstance(x, TensorDictBase):
            alike: Any = {(name, *_tail(key)): space for key, space in self.heads.items()}
            if len(self.heads) > 1 and all(x.get(_tail(key), None) is not None for key in self.heads):
                self.spaces[name], self.composed[name] = self.action_space, alike
        elif isinstance(x, Tensor):
            same = not x.dtype.is_floating_point and (x.shape, x.dtype) == (action.shape, action.dtype)
            feature = x.dtype.is_floating_point or x.dtype in (torch.uint8, torch.bool)
            space = given.get(name) or (self.action_space if same else _observed(x, dims) if feature else None)
            if space is not None:
                self.spaces[name], self.places[name,] = space, (name, x.dtype)

    def read(self, batch: TensorDictBase, policy: Policy) -> TensorDict:
        """A batch under the names of a rollout, of the same batch size; `is_first` where the batch has "is_init"."""
        size = batch.batch_size
        rows = TensorDict({}, batch_size=size, device=batch.device)
        rows["obs"] = self.observations(batch, policy)
        executed = joined_entry(batch, self.heads, _ACTION)
        raw = policy.action_map.inverse(executed)
        rows["action"] = raw if raw.is_floating_point() else raw.to(policy.head.action_dtype)
        rows["executed_action"] = executed
        mask = mask_of(batch)
        rows["valid"] = torch.ones(size, dtype=torch.bool, device=executed.device) if mask is None else mask
        for name, key in _NAMES.items():
            if (x := batch.get(key, None)) is not None and x.shape in (size, (*size, 1)):
                rows[name] = x.reshape(size)
        log_probs = [batch.get(head_key(key), None) for key in self.heads]
        if "log_prob" not in rows.keys() and all(x is not None for x in log_probs):  # noqa: SIM118
            rows["log_prob"] = add_heads(log_probs, size)
        if (starts := batch.get("is_init", None)) is not None:
            rows["is_first"] = per_sample(starts, "'is_init'", size)
        if self.memory:
            rows["state"] = torch.cat([stored(batch, key, PRIMER).flatten(batch.ndim) for key in self.memory], -1)
        return rows

    def observations(self, batch: TensorDictBase, policy: Policy) -> TensorDict:
        """The components that a batch has."""
        obs = TensorDict({}, batch_size=batch.batch_size, device=batch.device)
        for ours, (theirs, _) in self.places.items():
            if (x := batch.get(theirs, None)) is not None:
                obs[ours] = fitted(x, policy.component(ours), batch.ndim, key_name(theirs))
        for name, heads in self.composed.items():
            if batch.get(name, None) is not None:
                obs[name] = joined_entry(batch, heads, "the entries before have it")
        return obs

    def read_rollout(self, rollout: TensorDictBase, policy: Policy) -> TensorDict:
        """A rollout `[N, T]` or `[T]` of TorchRL's as one of ours, `[T, N]`."""
        next_step = rollout.get("next", None)
        if next_step is None:
            raise ValueError('a rollout has the entries of "next": pass it as the collector gives it')
        rows, next_step = self.read(rollout, policy), next_step.copy()
        done = number(next_step, "done", _NEXT).bool()
        ended = done if next_step.get("terminated", None) is None else number(next_step, "terminated", _NEXT).bool()
        rows["terminated"], rows["truncated"] = ended, done & ~ended
        rows["next_obs"] = self.observations(next_step, policy)
        rows["task_reward"] = number(next_step, "reward", _NEXT)
        return _sound(columns(rows))


def columns(rows: TensorDict) -> TensorDict:
    """Rows `[N, T]` (or `[T]`) of TorchRL's in the order of ours, `[T, N]`."""
    return rows.reshape(-1, rows.batch_size[-1]).transpose(0, 1).contiguous()


def _tail(key: Any) -> tuple[str, ...]:
    """What tells a head of a composite action from the others: its key without the group of all heads."""
    return (key,) if isinstance(key, str) else key[1:] or key


def _sound(rows: TensorDict) -> TensorDict:
    """Rows with a number that is not finite are no transitions: one would stop a part's learning for good."""
    keys: Any = [key for key in rows.keys(True, True) if key == "task_reward" or key[0] in ("obs", "next_obs")]
    for key in keys:
        if (x := rows[key]).is_floating_point():
            rows["valid"] = rows["valid"] & x.isfinite().reshape(*rows.batch_size, -1).all(-1)
            rows[key] = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return rows


def _observed(x: Tensor, batch_dims: int) -> spaces.Space[Any]:
    """The space of an entry that is read as it is."""
    shape = tuple(x.shape[batch_dims:])
    if x.dtype == torch.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    if x.dtype == torch.bool:
        return spaces.MultiBinary(shape) if shape else spaces.Discrete(2)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)
