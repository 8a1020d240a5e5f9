"""Gymnasium adapters: spaces, memory, failures, bad input, and the overhead of the plain loop (printed)."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from tensordict import TensorDict

from understudy.envs import GymnasiumVectorAdapter, InProcessVectorEnv, Step, VecEnv
from understudy.types import EnvError, WorkerError


def final_obs(step: Step) -> TensorDict:
    assert step.final_obs is not None
    return step.final_obs


class Echo(gym.Env[Any, Any]):
    """Observation given by a function of the step count; remembers the actions it was given; can fail."""

    def __init__(self, obs_space: Any, act_space: Any, obs: Any = None, fail_at: int = -1, end_at: int = 3) -> None:
        self.observation_space, self.action_space = obs_space, act_space
        self.make_obs, self.fail_at, self.end_at = obs or (lambda t: obs_space.sample()), fail_at, end_at
        self.actions: list[Any] = []
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if self.fail_at == 0:
            raise OSError("no scene")
        self.t = 0
        return self.make_obs(0), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.actions.append(action)
        if self.t == self.fail_at:
            raise RuntimeError("contact buffer overflow")
        return self.make_obs(self.t), float(self.t), False, self.t == self.end_at, {}


BOX = spaces.Box(-1.0, 1.0, (2,), np.float64)
COIN = spaces.Discrete(2)


def test_float64_becomes_float32_and_nan_passes() -> None:
    env = InProcessVectorEnv([lambda: Echo(BOX, COIN, lambda t: np.array([0.1 * t, np.nan]))])
    obs = env.reset()["policy"]
    assert obs.dtype == torch.float32
    obs = env.step(torch.zeros(1, dtype=torch.int64)).obs["policy"]
    assert obs[0, 0] == np.float32(0.1)
    assert obs[0, 1].isnan()
    assert env.observation_space["policy"].dtype == np.float32


def test_same_tensors_every_step_and_only_ended_rows_of_final_obs_change() -> None:
    make = [lambda e=e: Echo(BOX, COIN, lambda t: np.array([t, 10.0 * e]), end_at=e) for e in (2, 3)]
    env = InProcessVectorEnv(make)
    first = env.reset()
    action = torch.zeros(2, dtype=torch.int64)
    a = env.step(action)
    assert a.obs is first
    assert a.truncated.tolist() == [False, False]
    b = env.step(action)
    assert b.obs is first
    assert b.truncated.tolist() == [True, False]
    assert b.obs["policy"].tolist() == [[0.0, 20.0], [2.0, 30.0]]  # row 0: first of the next episode
    assert final_obs(b)["policy"][0].tolist() == [2.0, 20.0]
    assert b.reward.tolist() == [2.0, 2.0]
    c = env.step(action)
    assert c.truncated.tolist() == [False, True]  # the flags of the step before are cleared
    assert final_obs(c)["policy"][1].tolist() == [3.0, 30.0]
    assert env.step(action).truncated.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_environments_may_keep_the_action(dtype: Any) -> None:
    env = InProcessVectorEnv([lambda: Echo(BOX, spaces.Box(-1, 1, (2,), dtype))])
    env.reset()
    action = torch.tensor([[0.25, -0.5]])
    env.step(action)
    action.zero_()
    kept = env.envs[0].actions[0]  # type: ignore[attr-defined]
    assert kept.tolist() == [0.25, -0.5]
    assert kept.dtype == dtype


ACTION_SPACES = [
    (spaces.Box(-1, 1, (3,), np.float32), torch.tensor([[0.5, -1.0, 0.0], [0.0, 0.0, 1.0]])),
    (spaces.Box(-1, 1, (2, 1), np.float32), torch.tensor([[[0.5], [0.25]], [[0.0], [1.0]]])),
    (spaces.Box(-1, 1, (), np.float32), torch.tensor([0.5, -0.5])),
    (spaces.Discrete(4, start=3), torch.tensor([3, 6])),
    (spaces.MultiDiscrete([2, 5]), torch.tensor([[1, 4], [0, 0]])),
    (spaces.MultiBinary(3), torch.tensor([[1, 0, 1], [0, 0, 0]])),
]


@pytest.mark.parametrize(("space", "action"), ACTION_SPACES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("kind", ["in-process", "vector"])
def test_every_action_space_reaches_the_environment(space: Any, action: torch.Tensor, kind: str) -> None:
    make = [lambda: Echo(BOX, space)] * 2
    inner: Any = InProcessVectorEnv(make) if kind == "in-process" else SyncVectorEnv(make)
    env: VecEnv = inner if kind == "in-process" else GymnasiumVectorAdapter(inner)
    env.reset()
    env.step(action)
    for row, single in enumerate(inner.envs):
        given = single.actions[0]
        assert (np.asarray(given) if isinstance(space, spaces.Box) else given) in space
        assert np.array_equal(np.asarray(single.actions[0]), action[row].numpy())
    with pytest.raises(ValueError, match="step takes actions of shape"):
        env.step(action[:1])


OBSERVATION_SPACES: dict[str, tuple[Any, torch.dtype, tuple[int, ...]]] = {
    "vector": (BOX, torch.float32, (2,)),
    "image": (spaces.Box(0, 255, (4, 3, 3), np.uint8), torch.uint8, (4, 3, 3)),
    "scalar": (spaces.Box(-1, 1, (), np.float32), torch.float32, (1,)),
    "discrete": (spaces.Discrete(5, start=2), torch.int64, ()),
    "multidiscrete": (spaces.MultiDiscrete([3, 4]), torch.int64, (2,)),
    "multibinary": (spaces.MultiBinary(4), torch.int8, (4,)),
    "wide integers": (spaces.Box(0, 60000, (2,), np.uint16), torch.int32, (2,)),
}


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
@pytest.mark.parametrize("kind", ["in-process", "vector"])
def test_every_observation_space_comes_out_as_a_tensor(name: str, kind: str) -> None:
    space, dtype, shape = OBSERVATION_SPACES[name]
    samples = [space.sample() for _ in range(4)]
    make = [lambda: Echo(space, COIN, lambda t: samples[t])] * 2
    env: VecEnv = InProcessVectorEnv(make) if kind == "in-process" else GymnasiumVectorAdapter(SyncVectorEnv(make))
    obs = env.reset()["policy"]
    assert obs.dtype == dtype
    assert obs.shape == (2, *shape)
    assert env.observation_space["policy"].shape == shape
    for t in (1, 2, 3):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        row = (final_obs(step) if t == 3 else step.obs)["policy"][1]
        assert np.array_equal(row.numpy().reshape(-1), np.asarray(samples[t]).astype(row.numpy().dtype).reshape(-1))


def test_dict_observations_become_components_and_groups_share_memory() -> None:
    space = spaces.Dict({"state": BOX, "rgb": spaces.Box(0, 255, (2, 2, 3), np.uint8)})
    samples = [space.sample() for _ in range(4)]
    make = [lambda: Echo(space, COIN, lambda t: samples[t])] * 2
    env = InProcessVectorEnv(make)
    obs = env.reset()
    assert set(obs["policy"].keys()) == {"state", "rgb"}
    env = InProcessVectorEnv(make, groups={"policy": "state", "critic": ["state", "rgb"]})
    adapter = GymnasiumVectorAdapter(SyncVectorEnv(make), groups={"policy": "state", "critic": "state+rgb"})
    for vec in (env, adapter):
        vec.reset()
        for _ in range(3):
            step = vec.step(torch.zeros(2, dtype=torch.int64))
        assert step.truncated.all()
        assert np.allclose(final_obs(step)["policy"][0], samples[3]["state"])
        assert np.array_equal(final_obs(step)["critic", "rgb"][1], samples[3]["rgb"])
        assert np.array_equal(step.obs["critic", "rgb"][0], samples[0]["rgb"])
        assert step.obs["policy"].data_ptr() == step.obs["critic", "state"].data_ptr()


def test_nested_dict_groups() -> None:
    space = spaces.Dict({"policy": spaces.Dict({"joints": BOX, "base": BOX}), "critic": BOX})
    sample = space.sample()
    env = InProcessVectorEnv([lambda: Echo(space, COIN, lambda t: sample)])
    obs = env.reset()
    assert np.allclose(obs["policy", "joints"][0], sample["policy"]["joints"])
    assert np.allclose(obs["critic"][0], sample["critic"])


def test_worker_error_names_index_environment_and_cause() -> None:
    make = [lambda i=i: Echo(BOX, COIN, fail_at=2 if i == 1 else -1) for i in range(3)]
    env = InProcessVectorEnv(make)
    env.reset()
    env.step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(WorkerError, match=r"environment 1 of 3 \(Echo\) raised RuntimeError in step: contact") as info:
        env.step(torch.zeros(3, dtype=torch.int64))
    assert isinstance(info.value.__cause__, RuntimeError)
    env = InProcessVectorEnv([lambda: Echo(BOX, COIN), lambda: Echo(BOX, COIN, fail_at=0)])
    with pytest.raises(WorkerError, match=r"environment 1 of 2 \(Echo\) raised OSError in reset: no scene"):
        env.reset()
    vec = GymnasiumVectorAdapter(SyncVectorEnv(make))
    vec.reset()
    vec.step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(WorkerError, match=r"vector environment SyncVectorEnv .* raised RuntimeError in step"):
        vec.step(torch.zeros(3, dtype=torch.int64))


def test_worker_error_names_a_killed_process() -> None:
    vec = AsyncVectorEnv([lambda: Echo(BOX, COIN)] * 2, context="fork")
    env = GymnasiumVectorAdapter(vec)
    env.reset()
    pid = vec.processes[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    vec.processes[1].join()
    with pytest.raises(WorkerError, match="environment 1 of 2"):
        env.step(torch.zeros(2, dtype=torch.int64))
    vec.close(terminate=True)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one"):
        InProcessVectorEnv([])
    with pytest.raises(ValueError, match="environment 1 has other spaces"):
        InProcessVectorEnv([lambda: Echo(BOX, COIN), lambda: Echo(BOX, spaces.Discrete(3))])
    for space in (spaces.Dict({"a": COIN}), spaces.Tuple((COIN, COIN)), spaces.Text(3)):
        make = partial(Echo, BOX, space)
        with pytest.raises(ValueError, match=f"no action distribution covers a {type(space).__name__}"):
            InProcessVectorEnv([make])
    env = InProcessVectorEnv([lambda: Echo(BOX, COIN, lambda t: np.zeros(1))])  # numpy would broadcast it
    with pytest.raises(EnvError, match=r"in reset: the observation has shape \(1,\), but its space says \(2,\)"):
        env.reset()


class NoMode(VectorEnv[Any, Any, Any]):
    metadata: dict[str, Any] = {}  # noqa: RUF012
    num_envs, single_observation_space, single_action_space = 2, BOX, COIN


class NoFinal(SyncVectorEnv):
    def step(self, actions: Any) -> Any:
        return (*super().step(actions)[:4], {})


def test_vector_environments_that_do_not_say_enough() -> None:
    with pytest.raises(ValueError, match="autoreset_mode"):
        GymnasiumVectorAdapter(NoMode())
    silent = NoFinal([lambda: Echo(BOX, COIN, end_at=1)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymnasiumVectorAdapter(silent)
    env.reset()
    with pytest.raises(ValueError, match="final_obs"):
        env.step(torch.zeros(1, dtype=torch.int64))


class BatchedFinal(SyncVectorEnv):
    """A natively vectorised environment gives its final observations as one array."""

    def step(self, actions: Any) -> Any:
        *head, info = super().step(actions)
        if "final_obs" in info:
            info["final_obs"] = np.stack([np.zeros(2) if x is None else x for x in info["final_obs"]])
        return (*head, info)


def test_batched_final_observations() -> None:
    make = [lambda e=e: Echo(BOX, COIN, lambda t: np.array([t, e]), end_at=e) for e in (1, 2)]
    env = GymnasiumVectorAdapter(BatchedFinal(make, autoreset_mode=AutoresetMode.SAME_STEP))
    env.reset()
    step = env.step(torch.zeros(2, dtype=torch.int64))
    assert step.truncated.tolist() == [True, False]
    assert final_obs(step)["policy"][0].tolist() == [1.0, 1.0]
    assert step.obs["policy"].tolist() == [[0.0, 1.0], [1.0, 2.0]]


class Chatty(VectorWrapper):
    """A NEXT_STEP environment that fills in something on its reset steps."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        junk = reward == 0  # Echo's rewards start at 1
        return obs, np.where(junk, 99.0, reward), terminated | junk, truncated, info


