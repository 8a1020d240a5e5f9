"""The only place where an optimizer moves: flat parameters, `gradient_step`, and the rate that follows the KL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from understudy.core import devices, ranks
from understudy.core.capture import Batch, BatchFunction, CaptureMode, capture
from understudy.core.check import Config, In
from understudy.core.schedules import Number, Scalar

LearningRate = Annotated[Number, In(0.0, 1.0)]
OptimizerKind = Literal["adam", "adamw", "sgd", "rmsprop"]
LossFunction = Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """An optimizer over one flat vector of parameters. Raises ValueError for what cannot work."""

    PREFIX = "optimizer."

    kind: OptimizerKind = "adam"
    """Optimizer."""
    learning_rate: LearningRate = 3e-4
    """Step size, a number or a schedule such as `linear:3e-4:0`."""
    betas: Annotated[tuple[float, float], In(0.0, 0.99999)] = (0.9, 0.999)
    """Decay of the first and second moment (Adam)."""
    eps: Annotated[float, In(1e-12, 1.0)] = 1e-5
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, In(0.0, 1.0)] = 0.0
    """L2 penalty (decoupled for adamw)."""
    momentum: Annotated[float, In(0.0, 1.0, without=(1.0,))] = 0.0
    """Momentum of SGD and RMSprop."""
    alpha: Annotated[float, In(0.0, 1.0, without=(1.0,))] = 0.99
    """Smoothing of RMSprop."""
    max_grad_norm: Annotated[float | None, In(0.0, 1e9, without=(0.0,))] = 0.5
    """L2 norm to which the gradient of all parameters together is clipped; None: no clipping."""


def _aligned(numel: int) -> int:
    """Whole blocks of 64 bytes: elsewhere a matrix product is slower, and on some CPUs its last bits are others."""
    return -(-numel // 16) * 16


class Optimizer(nn.Module):
    """Moves parameters that it keeps as views of one flat vector: one update, one norm, one all-reduce.

    The parameters stay where they are from then on (load state dicts in place; move devices before). The state dict
    holds moments, counters and the learning rate; the parameters belong to their module. A step with a non-finite
    gradient is skipped and counted in `skipped`. `apart`: the gradient of the first so many parameters is clipped apart
    from the others'. Raises ValueError without parameters.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: OptimizerConfig | None = None, *, apart: int = 0
    ) -> None:
        super().__init__()
        self.config = config or OptimizerConfig()
        self.targets = list(dict.fromkeys(parameters))
        if not self.targets:
            raise ValueError("the optimizer got no parameters that require a gradient")
        device = self.targets[0].device
        size = sum(_aligned(p.numel()) for p in self.targets)
        self.flat = torch.zeros(size, device=device)
        self.grad = torch.zeros(size, device=device)
        self.grads: list[Tensor] = []
        offset = border = 0
        for number, p in enumerate(self.targets, start=1):
            view = self.flat[offset : offset + p.numel()].view_as(p)
            view.copy_(p.data)
            p.data = view
            self.grads.append(self.grad[offset : offset + p.numel()].view_as(p))
            offset += _aligned(p.numel())
            border = offset if number == apart else border
        self.clipped = [self.grad[:border], self.grad[border:]] if border else [self.grad]
        self.learning_rate = Scalar(self.config.learning_rate, device=device)
        self.register_buffer("steps", torch.zeros((), device=device))
        self.register_buffer("skipped", torch.zeros((), device=device))
        self.register_buffer("first_moment", torch.zeros(size, device=device))
        self.register_buffer("second_moment", torch.zeros(size, device=device))
        self.steps: Tensor
        self.skipped: Tensor
        self.first_moment: Tensor
        self.second_moment: Tensor

    @torch.no_grad()
    def move(self, found_inf: Tensor | None) -> None:
        """Apply `self.grad`; skipped without a host sync where `found_inf` is 1."""
        c, lr = self.config, self.learning_rate.value
        flat, grad = [self.flat], [self.grad]
        rate: Any = lr  # the functional rules take a 0-D tensor, their annotations know floats only
        if c.kind in ("adam", "adamw"):
            rule = adam if c.kind == "adam" else adamw
            rule(
                flat, grad, [self.first_moment], [self.second_moment], [], [self.steps],
                fused=True, amsgrad=False, beta1=c.betas[0], beta2=c.betas[1], lr=lr,
                weight_decay=c.weight_decay, eps=c.eps, maximize=False, found_inf=found_inf,
            )  # fmt: skip
        elif c.kind == "sgd":
            momentum: list[Tensor | None] = [self.first_moment if c.momentum else None]
            sgd(
                flat, grad, momentum, fused=True, weight_decay=c.weight_decay, momentum=c.momentum, lr=rate,
                dampening=0.0, nesterov=False, maximize=False, found_inf=found_inf,
            )  # fmt: skip
        else:
            # no fused kernel that could skip: take the step, then put everything back
            moved = (self.flat, self.second_moment, self.first_moment, self.steps)
            before = [x.clone() for x in moved if found_inf is not None]
            self._rmsprop()
            if found_inf is not None:
                for x, old in zip(moved, before):
                    x.copy_(torch.where(found_inf.bool(), old, x))

    def _rmsprop(self) -> None:
        """v = a v + (1 - a) g^2,  m = mu m + g / (sqrt(v) + eps),  p -= lr m (Tieleman & Hinton 2012).

        Torch's own rule reads a learning rate that is a tensor: a wait in every step on an accelerator.
        """
        c, grad = self.config, self.grad
        if c.weight_decay:
            grad = grad + c.weight_decay * self.flat
        self.steps += 1
        self.second_moment.mul_(c.alpha).addcmul_(grad, grad, value=1.0 - c.alpha)
        step = grad / (self.second_moment.sqrt() + c.eps)
        if c.momentum:
            step = self.first_moment.mul_(c.momentum).add_(step)
        self.flat.addcmul_(step, self.learning_rate.value, value=-1.0)


