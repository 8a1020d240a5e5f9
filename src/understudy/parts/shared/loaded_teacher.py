"""Load trained policies as teachers, with their own networks and normaliser, and check them against the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor

from understudy.core.check import nearest
from understudy.core.spaces import Key, classes_of, find_components
from understudy.nn.distributions import Distribution
from understudy.nn.protocol import Policy
from understudy.nn.view import View
from understudy.parts.shared.distillation import ActionTarget, MeanTarget
from understudy.ppo.part import PartContext


class LoadedTeacher:
    """A frozen policy, the places of its observations in the student's environment, and its recurrent state."""

    def __init__(self, source: str, context: PartContext, groups: Mapping[str, str]) -> None:
        self.source = source
        self.policy = context.load_policy(source).to(context.device).eval().requires_grad_(False)
        self.view = View(self.policy, context.observation_space, groups, f"teacher {source}")
        theirs, ours = self.policy.head, context.policy.head
        if (theirs.action_shape, theirs.action_dtype) != (ours.action_shape, ours.action_dtype):
            raise ValueError(
                f"teacher {source} acts in {self.policy.action_space}, but this environment takes "
                f"{context.action_space}: name a teacher with the same actions"
            )
        self.state = self.policy.initial_state(context.num_envs)

    @torch.no_grad()
    def __call__(self, obs: TensorDictBase, is_first: Tensor) -> tuple[Distribution, dict[str, Tensor]]:
        """Distribution and latents at obs `[N]`; advances the state."""
        distribution, self.state, latents = self.policy.run_actor(self.view(obs), self.state, is_first)
        return distribution, latents


def load_teachers(
    context: PartContext, checkpoints: Sequence[str], groups: Mapping[str, str]
) -> tuple[LoadedTeacher, ...]:
    """Load every teacher; `groups` as in `TeacherConfig`. Raises ValueError if one does not fit the student's task."""
    if not checkpoints:
        raise ValueError("no teachers: name the run of one in `checkpoints` (--parts.teacher.checkpoints RUN)")
    teachers = tuple(LoadedTeacher(source, context, groups) for source in checkpoints)
    known = {name for teacher in teachers for key in teacher.view.places for name in (key[0], "/".join(key))}
    for name in groups:
        if name not in known:
            raise ValueError(f"groups names {name!r}, which no teacher sees; {nearest(name, known)}")
    return teachers


def find_selector(space: spaces.Dict, select: str | None, count: int) -> tuple[Key, int] | None:
    """Place and first value of the observation that selects a teacher; ValueError if it is missing or does not fit."""
    if select is None:
        if count > 1:
            raise ValueError(f"{count} teachers need `select`: the integer observation that selects one of them")
        return None
    ((key, component), *others) = find_components(space, select).items()
    classes = classes_of(component)
    if others or component.shape != () or classes is None or classes.counts != [count]:
        raise ValueError(f"select = {select!r} must be a Discrete({count}) for {count} teachers, but it is {component}")
    return key, classes.starts[0]


def check_target(policy: Policy, teachers: Sequence[LoadedTeacher], target: ActionTarget, label: str) -> None:
    """Raise ValueError for a target that these actions do not allow, and for what a teacher cannot give."""
    head = policy.head
    for teacher in teachers:
        for needed, option in (("a density", "target 'kl'"), ("samples", "label 'sample'")):
            if not teacher.policy.has_density and option in (f"target {target!r}", f"label {label!r}"):
                raise ValueError(
                    f"{option} needs {needed}, but teacher {teacher.source} only gives actions: use label 'mean' and "
                    "target 'real', 'mse_sum' or 'max_log_prob'"
                )
    if target in get_args(MeanTarget) and not head.action_dtype.is_floating_point:
        raise ValueError(
            f"target {target!r} is a distance of vectors, but actions are discrete: use kl or max_log_prob"
        )
    if target in ("tanh", "scaled_tanh") and not (head.bounded or policy.config.distribution.mean_activation == "tanh"):
        raise ValueError(
            f"target {target!r} needs a mean in [-1, 1]: set policy.distribution.mean_activation='tanh', or choose "
            "another target"
        )
    for teacher in teachers if target == "kl" else ():
        theirs = teacher.policy
        same = (theirs.head.kind, theirs.head.num_params) == (head.kind, head.num_params)
        if not same or not theirs.action_map.same_as(policy.action_map):
            raise ValueError(
                f"target 'kl' compares distributions of raw actions: teacher {teacher.source} and student must have "
                "one kind of distribution, action_scaling, action_bound and action space; or use max_log_prob"
            )


def check_latents(policy: Policy, teachers: Sequence[LoadedTeacher], mapping: Mapping[str, str]) -> None:
    """Raise ValueError for latents that are missing or differ in size."""
    sizes = _latent_sizes(policy) if mapping else {}
    for teacher in teachers if mapping else ():
        theirs = _latent_sizes(teacher.policy)
        for our_name, their_name in mapping.items():
            for whose, name, known in (("student", our_name, sizes), (f"teacher {teacher.source}", their_name, theirs)):
                if name not in known:
                    raise ValueError(f"the {whose} has no latent {name!r}; {nearest(name, known)}")
            if sizes[our_name] != theirs[their_name]:
                raise ValueError(
                    f"latent {our_name!r} has {sizes[our_name]} entries, {their_name!r} of teacher {teacher.source} "
                    f"has {theirs[their_name]}: give both encoders the same last layer"
                )


@torch.no_grad()
def _latent_sizes(policy: Policy) -> dict[str, int]:
    latents = policy.run_actor(policy.blank_observation(1), policy.initial_state(1))[2]
    return {name: latent.shape[-1] for name, latent in latents.items()}
