"""ADVISOR (Weihs et al. 2021, arXiv:2007.12173): imitate where the expert can be imitated, explore where it cannot.

An expert that knows more than the policy sees (an "imitation gap") must not be imitated blindly. An auxiliary head that
only imitates shows, state by state, how well the policy's observation predicts the expert. Where it does, the policy
imitates; elsewhere PPO's own loss takes over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from understudy.core.check import In
from understudy.core.schedules import Number, Probability, Scalar, Weight
from understudy.core.spaces import is_box
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.nn.distributions import Distribution
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.parts.shared.demonstrated import (
    BatchSize,
    DemonstrationOptions,
    SequenceLength,
    check_windows,
    draw_actions,
)
from understudy.parts.shared.expert_labels import (
    ExpertLabel,
    ExpertLabels,
    ExpertLabelsConfig,
    cross_entropy,
    masked_mean,
)
from understudy.ppo.part import Losses, Part, PartConfig, PartContext, Weights
from understudy.types import Metrics

Distance = Literal["auto", "log_prob", "squared"]
AuxInit = Literal["same", "orthogonal"]


@dataclass(frozen=True, kw_only=True)
class AdvisorConfig(DemonstrationOptions, PartConfig):
    """Options of ADVISOR; without `demonstrations`, only the environment's labels teach."""

    labels: ExpertLabelsConfig = field(default_factory=ExpertLabelsConfig)
    """Observation groups that hold the expert's labels."""
    alpha: Annotated[Number, In(0.0, 1e6)] = 1.0
    """How fast the weight falls with the distance between expert and auxiliary head; 4 to 32 in the paper."""
    bound: Probability = 0.1
    """The weight is 0 where exp(-distance), the auxiliary head's probability of the expert's action, is below this;
    0, as in the paper's experiments, never cuts."""
    smooth_expert_weight_decay: Annotated[float | None, In(0.0, 0.99, without=(0.0,))] = None
    """r: each weight also counts r^i times in the i-th step after it; None: off. Needs a memory."""
    stage: Probability = 0.0
    """1: imitation alone, without reinforcement learning; 0: weighted; in between, a mixture. `step:0=1,100000=0`
    switches from the first to the second."""
    distance: Distance = "auto"
    """log_prob: -log probability of the expert's action; squared: squared distance of actions, which is then also the
    imitation loss; auto: squared for Box actions."""
    aux_init: AuxInit = "same"
    """First weights of the auxiliary head: the policy head's, or new orthogonal ones (as in the paper)."""
    use_rollout_labels: bool = True
    """False: only the demonstrations teach, and the environment needs no expert."""
    demonstration_coef: Weight = 1.0
    """Weight of the losses on demonstrations."""
    batch_size: BatchSize = 256
    """Demonstrated steps per minibatch."""
    sequence_length: SequenceLength = 32
    """Steps per window of demonstrations, for a policy with a memory; divides `batch_size`."""

    def build(self, context: PartContext) -> Advisor:
        """Build the part."""
        return Advisor(context, self)


