"""Slow Gymnasium environments, each in a process of its own: Gymnasium's AsyncVectorEnv, whose failures are told."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from understudy.core import randomness
from understudy.core.spaces import array_dtype, is_discrete
from understudy.envs.buffers import row_writers
from understudy.envs.gate import flag_of, number_of, raised, reset_values, reward_of, step_values
from understudy.envs.gymnasium import GymnasiumVectorAdapter, built, env_name
from understudy.envs.observations import Groups, observation_leaves
from understudy.types import EnvError, WorkerError

Make = Callable[[], gym.Env[Any, Any]]

STEP_PAYS_FROM = 2e-3
"""Seconds of a step from which "auto" takes processes: below, waking a worker costs more than it saves."""
_PROBE_STEPS, _PROBE_SECONDS = 20, 0.1
_DUMP_SECONDS = 2.0  # for a worker that hangs to write down where


def process_vector_env(
    make: Sequence[Make],
    device: torch.device | str = "cpu",
    groups: Groups | None = None,
    seed: int | None = None,
    *,
    timeout: float = 300.0,
) -> GymnasiumVectorAdapter:
    """Gymnasium environments, one for each function in `make`, each stepped in a process of its own.

    The same transitions, bit for bit, as `InProcessVectorEnv(make, device, groups, seed)`: checks, resets and seeds are
    made in the worker. Processes are started afresh ("forkserver", else "spawn"), so a script that calls this needs
    `if __name__ == "__main__":`, and what `make` refers to must be importable or picklable (by cloudpickle).

    Raises WorkerError, with the environment's traceback, for one that raises, is killed, or does not answer for
    `timeout` seconds; ValueError as `InProcessVectorEnv` does.
    """
    if not make:
        raise ValueError("an environment needs at least one copy: give at least one function in `make`")
    return GymnasiumVectorAdapter(_Workers(make, groups, seed, timeout), device, groups, seed)


def seconds_per_step(make: Make) -> float:
    """Median seconds of a step under random actions, in an environment built for that; 0 where it cannot be told.

    Draws from the global random streams are taken back. An environment that fails is not judged here.
    """
    drawn = randomness.state({})
    seconds: list[float] = []
    try:
        env = make()
        with contextlib.closing(env):
            env.action_space.seed(0)
            env.reset(seed=0)
            started = time.perf_counter()
            while len(seconds) < _PROBE_STEPS and time.perf_counter() - started < _PROBE_SECONDS:
                action = env.action_space.sample()
                action = int(action) if is_discrete(env.action_space) else action
                before = time.perf_counter()
                _, _, terminated, truncated, _ = env.step(action)
                seconds.append(time.perf_counter() - before)
                if terminated or truncated:
                    env.reset()
    except Exception:  # whatever it is, building and stepping it in earnest says it
        return 0.0
    finally:
        randomness.restore({}, drawn)
    return statistics.median(seconds) if seconds else 0.0


class _Builder:
    """Builds one environment: in its worker, and in the parent where Gymnasium looks at the spaces."""

    def __init__(self, make: Make, row: int, total: int, groups: Groups | None, seed: int | None, report: Path) -> None:
        self.make, self.row, self.total, self.groups, self.seed = make, row, total, groups, seed
        self.report = report
        self.name = ""

    def __call__(self) -> gym.Env[Any, Any]:
        if multiprocessing.parent_process() is None:
            env = built(self.make, self.row)
            self.name = env_name(env)
            return env
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the trainer's, which closes its workers
        torch.set_num_threads(1)
        report = self.report.open("w")  # open for as long as the process lives
        faulthandler.enable(report)
        if sys.platform != "win32":
            faulthandler.register(signal.SIGUSR1, report)
        if self.seed is not None:
            randomness.seed_everything(self.seed + self.row)  # environments may draw from the global streams
        try:
            return _Checked(built(self.make, self.row), self.row, self.total, self.groups)
        except BaseException:
            traceback.print_exc(file=report)
            report.flush()
            raise


class _Checked(gym.Wrapper[Any, Any, Any, Any]):
    """An environment behind the gate, in its worker: values are checked, errors can be sent to the parent."""

    def __init__(self, env: gym.Env[Any, Any], row: int, total: int, groups: Groups | None) -> None:
        super().__init__(env)
        self.who = f"environment {row} of {total} ({env_name(env)}, its own process)"
        leaves = observation_leaves(env.observation_space, groups)
        scratch = {leaf.source: np.empty((1, *leaf.env_shape), array_dtype(leaf.space)) for leaf in leaves}
        self._writers = functools.partial(row_writers, leaves, scratch)
        self._check = self._writers()[0]
        self._looks = {"reset": 2, "step": 1}  # how many more observations of each call are looked at as a whole
        self._whole = is_discrete(env.action_space)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self._told("reset", lambda: (self._looked("reset", reset_values(self.env.reset(**options))[0]), {}))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._told("step", lambda: self._step(int(action) if self._whole else action))

    def _step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = step_values(self.env.step(action))
        terminated, truncated = bool(flag_of("terminated", terminated)), bool(flag_of("truncated", truncated))
        ended = (terminated or truncated) and isinstance(info, Mapping)
        numbers = {str(name): number_of(value) for name, value in info.items()} if ended else {}
        kept = {name: number for name, number in numbers.items() if number is not None}
        return self._looked("step", obs), reward_of(reward), terminated, truncated, kept

    def _looked(self, what: str, obs: Any) -> Any:
        if self._looks[what]:
            self._looks[what] -= 1
            self._check = self._writers()[0]
        self._check(obs)
        return obs

    def _told(self, what: str, call: Callable[[], Any]) -> Any:
        """Errors as text: an exception of the environment's own may not survive the way to the parent."""
        try:
            return call()
        except EnvError as error:
            raise EnvError(f"{self.who} in {what}: {error}") from None
        except Exception as error:
            raise WorkerError(f"{raised(self.who, what, error)}\n{traceback.format_exc().rstrip()}") from None


