"""Recording: whole episodes, as many as asked for, of runs and of scripted experts, that can be learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy import cli
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.write import Episode
from understudy.data.motions.files import read_motions
from understudy.envs.registry import EnvConfig, make_env
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.tasks.point_mass import PointMass
from understudy.tools.clips import step_time, vector_reader
from understudy.tools.play import PolicyActor
from understudy.tools.record import record, record_episodes

LONG = ("--ppo.num-steps", "16", "--ppo.minibatches", "2", "--ppo.epochs", "1", "--policy.hidden-sizes", "8")
TINY = (*LONG, "--total-steps", "64", "--evaluation.episodes", "0", "--logging.no-tensorboard", "--logging.no-console")


def test_episodes_are_what_the_environment_played(scripted_env: Any) -> None:
    env = scripted_env(2, ends=lambda t, n: "terminated" if (t + n) % 3 == 2 else "")
    actions = iter(torch.randn(30, 2, 2, generator=torch.Generator().manual_seed(0)))
    episodes = record_episodes(env, lambda obs, is_first: next(actions), 3, seed=5)
    assert env.seeds == [5]
    # environment 0 owes two episodes of three steps, environment 1 one of two (its first ends at t = 1)
    assert [episode.length for episode in episodes] == [3, 3, 2]
    first, second, third = episodes
    seen = torch.stack([obs["policy"] for obs in env.seen])
    assert torch.equal(torch.as_tensor(first.observations["policy",][:3]), seen[:3, 0])
    final = env.steps[2].final_obs["policy"][0]  # not the next episode's first observation
    assert torch.equal(torch.as_tensor(first.observations["policy",][3]), final)
    assert torch.equal(torch.as_tensor(second.observations["policy",][0]), seen[3, 0])
    assert first.rewards.tolist() == pytest.approx([float(env.steps[t].reward[0]) for t in range(3)])
    assert torch.equal(torch.as_tensor(third.actions), torch.stack(env.actions)[:2, 1])
    assert (third.terminated, third.truncated) == (True, False)


def test_rows_on_which_an_environment_resets_are_no_steps(scripted_env: Any) -> None:
    def reset_row(t: int, step: Any) -> Any:
        return step._replace(valid=torch.tensor([t % 4 != 3]))

    env = scripted_env(1, ends=lambda t, n: "truncated" if t % 4 == 2 else "", edit=reset_row)
    episodes = record_episodes(env, lambda obs, is_first: torch.zeros(1, 2), 2, seed=0)
    assert [episode.length for episode in episodes] == [3, 3]
    assert torch.equal(torch.as_tensor(episodes[1].observations["policy",][0]), env.seen[4]["policy"][0])


def test_episodes_with_nan_are_left_out_and_it_is_said_whose_they_are(scripted_env: Any, caplog: Any) -> None:
    def bad(t: int, step: Any) -> Any:
        return step._replace(reward=step.reward * float("nan")) if t in broken else step

    def play() -> list[Episode]:
        env = scripted_env(1, ends=lambda t, n: "terminated" if t % 3 == 2 else "", edit=bad)
        return record_episodes(env, lambda obs, is_first: torch.zeros(1, 2), 2, seed=0)

    broken = {1}
    assert len(play()) == 1
    assert "left out 1 of 2 episodes" in caplog.text
    assert "(episode 0, step 1: rewards is nan): they come from the environment" in caplog.text
    broken = {1, 4}
    with pytest.raises(ValueError, match=r"left out 2 of 2 .*fix the environment"):
        play()


@pytest.mark.parametrize("bad", [float("nan"), 1e38])
@pytest.mark.parametrize("what", ["obs", "reward", "final"])
def test_only_sound_episodes_are_recorded(scripted_env: Any, what: str, bad: float) -> None:
    def edit(t: int, step: Any) -> Any:
        if t == 2 and what == "final":
            step.final_obs["policy"][0, 1] = bad
        elif t == 1 and what == "obs":
            step.obs["policy"][0, 1] = bad
        elif t == 1:
            step.reward[0] = bad if what == "reward" else step.reward[0]
        return step

    env = scripted_env(1, ends=lambda t, n: "terminated" if t % 3 == 2 else "", edit=edit)
    episodes = record_episodes(env, lambda obs, _: torch.zeros(1, 2), 2, seed=0)
    assert len(episodes) == 1  # the first one was left out
    seen = env.seen[3]["policy"][0]
    assert torch.equal(torch.as_tensor(episodes[0].observations["policy",][0]), seen)


def test_a_policy_with_a_memory_starts_each_episode_afresh() -> None:
    env = PointMass(3, max_episode_steps=5)
    torch.manual_seed(0)
    policy = ActorCritic(env.observation_space, env.action_space, PolicyConfig(memory="gru", memory_size=4))
    actor = PolicyActor(policy)
    obs = env.reset(0)
    first = actor(obs, torch.ones(3, dtype=torch.bool))
    actor(obs, torch.zeros(3, dtype=torch.bool))
    again = actor(obs, torch.tensor([True, False, True]))
    assert torch.equal(again[[0, 2]], first[[0, 2]])
    assert not torch.equal(again[1], first[1])


def test_a_run_is_recorded_and_learnt_from(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    run = tmp_path / "run"
    assert cli.main(["train", "ppo", "--env.id", "PointMass", *TINY, "--run-dir", str(run)]) == 0
    assert cli.main(["record", str(run), "--episodes", "3", "--output", "point/mass-v0"]) == 0
    out = capsys.readouterr().out
    assert "3 episodes" in out
    from minari import load_dataset

    dataset = load_dataset("point/mass-v0")
    assert dataset.total_episodes == 3
    metadata = dataset.storage.metadata
    assert metadata["env"] == "PointMass"
    assert metadata["expert"] == "run"
    scores = [episode.rewards.sum() for episode in dataset]
    assert metadata["score"] == pytest.approx(np.mean(scores))
    clone = tmp_path / "clone"
    words = ["train", "bc", "--demonstrations", "point/mass-v0", "--offline.epochs", "2", "--run-dir", str(clone)]
    assert cli.main([*words, "--evaluation.episodes", "2", "--logging.no-console", "--logging.no-tensorboard"]) == 0
    assert "id: PointMass" in (clone / "config.yaml").read_text()  # where the demonstrations were made
    assert cli.main(["evaluate", str(clone), "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"] == 2


def test_a_run_is_recorded_as_motion_clips(tmp_path: Path, capsys: Any) -> None:
    run, clips = tmp_path / "run", tmp_path / "clips.npz"
    assert cli.main(["train", "ppo", "--env.id", "PointMass", *TINY, "--run-dir", str(run)]) == 0
    words = ["record", str(run), "--motion", "--episodes", "2", "--output", str(clips)]
    assert cli.main(words) == cli.USER_ERROR
    assert "give it as --step-time" in capsys.readouterr().err
    assert cli.main([*words, "--step-time", "0.1"]) == 0
    assert f"motion clips: {clips}" in capsys.readouterr().out
    first, second = read_motions(clips)
    assert (first.name, first.frame_time, first.loop) == ("run episode 0", 0.1, "clamp")
    demos = record(str(tmp_path / "demos.npz"), run=run, episodes=2)  # the same seed, hence the same episodes
    with np.load(demos.path) as data:
        observed = {key: data[f"observations/{key}"] for key in ("critic", "policy")}
    assert first.fields == tuple(f"{key}[{i}]" for key, x in observed.items() for i in range(x.shape[1]))
    frames = np.concatenate((first.frames, second.frames))
    assert frames == pytest.approx(np.concatenate(list(observed.values()), axis=1))  # with the final observation


def test_mujoco_tasks_tell_their_step_time() -> None:
    pytest.importorskip("mujoco")
    split = EnvConfig(id="HalfCheetah-v5", num_envs=1, segments={"policy": {"position": 8, "velocity": 9}})
    for config in (EnvConfig(id="HalfCheetah-v5", num_envs=1), split):
        env = config.make()
        assert step_time(env) == pytest.approx(0.05)
        env.close()
    assert step_time(PointMass(1)) is None
    names = vector_reader(spaces.Dict(policy=spaces.Box(-1, 1, (2,)), image=spaces.Box(0, 255, (4, 4, 3)))).names
    assert names == ["policy[0]", "policy[1]"]
    with pytest.raises(ValueError, match="have no vectors"):
        vector_reader(spaces.Dict(level=spaces.Discrete(3)))


def test_what_cannot_be_recorded_as_motion(tmp_path: Path, capsys: Any) -> None:
    words = ["record", "--motion", "--output", "x.npz"]
    for wrong in (words, [*words, "--expert", "LightHouse-v0"], [*words, "run", "--format", "npz"]):
        assert cli.main(wrong) == cli.USER_ERROR
        assert "--motion plays a run" in capsys.readouterr().err
    assert cli.main(["record", "run", "--output", "x.npz", "--step-time", "0.1"]) == cli.USER_ERROR
    assert "it goes with --motion" in capsys.readouterr().err
    (tmp_path / "there.npz").touch()
    for output, message in ((tmp_path / "there.npz", "exists: choose"), (tmp_path / "a-v0", "go into a .npz file")):
        with pytest.raises(ValueError, match=message):
            record(output, run=tmp_path, file_format="motion")
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        record(tmp_path / "a.npz", run=tmp_path, episodes=0, file_format="motion")


def test_a_scripted_expert_is_recorded(tmp_path: Path) -> None:
    recorded = record(str(tmp_path / "doors.npz"), expert_of=EnvConfig(id="PoisonedDoors-v0"), episodes=6)
    env = make_env("PoisonedDoors-v0", 1)
    demos = Demonstrations.load(recorded.path, observation_space=env.observation_space, action_space=env.action_space)
    drawn = demos.gather(demos.rows)
    assert torch.equal(drawn["executed_action"], drawn["obs", "expert_action"])
    assert demos.num_trajectories == 6
    assert float(demos.returns.mean()) == pytest.approx(recorded.score)


def test_what_cannot_be_recorded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    point = EnvConfig(id="PointMass")
    with pytest.raises(ValueError, match="no scripted expert: its observations have the groups"):
        record(str(tmp_path / "a.npz"), expert_of=point)
    with pytest.raises(ValueError, match="name a run to record, or an environment"):
        record(str(tmp_path / "a.npz"))
    (tmp_path / "there.npz").touch()
    with pytest.raises(ValueError, match="exists: choose another --output"):
        record(str(tmp_path / "there.npz"), expert_of=point)
    with pytest.raises(ValueError, match="is not a Minari id"):
        record("no version", expert_of=point)
    (tmp_path / "minari" / "there-v0").mkdir(parents=True)
    with pytest.raises(ValueError, match="raise its version"):
        record("there-v0", expert_of=point)
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        record(str(tmp_path / "a.npz"), expert_of=point, episodes=0)


def test_demonstrations_for_a_recipe_without_a_use_for_them(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["train", "ppo", "--demonstrations", "x.npz"]) == cli.USER_ERROR
    assert "ppo takes no --demonstrations" in capsys.readouterr().err
    assert cli.main(["train", "bc", "--demonstrations"]) == cli.USER_ERROR
    assert "Missing argument" in capsys.readouterr().err
    assert cli.main(["train", "bc", "--run-dir", str(tmp_path / "bc"), "--env.id", "CartPole-v1"]) == cli.USER_ERROR
    assert "no demonstrations were named" in capsys.readouterr().err
