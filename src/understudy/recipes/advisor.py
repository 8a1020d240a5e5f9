"""ADVISOR and the pipelines it is compared with (Weihs et al. 2021, arXiv:2007.12173): one PPO, a few numbers apart."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from understudy.core.check import check_choice
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import EncoderConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts.advisor import AdvisorConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.parts.scripted_expert import ScriptedExpertConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartConfig
from understudy.runs.config import EvaluationConfig, TrainConfig
from understudy.tasks.crossings import CROSSINGS, TRAINED_WITH_REPEATS


class Pipeline(NamedTuple):
    """How a method learns: first from the expert alone, then on.

    In the first stage the expert acts always, at first ("fading") or never.
    """

    imitation: float = 0.0  # share of the training that is imitation alone
    expert_acts: Literal["never", "fading", "always"] = "never"
    advisor: bool = False  # afterwards: ADVISOR instead of PPO
    static: bool = False  # afterwards: PPO's and the imitation loss, one to one


HALF = 0.5
"""Share of the imitation stage where another follows; the paper drew it from [.1, .9]."""

PIPELINES: dict[str, Pipeline] = {
    "ppo": Pipeline(),
    "bc": Pipeline(imitation=1.0),
    "dagger": Pipeline(imitation=1.0, expert_acts="fading"),
    "bc-tf1": Pipeline(imitation=1.0, expert_acts="always"),
    "bc-ppo-static": Pipeline(static=True),
    "bc-then-ppo": Pipeline(imitation=HALF),
    "dagger-then-ppo": Pipeline(imitation=HALF, expert_acts="fading"),
    "bc-tf1-then-ppo": Pipeline(imitation=HALF, expert_acts="always"),
    "advisor": Pipeline(advisor=True),
    "dagger-then-advisor": Pipeline(imitation=HALF, expert_acts="fading", advisor=True),
    "bc-tf1-then-advisor": Pipeline(imitation=HALF, expert_acts="always", advisor=True),
}
"""The methods that learn from the expert in the environment; `pipeline` knows some more."""

FROM_DEMONSTRATIONS = ("demo-ppo", "demo-advisor", "advisor-and-demo")
METHODS = (*PIPELINES, *FROM_DEMONSTRATIONS, "forced-advisor")
"""Every method that `pipeline` takes."""


def advisor(env_id: str = "PoisonedDoors-v0", *, total_steps: int = 300_000, seed: int = 0) -> TrainConfig:
    """ADVISOR on any task whose observation has an expert's action (--env.id; group expert_action)."""
    return pipeline("advisor", env_id, total_steps=total_steps, seed=seed)


def poisoned_doors(*, total_steps: int = 300_000, seed: int = 0) -> TrainConfig:
    """ADVISOR on Poisoned Doors, to the best return that is possible without the expert's knowledge, 1."""
    config = pipeline("advisor", "PoisonedDoors-v0", total_steps=total_steps, seed=seed)
    return dataclasses.replace(config, recipe="poisoned-doors")


def light_house(*, total_steps: int = 300_000, seed: int = 0) -> TrainConfig:
    """ADVISOR on LightHouse with a view of one cell; wider: --env.kwargs view_radius 7 expert_radius 15."""
    config = pipeline("advisor", "LightHouse-v0", total_steps=total_steps, seed=seed)
    return dataclasses.replace(config, recipe="light-house")


def crossings(
    env_id: str = "LavaCrossing-v0", *, demonstrations: str = "", total_steps: int = 1_000_000, seed: int = 0
) -> TrainConfig:
    """ADVISOR on MiniGrid's crossings with the expert's advice and some of its episodes (--demonstrations)."""
    config = _pipeline("advisor-and-demo", env_id, total_steps, seed, demonstrations)
    return dataclasses.replace(config, recipe="crossings")


def pipeline(
    method: str, env_id: str, *, total_steps: int = 300_000, seed: int = 0, demonstrations: str = ""
) -> TrainConfig:
    """One of `METHODS` on a task with an expert, with the paper's sizes: 20 x 100 steps, 2 minibatches, 4 epochs.

    Raises ValueError for an unknown method, and for one that learns from demonstrations if none are given.
    """

    check_choice("method", method, METHODS)
    if method in FROM_DEMONSTRATIONS and not demonstrations:
        raise ValueError(f"{method} learns from demonstrations: record some of the expert and name the file")
    return _pipeline(method, env_id, total_steps, seed, demonstrations)


def _pipeline(method: str, env_id: str, total_steps: int, seed: int, demonstrations: str) -> TrainConfig:

    repeats = env_id in TRAINED_WITH_REPEATS
    return TrainConfig(
        recipe=method,
        env=EnvConfig(id=env_id, num_envs=20, kwargs={"repeat_failed": True} if repeats else {}),
        policy=_policy(env_id),
        ppo=_ppo(method, env_id, total_steps),
        parts=_parts(method, env_id, total_steps, demonstrations),
        evaluation=EvaluationConfig(
            episodes=100, deterministic=False, env_kwargs={"repeat_failed": False} if env_id in CROSSINGS else {}
        ),
        total_steps=total_steps,
        seed=seed,
        torch_threads=1,
    )