class Advisor(Part, Weights, Losses):
    """Weights imitation against PPO, step by step, with an auxiliary head on the policy's latent (sec. 3.2).

    With the expert's action e, m = 1 where there is one, and n = sum(m) over a minibatch:

        w   = m * pi_aux(e)^alpha, 0 where pi_aux(e) < bound (a constant: no gradient)
        L   = sum(m * -log pi_aux(e)) / max(n, 1)  +  mean(w * -log pi(e))
        PPO's surrogate and entropy count 1 - w; its value loss is not weighted.

    pi_aux(e) is exp(-d) with d = -log pi_aux(e), at most 1. For an expert's probabilities d is KL(expert || pi_aux) and
    -log pi(e) the full cross-entropy; with `distance="squared"`, d is ||a_aux - a_e||^2 between raw actions (of the
    distribution, the mode), and squared errors replace -log pi(e). The weight follows the auxiliary head from minibatch
    to minibatch. In the imitation stage the second term is sum(m * -log pi(e)) / max(n, 1), and PPO's surrogate and
    entropy count 0 (the critic keeps learning; `ppo.value_coef` may be a schedule, too).

    Demonstrations add the same two terms with m = 1 and the recorded action as e; PPO does not see them.

    A minibatch without labels (n = 0) is plain PPO. The observation contains the labels, so collecting needs no
    `Labels`. Logged: aux_loss, imitation_loss, weight (mean), nonzero_weight (share), demonstration_loss.

    Raises ValueError for labels that do not fit (at the first one, if it is out of range), numbers out of range,
    "squared" for discrete actions, and smoothing without a memory, whose minibatches are not in the order of time.
    """

    def __init__(self, context: PartContext, config: AdvisorConfig) -> None:
        super().__init__(context)
        policy = context.policy
        self.config, self.recurrent = config, policy.recurrent
        if not config.use_rollout_labels and not config.demonstrations:
            raise ValueError("use_rollout_labels=False leaves nothing to imitate: name demonstrations")
        self.squared = _is_squared(config, context.action_space)
        if config.smooth_expert_weight_decay is not None and not self.recurrent:
            raise ValueError(
                "smooth_expert_weight_decay needs a policy with a memory (policy.memory), whose minibatches are in the "
                "order of time; those of a feed-forward policy are shuffled steps"
            )
        self.head = policy.auxiliary_head(same=config.aux_init == "same").to(context.device)
        self.labels = ExpertLabels(context, config.labels) if config.use_rollout_labels else None
        self.demonstrations: Demonstrations | None = None
        if config.demonstrations:
            if self.recurrent:
                check_windows(config, config.batch_size, config.sequence_length)
            self.demonstrations = config.open(context, policy.sensor_keys, policy.action_map)
        self.alpha, self.bound = Scalar(config.alpha, context.device), Scalar(config.bound, context.device)
        self.stage = Scalar(config.stage, context.device)
        self.demonstration_coef = Scalar(config.demonstration_coef, context.device)

    def weight(self, batch: TensorDict, out: PolicyOutput) -> Tensor:
        """PPO's weight `[B]` or `[T, B]`: 1 - w, and 0 in the imitation stage."""
        if self.labels is None:
            return (1.0 - self.stage()).expand(out.value.shape)
        label = self.labels.read(batch["obs"], batch["valid"])
        aux_cost = self._cost(self.head(out.latents["actor"]), label)
        weight = self._expert_weight(aux_cost, label, batch["is_first"])
        return (1.0 - self.stage()) * (1.0 - weight)

    def sample(self, batch: TensorDict) -> TensorDict | None:
        """A minibatch of demonstrations. Also checks the first labels, as this code is not captured."""
        count = None
        if self.labels is not None:
            self.labels.check(batch["obs"], batch["valid"].shape)
            count = self.labels.count(batch)
        if self.demonstrations is None:
            return count
        length = self.config.sequence_length if self.recurrent else None
        drawn = draw_actions(self.demonstrations, self.config.batch_size, length, self.generator)
        return drawn if count is None else TensorDict({**drawn, **count}, [])

    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """L on the minibatch, and on demonstrations if there are any."""
        loss = out.value.new_zeros(())
        metrics: Metrics = {}
        if self.labels is not None:
            label = self.labels.read(batch["obs"], batch["valid"])
            count = batch.get((self.name, "sample", "count"), None)
            loss, metrics = self._imitate(out.distribution, out.latents["actor"], label, batch["is_first"], count)
        if self.demonstrations is not None:
            drawn = batch[self.name, "sample"]
            distribution, _, latents = policy.run_actor(drawn["obs"], None, drawn["is_first"])
            everywhere = torch.ones_like(drawn["is_first"])
            label = ExpertLabel(everywhere, drawn["action"], "action")
            extra, _ = self._imitate(distribution, latents["actor"], label, drawn["is_first"])
            loss = loss + self.demonstration_coef() * extra
            metrics["demonstration_loss"] = extra.detach()
        return loss, metrics

    def _imitate(
        self, main: Distribution, latent: Tensor, label: ExpertLabel, is_first: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        aux_cost = self._cost(self.head(latent), label)
        weight = self._expert_weight(aux_cost.detach(), label, is_first)
        aux_loss = masked_mean(aux_cost, label.mask, count)
        imitation = imitation_loss(self._cost(main, label), weight, label.mask, self.stage(), count)
        metrics = {"aux_loss": aux_loss, "imitation_loss": imitation, "weight": weight.mean()}
        metrics["nonzero_weight"] = (weight > 0).to(weight.dtype).mean()
        return aux_loss + imitation, {name: x.detach() for name, x in metrics.items()}

    def _cost(self, distribution: Distribution, label: ExpertLabel) -> Tensor:
        if not self.squared:
            return cross_entropy(distribution, label)
        return (distribution.mode() - label.target).square().sum(-1)

    def _expert_weight(self, aux_cost: Tensor, label: ExpertLabel, is_first: Tensor) -> Tensor:
        distance = aux_cost
        if label.kind == "policy":  # KL is the cross-entropy less the expert's own entropy
            distance = distance + torch.special.xlogy(label.target, label.target).sum(-1)
        weight = expert_weight(distance, label.mask, self.alpha(), self.bound())
        if self.config.smooth_expert_weight_decay is not None:
            weight = smooth_over_time(weight, is_first, self.config.smooth_expert_weight_decay) * label.mask
        return weight


def expert_weight(distance: Tensor, mask: Tensor, alpha: float | Tensor, bound: float | Tensor) -> Tensor:
    """w = mask * exp(-alpha max(d, 0)), 0 where exp(-d) < bound; any shape, the same for both.

    d is negative where a density exceeds 1 or where rounding makes a KL of 0 negative. Raises ValueError if the shapes
    differ.
    """
    if distance.shape != mask.shape:
        raise ValueError(f"distances {tuple(distance.shape)} and their mask {tuple(mask.shape)} must have one shape")
    near = torch.exp(-distance) >= bound
    return torch.where(mask & near, torch.exp(-alpha * distance.clamp(min=0.0)), 0.0)


def smoothing_steps(decay: float) -> int:
    """K = ceil(-log(1 + ((1 - r) / r) / 0.05) / log r) - 1: the last step at which r^K is more than 5 % of the sum."""
    return math.ceil(-math.log(1.0 + (1.0 - decay) / decay / 0.05) / math.log(decay)) - 1


def smooth_over_time(weight: Tensor, is_first: Tensor, decay: float) -> Tensor:
    """Each weight spread over the K = `smoothing_steps(r)` steps after it, `[T, ...]` in the order of time:

        w'_t = (w_t + sum_{i=1..K} r^i c_{t,i} w_{t-i}) / (1 + sum_i r^i c_{t,i})

    c_{t,i} = 1 if no episode starts in (t - i, t], else 0; steps before the first row are absent. Raises ValueError if
    the shapes differ.
    """
    if weight.shape != is_first.shape:
        raise ValueError(f"weights {tuple(weight.shape)} and is_first {tuple(is_first.shape)} must have one shape")
    continues = (~is_first).to(weight.dtype)
    total, count = weight, torch.ones_like(weight)
    earlier, connected = weight, torch.ones_like(weight)
    for i in range(1, smoothing_steps(decay) + 1):
        earlier, connected = _one_step_later(earlier), continues * _one_step_later(connected)
        total = total + decay**i * connected * earlier
        count = count + decay**i * connected
    return total / count


def imitation_loss(
    cost: Tensor, weight: Tensor, mask: Tensor, stage: float | Tensor, count: Tensor | None = None
) -> Tensor:
    """stage * sum(mask cost) / max(sum(mask), 1) + (1 - stage) * mean(weight cost), 0-D.

    The first term is the imitation stage's (`masked_mean` explains `count`); the second divides by all steps, labelled
    or not. Raises ValueError if the shapes differ.
    """
    if cost.shape != weight.shape:
        raise ValueError(f"costs {tuple(cost.shape)} and weights {tuple(weight.shape)} must have one shape")
    return stage * masked_mean(cost, mask, count) + (1.0 - stage) * (weight * cost).mean()


def _one_step_later(x: Tensor) -> Tensor:
    """x `[T, ...]` shifted to the next step; 0 in the first row."""
    return F.pad(x[:-1], (*[0] * (2 * (x.ndim - 1)), 1, 0))


def _is_squared(config: AdvisorConfig, action_space: spaces.Space[object]) -> bool:
    continuous = is_box(action_space)
    if config.distance == "squared" and not continuous:
        raise ValueError(f"distance='squared' is for Box actions, these are {action_space}: use 'log_prob'")
    return config.distance == "squared" or (config.distance == "auto" and continuous)
