"""AllenAct's ADVISOR losses under their own names, for its engine or a loop of one's own, over this library's formulas.

Tensors are AllenAct's: T steps of N samplers, labels and values `[T, N, 1]`. AllenAct need not be installed; where it
is, the classes inherit its `AbstractActorCriticLoss`, so that its engine runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from understudy.parts.advisor import expert_weight, imitation_loss, smooth_over_time, smoothing_steps
from understudy.parts.shared.expert_labels import masked_mean
from understudy.ppo.losses import clipped_surrogate, policy_gradient, value_loss

_Base: Any = object
try:  # its engine runs subclasses of this class only
    from allenact.algorithms.onpolicy_sync.losses import abstract_loss

    _Base = abstract_loss.AbstractActorCriticLoss
except ImportError:
    pass

Batch = Mapping[str, Any]
"""Entries of `RolloutStorage.batched_experience_generator`: `observations`, `actions`, `returns`, `masks`, ..."""
Info = dict[str, float]
Terms = dict[str, tuple[Tensor, float | None]]
"""Loss of each step `[T, N, 1]` and coefficient: `value`, `action`, `entropy`."""


class ActorCriticOutput(NamedTuple):
    """What an actor-critic returns, as AllenAct's class of this name, which serves as well."""

    distributions: Any  # of torch.distributions.Categorical, batch shape [T, N]
    values: Tensor  # [T, N, 1]
    extras: dict[str, Any]  # "auxiliary_distributions", as `distributions`


@runtime_checkable
class StepLoss(Protocol):
    """A reinforcement-learning loss that says its terms step by step, as AllenAct's `PPO` and `A2C`."""

    def loss_per_step(self, step_count: int, batch: Batch, actor_critic_output: Any) -> Any:
        """`Terms`, or a tuple that begins with them."""


class AlphaScheduler:
    """Alpha as a function of the steps taken in the current stage."""

    def next(self, step_count: int, *args: Any) -> float:
        """Alpha at `step_count`."""
        raise NotImplementedError


class LinearAlphaScheduler(AlphaScheduler):
    """From `start` to `end` over `total_steps`, then `end`."""

    def __init__(self, start: float, end: float, total_steps: int) -> None:
        self.start, self.end, self.total_steps = start, end, total_steps

    def next(self, step_count: int, *args: Any) -> float:
        """start (1 - p) + end p, p = min(step_count / total_steps, 1)."""
        p = min(step_count / self.total_steps, 1.0)
        return self.start * (1.0 - p) + self.end * p


class PPO(_Base):
    """AllenAct's clipped PPO loss: clip (also of the value) and coefficients as there, nothing changed in place."""

    def __init__(
        self,
        clip_param: float,
        value_loss_coef: float,
        entropy_coef: float,
        use_clipped_value_loss: bool = True,
        clip_decay: Callable[[int], float] | None = None,
        normalize_advantage: bool = True,
    ) -> None:
        super().__init__()
        self.clip_param, self.value_loss_coef, self.entropy_coef = clip_param, value_loss_coef, entropy_coef
        self.use_clipped_value_loss, self.clip_decay = use_clipped_value_loss, clip_decay
        self.advantage = "norm_adv_targ" if normalize_advantage else "adv_targ"

    def loss_per_step(self, step_count: int, batch: Batch, actor_critic_output: Any) -> Terms:
        """The three terms, `[T, N, 1]` each."""
        clip = self.clip_param * (1.0 if self.clip_decay is None else self.clip_decay(step_count))
        log_ratio = _log_prob(actor_critic_output.distributions, batch["actions"]) - batch["old_action_log_probs"]
        old, limit = (batch["values"], clip) if self.use_clipped_value_loss else (None, None)
        value = 0.5 * value_loss(actor_critic_output.values, batch["returns"], old, limit)
        action = clipped_surrogate(log_ratio, batch[self.advantage], clip, clip)
        return _terms(self, value, action, actor_critic_output)

    def loss(
        self, step_count: int, batch: Batch, actor_critic_output: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Info]:
        """Sum of the terms' means, times their coefficients."""
        return _sum_of("ppo_total", self.loss_per_step(step_count, batch, actor_critic_output))


class A2C(_Base):
    """AllenAct's A2C loss: policy gradient with the advantages as they are, squared value error."""

    def __init__(self, value_loss_coef: float, entropy_coef: float) -> None:
        super().__init__()
        self.value_loss_coef, self.entropy_coef = value_loss_coef, entropy_coef

    def loss_per_step(self, step_count: int, batch: Batch, actor_critic_output: Any) -> Terms:
        """The three terms, `[T, N, 1]` each."""
        value = 0.5 * value_loss(actor_critic_output.values, batch["returns"])
        log_prob = _log_prob(actor_critic_output.distributions, batch["actions"])
        return _terms(self, value, policy_gradient(log_prob, batch["adv_targ"].detach()), actor_critic_output)

    def loss(
        self, step_count: int, batch: Batch, actor_critic_output: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Info]:
        """Sum of the terms' means, times their coefficients."""
        return _sum_of("a2c_total", self.loss_per_step(step_count, batch, actor_critic_output))


