"""Every adapter gives the same, correct transitions: the six-step GAE vector, and CartPole side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from tensordict import TensorDict

from understudy.envs import EnvPoolAdapter, GymnasiumVectorAdapter, InProcessVectorEnv, SimulatorAdapter, Step, VecEnv
from understudy.ppo.returns import gae

# Three episodes as (states, rewards, how it ends): terminates at t=1, truncates at t=3, the rollout ends at t=5.
EPISODES = (((0, 1, 2), (1.0, 0.5), "terminated"), ((3, 4, 5), (-0.2, 0.3), "truncated"), ((6, 7, 8), (0.8, 0.1), ""))
# V by state, such that V(obs_t) and V(true next obs_t) are the rows of the vector
VALUE = torch.tensor([0.5, 0.4, 9.9, 0.9, 1.1, 0.6, 0.2, 0.7, 0.3], dtype=torch.float64)
ADVANTAGE = torch.tensor([0.990050, 0.1, -0.204743, -0.206, 1.008028, -0.303], dtype=torch.float64)
RETURN = torch.tensor([1.490050, 0.5, 0.695257, 0.894, 1.208028, 0.397], dtype=torch.float64)


class Scripted(gym.Env[Any, Any]):
    """Plays EPISODES from episode `phase` on; the observation is the state. Refuses steps after an end."""

    observation_space = spaces.Box(-10, 10, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, phase: int = 0) -> None:
        self.next_episode = phase
        self.running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode = EPISODES[min(self.next_episode, len(EPISODES) - 1)]
        self.next_episode += 1
        self.t, self.running = 0, True
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        assert self.running, "stepped after the end of an episode"
        _, rewards, ending = self.episode
        reward = rewards[self.t] if self.t < len(rewards) else 0.0
        self.t += 1
        ends = ending != "" and self.t == len(rewards)
        self.running = not ends
        return self._obs(), reward, ends and ending == "terminated", ends and ending == "truncated", {}

    def _obs(self) -> np.ndarray:
        states = self.episode[0]
        return np.array([states[min(self.t, len(states) - 1)]], dtype=np.float64)


class FakePool:
    """EnvPool's step API over single environments: resets on the next step, or at once for the ids given."""

    def __init__(self, make: list[Callable[[], gym.Env[Any, Any]]], seed: int = 0) -> None:
        self.envs = [build() for build in make]
        self.config = {"num_envs": len(make), "batch_size": len(make)}
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.seeds: list[int | None] = [seed + i for i in range(len(make))]
        self.done = [False] * len(make)
        self.closed = False

    def reset(self, env_id: np.ndarray | None = None) -> Any:
        rows = range(len(self.envs)) if env_id is None else env_id.tolist()
        obs = np.stack([self._reset_one(i) for i in rows])
        return obs, {"env_id": np.array(list(rows), np.int32)}

    def step(self, action: np.ndarray) -> Any:
        out = [self._step_one(i, action[i]) for i in range(len(self.envs))]
        obs, reward, terminated, truncated = (np.stack(x) for x in zip(*out))
        return obs, reward, terminated, truncated, {}

    def close(self) -> None:
        self.closed = True

    def _reset_one(self, i: int) -> np.ndarray:
        seed, self.seeds[i], self.done[i] = self.seeds[i], None, False
        return self.envs[i].reset(seed=seed)[0]

    def _step_one(self, i: int, action: Any) -> tuple[Any, ...]:
        if self.done[i]:
            return self._reset_one(i), 0.0, False, False
        obs, reward, terminated, truncated, _ = self.envs[i].step(action)
        self.done[i] = terminated or truncated
        return obs, reward, terminated, truncated


