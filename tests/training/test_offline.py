"""Offline training: epochs on demonstrations alone make a run like any other, and PPO can go on from it."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy.core.schedules import Schedule
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.write import write_npz
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.runs.config import EvaluationConfig, LoggingConfig, OfflineConfig, TrainConfig
from understudy.runs.folder import load
from understudy.tasks.point_mass import PointMass
from understudy.tools.play import PolicyActor
from understudy.tools.record import record_episodes
from understudy.training.loop import resume, train
from understudy.training.offline import OfflineTraining


def steer(obs: Any, is_first: Any = None) -> torch.Tensor:
    seen = obs["policy"]
    return (-3.0 * seen[:, :2] - 2.0 * seen[:, 2:]).clamp(-1.0, 1.0)


@pytest.fixture(scope="module")
def expert(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("expert") / "expert.npz"
    write_npz(path, record_episodes(PointMass(10), steer, 40, seed=0), {"env": "PointMass"})
    return path


@pytest.fixture
def configure(expert: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def build(
        *, part: Any = None, offline: Any = None, memory: str = "none", name: str = "run", **options: Any
    ) -> TrainConfig:
        return TrainConfig(
            env=EnvConfig(id="PointMass", num_envs=4),
            policy=PolicyConfig(hidden_sizes=(32, 32), memory=memory, memory_size=16),
            ppo=PPOConfig(num_steps=16, minibatches=2, epochs=1),
            parts={"bc": BehaviorCloningConfig(**{"demonstrations": str(expert), "batch_size": 64, **(part or {})})},
            offline=OfflineConfig(**{"epochs": 12, "learning_rate": 3e-3, **(offline or {})}),
            evaluation=EvaluationConfig(episodes=options.pop("episodes", 0)),
            logging=LoggingConfig(console=False, tensorboard=False),
            total_steps=options.pop("total_steps", 0),
            run_dir=str(tmp_path / name),
            torch_threads=1,
            **options,
        )

    return build


def score(policy: Any) -> float:
    episodes = record_episodes(PointMass(50), PolicyActor(policy), 50, seed=1)
    return sum(episode.score for episode in episodes) / len(episodes)


def test_epochs_flush_denormals(configure: Any, monkeypatch: Any) -> None:
    clone, seen, denormal = BehaviorCloning.clone, [], 1e-310

    def look(*args: Any) -> Any:
        seen.append(denormal * 2.0 == 0.0)
        return clone(*args)

    monkeypatch.setattr(BehaviorCloning, "clone", look)
    train(configure(offline={"epochs": 1, "validation_fraction": 0.0}))
    assert seen
    assert all(seen)
    assert denormal * 2.0 > 0.0


def test_an_epoch_keeps_nothing_of_its_steps(configure: Any, monkeypatch: Any) -> None:
    minibatches, alive = OfflineTraining.minibatches, []

    def count(self: OfflineTraining) -> Any:
        for step, batch in enumerate(minibatches(self)):
            yield batch
            if step in (5, 31):  # the first 32 are views of one gathered block
                alive.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))

    monkeypatch.setattr(OfflineTraining, "minibatches", count)
    train(configure(part={"batch_size": 16}, offline={"epochs": 1, "validation_fraction": 0.0}))
    early, late = alive
    assert late < early + 10, "small tensors among large ones break up the memory"


def test_it_clones_the_expert_without_an_environment_step(configure: Any) -> None:
    run = train(configure(offline={"learning_rate": Schedule(kind="linear", start=5e-3, end=0.0), "epochs": 25}))
    assert run.env_steps == 0
    expert = sum(e.score for e in record_episodes(PointMass(50), steer, 50, seed=1)) / 50
    untrained = score(train(configure(offline={"learning_rate": 0.0, "epochs": 1}, name="untrained")).policy)
    assert untrained < expert - 20.0
    assert score(run.policy) > expert - 0.1 * (expert - untrained)
    assert score(load(run.path)) == score(run.policy)
    rows = run.metrics
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["offline/loss"] < 0.2 * rows[0]["offline/loss"]
    assert rows[-1]["offline/learning_rate"] == pytest.approx(5e-3 / 25)


def test_the_normaliser_has_the_statistics_of_the_training_trajectories(configure: Any, expert: Path) -> None:
    run = train(configure(offline={"epochs": 1, "validation_fraction": 0.0}))
    env = PointMass(1)
    demos = Demonstrations.load(expert, observation_space=env.observation_space, action_space=env.action_space)
    seen = demos.gather(demos.rows)["obs", "policy"].double()
    torch.testing.assert_close(run.policy.normalizers["policy"].mean, seen.mean(0))
    torch.testing.assert_close(run.policy.normalizers["policy"].var, seen.var(0, correction=0))


def test_the_policy_that_validates_best_is_kept_and_patience_ends_it(configure: Any) -> None:
    # a learning rate that blows up after a good start: the best epoch is an early one
    rate = Schedule(kind="step", points=((0, 3e-3), (4, 0.5)))
    run = train(configure(offline={"epochs": 40, "patience": 3, "learning_rate": rate}))
    losses = [row["offline/validation_loss"] for row in run.metrics]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3
    assert best < 6
    kept = train(configure(offline={"epochs": best + 1, "learning_rate": rate}, name="short"))
    for name, weight in kept.policy.state_dict().items():
        torch.testing.assert_close(run.policy.state_dict()[name], weight)


@pytest.mark.parametrize("scheduler", [None, LRSchedulerConfig(name="ExponentialLR", options={"gamma": 0.5})])
def test_a_resumed_run_equals_an_uninterrupted_one(configure: Any, scheduler: Any, monkeypatch: Any) -> None:
    config = configure(offline={"epochs": 4, "lr_scheduler": scheduler})
    whole = train(config)
    config = dataclasses.replace(config, run_dir=f"{config.run_dir}-interrupted")
    interrupt_after(2, monkeypatch)
    first = train(config)
    assert first.stopped_by == "SIGINT"
    assert len(first.metrics) == 2
    monkeypatch.undo()
    second = resume(first.path)
    assert len(second.metrics) == 4
    for name, weight in whole.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], weight), name


def interrupt_after(epochs: int, monkeypatch: Any) -> None:
    original = OfflineTraining.epoch

    def epoch(self: OfflineTraining) -> dict[str, float]:
        metrics = original(self)
        if self.epochs_done == epochs:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    monkeypatch.setattr(OfflineTraining, "epoch", epoch)


def test_ppo_goes_on_from_the_cloned_policy(configure: Any) -> None:
    run = train(configure(offline={"epochs": 6}, total_steps=256, episodes=8))
    assert run.env_steps >= 256
    assert run.evaluation is not None
    steps = [row["step"] for row in run.metrics]
    assert steps[:6] == [1, 2, 3, 4, 5, 6]
    first = run.metrics[6]
    assert first["bc/loss"] < run.metrics[0]["offline/loss"]  # it starts from what was cloned
    assert first["ppo/learning_rate"] == pytest.approx(3e-4)  # PPO's own, with moments of its own


@pytest.mark.parametrize("memory", ["gru"])
def test_a_policy_with_a_memory_is_cloned_from_windows(configure: Any, memory: str) -> None:
    run = train(configure(offline={"epochs": 4}, memory=memory, part={"sequence_length": 8, "loss": "nll"}))
    losses = [row["offline/validation_loss"] for row in run.metrics]
    assert losses[-1] < losses[0] - 0.1
    assert math.isfinite(score(run.policy))


def test_demonstrations_of_another_version_are_pointed_out(configure: Any, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "other.npz"
    write_npz(path, record_episodes(PointMass(2), steer, 2, seed=0), {"env": "PointMass-v9"})
    train(configure(part={"demonstrations": str(path)}, offline={"epochs": 1}))
    assert "made in 'PointMass-v9', not in 'PointMass'" in caplog.text


def test_configurations_that_cannot_work(configure: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one behavior-cloning part, got 0"):
        train(dataclasses.replace(configure(), parts={}))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="total_steps must be at least 1"):
        dataclasses.replace(configure(), offline=None)
    with pytest.raises(ValueError, match="at most one mechanism may change"):
        OfflineConfig(learning_rate=Schedule(kind="linear", start=1.0), lr_scheduler=LRSchedulerConfig(name="StepLR"))
    run = train(configure(offline={"epochs": 1}))
    with pytest.raises(ValueError, match="already has its 0 steps"):
        resume(run.path)
