"""Loggers: the library's own, the user's, what they add, how they stop a training and how they fail."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import understudy as us
from understudy import cli
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.config import EvaluationConfig, LoggingConfig, OfflineConfig, TrainConfig
from understudy.runs.folder import CHECKPOINT_KIND
from understudy.tools.record import record_episodes
from understudy.training import loggers as module
from understudy.training.loggers import LOGGERS, Loggers, MLflow, Phase, TensorBoard, WeightsAndBiases

STEPS = 32  # environment steps per iteration: 16 of 2 environments
QUIET = LoggingConfig(console=False, tensorboard=False)


def config(path: Path, **changes: Any) -> TrainConfig:
    small = TrainConfig(
        total_steps=4 * STEPS,
        run_dir=str(path / "run"),
        device="cpu",
        env=us.EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": 8}),
        policy=us.PolicyConfig(hidden_sizes=(8,)),
        ppo=us.PPOConfig(num_steps=16, epochs=1, minibatches=1, warmup_steps=0, capture="eager"),
        evaluation=EvaluationConfig(episodes=2),
        logging=QUIET,
    )
    return dataclasses.replace(small, **changes)


def phase(folder: Path, first_step: int = 0, **changes: Any) -> Phase:
    return Phase("ppo", folder, config(folder, **changes), first_step, 100)


class Watching(us.Logger):
    """Remembers what it sees, and adds or raises what it is told to."""

    def __init__(self, adds: Mapping[str, float] | None = None, raises: Exception | None = None, at: int = 1) -> None:
        self.adds, self.raises, self.at = adds, raises, at
        self.seen: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, float]] = []
        self.notes: list[str] = []

    def start(self, phase: Phase) -> None:
        self.seen.append(("start", phase.kind, phase.first_step, phase.total_steps, phase.folder.name))

    def log(self, step: int, metrics: Mapping[str, float]) -> Mapping[str, float] | None:
        self.seen.append((step,))
        self.rows.append(dict(metrics))
        if self.raises is not None and len(self.rows) == self.at:
            raise self.raises
        return self.adds

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.seen.append(("close",))


# ---------------------------------------------------------------------------------------------- the library's own


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    # TensorBoard turns simple values into tensors while it reads
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_finite_metrics_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    board = TensorBoard()
    board.start(phase(tmp_path))
    board.log(10, {"a/x": 1.0, "b": math.nan})
    board.log(20, {"a/x": 2.0, "b": 0.5})
    board.close()
    assert read_events(tmp_path) == {"a/x": [(10, 1.0), (20, 2.0)], "b": [(20, 0.5)]}
    board = TensorBoard()
    board.start(phase(tmp_path, first_step=15))  # resumed from the checkpoint of step 15
    board.log(20, {"a/x": 3.0})
    board.close()
    assert read_events(tmp_path)["a/x"] == [(10, 1.0), (20, 3.0)]


def test_the_config_chooses_the_loggers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    us.train(config(tmp_path, total_steps=1))
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert capsys.readouterr().err == ""
    us.train(config(tmp_path / "loud", total_steps=1, logging=LoggingConfig()))
    assert "32 steps (3200 %)" not in (shown := capsys.readouterr().err)
    assert "32 steps (100 %)" in shown
    assert list((tmp_path / "loud" / "run" / "tensorboard").glob("events*"))


def test_wandb_gets_config_and_finite_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class FakeRun:
        def log(self, metrics: dict[str, float], step: int) -> None:
            calls.append((step, metrics))

        def finish(self) -> None:
            calls.append("finish")

    def init(**settings: Any) -> FakeRun:
        calls.append(settings)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=True))
    sink = WeightsAndBiases()
    for folder in ("a/module:Run", "a/module:Run", "b/module:Run"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        sink.start(phase(tmp_path / folder, seed=7))
        sink.log(5, {"a": 1.0, "b": math.inf})
        sink.close()
    starts = calls[::3]
    assert starts[0]["config"]["seed"] == 7
    assert [start[name] for start in starts for name in ("project", "name", "resume")] == [
        *("understudy", "module:Run", "allow") * 3
    ]
    first, again, other = (start["id"] for start in starts)
    assert first == again != other  # kept in the run, unique, and valid: letters and digits
    assert first.isalnum()
    assert calls[1:3] == [(5, {"a": 1.0}), "finish"]


class FakeMLflow(ModuleType):
    """What MLflow refuses, this does, too: a parameter that changes, a second run at a time."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        self.active, self.runs, self.experiment = "", {}, ""  # type: ignore[var-annotated]

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def start_run(self, run_id: str | None = None, *, run_name: str | None = None) -> Any:
        assert not self.active
        self.active = run_id or f"id-{len(self.runs)}"
        self.runs.setdefault(self.active, {"name": run_name, "params": {}, "metrics": []})
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active))

    def log_params(self, params: dict[str, Any]) -> None:
        before = self.runs[self.active]["params"]
        assert all(before.get(name, value) == value for name, value in params.items())
        before |= params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert all(math.isfinite(x) for x in metrics.values())
        self.runs[self.active]["metrics"].append((step, metrics))

    def end_run(self) -> None:
        self.active = ""


