"""`ClipPPOLoss`: PPO's loss for people with their own loop, a thin TensorDict module over `understudy.ppo.losses`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Never, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import CompositeDistribution, TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution
from torch.func import functional_call

from understudy.core.check import nearest
from understudy.core.schedules import Scalar, Schedule
from understudy.interop.torchrl.entries import MASKS, head_key, key_name, listed, mask_of, number, stored
from understudy.interop.torchrl.modules import (
    Actor,
    add_heads,
    distribution_of,
    entropy_of,
    log_prob_of,
    memory_of,
    run_critic,
    whole_columns,
)
from understudy.interop.torchrl.options import (
    CRITIC,
    ELSEWHERE,
    ENTROPY,
    AdvantageScale,
    Number,
    Reduction,
    TensorKeys,
    ValueType,
    check_modules,
    either,
    head_coefs,
    not_negative,
    refuse,
    written_log_prob,
)
from understudy.interop.torchrl.value_estimator import Estimator
from understudy.ppo.losses import ValueLossKind, check_kind, clipped_surrogate, normalize, value_loss
from understudy.ppo.metrics import explained_variance, ratio_statistics

TRUST_LOGS = {"kl_approx": "kl", "clip_fraction": "clip_fraction"}
BEHAVIOR_LOGS = {"ESS": "ess", "max_ratio": "ratio_max", "mean_ratio": "ratio_mean"}
"""Log entry -> name in `ratio_statistics`, of the ratio that is clipped and of the one that weighs."""


class ClipPPOLoss(TensorDictModuleBase):
    """The clipped PPO loss (arXiv:1707.06347) of a minibatch, with `tensordict.nn` modules as actor and critic.

    `actor` is a `ProbabilisticTensorDictSequential` (or a `ProbabilisticTensorDictModule`), `critic` a tensordict
    module that writes `value_key`. A trunk may be shared in two ways: both are complete (the trunk runs twice), or
    `critic` is only the value head and reads the hidden entries that the actor's pass leaves (it runs once).

        loss_objective = mean(-min(r A, clip(r, 1 - low, 1 + high) A)),   r = exp(log_prob - log_prob_old)
        loss_critic    = critic_coef * mean(value loss)
        loss_entropy   = -entropy_coef * mean(entropy)

    The total loss is the sum of the entries named `loss_*`; the others are detached, for logging: `entropy`,
    `kl_approx` (the estimator k3, mean((r - 1) - log r), never negative), `kl_k1` (mean(-log r): TorchRL's
    `kl_approx`), `clip_fraction`, `ESS` (one share over all samples, also of `[T, N]`), `max_ratio`, `mean_ratio`,
    `explained_variance`, `value_clip_fraction`.

    - `clip_epsilon`: one number, or (low, high). This, `clip_value` and the coefficients may be a `Schedule`:
      `advance_all(loss, ...)` moves them.
    - `clip_value`: None off, a number in value units, or True for `clip_epsilon`; then the batch holds the value from
      collection at `value_key`, and the loss is the pessimistic maximum (see `value_loss`).
    - `normalize_advantage`: per call, so per minibatch; `normalize_advantage_exclude_dims` keep statistics of their
      own. `advantage_norm` divides by its `scale()` instead. `samples_mc_entropy`: samples where the entropy has no
      closed form. `separate_losses`: parameters and hidden entries shared with the actor get no gradient of the value
      loss. `reduction` of the losses: "mean", "sum" or "none", one number for each sample.
    - A composite action's log-probs are added up: `log_prob_key` holds the sum, or each head has `<head>_log_prob`.
      `entropy_coef` may map heads to numbers. `log_prob_key` None is what the actor writes.
    - `max_importance_ratio` caps r: a capped sample keeps a rescaled gradient. With `delay_actor` the ratio is clipped
      around a copy of the actor, which `update_target` moves, and weighed by copy / behaviour policy (PPO-EWMA,
      arXiv:2110.00641).
    - `actor_network`, `critic_network`, `entropy_coeff` and `critic_coeff` are TorchRL's newer spellings.

    Every per-sample entry is `[B]` or `[B, 1]` (any batch size B), told apart by the batch size, never broadcast. Rows
    where an entry of `MASKS` is False do not count. Raises ValueError on unusable modules or options, and for a batch
    that lacks an entry, has one of another shape, or one that requires grad. Advantages are not computed here, as a
    minibatch has lost the order of time, unless `make_value_estimator` was called or `value_estimator_type` given: then
    a batch without them is taken as a rollout `[..., T]`.
    """

    def __init__(
        self,
        actor: Actor | None = None,
        critic: TensorDictModuleBase | None = None,
        *,
        clip_epsilon: Number | tuple[Number, Number] = 0.2,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coef: Number | Mapping[NestedKey, Number] = ENTROPY,
        critic_coef: Number = CRITIC,
        loss_critic_type: ValueLossKind = "smooth_l1",
        normalize_advantage: bool = False,
        normalize_advantage_exclude_dims: Sequence[int] = (),
        advantage_norm: AdvantageScale | None = None,
        separate_losses: bool = False,
        clip_value: bool | Number | None = None,
        reduction: Reduction | None = "mean",
        delay_actor: bool = False,
        max_importance_ratio: Number | None = None,
        value_estimator_type: ValueType = None,
        advantage_key: NestedKey = "advantage",
        value_target_key: NestedKey = "value_target",
        value_key: NestedKey = "state_value",
        log_prob_key: NestedKey | None = None,
        actor_network: Actor | None = None,
        critic_network: TensorDictModuleBase | None = None,
        entropy_coeff: Number | Mapping[NestedKey, Number] | None = None,
        critic_coeff: Number | None = None,
        device: torch.device | str | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__()
        refuse(unknown, type(self), ELSEWHERE)
        actor = either(("actor", actor), ("actor_network", actor_network), None)
        critic = either(("critic", critic), ("critic_network", critic_network), None)
        entropy_coef = either(("entropy_coef", entropy_coef), ("entropy_coeff", entropy_coeff), ENTROPY)
        critic_coef = either(("critic_coef", critic_coef), ("critic_coeff", critic_coeff), CRITIC)
        check_modules(actor, critic, value_key)
        assert actor is not None
        assert critic is not None
        check_kind(loss_critic_type)
        if samples_mc_entropy < 1:
            raise ValueError(f"samples_mc_entropy must be at least 1, got {samples_mc_entropy}")
        if (reduction := reduction or "mean") not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
        if advantage_norm is not None and normalize_advantage:
            raise ValueError("normalize_advantage and advantage_norm exclude each other: drop one of them")
        self.actor, self.critic = actor, critic
        self.entropy_bonus, self.samples_mc_entropy = entropy_bonus, samples_mc_entropy
        self.loss_critic_type: ValueLossKind = loss_critic_type
        self.normalize_advantage = normalize_advantage
        self.normalize_advantage_exclude_dims = tuple(normalize_advantage_exclude_dims)
        self.advantage_norm, self.reduction = advantage_norm, reduction
        first = next(actor.parameters(), None)
        device = first.device if device is None and first is not None else device
        self._set_clips(clip_epsilon, clip_value, max_importance_ratio, device)
        self.head_coefs = head_coefs(actor, entropy_coef, device)
        self.entropy_coef = Scalar(0.0 if isinstance(entropy_coef, Mapping) else entropy_coef, device)
        self.critic_coef = Scalar(critic_coef, device)
        self.target_actor = copy.deepcopy(actor).requires_grad_(False) if delay_actor else None
        # by name, not by reference: names survive a deepcopy of this module
        shared = {id(p) for p in actor.parameters()} if separate_losses else set()
        named = critic.named_parameters(remove_duplicate=False)
        self._shared = tuple(name for name, p in named if id(p) in shared)
        self._separate_losses = separate_losses
        heads = list(actor.dist_sample_keys)
        log_prob = written_log_prob(actor) if log_prob_key is None else log_prob_key
        action = heads[0] if len(heads) == 1 else heads
        self.tensor_keys = TensorKeys(advantage_key, value_target_key, value_key, log_prob, action)
        self.value_estimator: Callable[[TensorDictBase], Any] | None = None
        self.value_type: ValueType = None
        self._set_keys()
        if value_estimator_type is not None:
            self.make_value_estimator(value_estimator_type)

    def _set_clips(
        self,
        clip_epsilon: Number | tuple[Number, Number],
        clip_value: bool | Number | None,
        max_importance_ratio: Number | None,
        device: torch.device | str | None,
    ) -> None:
        low, high = clip_epsilon if isinstance(clip_epsilon, (tuple, list)) else (clip_epsilon, clip_epsilon)
        if clip_value is True and isinstance(clip_epsilon, (tuple, list)):
            raise ValueError("clip_value=True means clip_epsilon, which has two values here: give clip_value a number")
        self.clip_low = Scalar(not_negative("clip_epsilon", low), device)
        self.clip_high = self.clip_low if high is low else Scalar(not_negative("clip_epsilon", high), device)
        self.clip_value: Scalar | None = None
        if clip_value is not None and clip_value is not False:
            self.clip_value = Scalar(low if clip_value is True else not_negative("clip_value", clip_value), device)
        self.max_importance_ratio: Scalar | None = None
        if max_importance_ratio is not None:
            if not isinstance(max_importance_ratio, Schedule) and not max_importance_ratio > 0.0:
                raise ValueError(f"max_importance_ratio must be greater than 0, got {max_importance_ratio}")
            self.max_importance_ratio = Scalar(max_importance_ratio, device)

    # ------------------------------------------------------------------ TorchRL's words

    actor_network_params = critic_network_params = target_critic_network_params = None  # modules are used as they are
    actor_network = property(lambda self: self.actor, doc="The actor.")
    critic_network = property(lambda self: self.critic, doc="The critic.")
    entropy_coeff = property(lambda self: self.entropy_coef.value, doc="The buffer: `copy_` changes the number.")
    critic_coeff = property(lambda self: self.critic_coef.value, doc="The buffer: `copy_` changes the number.")

    @property
    def clip_epsilon(self) -> Tensor:
        """The buffer of a clip that is one number: `copy_` changes it. Raises ValueError for (low, high)."""
        if self.clip_low is not self.clip_high:
            raise ValueError("clip_epsilon is (low, high) here: use clip_low.value and clip_high.value")
        return self.clip_low.value

    def set_keys(self, **keys: NestedKey | list[NestedKey]) -> None:
        """Rename entries of the batch, see `TensorKeys`; raises ValueError, with the nearest one, for another name."""
        refuse(keys, TensorKeys)
        if "value" in keys:
            check_modules(self.actor, self.critic, keys["value"])
        heads = self.actor.dist_sample_keys
        for name in keys.keys() & {"action", "sample_log_prob"}:
            if isinstance(keys[name], list) and len(keys[name]) != len(heads):
                raise ValueError(f"set_keys({name}=) lists {len(keys[name])} keys, the actor samples {heads}")
        changed: Any = {name: key for name, key in keys.items() if key is not None}
        self.tensor_keys = replace(self.tensor_keys, **changed)
        self._set_keys()

    def make_value_estimator(
        self,
        value_type: ValueType = None,
        *,
        gamma: float | Tensor = 0.99,
        lmbda: float | Tensor = 0.95,
        **unknown: Never,
    ) -> ClipPPOLoss:
        """Compute advantages of batches without them, which are then rollouts `[..., T]`; returns this loss.

        "gae" (the default), "tdlambda", "td1" and "td0", or TorchRL's enumeration of them: `us.gae` with `lmbda`, 1 or
        0 in place of lambda. Anything else that can be called with a TensorDict is used as it is. `value_estimator`
        then takes whole rollouts, too. Raises ValueError for estimators that need more than a critic.
        """
        refuse(unknown, ClipPPOLoss.make_value_estimator)
        self.value_type = value_type
        name = "gae" if value_type is None else value_type.name if isinstance(value_type, Enum) else value_type
        if isinstance(name, str):
            lambdas = {"gae": lmbda, "tdlambda": lmbda, "td1": 1.0, "td0": 0.0}
            if name.lower() not in lambdas:
                raise ValueError(
                    f"the value estimator must be one of {', '.join(lambdas)}, got {name!r} "
                    f"({nearest(name, lambdas)}); pass any other one as an object"
                )
            self.value_estimator = Estimator(self, name.lower() == "gae", gamma, lambdas[name.lower()])
        elif callable(name) and not isinstance(name, type):
            self.value_estimator = name
        else:
            raise ValueError(f"the value estimator must be a name or an object to call, got {value_type!r}: build it")
        return self

    def update_target(self, eps: float = 0.0) -> None:
        """Move the copy of `delay_actor`: eps copy + (1 - eps) actor; 0 makes it the actor of now."""
        if self.target_actor is None:
            raise ValueError("there is no copy of the actor to move: build the loss with delay_actor=True")
        with torch.no_grad():
            for target, source in zip(self.target_actor.parameters(), self.actor.parameters()):
                target.lerp_(source, 1.0 - eps)

    # ------------------------------------------------------------------ the loss

    def _set_keys(self) -> None:
        keys = self.tensor_keys
        read = [*self.actor.in_keys, *self._actions().values(), *listed(keys.sample_log_prob)]
        read += [keys.advantage, keys.value_target, *([keys.value] if self.clip_value is not None else [])]
        made = {*self.actor.out_keys, *read}
        self.in_keys = list(dict.fromkeys([*read, *(key for key in self.critic.in_keys if key not in made)]))
        losses = ["loss_objective", *(["loss_entropy", "entropy"] if self.entropy_bonus else []), "loss_critic"]
        clipped = ["value_clip_fraction"] if self.clip_value is not None else []
        self.out_keys = [*losses, *TRUST_LOGS, "kl_k1", *BEHAVIOR_LOGS, "explained_variance", *clipped]

    def _actions(self) -> dict[NestedKey, NestedKey]:
        """What the actor samples -> its entry in a batch."""
        return dict(zip(self.actor.dist_sample_keys, listed(self.tensor_keys.action)))

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses and logs of a batch, a TensorDict of scalars without batch size; the input is left as it is.

        For an actor or a critic with a memory the batch is whole columns `[B, T]`.
        """
        with whole_columns(bool(memory_of(self.actor, self.critic))):
            return self._losses(tensordict)

    def _losses(self, tensordict: TensorDictBase) -> TensorDict:
        batch, keys = tensordict.copy(), self.tensor_keys  # shallow: the passes below write into it
        if batch.batch_size.numel() == 0:
            raise ValueError(f"the batch is empty, its batch size is {tuple(batch.batch_size)}")
        fresh = self.value_estimator is not None and batch.get(keys.advantage, None) is None
        if fresh:
            assert self.value_estimator is not None
            self.value_estimator(batch)
        # all that was stored is read first: the critic's pass overwrites the value of collection
        mask = mask_of(batch)
        advantage = _known(number(batch, keys.advantage, _ADVANTAGE), mask)
        target = _known(number(batch, keys.value_target, _ADVANTAGE), mask)
        old_value = None if self.clip_value is None else number(batch, keys.value, _VALUE)
        advantage = self._scaled(advantage, target, mask, fresh)
        dist, log_ratio, log_weight = self._log_ratios(batch)
        clip = self.clip_low(), self.clip_high()
        surrogate = clipped_surrogate(log_ratio, advantage, *clip)
        out = {"loss_objective": self._reduce(surrogate if log_weight is None else log_weight.exp() * surrogate, mask)}
        if self.entropy_bonus:
            out |= self._entropy_loss(dist, batch.batch_size, mask)
        value = self._value(batch)
        value_clip = None if self.clip_value is None else self.clip_value()
        errors = value_loss(value, target, old_value, value_clip, self.loss_critic_type)
        out["loss_critic"] = self.critic_coef() * self._reduce(errors, mask)
        out |= _ratio_logs(log_ratio, log_weight, advantage, clip, mask)
        out["explained_variance"] = explained_variance(value, target, mask)
        if old_value is not None and value_clip is not None:
            out["value_clip_fraction"] = _mean(((value.detach() - old_value).abs() > value_clip).to(value.dtype), mask)
        return TensorDict(out, batch_size=[])

    def _scaled(self, advantage: Tensor, target: Tensor, mask: Tensor | None, fresh: bool) -> Tensor:
        if self.advantage_norm is not None:
            if fresh and self.training:  # a batch that comes with advantages may come again
                self.advantage_norm.update((target if mask is None else target[mask]).unsqueeze(-1))
            return advantage / self.advantage_norm.scale().squeeze()
        if not self.normalize_advantage:
            return advantage
        # counted as TorchRL counts them: with the trailing 1
        excluded = {dim % (advantage.ndim + 1) for dim in self.normalize_advantage_exclude_dims}
        return normalize(advantage, mask, dims=[dim for dim in range(advantage.ndim) if dim not in excluded])

    def _reduce(self, loss: Tensor, mask: Tensor | None) -> Tensor:
        if self.reduction == "mean":
            return _mean(loss, mask)
        loss = _known(loss, mask)
        return loss.sum() if self.reduction == "sum" else loss

    def _log_ratios(self, batch: TensorDictBase) -> tuple[Distribution, Tensor, Tensor | None]:
        """The policy's distribution, log r, and the log of what a sample's loss is multiplied by, if by anything."""
        actions = {key: stored(batch, entry, _ACTION) for key, entry in self._actions().items()}
        old = self._old_log_prob(batch)
        self._drop_stale(batch)
        near, log_weight = old, None
        if self.target_actor is not None:
            with torch.no_grad():
                near = log_prob_of(distribution_of(self.target_actor, batch.copy()), actions, batch.batch_size)
            log_weight = near - old
        dist = distribution_of(self.actor, batch)
        log_ratio = log_prob_of(dist, actions, batch.batch_size) - near
        if self.max_importance_ratio is not None:  # a constant factor: a capped sample keeps the rest of its gradient
            room = self.max_importance_ratio().log() - log_ratio.detach()
            log_weight = torch.minimum(torch.zeros_like(room) if log_weight is None else log_weight, room)
        return dist, log_ratio, log_weight

    def _old_log_prob(self, batch: TensorDictBase) -> Tensor:
        """The log-prob of collection, `[B]`: one entry, or the sum over those of the heads."""
        key, heads = self.tensor_keys.sample_log_prob, list(self._actions().values())
        if len(heads) == 1 or (not isinstance(key, list) and batch.get(key, None) is not None):
            return number(batch, listed(key)[0], _LOG_PROB)
        keys = key if isinstance(key, list) else [head_key(head) for head in heads]
        return add_heads([stored(batch, head, _LOG_PROB) for head in keys], batch.batch_size)

    def _drop_stale(self, batch: TensorDictBase) -> None:
        """Forget what the actor's pass in collection left (parameters, hidden entries): only today's may be read."""
        kept = {*self.in_keys, *(head_key(key) for key in self.actor.dist_sample_keys), *MASKS}
        for key in self.actor.out_keys:
            if key not in kept and batch.get(key, None) is not None:
                del batch[key]

    def _entropy_loss(self, dist: Distribution, batch_size: torch.Size, mask: Tensor | None) -> dict[str, Tensor]:
        dists = dist.dists if isinstance(dist, CompositeDistribution) else {self.actor.dist_sample_keys[0]: dist}
        heads = {key: add_heads([entropy_of(head, self.samples_mc_entropy)], batch_size) for key, head in dists.items()}
        entropy = torch.stack([*heads.values()]).sum(0)
        bonus = self.entropy_coef() * entropy
        if self.head_coefs is not None:
            bonus = torch.stack([self.head_coefs[key_name(key)]() * x for key, x in heads.items()]).sum(0)
        return {"loss_entropy": -self._reduce(bonus, mask), "entropy": _mean(entropy.detach(), mask)}

    def _value(self, batch: TensorDictBase) -> Tensor:
        """The critic's value, `[B]`, after the actor's pass has left its hidden entries in `batch`."""
        if not self._separate_losses:
            return run_critic(self.critic, batch, self.tensor_keys.value)
        # a complete critic reaches the trunk through its parameters, a value head through the hidden entries
        parameters = dict(self.critic.named_parameters(remove_duplicate=False))
        detached = {name: parameters[name].detach() for name in self._shared}

        def critic(batch: TensorDictBase) -> Any:
            return functional_call(self.critic, detached, (batch.detach(),))

        return run_critic(self.critic, batch, self.tensor_keys.value, critic)


