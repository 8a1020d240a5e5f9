"""GAIL (Ho & Ermon 2016, arXiv:1606.03476): a discriminator rewards transitions that look like the expert's."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDict
from torch import Tensor

from understudy.core.schedules import Scalar
from understudy.nn.protocol import Policy
from understudy.parts.shared.adversarial import AdversarialOptions, Adversary
from understudy.parts.shared.demonstrated import DemonstrationOptions
from understudy.parts.shared.discriminator import DiscriminatorNetwork, RewardForm, discriminator_reward
from understudy.parts.shared.transitions import SharedNormalizer, TransitionFeatures
from understudy.ppo.part import Part, PartConfig, PartContext, Rewards, Updates
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class GailConfig(AdversarialOptions, DemonstrationOptions, PartConfig):
    """Options of GAIL. Set `ppo.reward_weight` to 0 to learn from the expert alone."""

    reward_form: RewardForm = "softplus"
    """softplus: -log(1 - D), Tianshou's; log_d: log D; logit: log D - log(1 - D); least_squares: AMP's."""

    def build(self, context: PartContext) -> Gail:
        """Build the part."""
        return Gail(context, self)


class Gail(Part, Rewards, Updates):
    """Reward for transitions that a discriminator takes for the expert's (`discriminator_reward` has its forms).

    The discriminator of the previous rollout scores a rollout. Then it takes its steps on the rollout (and a replay of
    earlier ones) against rows drawn independently from the demonstrations (`Adversary`). `AbsorbingState` and
    `add_policy_noise` explain `absorbing_states` and `expert_noise`.

    Raises ValueError for demonstrations that do not fit the spaces, for images, for absorbing states with gamma 1, and
    for expert noise with a policy that is not Gaussian.
    """

    def __init__(self, context: PartContext, config: GailConfig) -> None:
        super().__init__(context)
        self.features = TransitionFeatures(
            context.observation_space, context.action_space, config.observations, config.inputs, config.absorbing_states
        )
        self.normalizer = SharedNormalizer(self.features, config.normalization, context.policy)
        network = DiscriminatorNetwork(self.features.size, config.discriminator)
        self.uses_next_obs, self.reward_form = self.features.with_next_state, config.reward_form
        self.to(context.device)
        self.weight = Scalar(config.reward_weight, context.device)
        self.adversary = Adversary(
            context,
            config,
            config.open(context, list(self.features.components)),
            self.features,
            self.normalizer,
            network,
            rows=lambda transitions, policy: self.features.of_rollout(transitions),
            score=self._score,
            generator=self.generator,
        )
        self.discriminator = self.adversary.discriminator

    @property
    def reward_weight(self) -> Tensor:
        """0-D weight of the reward."""
        return self.weight()

    def reward(self, rollout: TensorDict) -> Tensor:
        """The reward `[T, N]` of every transition of the rollout."""
        return self.adversary.reward(rollout)

    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """The discriminator's steps on this rollout."""
        return self.adversary.update(policy, rollout)

    def _score(self, rows: Tensor) -> Tensor:
        return discriminator_reward(self.discriminator.logit(self.normalizer(rows)), self.reward_form)