class AdvisorImitationStage(_Base):
    """ADVISOR's first stage (Weihs et al. 2021, arXiv:2007.12173): main and auxiliary actor imitate alike.

        L = sum(m * -log pi(e)) / max(sum(m), 1) + sum(m * -log pi_aux(e)) / max(sum(m), 1)

    `batch["observations"]` holds `expert_action` `[T, N, 2]` (e, then m = 1 where the expert has an action), or
    `expert_policy` `[T, N, A + 1]` (probabilities, then m), of which the cross-entropy counts. The model's
    `extras["auxiliary_distributions"]` is pi_aux. Raises ValueError for a batch or an output without them.
    """

    def loss(
        self, step_count: int, batch: Batch, actor_critic_output: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Info]:
        """The loss (0-D) and its parts, for the log."""
        label = _read_label(batch)
        main, aux = (masked_mean(cost, label.mask) for cost in _costs(actor_critic_output, label))
        total = main + aux
        return total, _numbers({"main_expert_ce_loss": main, "aux_expert_ce_loss": aux, "total_loss": total})


class AdvisorWeightedStage(_Base):
    """ADVISOR's second stage: imitate where the auxiliary actor can, follow `rl_loss` elsewhere.

        w = m * pi_aux(e)^alpha, 0 where pi_aux(e) < bound (no gradient)
        L = sum(m * -log pi_aux(e)) / max(sum(m), 1) + mean(w * -log pi(e))
            + mean((1 - w) * action) + entropy_coef * mean((1 - w) * -H) + value_loss_coef * mean(value)

    `rl_loss`: a `PPO` or `A2C`, AllenAct's or the one here, a builder (called without arguments) of one, or None: no
    reinforcement learning. `alpha_scheduler.next(step_count=...)` replaces `fixed_alpha`. A
    `smooth_expert_weight_decay` r spreads each weight over the `smooth_expert_steps` steps after it, within its
    episode (`batch["masks"]` 0: an episode starts). Labels as in `AdvisorImitationStage`; a batch without any is plain
    reinforcement learning. Raises ValueError for r outside (0, 1) and an `rl_loss` without `loss_per_step`.
    """

    def __init__(
        self,
        rl_loss: StepLoss | Callable[[], StepLoss] | None,
        fixed_alpha: float = 1.0,
        fixed_bound: float = 0.1,
        alpha_scheduler: AlphaScheduler | None = None,
        smooth_expert_weight_decay: float | None = None,
    ) -> None:
        super().__init__()
        if rl_loss is not None and not isinstance(rl_loss, StepLoss):
            rl_loss = rl_loss()
        if rl_loss is not None and not isinstance(rl_loss, StepLoss):
            raise ValueError(f"rl_loss must be a PPO or A2C loss, a builder of one or None, got {rl_loss!r}")
        self.rl_loss = rl_loss
        self.alpha, self.bound, self.alpha_scheduler = fixed_alpha, fixed_bound, alpha_scheduler
        self.smooth_expert_weight_decay = r = smooth_expert_weight_decay
        if r is not None and not 0.0 < r < 1.0:
            raise ValueError(f"smooth_expert_weight_decay must lie in (0, 1), got {r}")
        self.smooth_expert_steps = None if r is None else smoothing_steps(r)

    def loss(
        self, step_count: int, batch: Batch, actor_critic_output: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Info]:
        """The loss (0-D) and its parts, for the log."""
        if self.alpha_scheduler is not None:
            self.alpha = self.alpha_scheduler.next(step_count=step_count)
        label = _read_label(batch)
        main_cost, aux_cost = _costs(actor_critic_output, label)
        weight = expert_weight(aux_cost.detach() - label.entropy, label.mask, self.alpha, self.bound)
        if self.smooth_expert_weight_decay is not None:
            if "masks" not in batch:
                raise ValueError('smooth_expert_weight_decay needs batch["masks"], 0 where an episode starts')
            is_first = batch["masks"].reshape(weight.shape) == 0
            weight = smooth_over_time(weight, is_first, self.smooth_expert_weight_decay) * label.mask
        aux = masked_mean(aux_cost, label.mask)
        main = imitation_loss(main_cost, weight, label.mask, 0.0)
        total = aux + main
        info = {
            "aux_expert_ce_loss": aux,
            "weighted_main_expert_ce_loss": main,
            "non_zero_weight": (weight > 0).to(weight.dtype).mean(),
            "weight": weight.mean(),
        }
        if self.rl_loss is not None:
            terms = self.rl_loss.loss_per_step(
                step_count=step_count, batch=batch, actor_critic_output=actor_critic_output
            )
            extra, parts = _reinforcement(terms[0] if isinstance(terms, tuple) else terms, 1.0 - weight)
            total, info = total + extra, info | parts
        return total, _numbers({**info, "total_loss": total})


