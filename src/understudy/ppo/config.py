"""Every choice of the PPO core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from understudy.core.capture import CaptureMode
from understudy.core.check import check_choice
from understudy.core.schedules import Number, OptionalNumber, Schedule
from understudy.ppo.optim import LRSchedulerConfig, OptimizerConfig
from understudy.ppo.returns import ValueNormalization

_CHOICES: dict[str, tuple[str, ...]] = {
    "surrogate": ("clip", "a2c"),
    "loss_critic_type": ("l1", "l2", "smooth_l1"),
    "advantage_normalization": ("minibatch", "rollout", "none"),
    "value_normalization": ("none", "scale", "standardize"),
    "on_nonfinite": ("mask", "raise"),
    "capture": ("eager", "trace", "compile", "cudagraph"),
}


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Every choice of the PPO core; the defaults are those of the paper's continuous-control experiments."""

    num_steps: int = 128
    """T, steps per environment and rollout."""
    epochs: int = 4
    """Passes over the rollout."""
    minibatches: int = 4
    """Minibatches per pass; must divide T x N (feed-forward) or N (recurrent: whole environment columns)."""
    surrogate: Literal["clip", "a2c"] = "clip"
    """Clipped ratio (PPO), or the plain policy gradient (A2C, with epochs 1 and minibatches 1)."""
    clip_epsilon: Number = 0.2
    """The ratio is clipped to [1 - this, 1 + clip_epsilon_high]."""
    clip_epsilon_high: OptionalNumber = None
    """Upper clip; None: symmetric."""
    dual_clip: float | None = None
    """c > 1: lower bound c A of the objective where A < 0; None: off."""
    value_coef: Number = 0.5
    """Weight of the value loss."""
    value_clip: OptionalNumber = None
    """Pessimistic value clipping, in the critic's units; None: off."""
    loss_critic_type: Literal["l1", "l2", "smooth_l1"] = "l2"
    """Value loss (l2 is the squared error, without a half)."""
    surrogate_coef: Number = 1.0
    """Weight of the surrogate alone; 0 with `entropy_coef` 0 leaves the parts' losses: pure imitation."""
    entropy_coef: Number = 0.0
    """Weight of the entropy bonus."""
    samples_mc_entropy: int = 1
    """Samples where the entropy has no closed form."""
    gamma: Number = 0.99
    """Discount. A schedule can lengthen the horizon: `step:0=0.97,1500000=0.99`."""
    gae_lambda: float = 0.95
    """Lambda of GAE."""
    advantage_normalization: Literal["minibatch", "rollout", "none"] = "minibatch"
    """Where advantages are standardised."""
    recompute_advantage: bool = False
    """Values and advantages again, with the current critic, before each pass but the first (feed-forward only)."""
    reward_weight: Number = 1.0
    """Weight of the task reward beside the parts' rewards."""
    reward_normalization: bool = False
    """Divide task rewards by the running standard deviation of their discounted sum."""
    reward_clip: float = 10.0
    """Normalised rewards are clipped to +- this."""
    value_normalization: ValueNormalization = "none"
    """Units of the critic: scale (divide returns by their running std) or standardize (subtract the mean too)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of policy and loss parts."""
    desired_kl: float | None = None
    """KL-adaptive learning rate: times or over 1.5 where a minibatch's KL is below half or above twice this."""
    learning_rate_range: tuple[float, float] = (1e-5, 1e-2)
    """Where the adaptive learning rate stays."""
    lr_scheduler: LRSchedulerConfig | None = None
    """Any torch.optim.lr_scheduler, stepped once per iteration."""
    target_kl: float | None = None
    """Stop the iteration's updates where a minibatch's KL exceeds 1.5 times this."""
    warmup_steps: int = 32
    """Steps per environment before the first rollout that only give the normaliser its first statistics."""
    on_nonfinite: Literal["mask", "raise"] = "mask"
    """A NaN from the environment: report it and leave the transition out, or stop."""
    capture: CaptureMode = "trace"
    """How per-step and per-minibatch code runs: eager, trace, compile (slow to start), cudagraph."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, with what to change."""
        for name, known in _CHOICES.items():
            check_choice(f"ppo.{name}", vars(self)[name], known)
        for name in ("num_steps", "epochs", "minibatches", "samples_mc_entropy", "warmup_steps"):
            value, least = vars(self)[name], int(name != "warmup_steps")
            if not isinstance(value, int) or value < least:
                raise ValueError(f"ppo.{name} must be a whole number of at least {least}, got {value}")
        for name in ("gamma", "gae_lambda"):
            value = vars(self)[name]
            if not all(0.0 <= x <= 1.0 for x in (value.extremes() if isinstance(value, Schedule) else (value,))):
                raise ValueError(f"ppo.{name} must lie in [0, 1], got {value}")
        for name in ("clip_epsilon", "clip_epsilon_high", "value_clip", "surrogate_coef"):
            value = vars(self)[name]
            if isinstance(value, int | float) and not value >= 0.0:
                raise ValueError(f"ppo.{name} must not be negative, got {value}")
        for name in ("reward_clip", "desired_kl", "target_kl"):
            value = vars(self)[name]
            if value is not None and not value > 0.0:
                raise ValueError(f"ppo.{name} must be positive, got {value}")
        if self.dual_clip is not None and not self.dual_clip > 1.0:
            raise ValueError(f"ppo.dual_clip must be greater than 1 (3 is usual) or None, got {self.dual_clip}")
        low, high = self.learning_rate_range
        if not 0.0 < low <= high:
            raise ValueError(f"ppo.learning_rate_range must be (low, high) with 0 < low <= high, got {(low, high)}")
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
            raise ValueError(f"only one thing may move the learning rate, got {' and '.join(movers)}")

    @property
    def last_gamma(self) -> float:
        """The discount that a training ends with."""
        return self.gamma.extremes()[-1] if isinstance(self.gamma, Schedule) else self.gamma
