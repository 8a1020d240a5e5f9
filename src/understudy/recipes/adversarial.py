"""GAIL and AIRL: learn from recorded demonstrations and the environment, without its reward."""

from __future__ import annotations

import dataclasses

from understudy.core.check import checked
from understudy.core.schedules import Schedule
from understudy.parts.airl import AirlConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.parts.gail import GailConfig
from understudy.parts.shared.discriminator import DiscriminatorConfig
from understudy.ppo.part import PartConfig
from understudy.recipes.basic import first_learning_rate
from understudy.recipes.mujoco_tasks import mujoco
from understudy.runs.config import OfflineConfig, TrainConfig

SHORT = 500_000
"""Fewer steps than this leave no time for small steps after a reward that is smoothed first."""


@checked
def gail(
    env_id: str = "Hopper-v5", *, demonstrations: str = "", total_steps: int = 2_000_000, seed: int = 0
) -> TrainConfig:
    """GAIL from demonstrations of a MuJoCo task (or any other); the task's own reward is not used."""
    # smooth while the policy is far from the expert (if there is time for that), sharper when it is near
    half, late = max(total_steps // 2, 1), max(total_steps * 4 // 5, 2)
    penalty = Schedule(kind="piecewise", points=((0, 1.0 if total_steps < SHORT else 10.0), (half, 1.0), (late, 0.1)))
    part = GailConfig(
        demonstrations=demonstrations,
        # log D - log(1 - D) does not fade where the discriminator is sure; whether ending pays, absorbing states say
        reward_form="logit",
        absorbing_states=True,
        expert_noise=None,  # recorded experts hardly scatter, a policy that learns has to
        discriminator=DiscriminatorConfig(gradient_penalty=penalty, batch_size=512, replay_size=20_000),
    )
    return _adversarial("gail", part, env_id, total_steps, seed, min_std=0.2)


@checked
def airl(
    env_id: str = "Hopper-v5", *, demonstrations: str = "", total_steps: int = 2_000_000, seed: int = 0
) -> TrainConfig:
    """AIRL: as GAIL, and a reward function is recovered that the run keeps."""
    part = AirlConfig(
        demonstrations=demonstrations,
        absorbing_states=True,
        center_reward=True,
        expert_noise=None,
        # f has to be as steep as log pi is, which a strong penalty forbids
        discriminator=DiscriminatorConfig(gradient_penalty=0.1, batch_size=512, disc_update_num=8),
    )
    # and log pi is the steeper the less the policy scatters: with 0.2 f could not keep up, and a gait was lost again
    return _adversarial("airl", part, env_id, total_steps, seed, min_std=0.4)


@checked
def bc_gail(
    env_id: str = "Hopper-v5", *, demonstrations: str = "", total_steps: int = 2_000_000, seed: int = 0
) -> TrainConfig:
    """GAIL from a policy that behaviour cloning has warmed up; its pull fades over the first tenth of the steps."""
    config = gail(env_id, demonstrations=demonstrations, total_steps=total_steps, seed=seed)
    fading = Schedule(kind="linear", start=1.0, end=0.0, length=max(total_steps // 10, 1))
    # squared error: a likelihood would shrink the standard deviation, and with it GAIL's exploration
    cloning = BehaviorCloningConfig(demonstrations=demonstrations, loss="mse", coef=fading)
    return dataclasses.replace(
        config, recipe="bc-gail", parts={"bc": cloning, **config.parts}, offline=OfflineConfig(epochs=30)
    )


def _adversarial(
    name: str, part: PartConfig, env_id: str, total_steps: int, seed: int, *, min_std: float
) -> TrainConfig:
    """The PPO that plain MuJoCo training has, on the part's reward alone.

    The discriminator punishes noise too: without `min_std` exploration ends long before the policy is the expert.
    """
    config = mujoco(env_id, total_steps=total_steps, seed=seed)
    rate = Schedule(kind="linear", start=first_learning_rate(total_steps) if total_steps < SHORT else 3e-4)
    optimizer = dataclasses.replace(config.ppo.optimizer, learning_rate=rate)
    distribution = dataclasses.replace(config.policy.distribution, min_std=min_std)
    return dataclasses.replace(
        config,
        recipe=name,
        policy=dataclasses.replace(config.policy, distribution=distribution),
        ppo=dataclasses.replace(config.ppo, reward_weight=0.0, optimizer=optimizer),
        parts={name: part},
    )