class GroupedActionImitation(_Base):
    """Imitates an expert that only says from which group its action is: -mean log sum of pi over the group.

    `action_groups` partition the `nactions` actions; `batch["observations"]["expert_group_action"]` `[T, N]` or
    `[T, N, 1]` is a group's number, or the number of groups where the expert says nothing. Raises ValueError for
    groups that are not a partition.
    """

    def __init__(self, nactions: int, action_groups: Sequence[set[int]]) -> None:
        super().__init__()
        if sorted(action for group in action_groups for action in group) != list(range(nactions)):
            raise ValueError(f"action_groups must hold each of the actions 0 to {nactions - 1} once: {action_groups}")
        rows = [[action in group for action in range(nactions)] for group in action_groups]
        self.members = torch.tensor([*rows, [True] * nactions])  # [G + 1, A]

    def loss(
        self, step_count: int, batch: Batch, actor_critic_output: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Info]:
        """The loss (0-D), and the same for the log."""
        log_p = _log_probs(actor_critic_output.distributions)
        group = batch["observations"]["expert_group_action"].reshape(log_p.shape[:-1])
        inside = self.members.to(log_p.device)[group]
        total = -log_p.masked_fill(~inside, -torch.inf).logsumexp(-1).mean()
        return total, _numbers({"grouped_action_cross_entropy": total})


class _Label(NamedTuple):
    mask: Tensor  # [T, N, 1] bool: True with a label
    target: Tensor  # [T, N, 1] int64 action, or [T, N, A] probabilities
    is_action: bool
    entropy: Tensor  # of the label, 0-D or [T, N, 1]: what the cross-entropy exceeds the KL by


def _read_label(batch: Batch) -> _Label:
    obs = batch["observations"]
    if "expert_action" in obs:
        said = obs["expert_action"]
        if said.shape[-1] != 2:
            raise ValueError(
                f"expert_action has shape {tuple(said.shape)}: expected [..., 2], the expert's discrete action and its "
                "success, as ExpertActionSensor gives them"
            )
        mask = said[..., 1:] > 0
        return _Label(mask, torch.where(mask, said[..., :1], 0).long(), True, torch.zeros((), device=said.device))
    if "expert_policy" in obs:
        mask, policy = obs["expert_policy"][..., -1:] > 0, obs["expert_policy"][..., :-1]
        policy = torch.where(mask, policy, 1.0 / policy.shape[-1])
        return _Label(mask, policy, False, -torch.special.xlogy(policy, policy).sum(-1, keepdim=True))
    raise ValueError(f"ADVISOR needs an observation expert_action or expert_policy, the batch has {', '.join(obs)}")


def _costs(out: Any, label: _Label) -> tuple[Tensor, Tensor]:
    """Cross-entropy from the expert to the main and to the auxiliary actor, `[T, N, 1]` each."""
    if "auxiliary_distributions" not in out.extras:
        raise ValueError(
            'ADVISOR needs extras["auxiliary_distributions"], the distribution of an auxiliary actor, in the output of '
            "the model"
        )
    main, aux = (
        _cost(distribution, label) for distribution in (out.distributions, out.extras["auxiliary_distributions"])
    )
    return main, aux


def _cost(distribution: Any, label: _Label) -> Tensor:
    if label.is_action:
        return -_log_prob(distribution, label.target)
    return -(label.target * _log_probs(distribution)).sum(-1, keepdim=True)


def _log_prob(distribution: Any, action: Tensor) -> Tensor:
    """log pi(action) `[T, N, 1]` of actions `[T, N, 1]` (or `[T, N]`, as some storages keep them)."""
    action = action.reshape(distribution.logits.shape[:-1])  # a trailing 1 would broadcast in torch's own class
    log_prob: Tensor = distribution.log_prob(action)
    return log_prob.unsqueeze(-1)


def _log_probs(distribution: Any) -> Tensor:
    logits: Tensor = distribution.logits
    return logits.log_softmax(-1)


def _terms(loss: PPO | A2C, value: Tensor, action: Tensor, out: Any) -> Terms:
    entropy = out.distributions.entropy().reshape(action.shape)
    return {"value": (value, loss.value_loss_coef), "action": (action, None), "entropy": (-entropy, loss.entropy_coef)}


def _reinforcement(terms: Terms, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The terms with action and entropy weighted `[T, N, 1]`, added up, and each for the log."""
    (value, value_coef), (action, action_coef), (entropy, entropy_coef) = (
        terms[name] for name in ("value", "action", "entropy")
    )
    weighted = (weight * action.reshape(weight.shape)).mean() * (1.0 if action_coef is None else action_coef)
    scattered = (weight * entropy.reshape(weight.shape)).mean() * (1.0 if entropy_coef is None else entropy_coef)
    total = weighted + scattered + value.mean() * (1.0 if value_coef is None else value_coef)
    return total, {"value_loss": value.mean(), "weighted_action_loss": weighted, "entropy_loss": entropy.mean()}


def _sum_of(name: str, terms: Terms) -> tuple[Tensor, Info]:
    means = {term: loss.mean() for term, (loss, _) in terms.items()}
    total = torch.stack([means[term] * (1.0 if coef is None else coef) for term, (_, coef) in terms.items()]).sum()
    return total, _numbers({name: total, **means})


def _numbers(info: Mapping[str, Tensor]) -> Info:
    """AllenAct's engine takes numbers."""
    return {name: float(x.detach()) for name, x in info.items()}
