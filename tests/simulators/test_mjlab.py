"""The whole library in mjlab, on a CPU; `make test-simulators` runs this in mjlab's own virtual environment."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import understudy as us
from understudy.cli.compose import parse_training
from understudy.envs import EnvConfig, SimulatorAdapter, list_envs, make_env
from understudy.runs.checkpoint import latest_checkpoint, read_checkpoint
from understudy.runs.folder import CHECKPOINT_KIND, RunFolder
from understudy.tools import film
from understudy.tools.export import export_policy
from understudy.tools.record import record

pytest.importorskip("mjlab")

TASK = "mjlab:Mjlab-Cartpole-Balance"
STEPS = 16
SHORT = ("--env.kwargs", "episode_length_s", "0.8")  # 16 steps


def train(folder: Path, *words: str) -> us.Run:
    """`understudy train WORDS`, in this process."""
    parse_training([*words, "--run-dir", str(folder), "--logging.no-console", "--logging.no-tensorboard"])()
    return us.Run(folder, RunFolder(folder).read_config(), us.load(folder), 0)


@pytest.fixture(scope="module")
def env() -> Any:
    """One simulator of 8 short cartpoles."""
    built = make_env(TASK, 8, env_kwargs={"episode_length_s": 0.8}, seed=1)
    yield built
    built.close()


def test_the_tasks_are_listed() -> None:
    listed = [entry.id for entry in list_envs()]
    assert TASK in listed
    assert "mjlab:Mjlab-Velocity-Flat-Unitree-Go1" in listed
    with pytest.raises(ValueError, match=r"mjlab has no task 'Mjlab-Cartpole': did you mean Mjlab-Cartpole-"):
        make_env("mjlab:Mjlab-Cartpole", 2)
    with pytest.raises(ValueError, match=r"no option 'scene.num_env': did you mean num_envs"):
        make_env(TASK, 2, env_kwargs={"scene.num_env": 3})


def test_groups_spaces_and_time(env: SimulatorAdapter) -> None:
    assert {name: space.shape for name, space in env.observation_space.spaces.items()} == {
        "policy": (5,),
        "critic": (5,),
    }
    assert env.terms["policy",] == ("cart_pos", "pole_angle", "pole_angle", "cart_vel", "pole_vel")
    assert env.step_time == pytest.approx(0.05)
    assert env.metadata() == {}  # it commands a force, not joint positions


def test_manual_resets_play_the_same_episodes_and_show_how_they_ended(env: SimulatorAdapter) -> None:
    auto = SimulatorAdapter(env.env, exact_time_limits=False)
    actions = 0.2 * torch.randn(STEPS + 4, 8, 1, generator=torch.Generator().manual_seed(0))
    played = []
    for adapter in (auto, env):
        adapter.reset(seed=5)
        adapter.raw.episode_length_buf = torch.arange(8)  # they do not end together
        played.append([step._replace(obs=step.obs.clone()) for step in map(adapter.step, actions)])
    for t, (theirs, ours) in enumerate(zip(*played)):
        assert torch.equal(theirs.truncated, ours.truncated), t
        torch.testing.assert_close(theirs.obs["policy"], ours.obs["policy"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theirs.reward, ours.reward, rtol=1e-5, atol=1e-6)
        assert theirs.final_obs is None
    ended = next(step for step in played[1] if step.truncated.any())
    row = ended.truncated.nonzero()[0, 0]
    assert ended.final_obs is not None
    assert ended.obs["policy"][row, 0].abs() < 0.11  # it starts within 0.1 of the middle
    assert not torch.equal(ended.final_obs["policy"][row], ended.obs["policy"][row])
    assert env.raw.cfg.auto_reset


def test_a_nan_is_named_and_the_training_goes_on(env: SimulatorAdapter, caplog: pytest.LogCaptureFixture) -> None:
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(16,)))
    ppo = us.PPO(env, policy, us.PPOConfig(num_steps=STEPS, minibatches=4, epochs=2), seed=1)
    ppo.iterate()
    env.raw.sim.data.qvel[3, 0] = torch.nan
    ppo.iterate()
    assert "observation policy (cart_" in caplog.text
    assert "of environment 3 is not finite at step" in caplog.text
    assert torch.isfinite(torch.tensor(ppo.iterate()["reward/task"]))


def test_a_run_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("ppo", "--env.id", TASK, *SHORT, "--env.num-envs", "8", "--seed", "1", "--evaluation.episodes", "8")
    run = train(tmp_path / "run", *words, "--total-steps", "512", "--checkpoint.interval", "256")
    config = run.config
    assert (config.ppo.num_steps, config.ppo.epochs, config.ppo.minibatches) == (32, 5, 4)  # the task's own numbers
    assert config.ppo.desired_kl == 0.01
    assert config.policy.hidden_sizes == (64, 64)
    metrics = run.metrics
    assert 8 < metrics[-1]["episode/length"] <= STEPS  # the first ones began at random ages
    assert "env/Episode_Reward/smooth_reward" in metrics[-1]
    state = read_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"), CHECKPOINT_KIND).state
    assert state["env_counters"] == {"common_step_counter": state["counters"]["env_steps"] // 8}
    # resumed: the counter goes on
    resumed = us.resume(tmp_path / "run", total_steps=768)
    state = read_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"), CHECKPOINT_KIND).state
    assert state["env_counters"] == {"common_step_counter": resumed.env_steps // 8}
    # scored, recorded, exported, filmed
    for name in ("LEAST_SECONDS", "FILM_SECONDS"):
        monkeypatch.setattr(film, name, 0.2)
    result = us.evaluate(tmp_path / "run", episodes=4, video=tmp_path / "film.mp4")
    assert result.lengths == (STEPS,) * 4
    assert (tmp_path / "film.mp4").exists() or "EGL" in str(result.video_error) or "GL" in str(result.video_error)
    assert record(tmp_path / "demos.npz", run=tmp_path / "run", episodes=4).steps == 4 * STEPS
    export_policy(us.load(tmp_path / "run"), tmp_path / "policy.onnx")


@pytest.mark.skipif("WITH_ROBOTS" not in os.environ, reason="a minute of compiling: WITH_ROBOTS=1 make test-simulators")
def test_a_robot_tells_what_it_takes_to_run_its_policy(tmp_path: Path) -> None:
    import onnx
    from mjlab.rl.exporter_utils import get_base_metadata, list_to_csv_str

    env = make_env("mjlab:Mjlab-Velocity-Flat-Unitree-Go1", 2)
    assert isinstance(env, SimulatorAdapter)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    told = env.metadata()
    path = export_policy(policy, tmp_path / "policy.onnx", robot=json.loads(json.dumps(told)))
    props = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    theirs = get_base_metadata(env.raw, "")
    assert set(theirs) - {"run_path"} <= set(props)
    assert props["joint_names"] == list_to_csv_str(theirs["joint_names"])
    assert props["observation_names"].startswith("base_lin_vel,")
    for key in ("joint_stiffness", "default_joint_pos", "action_scale"):
        numbers = [float(x) for x in props[key].split(",")]
        assert numbers == pytest.approx([float(x) for x in list_to_csv_str(theirs[key]).split(",")], abs=1e-3)
    assert props["observation_terms_clip"].split(",")[0] == "-inf;inf"
    env.close()


@pytest.mark.skipif("WITH_ROBOTS" not in os.environ, reason="a minute of compiling: WITH_ROBOTS=1 make test-simulators")
def test_the_deployer_sees_and_moves_the_robot_as_mjlab_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One second of the same policy in both, from the same state; mjlab randomises friction, masses and encoders."""
    import mjlab
    import mujoco

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from deploy_in_mujoco import Pilot, Robot

    env = make_env(
        "mjlab:Mjlab-Velocity-Flat-Unitree-Go1", 1, env_kwargs={"observations.actor.enable_corruption": False}, seed=1
    )
    assert isinstance(env, SimulatorAdapter)
    config = us.PolicyConfig(hidden_sizes=(32,), action_bound="none", action_scaling="off")
    torch.manual_seed(3)
    policy = us.ActorCritic(env.observation_space, env.action_space, config)
    with torch.no_grad():
        policy.head.linear.weight.mul_(30.0)  # so that it moves
    path = export_policy(policy, tmp_path / "policy.onnx", robot=json.loads(json.dumps(env.metadata())))
    pilot = Pilot(path)
    xmls = Path(mjlab.__file__).parent / "asset_zoo" / "robots" / "unitree_go1" / "xmls"
    robot = Robot(xmls / "go1.xml", pilot.contract)
    obs, state = env.reset(seed=1), env.raw.sim.data
    robot.data.qpos[:], robot.data.qvel[:] = state.qpos[0].numpy(), state.qvel[0].numpy()
    mujoco.mj_forward(robot.model, robot.data)
    first = pilot.observe(robot, obs["policy"][0, -3:].numpy()) - obs["policy"][0].numpy()
    bias = first[9:21]  # of the encoders
    first[9:21] = 0.0
    assert abs(first).max() < 1e-5
    for _ in range(50):
        robot.move(pilot(robot, obs["policy"][0, -3:].numpy()))
        robot.step()
        obs = env.step(torch.tensor(pilot.action, dtype=torch.float32)[None]).obs
    last = pilot.observe(robot, obs["policy"][0, -3:].numpy()) - obs["policy"][0].numpy()
    assert abs(last[9:21] - bias).max() < 0.1  # rad
    assert abs(robot.data.qpos[2] - float(state.qpos[0, 2])) < 0.02  # m


