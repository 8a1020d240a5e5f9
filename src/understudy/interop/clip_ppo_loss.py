"""`ClipPPOLoss`: PPO's loss for people with their own loop, a thin TensorDict module over `understudy.ppo.losses`."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from understudy.core.check import nearest
from understudy.core.schedules import Scalar, Schedule
from understudy.ppo.losses import ValueLossKind, check_kind, clipped_surrogate, normalize, value_loss
from understudy.ppo.metrics import explained_variance, ratio_statistics

LOGS = {
    "kl_approx": "kl",
    "clip_fraction": "clip_fraction",
    "ESS": "ess",
    "max_ratio": "ratio_max",
    "mean_ratio": "ratio_mean",
}
"""Log entry -> name in `ratio_statistics`."""


class ClipPPOLoss(TensorDictModuleBase):
    """The clipped PPO loss (arXiv:1707.06347) of a minibatch, with `tensordict.nn` modules as actor and critic.

    `actor` is a `ProbabilisticTensorDictSequential` (or a `ProbabilisticTensorDictModule`), `critic` a tensordict
    module that writes `value_key`. A trunk may be shared in two ways: both are complete (the trunk runs twice), or
    `critic` is only the value head and reads the hidden entries that the actor's pass leaves (it runs once).

        loss_objective = mean(-min(r A, clip(r, 1 - low, 1 + high) A)),   r = exp(log_prob - log_prob_old)
        loss_critic    = critic_coef * mean(value loss)
        loss_entropy   = -entropy_coef * mean(entropy)

    The total loss is the sum of the entries named `loss_*`; the others (`entropy`, `kl_approx`, `clip_fraction`,
    `ESS`, `max_ratio`, `mean_ratio`, `explained_variance`, `value_clip_fraction`) are detached, for logging.

    - `clip_epsilon`: one number, or (low, high). This, `clip_value` and the coefficients may be a `Schedule`:
      `advance_all(loss, ...)` moves them.
    - `clip_value`: None off, a number in value units, or True for `clip_epsilon`; then the batch holds the value from
      collection at `value_key`, and the loss is the pessimistic maximum (see `value_loss`).
    - `normalize_advantage`: per call, so per minibatch. `samples_mc_entropy`: samples where the entropy has no closed
      form. `separate_losses`: parameters and hidden entries shared with the actor get no gradient of the value loss.
    - A composite action's log-probs are added up: `log_prob_key` holds the sum, or each head has `<head>_log_prob`.

    Every per-sample entry is `[B]` or `[B, 1]` (any batch size B), told apart by the batch size, never broadcast.
    Raises ValueError on unusable modules or options, and for a batch that lacks an entry (advantages are never computed
    here: a minibatch has lost the order of time), has one of another shape, or one that requires grad.
    """

    def __init__(
        self,
        actor: ProbabilisticTensorDictSequential | ProbabilisticTensorDictModule,
        critic: TensorDictModuleBase,
        *,
        clip_epsilon: float | Schedule | tuple[float | Schedule, float | Schedule] = 0.2,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coef: float | Schedule = 0.01,
        critic_coef: float | Schedule = 1.0,
        loss_critic_type: ValueLossKind = "smooth_l1",
        normalize_advantage: bool = False,
        separate_losses: bool = False,
        clip_value: bool | float | Schedule | None = None,
        advantage_key: NestedKey = "advantage",
        value_target_key: NestedKey = "value_target",
        value_key: NestedKey = "state_value",
        log_prob_key: NestedKey = "action_log_prob",
    ) -> None:
        super().__init__()
        _check_modules(actor, critic, value_key)
        check_kind(loss_critic_type)
        if samples_mc_entropy < 1:
            raise ValueError(f"samples_mc_entropy must be at least 1, got {samples_mc_entropy}")
        low, high = clip_epsilon if isinstance(clip_epsilon, tuple) else (clip_epsilon, clip_epsilon)
        if clip_value is True and isinstance(clip_epsilon, tuple):
            raise ValueError("clip_value=True means clip_epsilon, which has two values here: give clip_value a number")
        self.actor = actor
        self.critic = critic
        self.entropy_bonus = entropy_bonus
        self.samples_mc_entropy = samples_mc_entropy
        self.loss_critic_type: ValueLossKind = loss_critic_type
        self.normalize_advantage = normalize_advantage
        self.advantage_key = advantage_key
        self.value_target_key = value_target_key
        self.value_key = value_key
        self.log_prob_key = log_prob_key
        first = next(actor.parameters(), None)
        device = None if first is None else first.device
        self.clip_low = Scalar(_not_negative("clip_epsilon", low), device)
        self.clip_high = Scalar(_not_negative("clip_epsilon", high), device)
        self.entropy_coef = Scalar(entropy_coef, device)
        self.critic_coef = Scalar(critic_coef, device)
        self.clip_value: Scalar | None = None
        if clip_value is not None and clip_value is not False:
            self.clip_value = Scalar(low if clip_value is True else _not_negative("clip_value", clip_value), device)
        # by name, not by reference: names survive a deepcopy of this module
        shared = {id(p) for p in actor.parameters()} if separate_losses else set()
        named = critic.named_parameters(remove_duplicate=False)
        self._shared = tuple(name for name, p in named if id(p) in shared)
        self._separate_losses = separate_losses
        self._set_keys()

    def _set_keys(self) -> None:
        read = [*self.actor.in_keys, *self.actor.dist_sample_keys, self.log_prob_key]
        read += [self.advantage_key, self.value_target_key, *([self.value_key] if self.clip_value is not None else [])]
        made = {*self.actor.out_keys, *read}
        self.in_keys = list(dict.fromkeys([*read, *(key for key in self.critic.in_keys if key not in made)]))
        losses = ["loss_objective", *(["loss_entropy", "entropy"] if self.entropy_bonus else []), "loss_critic"]
        clipped = ["value_clip_fraction"] if self.clip_value is not None else []
        self.out_keys = [*losses, *LOGS, "explained_variance", *clipped]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses and logs of a batch, a TensorDict of scalars without batch size; the input is left as it is."""
        batch = tensordict.copy()  # shallow: the passes below write into it
        if batch.batch_size.numel() == 0:
            raise ValueError(f"the batch is empty, its batch size is {tuple(batch.batch_size)}")
        # all that was stored is read first: the critic's pass overwrites the value of collection
        advantage = _data(batch, self.advantage_key, _ADVANTAGE)
        target = _data(batch, self.value_target_key, _ADVANTAGE)
        old_value = None if self.clip_value is None else _data(batch, self.value_key, _VALUE)
        if self.normalize_advantage:
            advantage = normalize(advantage)
        dist, log_prob, old_log_prob = self._log_probs(batch)
        log_ratio = log_prob - old_log_prob
        out = {"loss_objective": clipped_surrogate(log_ratio, advantage, self.clip_low(), self.clip_high()).mean()}
        if self.entropy_bonus:
            entropy = self._entropy(dist, batch.batch_size).mean()
            out["loss_entropy"] = -self.entropy_coef() * entropy
            out["entropy"] = entropy.detach()
        value = self._value(batch)
        clip = None if self.clip_value is None else self.clip_value()
        errors = value_loss(value, target, old_value, clip, self.loss_critic_type)
        out["loss_critic"] = self.critic_coef() * errors.mean()
        one_row = log_ratio.reshape(1, -1), advantage.reshape(1, -1)
        statistics = ratio_statistics(*one_row, self.clip_low(), self.clip_high())
        out |= {log: statistics[name] for log, name in LOGS.items()}
        out["explained_variance"] = explained_variance(value, target)
        if old_value is not None and clip is not None:
            out["value_clip_fraction"] = ((value.detach() - old_value).abs() > clip).to(value.dtype).mean()
        return TensorDict(out, batch_size=[])

    def _log_probs(self, batch: TensorDictBase) -> tuple[Distribution, Tensor, Tensor]:
        """The policy's distribution and the log-probs of the stored action, now and then, `[B]` each."""
        actions = {key: _stored(batch, key, _ACTION) for key in self.actor.dist_sample_keys}
        self._drop_stale(batch)
        dist = _distribution(self.actor, batch)
        if not isinstance(dist, CompositeDistribution):
            key = self.actor.dist_sample_keys[0]
            log_prob = dist.log_prob(actions[key])
            log_prob = _per_sample(log_prob, f"the log-prob of {key!r}", batch.batch_size, _ACTION_SHAPE)
            return dist, log_prob, _data(batch, self.log_prob_key, _LOG_PROB)
        # written out per head: what CompositeDistribution.log_prob returns depends on a global flag
        log_prob = _add_heads([head.log_prob(actions[key]) for key, head in dist.dists.items()], batch.batch_size)
        if batch.get(self.log_prob_key, None) is not None:
            return dist, log_prob, _data(batch, self.log_prob_key, _LOG_PROB)
        heads = [_stored(batch, _head_key(key), _LOG_PROB) for key in dist.dists]
        return dist, log_prob, _add_heads(heads, batch.batch_size)

    def _drop_stale(self, batch: TensorDictBase) -> None:
        """Forget what the actor's pass in collection left (parameters, hidden entries): only today's may be read."""
        kept = {*self.in_keys, *(_head_key(key) for key in self.actor.dist_sample_keys)}
        for key in self.actor.out_keys:
            if key not in kept and batch.get(key, None) is not None:
                del batch[key]

    def _entropy(self, dist: Distribution, batch_size: torch.Size) -> Tensor:
        heads = list(dist.dists.values()) if isinstance(dist, CompositeDistribution) else [dist]
        return _add_heads([_entropy(head, self.samples_mc_entropy) for head in heads], batch_size)

    def _value(self, batch: TensorDictBase) -> Tensor:
        """The critic's value, `[B]`, after the actor's pass has left its hidden entries in `batch`."""
        for key in self.critic.in_keys:
            if batch.get(key, None) is None:
                raise ValueError(
                    f"the critic reads {key!r}, which neither the batch nor the actor's pass provides: "
                    "pass a complete critic, trunk included"
                )
        if self._separate_losses:
            # a complete critic reaches the trunk through its parameters, a value head through the hidden entries
            parameters = dict(self.critic.named_parameters(remove_duplicate=False))
            detached = {name: parameters[name].detach() for name in self._shared}
            done = functional_call(self.critic, detached, (batch.detach(),))
        else:
            done = self.critic(batch)
        return _per_sample(done.get(self.value_key), f"the critic's {self.value_key!r}", batch.batch_size)


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
_ACTION_SHAPE = (
    "store the action in the shape that the distribution samples, and for a vector action wrap the distribution in "
    "torch.distributions.Independent"
)
_SHAPE = "give the tensordict its batch size, and every per-sample entry that shape, with or without a trailing 1"


