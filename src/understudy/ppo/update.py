"""The PPO epochs: shuffle, one captured loss-and-backward per minibatch, one gradient step, statistics at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import devices
from understudy.core.capture import capture
from understudy.core.spaces import unflatten
from understudy.ppo.losses import (
    bounded_surrogate,
    bounded_value_loss,
    kl_k3,
    normalize,
    policy_gradient,
    surrogate_bounds,
    value_floor,
    value_loss,
)
from understudy.ppo.metrics import ratio_statistics
from understudy.ppo.optim import average_over_ranks, gradient_step
from understudy.ppo.part import Losses, Weights
from understudy.types import Metrics

if TYPE_CHECKING:
    from understudy.ppo.ppo import PPO

BatchKey = tuple[str, ...]


class Updater:
    """Runs the epochs of one iteration over a rollout.

    What does not depend on the policy (normalised advantages, clip bounds, value floors) is computed for all
    minibatches of an epoch at once; each minibatch is then one captured call and one `gradient_step`.
    """

    def __init__(self, ppo: PPO) -> None:
        self.ppo, self.config, self.policy = ppo, ppo.config, ppo.policy
        self.recurrent = ppo.policy.recurrent
        self.losses = {name: part for name, part in ppo.parts.items() if isinstance(part, Losses)}
        self.weights = {name: part for name, part in ppo.parts.items() if isinstance(part, Weights)}
        self.overridden = ppo.collector.override is not None
        self.keys: tuple[BatchKey, ...] = ()
        self.sample_keys: tuple[BatchKey, ...] = ()
        self.masked = False
        self.names: tuple[str, ...] = ()
        # a masked minibatch is another program: it is prepared only if a NaN or a reset row ever turns up
        mode, out = ppo.config.capture, ppo.optimizer.grads
        self.programs = {masked: capture(self._loss_and_gradients, mode, out) for masked in (False, True)}

    # ------------------------------------------------------------------ epochs

    def run(self, rollout: TensorDict, masked: bool) -> Metrics:
        """All epochs; returns 0-D metrics."""
        self.masked = masked
        self.keys = self._batch_keys(rollout)
        self._record: dict[str, list[Tensor]] = {"stats": [], "log_ratio": [], "advantage": [], "valid": [], "norm": []}
        self._record["ran"] = []
        stop = torch.zeros((), dtype=torch.bool, device=self.ppo.env.device)
        for epoch in range(self.config.epochs):
            if epoch and self.config.recompute_advantage:
                self.ppo.recompute(rollout, masked)
            for leaves in self._minibatches(rollout):
                stop = self._step(leaves, stop)
                if devices.host_is_device(stop.device) and bool(stop):
                    return self._statistics()
        return self._statistics()

    def _step(self, leaves: Sequence[Tensor], stop: Tensor) -> Tensor:
        stats, log_ratio = self.programs[self.masked](*leaves, *self._samples(leaves))
        optimizer, record = self.ppo.optimizer, self._record
        record["stats"].append(stats)
        record["log_ratio"].append(log_ratio)
        # the first minibatch meets the behaviour policy itself: its KL is 0, and the sign of its rounding no evidence
        if self.config.desired_kl is not None and len(record["stats"]) > 1:
            self._adapt_learning_rate(stats[self.names.index("kl_exact")], stop)
        if self.config.target_kl is not None:
            record["ran"].append(~stop)
            stop = stop | (stats[self.names.index("kl_step")] > 1.5 * self.config.target_kl)
            record["norm"].append(gradient_step(optimizer, stop=stop))
        else:
            record["norm"].append(gradient_step(optimizer))
        return stop

    def _adapt_learning_rate(self, kl: Tensor, stop: Tensor) -> None:
        """x 1.5 or / 1.5, within the range, decided where the KL is: no host sync (st_rl's and rsl_rl's schedule)."""
        desired = self.config.desired_kl
        assert desired is not None
        kl = average_over_ranks(kl.clone())
        low, high = self.config.learning_rate_range
        with torch.no_grad():
            factor = torch.where(
                kl > 2.0 * desired, 1.0 / 1.5, torch.where((kl < 0.5 * desired) & (kl > 0.0), 1.5, 1.0)
            )
            if self.config.target_kl is not None:  # an accelerator runs on after the stop, without effect
                factor = torch.where(stop, 1.0, factor)
            rate = self.ppo.optimizer.learning_rate.value
            rate.copy_((rate * factor).clamp(low, high))

    # ------------------------------------------------------------------ minibatches

    def _batch_keys(self, rollout: TensorDict) -> tuple[BatchKey, ...]:
        """What a minibatch holds: what the core needs, and if there are loss or weight parts, what they may read."""
        keys: list[BatchKey] = [("obs", *key) for key in self.policy.input_keys]
        keys += [("action",), ("log_prob",), ("advantage",), ("value_target",)]
        if self.config.value_clip is not None:
            keys.append(("value",))
        if self.config.desired_kl is not None:
            keys.append(("params",))
        if self.recurrent:
            keys += [("state",), ("is_first",)]
        if self.overridden:
            keys.append(("on_policy",))
        if self.masked:
            keys.append(("valid",))
        if self.losses or self.weights:
            keys += [("obs", *key) for key in self.ppo.collector.keys]
            keys += [("is_first",), ("terminated",), ("truncated",), ("params",), ("value",), ("valid",)]
            if self.ppo.collector.keeps_next_obs:
                keys += [("next_obs", *key) for key in self.ppo.collector.keys]
            for name in self.ppo.collector.labels:
                keys += [_flat_key(name, key) for key in rollout[name].keys(True, True)]
        return tuple(dict.fromkeys(keys))

    def _minibatches(self, rollout: TensorDict) -> list[list[Tensor]]:
        """Every minibatch of one shuffled epoch, as lists of leaves in the order of `self.keys` plus the bounds."""
        M, N, T = self.config.minibatches, self.ppo.env.num_envs, self.config.num_steps
        generator = self.ppo.generators["minibatches"]
        count = N if self.recurrent else T * N
        order = torch.randperm(count, generator=generator, device=self.ppo.env.device)
        shuffled: dict[BatchKey, Tensor] = {}
        for key in self.keys:
            leaf = rollout[key]
            if key == ("state",):  # the same for all t: gather one step, not T
                leaf = leaf[0].index_select(0, order).unflatten(0, (M, N // M)).unsqueeze(1).expand(-1, T, -1, -1)
            elif self.recurrent:  # [T, N, ...] -> [M, T, B, ...]: whole columns
                leaf = torch.stack([leaf.index_select(1, part) for part in order.view(M, -1)])
            else:  # [T, N, ...] -> [M, B, ...]
                leaf = leaf.flatten(0, 1).index_select(0, order).unflatten(0, (M, count // M))
            shuffled[key] = leaf
        bounds = self._bounds(shuffled, rollout)
        self._record["advantage"] += shuffled["advantage",].unbind(0)
        if self.masked:
            self._record["valid"] += shuffled["valid",].unbind(0)
        columns = [x.unbind(0) for x in (*shuffled.values(), *bounds)]
        return [list(row) for row in zip(*columns)]

    def _bounds(self, shuffled: dict[BatchKey, Tensor], rollout: TensorDict) -> list[Tensor]:
        """Normalise the epoch's advantages, then the clip bounds and value floors of all its minibatches."""
        c, coefficients = self.config, self.ppo.coefficients
        valid = shuffled.get(("valid",)) if self.masked else None
        advantage = shuffled["advantage",]
        if c.advantage_normalization == "minibatch":
            dims = tuple(range(1, advantage.ndim))
            advantage = normalize(advantage, valid, dims=dims)
        elif c.advantage_normalization == "rollout":
            advantage = normalize(advantage, valid)
        shuffled["advantage",] = advantage
        bounds: list[Tensor] = []
        if c.surrogate == "clip":
            clip = (coefficients["clip_low"](), coefficients["clip_high"]())
            bounds += [x for x in surrogate_bounds(advantage, *clip, c.dual_clip) if x is not None]
        if c.value_clip is not None:
            args = (shuffled["value_target",], shuffled["value",], coefficients["value_clip"]())
            bounds.append(value_floor(*args, c.loss_critic_type))
        return bounds

    def _samples(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """What the loss parts draw for this minibatch, flat."""
        if not self.losses:
            return []
        samples: list[Tensor] = []
        keys: list[BatchKey] = []
        batch = self._batch(leaves)
        for name, part in self.losses.items():
            drawn = part.sample(batch)
            if drawn is not None:
                for key in drawn.keys(True, True):
                    keys.append(_flat_key(name, "sample", key))
                    samples.append(drawn[key])
        self.sample_keys = tuple(keys)
        return samples

    def _batch(self, leaves: Sequence[Tensor], samples: Sequence[Tensor] = ()) -> TensorDict:
        size = leaves[self.keys.index(("action",))].shape[: 2 if self.recurrent else 1]
        fits = all(x.shape[: len(size)] == size for x in samples)
        keys = (*self.keys, *self.sample_keys[: len(samples)])
        return unflatten(keys, (*leaves[: len(self.keys)], *samples), size if fits else [])

    # ------------------------------------------------------------------ the captured function

    def _loss_and_gradients(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all parameters, then the statistics vector and the log-ratios."""
        with torch.enable_grad():
            loss, stats, log_ratio = self.loss(*args)
            targets = self.ppo.optimizer.targets
            gradients = torch.autograd.grad(loss, targets, allow_unused=True, materialize_grads=True)
        self.names = tuple(stats)
        return (*gradients, torch.stack([x.detach() for x in stats.values()]), log_ratio.detach())

    def loss(self, *args: Tensor) -> tuple[Tensor, Metrics, Tensor]:
        """The total loss of one minibatch, its named 0-D statistics, and the log-ratios `[B]` or `[T, B]`."""
        c, coefficients = self.config, self.ppo.coefficients
        num_keys, num_bounds = len(self.keys), self._num_bounds()
        bounds = list(args[num_keys : num_keys + num_bounds])
        batch = self._batch(args[:num_keys], args[num_keys + num_bounds :])
        if self.recurrent:
            out = self.policy(batch["obs"], batch["state"][0], batch["is_first"])
        else:
            out = self.policy(batch["obs"])
        log_prob = out.distribution.log_prob(batch["action"])
        log_ratio = log_prob - batch["log_prob"]
        floor = bounds.pop() if c.value_clip is not None else None
        surrogate = (
            bounded_surrogate(log_ratio, *bounds)
            if c.surrogate == "clip"
            else policy_gradient(log_prob, batch["advantage"])
        )
        entropy = out.distribution.entropy() if out.distribution.closed_form_entropy else None
        if entropy is None:
            entropy = out.distribution.entropy_mc(c.samples_mc_entropy)
        if floor is None:
            critic = value_loss(out.value, batch["value_target"], kind=c.loss_critic_type)
        else:
            critic = bounded_value_loss(out.value, batch["value_target"], floor, kind=c.loss_critic_type)
        weight = self._weight(batch, out)
        if weight is not None:
            surrogate, entropy = weight * surrogate, weight * entropy
        if self.masked:
            critic = critic * batch["valid"]
        stats: Metrics = {"surrogate_loss": surrogate.mean(), "value_loss": critic.mean(), "entropy": entropy.mean()}
        policy_loss = stats["surrogate_loss"]
        if c.surrogate_coef != 1.0:
            policy_loss = coefficients["surrogate"]() * policy_loss
        loss = policy_loss - coefficients["entropy"]() * stats["entropy"]
        if c.value_coef != 0.0:  # pure imitation need not go back through the critic
            loss = loss + coefficients["value"]() * stats["value_loss"]
        for name, part in self.losses.items():
            extra, metrics = part.loss(self.policy, batch, out)
            loss = loss + extra
            stats |= {f"{name}/{key}": x for key, x in metrics.items()}
        self._add_kl(stats, batch, out, log_ratio)
        stats["loss"] = loss
        return loss, stats, log_ratio

    def _num_bounds(self) -> int:
        c = self.config
        clip = 0 if c.surrogate != "clip" else 2 if c.dual_clip is None else 3
        return clip + (c.value_clip is not None)

    def _weight(self, batch: TensorDict, out: Any) -> Tensor | None:
        """on_policy x valid x the product of the parts' weights; None where nothing weighs."""
        factors: list[Tensor] = []
        with torch.no_grad():
            for name, part in self.weights.items():
                weight = part.weight(batch, out)
                if weight.shape != out.value.shape:
                    expected = tuple(out.value.shape)
                    raise ValueError(f"part {name!r} returned weights {tuple(weight.shape)}, not {expected}")
                factors.append(weight)
            if self.overridden:
                factors.append(batch["on_policy"].to(out.value.dtype))
            if self.masked:
                factors.append(batch["valid"].to(out.value.dtype))
        product = None
        for factor in factors:
            product = factor if product is None else product * factor
        return product

    def _add_kl(self, stats: Metrics, batch: TensorDict, out: Any, log_ratio: Tensor) -> None:
        with torch.no_grad():
            if self.config.desired_kl is not None:
                stats["kl_exact"] = self.policy.head.from_params(batch["params"]).kl(out.distribution).mean()
            if self.config.target_kl is not None:
                stats["kl_step"] = kl_k3(log_ratio.detach()).mean()

    # ------------------------------------------------------------------ statistics

    def _statistics(self) -> Metrics:
        """Of all minibatches at once; those after a stop (an accelerator computes them in vain) do not count."""
        record, coefficients, optimizer = self._record, self.ppo.coefficients, self.ppo.optimizer
        stats, norm = torch.stack(record["stats"]), torch.stack(record["norm"])
        ran = torch.stack(record["ran"]) if record["ran"] else None
        means = _mean_where(stats, ran).unbind(0)
        metrics = {name if "/" in name else f"ppo/{name}": x for name, x in zip(self.names, means)}
        log_ratio = torch.stack(record["log_ratio"])
        count = len(record["log_ratio"])
        advantage = torch.stack(record["advantage"][:count])
        valid = torch.stack(record["valid"][:count]) if self.masked else None
        if ran is not None:
            counts = ran.view(-1, *[1] * (log_ratio.ndim - 1)).expand_as(log_ratio)
            valid = counts if valid is None else valid & counts
        clip = (coefficients["clip_low"](), coefficients["clip_high"]())
        with torch.no_grad():
            ratios = ratio_statistics(log_ratio, advantage, *clip, valid)
        metrics |= {f"ppo/{name}": x for name, x in ratios.items()}
        metrics["ppo/first_ratio_error"] = torch.expm1(log_ratio[0]).abs().max()
        metrics["ppo/grad_norm"] = _mean_where(norm, ran)
        metrics["ppo/learning_rate"] = optimizer.learning_rate()
        metrics["ppo/skipped_steps"] = optimizer.skipped
        return metrics


def _mean_where(x: Tensor, ran: Tensor | None) -> Tensor:
    """The mean over the first dimension of x `[M, ...]`, of the rows where `ran` `[M]` holds."""
    if ran is None:
        return x.mean(0)
    known = torch.where(ran.view(-1, *[1] * (x.ndim - 1)), x, 0.0)
    return known.sum(0) / ran.sum()


def _flat_key(*parts: str | tuple[str, ...]) -> BatchKey:
    return tuple(name for part in parts for name in ((part,) if isinstance(part, str) else part))