def test_a_run_that_resets_at_checkpoints_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = us.TrainConfig(
        env=EnvConfig(id=TASK, num_envs=8, kwargs={"episode_length_s": 0.8}),
        ppo=us.PPOConfig(num_steps=STEPS, minibatches=4, epochs=2),
        evaluation=us.EvaluationConfig(episodes=0),
        checkpoint=us.CheckpointConfig(interval=256, reset_env=True, keep_last=9),
        logging=us.LoggingConfig(console=False, tensorboard=False),
        total_steps=512,
        run_dir=str(tmp_path / "whole"),
    )
    whole = us.train(config).policy.state_dict()
    half = us.train(dataclasses.replace(config, total_steps=256, run_dir=str(tmp_path / "half")))
    parts = us.resume(half.path, total_steps=512).policy.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_other_recipes(tmp_path: Path) -> None:
    few = ("--env.id", TASK, *SHORT, "--env.num-envs", "8", "--total-steps", "384", "--evaluation.episodes", "0")
    teacher = train(tmp_path / "teacher", "ppo", *few)
    student = train(tmp_path / "student", "tppo", *few, "--parts.teacher.checkpoints", str(teacher.path))
    assert "teacher/loss" in student.metrics[-1] or any("teacher/" in name for name in student.metrics[-1])
    estimating = train(tmp_path / "estimator", "estimator-ppo", *few)
    assert any(name.startswith("estimator/") for name in estimating.metrics[-1])
    clips = record(tmp_path / "clips.npz", run=teacher.path, episodes=4, file_format="motion", frame_time=0.05)
    styled = train(tmp_path / "style", "appo", *few, "--parts.motion.motions.files", str(clips.path))
    assert any(name.startswith("motion/") for name in styled.metrics[-1])
