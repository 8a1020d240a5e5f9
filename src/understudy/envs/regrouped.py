"""An environment with its observations grouped in another way, and flat vectors cut into named components."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from understudy.envs.base import StatefulEnv, Step, VecEnv
from understudy.envs.gate import Gate
from understudy.envs.observations import Groups, Segments, group_leaves, leaves_space, regroup, segmented


def with_groups(env: VecEnv, groups: Groups | None = None, segments: Segments | None = None) -> VecEnv:
    """The environment with other observation groups (see `observation_leaves`), some of them cut into segments.

    All are views, nothing is copied. Raises ValueError for a group or key that does not exist, a group that is no
    vector but is to be cut, and segments whose sizes do not add up.
    """
    if not (groups or segments):
        return env
    kind = StatefulRegroupedEnv if isinstance(env, StatefulEnv) else RegroupedEnv
    return kind(env, groups, segments)


def ungrouped(env: VecEnv) -> VecEnv:
    """The environment in which the groups are its own."""
    return ungrouped(env.env) if isinstance(env, RegroupedEnv) else env


class RegroupedEnv:
    """A `VecEnv` around another one, see `with_groups`."""

    def __init__(self, env: VecEnv, groups: Groups | None = None, segments: Segments | None = None) -> None:
        self.env, self.num_envs, self.device = env, env.num_envs, env.device
        self.action_space: spaces.Space[Any] = env.action_space
        self._gate = Gate(env)
        self._leaves = segmented(group_leaves(env.observation_space, groups or None), segments or {})
        self.observation_space = leaves_space(self._leaves)

    def reset(self, seed: int | None = None) -> TensorDict:
        """As the environment's."""
        return regroup(self._gate.reset(seed), self._leaves)

    def step(self, action: Tensor) -> Step:
        """As the environment's."""
        step = self._gate.step(action)
        final = None if step.final_obs is None else regroup(step.final_obs, self._leaves)
        return step._replace(obs=regroup(step.obs, self._leaves), final_obs=final)

    def observed(self, raw: Any) -> TensorDict:
        """As the simulator's (`SimulatorAdapter`), for an environment around one."""
        simulator: Any = self.env
        return regroup(simulator.observed(raw), self._leaves)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class StatefulRegroupedEnv(RegroupedEnv):
    """The same around an environment whose state can be saved."""

    env: Any  # both a VecEnv and a StatefulEnv

    def state_dict(self) -> dict[str, Tensor]:
        """As the environment's."""
        state: dict[str, Tensor] = self.env.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """As the environment's."""
        self.env.load_state_dict(state)

    def observe(self) -> TensorDict:
        """As the environment's."""
        return regroup(self.env.observe(), self._leaves)
