"""Train estimators of quantities that the simulator knows and the robot cannot measure (st_rl's EstimatorPPO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from understudy.core.check import nearest
from understudy.core.registry import load_object
from understudy.core.schedules import Scalar, Weight
from understudy.nn.estimator import Estimated
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.ppo.part import Losses, Part, PartConfig, PartContext
from understudy.types import Metrics

Function = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig(PartConfig):
    """Options of the loss of one estimator; `policy.estimators` describes its network."""

    estimator: str | None = None
    """Name of the estimator in `policy.estimators`; None: the only one."""
    loss: str = "mse_loss"
    """An elementwise loss of torch.nn.functional (mse_loss, l1_loss, smooth_l1_loss, huber_loss,
    binary_cross_entropy_with_logits, ...), or your own as `module:function`, called with `reduction="none"`."""
    loss_kwargs: dict[str, float | bool | str] = field(default_factory=dict)
    """Its options: `{"delta": 0.5}`."""
    coef: Weight = 1.0
    """Weight of the loss beside PPO's, a number or a schedule."""

    def build(self, context: PartContext) -> Estimator:
        """Build the part."""
        return Estimator(context, self)


class Estimator(Part, Losses):
    """Fits an estimator's prediction to the true components of the same observation.

        loss = coef mean_B sum_D l(prediction, truth)

    in the networks' units (normalised with `policy.normalize_observations`), so that components of any scale count
    alike. Invalid steps count as 0. Logged: the loss, and per target the root of the mean squared error of an entry, in
    raw units. Raises ValueError for an unknown estimator or loss, for options that the loss does not take, and for a
    loss that is not elementwise.
    """

    def __init__(self, context: PartContext, config: EstimatorConfig) -> None:
        super().__init__(context)
        head = _find(context.policy, config.estimator)
        self.estimate, self.targets, self.sizes = f"estimate/{head.name}", head.targets, head.sizes
        self.function = elementwise_loss(config.loss, config.loss_kwargs)
        self.to(context.device)
        self.coef = Scalar(config.coef, context.device)

    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
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


_LOSSES: dict[str, Function] = {
    function.__name__: function
    for function in (
        *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss, F.soft_margin_loss, F.kl_div),
        *(F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.hinge_embedding_loss),
    )
}


def elementwise_loss(name: str, options: Mapping[str, float | bool | str]) -> Function:
    """The named loss, or that of `"module:function"`, as a function of two tensors, without reduction.

    Raises ValueError, with the nearest names, for an unknown loss; also for options that it does not take, and for a
    function that does not return one number per entry.
    """
    if ":" not in name and name not in _LOSSES:
        raise ValueError(f"unknown loss {name!r} ('module:function' names your own); {nearest(name, _LOSSES)}")
    function = load_object(name) if ":" in name else _LOSSES[name]

    def loss(estimate: Tensor, truth: Tensor) -> Tensor:
        if estimate.shape != truth.shape:
            raise ValueError(f"estimate {tuple(estimate.shape)} and truth {tuple(truth.shape)} must have one shape")
        result: Tensor = function(estimate, truth, reduction="none", **options)
        return result

    try:
        found = loss(torch.zeros(2, 3), torch.zeros(2, 3)).shape
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the loss {name} fails with loss_kwargs {dict(options)}: {error}") from error
    if found != (2, 3):
        raise ValueError(f"the loss {name} must return one number per entry with reduction='none'; use mse_loss")
    return loss


def _find(policy: Policy, name: str | None) -> Estimated:
    known = list(policy.estimators)
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        which = "no estimator" if not known else f"{len(known)} estimators, none of them called {name!r}"
        hint = "describe one in policy.estimators" if not known else f"{nearest(name or '', known)}"
        raise ValueError(f"the policy has {which}; {hint}")
    head = policy.estimators[name]
    assert isinstance(head, Estimated)
    return head
