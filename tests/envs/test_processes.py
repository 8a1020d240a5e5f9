"""Environments in processes of their own: the same transitions, and failures that say where and why."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.envs.slow_env import SlowEnv

import understudy as us
from understudy.envs.base import Step, VecEnv
from understudy.envs.gymnasium import GymnasiumVectorAdapter, InProcessVectorEnv
from understudy.envs.processes import process_vector_env, seconds_per_step
from understudy.envs.registry import EnvConfig, backend_of
from understudy.types import EnvError, WorkerError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def played(env: VecEnv, steps: int) -> list[Step]:
    """Copies of the steps of random actions; the first one is the reset."""
    draws = torch.Generator().manual_seed(1)
    start = env.reset().clone()
    nothing = torch.zeros(env.num_envs)
    taken = [Step(start, nothing, nothing.bool(), nothing.bool(), None, {})]
    for _ in range(steps):
        step = env.step(torch.randint(0, 3, (env.num_envs,), generator=draws))
        final = step.final_obs[step.ended].clone() if step.final_obs is not None else None
        kept = (step.obs, step.reward, step.terminated, step.truncated)
        taken.append(Step(*(x.clone() for x in kept), final, {name: x.clone() for name, x in step.metrics.items()}))
    return taken


def test_transitions_are_those_of_one_process() -> None:
    groups = {"policy": "vector", "camera": "image"}
    ours = process_vector_env([SlowEnv] * 2, groups=groups, seed=7)
    theirs = InProcessVectorEnv([SlowEnv] * 2, groups=groups, seed=7)
    pairs = [*zip(played(ours, 40), played(theirs, 40))]
    assert sum(int(a.ended.sum()) for a, _ in pairs) > 5
    for a, b in pairs:
        assert bool((a.obs == b.obs).all())
        for x, y in zip(a[1:4], b[1:4]):
            assert torch.equal(x, y)
        assert a.final_obs is None or bool((a.final_obs == b.final_obs).all())
        assert a.metrics.keys() == b.metrics.keys()
        torch.testing.assert_close(a.metrics, b.metrics, rtol=0, atol=0, equal_nan=True)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("raise", WorkerError, r"environment [01] of 2 \(SlowEnv, .* raised _Odd in step: 1 \+ 2.*misbehave"),
        ("hang", WorkerError, r"environment 0, 1 of 2 .* no answer to step for 0.5 s.* env.worker_timeout.*_misbehave"),
        ("kill", WorkerError, r"of 2 \(SlowEnv, its own process\) was killed by SIGKILL \(out of memory\?\) in step"),
        ("crash", WorkerError, r"was killed by SIGSEGV in step.*_misbehave"),
        ("reward", EnvError, r"environment [01] of 2 .* in step: the reward"),
    ],
)
def test_a_failure_is_told(what: str, error: type[Exception], message: str) -> None:
    env = process_vector_env([functools.partial(SlowEnv, what=what)] * 2, timeout=0.5 if what == "hang" else 60.0)
    processes = env.env.processes  # type: ignore[attr-defined]
    with pytest.raises(error, match=f"(?s){message}"):
        played(env, 6)
    env.close()
    assert not any(process.is_alive() for process in processes)


def test_a_constructor_that_fails_in_its_worker_is_told() -> None:
    with pytest.raises(WorkerError, match=r"(?s)ended .* in its start.*KeyError: 'no licence'"):
        process_vector_env([functools.partial(SlowEnv, what="constructor")] * 2)


def test_auto_takes_processes_for_slow_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.envs.registry.cores", lambda: 2)
    assert seconds_per_step(SlowEnv) < 1e-3 < 4e-3 < seconds_per_step(functools.partial(SlowEnv, 0.005))
    assert seconds_per_step(functools.partial(SlowEnv, what="raise")) == 0.0
    named = "tests.envs.slow_env:Slow-v0"
    for config, kind, name in (
        (EnvConfig(id=named, num_envs=2, kwargs={"seconds": 0.005}), GymnasiumVectorAdapter, "gymnasium, 2 processes"),
        (EnvConfig(id=named, num_envs=1, kwargs={"seconds": 0.005}), InProcessVectorEnv, "gymnasium"),
        (EnvConfig(id=named, num_envs=2), InProcessVectorEnv, "gymnasium"),
        (EnvConfig(id=named, num_envs=2, backend="processes"), GymnasiumVectorAdapter, "gymnasium, 2 processes"),
    ):
        env = config.make()
        assert isinstance(env, kind)
        assert backend_of(config, env) == name
        env.close()


def test_a_step_is_measured_once_for_an_id_and_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr("understudy.envs.registry.cores", lambda: 2)
    monkeypatch.setattr("understudy.envs.registry._SECONDS", {})
    monkeypatch.setattr("understudy.envs.registry.seconds_per_step", lambda make: float(bool(measured.append(make))))
    for options in ({"at": 1}, {"at": 1}, {"at": 2}):
        us.make_env("tests.envs.slow_env:Slow-v0", 2, env_kwargs=options).close()
    assert len(measured) == 2


def test_a_training_whose_worker_dies_leaves_a_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"backend": "processes", "kwargs": {"what": "kill", "at": 200}}
    config = us.recipes.ppo("tests.envs.slow_env:Slow-v0", num_envs=2, total_steps=4096)
    env = EnvConfig(id=config.env.id, num_envs=2, groups={"policy": "vector"}, **options)
    run = tmp_path / "run"
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        us.train(dataclasses.replace(config, env=env, run_dir=str(run)))
    assert [*(run / "checkpoints").glob("step_*.pt")]
