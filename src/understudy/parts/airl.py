"""AIRL (Fu et al. 2018, arXiv:1710.11248): a discriminator that contains a reward function to recover."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from understudy.core.schedules import Scalar
from understudy.nn.protocol import Policy
from understudy.parts.shared.adversarial import AdversarialOptions, Adversary
from understudy.parts.shared.demonstrated import DemonstrationOptions
from understudy.parts.shared.discriminator import discriminator_reward, make_mlp
from understudy.parts.shared.transitions import Inputs, SharedNormalizer, TransitionFeatures
from understudy.ppo.part import Part, PartConfig, PartContext, Rewards, Updates
from understudy.types import Metrics

AirlRewardForm = Literal["logit", "shaped", "softplus"]


@dataclass(frozen=True, kw_only=True)
class AirlConfig(AdversarialOptions, DemonstrationOptions, PartConfig):
    """Options of AIRL. Set `ppo.reward_weight` to 0 to learn from the expert alone."""

    reward_form: AirlRewardForm = "logit"
    """Reward of the policy. logit: f - log pi, the paper's; shaped: f alone, as in imitation; softplus: -log(1 - D),
    which is positive. The first two need `absorbing_states`, or they teach a robot that may fall to end early."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discriminator.loss != "bce":
            raise ValueError("AIRL's discriminator is a probability: discriminator.loss must be 'bce'")
        if self.discriminator.replay_size:
            raise ValueError(
                "AIRL needs the probability of an action under the policy that took it: discriminator.replay_size must "
                "be 0 (Gail takes a replay)"
            )

    def build(self, context: PartContext) -> Airl:
        """Build the part."""
        return Airl(context, self)


def shaped_reward(base: Tensor, potential: Tensor, next_potential: Tensor, continues: Tensor, gamma: float) -> Tensor:
    """`f = g + gamma (1 - terminated) h(s') - h(s)`, from g, h(s), h(s') and `continues = 1 - terminated`, `[B]` each.

    (arXiv:1710.11248, eq. 4.) At a time limit, which does not end the task, h(s') counts. Raises ValueError for
    shapes that would broadcast.
    """
    shapes = {tuple(x.shape) for x in (base, potential, next_potential, continues)}
    if len(shapes) != 1:
        raise ValueError(f"g, h(s), h(s') and continues must have one shape, got {sorted(shapes)}")
    return base + gamma * continues * next_potential - potential


class AirlNetwork(nn.Module):
    """Logits `f(s, a, s') - log pi(a|s)` of rows: features, whether a state follows, log pi; `[B, C]` to `[B]`."""

    def __init__(self, features: TransitionFeatures, config: AirlConfig, gamma: float) -> None:
        super().__init__()
        self.gamma, self.state_size = gamma, features.state_size
        self.next_state = slice(features.state_starts[1], features.size)
        with_next_state = "next-state" in config.inputs
        self.base_columns = features.size if with_next_state else features.state_starts[1]
        self.base = make_mlp(self.base_columns, config.discriminator.hidden_sizes, config.discriminator)
        self.potential = make_mlp(features.state_size, config.discriminator.hidden_sizes, config.discriminator)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits `[...]` of normalised rows `[..., C]`."""
        return self.shaped(rows) - rows[..., -1]

    def shaped(self, rows: Tensor) -> Tensor:
        """f `[...]`."""
        # both states in one pass
        states = torch.stack((rows[..., : self.state_size], rows[..., self.next_state]))
        potential, next_potential = self.potential(states).squeeze(-1).unbind(0)
        return shaped_reward(self.recovered(rows), potential, next_potential, rows[..., -2], self.gamma)

    def recovered(self, rows: Tensor) -> Tensor:
        """g `[...]`."""
        return self.base(rows[..., : self.base_columns]).squeeze(-1)


class RewardFunction(nn.Module):
    """The recovered reward g, a function of raw observations `[...]` and executed actions `[..., *A]`."""

    def __init__(self, features: TransitionFeatures, normalizer: SharedNormalizer, network: AirlNetwork) -> None:
        super().__init__()
        self.features, self.normalizer, self.network = features, normalizer, network

    @torch.no_grad()
    def forward(self, obs: TensorDictBase, action: Tensor, next_obs: TensorDictBase | None = None) -> Tensor:
        """g `[...]`; `next_obs` is only needed if `inputs` names the next state."""
        needed = self.network.base_columns == self.features.size
        if needed and next_obs is None:
            raise ValueError("this reward reads the next state: pass next_obs")
        following = next_obs if needed else obs  # fills columns that g does not read
        never = torch.zeros(obs.batch_size, dtype=torch.bool, device=action.device)
        rows = self.features(obs, action, following, never)
        extra = rows.new_zeros(*rows.shape[:-1], 2)
        return self.network.recovered(self.normalizer(torch.cat((rows, extra), dim=-1)))

    def load_part_state(self, modules: Mapping[str, Tensor]) -> None:
        """Load the `modules` of a trained `Airl`'s `training_state`."""
        state = {name.removeprefix("discriminator."): x for name, x in modules.items()}
        self.load_state_dict({name: x for name, x in state.items() if name.startswith(("normalizer.", "network."))})