def _policy(env_id: str) -> PolicyConfig:
    """The paper's networks: embeddings and an LSTM; on LightHouse one linear layer on the interaction design."""

    if env_id == "LightHouse-v0":
        encoder, memory = EncoderConfig(interactions=True), "none"
    elif env_id in CROSSINGS:
        encoder, memory = EncoderConfig(embedding_size=8, share_embeddings=True), "lstm"
    else:
        encoder, memory = EncoderConfig(embedding_size=128), "lstm"
    return PolicyConfig(
        hidden_sizes=(),
        shared_trunk=True,
        memory=memory,  # type: ignore[arg-type]
        encoder=encoder,
        distribution=DistributionConfig(head_gain=1.0),
    )


def _ppo(method: str, env_id: str, total_steps: int) -> PPOConfig:

    how = PIPELINES.get(method, Pipeline())
    clip = Schedule(kind="linear", start=0.1)
    rate = 0.0242 if env_id == "LightHouse-v0" else 3.5e-3
    staged = how.imitation > 0.0 and not how.advisor  # ADVISOR's own stage switches PPO's losses off
    return PPOConfig(
        num_steps=100,
        epochs=4,
        minibatches=2,
        clip_epsilon=clip,
        value_clip=clip,
        # half the paper's: its value loss has a half in it. The critic learns during an imitation stage, too
        value_coef=0.0 if how.imitation == 1.0 else 0.25,
        surrogate_coef=_after(how, total_steps, 1.0) if staged else 1.0,
        entropy_coef=_after(how, total_steps, 0.01) if staged else 0.01,
        gae_lambda=1.0,
        advantage_normalization="rollout",
        optimizer=OptimizerConfig(learning_rate=Schedule(kind="linear", start=rate), eps=1e-8),
    )


def _parts(method: str, env_id: str, total_steps: int, demonstrations: str) -> dict[str, PartConfig]:

    alpha = 20.0 if env_id == "LightHouse-v0" else 16.0
    weighted = AdvisorConfig(alpha=alpha, bound=0.0, aux_init="orthogonal")
    if method == "demo-ppo":
        return {"bc": BehaviorCloningConfig(demonstrations=demonstrations)}
    if method in FROM_DEMONSTRATIONS:
        demo = dataclasses.replace(weighted, use_rollout_labels=False, demonstrations=demonstrations)
        if method == "demo-advisor":
            return {"advisor": demo}
        # the expert's advice on the learner's own steps, and those of its own that can hardly be mistaken
        return {"advisor": weighted, "demonstrations": dataclasses.replace(demo, bound=0.9)}
    if method == "forced-advisor":  # half of the episodes are the expert's at first, none at the end
        acts = ScriptedExpertConfig(imitation_coef=0.0, teacher_forcing=_fading(total_steps, 0.5))
        return {"advisor": weighted, "expert": dataclasses.replace(acts, teacher_forcing_unit="episode")}
    how = PIPELINES[method]
    parts: dict[str, PartConfig] = {}
    if how.advisor:
        parts["advisor"] = dataclasses.replace(weighted, stage=_before(how, total_steps))
    if how.static or (how.imitation and not how.advisor):
        parts["expert"] = ScriptedExpertConfig(
            imitation_coef=1.0 if how.static else _before(how, total_steps), teacher_forcing=_acts(how, total_steps)
        )
    elif how.expert_acts != "never":  # ADVISOR imitates, the expert only acts
        parts["expert"] = ScriptedExpertConfig(imitation_coef=0.0, teacher_forcing=_acts(how, total_steps))
    return parts


def _before(how: Pipeline, total_steps: int) -> float | Schedule:
    """1 in the imitation stage, 0 after it."""
    return _step(how, total_steps, 1.0, 0.0)


def _after(how: Pipeline, total_steps: int, value: float) -> float | Schedule:
    """0 in the imitation stage, `value` after it."""
    return _step(how, total_steps, 0.0, value)


def _step(how: Pipeline, total_steps: int, first: float, then: float) -> float | Schedule:

    if how.imitation in (0.0, 1.0):
        return first if how.imitation else then
    return Schedule(kind="step", points=((0, first), (max(round(how.imitation * total_steps), 1), then)))


def _acts(how: Pipeline, total_steps: int) -> float | Schedule:
    """Probability that the expert acts."""
    if how.expert_acts == "never":
        return 0.0
    return _before(how, total_steps) if how.expert_acts == "always" else _fading(how.imitation * total_steps, 1.0)


def _fading(steps: float, start: float) -> Schedule:

    return Schedule(kind="linear", start=start, length=max(round(steps), 1))