def test_what_a_reset_step_says_is_dropped() -> None:
    env = GymnasiumVectorAdapter(Chatty(SyncVectorEnv([lambda: Echo(BOX, COIN, end_at=1)])))
    env.reset()
    action = torch.zeros(1, dtype=torch.int64)
    seen = []
    for _ in range(4):
        step = env.step(action)
        seen.append((step.reward.item(), bool(step.terminated), bool(step.truncated), step.valid is None))
    assert seen == [(1.0, False, True, True), (0.0, False, False, False)] * 2


def test_gymnasiums_own_vectorised_cartpole_masks_its_reset_steps() -> None:
    env = GymnasiumVectorAdapter(gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point"))
    assert env.mode == AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    ended = torch.zeros(3, dtype=torch.bool)
    ends = 0
    for _ in range(40):
        step = env.step(torch.ones(3, dtype=torch.int64))
        invalid = torch.zeros(3, dtype=torch.bool) if step.valid is None else ~step.valid
        assert torch.equal(invalid, ended)
        assert (step.obs["policy"][invalid].abs() <= 0.05).all()  # CartPole's first observations
        ended = (step.terminated | step.truncated).clone()
        ends += int(ended.sum())
    assert ends >= 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_rows() -> None:
    make = [lambda: gym.make("CartPole-v1", disable_env_checker=True)] * 2
    host, device = InProcessVectorEnv(make), InProcessVectorEnv(make, device="cuda")
    assert torch.equal(host.reset(seed=3)["policy"], device.reset(seed=3)["policy"].cpu())
    for _ in range(30):
        action = torch.ones(2, dtype=torch.int64)
        a, b = host.step(action), device.step(action.cuda())
        assert b.reward.device.type == "cuda"
        for x, y in ((a.obs, b.obs), (final_obs(a), final_obs(b))):
            assert torch.equal(x["policy"], y["policy"].cpu())
        assert torch.equal(a.terminated, b.terminated.cpu())
