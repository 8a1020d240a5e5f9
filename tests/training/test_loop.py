from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import understudy.training.building as building
import understudy.training.loop as loop
from understudy.core.schedules import Schedule
from understudy.envs.makers import ENVS
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts import RandomNetworkDistillationConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.ppo import PPO
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.config import CheckpointConfig, EvaluationConfig, LoggingConfig, TrainConfig, from_yaml
from understudy.runs.folder import CHECKPOINT_KIND, RunFolder, load, read_policy
from understudy.tasks.point_mass import PointMass
from understudy.training.loop import resume, train
from understudy.types import CheckpointError, NonFiniteError, WorkerError

STEPS = 32  # environment steps per iteration: 16 of 2 environments


def config(path: Path, **changes: Any) -> TrainConfig:
    small = TrainConfig(
        total_steps=6 * STEPS,
        run_dir=str(path / "run"),
        device="cpu",
        env=EnvConfig(id="CartPole-v1", num_envs=2),
        policy=PolicyConfig(hidden_sizes=(8,)),
        ppo=PPOConfig(num_steps=16, epochs=2, minibatches=2, warmup_steps=0, capture="eager"),
        evaluation=EvaluationConfig(episodes=2),
        checkpoint=CheckpointConfig(interval=2 * STEPS),
        logging=LoggingConfig(console=False, tensorboard=False),
    )
    return dataclasses.replace(small, **changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path, CHECKPOINT_KIND)["state"]["policy"]