def gradient_step(optimizer: Optimizer, loss: Tensor | None = None, stop: Tensor | None = None) -> Tensor:
    """Backward (if a loss is given; else `optimizer.grads` are filled), all-reduce, clip, step; returns the norm.

    A non-finite gradient, or a true `stop` (0-D), leaves the parameters as they are.
    """
    if loss is not None:
        found = torch.autograd.grad(loss, optimizer.targets, materialize_grads=True, allow_unused=True)
        for view, g in zip(optimizer.grads, found):
            view.copy_(g)
    with torch.no_grad():
        ranks.mean_(optimizer.grad)
        norm = torch.linalg.vector_norm(optimizer.grad)
        limit = optimizer.config.max_grad_norm
        if devices.host_is_device(norm.device):
            size = norm.item()
            if size - size != 0.0:  # NaN or infinite
                optimizer.skipped += 1
                return norm
            if stop is not None and bool(stop):
                return norm
            for grad in optimizer.clipped if limit is not None and size > limit else ():  # no part is longer
                part = size if grad is optimizer.grad else torch.linalg.vector_norm(grad).item()
                if part > limit:
                    grad.mul_(limit / (part + 1e-6))
            optimizer.move(None)
            return norm
        bad = ~torch.isfinite(norm)
        optimizer.skipped += bad
        for grad in optimizer.clipped if limit is not None else ():
            size = norm if grad is optimizer.grad else torch.linalg.vector_norm(grad)
            grad.mul_((limit / (size + 1e-6)).clamp(max=1.0))
        optimizer.move((bad if stop is None else bad | stop).float())
        return norm


def capture_gradient(loss: LossFunction, optimizer: Optimizer, mode: CaptureMode) -> BatchFunction:
    """`loss(batch) -> (0-D loss, named results)` and its backward pass as one captured program.

    A call leaves the gradient in `optimizer.grads`, for `gradient_step`, and returns the results, detached.
    """

    def with_gradient(batch: Batch) -> dict[Any, Tensor]:
        with torch.enable_grad():
            total, results = loss(batch)
            found = torch.autograd.grad(total, optimizer.targets, allow_unused=True, materialize_grads=True)
        gradients: dict[Any, Tensor] = {("grad", i): x for i, x in enumerate(found)}
        return gradients | {name: x.detach() for name, x in results.items()}

    return capture(with_gradient, mode, out={("grad", i): x for i, x in enumerate(optimizer.grads)})


def adapt_learning_rate(
    optimizer: Optimizer, kl: Tensor, desired: float, limits: tuple[float, float], stop: Tensor
) -> None:
    """x 1.5 or / 1.5, within the limits, decided where the KL is: no host sync (st_rl's and rsl_rl's schedule).

    Nothing moves once `stop` (0-D) is true: an accelerator goes on after it, without effect.
    """
    kl = ranks.mean(kl)
    with torch.no_grad():
        factor = torch.where(kl > 2.0 * desired, 1.0 / 1.5, torch.where((kl < 0.5 * desired) & (kl > 0.0), 1.5, 1.0))
        rate = optimizer.learning_rate.value
        rate.copy_((rate * torch.where(stop, 1.0, factor)).clamp(*limits))