class FakeSimulator:
    """rsl_rl's environment interface over single environments; `final`: "all" rows, only those "done", or None."""

    def __init__(self, make: list[Any], final: str | None = "all") -> None:
        self.envs = [build() for build in make]
        self.num_envs, self.num_actions, self.device, self.final = len(make), 1, "cpu", final
        self.rows = torch.zeros(len(make), *self.envs[0].observation_space.shape)
        self.next_seed: int | None = None

    def seed(self, seed: int) -> None:
        self.next_seed = seed

    def reset(self) -> None:
        for i, env in enumerate(self.envs):
            seed = None if self.next_seed is None else self.next_seed + i
            self.rows[i] = torch.as_tensor(env.reset(seed=seed)[0])
        self.next_seed = None

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": self.rows.clone()}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> Any:
        reward, done, time_out = torch.zeros(self.num_envs), torch.zeros(self.num_envs, dtype=torch.long), []
        final = torch.full_like(self.rows, 77.0)
        for i, env in enumerate(self.envs):
            obs, gained, terminated, truncated, _ = env.step(int(actions[i]))
            reward[i] = float(gained)
            done[i] = int(terminated or truncated)
            time_out.append(truncated)
            if terminated or truncated:
                final[i] = torch.as_tensor(obs)
                obs, _ = env.reset()
            self.rows[i] = torch.as_tensor(obs)
        extras: dict[str, Any] = {"time_outs": torch.tensor(time_out), "log": {}}
        if self.final == "all":
            extras["final_obs"] = TensorDict({"policy": final}, batch_size=[self.num_envs])
        elif self.final == "done":
            extras["final_obs"] = final[done.bool()]
        return self.get_observations(), reward, done, extras


def vector(mode: AutoresetMode, foreign: bool = False) -> Callable[[list[Any]], VecEnv]:
    def build(make: list[Any]) -> VecEnv:
        env: Any = SyncVectorEnv(make, autoreset_mode=mode)
        return GymnasiumVectorAdapter(VectorWrapper(env) if foreign else env)

    return build


ADAPTERS: dict[str, Callable[[list[Any]], VecEnv]] = {
    "in-process": InProcessVectorEnv,
    "same-step": vector(AutoresetMode.SAME_STEP),
    "next-step": vector(AutoresetMode.NEXT_STEP),
    "disabled": vector(AutoresetMode.DISABLED),
    "foreign-next-step": vector(AutoresetMode.NEXT_STEP, foreign=True),
    "foreign-same-step": vector(AutoresetMode.SAME_STEP, foreign=True),
    "envpool": lambda make: EnvPoolAdapter(lambda seed: FakePool(make, seed)),
    "simulator": lambda make: SimulatorAdapter(FakeSimulator(make, "all")),
    "simulator-done-rows": lambda make: SimulatorAdapter(FakeSimulator(make, "done")),
}


Transition = tuple[torch.Tensor, float, bool, bool, torch.Tensor]


def final_obs(step: Step) -> TensorDict:
    assert step.final_obs is not None
    return step.final_obs


def collect(
    env: VecEnv, count: int, act: Callable[[torch.Tensor], torch.Tensor], seed: int = 0
) -> list[list[Transition]]:
    """The first `count` valid transitions (obs, reward, terminated, truncated, true next obs) of each environment."""
    rows: list[list[Transition]] = [[] for _ in range(env.num_envs)]
    obs = env.reset(seed=seed)["policy"].clone()
    is_first = torch.ones(env.num_envs, dtype=torch.bool)
    for _ in range(3 * count):
        step = env.step(act(obs))
        assert step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
        ended = step.terminated | step.truncated
        true_next = torch.where(ended.unsqueeze(-1), final_obs(step)["policy"], step.obs["policy"])
        for i in range(env.num_envs):
            if step.valid is None or step.valid[i]:
                one = (obs[i], step.reward[i].item(), bool(step.terminated[i]), bool(step.truncated[i]), true_next[i])
                rows[i].append(one)
            else:
                assert not ended[i]
                assert step.reward[i] == 0
        is_first = ended if step.valid is None else ended | ~step.valid
        obs = step.obs["policy"].clone()
        if min(len(r) for r in rows) >= count:
            break
    assert is_first.shape == (env.num_envs,)
    env.close()
    return [r[:count] for r in rows]


