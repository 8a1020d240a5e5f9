"""A part beside a TensorDict actor: built from the first batch, saved with its random stream and its episodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from understudy.core import randomness
from understudy.core.spaces import Key
from understudy.interop.torchrl.actions import KINDS, as_distribution, heads_of, joined_space, space_of
from understudy.interop.torchrl.entries import key_name, stored
from understudy.interop.torchrl.modules import (
    Actor,
    check_actor,
    check_critic,
    distribution_of,
    inputs_of,
    memory_of,
    whole_columns,
)
from understudy.interop.torchrl.policy import TensorDictPolicy
from understudy.interop.torchrl.rows import PRIMER, Rows
from understudy.nn.protocol import PolicyOutput
from understudy.parts.estimator import EstimatorConfig
from understudy.ppo.part import Part, PartConfig, PartContext
from understudy.runs.folder import load


class Beside(TensorDictModuleBase):
    """Base of `PartLoss` and `RewardTransform`, which explain the arguments."""

    part: Part
    policy: TensorDictPolicy
    rows: Rows

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
        estimates: Mapping[NestedKey, NestedKey] | None = None,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(part_config, PartConfig):
            raise ValueError(f"part_config must be the config of a part, us.parts.GailConfig(...), got {part_config!r}")
        check_actor(actor)
        if critic is not None:
            check_critic(critic)
        if isinstance(part_config, EstimatorConfig) and not estimates:
            raise ValueError(
                "Estimator compares an entry of the actor's pass with the truth: name both, "
                f"estimates={{'velocity_estimate': 'velocity'}}; the actor's are {[*map(key_name, actor.out_keys)]}"
            )
        words = re.sub(r"\B[A-Z]", r"_\g<0>", type(part_config).__name__.removesuffix("Config")).lower()
        self.config, self.actor, self.critic, self.name = part_config, actor, critic, name or words
        self.action_space, self.given = action_space, dict(observation_spaces or {})
        self.latent_key, self.estimates = latent_key, dict(estimates or {})
        self.gamma, self.seed = gamma, seed
        keys: Any = [*inputs_of(actor), *actor.dist_sample_keys]
        self.in_keys, self.out_keys = keys, []
        self.built, self.scored = False, 0
        if like is not None:
            self.build(like)

    def build(self, like: TensorDictBase) -> None:
        """Build the part for batches like this one; raises ValueError where the part does not fit."""
        if like.ndim < 1 or not like.batch_size.numel():
            raise ValueError(f"a part is built for rollouts [N, T] or [T], got the batch size {tuple(like.batch_size)}")
        policy, rows = self._policy(like)
        device = policy.device
        context = PartContext(
            name=self.name,
            observation_space=policy.observation_space,
            action_space=policy.action_space,
            policy=policy,
            num_envs=like.batch_size[:-1].numel(),
            num_steps=like.batch_size[-1],
            gamma=self.gamma,
            device=device,
            seed=randomness.mix(self.seed, f"part/{self.name}"),
            load_policy=load,
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(context.seed)
            part = self.config.build(context).to(device)
        self._check(part)
        self.policy, self.rows, self.part, self.num_envs, self.built = policy, rows, part, context.num_envs, True
        self.ended = torch.ones(context.num_envs, dtype=torch.bool, device=device)

    def _policy(self, like: TensorDictBase) -> tuple[TensorDictPolicy, Rows]:
        """The actor and the critic as a policy, and what reads batches for it."""
        memory = memory_of(self.actor, self.critic)
        size = [1, 1] if memory else [1]
        blank = TensorDict({}, batch_size=size, device=like.device)  # the family is asked for, not an action
        state = {*memory, "is_init"} if memory else set()
        for key in dict.fromkeys([*inputs_of(self.actor), *state]):
            x = stored(like, key, PRIMER if key in state else "the actor reads it")
            blank[key] = x.new_zeros(*size, *x.shape[like.ndim :])
        with torch.no_grad(), whole_columns(bool(memory)):
            found = distribution_of(self.actor, blank)
            distribution = as_distribution(found, blank.batch_size)
            heads = {
                key: space_of(head, as_distribution(head, blank.batch_size))
                for key, head in heads_of(found, self.actor.dist_sample_keys[0]).items()
            }
        if distribution.batch_shape != blank.batch_size:
            raise ValueError(
                f"the actor's {type(found).__name__} is {tuple(distribution.batch_shape)} for one row: parts know one "
                "choice [B], several [B, K], or a vector of numbers [B, D]"
            )
        action_space = self.action_space or joined_space([*heads.values()])
        if len(heads) == 1:
            heads = dict.fromkeys(heads, action_space)
        rows = Rows(like, self.actor, self.critic, heads, action_space, self.given)
        policy = TensorDictPolicy(
            self.actor,
            self.critic,
            rows.places,
            like,
            spaces.Dict(rows.spaces),
            action_space,
            KINDS[type(distribution)],
            self.latent_key,
            {self._truth(rows, truth): estimate for estimate, truth in self.estimates.items()},
        ).to(stored(like, next(iter(heads)), "store the sampled action when collecting").device)
        if policy.head.num_params != distribution.params.shape[-1]:
            raise ValueError(
                f"the actor's distribution has {distribution.params.shape[-1]} parameters, but {action_space} "
                f"takes {policy.head.num_params}: give the action_space that the actor samples in"
            )
        return policy, rows

    def _truth(self, rows: Rows, entry: NestedKey) -> Key:
        """The component that an entry of the batch is read into."""
        for ours, (theirs, _) in rows.places.items():
            if theirs == entry:
                return ours
        known = sorted({key_name(theirs) for theirs, _ in rows.places.values()})
        raise ValueError(f"estimates names {key_name(entry)!r} as the truth, but parts see {known} of the batch")

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

    def _run(self, rows: TensorDict) -> PolicyOutput:
        """The policy's pass over rows as parts read them."""
        return self.policy(rows["obs"], *((rows["state"][0], rows["is_first"]) if self.policy.recurrent else ()))

    def _rollout(self, rollout: TensorDictBase) -> TensorDict:
        """A rollout `[N, T]` or `[T]` of TorchRL's as one of ours, `[T, N]`."""
        if not self.built:
            self.build(rollout)
        if rollout.batch_size[:-1].numel() != self.num_envs:
            raise ValueError(
                f"the part was built for {self.num_envs} environments, this rollout {tuple(rollout.batch_size)} has "
                f"{rollout.batch_size[:-1].numel()}: pass rollouts [N, T] as the collector gives them"
            )
        rows = self.rows.read_rollout(rollout, self.policy)
        done = rows["terminated"] | rows["truncated"]
        if "is_first" not in rows.keys():  # noqa: SIM118
            rows["is_first"] = torch.cat((self.ended.unsqueeze(0), done[:-1]))
        self.ended = done[-1].clone()
        return rows
