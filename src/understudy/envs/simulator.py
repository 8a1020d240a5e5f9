"""GPU simulators (mjlab, Isaac Lab, ManiSkill, Playground, Genesis, legged_gym forks) as a `VecEnv`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

from understudy.core.spaces import Key
from understudy.envs.base import Step
from understudy.envs.gate import metric, raised
from understudy.envs.observations import Groups, group_leaves, leaves_space, regroup
from understudy.envs.simulator_forms import (
    action_space_of,
    as_groups,
    conventional_groups,
    paths,
    tree_space,
    unbounded,
)
from understudy.types import EnvError, UnderstudyError


@runtime_checkable
class Simulator(Protocol):
    """rsl_rl's environment interface, as far as it is used."""

    num_envs: int
    num_actions: int
    device: Any

    def get_observations(self) -> Any:
        """TensorDict `[N]`, or the older (obs `[N, D]`, extras)."""

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        """obs, reward `[N]`, dones `[N]`, extras."""


@runtime_checkable
class TorchVectorEnv(Protocol):
    """Many copies in one object that is not a Gymnasium vector environment: tensors in, Gymnasium's 5 values out."""

    num_envs: int
    single_action_space: Any
    device: Any

    def reset(self) -> tuple[Any, Any]:
        """obs `[N, ...]`, info; with `seed=` if it is to be seeded."""

    def step(self, action: Any) -> tuple[Any, ...]:
        """obs, reward `[N]`, terminated `[N]`, truncated `[N]`, info."""


@runtime_checkable
class _Resets(Protocol):
    def reset(self) -> Any: ...


@runtime_checkable
class _Seeds(Protocol):
    seed: Any  # a number at MuJoCo Playground's


@runtime_checkable
class _Closes(Protocol):
    def close(self) -> None: ...


@runtime_checkable
class _Wraps(Protocol):
    unwrapped: Any


@runtime_checkable
class _Privileged(Protocol):
    """legged_gym's interface: the critic's observations (or None) come second, also from `step`."""

    def get_privileged_observations(self) -> Tensor | None: ...


@runtime_checkable
class _CountsEpisodes(Protocol):
    episode_length_buf: Tensor
    max_episode_length: Any


@runtime_checkable
class _CountsSteps(Protocol):
    common_step_counter: int


@runtime_checkable
class _Configured(Protocol):
    cfg: Any


@runtime_checkable
class _AutoResets(Protocol):
    """mjlab's configuration: without `auto_reset` an environment shows its true final observation."""

    auto_reset: bool


@runtime_checkable
class _Horizon(Protocol):
    is_finite_horizon: bool


@runtime_checkable
class _ObservesTerms(Protocol):
    observation_manager: Any


@runtime_checkable
class _Renders(Protocol):
    def render(self) -> Any: ...


@runtime_checkable
class _Steps(Protocol):
    step_dt: float


class _Raw(NamedTuple):
    """What a step returned, whatever its form."""

    obs: TensorDict
    reward: Any
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    extras: Mapping[str, Any]