class _Workers(AsyncVectorEnv):
    """AsyncVectorEnv whose calls end: with an answer, or with an error that says what became of the worker."""

    def __init__(self, make: Sequence[Make], groups: Groups | None, seed: int | None, timeout: float) -> None:
        self.timeout, self._failed = timeout, False
        self._folder = tempfile.TemporaryDirectory(prefix="understudy-workers-")
        self._builders = [
            _Builder(one, row, len(make), groups, seed, Path(self._folder.name, f"{row}.txt"))
            for row, one in enumerate(make)
        ]
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        if method == "forkserver":  # which imports torch once, for all workers
            multiprocessing.get_context(method).set_forkserver_preload([__name__])
        same_step = AutoresetMode.SAME_STEP
        try:
            super().__init__(self._builders, copy=False, context=method, autoreset_mode=same_step)
        except (EOFError, ConnectionError) as error:
            raise self._died("its start") from error

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._answered("reset", lambda: self.reset_async(seed, options))
        return self._answered("reset", lambda: self.reset_wait(self.timeout))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._answered("step", lambda: self.step_async(actions))
        return self._answered("step", lambda: self.step_wait(self.timeout))

    def _answered(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            with warnings.catch_warnings(action="ignore"):  # Gymnasium warns of the error that it raises
                return call()
        except multiprocessing.TimeoutError as error:
            raise self._hangs(what) from error
        except (EOFError, ConnectionError) as error:
            raise self._died(what) from error
        except BaseException:
            self._failed = True
            raise

    def _died(self, what: str) -> WorkerError:
        """The error for workers that are gone."""
        self._failed, rows = True, []
        for row, process in enumerate(self.processes):
            process.join(_DUMP_SECONDS / self.num_envs)
            if not process.is_alive():
                rows.append(row)
        codes = {self.processes[row].exitcode for row in rows}
        how = "ended"
        if codes and all(code is not None and code < 0 for code in codes):
            names = " and ".join(sorted(signal.Signals(-code).name for code in codes if code))
            how = f"was killed by {names}" + (" (out of memory?)" if "SIGKILL" in names else "")
        elif what == "its start":
            how = 'ended (a script that trains needs `if __name__ == "__main__":`)'
        return WorkerError(f"{self._who(rows)} {how} in {what}{self._reports(rows)}")

    def _hangs(self, what: str) -> WorkerError:
        """The error for workers that do not answer, with the place where each one is."""
        self._failed = True
        rows = [row for row, pipe in enumerate(self.parent_pipes) if pipe is not None and not pipe.poll()]
        if sys.platform != "win32":
            for row in rows:
                os.kill(self.processes[row].pid or 0, signal.SIGUSR1)
            until = time.perf_counter() + _DUMP_SECONDS
            while time.perf_counter() < until and not all(self._builders[row].report.stat().st_size for row in rows):
                time.sleep(0.02)
        return WorkerError(
            f"{self._who(rows)} gave no answer to {what} for {self.timeout:g} seconds: raise env.worker_timeout if it "
            f"needs more{self._reports(rows)}"
        )

    def _who(self, rows: Sequence[int]) -> str:
        which = ", ".join(map(str, rows)) or "?"
        return f"environment {which} of {len(self._builders)} ({self._builders[0].name}, its own process)"

    def _reports(self, rows: Sequence[int]) -> str:
        """Tracebacks that workers have left."""
        reports = [self._builders[row].report for row in rows]
        texts = [report.read_text().rstrip() for report in reports if report.exists()]
        return "".join(f"\n{text}" for text in dict.fromkeys(texts) if text)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        if self._failed:  # a worker may hang, or owe an answer
            self._state = AsyncState.DEFAULT
            for process in self.processes:
                process.kill()
        super().close_extras(timeout, terminate or self._failed)
        self._folder.cleanup()
