"""Estimators learn what the robot cannot measure, from what the simulator knows (st_rl's EstimatorPPO)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from understudy.core.check import nearest
from understudy.core.schedules import Number, Scalar
from understudy.nn.estimator import EstimatorHead
from understudy.nn.policy import ActorCritic, PolicyOutput
from understudy.ppo.part import Losses, Part, PartConfig, PartContext
from understudy.types import Metrics

Loss = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig(PartConfig):
    """Options of the loss of one estimator, whose networks are those of `policy.estimators`."""

    estimator: str | None = None
    """Name of the estimator in `policy.estimators`; None: the only one."""
    loss: str = "mse_loss"
    """Any elementwise loss of torch.nn.functional: mse_loss, l1_loss, smooth_l1_loss, huber_loss, ..."""
    loss_kwargs: dict[str, float | bool | str] = field(default_factory=dict)
    """Its options: `{"delta": 0.5}`."""
    coef: Number = 1.0
    """Weight of the loss beside PPO's, a number or a schedule."""

    def build(self, context: PartContext) -> Estimator:
        """Build the part."""
        return Estimator(context, self)


class Estimator(Part, Losses):
    """Draws an estimator's prediction to the true components of the same observation:

        loss = coef mean_B sum_D l(prediction, truth)

    in the units that the networks see (normalised where `policy.normalize_observations`), so that components of any
    scale count alike. Steps that are no transition count as 0. Logged: the loss, and per target the root of the mean
    squared error of an entry, in raw units. Raises ValueError for an estimator or a loss that does not exist, for
    options that it does not take, and for a loss that is not elementwise.
    """

    def __init__(self, context: PartContext, config: EstimatorConfig) -> None:
        super().__init__(context)
        head = _find(context.policy, config.estimator)
        self.estimate, self.targets, self.sizes = f"estimate/{head.name}", head.targets, head.sizes
        self.function = elementwise_loss(config.loss, config.loss_kwargs)
        self.to(context.device)
        self.coef = Scalar(config.coef, context.device)

    def loss(self, policy: ActorCritic, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """The loss on the minibatch."""
        estimate = out.latents[self.estimate]
        obs = batch["obs"]
        truth = torch.cat([policy.normalized(obs, key) for key in self.targets], dim=-1)
        weight = batch["valid"].to(estimate.dtype)
        error = (weight * self.function(estimate, truth).sum(-1)).mean()
        metrics = {"loss": error.detach()}
        with torch.no_grad():
            rows = weight.sum().clamp(min=1.0)
            for key, guess in zip(self.targets, estimate.split(self.sizes, dim=-1)):
                square = (policy.raw(key, guess) - obs.get(key)).square().mean(-1)
                metrics[f"rmse/{'/'.join(key)}"] = ((weight * square).sum() / rows).sqrt()
        return self.coef() * error, metrics


def elementwise_loss(name: str, options: dict[str, float | bool | str]) -> Loss:
    """A loss of torch.nn.functional as a function of two tensors, without reduction.

    Raises ValueError with the nearest names if there is none, if it does not take the options, or if it does not give
    one number per entry.
    """
    known = {key: f for key, f in vars(F).items() if _is_loss(f)}
    if name not in known:
        raise ValueError(f"torch.nn.functional has no loss {name!r}; {nearest(name, sorted(known))}")
    function, takes = known[name], inspect.signature(known[name]).parameters
    if "reduction" in options or not options.keys() <= takes.keys():
        raise ValueError(f"{name} does not take {sorted(options)} here; it takes {', '.join(list(takes)[2:])}")

    def loss(estimate: Tensor, truth: Tensor) -> Tensor:
        if estimate.shape != truth.shape:
            raise ValueError(f"estimate {tuple(estimate.shape)} and truth {tuple(truth.shape)} must have one shape")
        result: Tensor = function(estimate, truth, reduction="none", **options)
        return result

    try:
        found = loss(torch.zeros(2, 3), torch.zeros(2, 3)).shape
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot compare an estimate with the truth ({error}); use mse_loss") from error
    if found != (2, 3):
        raise ValueError(f"{name} is no elementwise loss of two tensors; use mse_loss, l1_loss or huber_loss")
    return loss


def _is_loss(function: object) -> bool:
    return inspect.isfunction(function) and "reduction" in inspect.signature(function).parameters


def _find(policy: ActorCritic, name: str | None) -> EstimatorHead:
    known = list(policy.estimators)
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        which = "no estimator" if not known else f"{len(known)} estimators, none of them called {name!r}"
        hint = "describe one in policy.estimators" if not known else f"{nearest(name or '', known)}"
        raise ValueError(f"the policy has {which}; {hint}")
    head = policy.estimators[name]
    assert isinstance(head, EstimatorHead)
    return head