class SimulatorAdapter:
    """A simulator with rsl_rl's interface, or with Gymnasium's 5 values as tensors.

    Per step, from `obs, reward, dones, extras = env.step(actions)` (legged_gym: obs, critic's obs, reward, ...):

        truncated  = dones & extras["time_outs"]      (absent: no time limit, every end is a termination)
        terminated = dones & ~extras["time_outs"]

    or from `obs, reward, terminated, truncated, info` (all ends are terminations if `cfg.is_finite_horizon`):

        truncated  = truncated & ~terminated

        final_obs  = extras["final_obs"] (or "final_observation"), if given: TensorDict (or the "policy" tensor alone)
                     with N rows, of which only the ended ones count, or with only the K ended rows, in order
        metrics    = extras["log"] or extras["episode"], as they come

    Flags may be bool, int or float, `[N]` or `[N, 1]`. Where the simulator lets its caller reset (mjlab), it is stepped
    without its automatic reset: environments that ended show their true final observation, and are then reset by hand
    (`exact_time_limits`, which waits for the device to know whether any did). Elsewhere nothing here waits.

    Observations: `as_groups`. Without `groups`, which regroup them by the simulator's own names (see
    `observation_leaves`), "actor" or "state" is called "policy", and "privileged_state" "critic". Spaces are unbounded
    Boxes made from the shapes, unless `action_space` is given or the simulator has one.

    Raises ValueError if shapes or devices do not fit, `WorkerError` when the simulator raises.
    """

    def __init__(
        self,
        env: Any,
        groups: Groups | None = None,
        action_space: spaces.Space[Any] | None = None,
        *,
        exact_time_limits: bool = True,
        random_episode_lengths: bool = True,
        reseed: Callable[[int], None] | None = None,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        self.env, self._name, self._reseed, self._on_close = env, type(env).__name__, reseed, on_close
        self.raw: Any = env.unwrapped if isinstance(env, _Wraps) else env
        """The simulator itself, without wrappers."""
        self.random_episode_lengths = random_episode_lengths
        source = env if isinstance(env, Simulator) else self.raw
        self._is_simulator = isinstance(env, Simulator)
        self.num_envs, self.device = source.num_envs, torch.device(source.device)
        cfg = self.raw.cfg if isinstance(self.raw, _Configured) else None
        self._manual = cfg if exact_time_limits and isinstance(cfg, _AutoResets) else None
        self._finite = isinstance(cfg, _Horizon) and cfg.is_finite_horizon
        if action_space is None:
            action_space = unbounded((env.num_actions,)) if self._is_simulator else _actions_of(env, self.raw)
        self.action_space = action_space
        first = self._shown() if self._is_simulator else as_groups(env.reset())
        if first.batch_size != (self.num_envs,):
            raise EnvError(
                f"the simulator has {self.num_envs} environments, but its observations have batch size "
                f"{tuple(first.batch_size)}"
            )
        space = tree_space(first)
        self._leaves = group_leaves(space, groups or conventional_groups(space.spaces))
        self.observation_space = leaves_space(self._leaves)
        # where the groups are the simulator's own, its TensorDict is handed on untouched
        self._as_is = {leaf.key for leaf in self._leaves} == paths(first) and all(
            leaf.key == leaf.source and leaf.env_shape and leaf.of(value := first.get(leaf.source)) is value
            for leaf in self._leaves
        )
        for leaf in self._leaves:
            self._here(f"observation {'/'.join(leaf.source)!r}", first.get(leaf.source))

    def reset(self, seed: int | None = None) -> TensorDict:
        """Reset all environments if the simulator has `reset()` (and can be seeded), else continue; obs `[N]`."""
        if not self._is_simulator:
            return self._regroup(as_groups(self.env.reset() if seed is None else self.env.reset(seed=seed)))
        if seed is not None:
            if self._reseed is not None:
                self._reseed(seed)
            elif isinstance(self.env, _Seeds) and callable(self.env.seed):
                self.env.seed(seed)
        shown = None
        for env in (self.env, self.raw):  # Isaac Lab's wrapper has no reset, the environment in it has
            if isinstance(env, _Resets):
                shown = env.reset()
                break
        first = shown[0] if isinstance(shown, tuple) else shown
        # a tensor alone lacks groups that only `get_observations` gives
        return self._regroup(as_groups(first) if isinstance(first, TensorDict) else self._shown())

    def step(self, action: Tensor) -> Step:
        """Apply one action per environment, `[N, A]`."""
        try:
            with self._resets_by_hand():
                raw = self._read(self.env.step(action))
                obs, final, extras = self._regroup(raw.obs), None, raw.extras
                if self._manual is not None:
                    obs, final, extras = self._reset_ended(obs, raw)
        except UnderstudyError:
            raise
        except Exception as error:
            raise raised(f"simulator {self._name}", "step", error) from error
        if final is None:
            given = extras.get("final_obs", extras.get("final_observation"))
            if given is not None:
                final = self._final(given, obs, raw.terminated | raw.truncated)
            elif isinstance(self.env, VectorEnv):  # ManiSkill's: no episode ended, so that no row is read
                final = obs
        reward = self._row("reward", raw.reward).float()
        return Step(obs, reward, raw.terminated, raw.truncated, final, self._metrics(raw, extras))

    def close(self) -> None:
        """Close the simulator, if it can be closed."""
        if self._on_close is not None:
            self._on_close()
        if isinstance(self.env, _Closes):
            self.env.close()

    # ------------------------------------------------------------------ what simulators have beside it

    def observed(self, raw: Any) -> TensorDict:
        """Observations in any of the simulator's forms, `[rows]`, as `step` gives them."""
        return self._regroup(as_groups(raw))

    def stagger(self, seed: int) -> None:
        """Give each running episode a random age, uniform in [0, max_episode_length), if the simulator counts them.

        Without it all environments time out in the same step (rsl_rl's `init_at_random_ep_len`).
        """
        counts = next((env for env in (self.env, self.raw) if isinstance(env, _CountsEpisodes)), None)
        if not self.random_episode_lengths or counts is None or not 1 <= counts.max_episode_length < math.inf:
            return
        ages = counts.episode_length_buf
        drawn = torch.randint(
            int(counts.max_episode_length), ages.shape, generator=torch.Generator().manual_seed(seed % 2**63)
        )
        counts.episode_length_buf = drawn.to(ages)

    @property
    def counters(self) -> dict[str, int]:
        """What curricula count by: `common_step_counter`, where the simulator has it."""
        return {"common_step_counter": self.raw.common_step_counter} if isinstance(self.raw, _CountsSteps) else {}

    @counters.setter
    def counters(self, counters: Mapping[str, int]) -> None:
        if isinstance(self.raw, _CountsSteps) and "common_step_counter" in counters:
            self.raw.common_step_counter = counters["common_step_counter"]

    @property
    def terms(self) -> dict[Key, tuple[str, ...]]:
        """Observation -> the name of each of its columns' term, where the simulator has an observation manager."""
        found = {}
        if isinstance(self.raw, _ObservesTerms):
            manager = self.raw.observation_manager
            for leaf in self._leaves:
                group, shape = leaf.source[0], leaf.env_shape
                sizes = [math.prod(dim) for dim in manager.group_obs_term_dim.get(group, ())]
                if len(leaf.source) == len(shape) == 1 and sum(sizes) == shape[0]:
                    names = zip(manager.active_terms[group], sizes)
                    found[leaf.key] = tuple(name for name, size in names for _ in range(size))
        return found

    def metadata(self) -> dict[str, Any]:
        """What a robot has to know to run a policy, by mjlab's keys; empty where the simulator does not tell."""
        if type(self.raw).__module__.partition(".")[0] != "mjlab":
            return {}
        tell: Callable[[Any], dict[str, Any]] = import_module("understudy.envs.simulators.mjlab").metadata
        return tell(self.raw)

    @property
    def step_time(self) -> float | None:
        """Seconds between two observations, where the simulator tells."""
        return float(self.raw.step_dt) if isinstance(self.raw, _Steps) else None

    def render(self) -> np.ndarray:
        """A picture `[H, W, 3]` uint8 of the first environment. Raises ValueError where the simulator draws none."""
        drawn = self.raw.render() if isinstance(self.raw, _Renders) else None
        if drawn is None:
            raise ValueError(f"{self._name} renders nothing; build it with render_mode='rgb_array', if it can")
        picture = drawn.numpy(force=True) if isinstance(drawn, Tensor) else np.asarray(drawn)
        return picture[0] if picture.ndim == 4 else picture

    # ------------------------------------------------------------------ one step

    @contextmanager
    def _resets_by_hand(self) -> Iterator[None]:
        """The simulator without automatic resets, which it has again afterwards: it may be the user's."""
        if self._manual is None:
            yield
            return
        before, self._manual.auto_reset = self._manual.auto_reset, False
        try:
            yield
        finally:
            self._manual.auto_reset = before

    def _shown(self) -> TensorDict:
        """What the simulator shows now."""
        raw = self.env.get_observations()
        if isinstance(self.env, _Privileged) and isinstance(raw, Tensor):
            return as_groups(raw, self.env.get_privileged_observations())
        return as_groups(raw)

    def _read(self, result: tuple[Any, ...]) -> _Raw:
        """The values of a step by name."""
        if len(result) == 5 and not self._is_simulator:
            obs, reward, *flags, extras = result
            terminated, truncated = (self._flag(*x) for x in zip(("terminated", "truncated"), flags))
            if self._finite:
                terminated = terminated | truncated
            return _Raw(as_groups(obs, extras), reward, terminated, truncated & ~terminated, extras)
        critic = None
        if len(result) == 5 and isinstance(self.env, _Privileged):
            obs, critic, *rest = result
            result = (obs, *rest)
        if len(result) != 4:
            expected = "(obs, reward, dones, extras)" if self._is_simulator else "Gymnasium's 5"
            raise EnvError(
                f"{self._name}.step returned {len(result)} values instead of {expected}: wrap it; privileged "
                "observations belong in extras['observations']['critic'], or have get_privileged_observations"
            )
        obs, reward, raw_dones, extras = result
        dones = self._flag("dones", raw_dones)
        truncated = dones & self._flag("time_outs", extras.get("time_outs", torch.zeros_like(dones)))
        groups = as_groups(obs, extras if critic is None else {**extras, "observations": {"critic": critic}})
        return _Raw(groups, reward, dones & ~truncated, truncated, extras)

    def _reset_ended(self, obs: TensorDict, raw: _Raw) -> tuple[TensorDict, TensorDict, Mapping[str, Any]]:
        """Reset the environments that ended: all first observations, what they showed last, and the log of both."""
        ended = raw.terminated | raw.truncated
        rows = ended.nonzero().squeeze(-1)
        if not len(rows):
            return obs, obs, raw.extras
        log = dict(raw.extras.get("log") or {})
        final = obs.clone()  # a history's buffer may be overwritten
        fresh, extras = self.raw.reset(env_ids=rows)
        first = self._regroup(as_groups(fresh))
        # what others show in the reset has noise of its own: they keep what they showed
        kept = final.apply(lambda old, new: torch.where(ended.view(-1, *[1] * (old.ndim - 1)), new, old), first)
        assert isinstance(kept, TensorDict)
        return kept, final, {**extras, "log": log | dict(extras.get("log") or {})}

    def _regroup(self, obs: TensorDict) -> TensorDict:
        return obs if self._as_is else regroup(obs, self._leaves)

    def _final(self, given: Any, obs: TensorDict, ended: Tensor) -> TensorDict:
        """The final observations as `[N]`, whatever form they came in."""
        final = as_groups(given)
        missing = {leaf.source for leaf in self._leaves} - paths(final)
        if missing:
            raise EnvError(
                f"extras['final_obs'] lacks {', '.join(sorted('.'.join(source) for source in missing))}: the value of "
                "the final observation needs every group; give all of them or leave final_obs out"
            )
        final = self._regroup(final)
        rows = final.batch_size[0]
        if rows == self.num_envs:
            return final
        if rows == 0:
            return obs  # no episode ended: no row of it is read
        # the k-th ended environment takes row k; the others take any. Static shapes, so no wait for the device
        index = (ended.cumsum(0) - 1).clamp_(0, rows - 1)  # [N]
        return final[index]

    def _metrics(self, raw: _Raw, extras: Mapping[str, Any]) -> dict[str, Tensor]:
        """The step's log; ManiSkill's of episodes counts where one ended."""
        log = extras.get("log", None if not self._is_simulator else extras.get("episode")) or {}
        metrics = {name: self._metric(name, value) for name, value in log.items()}
        finished = extras.get("final_info")
        if isinstance(finished, Mapping) and isinstance(finished.get("episode"), Mapping):
            ended = raw.terminated | raw.truncated
            for name, value in finished["episode"].items():
                name = "is_success" if name == "success_once" else name
                metrics[name] = torch.where(ended, self._metric(name, value), torch.nan)
        return metrics

    def _metric(self, name: str, value: Any) -> Tensor:
        value = metric(f"the simulator's log {name!r}", value, self.device).detach().float()
        return value.reshape(()) if value.numel() == 1 else self._row(name, value)

    def _flag(self, name: str, value: Any) -> Tensor:
        value = self._row(name, value)
        return value if value.dtype == torch.bool else value != 0

    def _row(self, name: str, value: Any) -> Tensor:
        """`[N]` from `[N]` or `[N, 1]`; ValueError for anything else (it would broadcast)."""
        if not isinstance(value, Tensor):
            raise EnvError(f"the simulator's {name} is a {type(value).__name__}, expected a tensor [{self.num_envs}]")
        self._here(name, value)
        if value.shape == (self.num_envs,):
            return value
        if value.shape == (self.num_envs, 1):
            return value.squeeze(-1)
        raise EnvError(f"the simulator's {name} has shape {tuple(value.shape)}, expected [{self.num_envs}]")

    def _here(self, name: str, value: Tensor) -> None:
        """Raise EnvError for a tensor on another kind of device than the simulator says."""
        if value.device.type != self.device.type:
            raise EnvError(
                f"the simulator's {name} is on {value.device}, but the simulator says that it is on {self.device}: "
                "move it there"
            )


def _actions_of(env: Any, raw: Any) -> spaces.Space[Any]:
    """The actions of one copy; a wrapper of ManiSkill's may bound them more narrowly than the environment in it."""
    return action_space_of((env if isinstance(env, TorchVectorEnv) else raw).single_action_space)
