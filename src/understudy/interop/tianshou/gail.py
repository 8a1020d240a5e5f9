"""`GAILPolicy`: a discriminator's reward, and PPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from understudy.interop.tianshou.base import Bound, take_step
from understudy.interop.tianshou.batches import as_batch, as_buffer, complete
from understudy.interop.tianshou.ppo import PPOPolicy
from understudy.interop.tianshou.statistics import GailTrainingStats, summaries
from understudy.parts.shared.discriminator import discriminator_loss, discriminator_reward


class GAILPolicy(PPOPolicy):
    """GAIL (Ho & Ermon 2016, arXiv:1606.03476) with PPO: the user's actor, critic and discriminator.

        r = -log(1 - D(s, a)) = softplus(l),   l = disc_net([s, a])     (`discriminator_reward`, `discriminator_loss`)

    `disc_update_num` gradient steps of the discriminator come before PPO's. `expert_buffer`: Tianshou's, another
    `Buffer`, or a plain batch of `obs` and `act`, as the actor gives them (before `map_action`). Discrete actions enter
    `disc_net` one-hot. Raises ValueError for options out of range.
    """

    def __init__(
        self,
        *,
        actor: nn.Module,
        critic: nn.Module,
        optim: torch.optim.Optimizer,
        dist_fn: Callable[[Any], torch.distributions.Distribution],
        action_space: spaces.Space[Any],
        expert_buffer: Any,
        disc_net: nn.Module,
        disc_optim: torch.optim.Optimizer,
        disc_update_num: int = 4,
        eps_clip: float = 0.2,
        dual_clip: float | None = None,
        value_clip: bool = False,
        advantage_normalization: bool = True,
        recompute_advantage: bool = False,
        vf_coef: float = 0.5,
        ent_coef: float = 0.01,
        max_grad_norm: float | None = None,
        gae_lambda: float = 0.95,
        max_batchsize: int = 256,
        discount_factor: float = 0.99,
        reward_normalization: bool = False,
        deterministic_eval: bool = False,
        observation_space: spaces.Space[Any] | None = None,
        action_scaling: bool = True,
        action_bound_method: Bound = "clip",
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(
            actor=actor,
            critic=critic,
            optim=optim,
            dist_fn=dist_fn,
            action_space=action_space,
            eps_clip=eps_clip,
            dual_clip=dual_clip,
            value_clip=value_clip,
            advantage_normalization=advantage_normalization,
            recompute_advantage=recompute_advantage,
            vf_coef=vf_coef,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            gae_lambda=gae_lambda,
            max_batchsize=max_batchsize,
            discount_factor=discount_factor,
            reward_normalization=reward_normalization,
            deterministic_eval=deterministic_eval,
            observation_space=observation_space,
            action_scaling=action_scaling,
            action_bound_method=action_bound_method,
            lr_scheduler=lr_scheduler,
        )
        if disc_update_num < 1:
            raise ValueError(f"disc_update_num must be at least 1, got {disc_update_num}")
        self.disc_net, self.disc_optim, self.disc_update_num = disc_net, disc_optim, disc_update_num
        self.expert_buffer = as_buffer(expert_buffer)

    def disc(self, batch: Any) -> Tensor:
        """The discriminator's logits `[n, 1]`: high for transitions that look like the expert's."""
        batch = complete(batch, "obs", "act")
        like = next(self.disc_net.parameters())
        act = torch.as_tensor(batch.act, device=like.device)
        if isinstance(self.action_space, spaces.Discrete):
            act = F.one_hot(act.long().flatten(), int(self.action_space.n))
        if not isinstance(batch.obs, np.ndarray | Tensor):
            raise ValueError(
                "disc_net takes one array of observations, these are nested: join them in a disc of your own"
            )
        rows = [torch.as_tensor(batch.obs, device=like.device), act]
        logits: Tensor = self.disc_net(torch.cat([x.to(like.dtype).flatten(1) for x in rows], dim=1))
        return logits

    def process_fn(self, batch: Any, buffer: Any = None, indices: np.ndarray | None = None) -> Any:
        """As `PPOPolicy.process_fn`, with the discriminator's reward in place of the batch's."""
        batch = as_batch(batch)
        with torch.no_grad():
            batch.rew = discriminator_reward(self.disc(batch), "softplus").flatten().cpu().numpy()
        return super().process_fn(batch, buffer, indices)

    def learn(self, batch: Any, batch_size: int | None, repeat: int, *args: Any, **kwargs: Any) -> GailTrainingStats:
        """The discriminator's steps on the batch, then PPO's. Raises ValueError for fewer rows than steps."""
        batch = as_batch(batch)
        size = len(batch.act) // self.disc_update_num
        if size < 1:
            raise ValueError(
                f"{len(batch.act)} rows cannot be split among disc_update_num = {self.disc_update_num} steps: collect "
                "more or lower it"
            )
        told: list[tuple[float, ...]] = []
        for part in batch.split(size, merge_last=True):
            policy, expert = self.disc(part).flatten(), self.disc(self.expert_buffer.sample(size)[0]).flatten()
            loss = discriminator_loss(policy, expert)
            take_step(self.disc_optim, loss)
            told.append((loss.item(), (policy < 0).float().mean().item(), (expert > 0).float().mean().item()))
        found = summaries(told, "disc_loss", "acc_pi", "acc_exp")
        return GailTrainingStats(**found | self._pass_over(batch, batch_size, repeat))