def _distribution(actor: Any, batch: TensorDictBase) -> Distribution:
    """`actor.get_dist`, also where its last module is a sequence: there tensordict would run only what comes before."""
    if isinstance(actor, ProbabilisticTensorDictSequential) and not actor.return_composite:
        last = list(actor.module.values() if isinstance(actor.module, nn.ModuleDict) else actor.module)[-1]
        if isinstance(last, ProbabilisticTensorDictSequential):
            return _distribution(last, actor.get_dist_params(batch))
    return actor.get_dist(batch)


def _stored(batch: TensorDictBase, key: NestedKey, mend: str) -> Tensor:
    """An entry that collection stored; ValueError if it is missing or has a gradient."""
    x = batch.get(key, None)
    if x is None:
        hint = nearest(str(key), map(str, batch.keys(True, True)))
        raise ValueError(f"the batch has no {key!r} ({hint}): {mend}")
    if x.requires_grad:
        raise ValueError(f"{key!r} requires grad, but it is data from collection: detach it")
    return x


def _data(batch: TensorDictBase, key: NestedKey, mend: str) -> Tensor:
    """A stored number per sample, `[B]`."""
    return _per_sample(_stored(batch, key, mend), repr(key), batch.batch_size)


def _per_sample(x: Tensor, name: str, batch_size: torch.Size, mend: str = _SHAPE) -> Tensor:
    """`[B]` from `[B]` or `[B, 1]`, told apart by the batch size; ValueError for any other shape."""
    if x.shape == batch_size:
        return x
    if x.shape == (*batch_size, 1):
        return x.squeeze(-1)
    raise ValueError(f"{name} has shape {tuple(x.shape)}, but the batch size is {tuple(batch_size)}: {mend}")


