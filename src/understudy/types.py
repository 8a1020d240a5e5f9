"""The words shared by every room: metrics, the table of rollout keys, and the errors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Metrics = dict[str, Tensor]
"""Named 0-D tensors on the device; read once per iteration, by the logger only."""


class RolloutKey(NamedTuple):
    """One row of the table of rollout keys."""

    name: str
    shape: str
    dtype: str
    writer: str
    meaning: str


ROLLOUT_KEYS: tuple[RolloutKey, ...] = (
    RolloutKey("obs", "[T, N, ...]", "as the space", "env", "raw observation groups the action was chosen from"),
    RolloutKey("is_first", "[T, N]", "bool", "env", "this observation is the first of an episode"),
    RolloutKey("action", "[T, N, *A]", "float32 / int64", "core", "raw action; every log-prob is of this one"),
    RolloutKey("executed_action", "[T, N, *A]", "as the space", "core", "what env.step received (clipped, rescaled)"),
    RolloutKey("params", "[T, N, P]", "float32", "core", "distribution parameters of the behaviour policy"),
    RolloutKey("log_prob", "[T, N]", "float32", "core", "log-prob of `action` under the behaviour policy"),
    RolloutKey("on_policy", "[T, N]", "bool", "core", "False where an Overrides part replaced the action"),
    RolloutKey(
        "state", "[T, N, S]", "float32", "core", "recurrent state before step 0 (same for all t; recurrent only)"
    ),
    RolloutKey("reward", "[T, N]", "float32", "env, then core", "task reward, then the total the returns are made of"),
    RolloutKey("task_reward", "[T, N]", "float32", "env", "reward as the environment gave it"),
    RolloutKey("terminated", "[T, N]", "bool", "env", "the task ended: no bootstrap"),
    RolloutKey("truncated", "[T, N]", "bool", "env", "a time limit: bootstrap from the true final observation"),
    RolloutKey("next_obs", "[T, N, ...]", "as the space", "core", "true next observation (only if a part asks for it)"),
    RolloutKey("valid", "[T, N]", "bool", "core", "False where the environment produced a non-finite number"),
    RolloutKey("value", "[T, N]", "float32", "core", "critic's value of obs, in its own units"),
    RolloutKey("next_value", "[T, N]", "float32", "core", "critic's value of the true next observation"),
    RolloutKey("advantage", "[T, N]", "float32", "core", "GAE advantage"),
    RolloutKey("value_target", "[T, N]", "float32", "core", "target of the value loss, in the critic's units"),
    RolloutKey("<part>", "[T, N, ...]", "part's", "part, by return", "what a Labels part returned at each step"),
)


class UnderstudyError(Exception):
    """Base of the library's own run-time errors (bad arguments are plain `ValueError`)."""


class NonFiniteError(UnderstudyError):
    """A NaN or infinity came from the environment or the policy and masking was not allowed or not possible."""


class EnvError(UnderstudyError, ValueError):
    """An environment gave something that it must not give; the message names it and its remedy."""


class WorkerError(UnderstudyError):
    """An environment (or its worker process) died; the message names it."""


class CheckpointError(UnderstudyError):
    """A checkpoint is unreadable, truncated, of another version or of another architecture."""
