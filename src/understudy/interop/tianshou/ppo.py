"""`PPOPolicy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.interop.tianshou.base import Bound, Policy, take_step
from understudy.interop.tianshou.batches import Batch, as_batch, column, complete, unfinished_rows
from understudy.interop.tianshou.statistics import PPOTrainingStats, summaries
from understudy.ppo.losses import check_same_shape, clipped_surrogate, normalize, value_loss
from understudy.ppo.returns import ValueNormalizer, gae


class PPOPolicy(Policy):
    """PPO with an actor and a critic of the user's: `dist_fn(actor(obs, state=, info=)[0])` is the distribution.

        L = clip_loss + vf_coef vf_loss - ent_coef H     (`clipped_surrogate`, `value_loss`; advantages by `gae`)

    `value_clip` clips by `eps_clip` in the critic's units. `reward_normalization` scales returns, not rewards; together
    with `recompute_advantage` the scale moves at each recomputation, as there. `deterministic_eval` takes the mode
    unless `is_within_training_step`, which Tianshou's trainers set. Raises ValueError for options out of range.
    """

    def __init__(
        self,
        *,
        actor: nn.Module,
        critic: nn.Module,
        optim: torch.optim.Optimizer,
        dist_fn: Callable[[Any], torch.distributions.Distribution],
        action_space: spaces.Space[Any],
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
            actor, optim, action_space, observation_space, action_scaling, action_bound_method, lr_scheduler
        )
        for name, number in (("gae_lambda", gae_lambda), ("discount_factor", discount_factor)):
            if not 0.0 <= number <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {number}")
        if dual_clip is not None and not dual_clip > 1.0:
            raise ValueError(f"dual_clip must be greater than 1 (3 is usual) or None, got {dual_clip}")
        if not eps_clip >= 0.0 or max_batchsize < 1:
            raise ValueError(f"eps_clip must be at least 0 and max_batchsize 1, got {eps_clip} and {max_batchsize}")
        self.critic, self.dist_fn = critic, dist_fn
        self._actor_critic = nn.ModuleDict({"actor": actor, "critic": critic})  # the state dict has the keys of theirs
        self.eps_clip, self.dual_clip, self.value_clip = eps_clip, dual_clip, value_clip
        self.norm_adv, self.recompute_adv = advantage_normalization, recompute_advantage
        self.vf_coef, self.ent_coef, self.max_grad_norm = vf_coef, ent_coef, max_grad_norm
        self.gamma, self.gae_lambda, self.max_batchsize = discount_factor, gae_lambda, max_batchsize
        self.rew_norm, self.deterministic_eval = reward_normalization, deterministic_eval
        normalizer = ValueNormalizer("scale" if reward_normalization else "none", torch.device("cpu"))
        self._normalizer = (normalizer,)  # in a tuple: a state dict of theirs has no such entry

    @property
    def ret_rms(self) -> nn.Module:
        """Mean, var and count of the returns (`reward_normalization`)."""
        return self._normalizer[0].statistics

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """A batch of `logits` (the actor's output), `act`, `state` and `dist`."""
        batch = as_batch(batch)
        logits, hidden = self.actor(batch.obs, state=state, info=batch.get("info"))
        dist = self.dist_fn(logits)
        act = dist.mode if self.deterministic_eval and not self.is_within_training_step else dist.sample()
        return Batch({"logits": logits, "act": act, "state": hidden, "dist": dist})

    def process_fn(self, batch: Any, buffer: Any = None, indices: np.ndarray | None = None) -> Any:
        """The batch with `v_s`, `returns`, `adv` and `logp_old`, `[n]` each; rows in time, one episode after another.

        Without a buffer an episode ends at `terminated` or `truncated` and at the last row.
        """
        batch = complete(batch, "obs", "act", "rew", "terminated", "truncated", "obs_next")
        self._unfinished = unfinished_rows(batch, buffer, indices)
        self._add_returns(batch)
        batch.act = torch.as_tensor(batch.act).to(batch.v_s)
        with torch.no_grad():
            parts = batch.split(self.max_batchsize, shuffle=False, merge_last=True)
            batch.logp_old = torch.cat([self._log_prob(self(part).dist, part) for part in parts])
        return batch

    def learn(self, batch: Any, batch_size: int | None, repeat: int, *args: Any, **kwargs: Any) -> Any:
        """`repeat` passes over a processed batch in shuffled parts of `batch_size` rows (None: all at once)."""
        return PPOTrainingStats(**self._pass_over(batch, batch_size, repeat))

    def _add_returns(self, batch: Any) -> None:
        normalizer = self._normalizer[0]
        with torch.no_grad():
            parts = batch.split(self.max_batchsize, shuffle=False, merge_last=True)
            both = [(self.critic(part.obs), self.critic(part.obs_next)) for part in parts]
        v_s, following = (torch.cat([value.flatten(0) for value in side]) for side in zip(*both))
        # one column in time, in float64 on the CPU, as there
        columns = {name: column(batch[name]) for name in ("rew", "terminated", "truncated")}
        check_same_shape({"V(obs)": v_s, "batch.rew": columns["rew"].squeeze(1)})
        advantage, returns = gae(
            columns["rew"].double(),
            normalizer.to_reward_units(column(v_s).double()),
            normalizer.to_reward_units(column(following).double()),
            columns["terminated"],
            columns["truncated"].bool() | column(self._unfinished),
            self.gamma,
            self.gae_lambda,
        )
        batch.v_s, batch.adv = v_s, advantage.squeeze(1).to(v_s)
        batch.returns = normalizer.to_critic_units(returns).squeeze(1).to(v_s)
        normalizer.update(returns, torch.ones_like(returns, dtype=torch.bool))

    def _pass_over(self, batch: Any, batch_size: int | None, repeat: int) -> dict[str, Any]:
        """The gradient steps; entries of `PPOTrainingStats`."""
        batch = complete(batch, "obs", "act", "adv", "returns", "v_s", "logp_old")
        told: list[tuple[float, ...]] = []
        for step in range(repeat):
            if self.recompute_adv and step > 0:
                self._add_returns(batch)
            for part in batch.split(batch_size or -1, merge_last=True):
                terms = self._terms(part)
                take_step(self.optim, terms[0], self._actor_critic.parameters(), self.max_grad_norm)
                told.append(tuple(term.item() for term in terms))
        return summaries(told, "loss", "clip_loss", "vf_loss", "ent_loss") | {"gradient_steps": len(told)}

    def _terms(self, part: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dist = self(part).dist
        advantage = normalize(part.adv, eps=1e-8) if self.norm_adv else part.adv
        log_ratio = self._log_prob(dist, part) - part.logp_old
        clip_loss = clipped_surrogate(log_ratio, advantage, self.eps_clip, self.eps_clip, self.dual_clip).mean()
        old, limit = (part.v_s, self.eps_clip) if self.value_clip else (None, None)
        vf_loss = value_loss(self.critic(part.obs).flatten(), part.returns, old, limit).mean()
        entropy = dist.entropy().mean()
        return clip_loss + self.vf_coef * vf_loss - self.ent_coef * entropy, clip_loss, vf_loss, entropy

    def _log_prob(self, dist: torch.distributions.Distribution, part: Any) -> Tensor:
        log_prob: Tensor = dist.log_prob(part.act)
        if log_prob.ndim != 1:  # [n, 1] - [n] would broadcast
            raise ValueError(
                f"dist_fn's log_prob has shape {tuple(log_prob.shape)}, expected one number for each of the "
                f"{len(part.act)} rows: wrap a Normal in torch.distributions.Independent(..., 1)"
            )
        return log_prob
