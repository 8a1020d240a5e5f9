"""The pipelines that the paper compares ADVISOR with: its recipe with other parts, a few numbers apart."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import understudy as us
from understudy.core.check import nearest
from understudy.parts.advisor import AdvisorConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.parts.scripted_expert import ScriptedExpertConfig


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


def pipeline(
    method: str, env_id: str, *, total_steps: int = 300_000, seed: int = 0, demonstrations: str = ""
) -> us.TrainConfig:
    """One of `METHODS` on a task with an expert.

    Raises ValueError for an unknown method, and for one that learns from demonstrations if none are given.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; {nearest(method, METHODS)}")
    if method in FROM_DEMONSTRATIONS and not demonstrations:
        raise ValueError(f"{method} learns from demonstrations: record some of the expert and name the file")
    how = PIPELINES.get(method, Pipeline())
    config = us.recipes.advisor(env_id, total_steps=total_steps, seed=seed)
    ppo = config.ppo
    if how.imitation == 1.0:  # elsewhere the critic learns during an imitation stage, too
        ppo = dataclasses.replace(ppo, value_coef=0.0)
    if how.imitation > 0.0 and not how.advisor:  # ADVISOR's own stage switches PPO's losses off
        ppo = dataclasses.replace(
            ppo,
            surrogate_coef=_step(how, total_steps, 0.0, 1.0),
            entropy_coef=_step(how, total_steps, 0.0, 0.01),
        )
    weighted = config.parts["advisor"]
    assert isinstance(weighted, AdvisorConfig)
    if method in FROM_DEMONSTRATIONS:
        parts = _demonstrated(method, weighted, demonstrations)
    elif method == "forced-advisor":  # half of the episodes are the expert's at first, none at the end
        fading = us.Schedule(kind="linear", start=0.5, length=total_steps)
        acts = ScriptedExpertConfig(imitation_coef=0.0, teacher_forcing=fading, teacher_forcing_unit="episode")
        parts = {"advisor": weighted, "expert": acts}
    else:
        parts = _parts(how, weighted, total_steps)
    return dataclasses.replace(config, recipe=method, ppo=ppo, parts=parts)


def _demonstrated(method: str, weighted: AdvisorConfig, demonstrations: str) -> dict[str, us.PartConfig]:
    if method == "demo-ppo":
        return {"bc": BehaviorCloningConfig(demonstrations=demonstrations)}
    demo = dataclasses.replace(weighted, use_rollout_labels=False, demonstrations=demonstrations)
    if method == "demo-advisor":
        return {"advisor": demo}
    return {"advisor": weighted, "demonstrations": dataclasses.replace(demo, bound=0.9)}


def _parts(how: Pipeline, weighted: AdvisorConfig, total_steps: int) -> dict[str, us.PartConfig]:
    parts: dict[str, us.PartConfig] = {}
    before = _step(how, total_steps, 1.0, 0.0)
    if how.advisor:
        parts["advisor"] = dataclasses.replace(weighted, stage=before)
    if how.static or (how.imitation and not how.advisor):
        coef = 1.0 if how.static else before
        parts["expert"] = ScriptedExpertConfig(imitation_coef=coef, teacher_forcing=_acts(how, total_steps))
    elif how.expert_acts != "never":  # ADVISOR imitates, the expert only acts
        parts["expert"] = ScriptedExpertConfig(imitation_coef=0.0, teacher_forcing=_acts(how, total_steps))
    return parts


def _step(how: Pipeline, total_steps: int, first: float, then: float) -> float | us.Schedule:
    """`first` in the imitation stage, `then` after it."""
    if how.imitation in (0.0, 1.0):
        return first if how.imitation else then
    return us.Schedule(kind="step", points=((0, first), (max(round(how.imitation * total_steps), 1), then)))


def _acts(how: Pipeline, total_steps: int) -> float | us.Schedule:
    """Probability that the expert acts."""
    if how.expert_acts == "never":
        return 0.0
    if how.expert_acts == "always":
        return _step(how, total_steps, 1.0, 0.0)
    return us.Schedule(kind="linear", start=1.0, length=max(round(how.imitation * total_steps), 1))
