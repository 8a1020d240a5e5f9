"""Parts in a TensorDict loop of one's own: the networks, the collector and the losses stay, an expert's signal joins.

`PartLoss` adds a part's loss and weights to a minibatch, `RewardTransform` a part's reward to a rollout. Entries and
batch sizes are TorchRL's: rollouts `[N, T]` (or `[T]`) with "next", one number per sample as `[..., 1]`. TorchRL need
not be installed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor, nn
from torch import distributions as D

from understudy.core import randomness
from understudy.core.spaces import Key, component_keys, is_box, is_discrete, shape_of
from understudy.interop.clip_ppo_loss import ClipPPOLoss
from understudy.interop.tensordicts import (
    MASKS,
    Actor,
    check_actor,
    check_critic,
    distribution_of,
    key_name,
    mask_of,
    number,
    per_sample,
    stored,
)
from understudy.nn.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, TanhGaussian
from understudy.nn.heads import ActionHead, DistributionConfig, Kind
from understudy.nn.protocol import Actor as Acted
from understudy.nn.protocol import Policy, PolicyConfig, PolicyOutput
from understudy.ppo.part import Labels, Losses, Overrides, Part, PartConfig, PartContext, Rewards, Updates, Weights
from understudy.runs.folder import load
from understudy.types import Metrics

__all__ = ["ClipPPOLoss", "PartLoss", "RewardTransform", "TensorDictPolicy"]


class TensorDictPolicy(Policy):
    """`tensordict.nn` modules as the policy that parts see; the modules remain the user's.

    `places` says which entry each observation component is read from and in which type: the actor's are the group
    "policy" (with components, if it reads several), the critic's the group "critic" if it reads others. Raises
    ValueError for a distribution that is none of this library's families.
    """

    def __init__(
        self,
        actor: Actor,
        critic: TensorDictModuleBase | None,
        places: Mapping[Key, tuple[NestedKey, torch.dtype]],
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        kind: Kind,
        latent_key: NestedKey | None,
    ) -> None:
        config = PolicyConfig(
            action_scaling="on" if kind == "tanh_gaussian" else "off",
            action_bound="none",
            distribution=DistributionConfig(kind=kind),
        )
        super().__init__(observation_space, action_space, config)
        self.add_normalizers(component_keys(observation_space))  # for parts: the networks have their own, if any
        self._modules_of_the_user = actor, critic  # in a tuple: they are not this module's weights
        self.places, self.latent_key = places, latent_key

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> PolicyOutput:
        """Distribution and value of obs `[B]`; without a critic, values are zeros."""
        batch = self._entries(obs)
        distribution, _, latents = self._act(batch)
        critic = self._modules_of_the_user[1]
        value = torch.zeros(batch.batch_size, device=batch.device)
        if critic is not None:
            value = per_sample(critic(batch).get(critic.out_keys[-1]), "the critic's value", batch.batch_size)
        return PolicyOutput(distribution, value, None, latents)

    def run_actor(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> Acted:
        """Distribution, no state, and the latent "actor" if there is a `latent_key`."""
        return self._act(self._entries(obs))

    def actor_parameters(self) -> list[nn.Parameter]:
        """Weights of the actor."""
        return list(self._modules_of_the_user[0].parameters())

    def auxiliary_head(self, same: bool) -> ActionHead:
        """A head on the entry `latent_key`: a copy of what follows it in the actor, or a fresh one."""
        if self.latent_key is None:
            raise ValueError(
                "an auxiliary head reads what the actor's last layer reads: name that entry of the actor's pass with "
                f"latent_key=, the actor's are {[key_name(key) for key in self._modules_of_the_user[0].out_keys]}"
            )
        if not same:
            return super().auxiliary_head(same)
        return cast(ActionHead, _Tail(self._modules_of_the_user[0], self.latent_key))

    def _act(self, batch: TensorDictBase) -> Acted:
        distribution = as_distribution(distribution_of(self._modules_of_the_user[0], batch))
        latents = {} if self.latent_key is None else {"actor": _latent(batch, self.latent_key)}
        return distribution, None, latents

    def _entries(self, obs: Any) -> TensorDict:
        """The user's entries of our observations, in their types."""
        first = self.sensor_keys[0]
        leaf = obs.get(first)
        leading = leaf.shape[: leaf.ndim - len(shape_of(self.component(first)))]
        batch = TensorDict({}, batch_size=leading, device=leaf.device)
        for key in self.input_keys:
            theirs, dtype = self.places[key]
            if (x := obs.get(key, None)) is not None:
                batch[theirs] = x.to(dtype)
        return batch


