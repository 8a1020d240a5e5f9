"""ADVISOR (Weihs et al. 2021, arXiv:2007.12173) with the paper's sizes: 20 x 100 steps, 2 minibatches, 4 epochs."""

from __future__ import annotations

import dataclasses

from understudy.core.check import checked
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import EncoderConfig
from understudy.nn.protocol import PolicyConfig
from understudy.parts.advisor import AdvisorConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.recipes.basic import ppo
from understudy.runs.config import EvaluationConfig, TrainConfig
from understudy.tasks.crossings import CROSSINGS, TRAINED_WITH_REPEATS


@checked
def advisor(env_id: str = "PoisonedDoors-v0", *, total_steps: int = 300_000, seed: int = 0) -> TrainConfig:
    """ADVISOR on any task whose observation has an expert's action (--env.id; group expert_action)."""
    light_house = env_id == "LightHouse-v0"
    clip = Schedule(kind="linear", start=0.1)
    learning_rate = Schedule(kind="linear", start=0.0242 if light_house else 3.5e-3)
    return dataclasses.replace(
        ppo(env_id, total_steps=total_steps, seed=seed),
        recipe="advisor",
        env=EnvConfig(id=env_id, num_envs=20, kwargs={"repeat_failed": True} if env_id in TRAINED_WITH_REPEATS else {}),
        policy=_policy(env_id),
        ppo=PPOConfig(
            num_steps=100,
            epochs=4,
            minibatches=2,
            clip_epsilon=clip,
            value_clip=clip,
            value_coef=0.25,  # half the paper's: its value loss has a half in it
            entropy_coef=0.01,
            gae_lambda=1.0,
            advantage_normalization="rollout",
            optimizer=OptimizerConfig(learning_rate=learning_rate, eps=1e-8),
        ),
        parts={"advisor": AdvisorConfig(alpha=20.0 if light_house else 16.0, bound=0.0, aux_init="orthogonal")},
        evaluation=EvaluationConfig(
            episodes=100, deterministic=False, env_kwargs={"repeat_failed": False} if env_id in CROSSINGS else {}
        ),
    )


@checked
def poisoned_doors(*, total_steps: int = 300_000, seed: int = 0) -> TrainConfig:
    """ADVISOR on Poisoned Doors, to the best return that is possible without the expert's knowledge, 1."""
    return dataclasses.replace(advisor(total_steps=total_steps, seed=seed), recipe="poisoned-doors")


@checked
def light_house(*, total_steps: int = 300_000, seed: int = 0) -> TrainConfig:
    """ADVISOR on LightHouse with a view of one cell; wider: --env.kwargs view_radius 7 expert_radius 15."""
    return dataclasses.replace(advisor("LightHouse-v0", total_steps=total_steps, seed=seed), recipe="light-house")


@checked
def crossings(
    env_id: str = "LavaCrossing-v0", *, demonstrations: str = "", total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """ADVISOR on MiniGrid's crossings with the expert's advice and some of its episodes (--demonstrations)."""
    config = advisor(env_id, total_steps=total_steps, seed=seed)
    advice = config.parts["advisor"]
    assert isinstance(advice, AdvisorConfig)
    # the expert's advice on the learner's own steps, and those of its own that can hardly be mistaken
    shown = dataclasses.replace(advice, use_rollout_labels=False, demonstrations=demonstrations, bound=0.9)
    return dataclasses.replace(config, recipe="crossings", parts={"advisor": advice, "demonstrations": shown})


def _policy(env_id: str) -> PolicyConfig:
    """The paper's networks: embeddings and an LSTM; on LightHouse one linear layer on the interaction design."""
    if env_id == "LightHouse-v0":
        encoder = EncoderConfig(interactions=True)
    elif env_id in CROSSINGS:
        encoder = EncoderConfig(embedding_size=8, share_embeddings=True)
    else:
        encoder = EncoderConfig(embedding_size=128)
    return PolicyConfig(
        hidden_sizes=(),
        shared_trunk=True,
        memory="none" if env_id == "LightHouse-v0" else "lstm",
        encoder=encoder,
        distribution=DistributionConfig(head_gain=1.0),
    )
