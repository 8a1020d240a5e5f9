"""What adversarial parts share: discriminator losses, rewards, penalty and metrics, replay, and the own optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from understudy.core import ranks
from understudy.core.capture import Batch, unbind
from understudy.core.check import Config, In, Size
from understudy.core.devices import check_memory
from understudy.core.schedules import Scalar, Weight
from understudy.nn.networks import MLP, Activation
from understudy.ppo.metrics import mean_statistics
from understudy.ppo.optim import Optimizer, OptimizerConfig, capture_gradient, gradient_step
from understudy.types import Metrics

DiscriminatorLoss = Literal["bce", "least_squares"]
RewardForm = Literal["softplus", "log_d", "logit", "least_squares"]
Penalty = Literal["interpolates", "expert", "both"]

STATISTICS = ("loss", "loss_pi", "loss_exp", "penalty", "acc_pi", "acc_exp", "logit_pi", "logit_exp")
"""Names of what one step reports."""


# ---------------------------------------------------------------------- pure functions


def discriminator_loss(
    policy: Tensor, expert: Tensor, weight: Tensor | None = None, kind: DiscriminatorLoss = "bce"
) -> Tensor:
    """The sum of both `discriminator_losses`, 0-D."""
    of_policy, of_expert = discriminator_losses(policy, expert, weight, kind)
    return of_policy + of_expert


def discriminator_losses(
    policy: Tensor,
    expert: Tensor,
    weight: Tensor | None = None,
    kind: DiscriminatorLoss = "bce",
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The policy's and the expert's loss of a discriminator, 0-D each; its logits l `[B]` are high on expert rows.

        bce:            E_pi[softplus(l)] + E_E[softplus(-l)]           (Ho & Ermon 2016, arXiv:1606.03476)
        least_squares:  1/2 E_pi[(l + 1)^2] + 1/2 E_E[(l - 1)^2]        (Peng et al. 2021, arXiv:2104.02180, eq. 6)

    The binary cross-entropies are written in logits, where no probability can saturate. `weight` `[B]` weighs the
    policy's rows (0: not a transition of the policy), `count` is `weighted_mean`'s. Raises ValueError for shapes that
    would broadcast.
    """
    for name, x in (("policy", policy), ("expert", expert)):
        if x.ndim != 1:
            raise ValueError(f"{name} logits must be [B], got {tuple(x.shape)}: squeeze the network's last dimension")
    if weight is not None and weight.shape != policy.shape:
        raise ValueError(f"weight is {tuple(weight.shape)}, policy logits are {tuple(policy.shape)}: they must agree")
    if kind == "bce":
        of_policy, of_expert = F.softplus(policy), F.softplus(-expert)
    else:
        of_policy, of_expert = 0.5 * (policy + 1.0).square(), 0.5 * (expert - 1.0).square()
    return weighted_mean(of_policy, weight, count), of_expert.mean()


def discriminator_reward(logit: Tensor, form: RewardForm) -> Tensor:
    """Reward of the policy for a row with logit l = log D - log(1 - D), D the probability of "expert"; any shape.

    softplus:       -log(1 - D) = softplus(l) >= 0     Tianshou, imitation; favours long episodes
    log_d:          log D = -softplus(-l) <= 0         favours short episodes
    logit:          l                                  AIRL (arXiv:1710.11248); no bias of sign
    least_squares:  max(0, 1 - (l - 1)^2 / 4)          AMP (arXiv:2104.02180, eq. 7)
    """
    if form == "softplus":
        return F.softplus(logit)
    if form == "log_d":
        return -F.softplus(-logit)
    if form == "logit":
        return logit
    return (1.0 - 0.25 * (logit - 1.0).square()).clamp(min=0.0)