@pytest.mark.parametrize("name", ADAPTERS)
def test_six_step_gae_vector_through_every_adapter(name: str) -> None:
    # the second environment is one episode ahead: its ends come at other steps
    env = ADAPTERS[name]([lambda: Scripted(0), lambda: Scripted(1)])
    first, second = collect(env, 6, lambda obs: torch.zeros(2, dtype=torch.int64))
    obs, reward, terminated, truncated, next_obs = zip(*first)
    columns = [torch.tensor(x).unsqueeze(-1) for x in (terminated, truncated)]  # [6, 1]
    value = VALUE[torch.stack(obs).long()]
    advantage, target = gae(
        torch.tensor(reward, dtype=torch.float64).unsqueeze(-1), value, VALUE[torch.stack(next_obs).long()], *columns
    )
    torch.testing.assert_close(advantage[:, 0], ADVANTAGE, atol=1e-6, rtol=0)
    torch.testing.assert_close(target[:, 0], RETURN, atol=1e-6, rtol=0)
    assert [int(t[0]) for t in second] == [3, 4, 6, 7, 8, 8]
    assert [int(t[4]) for t in second] == [4, 5, 7, 8, 8, 8]
    assert [t[3] for t in second] == [False, True, False, False, False, False]


def test_six_step_gae_vector_through_worker_processes() -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        processes = AsyncVectorEnv([Scripted], autoreset_mode=mode, context="fork")
        (rows,) = collect(GymnasiumVectorAdapter(processes), 6, lambda obs: torch.zeros(1, dtype=torch.int64))
        assert [int(t[0]) for t in rows] == [0, 1, 3, 4, 6, 7]
        assert [int(t[4]) for t in rows] == [1, 2, 4, 5, 7, 8]
        assert [t[2] for t in rows] == [False, True, False, False, False, False]
        assert [t[3] for t in rows] == [False, False, False, True, False, False]


def test_only_foreign_next_step_has_invalid_rows() -> None:
    make = [lambda: Scripted(0), lambda: Scripted(1)]
    for name in ("in-process", "next-step", "disabled", "same-step", "envpool"):
        env = ADAPTERS[name](make)
        env.reset()
        assert all(env.step(torch.zeros(2, dtype=torch.int64)).valid is None for _ in range(5)), name
    env = ADAPTERS["foreign-next-step"](make)
    env.reset()
    steps = [env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(2)]
    # both ended at step 2: the last state is in obs and in final_obs, the next first state is not known yet
    assert steps[1].terminated.tolist() == [True, False]
    assert steps[1].truncated.tolist() == [False, True]
    assert steps[1].obs["policy"].tolist() == final_obs(steps[1])["policy"].tolist() == [[2.0], [5.0]]
    junk = env.step(torch.zeros(2, dtype=torch.int64))
    assert junk.valid is not None
    assert junk.valid.tolist() == [False, False]
    assert junk.obs["policy"].tolist() == [[3.0], [6.0]]
    assert env.step(torch.zeros(2, dtype=torch.int64)).valid is None


def test_a_reset_forgets_a_pending_reset_step() -> None:
    env = ADAPTERS["foreign-next-step"]([Scripted])
    env.reset()
    for _ in range(2):
        env.step(torch.zeros(1, dtype=torch.int64))
    env.reset()
    assert env.step(torch.zeros(1, dtype=torch.int64)).valid is None


LIMIT = 20  # falls and time limits both occur, never at once
CARTPOLE = [name for name in ADAPTERS if name != "in-process"]


@pytest.mark.parametrize("name", CARTPOLE)
def test_cartpole_transitions_equal_those_of_the_plain_loop(name: str) -> None:
    make = [lambda: gym.make("CartPole-v1", max_episode_steps=LIMIT, disable_env_checker=True)] * 3

    def act(obs: torch.Tensor) -> torch.Tensor:  # a function of obs, so that reset steps shift nothing
        return (obs[:, 3] * 1e4).long() % 2

    expected = collect(InProcessVectorEnv(make), 60, act, seed=5)
    got = collect(ADAPTERS[name](make), 60, act, seed=5)
    ends = {(t[2], t[3]) for rows in expected for t in rows}
    assert ends == {(False, False), (True, False), (False, True)}  # the test sees both kinds of end
    for ours, theirs in zip(got, expected):
        for a, b in zip(ours, theirs):
            assert a[1:4] == b[1:4]
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[4], b[4])


def test_simulator_without_final_observations() -> None:
    env = SimulatorAdapter(FakeSimulator([Scripted], None))
    env.reset()
    assert env.step(torch.zeros(1, 1)).final_obs is None
