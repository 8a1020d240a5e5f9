"""Imitate a scripted expert whose action is part of the observation, and let it act sometimes (teacher forcing).

A few numbers choose between behaviour cloning on the student's own states, DAgger (Ross et al. 2011, arXiv:1011.0686)
and cloning on the expert's states, each alone (`ppo.surrogate_coef` 0), beside PPO, or before it (schedules).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tensordict import TensorDict
from torch import Tensor

from understudy.core.schedules import Probability, Scalar, Weight
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.parts.shared.expert_labels import ExpertLabels, ExpertLabelsConfig, cross_entropy, masked_mean
from understudy.parts.shared.teacher_forcing import ForcingUnit, TeacherForcing, act_where_forced
from understudy.ppo.part import Labels, Losses, Overrides, Part, PartConfig, PartContext
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class ScriptedExpertConfig(PartConfig):
    """Options of a scripted expert."""

    labels: ExpertLabelsConfig = field(default_factory=ExpertLabelsConfig)
    """Observation groups that hold its labels."""
    imitation_coef: Weight = 1.0
    """Weight of the cross-entropy with its labels; 0: it only acts."""
    teacher_forcing: Probability = 0.0
    """Probability that it acts in the student's place, where it has a label."""
    teacher_forcing_unit: ForcingUnit = "step"
    """Draw for each step, or once for each episode."""

    def build(self, context: PartContext) -> ScriptedExpert:
        """Build the part."""
        return ScriptedExpert(context, self)


class ScriptedExpert(Part, Labels, Overrides, Losses):
    """Imitates an expert whose labels are in the observation, and lets it act with some probability.

    With the label e and its success m:

        L = imitation_coef * sum(m * -log pi(e | s)) / max(sum(m), 1)

    over the steps of a minibatch; with probabilities as labels, the full cross-entropy. Forced steps are off-policy:
    they count here, but PPO masks them in surrogate and entropy. An expert that gives probabilities draws its forced
    actions from them. Logged: cross_entropy, forced (share of the steps).

    Raises ValueError where labels do not fit the action space, at the first label if it is out of range, and for a
    probability outside [0, 1] or a negative coefficient.
    """

    def __init__(self, context: PartContext, config: ScriptedExpertConfig) -> None:
        super().__init__(context)
        self.labels = ExpertLabels(context, config.labels)
        self.forcing = TeacherForcing(
            config.teacher_forcing, config.teacher_forcing_unit, context.num_envs, context.device
        )
        self.imitation_coef = Scalar(config.imitation_coef, context.device)
        self._from_params = context.policy.head.from_params

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        """Raw `action` `[N, *A]`, and `forced` `[N]` where the expert acts now."""
        self.labels.check(obs, is_first.shape)
        label = self.labels.read(obs)
        action = label.target
        if label.kind == "policy":
            action = self._from_params(label.target.log()).sample(generator=self.generator)
        forced = self.forcing.draw(is_first, self.generator) & label.mask
        return TensorDict({"action": action, "forced": forced}, batch_size=is_first.shape)

    def override(self, action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
        """The expert's action where it acts."""
        return act_where_forced(action, label)

    def sample(self, batch: TensorDict) -> TensorDict | None:
        """Nothing but the number of labels, where there are several ranks."""
        return self.labels.count(batch)

    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """The loss above."""
        label = self.labels.read(batch["obs"], batch["valid"])
        count = batch.get((self.name, "sample", "count"), None)
        loss = masked_mean(cross_entropy(out.distribution, label), label.mask, count)
        forced = batch[self.name, "forced"].to(loss.dtype).mean()
        return self.imitation_coef() * loss, {"cross_entropy": loss.detach(), "forced": forced}
