"""GAIL (Ho & Ermon 2016, arXiv:1606.03476): the reward is what a discriminator takes for the expert's doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.nn.policy import ActorCritic
from understudy.parts.adversarial import AdversarialConfig, AdversarialPart
from understudy.parts.discriminator import DiscriminatorNetwork, RewardForm, discriminator_reward
from understudy.parts.part import PartContext
from understudy.parts.transitions import SharedNormalizer, TransitionFeatures
from understudy.ppo.schedules import check_choice
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class GailConfig(AdversarialConfig):
    """Options of GAIL. Set `ppo.reward_weight` to 0 to learn from the expert alone."""

    reward_form: RewardForm = "softplus"
    """softplus: -log(1 - D), Tianshou's; log_d: log D; logit: log D - log(1 - D); least_squares: AMP's."""
    absorbing_states: bool = False
    """For tasks that end early or late: the end leads into a state of its own, whose reward is counted for ever."""

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

    With `absorbing_states` the end of the task leads into an absorbing state s_a that lasts for ever, for policy and
    expert alike: a row that terminates earns `r + gamma / (1 - gamma) r(s_a)`, and the discriminator sees one of its
    self-loops for each end (arXiv:1809.02925, sec. 4.2). Without it the sign of `reward_form` rewards or punishes
    ending by itself. Time limits are never ends of the task.

    Raises ValueError for demonstrations that do not fit the spaces, for images, and for absorbing states with gamma 1.
    """

    def __init__(self, context: PartContext, config: GailConfig) -> None:
        if config.absorbing_states and not context.gamma < 1.0:
            raise ValueError("absorbing states last for ever: gamma must be below 1")
        features = TransitionFeatures(
            context.observation_space, context.action_space, config.observations, config.inputs, config.absorbing_states
        )
        normalizer = SharedNormalizer(features, config.normalization, context.policy)
        network = DiscriminatorNetwork(features.size, config.discriminator)
        self.uses_next_obs = features.with_next_state
        super().__init__(context, config, features, normalizer, network)
        self.config = config
        # all steps after the end, as the return weighs them: gamma + gamma^2 + ...
        self.ever_after = context.gamma / (1.0 - context.gamma) if config.absorbing_states else 0.0

    def reward(self, rollout: TensorDict) -> Tensor:
        """The reward `[T, N]` of every transition of the rollout."""
        self.normalizer.refresh()
        reward = self._score(self.features.of_rollout(rollout))
        if self.config.absorbing_states:
            loop = self._score(self.features.absorbing_row(reward.device))
            reward = reward + rollout["terminated"] * (self.ever_after * loop)
        return reward

    def update(self, policy: ActorCritic, rollout: TensorDict) -> Metrics:
        """The discriminator's steps on this rollout."""
        rows, drawn = self.features.of_rollout(rollout).flatten(0, 1), self._draw()
        expert = self.features(drawn["obs"], drawn["executed_action"], drawn.get("next_obs"), drawn["terminated"])
        if self.config.absorbing_states:
            rows = self._with_loops(rows, rollout["terminated"].flatten())
            expert = self._with_loops(expert, drawn["terminated"])
        return self._fit(rollout, rows, drawn, expert)

    def _score(self, rows: Tensor) -> Tensor:
        return discriminator_reward(self.discriminator.logit(self.normalizer(rows)), self.config.reward_form)

    def _with_loops(self, rows: Tensor, terminated: Tensor) -> Tensor:
        """Rows `[n, C]`, some of them replaced by self-loops of the absorbing state: one for each end among them."""
        ends = terminated.float().mean()
        drawn = torch.rand(len(rows), 1, generator=self.generator, device=rows.device)
        return torch.where(drawn < ends / (1.0 + ends), self.features.absorbing_row(rows.device), rows)
