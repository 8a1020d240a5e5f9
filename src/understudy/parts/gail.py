"""GAIL (Ho & Ermon 2016, arXiv:1606.03476): the reward is what a discriminator takes for the expert's doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from tensordict import TensorDict
from torch import Tensor

from understudy.core.check import check_choice
from understudy.nn.policy import ActorCritic
from understudy.parts.shared.adversarial import AdversarialConfig, AdversarialPart
from understudy.parts.shared.discriminator import DiscriminatorNetwork, RewardForm, discriminator_reward
from understudy.parts.shared.transitions import SharedNormalizer, TransitionFeatures
from understudy.ppo.part import PartContext
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class GailConfig(AdversarialConfig):
    """Options of GAIL. Set `ppo.reward_weight` to 0 to learn from the expert alone."""

    reward_form: RewardForm = "softplus"
    """softplus: -log(1 - D), Tianshou's; log_d: log D; logit: log D - log(1 - D); least_squares: AMP's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reward_form", self.reward_form, get_args(RewardForm))

    def build(self, context: PartContext) -> Gail:
        """Build the part."""
        return Gail(context, self)


class Gail(AdversarialPart):
    """Reward for transitions that a discriminator takes for the expert's (`discriminator_reward` has its forms).

    A rollout is scored with the discriminator as the previous one left it, then the discriminator takes its steps on
    the rollout (and a replay of earlier ones) against rows drawn independently from the demonstrations. Both sides are
    normalised by one and the same map. The rows of an expert that overrides actions are no policy rows.

    Raises ValueError for demonstrations that do not fit the spaces, for images, for absorbing states with gamma 1, and
    for expert noise with a policy that is not Gaussian.
    """

    def __init__(self, context: PartContext, config: GailConfig) -> None:
        features = TransitionFeatures(
            context.observation_space, context.action_space, config.observations, config.inputs, config.absorbing_states
        )
        normalizer = SharedNormalizer(features, config.normalization, context.policy)
        network = DiscriminatorNetwork(features.size, config.discriminator)
        self.uses_next_obs = features.with_next_state
        super().__init__(context, config, features, normalizer, network)
        self.config = config

    def reward(self, rollout: TensorDict) -> Tensor:
        """The reward `[T, N]` of every transition of the rollout."""
        return self._scored(rollout, self.features.of_rollout(rollout))

    def update(self, policy: ActorCritic, rollout: TensorDict) -> Metrics:
        """The discriminator's steps on this rollout."""
        drawn = self._draw_against(rollout)
        return self._fit(rollout, self.features.of_rollout(rollout), drawn, self.features.of_rollout(drawn))

    def _score(self, rows: Tensor) -> Tensor:
        return discriminator_reward(self.discriminator.logit(self.normalizer(rows)), self.config.reward_form)