class _Tail(nn.Module):
    """A copy of what follows an entry in an actor: latent `[..., H]` to distribution."""

    def __init__(self, actor: Actor, latent_key: NestedKey) -> None:
        super().__init__()
        modules = list(_in_order(actor))
        start = next((i for i, module in enumerate(modules) if latent_key in module.in_keys), None)
        if start is None:
            raise ValueError(f"no module of the actor reads {latent_key!r}: name the entry that its last layer reads")
        self.latent_key, self.actor = latent_key, ProbabilisticTensorDictSequential(*copy.deepcopy(modules[start:]))

    def forward(self, latent: Tensor) -> Distribution:
        batch = TensorDict({}, batch_size=latent.shape[:-1], device=latent.device)
        batch[self.latent_key] = latent
        return as_distribution(distribution_of(self.actor, batch))


def _in_order(actor: Any) -> Iterable[Any]:
    """The modules of a sequence, those of inner sequences in their place."""
    if not isinstance(actor, ProbabilisticTensorDictSequential):
        return [actor]
    inner: Any = actor.module.values() if isinstance(actor.module, nn.ModuleDict) else actor.module
    return [module for part in inner for module in _in_order(part)]


def _latent(batch: TensorDictBase, key: NestedKey) -> Tensor:
    """An entry that the actor's pass left; ValueError if there is none."""
    if (x := batch.get(key, None)) is None:
        raise ValueError(f"the actor's pass leaves no {key!r}: latent_key is one of {list(batch.keys(True, True))}")
    return x


def as_distribution(distribution: D.Distribution) -> Distribution:
    """A distribution of torch's or TorchRL's as one of this library's, differentiable; ValueError for other families.

    Normals (also under `Independent`), categoricals (one-hot ones, too), Bernoullis and TorchRL's `TanhNormal`.
    """
    base: Any = distribution
    while isinstance(base, D.Independent):
        base = base.base_dist
    if isinstance(base, D.Normal):
        return DiagGaussian(base.loc, base.scale.log())
    if isinstance(base, (D.Categorical, D.OneHotCategorical)):
        return Categorical(base.logits)
    if isinstance(base, D.Bernoulli):
        return Bernoulli(base.logits)
    if type(base).__name__ == "TanhNormal":  # TorchRL's, which need not be installed
        return TanhGaussian(base.loc, base.scale.log())
    raise ValueError(
        f"parts know Normal, Categorical, OneHotCategorical, Bernoulli and TanhNormal, not {type(base).__name__}"
    )


_KINDS: dict[type, Kind] = {
    DiagGaussian: "gaussian",
    TanhGaussian: "tanh_gaussian",
    Categorical: "categorical",
    Bernoulli: "bernoulli",
}


