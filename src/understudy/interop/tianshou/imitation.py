"""`ImitationPolicy`: behaviour cloning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import nn

from understudy.interop.tianshou.base import Bound, Policy, take_step
from understudy.interop.tianshou.batches import Batch, as_batch, complete
from understudy.interop.tianshou.statistics import ImitationTrainingStats
from understudy.ppo.losses import check_same_shape


class ImitationPolicy(Policy):
    """Behaviour cloning with an actor of the user's (`actor(obs, state=, info=)` gives an output and a state).

    The actor's output is the action of a Box `[B, *A]` (squared error), or the logits of discrete actions `[B, A]`
    (cross-entropy). Raises ValueError for options that do not fit the action space.
    """

    def __init__(
        self,
        *,
        actor: nn.Module,
        optim: torch.optim.Optimizer,
        action_space: spaces.Space[Any],
        observation_space: spaces.Space[Any] | None = None,
        action_scaling: bool = False,
        action_bound_method: Bound = "clip",
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(
            actor, optim, action_space, observation_space, action_scaling, action_bound_method, lr_scheduler
        )

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """A batch of `logits` (the output), `act` (the mode) and `state`."""
        batch = as_batch(batch)
        logits, hidden = self.actor(batch.obs, state=state, info=batch.get("info"))
        act = logits if self.action_type == "continuous" else logits.argmax(dim=1)
        return Batch({"logits": logits, "act": act, "state": hidden})

    def learn(self, batch: Any, *args: Any, **kwargs: Any) -> ImitationTrainingStats:
        """One gradient step. Raises ValueError where actions and the actor's output have different shapes."""
        batch = complete(batch, "obs", "act")
        out = self(batch).logits
        target = torch.as_tensor(batch.act, device=out.device)
        if self.action_type == "continuous":
            target = target.to(out.dtype)
            check_same_shape({"the actor's output": out, "batch.act": target})
            loss = F.mse_loss(out, target)
        else:
            loss = F.cross_entropy(out, target.long())
        take_step(self.optim, loss)
        return ImitationTrainingStats(loss=loss.item())
