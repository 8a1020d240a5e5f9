"""Reward a policy for transitions that look like an expert's: everything that GAIL and AIRL share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import ranks
from understudy.core.check import Config, Filled
from understudy.core.schedules import RewardWeight
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.nn.distributions import DiagGaussian
from understudy.nn.protocol import Policy
from understudy.parts.shared.discriminator import Discriminator, DiscriminatorConfig, weighted_mean
from understudy.parts.shared.transitions import (
    Inputs,
    Normalization,
    SharedNormalizer,
    TransitionFeatures,
    policy_weight,
)
from understudy.ppo.part import PartContext
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions(Config):
    """Options of GAIL and AIRL alike."""

    reward_weight: RewardWeight = 1.0
    """Weight of the reward beside the task's, a number or a schedule."""
    observations: Annotated[tuple[str, ...], Filled()] = ("policy",)
    """Observation groups, or group/component names, that the discriminator sees."""
    inputs: Inputs = "state-action"
    """The part of a transition that it (AIRL: the recovered reward) sees; "state" gives AIRL a reward that transfers to
    other dynamics."""
    normalization: Normalization = "policy"
    """Statistics for expert and policy rows alike: the policy's own normaliser, separate ones, or none."""
    absorbing_states: bool = False
    """For tasks that end early or late: the end leads into a state of its own, whose reward counts for all later
    steps."""
    center_reward: bool = False
    """Subtract the rollout's mean from the reward, which drifts as the discriminator learns; the critic would have to
    follow. Keeps optimal policies with `absorbing_states`, or where only time limits end episodes."""
    expert_noise: bool | None = False
    """Add the policy's own noise to the expert's actions, so that exploration around the expert's actions does not give
    the policy away. None: for Gaussian policies."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator and how it learns; AIRL's reward and potential each have its hidden layers."""


def add_policy_noise(policy: Policy, executed: Tensor, params: Tensor, generator: torch.Generator) -> Tensor:
    """An expert's executed actions `[n, D]` with the noise of a rollout's distribution parameters `[T, N, P]`.

    The raw action a becomes a + s e: s the standard deviation that the policy explored with, e standard normal; the sum
    is bounded like the policy's own actions. A policy N(mu, s^2) with the expert's action as mu then has the expert's
    distribution. Without noise, an expert that always takes its best action differs from any policy that explores, and
    the reward teaches little more than to stop exploring (Arjovsky & Bottou 2017, arXiv:1701.04862, add separate noise
    to both sides).
    """
    behaviour, raw = policy.head.from_params(params), policy.action_map.inverse(executed)
    assert isinstance(behaviour, DiagGaussian)
    # one number per action dimension, even if the policy's depends on the state
    std = ranks.mean(behaviour.log_std.flatten(0, -2).mean(0)).exp()
    executed = policy.action_map(raw + std * torch.randn(raw.shape, generator=generator, device=raw.device))
    return executed


class AbsorbingState(NamedTuple):
    """The state s_a after the end of the task, for policy and expert alike; it lasts for all later steps.

    A row that terminates earns `r + gamma / (1 - gamma) r(s_a)`, and the discriminator sees one self-loop of s_a for
    each end (Kostrikov et al. 2019, arXiv:1809.02925, sec. 4.2). Without it, the sign of the reward by itself rewards
    or punishes ending. Time limits never end the task.
    """

    row: Tensor  # [C], the self-loop
    ever_after: float  # gamma + gamma^2 + ...: all steps after the end, as the return weighs them

    def with_loops(self, rows: Tensor, terminated: Tensor, generator: torch.Generator) -> Tensor:
        """Replace some of the rows `[n, C]` by self-loops: one for each end among them."""
        ends = ranks.mean(terminated.float().mean())
        drawn = torch.rand(len(rows), 1, generator=generator, device=rows.device)
        return torch.where(drawn < ends / (1.0 + ends), self.row, rows)