def _add_heads(heads: list[Tensor], batch_size: torch.Size) -> Tensor:
    """The sum over heads, and over what each has beyond the batch, `[B]`."""
    for x in heads:
        if x.shape[: len(batch_size)] != batch_size:
            raise ValueError(f"a head has shape {tuple(x.shape)}, but the batch size is {tuple(batch_size)}: {_SHAPE}")
    return torch.stack([x.reshape(*batch_size, -1).sum(-1) for x in heads]).sum(0)


def _entropy(dist: Distribution, samples: int) -> Tensor:
    """The entropy in nats in closed form, or its Monte-Carlo estimate; its gradient is unbiased in every case."""
    try:
        return dist.entropy()
    except NotImplementedError:
        pass
    if dist.has_rsample:
        return -dist.log_prob(dist.rsample((samples,))).mean(0)
    log_prob = dist.log_prob(dist.sample((samples,)))
    fixed = log_prob.detach()
    # -E[log p] has the gradient -E[log p * grad log p]; differentiating -log p itself would give noise around zero
    return -(fixed * (1.0 + log_prob - fixed)).mean(0)


def _head_key(key: NestedKey) -> NestedKey:
    return f"{key}_log_prob" if isinstance(key, str) else (*key[:-1], f"{key[-1]}_log_prob")


def _not_negative(name: str, number: float | Schedule) -> float | Schedule:
    if not isinstance(number, Schedule) and number < 0.0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


def _check_modules(actor: Any, critic: Any, value_key: NestedKey) -> None:
    if not isinstance(actor, (ProbabilisticTensorDictSequential, ProbabilisticTensorDictModule)):
        raise ValueError(
            f"actor must be a ProbabilisticTensorDictSequential or -Module, got {type(actor).__name__}: "
            "end it with tensordict.nn.ProbabilisticTensorDictModule"
        )
    if not isinstance(critic, TensorDictModuleBase):
        raise ValueError(
            f"critic must be a tensordict.nn module, got {type(critic).__name__}: "
            "wrap it in TensorDictModule(critic, in_keys=[...], out_keys=['state_value'])"
        )
    if value_key not in critic.out_keys:
        raise ValueError(f"critic writes {critic.out_keys}, not {value_key!r}: set value_key or the critic's out_keys")
