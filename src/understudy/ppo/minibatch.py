"""From a rollout to minibatches: shuffled, normalised, with the bounds of their losses, every tensor under its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import ranks
from understudy.core.capture import Batch, unbind
from understudy.core.spaces import unflatten
from understudy.nn.protocol import Policy
from understudy.ppo.config import PPOConfig
from understudy.ppo.losses import SURROGATES, normalize, surrogate_bounds, value_floor
from understudy.ppo.part import Losses, Part, Weights

COMPUTED = ("cost", "floor", "ceiling", "value_floor", "mask")
"""Names that a minibatch has beside those of the rollout: what the losses need and the policy does not change."""

_UNREAD = {"executed_action", "reward", "task_reward", "next_value", "next_obs"}
"""Names of the rollout that a minibatch leaves out (`next_obs` only where no part asked for it)."""


LARGE = 4096
"""Bytes of an entry from which on it is gathered minibatch by minibatch: a second copy of all images would double the
rollout, and saves no time."""


class Minibatches:
    """Draws the minibatches of an epoch: `[B]` samples, or `[T, B]` whole columns for a recurrent policy.

    Names: those of the rollout that the core's losses read, and all that parts may read if one has a loss or a
    weight; `cost`, `floor` and `ceiling` of the clipped surrogate and `value_floor` of the clipped value loss; `mask`
    (the rollout's `valid`) only if some row is invalid; and under `(part, "sample", ...)` what a part drew.
    """

    def __init__(
        self,
        policy: Policy,
        parts: Mapping[str, Part],
        config: PPOConfig,
        coefficients: nn.ModuleDict,
        generator: torch.Generator,
    ) -> None:
        self.policy, self.config, self.coefficients, self.generator = policy, config, coefficients, generator
        self.losses = {name: part for name, part in parts.items() if isinstance(part, Losses)}
        # a surrogate of the user's own may read what parts may read
        self.whole = config.surrogate not in SURROGATES or any(isinstance(x, Losses | Weights) for x in parts.values())

    def order(self, rollout: TensorDict) -> Tensor:
        """The rows of the rollout `[T, N]`, or its columns for a recurrent policy, as minibatches `[M, B]`."""
        T, N = rollout.batch_size
        count = N if self.policy.recurrent else T * N
        order = torch.randperm(count, generator=self.generator, device=self.generator.device)
        return order.view(self.config.minibatches, -1)

    def epoch(self, rollout: TensorDict, masked: bool, order: Tensor | None = None) -> Iterator[Batch]:
        """Every row of the rollout `[T, N]` once, in this `order` or in one of this epoch's own."""
        order = self.order(rollout) if order is None else order
        names = self._names(rollout)
        large = [name for name in names if rollout[name][0, 0].nbytes >= LARGE]
        epoch = {name: self._shuffle(rollout, name, order) for name in names if name not in large}
        if masked:
            epoch["mask"] = self._shuffle(rollout, "valid", order)
        self._normalize(epoch)
        self._add_bounds(epoch)
        for rows, batch in zip(order, unbind(epoch)):
            batch |= {name: self._shuffle(rollout, name, rows[None])[0] for name in large}
            yield batch | self._samples(batch)

    def _names(self, rollout: TensorDict) -> list[Any]:
        if self.whole:
            return [
                name for name in rollout.keys(True, True) if (name if isinstance(name, str) else name[0]) not in _UNREAD
            ]
        config = self.config
        names: list[Any] = [("obs", *key) for key in self.policy.input_keys]
        names += ["action", "log_prob", "advantage", "value_target"]
        names += ["value"] if config.value_clip is not None else []
        names += ["params"] if config.desired_kl is not None else []
        names += ["state", "is_first"] if self.policy.recurrent else []
        return names + [name for name in ("on_policy",) if name in rollout.keys()]  # noqa: SIM118

    def _shuffle(self, rollout: TensorDict, name: Any, order: Tensor) -> Tensor:
        """`[T, N, ...]` -> `[M, B, ...]`, or `[M, T, B, ...]` for a recurrent policy."""
        leaf, flat = rollout[name], order.flatten()
        if name == "state":  # the same for all t: gather one step, not T
            return leaf[0].index_select(0, flat).unflatten(0, order.shape).unsqueeze(1).expand(-1, len(leaf), -1, -1)
        if self.policy.recurrent:
            return torch.stack([leaf.index_select(1, columns) for columns in order])
        return leaf.flatten(0, 1).index_select(0, flat).unflatten(0, order.shape)

    def _normalize(self, epoch: dict[Any, Tensor]) -> None:
        advantage, where = epoch["advantage"], self.config.advantage_normalization
        if where != "none":
            dims = None if where == "rollout" else tuple(range(1, advantage.ndim))
            total = ranks.total if ranks.count() > 1 else None
            epoch["advantage"] = normalize(advantage, epoch.get("mask"), dims=dims, total=total)

    def _add_bounds(self, epoch: dict[Any, Tensor]) -> None:
        """Clip bounds and value floors of all minibatches at once: the losses then need a third of the operations."""
        config, coefficients = self.config, self.coefficients
        if config.surrogate == "clip":
            clip = (coefficients["clip_low"](), coefficients["clip_high"]())
            bounds = surrogate_bounds(epoch["advantage"], *clip, config.dual_clip)
            epoch |= {name: x for name, x in bounds._asdict().items() if x is not None}
        if config.value_clip is not None:
            target, value = epoch["value_target"], epoch["value"]
            epoch["value_floor"] = value_floor(target, value, coefficients["value_clip"](), config.loss_critic_type)

    def _samples(self, batch: Batch) -> dict[Any, Tensor]:
        """What the parts draw for one minibatch."""
        drawn: dict[Any, Tensor] = {}
        nested = nest(batch, self.policy.recurrent) if self.losses else None
        for name, part in self.losses.items():
            assert nested is not None
            sample = part.sample(nested)
            if sample is not None:
                for key in sample.keys(True, True):
                    drawn[name, "sample", *((key,) if isinstance(key, str) else key)] = sample[key]
        return drawn


def nest(batch: Batch, recurrent: bool) -> TensorDict:
    """A minibatch as the TensorDict that policy and parts read: `[B]` or `[T, B]`, `[]` if parts drew other sizes."""
    size = batch["action"].shape[: 2 if recurrent else 1]
    fits = all(x.shape[: len(size)] == size for x in batch.values())
    return unflatten(batch, batch.values(), size if fits else [])