def test_mlflow_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    chosen = dataclasses.replace(QUIET, mlflow=True, mlflow_experiment="doors")
    us.train(config(tmp_path, total_steps=STEPS, logging=chosen))
    us.resume(tmp_path / "run", total_steps=2 * STEPS)
    [run] = mlflow.runs.values()
    assert mlflow.experiment == "doors"
    assert run["name"] == "run"
    assert run["params"]["ppo.num_steps"] == 16
    assert [step for step, _ in run["metrics"]] == [STEPS, 2 * STEPS]
    assert "ppo/kl" in run["metrics"][0][1]


@pytest.mark.parametrize(("logger", "extra"), [(WeightsAndBiases, "wandb"), (MLflow, "mlflow")])
def test_a_missing_package_names_the_extra(logger: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"understudy-rl\[{extra}\]"):
        logger()


# ---------------------------------------------------------------------------------------------- one's own


def test_an_own_logger_sees_every_row_and_adds_to_it(tmp_path: Path) -> None:
    first, second = Watching(adds={"own/one": 1.0}), Watching()
    functions: list[int] = []
    run = us.train(config(tmp_path), loggers=[first, second, lambda step, metrics: functions.append(step)])
    steps = [STEPS * i for i in range(1, 5)]
    assert first.seen == [("start", "ppo", 0, 4 * STEPS, "run"), *((s,) for s in steps), ("close",)]
    assert functions == steps
    assert all("own/one" not in row for row in first.rows)
    assert all(row["own/one"] == 1.0 for row in (*second.rows, *run.metrics))  # later loggers and the file
    assert first.rows[-1]["evaluation/return"] == run.evaluation.mean_return
    assert "time/elapsed" in first.rows[0]
    resumed = Watching()
    us.resume(run.path, total_steps=5 * STEPS, loggers=[resumed])
    assert resumed.seen[:2] == [("start", "ppo", 4 * STEPS, 5 * STEPS, "run"), (5 * STEPS,)]


def test_a_row_cannot_be_changed_behind_the_others_backs(tmp_path: Path) -> None:
    def wipe(step: int, metrics: Any) -> None:
        metrics.clear()

    with pytest.raises(AttributeError) as caught:
        us.train(config(tmp_path), loggers=[wipe])
    assert "wipe" in "".join(caught.value.__notes__)


def test_nan_is_a_number_like_any_other(tmp_path: Path) -> None:
    run = us.train(
        config(tmp_path, total_steps=1, logging=dataclasses.replace(QUIET, tensorboard=True)),
        loggers=[Watching(adds={"own/x": math.nan, "own/y": 2})],
    )
    assert math.isnan(run.metrics[0]["own/x"])
    assert run.metrics[0]["own/y"] == 2.0
    assert read_events(run.path)["own/y"] == [(STEPS, 2.0)]


