"""What the peer modules share: the job they are given, the trainer they return, the clock, Gymnasium environments."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.speed import frames
from benchmarks.speed.workloads import EPISODE_LENGTH, Workload

ACTIVATIONS = {"tanh": torch.nn.Tanh, "elu": torch.nn.ELU, "relu": torch.nn.ReLU}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One peer's run: the workload, the seed, and where it runs."""

    workload: Workload
    seed: int
    device: str
    variant: str  # "" or a named choice of our own library (another backend, compiled); peers ignore it


class Clock:
    """Seconds spent in the policy update; collection is the rest of the wall time."""

    def __init__(self, device: str) -> None:
        self.update_s = 0.0
        self._cuda = device.startswith("cuda")

    def now(self) -> float:
        """Seconds, after the device has finished what was queued."""
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def update(self) -> Iterator[None]:
        """Time a block as update."""
        start = self.now()
        yield
        self.update_s += self.now() - start

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed as update: for libraries that call their own update."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.update():
                return function(*args, **kwargs)

        return wrapper


class Trainer(ABC):
    """A peer that is ready to train."""

    clock: Clock
    steps: int  # environment steps taken so far, by the peer's own count

    @abstractmethod
    def run(self, iterations: int) -> None:
        """Collect and update `iterations` times."""

    @abstractmethod
    def act(self, obs: np.ndarray) -> np.ndarray:
        """The deterministic policy, `[N, obs] -> [N, *action]`: used after the clock has stopped, to see it learned."""

    def restart(self) -> None:  # noqa: B027
        """An episode begins for `act`: forget the one before, for a policy with a memory."""

    def target(self, obs: np.ndarray) -> np.ndarray:
        """The teacher's actions, `[N, obs] -> [N, *action]`, of a trainer that distils one."""
        raise NotImplementedError

    def gradient_steps(self) -> int | None:
        """Optimizer steps so far, for a library that does not use `torch.optim.Optimizer`; None: torch counts them."""
        return None


def make_env(env_id: str) -> gym.Env[Any, Any]:
    """One environment, as every peer's documentation makes it."""
    return gym.make(env_id)


def vector_env(workload: Workload, seed: int) -> gym.vector.SyncVectorEnv:
    """Environments in this process; SAME_STEP autoreset: every transition is a real one."""
    envs = gym.vector.SyncVectorEnv(
        [lambda: make_env(workload.env_id) for _ in range(workload.num_envs)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    envs.reset(seed=seed)
    return envs


def mlp(sizes: tuple[int, ...], activation: str) -> torch.nn.Sequential:
    """A plain MLP for the peers that bring no network of their own: activation after every layer but the last."""
    act = ACTIVATIONS[activation]
    layers: list[torch.nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        layers.append(torch.nn.Linear(n_in, n_out))
        if i < len(sizes) - 2:
            layers.append(act())
    return torch.nn.Sequential(*layers)


def nature_cnn() -> torch.nn.Sequential:
    """Frames `[N, 4, 84, 84]` from 0 to 1 to 512 features (Mnih et al. 2015), for the peers that bring no network."""
    layers: list[torch.nn.Module] = []
    for n_in, n_out, size, stride in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        layers += [torch.nn.Conv2d(n_in, n_out, size, stride), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(3136, 512), torch.nn.ReLU())


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Made-up episodes of HalfCheetah's shapes, which never end before their time; E episodes of L steps."""

    obs: np.ndarray  # [E, L + 1, 17] float32, final observations included
    actions: np.ndarray  # [E, L, 6] float32, within the bounds

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Observations `[E * L, 17]` and actions `[E * L, 6]`."""
        return self.obs[:, :-1].reshape(-1, self.obs.shape[-1]), self.actions.reshape(-1, self.actions.shape[-1])

    def next_obs(self) -> np.ndarray:
        """`[E * L, 17]`."""
        return self.obs[:, 1:].reshape(-1, self.obs.shape[-1])


def make_demonstrations(episodes: int, seed: int) -> Demonstrations:
    """Normal observations, and the actions that a fixed map makes of them: only the time of learning counts."""
    rng = np.random.default_rng(seed)
    weight = np.random.default_rng(0).normal(size=(17, 6)) / 17**0.5  # the same expert for every seed
    obs = rng.normal(size=(episodes, EPISODE_LENGTH + 1, 17)).astype(np.float32)
    return Demonstrations(obs=obs, actions=np.tanh(obs[:, :-1] @ weight).astype(np.float32))


def check_score(trainer: Trainer, job: Job) -> float:
    """What shows that training happened, outside the clock: the return, or the squared error of a clone."""
    if job.workload.method == "bc":
        obs, actions = make_demonstrations(2, seed=1000 + job.seed).pairs()
        return float(np.mean((trainer.act(obs) - actions) ** 2))
    if job.workload.method == "distill":
        from benchmarks.speed.tensor_env import TensorEnv

        seen = TensorEnv(1000, seed=1000 + job.seed).reset().numpy()
        return float(np.mean((trainer.act(seen) - trainer.target(seen)) ** 2))
    return check_return(trainer, job)


def check_return(trainer: Trainer, job: Job) -> float:
    """Mean return of 8 deterministic episodes (W3 and W6: mean reward per step of 200 and 100 steps)."""
    workload = job.workload
    if workload.env_id == "tensor":
        from benchmarks.speed.tensor_env import TensorEnv

        env = TensorEnv(workload.num_envs, job.device, seed=1000 + job.seed)
        obs, total = env.reset(), 0.0
        for _ in range(200):
            action = torch.as_tensor(trainer.act(obs.cpu().numpy()), device=job.device)
            step = env.step(action)
            obs, total = step.obs, total + float(step.reward.mean())
        return total / 200
    if workload.images:
        pages = frames.make(workload.env_id, workload.num_envs, 1000 + job.seed)
        seen, total = pages.reset(), 0.0
        for _ in range(100):
            turned = pages.step(trainer.act(seen))
            seen, total = turned.obs, total + float(turned.reward.mean())
        return total / 100
    returns = []
    for episode in range(8):
        single = make_env(workload.env_id)
        o, _ = single.reset(seed=1000 + 8 * job.seed + episode)
        trainer.restart()
        done, total = False, 0.0
        while not done:
            action_n = trainer.act(np.asarray(o, dtype=np.float32)[None])
            o, reward, terminated, truncated, _ = single.step(action_n[0])
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
        single.close()
    return float(np.mean(returns))
