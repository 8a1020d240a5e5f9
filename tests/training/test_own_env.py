"""An environment, a policy and an expert given as objects: trained on, evaluated in, filmed, resumed with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from tensordict import TensorDict
from torch import Tensor

import understudy as us
from understudy.core import randomness
from understudy.envs.base import Step
from understudy.nn.policy import PolicyConfig
from understudy.parts.behavior_cloning import BehaviorCloningConfig
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.config import (
    CheckpointConfig,
    DaggerConfig,
    EvaluationConfig,
    LoggingConfig,
    OfflineConfig,
    TrainConfig,
)
from understudy.runs.folder import CHECKPOINT_KIND
from understudy.tasks.point_mass import PointMass
from understudy.tools.play import evaluation_seed
from understudy.types import WorkerError

STEPS, LENGTH = 16, 9
"""Steps of each environment in an iteration, and of an episode: no iteration ends where an episode does."""


class OnlyOne:
    """A simulator of which a process holds only one: it cannot save its state, and counts what happens to it."""

    def __init__(self, num_envs: int = 2, segments: bool = False) -> None:
        inner = PointMass(num_envs, max_episode_steps=LENGTH)
        self.inner: Any = us.envs.with_groups(inner, segments={"policy": {"a": 2, "b": 2}}) if segments else inner
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
        self.resets: list[int | None] = []
        self.closed, self.drawn = False, 0

    def reset(self, seed: int | None = None) -> TensorDict:
        self.resets.append(seed)
        return self.inner.reset(seed)

    def step(self, action: Tensor) -> Step:
        return self.inner.step(action)

    def render(self) -> np.ndarray:
        self.drawn += 1
        return np.full((64, 64, 3), self.drawn, np.uint8)

    def close(self) -> None:
        self.closed = True


def config(path: Path, **changes: Any) -> TrainConfig:
    small = TrainConfig(
        total_steps=4 * STEPS * 2,
        run_dir=str(path / "run"),
        device="cpu",
        env=us.EnvConfig(id="my-simulator"),
        policy=us.PolicyConfig(hidden_sizes=(8,)),
        ppo=us.PPOConfig(num_steps=STEPS, epochs=1, minibatches=1, warmup_steps=0, capture="eager"),
        evaluation=EvaluationConfig(episodes=3),
        logging=LoggingConfig(console=False, tensorboard=False),
        checkpoint=CheckpointConfig(interval=None),
    )
    return dataclasses.replace(small, **changes)


def state(run: us.Run) -> dict[str, Any]:
    return load_checkpoint(step_checkpoints(run.path / "checkpoints")[-1], CHECKPOINT_KIND)["state"]


def same(a: us.Run, b: us.Run) -> bool:
    first, second = state(a), state(b)
    return all(torch.equal(x, second["policy"][name]) for name, x in first["policy"].items()) and all(
        torch.equal(x, second["optimizer"][name]) for name, x in first["optimizer"].items()
    )


def test_an_object_is_as_good_as_an_id(tmp_path: Path) -> None:
    named = us.EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": LENGTH})
    by_id = us.train(config(tmp_path / "a", env=named))
    env = OnlyOne()
    by_object = us.train(config(tmp_path / "b"), env=env)
    assert same(by_id, by_object)
    assert (by_object.config.env.id, by_object.config.env.num_envs) == ("my-simulator", 2)
    assert by_object.evaluation.episodes == 3
    assert by_object.evaluation.mean_length == LENGTH
    assert not env.closed


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_training_goes_on_with_fresh_episodes_after_an_evaluation(tmp_path: Path, memory: Any) -> None:
    policy = PolicyConfig(hidden_sizes=(8,), memory=memory, memory_size=4)
    chosen = config(tmp_path, policy=policy, evaluation=EvaluationConfig(episodes=3, interval=1))
    run = us.train(chosen, env=OnlyOne())
    # no episode of an evaluation, and none that one cut, is counted: each iteration finishes one in each environment
    assert [row["episode/finished"] for row in run.metrics] == [2.0] * 4
    assert [row["episode/length"] for row in run.metrics] == [LENGTH] * 4
    assert all("evaluation/return" in row for row in run.metrics)
    # as if the environment had only been reset: no memory, no is_first, no random number of the evaluation is left
    env = PointMass(2, max_episode_steps=LENGTH)
    randomness.seed_everything(0)
    torch.manual_seed(randomness.mix(0, "weights"))
    plain = us.PPO(env, us.ActorCritic(env.observation_space, env.action_space, policy), chosen.ppo, {}, seed=0)
    for _ in range(4):
        plain.iterate()
        plain.reset_envs()
    assert all(torch.equal(x, run.policy.state_dict()[name]) for name, x in plain.policy.state_dict().items())


@pytest.mark.parametrize("options", [{"num_envs": 1}, {"segments": True}, {"num_envs": 4}])
def test_environments_of_all_kinds(tmp_path: Path, options: dict[str, Any]) -> None:
    env = OnlyOne(**options)
    run = us.train(config(tmp_path, evaluation=EvaluationConfig(episodes=3, interval=STEPS)), env=env)
    assert run.evaluation.lengths == (LENGTH,) * 3
    again = us.evaluate(run, env=env, episodes=3)
    assert again == run.evaluation
    assert us.evaluate(run.path, env=OnlyOne(**options), episodes=3) == run.evaluation


@pytest.mark.parametrize("make", [OnlyOne, lambda: PointMass(2, max_episode_steps=LENGTH)])
def test_a_resumed_run_equals_a_whole_one(tmp_path: Path, make: Any) -> None:
    chosen = config(
        tmp_path / "a",
        evaluation=EvaluationConfig(episodes=2, interval=2 * STEPS * 2),
        checkpoint=CheckpointConfig(interval=2 * STEPS * 2),
        total_steps=2 * STEPS * 2,
    )
    whole = us.train(dataclasses.replace(chosen, total_steps=4 * STEPS * 2), env=make())
    half = us.train(dataclasses.replace(chosen, run_dir=str(tmp_path / "b")), env=make())
    continued = us.resume(half.path, total_steps=4 * STEPS * 2, env=make())
    assert same(whole, continued)
    assert continued.evaluation == whole.evaluation


def test_a_run_wants_its_environment_again(tmp_path: Path) -> None:
    run = us.train(config(tmp_path), env=OnlyOne())
    calls = {
        "resume": lambda **env: us.resume(run.path, total_steps=1000, **env),
        "evaluate": lambda **env: us.evaluate(run.path, **env),
        "record": lambda **env: us.tools.record.record(tmp_path / "demos.npz", run=run.path, episodes=2, **env),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"unknown environment 'my-simulator'.*give that again \(env=\.\.\.\)"):
            call()
    for call in calls.values():
        call(env=OnlyOne())
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("my-simulator", "CartPole-v1"))  # as of a recipe's default
    with pytest.raises(ValueError, match=r"CartPole-v1 has the observation space .* was trained with .*env="):
        us.resume(run.path, total_steps=2000)
    (run.path / "config.yaml").write_text(text.replace("my-simulator", "PointMass"))
    assert us.resume(run.path, total_steps=2000).env_steps >= 2000  # an id that leads to it will do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": us.EnvConfig(id="x", kwargs={"max_episode_steps": 3})}, "leave env.kwargs and"),
        ({"env": us.EnvConfig(id="x", max_episode_steps=3)}, "leave env.kwargs and"),
        ({"evaluation": EvaluationConfig(env_kwargs={"a": 1})}, "evaluation.env_kwargs"),
    ],
)
def test_options_that_nobody_can_apply_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        us.train(config(tmp_path, **changes), env=OnlyOne())
    assert not (tmp_path / "run").exists()


def test_what_is_no_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="environment"):
        us.train(config(tmp_path), env=object())
    with pytest.raises(ValueError, match="give evaluate an env, or a run"):
        us.evaluate(us.ActorCritic(OnlyOne().observation_space, OnlyOne().action_space, us.PolicyConfig()))


def test_the_film_is_of_the_same_object(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    env = OnlyOne()
    run = us.train(config(tmp_path, evaluation=EvaluationConfig(episodes=2, video=True)), env=env)
    assert run.evaluation.video == str(run.path / "video.mp4")
    assert (run.path / "video.mp4").stat().st_size > 0
    assert env.drawn == 17 * LENGTH  # episodes until there are 5 s of 30 frames
    blind = us.train(
        config(tmp_path / "b", evaluation=EvaluationConfig(episodes=2, video=True)),
        env=PointMass(2, max_episode_steps=LENGTH),
    )
    assert "no render method" in blind.evaluation.video_error


def cartpoles(render: str | None = "rgb_array") -> list[Any]:
    return [lambda: gym.make("CartPole-v1", render_mode=render)] * 2


@pytest.mark.parametrize(
    "make", [us.envs.InProcessVectorEnv, lambda makers: us.envs.GymnasiumVectorAdapter(SyncVectorEnv(makers))]
)
def test_gymnasium_s_environments_are_filmed_as_they_are(tmp_path: Path, make: Any) -> None:
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    env = make(cartpoles())
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    result = us.evaluate(policy, env=env, episodes=2, video=tmp_path / "film.mp4")
    assert (result.video, result.video_error) == (str(tmp_path / "film.mp4"), None)
    blind = us.evaluate(policy, env=make(cartpoles(None)), episodes=2, video=tmp_path / "none.mp4")
    assert "rendered nothing" in blind.video_error


# ---------------------------------------------------------------------------------------------- policy, expert


def test_a_policy_is_trained_and_resumed(tmp_path: Path) -> None:
    def make() -> us.ActorCritic:
        env = OnlyOne()
        return us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))

    mine = make()
    before = {name: x.clone() for name, x in mine.state_dict().items()}
    run = us.train(config(tmp_path), env=OnlyOne(), policy=mine)
    assert run.policy is mine
    assert any(not torch.equal(x, before[name]) for name, x in mine.state_dict().items())
    other = make()
    assert us.resume(run.path, total_steps=1000, env=OnlyOne(), policy=other).policy is other


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("own", [True, False])
def test_dagger_asks_a_function(tmp_path: Path, own: bool, resumed: bool) -> None:
    def steer(obs: TensorDict, is_first: Tensor) -> Tensor:
        return (-3.0 * obs["policy"][:, :2] - 2.0 * obs["policy"][:, 2:]).clamp(-1.0, 1.0)

    dagger = DaggerConfig(rounds=2, episodes_per_round=2, steps_per_round=20)
    named = us.EnvConfig(id="PointMass", num_envs=2, kwargs={"max_episode_steps": LENGTH})
    chosen = config(
        tmp_path,
        env=us.EnvConfig(id="my-simulator") if own else named,
        parts={"bc": BehaviorCloningConfig(batch_size=16)},
        offline=OfflineConfig(epochs=2, dagger=dagger, evaluation_interval=1),
        total_steps=2 * STEPS * 2,
    )
    env = OnlyOne() if own else None

    def stop(step: int, metrics: Any) -> None:
        raise us.StopTraining("to be resumed")

    run = us.train(chosen, expert=steer, env=env, loggers=[stop] if resumed else [])
    if resumed:
        assert (run.stopped_by, run.env_steps) == ("to be resumed", 0)
        run = us.resume(run.path, expert=steer, env=env)
    assert len(list((run.path / "demonstrations").iterdir())) == 3
    ppo = [row for row in run.metrics if "ppo/kl" in row]
    assert [row["episode/length"] for row in ppo] == [LENGTH] * 2  # the rounds left no half episode behind
    assert ppo[0]["episode/finished"] == 2.0
    if env is not None:  # PPO's own reset, then the last evaluation, then fresh episodes
        assert env.resets[-3:] == [randomness.env_seed(0, 0), evaluation_seed(0), randomness.env_seed(0, 2)]


def test_an_object_is_grouped_and_cut_as_the_config_says(tmp_path: Path) -> None:
    cut = us.EnvConfig(id="mine", segments={"policy": {"a": 2, "b": 2}})
    run = us.train(config(tmp_path / "cut", env=cut), env=OnlyOne())
    assert same(run, us.train(config(tmp_path / "own"), env=OnlyOne(segments=True)))
    assert run.config.env == dataclasses.replace(cut, num_envs=2)
    assert us.resume(run.path, env=OnlyOne(), total_steps=400).policy.observation_space == run.policy.observation_space
    grouped = us.EnvConfig(id="mine", groups={"policy": "policy", "critic": "policy"})
    run = us.train(config(tmp_path / "grouped", env=grouped), env=OnlyOne())
    assert set(run.policy.observation_space.spaces) == {"policy", "critic"}
    with pytest.raises(ValueError, match="add up to 3 entries"):
        us.train(config(tmp_path, env=us.EnvConfig(id="x", segments={"policy": {"a": 3}})), env=OnlyOne())


def test_a_vector_environment_that_resets_in_the_next_step(tmp_path: Path) -> None:
    env = gym.make_vec("CartPole-v1", num_envs=3)  # one row of each episode only resets
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    chosen = EvaluationConfig(episodes=4, interval=3 * STEPS * 2)
    run = us.train(config(tmp_path, total_steps=3 * STEPS * 8, evaluation=chosen), env=env)
    assert run.env_steps == 3 * STEPS * 8
    assert run.evaluation.episodes == 4
    assert run.evaluation.returns == tuple(map(float, run.evaluation.lengths))  # one point a step, none for a reset
    played = [row for row in run.metrics if row["episode/finished"]]
    assert played
    assert all(row["episode/return"] == row["episode/length"] for row in played)
    assert us.evaluate(run, env=env, episodes=4) == run.evaluation
    longer = us.resume(run.path, env=env, total_steps=3 * STEPS * 10)
    assert longer.env_steps == 3 * STEPS * 10


def test_an_environment_that_fails_costs_no_more_than_the_iteration(tmp_path: Path) -> None:
    class Failing(OnlyOne):
        steps = 0

        def step(self, action: Tensor) -> Step:
            self.steps += 1
            if self.steps == STEPS + 2:
                raise ZeroDivisionError("the simulator divided by nothing")
            return super().step(action)

    with pytest.raises(WorkerError, match="Failing raised ZeroDivisionError in step: the simulator divided") as error:
        us.train(config(tmp_path), env=Failing())
    assert any("Continue with: understudy train --resume" in note for note in error.value.__notes__)
    assert us.resume(tmp_path / "run", env=OnlyOne()).stopped_by is None


@pytest.mark.parametrize("wrong", [us.ActorCritic, torch.nn.Linear(4, 2)])
def test_what_is_no_policy_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy must be an us\.Policy object"):
        us.train(config(tmp_path), env=OnlyOne(), policy=wrong)


def test_float64_observations_are_scored_as_they_are_trained_on(tmp_path: Path) -> None:
    class Precise(OnlyOne):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            return step._replace(obs=step.obs.double(), final_obs=step.final_obs.double())

    precise = us.train(config(tmp_path / "a"), env=Precise())
    assert precise.evaluation == us.train(config(tmp_path / "b"), env=OnlyOne()).evaluation


def test_an_expert_that_nobody_asks_and_loggers_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody would ask the expert"):
        us.train(config(tmp_path), env=OnlyOne(), expert=lambda obs, is_first: obs["policy"][:, :2])
    with pytest.raises(ValueError, match="loggers must be a list"):
        us.train(config(tmp_path), env=OnlyOne(), loggers=3)
