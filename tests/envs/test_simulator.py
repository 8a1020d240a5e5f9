"""rsl_rl-style simulators: flags, final observations, older interfaces, and that no step waits for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from understudy.envs import SimulatorAdapter, VecEnv
from understudy.types import WorkerError

N = 4
DONES = torch.tensor([0, 1, 1, 0])
TIME_OUTS = torch.tensor([True, False, True, False])  # row 0: stale, the episode goes on


class Simulator:
    """Answers every step with what it was built with."""

    num_envs, num_actions, device = N, 2, "cpu"

    def __init__(self, obs: Any, extras: dict[str, Any] | None = None, dones: Tensor = DONES) -> None:
        self.obs, self.extras, self.dones = obs, extras or {}, dones

    def get_observations(self) -> Any:
        return self.obs

    def step(self, actions: Tensor) -> Any:
        self.actions = actions
        obs = self.obs[0] if isinstance(self.obs, tuple) else self.obs
        return obs, torch.arange(N).double(), self.dones, self.extras


def groups(offset: float = 0.0, rows: int = N) -> TensorDict:
    state = torch.arange(rows * 3).view(rows, 3) + offset
    return TensorDict({"policy": state, "critic": {"state": state, "feet": torch.zeros(rows, 5)}}, batch_size=[rows])


@pytest.mark.parametrize("dones", [DONES, DONES.bool(), DONES.float(), DONES.unsqueeze(-1)])
def test_flags(dones: Tensor) -> None:
    env = SimulatorAdapter(Simulator(groups(), {"time_outs": TIME_OUTS}, dones))
    step = env.step(torch.zeros(N, 2))
    assert step.terminated.tolist() == [False, True, False, False]
    assert step.truncated.tolist() == [False, False, True, False]
    assert step.terminated.dtype == step.truncated.dtype == torch.bool
    assert step.reward.dtype == torch.float32
    assert step.final_obs is None
    assert step.valid is None
    without = SimulatorAdapter(Simulator(groups(), {}, dones)).step(torch.zeros(N, 2))
    assert without.terminated.tolist() == [False, True, True, False]
    assert not without.truncated.any()


def test_spaces_and_observations_come_from_the_tensordict() -> None:
    simulator = Simulator(groups())
    env = SimulatorAdapter(simulator)
    assert isinstance(env, VecEnv)
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert env.observation_space["policy"] == box
    assert list(env.observation_space["critic"].spaces) == ["state", "feet"]  # type: ignore[attr-defined]
    assert env.action_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert env.reset() is not None
    action = torch.ones(N, 2)
    assert env.step(action).obs is simulator.obs  # handed on untouched
    assert simulator.actions is action
    bounded = SimulatorAdapter(simulator, action_space=spaces.Box(-1, 1, (2,), np.float32))
    assert bounded.action_space == spaces.Box(-1, 1, (2,), np.float32)


def test_regrouping_and_conversions() -> None:
    obs = TensorDict(
        {"state": torch.ones(N, 3, dtype=torch.float64), "height": torch.ones(N), "rgb": torch.ones(N, 2, 2).byte()},
        batch_size=[N],
    )
    env = SimulatorAdapter(Simulator(obs), {"policy": ["state", "height"], "camera": "rgb"})
    out = env.reset()
    assert out["policy", "state"].dtype == torch.float32
    assert out["policy", "height"].shape == (N, 1)
    assert out["camera"].dtype == torch.uint8
    assert env.observation_space["camera"] == spaces.Box(0, 255, (2, 2), np.uint8)
    with pytest.raises(ValueError, match="did you mean state"):
        SimulatorAdapter(Simulator(obs), {"policy": "states"})


def test_final_observations_of_all_rows_or_only_the_ended_ones() -> None:
    every = SimulatorAdapter(Simulator(groups(), {"final_obs": groups(100.0)}))
    assert every.step(torch.zeros(N, 2)).final_obs["policy"][2].tolist() == [106.0, 107.0, 108.0]  # type: ignore[index]
    ended = SimulatorAdapter(Simulator(groups(), {"final_obs": groups(200.0, rows=2)}))
    final = ended.step(torch.zeros(N, 2)).final_obs
    assert final is not None
    assert final.batch_size == (N,)
    assert final["policy"][1].tolist() == [200.0, 201.0, 202.0]  # first of the ended
    assert final["critic", "state"][2].tolist() == [203.0, 204.0, 205.0]  # second
    none = SimulatorAdapter(Simulator(groups(), {"final_obs": groups(200.0, rows=0)}, torch.zeros(N)))
    assert none.step(torch.zeros(N, 2)).final_obs is not None
    partial = Simulator(groups(), {"final_obs": groups()["policy"]})
    with pytest.raises(ValueError, match=r"lacks critic\.feet, critic\.state"):
        SimulatorAdapter(partial).step(torch.zeros(N, 2))


def test_older_interface_with_a_tensor_and_extras() -> None:
    obs, critic = torch.ones(N, 3), torch.ones(N, 5)
    extras = {"observations": {"policy": obs, "critic": critic}, "episode": {"rew_tracking": torch.tensor(0.5)}}
    env = SimulatorAdapter(Simulator((obs, extras), extras))
    assert list(env.observation_space.spaces) == ["policy", "critic"]
    assert env.reset()["critic"].shape == (N, 5)
    step = env.step(torch.zeros(N, 2))
    assert step.obs["critic"].shape == (N, 5)
    assert step.metrics["rew_tracking"] == 0.5
    plain = SimulatorAdapter(Simulator((obs, {}), {"final_obs": obs + 1}))
    assert plain.step(torch.zeros(N, 2)).final_obs["policy"].tolist() == (obs + 1).tolist()  # type: ignore[index]


def test_metrics_pass_through() -> None:
    log = {"a": torch.tensor([2.0]), "b": 3, "c": torch.arange(N), "d": torch.tensor(1.5, requires_grad=True)}
    metrics = SimulatorAdapter(Simulator(groups(), {"log": log})).step(torch.zeros(N, 2)).metrics
    assert {name: value.tolist() for name, value in metrics.items()} == {"a": 2, "b": 3, "c": [0, 1, 2, 3], "d": 1.5}
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in metrics.values())


class Resettable(Simulator):
    def __init__(self) -> None:
        super().__init__(groups())
        self.calls: list[Any] = []

    def seed(self, seed: int) -> None:
        self.calls.append(seed)

    def reset(self) -> None:
        self.calls.append("reset")

    def close(self) -> None:
        self.calls.append("close")


def test_reset_seed_and_close_are_used_where_they_exist() -> None:
    simulator = Resettable()
    env = SimulatorAdapter(simulator)
    env.reset(seed=3)
    env.reset()
    env.close()
    assert simulator.calls == [3, "reset", "reset", "close"]
    SimulatorAdapter(Simulator(groups())).close()


class NoHostSync(TorchDispatchMode):
    """Fails where an operation would make a GPU's host wait."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_to_copy.cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.WAITS, func
        index = args[1] if func.overloadpacket.__name__ == "index" else ()
        assert all(i is None or i.dtype != torch.bool for i in index), "boolean indexing counts on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [0, 2, N])