def gradient_penalty(logit: Tensor, x: Tensor, target: float) -> Tensor:
    """`mean_b (||d l_b / d x_b||_2 - target)^2`, 0-D, differentiable, from logits `[B]` of rows x `[B, F]`.

    One norm per row, so the batch size does not scale it. target 1 on random interpolates is WGAN-GP's (Gulrajani et
    al. 2017, arXiv:1704.00028), target 0 on expert rows R1 (Mescheder et al. 2018, arXiv:1801.04406) as in AMP.
    """
    if logit.shape != x.shape[:1]:
        raise ValueError(f"logits are {tuple(logit.shape)}, rows {tuple(x.shape)}: expected [B] and [B, F]")
    (gradient,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
    if target == 0.0:
        return gradient.square().sum(-1).mean()  # smooth where the gradient vanishes, which a norm is not
    return (torch.linalg.vector_norm(gradient, dim=-1) - target).square().mean()


def interpolate(policy: Tensor, expert: Tensor, share: Tensor) -> Tensor:
    """Points on the lines between rows: `policy + share (expert - policy)`, `[B, F]`; share `[B, 1]`, one per row."""
    if share.shape != (*policy.shape[:-1], 1):
        raise ValueError(f"share is {tuple(share.shape)}: one number per row, {(*policy.shape[:-1], 1)}")
    return torch.lerp(policy, expert, share)


def weighted_mean(x: Tensor, weight: Tensor | None, count: Tensor | None = None) -> Tensor:
    """Mean of `x` `[B]` with weights `[B]` in [0, 1]; 0 where they are all 0.

    `count` (`ranks.share`) takes the place of the weights' sum.
    """
    if weight is None:
        return x.mean()
    return (weight * x).sum() / (weight.sum().clamp(min=1.0) if count is None else count)


# ---------------------------------------------------------------------- the learner


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Config):
    """A discriminator and how it learns. Raises ValueError for what cannot work."""

    PREFIX = "discriminator."

    hidden_sizes: tuple[Size, ...] = (256, 256)
    """Hidden layers."""
    activation: Activation = "relu"
    """Hidden activation."""
    spectral_norm: bool = False
    """Divide every weight matrix by its largest singular value (Miyato et al. 2018, arXiv:1802.05957)."""
    loss: DiscriminatorLoss = "bce"
    """Binary cross-entropy on logits, or least squares to +1 (expert) and -1 (policy)."""
    disc_update_num: Annotated[int, In(1, 10_000)] = 4
    """Gradient steps for each rollout."""
    batch_size: Annotated[int | None, In(1, 1_000_000)] = None
    """Policy rows in each step, and as many expert rows; None: the rollout, split among the steps."""
    gradient_penalty: Weight = 0.0
    """Weight of the gradient penalty, a number or a schedule; 0: none."""
    penalty_on: Penalty = "interpolates"
    """Where: (norm - 1)^2 between policy and expert rows (WGAN-GP), or norm^2 on expert rows (R1) or on both sides'."""
    logit_regularizer: Annotated[float, In(0.0, 1e6)] = 0.0
    """Weight of the sum of squares of the last layer's weights, which keeps logits small."""
    replay_size: Annotated[int, In(0, 100_000_000)] = 0
    """Policy rows of earlier rollouts to keep; half of each step's policy rows then come from them. 0: none."""
    replay_add: Annotated[int | None, In(1)] = None
    """Rows of each rollout that enter the replay; None: as many as fit. Few rows reach far back."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(max_grad_norm=None))
    """Own optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replay_size and self.batch_size == 1:
            raise ValueError(
                "discriminator.batch_size must be at least 2 beside replay_size: half of the rows come from the replay"
            )