class _Beside(TensorDictModuleBase):
    """A part beside a TensorDict actor: builds it from the first batch (or `like`), and renames entries for it."""

    part: Part
    policy: TensorDictPolicy

    def __init__(
        self,
        part_config: PartConfig,
        actor: Actor,
        critic: TensorDictModuleBase | None = None,
        *,
        name: str | None = None,
        like: TensorDictBase | None = None,
        action_space: spaces.Space[Any] | None = None,
        observation_spaces: Mapping[str, spaces.Space[Any]] | None = None,
        latent_key: NestedKey | None = None,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(part_config, PartConfig):
            raise ValueError(f"part_config must be the config of a part, us.parts.GailConfig(...), got {part_config!r}")
        check_actor(actor)
        if critic is not None:
            check_critic(critic)
        if len(actor.dist_sample_keys) != 1:
            raise ValueError(f"parts know one action, the actor samples {actor.dist_sample_keys}")
        words = re.sub(r"\B[A-Z]", r"_\g<0>", type(part_config).__name__.removesuffix("Config")).lower()
        self.config, self.actor, self.critic, self.name = part_config, actor, critic, name or words
        self.action_space, self.given = action_space, dict(observation_spaces or {})
        self.latent_key, self.gamma, self.seed = latent_key, gamma, seed
        self.action_key: NestedKey = actor.dist_sample_keys[0]
        keys: Any = [*actor.in_keys, self.action_key]
        self.in_keys, self.out_keys = keys, []
        self.built, self.scored = False, 0
        if like is not None:
            self.build(like)

    def build(self, like: TensorDictBase) -> None:
        """Build the part for batches like this one; raises ValueError where the part does not fit."""
        if like.ndim < 1 or not like.batch_size.numel():
            raise ValueError(f"a part is built for rollouts [N, T] or [T], got the batch size {tuple(like.batch_size)}")
        action = stored(like, self.action_key, "store the sampled action when collecting")
        blank = TensorDict({}, batch_size=[1], device=like.device)  # the family is asked for, not an action
        for key in self.actor.in_keys:
            x = stored(like, key, "the actor reads it")
            blank[key] = torch.zeros_like(x.reshape(-1, *x.shape[like.ndim :])[:1])
        with torch.no_grad():
            found = distribution_of(self.actor, blank)
            distribution = as_distribution(found)
        if distribution.batch_shape != blank.batch_size:
            raise ValueError(
                f"the actor's {type(found).__name__} is {tuple(distribution.batch_shape)} for one row: parts know one "
                "choice [B], or a vector of numbers [B, D]"
            )
        self.action_space = self.action_space or _action_space(found, distribution)
        places, spaces_of = self._places(like, action)
        kind = _KINDS[type(distribution)]
        arguments = (self.actor, self.critic, places, spaces.Dict(spaces_of), self.action_space, kind, self.latent_key)
        policy = TensorDictPolicy(*arguments).to(action.device)
        if policy.head.num_params != distribution.params.shape[-1]:
            raise ValueError(
                f"the actor's distribution has {distribution.params.shape[-1]} parameters, but {self.action_space} "
                f"takes {policy.head.num_params}: give the action_space that the actor samples in"
            )
        context = PartContext(
            name=self.name,
            observation_space=policy.observation_space,
            action_space=policy.action_space,
            policy=policy,
            num_envs=like.batch_size[:-1].numel(),
            num_steps=like.batch_size[-1],
            gamma=self.gamma,
            device=action.device,
            seed=randomness.mix(self.seed, f"part/{self.name}"),
            load_policy=load,
        )
        with torch.random.fork_rng([action.device] if action.device.type == "cuda" else []):
            torch.manual_seed(context.seed)
            part = self.config.build(context).to(action.device)
        self._check(part)
        self.policy, self.part, self.num_envs, self.built = policy, part, context.num_envs, True
        self.ended = torch.ones(context.num_envs, dtype=torch.bool, device=action.device)

    def _check(self, part: Part) -> None:
        """Raise ValueError for a part without the hooks that are called here."""

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` adds to weights and statistics: the part's random stream, and where the episodes stand."""
        if not self.built:
            return {}
        return {"generator": self.part.generator.get_state(), "ended": self.ended, "scored": self.scored}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore it, for `load_state_dict`; raises ValueError before the part is built."""
        if state and not self.built:
            raise ValueError(f"{self.name} is not built yet: pass a batch as like=, then load its state")
        if state:
            self.part.generator.set_state(state["generator"].cpu())
            self.ended, self.scored = state["ended"].to(self.ended.device), state["scored"]

    # ------------------------------------------------------------------ entries

    def _places(self, like: TensorDictBase, action: Tensor) -> tuple[dict[Key, tuple[NestedKey, torch.dtype]], Any]:
        """Component -> entry and type, and the spaces of the groups."""
        made = {*self.actor.out_keys, *([] if self.critic is None else self.critic.out_keys)}
        groups = {"policy": list(self.actor.in_keys)}
        of_critic = [] if self.critic is None else [key for key in self.critic.in_keys if key not in made]
        if set(of_critic) - set(self.actor.in_keys):
            groups["critic"] = of_critic
        places: dict[Key, tuple[NestedKey, torch.dtype]] = {}
        found: dict[str, Any] = {}
        for group, entries in groups.items():
            leaves = {key_name(key): stored(like, key, "the critic reads it") for key in entries}
            inner = {name: _observed(x, like.ndim) for name, x in leaves.items()}
            found[group] = spaces.Dict(inner) if len(inner) > 1 else next(iter(inner.values()))
            for key, (name, x) in zip(entries, leaves.items()):
                places[(group, name) if len(inner) > 1 else (group,)] = key, x.dtype
        taken = {*_RESERVED, *made, *found, self.action_key}
        for key in (str(key) for key in like.sorted_keys if key not in taken):
            x = like.get(key)
            space = self.given.get(key) if isinstance(x, Tensor) else None
            if isinstance(x, Tensor) and space is None:
                same = not x.dtype.is_floating_point and (x.shape, x.dtype) == (action.shape, action.dtype)
                space = self.action_space if same else _observed(x, like.ndim) if _is_feature(x) else None
            if space is not None:
                found[key], places[key,] = space, (key, x.dtype)
        if unknown := self.given.keys() - found.keys():
            raise ValueError(f"observation_spaces names {sorted(unknown)}, but the batch has {sorted(found)}")
        return places, found

    def _converted(self, batch: TensorDictBase) -> TensorDict:
        """The batch under the names of a rollout (`understudy.types.ROLLOUT_KEYS`), of the same batch size."""
        size = batch.batch_size
        rows = TensorDict({}, batch_size=size, device=batch.device)
        rows["obs"] = self._observations(batch)
        x = stored(batch, self.action_key, "store the sampled action when collecting")
        executed = _fitted(x, self.policy.action_space, batch.ndim)
        raw = self.policy.action_map.inverse(executed)
        rows["action"] = raw if raw.is_floating_point() else raw.to(self.policy.head.action_dtype)
        rows["executed_action"] = executed
        mask = mask_of(batch)
        rows["valid"] = torch.ones(size, dtype=torch.bool, device=x.device) if mask is None else mask
        for name, key in _NAMES.items():
            if (x := batch.get(key, None)) is not None and x.shape in (size, (*size, 1)):
                rows[name] = x.reshape(size)
        return rows

    def _observations(self, batch: TensorDictBase) -> TensorDict:
        obs = TensorDict({}, batch_size=batch.batch_size, device=batch.device)
        for ours, (theirs, _) in self.policy.places.items():
            if (x := batch.get(theirs, None)) is not None:
                obs[ours] = _fitted(x, self.policy.component(ours), batch.ndim)
        return obs

    def _rollout(self, rollout: TensorDictBase) -> TensorDict:
        """A rollout `[N, T]` or `[T]` of TorchRL's as one of ours, `[T, N]`."""
        if not self.built:
            self.build(rollout)
        if rollout.batch_size[:-1].numel() != self.num_envs:
            raise ValueError(
                f"the part was built for {self.num_envs} environments, this rollout {tuple(rollout.batch_size)} has "
                f"{rollout.batch_size[:-1].numel()}: pass rollouts [N, T] as the collector gives them"
            )
        after = rollout.get("next", None)
        if after is None:
            raise ValueError('a rollout has the entries of "next": pass it as the collector gives it')
        rows, after = self._converted(rollout), after.copy()
        done = number(after, "done", _NEXT).bool()
        ended = done if after.get("terminated", None) is None else number(after, "terminated", _NEXT).bool()
        rows["terminated"], rows["truncated"] = ended, done & ~ended
        rows["next_obs"] = self._observations(after)
        rows["task_reward"] = number(after, "reward", _NEXT)
        rows = rows.reshape(self.num_envs, -1).transpose(0, 1).contiguous()  # [T, N]
        done = rows["terminated"] | rows["truncated"]
        rows["is_first"] = torch.cat((self.ended.unsqueeze(0), done[:-1]))
        self.ended = done[-1].clone()
        return _sound(rows)


class PartLoss(_Beside):
    """A `Losses` or `Weights` part on minibatches of a TensorDict loop: `loss_<name>`, and metrics under `<name>/...`.

    `part_config` is a part's config (`us.parts.BehaviorCloningConfig(...)`), `actor` and `critic` (None: the part sees
    zeros) the modules that the loop trains anyway; `parameters()` are theirs and the part's own.

        imitate = us.interop.torchrl.PartLoss(us.parts.TeacherConfig(checkpoints=("runs/teacher",)), actor, critic)
        for rollout in collector:
            imitate.prepare(rollout)                    # labels: once, before minibatches are drawn
            ...
            loss = sum of ppo(batch)'s "loss_*" + imitate(batch)["loss_teacher"]

    The part sees the actor's entries as the group "policy" (components by name, if there are several), those of a
    critic that reads others as "critic", and every other entry under its own name: floating ones, flags, and what looks
    like the action. A `Weights` part adds `weight` `[B]` for surrogate and entropy, which multiplies the losses of
    `us.ClipPPOLoss(reduction="none")`. Numbers that move are moved by `advance_all(loss, ...)`.

    - `like`: a batch to build the part for; None: the first one. Own weights (ADVISOR's head) exist from then on only.
    - `action_space`: the environment's, if it is bounded; None: from the distribution. `observation_spaces`: of
      entries that cannot be told by their type.
    - `latent_key`: the entry that the actor's last layer reads, for ADVISOR's auxiliary head.

    Raises ValueError for a part without these hooks, one that does not fit the batch, and one that would act in the
    policy's place. The actor has no memory: samples of a batch are steps of their own.
    """

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss and its metrics, a TensorDict without batch size; the input is left as it is."""
        if first_batch := not self.built:
            self.build(tensordict)
        size, rows = tensordict.batch_size, self._converted(tensordict).reshape(-1)
        starts = tensordict.get("is_init", None)
        blank = torch.zeros(rows.batch_size, dtype=torch.bool, device=rows["valid"].device)
        rows["is_first"] = blank if starts is None else per_sample(starts, "'is_init'", size).reshape(-1)
        if isinstance(self.part, Labels):
            label = tensordict.get(self.name, None)
            if label is None:
                self.built = not first_batch  # it is built for the rollouts
                raise ValueError(
                    f"the batch has no {self.name!r}: call prepare(rollout) before the rollout is cut into minibatches"
                )
            rows[self.name] = label.reshape(-1)
        drawn = self.part.sample(rows) if isinstance(self.part, Losses) else None
        if drawn is not None:
            rows = TensorDict({**rows}, batch_size=[])
            labels = rows.get(self.name, None)
            rows[self.name] = TensorDict({**({} if labels is None else labels), "sample": drawn}, batch_size=[])
        output = self.policy(rows["obs"])
        out: dict[str, Tensor] = {}
        if isinstance(self.part, Weights):
            with torch.no_grad():
                out["weight"] = self.part.weight(rows, output).reshape(size)
        if isinstance(self.part, Losses):
            loss, metrics = self.part.loss(self.policy, rows, output)
            out |= {f"loss_{self.name}": loss, **{f"{self.name}/{key}": x for key, x in metrics.items()}}
        return TensorDict(out, batch_size=[])

    def prepare(self, rollout: TensorDictBase) -> TensorDictBase:
        """Label a rollout `[N, T]` under `<name>`, step by step, and let a part remember it; returns it."""
        if not self.built:
            self.build(rollout)
        if not isinstance(self.part, (Labels, Updates)):
            return rollout
        rows = self._rollout(rollout)
        if isinstance(self.part, Labels):
            with torch.no_grad():
                steps = zip(rows["obs"].unbind(0), rows["is_first"].unbind(0))
                labels = torch.stack([self.part.label(obs, first).clone() for obs, first in steps])  # [T, N]
            if isinstance(self.part, Overrides) and any(
                bool(self.part.override(action, label)[1].any()) for action, label in zip(rows["action"], labels)
            ):
                raise ValueError(
                    f"{self.name} would act in the policy's place, which a loss cannot do: set teacher_forcing to 0"
                )
            rows[self.name] = labels
            rollout[self.name] = labels.transpose(0, 1).reshape(rollout.batch_size)
        if isinstance(self.part, Updates):
            self.part.update(self.policy, rows)
        return rollout

    def _check(self, part: Part) -> None:
        if not isinstance(part, (Losses, Weights)):
            raise ValueError(
                f"{type(part).__name__} has neither a loss nor weights: use us.interop.torchrl.RewardTransform"
            )
        self.out_keys = [f"loss_{self.name}"] if isinstance(part, Losses) else ["weight"]


class RewardTransform(_Beside):
    """A `Rewards` part (`Gail`, `Airl`, `MotionPrior`, `RandomNetworkDistillation`) on rollouts of a TensorDict loop.

        ("next", "reward") = task_weight * reward + part.reward_weight * (the part's reward)

    A module on rollouts `[N, T]` (or `[T]`), called before advantages are computed, by hand or as the collector's
    `postproc=`; not a transform of the environment, as rewards of parts need whole rollouts. It first scores the
    rollout, then takes the part's own optimizer steps on it, as `us.PPO` does, so each rollout passes once and in the
    order of time. `("next", "reward_<name>")` is the part's reward, `metrics` the last statistics (0-D tensors).
    Several transforms add up, one after another.

        gail = us.interop.torchrl.RewardTransform(us.parts.GailConfig(demonstrations="a.npz"), actor, task_weight=0)
        for rollout in collector:
            gail(rollout)

    Rows of padding, and those with a number that is not finite, get no reward of the part, which does not learn from
    them. Arguments are those of `PartLoss`; with `normalization="policy"` statistics are those of the rollouts so far.
    Raises ValueError for a part without a reward, and for rollouts with another number of environments.
    """

    def __init__(
        self,
        part_config: PartConfig,
        actor: Actor,
        critic: TensorDictModuleBase | None = None,
        *,
        task_weight: float = 1.0,
        name: str | None = None,
        like: TensorDictBase | None = None,
        action_space: spaces.Space[Any] | None = None,
        observation_spaces: Mapping[str, spaces.Space[Any]] | None = None,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        self.task_weight = task_weight
        self.metrics: Metrics = {}
        super().__init__(
            part_config,
            actor,
            critic,
            name=name,
            like=like,
            action_space=action_space,
            observation_spaces=observation_spaces,
            gamma=gamma,
            seed=seed,
        )

    def forward(self, rollout: TensorDictBase) -> TensorDictBase:
        """Replace the reward of a rollout in place, and learn from it; returns it."""
        rows = self._rollout(rollout)
        part, valid = cast(Rewards, self.part), rows["valid"]
        if not self.scored:  # the first statistics
            self.policy.update_normalizers(rows["obs"], valid)
        with torch.no_grad():
            output = self.policy(rows["obs"])
            rows["params"], rows["value"] = output.distribution.params, output.value
            reward = torch.where(valid, part.reward(rows), 0.0)
        self.metrics = {"reward": reward.mean()}
        if isinstance(self.part, Updates):
            with torch.enable_grad():
                self.metrics |= self.part.update(self.policy, rows)
        if self.scored:
            self.policy.update_normalizers(rows["obs"], valid)
        self.scored += 1
        after = rollout["next"]
        before = after["reward"]
        after[f"reward_{self.name}"] = own = reward.transpose(0, 1).reshape(before.shape).to(before.dtype)
        after["reward"] = self.task_weight * before + part.reward_weight * own
        return rollout

    def _check(self, part: Part) -> None:
        if not isinstance(part, Rewards):
            raise ValueError(f"{type(part).__name__} gives no reward: use us.interop.torchrl.PartLoss")


_NEXT = 'pass the rollout as the collector gives it, with the entries of "next"'

_NAMES: dict[str, NestedKey] = {
    "log_prob": "action_log_prob",
    "advantage": "advantage",
    "value_target": "value_target",
    "value": "state_value",
}
"""Numbers of a batch that parts read, and TorchRL's names of them."""

_RESERVED = {*_NAMES.values(), "next", "collector", "reward", "done", "terminated", "truncated", "is_init", "index"}
_RESERVED |= {key for key in MASKS if isinstance(key, str)} | {"episode_reward", "step_count", "sample_log_prob"}
"""Entries that are no observations."""


def _sound(rows: TensorDict) -> TensorDict:
    """Rows with a number that is not finite are no transitions: one would stop a part's learning for good."""
    keys: Any = [key for key in rows.keys(True, True) if key == "task_reward" or key[0] in ("obs", "next_obs")]
    for key in keys:
        if (x := rows[key]).is_floating_point():
            rows["valid"] = rows["valid"] & x.isfinite().reshape(*rows.batch_size, -1).all(-1)
            rows[key] = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return rows


def _is_feature(x: Tensor) -> bool:
    return x.dtype.is_floating_point or x.dtype in (torch.uint8, torch.bool)


def _observed(x: Tensor, batch_dims: int) -> spaces.Space[Any]:
    """The space of an entry that is read as it is."""
    shape = tuple(x.shape[batch_dims:])
    if x.dtype == torch.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    if x.dtype == torch.bool:
        return spaces.MultiBinary(shape) if shape else spaces.Discrete(2)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def _action_space(found: Any, distribution: Distribution) -> spaces.Space[Any]:
    size = distribution.params.shape[-1]
    if isinstance(distribution, Categorical):
        return spaces.Discrete(size)
    if isinstance(distribution, Bernoulli):
        return spaces.MultiBinary(size)
    low, high = (-np.inf, np.inf) if isinstance(distribution, DiagGaussian) else (found.low, found.high)
    low, high = (np.broadcast_to(np.asarray(x, np.float32), (size // 2,)).copy() for x in (low, high))
    return spaces.Box(low, high, dtype=np.float32)


def _fitted(x: Tensor, space: spaces.Space[Any], batch_dims: int) -> Tensor:
    """An entry as its space has it: one-hot choices as indices, numbers for each sample without a trailing 1."""
    if is_discrete(space) and x.ndim > batch_dims:
        return x.squeeze(-1) if x.shape[-1] == 1 else x.long().argmax(-1)
    return x if is_box(space) or x.dtype != torch.bool else x.long()
