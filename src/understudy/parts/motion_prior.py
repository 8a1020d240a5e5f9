"""Adversarial motion prior (AMP, Peng et al. 2021, arXiv:2104.02180): a reward for moving like motion clips."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import ranks
from understudy.core.check import Filled, In
from understudy.core.schedules import RewardWeight, Scalar
from understudy.data.motions.library import MotionLibrary, MotionsConfig
from understudy.nn.normalization import ObservationNormalizer
from understudy.nn.protocol import Policy
from understudy.parts.shared.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    DiscriminatorLoss,
    DiscriminatorNetwork,
    RewardForm,
    discriminator_reward,
    weighted_mean,
)
from understudy.parts.shared.features import FeatureReader
from understudy.parts.shared.transitions import policy_weight
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import Part, PartConfig, PartContext, Rewards, Updates
from understudy.types import Metrics

logger = logging.getLogger(__name__)

EndingSteps = Literal["left_out", "terminal"]
TrackingForm = Literal["exp", "distance"]

_PINNED: dict[DiscriminatorLoss, float] = {"least_squares": -0.9, "bce": -4.6}  # the label is -1; D below 0.01
_CHECK_EVERY = 20  # updates between two checks of the saturation, each a host sync
_SATURATED = 0.95


# ---------------------------------------------------------------------- pure functions


def frame_windows(
    history: Tensor, next_frame: Tensor, valid: Tensor, is_first: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """Windows of the last `frames` = H frames up to each next frame, `[T, N, H, D]`, oldest first; `[T, N]` if whole.

    next_frame `[T, N, D]` follows the newest T of history `[T + max(H - 2, 0), N, D]`; `valid` and `is_first` belong to
    history. A window is whole if it lies in one episode and all its frames are valid.
    """
    T = len(next_frame)
    extra = max(frames - 2, 0)
    if history.shape != (T + extra, *next_frame.shape[1:]) or not valid.shape == is_first.shape == history.shape[:2]:
        shapes = [tuple(x.shape) for x in (history, next_frame, valid, is_first)]
        raise ValueError(f"windows of {frames} frames need {extra} frames of history before the rollout, got {shapes}")
    parts = [history[k : k + T] for k in range(frames - 1)]
    whole = valid[:T]
    for k in range(1, frames - 1):
        whole = whole & valid[k : k + T] & ~is_first[k : k + T]
    return torch.stack((*parts, next_frame), dim=-2), whole


def tracking_reward(error: Tensor, form: TrackingForm, scale: float) -> Tensor:
    """Reward `[...]` for the difference `[..., D]`, in standard deviations, between a motion and its reference.

    exp:       exp(-mean_d e_d^2 / scale^2), in [0, 1]
    distance:  -||e||_2 / scale
    """
    if form == "exp":
        return torch.exp(-error.square().mean(-1) / scale**2)
    return -torch.linalg.vector_norm(error, dim=-1) / scale


# ---------------------------------------------------------------------- the part


def _discriminator() -> DiscriminatorConfig:
    return DiscriminatorConfig(
        loss="least_squares",
        gradient_penalty=10.0,
        penalty_on="both",
        logit_regularizer=0.01,
        replay_size=100_000,
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-4, max_grad_norm=1.0),
    )


@dataclass(frozen=True, kw_only=True)
class MotionPriorConfig(PartConfig):
    """Options of the motion prior. Style only: `ppo.reward_weight` 0. AMP's lerp: `ppo.reward_weight` l, here 1 - l."""

    motions: MotionsConfig = field(default_factory=MotionsConfig)
    """The clips."""
    expert_observations: tuple[str, ...] = ()
    """Observations that hold the expert's features, in place of clips from files (st_rl's `ref_motion`); `observations`
    then hold the policy's. Both hold whole windows, `[D]` or `[H, D]`, and `frames` is 1."""
    observations: Annotated[tuple[str, ...], Filled()] = ("policy",)
    """Observation groups, or group/component names, that hold the style features of one frame."""
    columns: Annotated[tuple[int, ...], In(0)] = ()
    """Their columns with style features; empty: all."""
    fields: tuple[str, ...] = ()
    """The clips' field for each of these columns, in order; empty: fields with the columns' names (`policy[3]`)."""
    step_time: Annotated[float, In(1e-4, 1e3)] = 0.02
    """Seconds between two observations; the clips are resampled to it."""
    frames: Annotated[int, In(1, 10_000)] = 2
    """Frames that the discriminator sees together; 2 show movement."""
    reward_weight: RewardWeight = 1.0
    """Weight of the reward beside the task's, a number or a schedule."""
    reward_form: RewardForm = "least_squares"
    """least_squares: max(0, 1 - (d - 1)^2 / 4); softplus: -log(1 - D), with the loss bce."""
    scale_by_step_time: bool = False
    """Multiply the reward by step_time, like the task rewards of simulators."""
    ending_steps: EndingSteps = "left_out"
    """Steps that end an episode. left_out: no reward, and hidden from the discriminator; terminal: judged by their
    terminal features, which the environment must provide (`final_obs`)."""
    tracking_observations: tuple[str, ...] = ()
    """Observations with the features of a reference at the same moment; empty: no tracking reward."""
    tracking_weight: RewardWeight = 0.0
    """Weight of the tracking reward beside the style reward."""
    tracking_form: TrackingForm = "exp"
    """exp: exp(-mean e^2 / scale^2); distance: -norm(e) / scale; e in standard deviations of each feature."""
    tracking_scale: Annotated[float, In(1e-6, 1e6)] = 0.5
    """Scale of tracking errors, in standard deviations."""
    discriminator: DiscriminatorConfig = field(default_factory=_discriminator)
    """The discriminator and how it learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expert_observations and (self.frames != 1 or self.fields or self.motions.files):
            raise ValueError(
                "expert_observations hold whole windows of the expert: set frames=1, and leave fields and "
                "motions.files out"
            )

    def build(self, context: PartContext) -> MotionPrior:
        """Build the part."""
        return MotionPrior(context, self)


class MotionPrior(Part, Rewards, Updates):
    """Style reward for windows of H frames that a discriminator takes for the clips', `[T, N]`, plus tracking.

    The window that ends with a step's true next observation judges the step. Windows never cross the border of an
    episode: its first H - 2 steps have no window, hence no reward, nor do ending steps that are left out. The
    discriminator learns from the same windows against windows drawn from the clips. One normaliser, updated once per
    iteration by both sides, serves both: two would remove the very difference to detect.

    Raises ValueError for clips or observations that do not fit the configuration.
    """

    uses_next_obs = True
    tail: Tensor  # [H - 2, N, D], the last frames of the rollout before
    tail_valid: Tensor  # [H - 2, N] bool
    tail_is_first: Tensor  # [H - 2, N] bool
    saturation: Tensor  # 0-D, running share of the policy's windows whose score is pinned to its label

    def __init__(self, context: PartContext, config: MotionPriorConfig) -> None:
        super().__init__(context)
        self.config, device, H = config, context.device, config.frames
        given = bool(config.expert_observations)
        self.read = FeatureReader(context.observation_space, config.observations, matrices=given)
        if wrong := [i for i in config.columns if not 0 <= i < self.read.size]:
            raise ValueError(f"columns names {wrong[0]}, but the observations have columns 0 to {self.read.size - 1}")
        columns = config.columns or range(self.read.size)
        size = len(columns)
        self.columns = torch.tensor(columns, device=device)
        # one of the two is the expert
        self.library = None if given else _library(context, config, tuple(self.read.names[i] for i in columns))
        self.expert = (
            _corresponding(context, "expert_observations", config.expert_observations, size) if given else None
        )
        self.reference = _reference(context, config, size)
        self.normalizer = ObservationNormalizer(size)
        extra = max(H - 2, 0)
        self.register_buffer("tail", torch.zeros(extra, context.num_envs, size))
        self.register_buffer("tail_valid", torch.zeros(extra, context.num_envs, dtype=torch.bool))
        self.register_buffer("tail_is_first", torch.zeros(extra, context.num_envs, dtype=torch.bool))
        self.register_buffer("saturation", torch.zeros(()))
        self.to(device)
        self.discriminator = Discriminator(
            DiscriminatorNetwork(H * size, config.discriminator).to(device),
            config.discriminator,
            num_features=H * size,
            row_size=H * size,
            rollout_size=context.num_steps * context.num_envs,
            generator=self.generator,
        )
        self.weight = Scalar(config.reward_weight, device)
        self.tracking_weight = Scalar(config.tracking_weight, device)
        if self.library is not None:
            self.normalizer.update(self.library.sample(self.discriminator.num_expert_rows, self.generator))
        self._updates, self._warned = 0, False
        # metrics of `reward`, which the following `update` reports
        self._scored: Metrics = {"saturated": torch.zeros((), device=device)}

    @property
    def reward_weight(self) -> Tensor:
        """0-D weight of the reward."""
        return self.weight()

    def reward(self, rollout: TensorDict) -> Tensor:
        """Style reward plus weighted tracking reward, `[T, N]`; 0 without a whole window."""
        rows, whole = self._rows(rollout)
        if self.normalizer.fresh:  # the simulator's expert shows itself only now
            self.normalizer.update(self._expert_rows(rollout, whole))
        logit = self.discriminator.logit(self._normalize(rows))
        reward = torch.where(whole, discriminator_reward(logit, self.config.reward_form), 0.0)
        weight = whole.flatten().float()
        pinned = (logit <= _PINNED[self.config.discriminator.loss]).float().flatten()
        self._scored = {
            "style_reward": weighted_mean(reward.flatten(), weight),
            "task_reward": rollout["task_reward"].mean(),
            "saturated": weighted_mean(pinned, weight),
        }
        if self.reference is not None:
            tracking = self._tracking(rollout)
            self._scored["tracking_reward"] = tracking.mean()
            reward = reward + self.tracking_weight() * tracking
        return reward * self.config.step_time if self.config.scale_by_step_time else reward

    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """The discriminator's steps on this rollout; then the normaliser absorbs both sides."""
        rows, whole = self._rows(rollout)
        expert = self._expert_rows(rollout, whole)  # [n, H, D]
        weight = (whole & policy_weight(rollout)).flatten()
        metrics = self.discriminator.fit(rows.flatten(0, 1), expert.flatten(-2), weight, self._normalize)
        self.normalizer.update(self._features(rollout, "obs"), rollout["valid"])
        self.normalizer.update(expert)
        for tail, x in zip((self.tail, self.tail_valid, self.tail_is_first), self._history(rollout)):
            tail.copy_(x[len(x) - len(tail) :])
        self._watch()
        return {**metrics, **self._scored}

    # ------------------------------------------------------------------ windows

    def _expert_rows(self, rollout: TensorDict, whole: Tensor) -> Tensor:
        """Windows of the expert `[n, H, D]`: of the clips, or of the rollout's steps that are `whole` `[T, N]`."""
        n = self.discriminator.num_expert_rows
        if self.expert is None:
            assert self.library is not None
            return self.library.sample(n, self.generator)
        judged = whole.flatten()
        share = torch.rand(n, generator=self.generator, device=judged.device)
        first = torch.argsort(judged, descending=True, stable=True)  # the steps that count come first: no host sync
        chosen = first[(share * judged.sum().clamp(min=1)).long()]
        return self.expert(rollout["next_obs"]).flatten(0, 1)[chosen].unsqueeze(-2)

    def _features(self, rollout: TensorDict, key: str) -> Tensor:
        return self.read(rollout[key])[..., self.columns]  # [T, N, D]

    def _history(self, rollout: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """The last frames of the previous rollout, then this rollout's; their valid and is_first flags."""
        return (
            torch.cat((self.tail, self._features(rollout, "obs"))),
            torch.cat((self.tail_valid, rollout["valid"])),
            torch.cat((self.tail_is_first, rollout["is_first"])),
        )

    def _rows(self, rollout: TensorDict) -> tuple[Tensor, Tensor]:
        """Raw windows `[T, N, H D]`, zeros where they are not whole, and `[T, N]` where they are."""
        history, valid, is_first = self._history(rollout)
        windows, whole = frame_windows(
            history, self._features(rollout, "next_obs"), valid, is_first, self.config.frames
        )
        whole = whole & self._judged(rollout)
        return torch.where(whole[..., None, None], windows, 0.0).flatten(-2), whole

    def _judged(self, rollout: TensorDict) -> Tensor:
        """Steps whose next observation counts, `[T, N]`."""
        if self.config.ending_steps == "terminal":
            return rollout["valid"]
        return rollout["valid"] & ~(rollout["terminated"] | rollout["truncated"])

    def _normalize(self, rows: Tensor) -> Tensor:
        """Windows `[..., H D]`, with the one normaliser applied to each frame."""
        return self.normalizer(rows.unflatten(-1, (self.config.frames, -1))).flatten(-2)

    # ------------------------------------------------------------------ tracking and health

    def _tracking(self, rollout: TensorDict) -> Tensor:
        assert self.reference is not None
        own, reference = self._features(rollout, "next_obs"), self.reference(rollout["next_obs"])
        error = (own - reference) * self.normalizer.scale
        judged = self._judged(rollout)
        error = torch.where(judged.unsqueeze(-1), error, 0.0)
        return torch.where(judged, tracking_reward(error, self.config.tracking_form, self.config.tracking_scale), 0.0)

    def _watch(self) -> None:
        """Warn once if nearly all scores of the policy have been pinned to their label for a while."""
        self.saturation.lerp_(ranks.mean(self._scored["saturated"]), 0.1)
        self._updates += 1
        if self._warned or self._updates % _CHECK_EVERY or float(self.saturation) <= _SATURATED:
            return
        self._warned = True
        logger.warning(
            "part %r: the discriminator is saturated: %.0f %% of the policy's scores are pinned to their label, where "
            "the style reward has no slope. Lower discriminator.disc_update_num or its learning rate, raise its "
            "gradient_penalty, or leave out features that no policy can match",
            self.name,
            100.0 * float(self.saturation),
        )


def _library(context: PartContext, config: MotionPriorConfig, names: tuple[str, ...]) -> MotionLibrary:
    """The clips, with a field for each of the style features' names."""
    fields = config.fields or names
    if len(fields) != len(names):
        raise ValueError(
            f"{len(fields)} fields for {len(names)} style features: name one for each of {', '.join(names)}"
        )
    if not config.motions.files:
        raise ValueError(f"name motion files in parts.{context.name}.motions.files")
    return MotionLibrary.load(config.motions, fields, config.step_time, config.frames, context.device)


def _reference(context: PartContext, config: MotionPriorConfig, size: int) -> FeatureReader | None:
    if not config.tracking_observations:
        if config.tracking_weight != 0.0:
            raise ValueError("tracking_weight needs tracking_observations: name the reference's observations")
        return None
    return _corresponding(context, "tracking_observations", config.tracking_observations, size)


def _corresponding(context: PartContext, option: str, names: tuple[str, ...], size: int) -> FeatureReader:
    """The observations that an option names: one column for each style feature."""
    reader = FeatureReader(context.observation_space, names, matrices=True)
    if reader.size != size:
        raise ValueError(f"{option} have {reader.size} columns, the style features {size}: they must correspond")
    return reader