class DiscriminatorNetwork(nn.Module):
    """An MLP from rows `[B, F]` to logits `[B]`; with `spectral_norm` each layer's largest singular value is 1."""

    def __init__(self, num_features: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.mlp = make_mlp(num_features, config.hidden_sizes, config)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits `[...]` of rows `[..., F]`."""
        return self.mlp(rows).squeeze(-1)


def make_mlp(num_features: int, hidden_sizes: tuple[int, ...], config: DiscriminatorConfig) -> MLP:
    """A network `[..., F]` -> `[..., 1]` with the configuration's activation and normalisation of weights."""
    mlp = MLP(num_features, hidden_sizes, 1, activation=config.activation)
    if config.spectral_norm:
        for layer in mlp.modules():
            if isinstance(layer, nn.Linear):
                spectral_norm(layer)
    return mlp


class Discriminator(nn.Module):
    """A network that tells expert rows from policy rows, its optimizer, and a replay of past policy rows.

    A row `[C]` is F features, which the gradient penalty looks at, then columns that the network uses in another way
    (AIRL's log-prob). `network` maps normalised rows `[B, C]` to logits `[B]`. One step runs as a captured program,
    backward and gradient penalty included, except with spectral norm (its power iteration rewrites buffers).
    """

    def __init__(
        self,
        network: nn.Module,
        config: DiscriminatorConfig,
        *,
        num_features: int,
        row_size: int,
        rollout_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.network, self.config, self.num_features, self.generator = network, config, num_features, generator
        self.updates = config.disc_update_num
        self.batch_size = config.batch_size or rollout_size // self.updates
        if self.batch_size < 1:
            raise ValueError(
                f"a rollout of {rollout_size} rows cannot be split among disc_update_num = {self.updates} steps: "
                "lower it, collect longer rollouts, or set discriminator.batch_size"
            )
        self.outputs = [x for x in network.modules() if isinstance(x, nn.Linear) and x.out_features == 1]
        self.optimizer = Optimizer(network.parameters(), config.optimizer)
        device = self.optimizer.flat.device
        rows = config.replay_size + 4 * self.updates * self.batch_size
        remedy = "discriminator.replay_size, batch_size or disc_update_num"
        check_memory(4.0 * rows * row_size, "the discriminator's rows", remedy, device)
        self.replay = Replay(config.replay_size, row_size, device) if config.replay_size else None
        self.coefficient = Scalar(config.gradient_penalty, device)
        # a schedule that is 0 for now still needs the penalty in the program
        self.penalized = self.config.gradient_penalty != 0.0
        mode: Literal["eager", "trace"] = "eager" if config.spectral_norm else "trace"
        self._program = capture_gradient(self._loss, self.optimizer, mode)

    @property
    def num_expert_rows(self) -> int:
        """How many expert rows one `fit` takes."""
        return self.updates * self.batch_size

    @torch.no_grad()
    def logit(self, rows: Tensor) -> Tensor:
        """Logits `[...]` of normalised rows `[..., C]`, without gradient and without moving anything."""
        self.network.eval()
        logit = self.network(rows)
        self.network.train()
        return logit

    def fit(
        self, policy: Tensor, expert: Tensor, weight: Tensor, normalize: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Metrics:
        """`disc_update_num` steps; returns the mean statistics.

        policy `[n, C]`: the rollout's raw rows; weight `[n]` in [0, 1]: 0 leaves a row out; expert
        `[num_expert_rows, C]`: raw rows, drawn independently. Both sides go through `normalize` together.
        """
        if expert.shape != (self.num_expert_rows, policy.shape[-1]):
            expected = (self.num_expert_rows, policy.shape[-1])
            raise ValueError(f"fit takes expert rows {expected}, got {tuple(expert.shape)}")
        weight = weight.float()
        # a product with 0 would keep a NaN
        drawn, weights = self._draw(torch.where(weight.unsqueeze(-1) > 0.0, policy, 0.0), weight)  # [U, B, C], [U, B]
        both = normalize(torch.stack((drawn, expert.view_as(drawn))))  # one map: nothing else could tell the sides
        steps = {"policy": both[0], "expert": both[1], "weight": weights}
        if self.penalized and self.config.penalty_on == "interpolates":
            shape = (self.updates, self.batch_size, 1)
            steps["share"] = torch.rand(shape, generator=self.generator, device=both.device)
        if (share := ranks.share(weights.sum(1))) is not None:
            steps["count"] = share
        statistics, norms = [], []
        for batch in unbind(steps):
            statistics.append(self._program(batch))
            norms.append(gradient_step(self.optimizer))
        return mean_statistics(statistics) | {"grad_norm": torch.stack(norms).mean()}

    def _draw(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Policy rows of all steps at once: every row of the rollout before any twice, half of them from the replay."""
        U, B, n = self.updates, self.batch_size, len(rows)
        fresh = B if self.replay is None else B - B // 2
        order = [self._permutation(n) for _ in range(-(-U * fresh // n))]
        chosen = torch.cat(order)[: U * fresh]
        drawn, weights = rows[chosen].view(U, fresh, -1), weight[chosen].view(U, fresh)
        if self.replay is None:
            return drawn, weights
        old, old_weight = self.replay.draw(U * (B - fresh), self.generator)
        kept = self._permutation(n)[: min(self.replay.capacity, self.config.replay_add or n)]
        self.replay.add(rows[kept], weight[kept])
        return (
            torch.cat((drawn, old.view(U, B - fresh, -1)), dim=1),
            torch.cat((weights, old_weight.view(U, -1)), dim=1),
        )

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=self.optimizer.flat.device)

    # ------------------------------------------------------------------ captured

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss and statistics of one step: `policy`, `expert` `[B, C]`, `weight` `[B]`, perhaps `share` and `count`."""
        policy, expert, weight, count = batch["policy"], batch["expert"], batch["weight"], batch.get("count")
        logit_pi, logit_exp = self.network(torch.cat((policy, expert))).split(len(policy))
        loss_pi, loss_exp = discriminator_losses(logit_pi, logit_exp, weight, self.config.loss, count)
        loss = loss_pi + loss_exp
        penalty = self._penalty(batch) if self.penalized else torch.zeros_like(loss)
        total = loss + self.coefficient() * penalty
        if self.config.logit_regularizer:
            total = total + self.config.logit_regularizer * sum(x.weight.square().sum() for x in self.outputs)
        with torch.no_grad():
            statistics = (
                loss,
                loss_pi,
                loss_exp,
                penalty,
                weighted_mean((logit_pi < 0.0).float(), weight, count),
                (logit_exp > 0.0).float().mean(),
                weighted_mean(logit_pi, weight, count),
                logit_exp.mean(),
            )
        return total, dict(zip(STATISTICS, statistics))

    def _penalty(self, batch: Batch) -> Tensor:
        policy, expert, share = batch["policy"], batch["expert"], batch.get("share")
        points = expert if share is None else interpolate(policy, expert, share)
        if self.config.penalty_on == "both":  # in place of rows left out, the expert's once more
            points = torch.cat((expert, torch.where(batch["weight"].unsqueeze(-1) > 0.0, policy, expert)))
        features, others = points[:, : self.num_features], points[:, self.num_features :]
        x = features.detach().requires_grad_()
        logit = self.network(torch.cat((x, others), dim=-1))
        return gradient_penalty(logit, x, target=0.0 if share is None else 1.0)


class Replay(nn.Module):
    """A ring of rows `[capacity, C]` with their weights; part of the state dict, never a host sync."""

    rows: Tensor
    weight: Tensor  # [capacity]: 0 where nothing was written yet
    count: Tensor  # 0-D int64: rows written so far

    def __init__(self, capacity: int, row_size: int, device: torch.device) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("rows", torch.zeros(capacity, row_size, device=device))
        self.register_buffer("weight", torch.zeros(capacity, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def add(self, rows: Tensor, weight: Tensor) -> None:
        """Write rows `[n, C]`, n <= capacity, over the oldest ones."""
        if len(rows) > self.capacity:
            raise ValueError(f"{len(rows)} rows do not fit a replay of {self.capacity}: choose among them first")
        places = (self.count + torch.arange(len(rows), device=rows.device)) % self.capacity
        self.rows[places] = rows
        self.weight[places] = weight
        self.count += len(rows)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows `[count, C]` drawn independently among those written, and their weights; weights 0 while empty."""
        drawn = torch.rand(count, generator=generator, device=self.rows.device)
        filled = self.count.clamp(max=self.capacity)
        places = (drawn * filled).long().clamp(max=self.capacity - 1)
        return self.rows[places], self.weight[places]