@pytest.mark.parametrize("name", ["own/x", "ppo/kl", "step"])
def test_two_metrics_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    first, second, last = Watching(adds={"own/x": 1.0}), Watching(adds={name: 2.0}), Watching()
    with pytest.raises(ValueError, match=f"returned {name}, which the row already has") as caught:
        us.train(config(tmp_path), loggers=[first, second, last])
    assert "Watching" in caught.value.__notes__[0]
    assert last.rows[0]["own/x"] == 1.0


def test_a_logger_that_fails_costs_no_work(tmp_path: Path) -> None:
    other = Watching()
    with pytest.raises(OSError, match="the network is gone") as caught:
        us.train(config(tmp_path), loggers=[Watching(raises=OSError("the network is gone"), at=2), other])
    blamed, saved = caught.value.__notes__
    assert "Watching" in blamed
    assert "--resume" in saved
    assert len(other.rows) == 2  # the row that failed, too
    assert other.seen[-1] == ("close",)
    [path] = step_checkpoints(tmp_path / "run" / "checkpoints")
    assert load_checkpoint(path, CHECKPOINT_KIND)["env_steps"] == 2 * STEPS
    run = us.resume(tmp_path / "run")
    assert [row["step"] for row in run.metrics] == [STEPS * i for i in range(1, 5)]


def test_a_logger_that_cannot_start_closes_the_others(tmp_path: Path) -> None:
    class Broken(us.Logger):
        def start(self, phase: Phase) -> None:
            raise RuntimeError("no server")

    other = Watching()
    with pytest.raises(RuntimeError, match="no server") as caught:
        us.train(config(tmp_path), loggers=[other, Broken()])
    assert "Broken" in caught.value.__notes__[0]
    assert other.seen[-1] == ("close",)


@pytest.mark.parametrize("wrong", [Watching, "console", None, 3])
def test_what_is_no_logger_is_refused_before_the_work(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give an instance of us\.Logger"):
        us.train(config(tmp_path), loggers=[wrong])
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- by name


def test_loggers_are_named_in_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Watching] = []

    def make() -> Watching:
        made.append(Watching(adds={"named/x": 3.0}))
        return made[-1]

    own = ModuleType("own_loggers")
    own.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_loggers", own)
    words = ["--logging.loggers", "own_loggers:make", "--logging.no-console", "--logging.no-tensorboard"]
    path = tmp_path / "run"
    small = ["--ppo.num-steps", "16", "--env.id", "PointMass", "--env.num-envs", "2", "--evaluation.episodes", "0"]
    small += ["--ppo.minibatches", "1", "--total-steps", "32", "--run-dir", str(path)]
    assert cli.main(["train", "ppo", *small, *words]) == 0
    assert json.loads((path / "metrics.jsonl").read_text())["named/x"] == 3.0
    us.resume(path, total_steps=200, allow=("own_loggers",))  # the config names it again
    assert len(made) == 2
    for wrong, message in (("own_loggers:mak", "did you mean make"), ("consol", "unknown logger 'consol'; did you")):
        with pytest.raises(ValueError, match=message):
            Loggers(config(tmp_path, logging=LoggingConfig(loggers=(wrong,))))


def test_a_logger_that_is_named_and_switched_on_is_one() -> None:
    chosen = LoggingConfig(loggers=("tensorboard",), console=False)
    made = Loggers(config(Path(), logging=chosen)).loggers
    assert [type(each) for each in made] == [TensorBoard, module.MetricsFile]
    assert list(LOGGERS) == ["console", "metrics", "mlflow", "rsl-rl", "tensorboard", "wandb"]


