"""What collectors and trainers of Tianshou call, and what the three policies share."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import GenericAlias
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.interop.tianshou.batches import Batch, array, as_batch, as_buffer
from understudy.interop.tianshou.statistics import TrainingStats

Bound = Literal["clip", "tanh"] | None


class Policy(nn.Module):
    """A policy of Tianshou's, but for `forward` and `learn`."""

    __class_getitem__: Any = classmethod(GenericAlias)  # GAILPolicy[GailTrainingStats], as in annotations there

    def __init__(
        self,
        actor: nn.Module,
        optim: torch.optim.Optimizer,
        action_space: spaces.Space[Any],
        observation_space: spaces.Space[Any] | None,
        action_scaling: bool,
        action_bound_method: Bound,
        lr_scheduler: Any,
    ) -> None:
        super().__init__()
        if action_bound_method not in ("clip", "tanh", None):
            raise ValueError(f"action_bound_method must be 'clip', 'tanh' or None, got {action_bound_method!r}")
        continuous = isinstance(action_space, spaces.Box)
        if action_scaling and not continuous:
            raise ValueError(f"action_scaling is for a Box, the action space is {action_space}: set it to False")
        if not continuous and not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(f"the action space is {action_space}: these policies act in a Box or in discrete spaces")
        self.actor, self.optim, self.lr_scheduler = actor, optim, lr_scheduler
        self.action_space, self.observation_space = action_space, observation_space
        self.action_scaling, self.action_bound_method = action_scaling, action_bound_method
        self.action_type = "continuous" if continuous else "discrete"
        self.agent_id = 0
        self.updating = self.is_within_training_step = False

    def map_action(self, act: Tensor | np.ndarray, batch: Any = None) -> np.ndarray:
        """The action for the environment `[..., *A]` of the actor's: bounded, then scaled. Only for a Box.

            "clip": a = clip(a, -1, 1)      "tanh": a = tanh(a)      scaling: low + (high - low) (a + 1) / 2

        Without scaling too, "clip" means [-1, 1] and not the bounds of the space, as there. Raises ValueError for
        scaling without a bound where an action lies outside [-1, 1].
        """
        a = array(act)
        if not isinstance(self.action_space, spaces.Box):
            return a
        if self.action_bound_method is not None:
            a = np.clip(a, -1.0, 1.0) if self.action_bound_method == "clip" else np.tanh(a)
        if self.action_scaling:
            if not (np.abs(a) <= 1.0).all():
                raise ValueError(
                    f"action_scaling takes actions in [-1, 1], got {a}: set action_bound_method to 'clip' or 'tanh'"
                )
            low, high = self.action_space.low, self.action_space.high
            a = low + (high - low) * (a + 1.0) / 2.0
        return a

    def map_action_inverse(self, act: Tensor | np.ndarray) -> np.ndarray:
        """The actor's action of one for the environment, such as a random one; clipping cannot be undone."""
        a = array(act)
        if isinstance(self.action_space, spaces.Box):
            if self.action_scaling:
                low, high = self.action_space.low, self.action_space.high
                a = (a - low) * 2.0 / np.maximum(high - low, np.finfo(np.float32).eps) - 1.0
            if self.action_bound_method == "tanh":
                a = np.arctanh(a)
        return a

    @torch.no_grad()
    def compute_action(self, obs: Any, info: Any = None, state: Any = None) -> Any:
        """The environment's action of a single observation: an int, or an array `[*A]`."""
        act = self(Batch({"obs": np.asarray(obs)[None], "info": info}), state).act
        mapped = self.map_action(act)[0]
        return int(mapped) if isinstance(self.action_space, spaces.Discrete) else mapped

    def exploration_noise(self, act: Any, batch: Any) -> Any:
        """The action as it is: these policies explore by their distribution."""
        return act

    def process_buffer(self, buffer: Any) -> Any:
        """The buffer as it is."""
        return buffer

    def process_fn(self, batch: Any, buffer: Any = None, indices: np.ndarray | None = None) -> Any:
        """The batch as it is."""
        return as_batch(batch)

    def post_process_fn(self, batch: Any, buffer: Any, indices: np.ndarray) -> None:
        """Nothing: these policies set no priorities."""

    def learn(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Gradient steps on a batch."""
        raise NotImplementedError

    def update(self, sample_size: int | None, buffer: Any, **kwargs: Any) -> Any:
        """`process_fn` and `learn` (which gets `kwargs`) on `sample_size` rows of a buffer; 0: on all, in order.

        `buffer`: Tianshou's, another `Buffer`, or a plain batch. Then the learning rate takes a step of its scheduler.
        """
        if buffer is None:
            return TrainingStats()
        start, training, source = time.time(), self.training, as_buffer(buffer)
        batch, indices = source.sample(sample_size)  # type: ignore[arg-type]  # None: as many as there are
        self.updating = True
        try:
            batch = self.process_fn(batch, source, indices)
            self.train()
            stats = self.learn(batch, **kwargs)
            self.post_process_fn(batch, source, indices)
        finally:
            self.train(training)
            self.updating = False
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        stats.train_time = time.time() - start
        return stats


def take_step(
    optim: torch.optim.Optimizer, loss: Tensor, clipped: Iterable[Tensor] = (), max_norm: float | None = None
) -> None:
    """A gradient step. Raises ValueError, before it, for a loss that is not finite."""
    if not loss.isfinite():
        raise ValueError("the loss is not finite: look for NaN or infinity in the batch and in the networks' outputs")
    optim.zero_grad()
    loss.backward()
    if max_norm:
        nn.utils.clip_grad_norm_(clipped, max_norm)
    optim.step()


try:  # isinstance(policy, BasePolicy) holds, with the methods here
    from tianshou import policy as theirs

    theirs.BasePolicy.register(Policy)
except ImportError:
    pass
