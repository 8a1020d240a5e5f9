"""Nothing lost: what ends a training, or keeps it from starting, leaves something to go on with."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.test_loop import STEPS, act_during, config, same, weights

import understudy as us
from understudy import cli
from understudy.envs.actions import admit_actions
from understudy.envs.gate import warn_once
from understudy.envs.makers import ENVS
from understudy.envs.registry import EnvConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.runs.checkpoint import step_checkpoints
from understudy.runs.config import DaggerConfig, EvaluationConfig, LoggingConfig, OfflineConfig, TrainConfig
from understudy.runs.folder import RunFolder, new_run
from understudy.tasks.point_mass import PointMass
from understudy.training import training
from understudy.training.dagger import Dagger
from understudy.training.loop import resume, train
from understudy.types import CheckpointError, WorkerError

QUIET = LoggingConfig(console=False, tensorboard=False)


def point(path: Path, **changes: Any) -> TrainConfig:
    """Resumes bit for bit."""
    env = EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": 9})
    reset = us.runs.config.CheckpointConfig(interval=2 * STEPS, reset_env=True)
    return config(path, **{"env": env, "checkpoint": reset, **changes})


def newest(run: Path) -> Path:
    return step_checkpoints(run / "checkpoints")[-1]


def timeless(run: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


# ------------------------------------------------------------------------------------------- the last evaluation


@pytest.mark.parametrize("interval", [None, STEPS])
def test_a_run_that_is_killed_in_an_evaluation_makes_up_for_it(
    interval: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = point(tmp_path, evaluation=EvaluationConfig(episodes=2, interval=interval))
    whole = train(dataclasses.replace(chosen, run_dir=str(tmp_path / "whole")))
    calls: list[Path] = []
    original = training.evaluate_together

    def killed(*arguments: Any, **options: Any) -> Any:
        if newest_step(tmp_path / "run") == 6 * STEPS:
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
            calls.append(tmp_path)
        return original(*arguments, **options)

    monkeypatch.setattr(training, "evaluate_together", killed)
    train(chosen)
    assert len(calls) == 1
    monkeypatch.undo()
    run = resume(tmp_path / "killed")
    assert run.evaluation == whole.evaluation
    assert timeless(run.path) == timeless(whole.path)
    assert same(weights(newest(run.path)), weights(newest(whole.path)))
    with pytest.raises(ValueError, match="already has its"):
        resume(run.path)


def newest_step(run: Path) -> int:
    found = step_checkpoints(run / "checkpoints")
    return int(found[-1].stem.removeprefix("step_")) if found else 0


def test_an_environment_that_fails_in_the_last_evaluation_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise IndexError("index out of range in self")

    monkeypatch.setattr(training, "evaluate_together", fail)
    with pytest.raises(IndexError) as caught:
        train(point(tmp_path))
    assert f"{6 * STEPS} steps in PointMass" in caught.value.__notes__[0]
    assert "--resume" in caught.value.__notes__[0]
    monkeypatch.undo()
    run = resume(tmp_path / "run")
    assert run.evaluation is not None
    assert len(run.metrics) == 6


@pytest.mark.parametrize("wrong", [{"max_episode_step": 3}, {"max_episode_steps": "x"}])
def test_options_of_the_evaluation_are_refused_before_the_first_step(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.env_kwargs.*max_episode_steps"):
        train(point(tmp_path, evaluation=EvaluationConfig(env_kwargs=wrong)))
    assert not (tmp_path / "run").exists()


def test_a_signal_in_the_last_iteration_leaves_the_evaluation_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_during(monkeypatch, 5, lambda ppo: os.kill(os.getpid(), signal.SIGTERM))
    run = train(point(tmp_path))
    assert run.stopped_by == "SIGTERM"
    assert run.evaluation is None
    assert len(run.metrics) == 6
    monkeypatch.undo()
    again = resume(run.path)
    assert again.evaluation is not None
    assert [row["step"] for row in again.metrics] == [STEPS * n for n in range(1, 7)]


def test_a_signal_during_the_last_evaluation_does_not_cost_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.evaluate_together

    def stopped(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(training, "evaluate_together", stopped)
    run = train(point(tmp_path))
    assert run.evaluation is not None
    assert json.loads((run.path / "evaluation.json").read_text())["mean_return"] == run.evaluation.mean_return


# ------------------------------------------------------------------------------------------- ends of all kinds


class Own(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "raised"), [(SystemExit(0), WorkerError), (KeyboardInterrupt(), KeyboardInterrupt), (Own("x"), Own)]
)
def test_whatever_ends_a_training_leaves_a_checkpoint(
    error: BaseException, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(ppo: Any) -> None:
        raise error

    act_during(monkeypatch, 3, leave)
    with pytest.raises(raised) as caught:
        train(point(tmp_path))
    assert "Checkpoint:" in "".join(traceback.format_exception_only(caught.value))
    assert newest_step(tmp_path / "run") == 3 * STEPS
    monkeypatch.undo()
    assert resume(tmp_path / "run").env_steps == 6 * STEPS


def test_an_environment_that_exits_while_it_is_built_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(num_envs: int, device: Any) -> Any:
        sys.exit(0)

    monkeypatch.setitem(ENVS, "Leaving-v0", leave)
    with pytest.raises(WorkerError, match=r"called sys\.exit\(0\)"):
        train(point(tmp_path, env=EnvConfig(id="Leaving-v0")))
    assert not (tmp_path / "run").exists()


def test_a_second_sigterm_leaves_at_once_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def twice(ppo: Any) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            assert "SIGTERM: stopping" in capfd.readouterr().err  # said at once

    act_during(monkeypatch, 3, twice)
    with pytest.raises(SystemExit) as caught:
        train(point(tmp_path, logging=LoggingConfig(tensorboard=False)))
    assert caught.value.code == 143
    assert newest_step(tmp_path / "run") == 3 * STEPS
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_before_the_first_step_is_a_stop(tmp_path: Path) -> None:
    class Never(us.Logger):
        def start(self, phase: Any) -> None:
            raise us.StopTraining("not today")

    run = train(point(tmp_path), loggers=[Never()])
    assert (run.stopped_by, run.env_steps) == ("not today", 0)
    assert run.evaluation is not None
    assert us.load(run.path) is not None
    assert resume(run.path).env_steps == 6 * STEPS


@pytest.mark.parametrize("returned", [True, ["x"], {"x": "many"}, {"x": None}])
def test_a_logger_returns_metrics_or_nothing(returned: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a logger returned .*(return metrics by name|not numbers)"):
        train(point(tmp_path), loggers=[lambda step, metrics: returned])


# ------------------------------------------------------------------------------------------- disks and folders


def test_a_full_disk_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    act_during(monkeypatch, 3, lambda ppo: resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1])))
    try:
        with pytest.raises(OSError, match=r"could not write .*metrics\.jsonl") as caught:
            train(point(tmp_path, logging=LoggingConfig(console=False)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "the older ones are intact" in caught.value.__notes__[-1]
    assert "Traceback" not in capsys.readouterr().err
    assert newest_step(tmp_path / "run") == 2 * STEPS
    assert weights(newest(tmp_path / "run"))
    monkeypatch.undo()
    assert resume(tmp_path / "run").env_steps == 6 * STEPS
    assert not [*(tmp_path / "run").rglob("*.tmp")]


def test_tensorboard_on_a_full_disk_is_an_error_with_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.training.loggers import Phase, TensorBoard

    board = TensorBoard()
    board.start(Phase("ppo", tmp_path, point(tmp_path), 0, 1))

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    board.records._writer = Full()
    with pytest.raises(OSError, match=r"could not write .*tfevents.*: No space left"):
        board.log(1, {"x": 1.0})


def test_a_folder_that_is_deleted_comes_back_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act_during(monkeypatch, 3, lambda ppo: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(OSError, match=r"could not write .*metrics\.jsonl: No such file"):
        train(point(tmp_path))
    assert newest_step(tmp_path / "run") == 4 * STEPS
    monkeypatch.undo()
    assert resume(tmp_path / "run").env_steps == 6 * STEPS


def test_a_folder_that_is_deleted_at_the_very_end_comes_back_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, write = tmp_path / "run", training.write_atomic

    def write_and_lose(path: Path, data: bytes) -> None:
        write(path, data)
        if run.joinpath("evaluation.json").exists():
            monkeypatch.setattr(training, "write_atomic", write)
            shutil.rmtree(run)

    monkeypatch.setattr(training, "write_atomic", write_and_lose)
    train(point(tmp_path, logging=QUIET))
    assert "run was deleted: it comes back without its metrics" in caplog.text
    assert json.loads((run / "evaluation.json").read_text())["episodes"] > 0
    assert us.load(run)
    with pytest.raises(ValueError, match="already has its"):
        resume(run)


def test_a_folder_where_nothing_can_be_written_is_said(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    original = Path.open

    def read_only(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wax+") and tmp_path in self.parents:
            raise OSError(errno.EROFS, "Read-only file system")
        return original(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", read_only)
    for start in (lambda: resume(tmp_path / "run", total_steps=999), lambda: train(point(tmp_path / "new"))):
        with pytest.raises(ValueError, match=r"cannot write run folder .*: Read-only file system"):
            start()


# --------------------------------------------------------------------------------------- before the first checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return train(point(tmp_path_factory.mktemp("whole"))).path


@pytest.mark.parametrize(
    ("reached", "resumed"),
    [(1, False), (2, False), (2, True), (3, False), (4, False), (4, True)],
)
def test_a_folder_without_a_checkpoint_is_a_beginning(reached: int, resumed: bool, whole: Path, tmp_path: Path) -> None:
    folder, chosen = tmp_path / "run", point(tmp_path)
    folder.mkdir()
    for name in (".lock", "config.yaml", "run.json", "metrics.jsonl")[:reached]:
        shutil.copy(whole / name, folder / name)
    if reached == 1:
        with pytest.raises(ValueError, match=r"no config\.yaml"):
            resume(folder)
    (folder / ".config.yaml.abc.tmp").mkdir()
    run = resume(folder) if resumed else train(chosen)
    assert same(weights(newest(run.path)), weights(newest(whole)))
    assert timeless(run.path) == timeless(whole)
    assert not [*folder.rglob("*.tmp")]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine: 1")
    with pytest.raises(ValueError, match="exists and is not empty"):
        train(point(tmp_path))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    newest(run).write_bytes(b"PK\x03\x04")
    resume(run)
    assert "continuing from" in caplog.text
    assert same(weights(newest(run)), weights(newest(whole)))


def test_names_of_folders_are_valid_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = set()
    for env in ("my_module:Mine-v0", 'a/b\\c*?<>|"', "x" * 300, "ü né", "..") * 2:
        with new_run(point(tmp_path, run_dir=None, recipe="../x", env=EnvConfig(id=env))) as folder:
            folder.record_start()
            names.add(folder.path.name)
            assert folder.path.parent == Path("runs")
            assert set(folder.path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
            assert len(folder.path.name) < 200
    assert len(names) == 10


# ------------------------------------------------------------------------------------------- two in one folder


def _hold(path: str, ready: Any, done: Any) -> None:
    with RunFolder(Path(path)).locked():
        ready.set()
        done.wait(60)


def test_two_trainings_do_not_share_a_folder(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "run"), ready, done))
    other.start()
    assert ready.wait(60)
    for start in (lambda: resume(tmp_path / "run", total_steps=999), lambda: train(point(tmp_path))):
        with pytest.raises(ValueError, match=rf"in use by another training \(process {other.pid} on "):
            start()
    other.kill()  # nobody tidies up
    other.join()
    assert resume(tmp_path / "run", total_steps=7 * STEPS).env_steps == 7 * STEPS


def test_nor_do_two_of_one_process(tmp_path: Path) -> None:
    def nested(step: int, metrics: Any) -> None:
        with pytest.raises(ValueError, match="in use by another training of this process"):
            resume(tmp_path / "run")

    train(point(tmp_path), loggers=[nested])


# ------------------------------------------------------------------------------------------- DAgger


def steer(obs: Any, is_first: Any = None) -> torch.Tensor:
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


def rounds(path: Path, **changes: Any) -> TrainConfig:
    dagger = DaggerConfig(rounds=3, episodes_per_round=2, steps_per_round=30, beta=0.5)
    cloning = {
        "parts": {"bc": BehaviorCloningConfig(batch_size=16)},
        "offline": OfflineConfig(epochs=4, learning_rate=3e-3, dagger=dagger),
        "evaluation": EvaluationConfig(episodes=0),
        "total_steps": 0,
    }
    return point(path, **{**cloning, **changes})


@pytest.mark.parametrize("total_steps", [0, 2 * STEPS])
def test_dagger_that_is_killed_after_a_round_collects_it_again(
    total_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = rounds(tmp_path, total_steps=total_steps)
    whole = train(dataclasses.replace(chosen, run_dir=str(tmp_path / "whole")), expert=steer)
    original, killed = Dagger.collect, tmp_path / "killed"

    def collect(self: Dagger, number: int, learner: Any) -> dict[str, float]:
        numbers = original(self, number, learner)
        if number == 3:
            shutil.copytree(tmp_path / "run", killed)
        return numbers

    monkeypatch.setattr(Dagger, "collect", collect)
    train(chosen, expert=steer)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run")  # a copy has its own rounds
    shutil.move(killed, tmp_path / "moved")
    run = resume(tmp_path / "moved", expert=steer)
    assert all(torch.equal(x, run.policy.state_dict()[name]) for name, x in whole.policy.state_dict().items())
    assert timeless(run.path) == timeless(whole.path)
    for file in (whole.path / "demonstrations").iterdir():
        assert np.array_equal(np.load(file)["actions"], np.load(run.path / "demonstrations" / file.name)["actions"])


def test_an_expert_that_fails_once_is_asked_again(tmp_path: Path) -> None:
    whole = train(rounds(tmp_path / "whole"), expert=steer)
    calls = iter(range(10**6))

    def failing(obs: Any, is_first: Any) -> torch.Tensor:
        if next(calls) == 40:
            raise RuntimeError("the expert is out")
        return steer(obs)

    with pytest.raises(RuntimeError, match="the expert is out"):
        train(rounds(tmp_path), expert=failing)
    run = resume(tmp_path / "run", expert=steer)
    assert all(torch.equal(x, run.policy.state_dict()[name]) for name, x in whole.policy.state_dict().items())


def test_a_dagger_run_goes_on_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(rounds(tmp_path, run_dir="run"), expert=steer)
    assert run.config.parts["bc"].demonstrations == ""  # type: ignore[attr-defined]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume("../run", total_steps=STEPS).env_steps == STEPS  # the rounds are over: nobody is asked any more


def test_a_run_finds_its_files_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    expert = train(point(tmp_path, run_dir="expert"))
    chosen = rounds(tmp_path, run_dir="run")
    assert chosen.offline is not None
    asking = dataclasses.replace(chosen.offline.dagger or DaggerConfig(), expert="./expert")
    chosen = dataclasses.replace(chosen, offline=dataclasses.replace(chosen.offline, dagger=asking))
    whole = train(chosen)
    again = shutil.copytree(whole.path, tmp_path / "there" / "copy")
    for file in again.glob("checkpoints/*"):
        file.unlink()
    (again / "evaluation.json").unlink(missing_ok=True)
    train(
        dataclasses.replace(
            chosen,
            run_dir="clone",
            total_steps=STEPS,
            offline=None,
            parts={"bc": BehaviorCloningConfig(demonstrations="run/demonstrations")},
        )
    )
    monkeypatch.chdir(tmp_path / "there")
    for run, steps in ((again, 0), (tmp_path / "here" / "clone", 2 * STEPS)):
        assert resume(run, total_steps=steps).env_steps == steps
    assert expert.path == Path("expert")
    run = resume(tmp_path / "here" / "clone", total_steps=3 * STEPS)
    assert run.config.parts["bc"].demonstrations == "run/demonstrations"  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", '["x"]'])
def test_a_damaged_record_of_starts_stops_nothing(text: str, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "run.json").write_text(text)
    assert resume(run, total_steps=7 * STEPS).env_steps == 7 * STEPS
    assert len(json.loads((run / "run.json").read_text())) == 1


def test_rounds_end_where_episodes_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from understudy.training import dagger

    monkeypatch.setattr(dagger, "LONGEST", 40)
    endless = EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": 10**9})
    run = train(rounds(tmp_path, env=endless), expert=lambda obs, is_first: 0 * steer(obs))  # it never arrives
    for file in (run.path / "demonstrations").iterdir():
        assert max(np.load(file)["lengths"]) == 40
    assert caplog.text.count("episodes of 40 steps were cut") == 1


def test_rounds_that_are_gone_are_named(tmp_path: Path) -> None:
    run = train(rounds(tmp_path), expert=steer)
    (run.path / "demonstrations" / "round_001.npz").unlink()
    with pytest.raises(ValueError, match=r"round_001\.npz is gone"):
        resume(run.path, total_steps=STEPS, expert=steer)


@pytest.mark.parametrize("kind", [np.asarray, lambda x: x.tolist(), lambda x: x.double(), lambda x: 2 * x])
def test_experts_answer_with_arrays_lists_and_actions_out_of_bounds(kind: Any) -> None:
    env = PointMass(3)
    steered = torch.tensor([[0.5, -0.5], [0.25, 0.0], [1.0, 0.5]])
    expected = torch.as_tensor(np.asarray(kind(steered))).float().clamp(-1.0, 1.0)
    assert torch.equal(admit_actions(kind(steered), env.action_space, env.num_envs), expected)
    assert admit_actions(kind(steered), env.action_space, env.num_envs).dtype == torch.float32


def test_a_warning_about_actions_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    env = PointMass(1)
    warn_once.cache_clear()
    for size in range(2, 9):
        assert admit_actions([[size, -size]], env.action_space, env.num_envs).tolist() == [[1.0, -1.0]]
    assert caplog.text.count("exceed the bounds") == 1


@pytest.mark.parametrize(
    ("env", "answer", "message"),
    [
        ("PointMass", [[0.0, 0.0]], r"must return actions \[2, 2\].*shape \[1, 2\]"),
        ("PointMass", [[0.0, float("nan")]] * 2, "returned the action nan"),
        ("PointMass", "left", r"must return actions"),
        ("PointMass", None, r"must return actions"),
        ("CartPole-v1", [0.5, 1.0], r"returned the action 0\.5, which is not in Discrete"),
        ("CartPole-v1", [0, 2], "returned the action 2"),
        ("CartPole-v1", [[0], [1]], r"shape \[2, 1\]"),
    ],
)
def test_answers_that_are_no_actions_are_refused(env: str, answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        admit_actions(answer, us.make_env(env, 2).action_space, 2)


def test_whole_floats_are_classes() -> None:
    assert admit_actions(np.array([0.0, 1.0]), us.make_env("CartPole-v1", 2).action_space, 2).tolist() == [0, 1]
    assert admit_actions(torch.tensor([0.0, 1.0]), us.make_env("CartPole-v1", 2).action_space, 2).dtype == torch.int64


# ------------------------------------------------------------------------------------------- metrics


def test_a_resumed_run_keeps_its_epochs(tmp_path: Path) -> None:
    chosen = rounds(tmp_path, total_steps=2 * STEPS)
    run = train(chosen, expert=steer)
    before = timeless(run.path)
    assert [row["step"] for row in before] == [*range(1, 17), STEPS, 2 * STEPS]
    assert timeless(resume(run.path, total_steps=3 * STEPS, expert=steer).path)[: len(before)] == before


def test_tensorboard_is_complete_after_a_resume(tmp_path: Path) -> None:
    from tests.training.test_loggers import read_events

    loud = LoggingConfig(console=False)
    run = train(rounds(tmp_path, total_steps=2 * STEPS, logging=loud), expert=steer)
    newest(run.path).unlink()  # as if killed in the second iteration: from the last epoch on
    assert newest_step(run.path) == 0
    resume(run.path, total_steps=2 * STEPS, expert=steer)
    resume(run.path, total_steps=4 * STEPS, expert=steer)
    events = read_events(run.path)
    assert [step for step, _ in events["ppo/kl"]] == [STEPS * n for n in range(1, 5)]
    assert [step for step, _ in events["offline/epoch"]] == [*range(1, 17)]


def test_the_command_says_where_it_was_and_leaves_with_a_code(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")

    def leave(ppo: Any) -> None:
        raise KeyboardInterrupt

    act_during(monkeypatch, 7, leave)
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "999"]) == 130
    assert "Continue with: understudy train --resume" in capsys.readouterr().err
    act_during(monkeypatch, 7, lambda ppo: sys.exit(0))
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "999"]) == 1
    assert "called sys.exit(0)" in capsys.readouterr().err
    for file in step_checkpoints(tmp_path / "run" / "checkpoints"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError):
        resume(tmp_path / "run")
