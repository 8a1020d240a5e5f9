"""What GAIL and AIRL share: a reward from a discriminator between the policy's transitions and an expert's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core.check import check_choice
from understudy.core.schedules import Number, Scalar
from understudy.data.demonstrations.read import Key
from understudy.nn.distributions import DiagGaussian
from understudy.parts.shared.demonstrated import DemonstratedConfig
from understudy.parts.shared.discriminator import Discriminator, DiscriminatorConfig, weighted_mean
from understudy.parts.shared.transitions import (
    Inputs,
    Normalization,
    SharedNormalizer,
    TransitionFeatures,
    policy_weight,
)
from understudy.ppo.part import Part, PartContext, Rewards, Updates
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
    absorbing_states: bool = False
    """For tasks that end early or late: the end leads into a state of its own, whose reward is counted for ever."""
    center_reward: bool = False
    """Take the rollout's mean off the reward, which drifts as the discriminator learns and which values would have to
    follow. Optimal policies stay what they are with `absorbing_states`, or where no episode ends but by time."""
    expert_noise: bool | None = False
    """Give the expert's actions the policy's own noise while they are compared, so that a policy which only explores
    around the expert's actions is not told apart by that. None: where the policy is Gaussian."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator and how it learns; AIRL's reward and potential have its hidden layers each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("inputs", self.inputs, get_args(Inputs))
        check_choice("normalization", self.normalization, get_args(Normalization))


class AdversarialPart(Part, Rewards, Updates):
    """A reward from a discriminator, which then takes its steps on the rollout against rows of demonstrations.

    Both sides go through one normaliser. The rows of an expert that overrides actions are no policy rows.

    With `absorbing_states` the end of the task leads into an absorbing state s_a that lasts for ever, for policy and
    expert alike: a row that terminates earns `r + gamma / (1 - gamma) r(s_a)`, and the discriminator sees one of its
    self-loops for each end (Kostrikov et al. 2019, arXiv:1809.02925, sec. 4.2). Without it the sign of the reward
    rewards or punishes ending by itself. Time limits are never ends of the task.

    With `expert_noise` an expert's action a, in the policy's units, is seen as a + s e: s the standard deviation that
    the policy explored with, e standard normal, the sum bounded as the policy's own. A policy N(mu, s^2) whose mu is
    what the expert does then has the expert's distribution. An expert that always takes its best action is otherwise
    told from any policy that explores, and the reward teaches little else than to stop exploring (what Arjovsky &
    Bottou 2017, arXiv:1701.04862, do with a noise of its own on both sides).
    """

    def __init__(
        self,
        context: PartContext,
        config: AdversarialConfig,
        features: TransitionFeatures,
        normalizer: SharedNormalizer,
        network: nn.Module,
        *,
        loop: Sequence[float] = (),
        extra_keys: Sequence[Key] = (),
    ) -> None:
        """`network` reads the columns of `features` and those behind them, which are `loop` in the absorbing state.

        `extra_keys` of the demonstrations are read beside those of the features. Raises ValueError for absorbing states
        with gamma 1, and for expert noise where the policy is not Gaussian.
        """
        if config.absorbing_states and not context.gamma < 1.0:
            raise ValueError("absorbing states last for ever: gamma must be below 1")
        gaussian = context.policy.head.kind == "gaussian"
        if config.expert_noise and not gaussian:
            raise ValueError(
                "expert_noise gives the expert's actions a Gaussian policy's noise, and this policy is not one: set it "
                "to False (or None), or policy.distribution.kind to 'gaussian'"
            )
        super().__init__(context)
        self.features, self.normalizer = features, normalizer
        # methods, not modules: the policy is no part of this part
        self.behaviour = context.policy.head.from_params
        self.execute, self.raw_action = context.policy.action_map.forward, context.policy.action_map.inverse
        self.expert_noise = gaussian if config.expert_noise is None else config.expert_noise
        self.to(context.device)
        self.discriminator = Discriminator(
            network.to(context.device),
            config.discriminator,
            num_features=features.size,
            row_size=features.size + len(loop),
            rollout_size=context.num_steps * context.num_envs,
            generator=self.generator,
        )
        self.weight, self.centers = Scalar(config.reward_weight, context.device), config.center_reward
        self.loop: Tensor | None = None  # the row [C] of the absorbing state
        if config.absorbing_states:
            behind = torch.tensor(loop, device=context.device)
            self.loop = torch.cat((features.absorbing_row(context.device), behind))
            # all steps after the end, as the return weighs them: gamma + gamma^2 + ...
            self.ever_after = context.gamma / (1.0 - context.gamma)
        self.demonstrations = config.open(context, list(dict.fromkeys((*features.components, *extra_keys))))
        if config.normalization == "own":
            self.normalizer.absorb(self._draw()["obs"])

    @property
    def reward_weight(self) -> Tensor:
        """0-D weight of the reward."""
        return self.weight()

    @abstractmethod
    def _score(self, rows: Tensor) -> Tensor:
        """The reward `[...]` of raw rows `[..., C]`."""

    def _scored(self, rollout: TensorDict, rows: Tensor) -> Tensor:
        """The reward `[T, N]` of a rollout with raw rows `[T, N, C]`."""
        self.normalizer.refresh()
        reward = self._score(rows)
        ever: Tensor | float = 0.0 if self.loop is None else self._score(self.loop)  # in the absorbing state
        if self.centers:
            valid = rollout["valid"]
            mean = weighted_mean(torch.where(valid, reward, 0.0), valid.float())
            reward, ever = reward - mean, ever - mean
        return reward if self.loop is None else reward + rollout["terminated"] * (self.ever_after * ever)

    def _draw(self) -> TensorDict:
        """Transitions of the expert for one `_fit`."""
        count = self.discriminator.num_expert_rows
        return self.demonstrations.sample(count, self.generator, next_obs=self.uses_next_obs)

    def _draw_against(self, rollout: TensorDict) -> TensorDict:
        """Transitions of the expert for one `_fit`, with the noise of the rollout's policy if that is asked for."""
        drawn = self._draw()
        if self.expert_noise:
            behaviour = self.behaviour(rollout["params"])
            assert isinstance(behaviour, DiagGaussian)
            raw = self.raw_action(drawn["executed_action"])
            # one number per action, also where the policy's depends on the state
            std = behaviour.log_std.flatten(0, -2).mean(0).exp()
            noise = torch.randn(raw.shape, generator=self.generator, device=raw.device)
            drawn["executed_action"] = self.execute(raw + std * noise)
        return drawn

    def _fit(self, rollout: TensorDict, rows: Tensor, drawn: TensorDict, expert: Tensor) -> Metrics:
        """The discriminator's steps on raw rows `[T, N, C]` of the rollout and `[n, C]` of the drawn transitions."""
        rows = self._with_loops(rows.flatten(0, 1), rollout["terminated"].flatten())
        expert = self._with_loops(expert, drawn["terminated"])
        metrics = self.discriminator.fit(rows, expert, policy_weight(rollout).flatten(), self.normalizer)
        self.normalizer.absorb(rollout["obs"], rollout["valid"])
        self.normalizer.absorb(drawn["obs"])
        return metrics

    def _with_loops(self, rows: Tensor, terminated: Tensor) -> Tensor:
        """Rows `[n, C]`, some of them replaced by self-loops of the absorbing state: one for each end among them."""
        if self.loop is None:
            return rows
        ends = terminated.float().mean()
        drawn = torch.rand(len(rows), 1, generator=self.generator, device=rows.device)
        return torch.where(drawn < ends / (1.0 + ends), self.loop, rows)
