"""Every choice of the PPO core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from understudy.core.capture import CaptureMode
from understudy.core.check import Config, In, nearest
from understudy.core.schedules import Number, OptionalNumber, Probability, RewardWeight, Schedule, Weight
from understudy.ppo.losses import SURROGATES, ValueLossKind
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.returns import ValueNormalization


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Config):
    """Every choice of the PPO core."""

    PREFIX = "ppo."

    num_steps: Annotated[int, In(1, 100_000)] = 128
    """T, steps per environment and rollout."""
    epochs: Annotated[int, In(1, 1000)] = 4
    """Passes over the rollout."""
    minibatches: Annotated[int, In(1, 100_000)] = 4
    """Minibatches per pass; must divide T x N (feed-forward) or N (recurrent: whole environment columns)."""
    reshuffle: bool = True
    """Sort the rows into other minibatches in each pass; False: into the same ones in all passes of an iteration, as
    rsl_rl does."""
    surrogate: str = "clip"
    """Loss of a sample: clip (PPO's clipped ratio), a2c (plain policy gradient, with epochs 1 and minibatches 1), or
    "module:function" of your own."""
    clip_epsilon: Annotated[Number, In(0.0, 1e3)] = 0.2
    """The ratio is clipped to [1 - this, 1 + clip_epsilon_high]."""
    clip_epsilon_high: Annotated[OptionalNumber, In(0.0, 1e3)] = None
    """Upper clip; None: symmetric."""
    dual_clip: Annotated[float | None, In(1.0, 1e6, without=(1.0,))] = None
    """c > 1: lower bound c A of the objective where A < 0; None: off."""
    value_coef: Weight = 0.5
    """Weight of the value loss."""
    value_clip: Annotated[OptionalNumber, In(0.0, 1e9)] = None
    """Pessimistic value clipping, in the critic's units; None: off."""
    loss_critic_type: ValueLossKind = "l2"
    """Value loss (l2 is the squared error, without a half)."""
    surrogate_coef: Weight = 1.0
    """Weight of the surrogate alone; 0 with `entropy_coef` 0 leaves the parts' losses: pure imitation."""
    entropy_coef: RewardWeight = 0.0
    """Weight of the entropy bonus."""
    samples_mc_entropy: Annotated[int, In(1, 1000)] = 1
    """Samples where the entropy has no closed form."""
    gamma: Probability = 0.99
    """Discount. A schedule can lengthen the horizon: `step:0=0.97,1500000=0.99`."""
    gae_lambda: Annotated[float, In(0.0, 1.0)] = 0.95
    """Lambda of GAE."""
    advantage_normalization: Literal["minibatch", "rollout", "none"] = "minibatch"
    """Where advantages are standardised."""
    recompute_advantage: bool = False
    """Values and advantages again, with the current critic, before each pass but the first (feed-forward only)."""
    reward_weight: RewardWeight = 1.0
    """Weight of the task reward beside the parts' rewards."""
    reward_normalization: bool = False
    """Divide task rewards by the running standard deviation of their discounted sum."""
    reward_clip: Annotated[float, In(0.0, 1e6, without=(0.0,))] = 10.0
    """Normalised rewards are clipped to +- this."""
    value_normalization: ValueNormalization = "none"
    """Units of the critic: scale (divide returns by their running std) or standardize (subtract the mean too)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of policy and loss parts."""
    clip_apart: bool = False
    """Clip the gradient of the actor apart from all others' (as rsl_rl 4 and newer do), instead of all together."""
    desired_kl: Annotated[float | None, In(0.0, 1e3, without=(0.0,))] = None
    """Adapts the learning rate: x 1.5 if a minibatch's KL falls below half this value, / 1.5 if it exceeds twice it."""
    learning_rate_range: Annotated[tuple[float, float], In(0.0, 1.0, without=(0.0,))] = (1e-5, 1e-2)
    """Where the adaptive learning rate stays."""
    lr_scheduler: LRSchedulerConfig | None = None
    """A torch.optim.lr_scheduler, stepped once per iteration; a plateau by a logged metric."""
    target_kl: Annotated[float | None, In(0.0, 1e3, without=(0.0,))] = None
    """Stop the iteration's updates where a minibatch's KL exceeds 1.5 times this."""
    warmup_steps: Annotated[int, In(0, 100_000)] = 32
    """Steps per environment before the first rollout that only give the normaliser its first statistics."""
    critic_warmup: Annotated[int, In(0, 1_000_000)] = 0
    """Iterations in which only the critic learns, for an actor that knows its task and a critic that does not."""
    on_nonfinite: Literal["mask", "raise"] = "mask"
    """A broken number from the environment (NaN, infinite, absurd): report it and leave the transition out, or stop."""
    absurd: Annotated[float | None, In(1.0)] = 1e6
    """A number is absurd beyond this many times the usual size of its entry, which is 1 at least; None: none is."""
    capture: CaptureMode = "trace"
    """How per-step and per-minibatch code runs: eager, trace, compile (slow to start), cudagraph."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, with what to change."""
        super().__post_init__()
        if self.surrogate not in SURROGATES and ":" not in self.surrogate:
            raise ValueError(
                f"ppo.surrogate must be one of {', '.join(SURROGATES)} or 'module:function' "
                f"({nearest(self.surrogate, SURROGATES)}), got {self.surrogate!r}"
            )
        if self.critic_warmup and self.optimizer.weight_decay:
            raise ValueError("ppo.critic_warmup holds the actor still, which weight_decay moves: drop one of them")
        low, high = self.learning_rate_range
        if low > high:
            raise ValueError(f"ppo.learning_rate_range must be (low, high) with low <= high, got {(low, high)}")
        movers = [
            name
            for name, on in {
                "desired_kl": self.desired_kl is not None,
                "lr_scheduler": self.lr_scheduler is not None,
                "a schedule as optimizer.learning_rate": isinstance(self.optimizer.learning_rate, Schedule),
            }.items()
            if on
        ]
        if len(movers) > 1:
            raise ValueError(
                f"at most one mechanism may change the learning rate, got {' and '.join(movers)}: drop one ("
                "instead of a schedule give optimizer.learning_rate a number such as 3e-4)"
            )

    @property
    def last_gamma(self) -> float:
        """The discount that a training ends with."""
        return self.gamma.extremes()[-1] if isinstance(self.gamma, Schedule) else self.gamma