def build_reward(policy: Policy, config: AirlConfig, gamma: float) -> RewardFunction:
    """An untrained reward function for the spaces and normalisers of a policy."""
    inputs: Inputs = "state-action-next-state" if "action" in config.inputs else "state-next-state"
    features = TransitionFeatures(
        policy.observation_space, policy.action_space, config.observations, inputs, config.absorbing_states
    )
    normalizer = SharedNormalizer(features, config.normalization, policy, extra=2)
    return RewardFunction(features, normalizer, AirlNetwork(features, config, gamma))


class Airl(Part, Rewards, Updates):
    """Reward from a discriminator `D = sigmoid(f - log pi)` that contains a reward function to recover.

        f = g(s, a) + gamma (1 - terminated) h(s') - h(s),        reward = log D - log(1 - D) = f - log pi

    g is the recovered reward (`reward_function`), h a potential that absorbs how far a state is from good ones. log pi
    is the policy's log-density at the executed action, brought back to raw units, for expert and policy rows alike: a
    raw action beyond the bounds, which no demonstration has, does not give the policy away. `AbsorbingState` and
    `add_policy_noise` explain `absorbing_states` and `expert_noise`.

    Raises ValueError for demonstrations that do not fit the spaces, for images, for absorbing states with gamma 1, for
    expert noise with a policy that is not Gaussian, and for recurrent policies: AIRL asks for the probability of the
    expert's actions row by row.
    """

    uses_next_obs = True

    def __init__(self, context: PartContext, config: AirlConfig) -> None:
        if context.policy.recurrent:
            raise ValueError("AIRL needs a feed-forward policy: set policy.memory to none, or use Gail")
        super().__init__(context)
        model = build_reward(context.policy, config, context.gamma)
        self.features, self.normalizer, self.reward_form = model.features, model.normalizer, config.reward_form
        # methods, not modules: the policy does not belong to this part
        self.behaviour, self.raw_action = context.policy.head.from_params, context.policy.action_map.inverse
        self.to(context.device)
        self.weight = Scalar(config.reward_weight, context.device)
        keys = list(dict.fromkeys((*self.features.components, *context.policy.sensor_keys)))
        self.adversary = Adversary(
            context,
            config,
            config.open(context, keys),
            self.features,
            self.normalizer,
            model.network,
            rows=self._rows,
            score=self._score,
            generator=self.generator,
            others=(1.0, 0.0),  # a state follows, and no policy acts
        )
        self.discriminator = self.adversary.discriminator

    @property
    def reward_weight(self) -> Tensor:
        """0-D weight of the reward."""
        return self.weight()

    def reward(self, rollout: TensorDict) -> Tensor:
        """f - log pi, f or -log(1 - D), `[T, N]`, of every transition of the rollout."""
        return self.adversary.reward(rollout)

    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """The discriminator's steps on this rollout."""
        return self.adversary.update(policy, rollout)

    def reward_function(self) -> RewardFunction:
        """The reward recovered so far, as a copy that further training does not change."""
        network = self.discriminator.network
        assert isinstance(network, AirlNetwork)
        return copy.deepcopy(RewardFunction(self.features, self.normalizer, network)).eval()

    def _score(self, rows: Tensor) -> Tensor:
        logit = self.discriminator.logit(self.normalizer(rows))
        if self.reward_form == "shaped":
            return logit + rows[..., -1]
        return discriminator_reward(logit, self.reward_form)

    @torch.no_grad()
    def _rows(self, transitions: TensorDict, policy: Policy | None) -> Tensor:
        """Raw rows `[..., C]`: features, whether a state follows, log pi of the executed action."""
        behaviour = self.behaviour(transitions["params"]) if policy is None else policy.distribution(transitions["obs"])
        features = self.features.of_rollout(transitions)
        log_prob = behaviour.log_prob(self.raw_action(transitions["executed_action"]))
        follows = torch.ones_like(log_prob) if self.features.absorbing else (~transitions["terminated"]).float()
        return torch.cat((features, torch.stack((follows, log_prob), dim=-1)), dim=-1)
