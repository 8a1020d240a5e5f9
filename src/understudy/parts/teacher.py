"""Learn from teachers: trained policies that label the student's observations and may act in its place.

DAgger (Ross et al. 2011, arXiv:1011.0686) where PPO's coefficients are 0, teacher-guided PPO (st_rl's TPPO) otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core import ranks
from understudy.core.check import In
from understudy.core.devices import check_memory
from understudy.core.ring import Ring
from understudy.core.schedules import Probability, Scalar, Weight
from understudy.nn.distributions import Distribution
from understudy.nn.protocol import Policy, PolicyOutput
from understudy.parts.shared.distillation import ActionTarget, MeanTarget, action_distance, before_tanh, vector_distance
from understudy.parts.shared.loaded_teacher import (
    LoadedTeacher,
    check_latents,
    check_target,
    find_selector,
    load_teachers,
)
from understudy.parts.shared.teacher_forcing import ForcingUnit, TeacherForcing, act_where_forced
from understudy.ppo.part import Labels, Losses, Overrides, Part, PartConfig, PartContext, Updates
from understudy.types import Metrics

Label = Literal["mean", "sample"]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(PartConfig):
    """Options of learning from teachers."""

    checkpoints: tuple[str, ...] = ()
    """Runs or checkpoint files of the teachers, each with its own networks and normaliser."""
    groups: dict[str, str] = field(default_factory=dict)
    """Names of the teachers' observations here: their group or group/component -> ours. Others keep their name."""
    select: str | None = None
    """With several teachers: the Discrete group or group/component that selects an environment's teacher."""
    label: Label = "mean"
    """The teacher's action: the mode of its distribution, or a sample."""
    teacher_forcing: Probability = 0.0
    """Probability that the teacher acts in the student's place, a number or a schedule (`exp:1:0:100it`)."""
    teacher_forcing_unit: ForcingUnit = "episode"
    """Draw once for each episode, or for each step."""
    target: ActionTarget = "real"
    """Distance between student and teacher; real: Euclidean, not squared."""
    coef: Weight = 1.0
    """Weight of that distance beside PPO's losses."""
    latents: dict[str, str] = field(default_factory=dict)
    """Latents of the student -> the teacher's that they imitate: `{"actor/proprioception": "actor/privileged"}`."""
    latent_target: MeanTarget = "real"
    """Distance between latents."""
    latent_coef: Weight = 1.0
    """Weight of each latent's distance."""
    rollouts: Annotated[float, In(1.0, 1e4)] = 1.0
    """Rollouts' worth of labelled data for each update, the newest included (aggregation); PPO only uses the newest."""
    resample_state_prob: Annotated[float, In(0.0, 1.0)] = 0.0
    """Recurrent students: share of sequences that start from a random state instead of the stored one."""

    def build(self, context: PartContext) -> Teacher:
        """Build the part."""
        return Teacher(context, self)