def test_no_step_waits_for_the_device(rows: int) -> None:
    extras = {"time_outs": TIME_OUTS, "final_obs": groups(rows=rows), "log": {"a": 1.0, "b": torch.tensor(2.0)}}
    env = SimulatorAdapter(Simulator(groups(), extras), {"policy": "policy", "critic": ["critic.feet", "policy"]})
    with NoHostSync():
        env.step(torch.zeros(N, 2))
    with pytest.raises(AssertionError), NoHostSync():
        DONES.any().item()


def test_bad_simulators() -> None:
    class Crashing(Simulator):
        def step(self, actions: Tensor) -> Any:
            raise RuntimeError("PhysX: out of patches")

    with pytest.raises(WorkerError, match="simulator Crashing raised RuntimeError in step: PhysX"):
        SimulatorAdapter(Crashing(groups())).step(torch.zeros(N, 2))

    class Five(Simulator):
        def step(self, actions: Tensor) -> Any:
            return (*super().step(actions), {})

    with pytest.raises(ValueError, match=r"returned 5 values.*extras\['observations'\]\['critic'\]"):
        SimulatorAdapter(Five(groups())).step(torch.zeros(N, 2))
    with pytest.raises(ValueError, match=r"dones has shape \(3,\)"):
        SimulatorAdapter(Simulator(groups(), dones=torch.zeros(3))).step(torch.zeros(N, 2))
    with pytest.raises(ValueError, match="4 environments, but its observations have batch size"):
        SimulatorAdapter(Simulator(groups(rows=3)))
    with pytest.raises(ValueError, match="observations are a ndarray"):
        SimulatorAdapter(Simulator(np.zeros((N, 3))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_a_gpu() -> None:
    class OnGpu(Simulator):
        device = "cuda"

    extras = {"time_outs": TIME_OUTS.cuda(), "final_obs": groups(rows=2).cuda(), "log": {"a": 1.0}}
    env = SimulatorAdapter(OnGpu(groups().cuda(), extras, DONES.cuda()))
    action = torch.zeros(N, 2, device="cuda")
    env.step(action)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.final_obs is not None
    assert step.final_obs["policy"][2].tolist() == [3.0, 4.0, 5.0]
