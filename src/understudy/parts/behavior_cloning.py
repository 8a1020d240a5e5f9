"""Behaviour cloning (Pomerleau 1989): make the recorded expert's actions likely, beside PPO or offline without it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from understudy.core.check import In
from understudy.core.schedules import RewardWeight, Scalar, Weight
from understudy.core.spaces import is_box
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.nn.distributions import Bernoulli, Categorical, Distribution, MultiCategorical
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.parts.shared.demonstrated import (
    BatchSize,
    DemonstrationOptions,
    SequenceLength,
    check_windows,
    draw_actions,
)
from understudy.ppo.part import Losses, Part, PartConfig, PartContext
from understudy.types import Metrics

Loss = Literal["auto", "nll", "mse"]


@dataclass(frozen=True, kw_only=True)
class BehaviorCloningConfig(DemonstrationOptions, PartConfig):
    """Options of behaviour cloning."""

    coef: Weight = 1.0
    """Weight of the whole loss beside PPO's, a number or a schedule (`linear:1:0:200000` fades it out)."""
    loss: Loss = "auto"
    """nll: negative log-likelihood, any action distribution; mse: squared error of the mode, for Box actions, which
    does not train the standard deviation; auto: mse for Box actions, nll for all others."""
    batch_size: BatchSize = 256
    """Transitions per step; a policy with a memory takes batch_size / sequence_length windows."""
    sequence_length: SequenceLength = 16
    """Steps per window, for a policy with a memory."""
    label_smoothing: Annotated[float, In(0.0, 1.0, without=(1.0,))] = 0.0
    """Share of the target spread evenly over all actions (discrete actions only)."""
    entropy_coef: RewardWeight = 0.0
    """Weight of an entropy bonus inside the loss."""
    l2_coef: Annotated[float, In(0.0, 1e6)] = 0.0
    """Weight of half the squared norm of the actor's parameters inside the loss."""

    def build(self, context: PartContext) -> BehaviorCloning:
        """Build the part."""
        return BehaviorCloning(context, self)


class BehaviorCloning(Part, Losses):
    """Clones recorded actions: the policy learns to repeat them.

    Of states s and actions a, drawn independently (in windows for a policy with a memory):

        loss = coef (mean_B -log pi(a | s)  -  entropy_coef mean_B H(pi(. | s))  +  l2_coef / 2 ||theta_actor||^2)

    or, with `loss="mse"`, the mean squared error of the policy's mode in place of -log pi. Actions are raw: scaling and
    tanh are undone. Logged: loss, log_prob (or mse), accuracy of discrete actions, entropy.

    Raises ValueError for demonstrations that do not fit the spaces and for options that do not fit the actions.
    """

    def __init__(self, context: PartContext, config: BehaviorCloningConfig) -> None:
        super().__init__(context)
        _check_actions(context, config)
        policy = context.policy
        self.config, self.recurrent = config, policy.recurrent
        continuous = is_box(context.action_space)
        self.squares = config.loss == "mse" or (config.loss == "auto" and continuous)
        if self.recurrent:
            check_windows(config, config.batch_size, config.sequence_length)
        self._load = functools.partial(config.open, context, policy.sensor_keys, policy.action_map)
        self.demonstrations = self._load()
        self.coef = Scalar(config.coef, context.device)
        self.entropy_coef = Scalar(config.entropy_coef, context.device)

    def sample(self, batch: TensorDict) -> TensorDict:
        """Demonstrations `[batch_size]`, or windows `[sequence_length, batch_size / sequence_length]`."""
        return self.draw(self.demonstrations)

    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """The loss above on the demonstrations drawn for this minibatch."""
        drawn = batch[self.name, "sample"]
        loss, metrics = self.clone(policy, drawn["obs"], drawn["action"], drawn["is_first"])
        return self.coef() * loss, metrics

    def reload(self) -> Demonstrations:
        """Read the demonstrations again (DAgger adds to them)."""
        self.demonstrations = self._load()
        return self.demonstrations

    def draw(self, demonstrations: Demonstrations) -> TensorDict:
        """`obs`, `action` and `is_first` for one step, from these demonstrations."""
        length = self.config.sequence_length if self.recurrent else None
        return draw_actions(demonstrations, self.config.batch_size, length, self.generator)

    def clone(self, policy: Policy, obs: TensorDictBase, action: Tensor, is_first: Tensor) -> tuple[Tensor, Metrics]:
        """The loss without `coef` on obs `[B]` or `[T, B]` and raw actions, and its terms as metrics."""
        distribution, *_ = policy.run_actor(obs, None, is_first)
        metrics: Metrics = {}
        if self.squares:
            loss = squared_error(distribution, action).mean()
            metrics["mse"] = loss.detach()
        else:
            log_prob = smoothed_log_prob(distribution, action, self.config.label_smoothing)
            loss = -log_prob.mean()
            metrics["log_prob"] = -loss.detach()
            if not action.is_floating_point():
                metrics["accuracy"] = (distribution.mode() == action).float().mean()
        if self.config.entropy_coef != 0.0:
            entropy = distribution.entropy().mean()
            loss = loss - self.entropy_coef() * entropy
            metrics["entropy"] = entropy.detach()
        if self.config.l2_coef:
            loss = loss + self.config.l2_coef * half_squared_norm(policy.actor_parameters())
        return loss, {"loss": loss.detach(), **metrics}


def smoothed_log_prob(distribution: Distribution, action: Tensor, smoothing: float) -> Tensor:
    """(1 - e) log p(a) + e mean_k log p(k) `[...]`, summed over the dimensions of the action (Szegedy et al. 2016).

    Bits have two classes each. Raises ValueError for continuous distributions unless e = 0, and for shapes that differ.
    """
    log_prob = distribution.log_prob(action)
    if smoothing == 0.0:
        return log_prob
    if isinstance(distribution, Categorical):
        uniform = distribution.log_p.mean(-1)
    elif isinstance(distribution, MultiCategorical):
        blocks = distribution.log_p.split(distribution.nvec, -1)
        uniform = torch.stack([block.mean(-1) for block in blocks], -1).sum(-1)
    elif isinstance(distribution, Bernoulli):
        ones = torch.ones_like(action)
        uniform = 0.5 * (distribution.log_prob(ones) + distribution.log_prob(torch.zeros_like(action)))
    else:
        raise ValueError(f"label smoothing is for discrete actions, this is a {type(distribution).__name__}")
    return (1.0 - smoothing) * log_prob + smoothing * uniform


def squared_error(distribution: Distribution, action: Tensor) -> Tensor:
    """mean_d (mode_d - a_d)^2 `[...]`, of actions `[..., D]`. Raises ValueError if the shapes differ."""
    mode = distribution.mode()
    if mode.shape != action.shape:
        raise ValueError(f"actions {tuple(action.shape)} do not have the shape of the policy's {tuple(mode.shape)}")
    return (mode - action).square().mean(-1)


def half_squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """1/2 sum theta^2, 0-D."""
    return 0.5 * torch.stack([x.square().sum() for x in parameters]).sum()


def _check_actions(context: PartContext, config: BehaviorCloningConfig) -> None:
    continuous = is_box(context.action_space)
    if config.loss == "mse" and not continuous:
        raise ValueError(f"loss='mse' is for Box actions, the action space is {context.action_space}: use 'nll'")
    if config.label_smoothing and continuous:
        raise ValueError("label_smoothing is for discrete actions: leave it at 0 for a Box")
