"""What GAIL and AIRL share: a reward from a discriminator between the policy's transitions and an expert's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from tensordict import TensorDict
from torch import Tensor, nn

from understudy.data.recordings import Key
from understudy.parts.demonstrated import DemonstratedConfig
from understudy.parts.discriminator import Discriminator, DiscriminatorConfig
from understudy.parts.part import Part, PartContext, Rewards, Updates
from understudy.parts.transitions import Inputs, Normalization, SharedNormalizer, TransitionFeatures, policy_weight
from understudy.ppo.schedules import Number, Scalar, check_choice
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(DemonstratedConfig):
    """Options of GAIL and AIRL alike. Set `ppo.reward_weight` to 0 to learn from the expert alone."""

    reward_weight: Number = 1.0
    """Weight of the reward beside the task's, a number or a schedule."""
    observations: tuple[str, ...] = ("policy",)
    """Observation groups, or group/component names, that the discriminator sees."""
    inputs: Inputs = "state-action"
    """What it (AIRL: the recovered reward) sees of a transition; "state" gives AIRL a reward that transfers to other
    dynamics."""
    normalization: Normalization = "policy"
    """Statistics for expert and policy rows alike: the policy's own normaliser, own ones, or none."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator and how it learns; AIRL's reward and potential have its hidden layers each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("inputs", self.inputs, get_args(Inputs))
        check_choice("normalization", self.normalization, get_args(Normalization))


class AdversarialPart(Part, Rewards, Updates):
    """A reward from a discriminator, which then takes its steps on the rollout against rows of demonstrations.

    Both sides go through one normaliser. The rows of an expert that overrides actions are no policy rows.
    """

    def __init__(
        self,
        context: PartContext,
        config: AdversarialConfig,
        features: TransitionFeatures,
        normalizer: SharedNormalizer,
        network: nn.Module,
        *,
        extra_columns: int = 0,
        extra_keys: Sequence[Key] = (),
    ) -> None:
        """`network` reads the rows of `features` and, behind them, `extra_columns`, made from `extra_keys` besides."""
        super().__init__(context)
        self.features, self.normalizer = features, normalizer
        self.to(context.device)
        self.discriminator = Discriminator(
            network.to(context.device),
            config.discriminator,
            num_features=features.size,
            row_size=features.size + extra_columns,
            rollout_size=context.num_steps * context.num_envs,
            generator=self.generator,
        )
        self.weight = Scalar(config.reward_weight, context.device)
        self.demonstrations = config.open(context, list(dict.fromkeys((*features.components, *extra_keys))))
        if config.normalization == "own":
            self.normalizer.absorb(self._draw()["obs"])

    @property
    def reward_weight(self) -> Tensor:
        """0-D weight of the reward."""
        return self.weight()

    def _draw(self) -> TensorDict:
        """Transitions of the expert for one `_fit`."""
        count = self.discriminator.num_expert_rows
        return self.demonstrations.sample(count, self.generator, next_obs=self.uses_next_obs)

    def _fit(self, rollout: TensorDict, rows: Tensor, drawn: TensorDict, expert: Tensor) -> Metrics:
        """The discriminator's steps on raw rows `[n, C]` of the rollout and of the drawn transitions."""
        metrics = self.discriminator.fit(rows, expert, policy_weight(rollout).flatten(), self.normalizer)
        self.normalizer.absorb(rollout["obs"], rollout["valid"])
        self.normalizer.absorb(drawn["obs"])
        return metrics