def same(a: Any, b: Any) -> bool:
    """Nested states, equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_training_leaves_a_complete_run(tmp_path: Path) -> None:
    chosen = config(tmp_path, logging=LoggingConfig(console=False, tensorboard=True))
    run = train(chosen)
    folder = RunFolder(run.path)
    assert run.stopped_by is None
    assert run.env_steps >= chosen.total_steps
    assert from_yaml(folder.config.read_text()) == chosen == folder.read_config()
    assert run.metrics[-1]["step"] == run.env_steps
    assert [row["step"] for row in run.metrics] == sorted({row["step"] for row in run.metrics})
    assert run.evaluation is not None
    assert run.evaluation.episodes == 2
    assert run.metrics[-1]["evaluation/return"] == run.evaluation.mean_return
    assert json.loads(folder.evaluation.read_text())["mean_return"] == run.evaluation.mean_return
    [start] = json.loads(folder.provenance.read_text())
    assert start["versions"]["torch"] == torch.__version__
    assert {"git", "platform", "command"} <= start.keys()
    assert len(step_checkpoints(folder.checkpoints)) == 3  # of interval 2, 4 and 6 iterations
    assert (folder.checkpoints / "best.pt").exists()
    assert list((run.path / "tensorboard").glob("events*"))


def test_the_evaluation_may_have_environment_options_of_its_own(tmp_path: Path) -> None:
    chosen = config(
        tmp_path,
        env=EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": 16}),
        evaluation=EvaluationConfig(episodes=4, env_kwargs={"max_episode_steps": 1}),
    )
    run = train(chosen)
    assert run.evaluation is not None
    assert run.evaluation.mean_length == 1.0
    assert run.metrics[-1]["episode/length"] > 1.0
    assert chosen.evaluation_env().id == "PointMass"
    assert chosen.env.kwargs == {"max_episode_steps": 16}


def test_loaded_policy_acts_like_the_trained_one(tmp_path: Path) -> None:
    run = train(config(tmp_path))
    obs = torch.randn(5, 4)
    expected, _ = run.policy.act(obs, deterministic=True)
    state = torch.get_rng_state()
    for source in (run, run.path, str(run.path), step_checkpoints(run.path / "checkpoints")[-1]):
        action, _ = load(source).act(obs, deterministic=True)
        assert torch.equal(action, expected)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(CheckpointError, match="no run or checkpoint"):
        load(tmp_path / "nothing")


def test_a_config_of_another_version_is_named(tmp_path: Path) -> None:
    run = train(config(tmp_path, total_steps=1))
    [path] = step_checkpoints(run.path / "checkpoints")
    checkpoint = load_checkpoint(path, CHECKPOINT_KIND)
    checkpoint["config"] = checkpoint["config"].replace("gamma:", "discount:")
    torch.save(checkpoint | {"understudy_version": "0.0.1"}, path)
    with pytest.raises(CheckpointError, match=r"written by understudy 0\.0\.1.*there is no option ppo\.discount"):
        read_policy(run.path)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("gamma:", "discount:"))
    assert RunFolder(run.path).read_plain()["env"]["id"] == "CartPole-v1"  # enough for a plot


def test_equal_seeds_give_equal_weights_and_evaluation_changes_nothing(tmp_path: Path) -> None:
    plain = train(config(tmp_path / "a")).policy.state_dict()
    watched = train(
        config(tmp_path / "b", evaluation=EvaluationConfig(interval=STEPS, episodes=1, deterministic=False))
    )
    other = train(config(tmp_path / "c", seed=1)).policy.state_dict()
    assert same(dict(plain), dict(watched.policy.state_dict()))
    assert not same(dict(plain), dict(other))
    assert all("evaluation/return" in row for row in watched.metrics)


@pytest.mark.parametrize("env", ["CartPole-v1", "SavedPoint"])
def test_n_plus_m_iterations_equal_n_resume_m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str) -> None:
    monkeypatch.setitem(ENVS, "SavedPoint", functools.partial(PointMass, max_episode_steps=9))
    falling = Schedule(kind="linear", start=1e-3, end=0.0)
    chosen = config(
        tmp_path,
        env=EnvConfig(id=env, num_envs=2),
        ppo=dataclasses.replace(
            config(tmp_path).ppo,
            warmup_steps=16,
            reward_normalization=True,
            value_normalization="standardize",
            optimizer=OptimizerConfig(learning_rate=falling),
        ),
        # CartPole cannot be saved in the middle of an episode: there the boundary must be a reset
        checkpoint=CheckpointConfig(interval=3 * STEPS, keep_last=9, reset_env=env == "CartPole-v1"),
        parts={"curiosity": RandomNetworkDistillationConfig()},
    )
    whole = train(chosen)
    half = tmp_path / "half"
    shutil.copytree(whole.path, half)
    paths = step_checkpoints(half / "checkpoints")
    assert len(paths) >= 2
    for later in paths[1:]:
        later.unlink()  # as if it had been killed after the first one
    torch.rand(3)  # another process would be in another state
    continued = resume(half)
    first, second = (
        load_checkpoint(step_checkpoints(run.path / "checkpoints")[-1], CHECKPOINT_KIND)["state"]
        for run in (whole, continued)
    )
    assert same(first, second)
    assert len(whole.metrics) == len(continued.metrics)
    for row, again in zip(whole.metrics, continued.metrics):
        keys = [key for key in row if not key.startswith("time/")]
        assert [row[key] for key in keys] == pytest.approx([again[key] for key in keys], abs=0, rel=0, nan_ok=True)
    assert len(json.loads((half / "run.json").read_text())) == 2


def test_resume_takes_a_larger_budget(tmp_path: Path) -> None:
    run = train(config(tmp_path, total_steps=STEPS))
    continued = resume(run.path, total_steps=3 * STEPS)
    assert continued.env_steps == 3 * STEPS
    assert RunFolder(run.path).read_config().total_steps == 3 * STEPS
    assert [row["step"] for row in continued.metrics] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_resume_redoes_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    run = train(config(tmp_path))
    newest = step_checkpoints(run.path / "checkpoints")
    newest[-1].unlink()  # as if killed before it was written
    again = resume(run.path)
    steps = [row["step"] for row in again.metrics]
    assert steps == sorted(set(steps))
    assert steps[-1] == run.env_steps
    assert again.env_steps == run.env_steps


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path) -> None:
    run = train(config(tmp_path))
    before = len(run.metrics)
    with pytest.raises(ValueError, match=r"already has its .* steps; .*--total-steps"):
        resume(run.path)
    assert len(run.metrics) == before


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    run = train(config(tmp_path, total_steps=1))
    with pytest.raises(ValueError, match=r"not empty.*--resume.*--run-dir"):
        train(config(tmp_path))
    assert len(run.metrics) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write run folder"):
        train(config(tmp_path, run_dir=str(tmp_path / "file" / "run")))
    with pytest.raises(ValueError, match="cannot write run folder"):
        train(config(tmp_path, run_dir="/proc/understudy-run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": EnvConfig(id="CartPol-v1")}, "CartPole-v1"),
        ({"policy": PolicyConfig(actor_groups=("polcy",))}, "did you mean policy"),
        ({"ppo": PPOConfig(num_steps=16, minibatches=3)}, "does not divide"),
        ({"device": "abacus"}, "cannot be used"),
    ],
)
def test_what_cannot_be_built_leaves_no_folder(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_default_folder_is_named_and_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(config(tmp_path, run_dir=None, total_steps=1, recipe="ppo"))
    second = train(config(tmp_path, run_dir=None, total_steps=1, recipe="ppo"))
    assert first.path.parent == Path("runs")
    assert first.path.name.startswith("ppo-CartPole-v1-20")
    assert first.path != second.path


def act_during(monkeypatch: pytest.MonkeyPatch, iteration: int, act: Any) -> None:
    """Call `act(ppo)` in the middle of training, before that iteration."""
    original = PPO.iterate

    def iterate(self: PPO) -> dict[str, float]:
        if self.iteration == iteration:
            act(self)
        return original(self)

    monkeypatch.setattr(PPO, "iterate", iterate)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_training_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    act_during(monkeypatch, 2, lambda ppo: os.kill(os.getpid(), number))
    run = train(config(tmp_path, checkpoint=CheckpointConfig(interval=None)))
    assert run.stopped_by == number.name
    assert run.evaluation is None
    assert len(run.metrics) == 3  # the iteration that was running is finished, logged and kept
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == before
    [path] = step_checkpoints(run.path / "checkpoints")
    assert load_checkpoint(path, CHECKPOINT_KIND)["env_steps"] == run.env_steps
    monkeypatch.undo()
    continued = resume(run.path)
    assert continued.stopped_by is None
    assert continued.metrics[-1]["step"] >= 6 * STEPS


def test_a_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(ppo: PPO) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)  # two that are pending at once would count as one

    act_during(monkeypatch, 2, twice)
    # a shell's background jobs ignore SIGINT, and so would what they start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            train(config(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "--resume" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert resume(tmp_path / "run").env_steps == 6 * STEPS


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    runs: list[Any] = []
    thread = threading.Thread(target=lambda: runs.append(train(config(tmp_path, total_steps=1))))
    thread.start()
    thread.join()
    assert runs[0].env_steps > 0


@pytest.mark.parametrize("kind", [WorkerError, NonFiniteError])
def test_a_dying_environment_leaves_a_checkpoint_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def die(ppo: PPO) -> None:
        raise kind("environment 1 of CartPole-v1 died")

    act_during(monkeypatch, 3, die)
    with pytest.raises(kind, match="environment 1 of CartPole-v1") as caught:
        train(config(tmp_path))
    paths = step_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(paths) == 2  # of iteration 2, by interval, and of iteration 3
    assert str(paths[-1]) in caught.value.__notes__[0]
    assert "--resume" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert resume(tmp_path / "run").env_steps >= 6 * STEPS


def test_a_poisoned_policy_overwrites_no_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(ppo: PPO) -> None:
        next(ppo.policy.parameters()).data.fill_(float("nan"))
        raise NonFiniteError("NaN everywhere")

    act_during(monkeypatch, 3, poison)
    with pytest.raises(NonFiniteError) as caught:
        train(config(tmp_path))
    [path] = step_checkpoints(tmp_path / "run" / "checkpoints")
    assert all(torch.isfinite(x).all() for x in weights(path).values())
    assert "no checkpoint was written" in caught.value.__notes__[0]


def test_a_full_disk_ends_training_but_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(ppo: PPO) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)

    act_during(monkeypatch, 3, fill)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(config(tmp_path))
    monkeypatch.undo()
    [path] = step_checkpoints(tmp_path / "run" / "checkpoints")
    assert weights(path)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert resume(tmp_path / "run").env_steps >= 6 * STEPS


def test_resume_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
        resume(tmp_path)
    run = train(config(tmp_path, total_steps=1))
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("hidden_sizes: [8]", "hidden_sizes: [9]", 1))
    with pytest.raises(CheckpointError, match=r"another architecture.*actor.*expected \(9, 4\)"):
        resume(run.path, total_steps=100)
    (run.path / "config.yaml").write_text(text)
    [path] = step_checkpoints(run.path / "checkpoints")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=path.name):
        resume(run.path, total_steps=100)


def test_missing_extras_are_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "building", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"understudy-rl\[wandb\]"):
        train(config(tmp_path, logging=LoggingConfig(wandb=True)))
    with pytest.raises(ImportError, match=r"understudy-rl\[video\]"):
        train(config(tmp_path, evaluation=EvaluationConfig(video=True)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("chosen", "width", "expected"), [(2, 512, 2), (None, 64, 1), (None, 512, 3)])
def test_threads_are_chosen_by_size_and_given_back(
    chosen: int | None, width: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    act_during(monkeypatch, 0, lambda ppo: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(building, "THREADS_PAY_FROM", 1e6)  # 16 rows x 600,000 parameters, and x 10,000
    policy = PolicyConfig(hidden_sizes=(width, width))
    chosen_config = config(tmp_path, total_steps=1, torch_threads=chosen, policy=policy)
    try:
        torch.set_num_threads(3)
        train(dataclasses.replace(chosen_config, evaluation=EvaluationConfig(episodes=0)))
        assert (seen, torch.get_num_threads()) == ([expected], 3)
    finally:
        torch.set_num_threads(before)


def test_parts_start_from_weights_that_do_not_depend_on_other_parts(tmp_path: Path) -> None:
    part = RandomNetworkDistillationConfig()
    alone = config(tmp_path, parts={"b": part})
    beside = config(tmp_path, parts={"a": part, "b": part})
    with loop.building(alone) as (_, first), loop.building(beside) as (_, second):
        assert same(first.parts["b"].state_dict(), second.parts["b"].state_dict())
        assert not same(second.parts["a"].state_dict(), second.parts["b"].state_dict())
        assert same(dict(first.policy.state_dict()), dict(second.policy.state_dict()))


# ------------------------------------------------------------------------------------- another run's policy


def test_a_training_starts_from_another_run_s_policy(tmp_path: Path) -> None:
    first = train(config(tmp_path / "a"))
    # no gradient moves it, so what it ends with is what it started from
    still = PPOConfig(num_steps=16, epochs=1, minibatches=1, surrogate_coef=0.0, value_coef=0.0, entropy_coef=0.0)
    second = train(config(tmp_path / "b", start_from=str(first.path), total_steps=2 * STEPS, seed=5, ppo=still))
    before, after = (weights(step_checkpoints(run.path / "checkpoints")[-1]) for run in (first, second))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"normalizers.policy.{name}" for name in ("mean", "var", "count", "shift", "scale")}
    assert after["normalizers.policy.count"] == before["normalizers.policy.count"] + 2 * STEPS
    shutil.rmtree(first.path)
    resume(second.path, total_steps=4 * STEPS)  # it needs the other run no more


def test_a_policy_of_another_architecture_is_no_start(tmp_path: Path) -> None:
    first = train(config(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="of another shape"):
        train(config(tmp_path / "b", start_from=str(first.path), policy=PolicyConfig(hidden_sizes=(16,))))
    with pytest.raises(CheckpointError, match="no run or checkpoint"):
        train(config(tmp_path / "b", start_from=str(tmp_path / "none")))
    assert not (tmp_path / "b").exists()