_ADVANTAGE = (
    "compute both over the whole rollout, before it is cut into minibatches, with "
    "advantage, value_target = us.gae(reward, value, next_value, terminated, truncated) on [T, N] tensors"
)
_VALUE = "clip_value needs the critic's value from collection"
_ACTION = "store the action that was sampled when collecting"
_LOG_PROB = (
    "store the log-prob of the action when collecting "
    "(return_log_prob=True in the ProbabilisticTensorDictModule), or set log_prob_key"
)


def _ratio_logs(
    log_ratio: Tensor,
    log_weight: Tensor | None,
    advantage: Tensor,
    clip: tuple[Tensor, Tensor],
    mask: Tensor | None,
) -> dict[str, Tensor]:
    def statistics(x: Tensor) -> dict[str, Tensor]:
        valid = None if mask is None else mask.reshape(1, -1)
        return ratio_statistics(x.reshape(1, -1), advantage.reshape(1, -1), *clip, valid)

    trust = statistics(log_ratio)
    behavior = trust if log_weight is None else statistics(log_ratio + log_weight)
    logs = {log: trust[name] for log, name in TRUST_LOGS.items()} | {"kl_k1": -_mean(log_ratio.detach(), mask)}
    return logs | {log: behavior[name] for log, name in BEHAVIOR_LOGS.items()}


def _known(x: Tensor, mask: Tensor | None) -> Tensor:
    # not a product: padding may be NaN
    return x if mask is None else torch.where(mask, x, 0.0)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.mean() if mask is None else _known(x, mask).sum() / mask.sum().clamp_min(1)