# ---------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_logger_ends_the_training(evaluated: bool, tmp_path: Path) -> None:
    stop, other = Watching(raises=us.StopTraining("good enough")), Watching()
    chosen = EvaluationConfig(episodes=2, interval=STEPS if evaluated else None)
    run = us.train(config(tmp_path, evaluation=chosen), loggers=[stop, other])
    assert (run.stopped_by, run.env_steps) == ("good enough", STEPS)
    assert run.evaluation is not None
    assert json.loads((run.path / "evaluation.json").read_text())["mean_return"] == run.evaluation.mean_return
    [row] = run.metrics
    assert ("evaluation/return" in row) == evaluated
    assert len(other.rows) == 1
    assert other.notes == ([] if evaluated else [run.evaluation.sentence()])
    [path] = step_checkpoints(run.path / "checkpoints")
    assert load_checkpoint(path, CHECKPOINT_KIND)["env_steps"] == STEPS
    assert us.resume(run.path).env_steps == 4 * STEPS


def test_a_stop_is_as_good_as_an_end(tmp_path: Path) -> None:
    stopped = us.train(config(tmp_path / "a"), loggers=[Watching(raises=us.StopTraining("enough"), at=2)])
    ended = us.train(config(tmp_path / "b", total_steps=2 * STEPS))
    assert stopped.evaluation == ended.evaluation
    assert all((stopped.policy.state_dict()[name] == x).all() for name, x in ended.policy.state_dict().items())


def test_stop_when_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    words = ["--env.id", "PointMass", "--ppo.num-steps", "16", "--ppo.minibatches", "1", "--run-dir", str(path)]
    words += ["--evaluation.interval", "1", "--evaluation.episodes", "1", "--logging.no-console"]
    assert cli.main(["train", "ppo", *words, "--stop-when", "evaluation/return>=-1e9"]) == 0
    assert "stopped by evaluation/return>=-1e9; continue with" in capsys.readouterr().out
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 1
    kept = us.train(config(tmp_path / "kept", stop_when="ppo/entropy<=-1e9"))
    assert (kept.stopped_by, kept.env_steps) == (None, 4 * STEPS)
    nan = us.train(config(tmp_path / "nan", stop_when="episode/return>=-1e9", total_steps=STEPS, env=endless()))
    assert nan.stopped_by is None  # no episode has ended: NaN holds no condition


def endless() -> us.EnvConfig:
    return us.EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": 500})


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("episode/return", "stop_when: .*METRIC>=NUMBER"),
        ("evaluation/return>=1", r"set evaluation\.interval"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(condition: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, stop_when=condition)


def test_a_metric_that_no_row_has_is_refused(tmp_path: Path) -> None:
    for name in ("episode/retrun", "offline/loss"):
        with pytest.raises(ValueError, match=f"stop_when waits for '{name}', which is not logged"):
            us.train(config(tmp_path / name[:3], stop_when=f"{name}>=1"))
    own = us.train(config(tmp_path, stop_when="own/x>=1"), loggers=[Watching(adds={"own/x": 1.0})])
    assert own.stopped_by == "own/x>=1"  # a metric of an own logger counts


@pytest.mark.parametrize(("condition", "phases"), [("offline/loss<=1e9", 1), ("ppo/kl<=1e9", 2)])
def test_offline_epochs_stop_as_well(condition: str, phases: int, tmp_path: Path) -> None:
    from understudy.data.demonstrations.write import write_npz
    from understudy.tasks.point_mass import PointMass

    episodes = record_episodes(PointMass(2), lambda obs, _: -obs["policy"][:, :2].clamp(-1, 1), 2, seed=0)
    write_npz(tmp_path / "demos.npz", episodes, {})
    watching = Watching()
    chosen = config(
        tmp_path,
        parts={"bc": BehaviorCloningConfig(demonstrations=str(tmp_path / "demos.npz"), batch_size=32)},
        offline=OfflineConfig(epochs=3),
        stop_when=condition,
    )
    run = us.train(chosen, loggers=[watching])
    assert run.stopped_by == condition
    assert [seen[1] for seen in watching.seen if seen[0] == "start"] == ["offline", "ppo"][:phases]
    assert watching.seen.count(("close",)) == phases
    assert run.evaluation is not None
