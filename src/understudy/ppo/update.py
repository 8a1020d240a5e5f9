"""The loss of one minibatch: clipped surrogate, value loss, entropy and the parts' losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core.capture import Batch
from understudy.core.check import nearest
from understudy.core.registry import load_object
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.ppo.config import PPOConfig
from understudy.ppo.losses import SURROGATES, Surrogate, bounded_value_loss, kl_k3, value_loss
from understudy.ppo.minibatch import nest
from understudy.ppo.part import Losses, Part, Weights
from understudy.types import Metrics


class MinibatchLoss:
    """Maps a minibatch (`Minibatches`) to its loss and its statistics; `capture_gradient` prepares it once.

    w    = on_policy * valid * (product of the parts' weights)
    loss = surrogate_coef * mean(w * surrogate) - entropy_coef * mean(w * entropy)
         + value_coef * mean(valid * value_loss) + (sum of the parts' losses)
    """

    def __init__(
        self, policy: Policy, parts: Mapping[str, Part], config: PPOConfig, coefficients: nn.ModuleDict
    ) -> None:
        self.policy, self.config, self.coefficients = policy, config, coefficients
        self.losses = {name: part for name, part in parts.items() if isinstance(part, Losses)}
        self.weights = {name: part for name, part in parts.items() if isinstance(part, Weights)}
        self.surrogate: Surrogate = SURROGATES.get(config.surrogate) or load_object(config.surrogate)

    def __call__(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss, 0-D, and named 0-D statistics; among them, per sample, `log_ratio` `[B]` or `[T, B]`."""
        config, coefficients = self.config, self.coefficients
        nested = nest(batch, self.policy.recurrent)
        memory = (nested["state"][0], nested["is_first"]) if self.policy.recurrent else ()
        out = self.policy(nested["obs"], *memory)
        log_prob = out.distribution.log_prob(batch["action"])
        log_ratio = log_prob - batch["log_prob"]

        surrogate = self._surrogate(batch, log_prob, log_ratio)
        entropy = self._entropy(out)
        value = self._value_loss(batch, out.value)
        weight = self._weight(nested, out)
        if weight is not None:
            surrogate, entropy = weight * surrogate, weight * entropy
        if "mask" in batch:
            value = value * batch["mask"]

        stats: Metrics = {"surrogate_loss": surrogate.mean(), "value_loss": value.mean(), "entropy": entropy.mean()}
        loss = stats["surrogate_loss"]
        if config.surrogate_coef != 1.0:
            loss = coefficients["surrogate"]() * loss
        loss = loss - coefficients["entropy"]() * stats["entropy"]
        if config.value_coef != 0.0:  # pure imitation need not go back through the critic
            loss = loss + coefficients["value"]() * stats["value_loss"]
        for name, part in self.losses.items():
            extra, metrics = part.loss(self.policy, nested, out)
            loss = loss + extra
            stats |= {f"{name}/{key}": x for key, x in metrics.items()}
        return loss, stats | self._kl(batch, out, log_ratio) | {"loss": loss, "log_ratio": log_ratio}

    def _surrogate(self, batch: Batch, log_prob: Tensor, log_ratio: Tensor) -> Tensor:
        clip = {name: self.coefficients[name]() for name in ("clip_low", "clip_high")}
        known = {**batch, **clip, "new_log_prob": log_prob, "log_ratio": log_ratio}
        try:
            loss = self.surrogate(known)
        except KeyError as error:
            hint = nearest(str(error.args[0]), map(str, known))
            raise ValueError(f"the surrogate {self.config.surrogate} reads {error}, not in a batch; {hint}") from error
        if not isinstance(loss, Tensor) or loss.shape != log_prob.shape:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"the surrogate {self.config.surrogate} returned {found}; return one loss for each sample, "
                f"{tuple(log_prob.shape)}: PPO weighs them and takes the mean"
            )
        return loss

    def _entropy(self, out: PolicyOutput) -> Tensor:
        distribution = out.distribution
        if distribution.closed_form_entropy:
            return distribution.entropy()
        return distribution.entropy_mc(self.config.samples_mc_entropy)

    def _value_loss(self, batch: Batch, value: Tensor) -> Tensor:
        target, kind = batch["value_target"], self.config.loss_critic_type
        if "value_floor" in batch:
            return bounded_value_loss(value, target, batch["value_floor"], kind)
        return value_loss(value, target, kind=kind)

    def _weight(self, batch: TensorDict, out: PolicyOutput) -> Tensor | None:
        """w above; None where nothing weighs."""
        product: Tensor | None = None
        with torch.no_grad():
            factors = {f"part {name!r}": part.weight(batch, out) for name, part in self.weights.items()}
            factors |= {name: batch[name].to(out.value.dtype) for name in ("on_policy", "mask") if name in batch.keys()}  # noqa: SIM118
            for name, factor in factors.items():
                if factor.shape != out.value.shape:
                    raise ValueError(f"{name} returned weights {tuple(factor.shape)}, not {tuple(out.value.shape)}")
                product = factor if product is None else product * factor
        return product

    @torch.no_grad()
    def _kl(self, batch: Batch, out: PolicyOutput, log_ratio: Tensor) -> Metrics:
        """The divergences that decide: `kl_exact` the learning rate, `kl_step` whether the update stops."""
        found: Metrics = {}
        if self.config.desired_kl is not None:
            found["kl_exact"] = self.policy.head.from_params(batch["params"]).kl(out.distribution).mean()
        if self.config.target_kl is not None:
            found["kl_step"] = kl_k3(log_ratio.detach()).mean()
        return found
