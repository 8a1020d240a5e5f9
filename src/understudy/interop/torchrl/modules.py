"""What this library asks of modules of `tensordict.nn`: a distribution, log-probs, entropies, values, memories."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from torch import Tensor, nn
from torch.distributions import Distribution

from understudy.interop.torchrl.entries import SHAPE, after, per_sample

Actor = ProbabilisticTensorDictSequential | ProbabilisticTensorDictModule

_ACTION_SHAPE = (
    "store the action in the shape that the distribution samples, and for a vector action wrap the distribution in "
    "torch.distributions.Independent"
)


def check_actor(actor: Any) -> None:
    """Raise ValueError unless `actor` samples an action."""
    if not isinstance(actor, (ProbabilisticTensorDictSequential, ProbabilisticTensorDictModule)):
        raise ValueError(
            f"actor must be a ProbabilisticTensorDictSequential or -Module, got {type(actor).__name__}: "
            "end it with tensordict.nn.ProbabilisticTensorDictModule"
        )


def check_critic(critic: Any) -> None:
    """Raise ValueError unless `critic` is a tensordict module."""
    if not isinstance(critic, TensorDictModuleBase):
        raise ValueError(
            f"critic must be a tensordict.nn module, got {type(critic).__name__}: "
            "wrap it in TensorDictModule(critic, in_keys=[...], out_keys=['state_value'])"
        )


def distribution_of(actor: Any, batch: TensorDictBase) -> Distribution:
    """`actor.get_dist`, also where its last module is a sequence: there tensordict would run only what comes before."""
    if isinstance(actor, ProbabilisticTensorDictSequential) and not actor.return_composite:
        last = list(actor.module.values() if isinstance(actor.module, nn.ModuleDict) else actor.module)[-1]
        if isinstance(last, ProbabilisticTensorDictSequential):
            return distribution_of(last, actor.get_dist_params(batch))
    return actor.get_dist(batch)


def inputs_of(module: TensorDictModuleBase) -> list[NestedKey]:
    """Entries that a module reads from a batch; parameters of a composite action, which it makes, are none."""
    groups = {key[:i] for key in module.out_keys if isinstance(key, tuple) for i in range(1, len(key))}
    return [key for key in module.in_keys if (key if isinstance(key, tuple) else (key,)) not in groups]


def memory_of(*modules: TensorDictModuleBase | None) -> list[NestedKey]:
    """Entries that carry a state: X is read, and ("next", X) written, as by TorchRL's `LSTMModule` and `GRUModule`."""
    present = [module for module in modules if module is not None]
    found = [key for module in present for key in module.in_keys if after(key) in module.out_keys]
    return list(dict.fromkeys(found))


def whole_columns(memory: bool) -> AbstractContextManager[Any]:
    """The mode in which TorchRL's memories run over columns `[B, T]`, as in all its losses, if there is a `memory`."""
    if memory and "torchrl" in sys.modules:  # else no module of the actor is TorchRL's
        mode: AbstractContextManager[Any] = import_module("torchrl.modules").set_recurrent_mode(True)
        return mode
    return nullcontext()


def log_prob_of(dist: Distribution, actions: Mapping[NestedKey, Tensor], batch_size: torch.Size) -> Tensor:
    """The log-prob of stored actions, `[B]`."""
    if not isinstance(dist, CompositeDistribution):
        ((key, action),) = actions.items()
        return per_sample(dist.log_prob(action), f"the log-prob of {key!r}", batch_size, _ACTION_SHAPE)
    # written out per head: what CompositeDistribution.log_prob returns depends on a global flag
    return add_heads([head.log_prob(actions[key]) for key, head in dist.dists.items()], batch_size)


def entropy_of(dist: Distribution, samples: int) -> Tensor:
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


def run_critic(
    critic: TensorDictModuleBase,
    batch: TensorDictBase,
    value_key: NestedKey,
    run: Callable[[TensorDictBase], Any] | None = None,
) -> Tensor:
    """The critic's value of a batch, `[B]`."""
    for key in critic.in_keys:
        if batch.get(key, None) is None:
            raise ValueError(
                f"the critic reads {key!r}, which neither the batch nor the actor's pass provides: "
                "pass a complete critic, trunk included"
            )
    done = (run or critic)(batch)
    return per_sample(done.get(value_key), f"the critic's {value_key!r}", batch.batch_size)


def add_heads(heads: list[Tensor], batch_size: torch.Size) -> Tensor:
    """The sum over heads, and over what each has beyond the batch, `[B]`."""
    for x in heads:
        if x.shape[: len(batch_size)] != batch_size:
            raise ValueError(f"a head has shape {tuple(x.shape)}, but the batch size is {tuple(batch_size)}: {SHAPE}")
    return torch.stack([x.reshape(*batch_size, -1).sum(-1) for x in heads]).sum(0)
