"""What an environment tells beside a configuration, and the names of its observation groups."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from gymnasium import spaces

from understudy.core.check import nearest
from understudy.core.spaces import children, size_of
from understudy.envs.objects import as_vec_env
from understudy.envs.simulator import Simulator, SimulatorAdapter
from understudy.envs.simulator_forms import ACTOR_NAMES, CRITIC_NAMES, as_groups, conventional_groups
from understudy.interop.rsl_rl.reading import Block

NUM_ENVS = 4096
"""Copies where nobody says how many: Isaac Lab's and mjlab's habit."""


@dataclass
class Facts:
    """What the environment says; `space` and `step_time` (seconds) are None where nobody knows."""

    env: Any
    num_envs: int
    problems: list[str]
    space: spaces.Dict | None = None
    num_actions: int | None = None
    step_time: float | None = None
    names: dict[str, str] = field(default_factory=dict)
    """Group here -> the environment's own name of it."""

    @classmethod
    def of(cls, env: Any, num_envs: int | None, problems: list[str]) -> Facts:
        """Ask the environment, if there is one."""
        if env is None:
            if num_envs is not None and num_envs < 1:
                problems.append(f"num_envs must be at least 1, got {num_envs}")
            return cls(None, max(NUM_ENVS if num_envs is None else num_envs, 1), problems)
        own = as_vec_env(env)
        step_time = own.step_time if isinstance(own, SimulatorAdapter) else None
        shown = as_groups(env.get_observations()).keys() if isinstance(env, Simulator) else own.observation_space.keys()
        names = conventional_groups(map(str, shown))
        return cls(env, own.num_envs, problems, own.observation_space, size_of(own.action_space), step_time, names)

    @property
    def groups(self) -> tuple[str, ...]:
        """The environment's observation groups."""
        return () if self.space is None else tuple(children(self.space))

    def size(self, groups: tuple[str, ...]) -> int | None:
        """Entries of groups together; None if nobody knows."""
        if self.space is None or not set(groups) <= set(self.groups):
            return None
        return sum(size_of(x) for g in groups for x in (children(self.space[g]) or {"": self.space[g]}).values())


CONVENTION = dict.fromkeys(ACTOR_NAMES, "policy") | dict.fromkeys(CRITIC_NAMES, "critic")
"""What simulators call these groups, where they have none of our names."""


def _renamed(name: str, named: Collection[str], facts: Facts) -> bool:
    """Whether the adapter of a simulator gives a group our name for it."""
    ours = CONVENTION.get(name)
    return ours is not None and ((ours in named and name not in named) if facts.groups else ours not in named)


@dataclass
class ObservationSets:
    """Which groups the actor, the critic, a teacher and random network distillation see."""

    actor: tuple[str, ...] = ("policy",)
    critic: tuple[str, ...] | None = None
    teacher: tuple[str, ...] | None = None
    rnd_state: tuple[str, ...] | None = None
    given: bool = False
    segments: dict[str, dict[str, int]] = field(default_factory=dict)
    privileged: bool = False
    """Whether the critic's observation has another size than the actor's."""

    @classmethod
    def read(cls, runner: Block, facts: Facts) -> ObservationSets:
        """`obs_groups`; a set that is missing is the group of its name, else "policy", as there."""
        block = runner.block("obs_groups") or Block({}, "obs_groups.", facts.problems)
        names = ("actor", "policy", "student", "critic", "teacher", "rnd_state")
        found = {name: block.take(name, tuple[str, ...], None) for name in names}
        block.close()
        given = any(found.values())
        named = facts.groups or {group for groups in found.values() for group in groups or ()}
        for name, groups in found.items():
            if groups is not None:
                found[name] = tuple(CONVENTION.get(x, x) if _renamed(x, named, facts) else x for x in groups)
        fallbacks = [group for group in ("actor", "policy") if group in facts.groups] or ["policy"]
        actor = found["student"] or found["actor"] or found["policy"] or (fallbacks[0],)
        for groups in (actor, *found.values()):
            for group in groups or ():
                if facts.groups and group not in facts.groups:
                    facts.problems.append(
                        f"obs_groups name {group!r}, which the environment lacks ({nearest(group, facts.groups)})"
                    )
        return cls(actor, found["critic"], found["teacher"], found["rnd_state"], given)

    def rnd(self, facts: Facts) -> tuple[str, ...]:
        """The groups of random network distillation."""
        return self.rnd_state or (("rnd_state",) if "rnd_state" in facts.groups else self.actor)

    def critic_group(self, facts: Facts) -> str | None:
        """The group of the critic, where it has one of its own."""
        if self.critic is not None:
            return self.critic[0] if self.critic != self.actor else None
        separate = "critic" in facts.groups or "critic" in self.segments or self.privileged
        return "critic" if separate else None
