"""Shared by the tests of the core: a policy, PPO, and an environment that plays from a script."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.fresh import Fresh
from torch import Tensor

from understudy.core.spaces import tensor_dtype
from understudy.envs.base import Step
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.part import Part
from understudy.ppo.ppo import PPO

Ends = Callable[[int, int], str]
Edit = Callable[[int, Step], Step]


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def staggered(t: int, n: int) -> str:
    """Episodes of different lengths that end either way."""
    if (t + n) % 5 == 4:
        return "terminated"
    return "truncated" if (t + 2 * n) % 7 == 6 else ""


class ScriptedEnv:
    """A `VecEnv` whose every number is random but fixed by `seed`, and kept for the test to look at.

    `ends(t, n)` says how step t of environment n ends; `edit(t, step)` may change what a step returns. `seen[t]` are
    the observations before step t, `steps[t]` what step t returned, `actions[t]` what it was given (copies).
    """

    def __init__(
        self,
        num_envs: int = 3,
        *,
        observation_space: spaces.Dict | None = None,
        action_space: spaces.Space[Any] | None = None,
        ends: Ends = staggered,
        edit: Edit | None = None,
        gives_final: bool = True,
        seed: int = 0,
    ) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.observation_space = observation_space or spaces.Dict({"policy": box(3)})
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.ends, self.edit, self.gives_final = ends, edit, gives_final
        self.generator = torch.Generator().manual_seed(seed)
        self.seeds: list[int | None] = []
        self.seen: list[TensorDict] = []
        self.steps: list[Step] = []
        self.actions: list[Tensor] = []

    def reset(self, seed: int | None = None) -> TensorDict:
        self.seeds.append(seed)
        self.seen.append(self._observe())
        return self.seen[-1].clone()

    def step(self, action: Tensor) -> Step:
        t, N = len(self.steps), self.num_envs
        ends = [self.ends(t, n) for n in range(N)]
        terminated = torch.tensor([e == "terminated" for e in ends])
        truncated = torch.tensor([e == "truncated" for e in ends])
        reward = torch.randn(N, generator=self.generator)
        obs = self._observe()
        final: Any = self._observe() if self.gives_final else None
        if final is not None:  # where nothing ended, the true next observation is the next one
            final = torch.where(terminated | truncated, final, obs)
        step = Step(obs, reward, terminated, truncated, final, {})
        if self.edit is not None:
            step = self.edit(t, step)
        self.actions.append(action.clone())
        self.steps.append(_copy(step))
        self.seen.append(step.obs.clone())
        return step

    def close(self) -> None:
        pass

    def _observe(self) -> TensorDict:
        return self._draw(self.observation_space)

    def _draw(self, space: spaces.Dict) -> TensorDict:
        leaves: dict[str, Any] = {}
        for name, child in space.spaces.items():
            leaves[name] = self._draw(child) if isinstance(child, spaces.Dict) else self._leaf(child)
        return TensorDict(leaves, batch_size=[self.num_envs])

    def _leaf(self, space: spaces.Space[Any]) -> Tensor:
        shape = (self.num_envs, *(space.shape or ()))
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
            high = int(space.high.max()) + 1
            return torch.randint(0, high, shape, generator=self.generator).to(tensor_dtype(space))
        if isinstance(space, spaces.Box):
            x = torch.randn(shape, generator=self.generator)
            return x.double() if space.dtype == np.float64 else x
        if isinstance(space, spaces.MultiBinary):
            return torch.randint(0, 2, shape, generator=self.generator).to(torch.int8)
        assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        high = torch.as_tensor(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)
        return (torch.rand(shape, generator=self.generator) * high).long() + torch.as_tensor(space.start)


def _copy(step: Step) -> Step:
    final = None if step.final_obs is None else step.final_obs.clone()
    valid = None if step.valid is None else step.valid.clone()
    return Step(
        step.obs.clone(),
        step.reward.clone(),
        step.terminated.clone(),
        step.truncated.clone(),
        final,
        {name: x.clone() for name, x in step.metrics.items()},
        valid,
    )


def build_policy(env: Any, seed: int = 0, **options: Any) -> ActorCritic:
    torch.manual_seed(seed)
    options = {"hidden_sizes": (8,), "memory_size": 8, **options}
    return ActorCritic(env.observation_space, env.action_space, PolicyConfig(**options))


def build_ppo(
    env: Any,
    *,
    policy: Mapping[str, Any] | None = None,
    parts: Mapping[str, Part] | None = None,
    seed: int = 0,
    total_steps: int | None = None,
    **options: Any,
) -> PPO:
    options = {"num_steps": 8, "epochs": 2, "minibatches": 1, "warmup_steps": 0, **options}
    built = build_policy(env, seed, **(policy or {}))
    torch.manual_seed(seed)
    return PPO(env, built, PPOConfig(**options), parts, seed=seed, total_steps=total_steps)


def pytest_collection_finish() -> None:
    """All that is loaded by now stays, so that the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """Runs code in a process that has not imported the library: see `tests/fresh.py`."""
    process = Fresh(tmp_path_factory.mktemp("fresh"))
    yield process
    process.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scripted_env() -> type[ScriptedEnv]:
    return ScriptedEnv


@pytest.fixture
def make_policy() -> Callable[..., ActorCritic]:
    return build_policy


@pytest.fixture
def make_ppo() -> Callable[..., PPO]:
    return build_ppo


@pytest.fixture
def vector_space() -> Callable[..., spaces.Box]:
    return box