class Adversary:
    """The part of GAIL and AIRL that they share: a discriminator of rows, its reward, and its steps against the expert.

    `rows(transitions, policy)` gives raw rows `[..., C]` of a rollout (policy None) or of the expert's transitions, and
    `score(rows)` their reward `[...]`. `network` reads the columns of `features`, then `others`, whose values in the
    absorbing state are given. One normaliser serves both sides. Rows where an expert overrode the action do not count
    as the policy's.

    Raises ValueError for absorbing states with gamma 1, and for expert noise where the policy is not Gaussian.
    """

    def __init__(
        self,
        context: PartContext,
        config: AdversarialOptions,
        demonstrations: Demonstrations,
        features: TransitionFeatures,
        normalizer: SharedNormalizer,
        network: nn.Module,
        *,
        rows: Callable[[TensorDict, Policy | None], Tensor],
        score: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        others: Sequence[float] = (),
    ) -> None:
        self.rows, self.score, self.normalizer, self.generator = rows, score, normalizer, generator
        self.demonstrations, self.with_next_obs = demonstrations, features.with_next_state
        self.centers, self.noisy = config.center_reward, _wants_noise(context, config)
        self.absorbing: AbsorbingState | None = None
        if config.absorbing_states:
            if not context.gamma < 1.0:
                raise ValueError("absorbing states never end: gamma must be below 1")
            row = torch.cat((features.absorbing_row(context.device), torch.tensor(others, device=context.device)))
            self.absorbing = AbsorbingState(row, context.gamma / (1.0 - context.gamma))
        self.discriminator = Discriminator(
            network.to(context.device),
            config.discriminator,
            num_features=features.size,
            row_size=features.size + len(others),
            rollout_size=context.num_steps * context.num_envs,
            generator=generator,
        )
        if config.normalization == "own":
            normalizer.absorb(self._draw()["obs"])

    def reward(self, rollout: TensorDict) -> Tensor:
        """The reward `[T, N]` of a rollout."""
        self.normalizer.refresh()
        reward, absorbing = self.score(self.rows(rollout, None)), self.absorbing
        after: Tensor | float = 0.0 if absorbing is None else self.score(absorbing.row)
        if self.centers:
            valid = rollout["valid"]
            share = ranks.share(valid.sum().float())
            mean = ranks.mean(weighted_mean(torch.where(valid, reward, 0.0), valid.float(), share))
            reward, after = reward - mean, after - mean
        return reward if absorbing is None else reward + rollout["terminated"] * (absorbing.ever_after * after)

    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """The discriminator's steps on a rollout; then the normaliser absorbs both sides."""
        drawn = self._draw()
        if self.noisy:
            executed = drawn["executed_action"]
            drawn["executed_action"] = add_policy_noise(policy, executed, rollout["params"], self.generator)
        rows, expert = self.rows(rollout, None).flatten(0, 1), self.rows(drawn, policy)
        if self.absorbing is not None:
            rows = self.absorbing.with_loops(rows, rollout["terminated"].flatten(), self.generator)
            expert = self.absorbing.with_loops(expert, drawn["terminated"], self.generator)
        metrics = self.discriminator.fit(rows, expert, policy_weight(rollout).flatten(), self.normalizer)
        self.normalizer.absorb(rollout["obs"], rollout["valid"])
        self.normalizer.absorb(drawn["obs"])
        return metrics

    def _draw(self) -> TensorDict:
        """The expert's transitions for one `update`."""
        count = self.discriminator.num_expert_rows
        return self.demonstrations.sample(count, self.generator, next_obs=self.with_next_obs)


def _wants_noise(context: PartContext, config: AdversarialOptions) -> bool:
    gaussian = context.policy.head.kind == "gaussian"
    if config.expert_noise and not gaussian:
        raise ValueError(
            "expert_noise gives the expert's actions a Gaussian policy's noise, and this policy is not one: set it "
            "to False (or None), or policy.distribution.kind to 'gaussian'"
        )
    return gaussian if config.expert_noise is None else config.expert_noise