class Teacher(Part, Labels, Overrides, Updates, Losses):
    """Labels every observation with a teacher's action, which the student imitates.

        loss = coef mean d(pi(. | s), y)  +  latent_coef sum_i mean d'(latent_i(s), teacher's latent_i(s))

    with d as in `action_distance` and d' as in `vector_distance`. The label y is the action that the teacher would
    execute, as a raw action of the student. Where the teacher acts, its action is the executed one, whose log-prob
    under the student is stored; such a step leaves PPO's surrogate, not this loss. Steps that are no transition count
    as 0. `Updates` only remembers the rollout: with `rollouts` > 1 the loss is over as many times the minibatch, drawn
    uniformly from the newest rollouts, whose returns nobody touches.

    With `resample_state_prob` a sequence that continues an episode is distilled from a state drawn uniformly from the
    range of states seen so far; PPO's own pass keeps the true one.

    Raises ValueError for no teacher or several without `select`, observations or actions that do not fit, latents that
    do not exist or differ in size, and a target that does not fit the actions; CheckpointError where there is no
    checkpoint.
    """

    low: Tensor  # [S], range of the recurrent states seen so far
    high: Tensor

    def __init__(self, context: PartContext, config: TeacherConfig) -> None:
        super().__init__(context)
        self.config, self.num_steps = config, context.num_steps
        policy = context.policy
        self.teachers = load_teachers(context, config.checkpoints, config.groups)
        self.selector = find_selector(context.observation_space, config.select, len(self.teachers))
        check_target(policy, self.teachers, config.target, config.label)
        check_latents(policy, self.teachers, config.latents)
        # functions and names, not modules: the student's weights do not belong to this part
        self.input_keys, self.to_raw = policy.input_keys, policy.action_map.inverse
        self.action_dtype, self.recurrent = policy.head.action_dtype, policy.recurrent
        if config.resample_state_prob and not self.recurrent:
            raise ValueError("resample_state_prob is for recurrent students: this one has no state")
        self.forcing = TeacherForcing(
            config.teacher_forcing, config.teacher_forcing_unit, context.num_envs, context.device
        )
        units = context.num_envs * (1 if self.recurrent else context.num_steps)
        self.draws = config.rollouts > 1.0 or config.resample_state_prob > 0.0
        if self.draws:
            observed: Any = policy.blank_observation(1).values(True, True)
            row = sum(x.nbytes for x in observed)
            size = config.rollouts * context.num_envs * context.num_steps * row
            check_memory(size, f"{config.rollouts:g} rollouts", f"{self.name}.rollouts", context.device)
        self.memory = Ring(int(config.rollouts * units))
        self.register_buffer("low", torch.zeros(policy.state_size))
        self.register_buffer("high", torch.zeros(policy.state_size))
        self.to(context.device)
        self.coef = Scalar(config.coef, context.device)
        self.latent_coef = Scalar(config.latent_coef, context.device)

    # ------------------------------------------------------------------ each step

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        """The teacher's action (with distribution and latents as needed), and `forced` `[N]` where it acts."""
        answers = [teacher(obs, is_first) for teacher in self.teachers]
        index = None
        if self.selector is not None:
            key, start = self.selector
            index = obs.get(key).long() - start  # [N]
        label = TensorDict({"forced": self.forcing.draw(is_first, self.generator)}, batch_size=is_first.shape)
        label["action"] = _choose(index, [self._raw(teacher, a[0]) for teacher, a in zip(self.teachers, answers)])
        if self.config.target == "kl":
            label["params"] = _choose(index, [distribution.params for distribution, _ in answers])
        for ours, theirs in self.config.latents.items():
            label["latents", ours] = _choose(index, [latents[theirs] for _, latents in answers])
        return label

    def override(self, action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
        """The teacher's action where it acts."""
        return act_where_forced(action, label)

    def _raw(self, teacher: LoadedTeacher, distribution: Distribution) -> Tensor:
        sample = self.config.label == "sample"
        raw = distribution.sample(generator=self.generator) if sample else distribution.mode()
        # teacher and student may bound and scale differently, but they share the executed action
        return self.to_raw(teacher.policy.action_map(raw)).to(self.action_dtype)

    # ------------------------------------------------------------------ each rollout, each minibatch

    @torch.no_grad()
    def update(self, policy: Policy, rollout: TensorDict) -> Metrics:
        """Remember the rollout, if the loss draws from more than the minibatch."""
        if self.draws:
            if self.recurrent:
                state = rollout["state"][0]
                self.low.copy_(torch.minimum(self.low, -ranks.maximum(-state.amin(0))))
                self.high.copy_(torch.maximum(self.high, ranks.maximum(state.amax(0))))
            self.memory.add(self._units(rollout))
        return {"forced": rollout[self.name, "forced"].float().mean()}

    def sample(self, batch: TensorDict) -> TensorDict | None:
        """Labelled data of the newest rollouts, `rollouts` times the size of the minibatch."""
        if not self.draws:
            return None
        drawn = self.memory.sample(int(self.config.rollouts * batch.batch_size[-1]), self.generator)
        if not self.recurrent:
            return drawn
        state = drawn["state"]
        drawn = drawn.exclude("state").auto_batch_size_(2).transpose(0, 1).contiguous()  # [T, K]
        if self.config.resample_state_prob:
            state = self._resample(state, drawn["is_first"][0])
        return TensorDict({**drawn, "state": state}, batch_size=[])

    def loss(self, policy: Policy, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """The weighted distances on the minibatch or on the drawn data."""
        label, valid = batch[self.name], batch["valid"]
        if self.draws:
            rows = label["sample"]
            label, valid = rows["label"], rows["valid"]
            recurrent = (rows["state"], rows["is_first"]) if self.recurrent else ()
            out = policy(rows["obs"], *recurrent)
        weight = valid.to(out.value.dtype)
        teacher = policy.head.from_params(label["params"]) if self.config.target == "kl" else None
        distance = (weight * action_distance(self.config.target, out.distribution, label["action"], teacher)).mean()
        loss, metrics = self.coef() * distance, {"distance": distance.detach()}
        for name in self.config.latents:
            error = vector_distance(self.config.latent_target, out.latents[name], label["latents", name])
            error = (weight * error).mean()
            loss = loss + self.latent_coef() * error
            metrics[f"latent/{name}"] = error.detach()
        if self.action_dtype.is_floating_point:
            with torch.no_grad():
                mode, action = out.distribution.mode(), label["action"]
                metrics["l1"] = (weight * vector_distance("l1", mode, action)).mean()
                if self.config.target in ("tanh", "scaled_tanh"):
                    metrics["l1_before_tanh"] = (weight * before_tanh(mode, action)).mean()
        return loss, metrics

    def _units(self, rollout: TensorDict) -> TensorDict:
        """The units of the ring: transitions, or, for a recurrent student, environments `[N]` with T steps each."""
        kept = TensorDict({}, batch_size=rollout.batch_size, device=rollout.device)
        for key in self.input_keys:
            kept["obs", *key] = rollout["obs", *key]
        kept["label"], kept["valid"] = rollout[self.name], rollout["valid"]
        if not self.recurrent:
            return kept.flatten(0, 1)
        kept["is_first"] = rollout["is_first"]
        kept = kept.transpose(0, 1).contiguous()
        return TensorDict({**kept, "state": rollout["state"][0]}, batch_size=kept.batch_size[:1])

    def _resample(self, state: Tensor, is_first: Tensor) -> Tensor:
        """Replace some of the states `[K, S]` by random ones; episodes still begin from their initial state."""
        device = state.device
        chosen = torch.rand(len(state), generator=self.generator, device=device) < self.config.resample_state_prob
        drawn = torch.rand(state.shape, generator=self.generator, device=device)
        drawn = self.low + (self.high - self.low) * drawn
        return torch.where((chosen & ~is_first).unsqueeze(-1), drawn, state)

    # ------------------------------------------------------------------ state

    def training_state(self) -> dict[str, Any]:
        """The forced environments, the teachers' recurrent states and the aggregated data; teachers are constant."""
        states = [teacher.state for teacher in self.teachers]
        return {**super().training_state(), "teachers": states, "memory": self.memory.state_dict()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `training_state`."""
        super().load_training_state(state)
        for teacher, saved in zip(self.teachers, state["teachers"]):
            teacher.state = None if saved is None else saved.to(self.low.device)
        self.memory.load_state_dict(state["memory"], self.low.device)


def _choose(index: Tensor | None, candidates: Sequence[Tensor]) -> Tensor:
    """From K candidates `[N, ...]`, the one with the number `index` `[N]` in each row."""
    if index is None:
        return candidates[0]
    return torch.stack(list(candidates))[index, torch.arange(len(index), device=index.device)]
