"""Random network distillation (Burda et al. 2018, arXiv:1810.12894): a bonus for rarely seen states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.check import Filled, In, Size
from understudy.core.schedules import RewardWeight, Scalar
from understudy.nn.networks import MLP, Activation
from understudy.nn.normalization import ObservationNormalizer, RunningMeanStd
from understudy.nn.protocol import Policy
from understudy.parts.shared.features import FeatureReader
from understudy.ppo.optim import Optimizer, OptimizerConfig, gradient_step
from understudy.ppo.part import Part, PartConfig, PartContext, Rewards, Updates
from understudy.ppo.returns import discounted_sums
from understudy.types import Metrics


@dataclass(frozen=True, kw_only=True)
class RandomNetworkDistillationConfig(PartConfig):
    """Options of random network distillation."""

    reward_weight: RewardWeight = 0.1
    """Weight of the bonus, a number or a schedule."""
    observations: Annotated[tuple[str, ...], Filled()] = ("policy",)
    """Observation groups, or group/component names, that make up the state."""
    num_outputs: Size = 64
    """Size of the random features."""
    predictor_hidden_sizes: tuple[Size, ...] = (128, 128)
    """Hidden layers of the network that learns."""
    target_hidden_sizes: tuple[Size, ...] = (128, 128)
    """Hidden layers of the fixed random network."""
    activation: Activation = "elu"
    """Hidden activation of both."""
    normalize_observations: bool = True
    """Normalise the state by running statistics, which only move after a rollout was scored and learnt from."""
    normalize_reward: bool = True
    """Divide the bonus by the running standard deviation of its discounted sum."""
    epochs: Annotated[int, In(1, 1000)] = 1
    """Passes of the predictor over each rollout."""
    minibatches: Annotated[int, In(1, 100_000)] = 4
    """Minibatches per pass."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    """Optimizer of the predictor."""

    def build(self, context: PartContext) -> RandomNetworkDistillation:
        """Build the part."""
        return RandomNetworkDistillation(context, self)


class RandomNetworkDistillation(Part, Rewards, Updates):
    """Bonus for novel states: bonus(s') = ||predictor(s') - target(s')||_2, `[T, N]`, on the true next observation.

    The target is fixed and random; the predictor minimises the mean squared error on visited states
    (arXiv:1810.12894, sec. 2.2). `normalize_reward` divides the bonus by the running standard deviation of its
    discounted sum, which runs on through the ends of episodes (sec. 2.3). Raises ValueError for unknown observation
    names.
    """

    uses_next_obs = True

    def __init__(self, context: PartContext, config: RandomNetworkDistillationConfig) -> None:
        super().__init__(context)
        self.config, self.gamma = config, context.gamma
        self.read = FeatureReader(context.observation_space, config.observations)
        size = self.read.size
        hidden, out = config.predictor_hidden_sizes, config.num_outputs
        self.predictor = MLP(size, hidden, out, activation=config.activation)
        self.target = MLP(size, config.target_hidden_sizes, out, activation=config.activation).requires_grad_(False)
        self.normalizer = ObservationNormalizer(size, clip=5.0) if config.normalize_observations else None
        self.returns = RunningMeanStd()
        self.register_buffer("running", torch.zeros(context.num_envs))
        self.running: Tensor
        self.to(context.device)
        self.weight = Scalar(config.reward_weight, context.device)
        self.optimizer = Optimizer(self.predictor.parameters(), config.optimizer)

    @property
    def reward_weight(self) -> Tensor:
        """0-D weight of the bonus."""
        return self.weight()

    def reward(self, rollout: TensorDict) -> Tensor:
        """The bonus `[T, N]`."""
        x = self._state(rollout)
        bonus = torch.linalg.vector_norm(self.predictor(x) - self.target(x), dim=-1)
        if not self.config.normalize_reward:
            return bonus
        sums = discounted_sums(bonus, torch.full_like(bonus, self.gamma), self.running * self.gamma)
        self.running.copy_(sums[-1])
        self.returns.update(sums, rollout["valid"])
        return bonus / self.returns.std

    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """Fit the predictor to the target on the rollout; then the normaliser absorbs it."""
        x, valid = self._state(rollout).flatten(0, 1), rollout["valid"].flatten().float()
        losses = []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(x), generator=self.generator, device=x.device)
            for rows in order.chunk(self.config.minibatches):
                state = x[rows]
                error = self.predictor(state) - self.target(state)
                loss = (error * error * valid[rows].unsqueeze(-1)).mean()
                gradient_step(self.optimizer, loss)
                losses.append(loss.detach())
        if self.normalizer is not None:
            self.normalizer.update(self.read(rollout["next_obs"]), rollout["valid"])
        return {"loss": torch.stack(losses).mean()}

    def _state(self, rollout: TensorDict) -> Tensor:
        x = self.read(rollout["next_obs"])  # [T, N, D]
        return x if self.normalizer is None else self.normalizer(x)
