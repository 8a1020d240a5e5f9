"""`Runner` in the place of rsl_rl's `OnPolicyRunner`: what the scripts of mjlab and Isaac Lab do with it."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tests.interop.rsl_rl_simulator import Simulator

import understudy as us
from understudy.interop.rsl_rl import Runner
from understudy.types import CheckpointError

SIZES = {"policy": 5, "critic": 7}


def train_cfg(**changes: Any) -> dict[str, Any]:
    """What a script hands over: a configuration of rsl_rl 5 with the script's own keys in it."""
    return {
        "seed": 3,
        "device": "cpu",
        "class_name": "OnPolicyRunner",
        "num_steps_per_env": 8,
        "max_iterations": 4,
        "save_interval": 2,
        "experiment_name": "stub",
        "run_name": "",
        "logger": "tensorboard",
        "resume": False,
        "load_run": ".*",
        "load_checkpoint": "model_.*.pt",
        "clip_actions": None,
        "obs_groups": {"actor": ["policy"], "critic": ["policy", "critic"]},
        "actor": {"class_name": "MLPModel", "hidden_dims": [16], "distribution_cfg": {"std_type": "log"}},
        "critic": {"class_name": "MLPModel", "hidden_dims": [16]},
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 2},
        **changes,
    }


RECURRENT = {"class_name": "RNNModel", "rnn_type": "gru", "rnn_hidden_dim": 8, "hidden_dims": [8]}


def weights(runner: Runner) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in runner.alg.policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_training_script(tmp_path: Path) -> None:
    """As `isaaclab/scripts/reinforcement_learning/rsl_rl/train.py` and mjlab's: construct, log, learn."""
    cfg, log_dir = train_cfg(), tmp_path / "stub" / "2025-01-01"
    before = copy.deepcopy(cfg)
    (log_dir / "params").mkdir(parents=True)  # mjlab writes its configuration there first
    env = Simulator(4, SIZES)
    runner = Runner(env, cfg, log_dir=str(log_dir), device="cpu")
    runner.add_git_repo_to_log(__file__)
    start = weights(runner)
    runner.learn(num_learning_iterations=cfg["max_iterations"], init_at_random_ep_len=True)
    assert cfg == before
    assert not same(start, weights(runner))
    assert runner.current_learning_iteration == 3
    assert sorted(x.name for x in log_dir.glob("model_*.pt")) == ["model_0.pt", "model_2.pt", "model_3.pt"]
    assert (log_dir / "git").is_dir() == (Path(us.__file__).parents[2] / ".git").exists()
    rows = us.runs.metrics.read_metrics(log_dir / "metrics.jsonl")
    assert len(rows) == 4
    assert rows[-1]["Loss/value"] == rows[-1]["ppo/value_loss"]
    assert {"Loss/surrogate", "Loss/learning_rate", "Train/mean_reward", "Perf/total_fps"} <= set(rows[-1])
    assert rows[-1]["Episode_Reward/near"] == rows[-1]["env/Episode_Reward/near"]
    policy = us.load(log_dir)
    expected = policy.act(TensorDict({"policy": env.obs["policy"]}, batch_size=[4]))[0]
    assert torch.equal(runner.get_inference_policy(device="cpu")(env.get_observations()), expected)
    runner.learn(1)  # goes on
    assert runner.current_learning_iteration == 4
    assert (log_dir / "model_4.pt").is_file()


def test_a_playing_script(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer environments, no log_dir, only the actor (mjlab) or everything (Isaac Lab)."""
    trained = Runner(Simulator(4, SIZES), train_cfg(), str(tmp_path / "run"))
    trained.learn(1)
    file = str(tmp_path / "run" / "model_0.pt")
    env = Simulator(2, SIZES)
    for options in ({"load_cfg": {"actor": True}, "strict": True, "map_location": "cpu"}, {}):
        runner = Runner(env, train_cfg(), device="cpu")
        with caplog.at_level(logging.WARNING):
            assert runner.load(file, **options) == {}
        assert same(weights(runner), weights(trained))
        assert runner.current_learning_iteration == 0
        with torch.inference_mode():
            actions = runner.get_inference_policy(device=env.device)(env.get_observations())
        assert actions.shape == (2, 2)
    assert sum("only its policy is loaded" in record.message for record in caplog.records) == 1
    runner.export_policy_to_jit(str(tmp_path / "exported"))
    jit = torch.jit.load(tmp_path / "exported" / "policy.pt")
    torch.testing.assert_close(jit(env.obs["policy"])[0], actions)
    pytest.importorskip("onnxruntime")
    runner.export_policy_to_onnx(path=str(tmp_path / "exported"), filename="policy.onnx")
    assert (tmp_path / "exported" / "policy.onnx").is_file()


def test_a_resumed_training_goes_on(tmp_path: Path) -> None:
    first = Runner(Simulator(4, SIZES), train_cfg(), str(tmp_path / "first"))
    first.learn(3)
    first.save(str(tmp_path / "by_hand.pt"), infos={"level": 7})
    second = Runner(Simulator(4, SIZES), train_cfg(), str(tmp_path / "second"))
    assert second.load(str(tmp_path / "by_hand.pt")) == {"level": 7}
    assert same(weights(second), weights(first))
    assert second.alg.learning_rate == first.alg.learning_rate
    second.learn(1)
    assert second.current_learning_iteration == 3
    assert [row["step"] for row in us.runs.metrics.read_metrics(tmp_path / "second" / "metrics.jsonl")] == [4 * 8 * 4]
    with pytest.raises(ValueError, match="holds another training: choose another log_dir"):
        Runner(Simulator(4, SIZES), train_cfg(), str(tmp_path / "first")).learn(1)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write log_dir"):
        Runner(Simulator(4, SIZES), train_cfg(), str(tmp_path / "file")).learn(1)
    with pytest.raises(ValueError, match="num_learning_iterations must be at least 1, got 0"):
        second.learn(0)
    foreign = tmp_path / "model_1.pt"
    torch.save({"actor_state_dict": {}, "iter": 1}, foreign)
    with pytest.raises(CheckpointError, match=r"model_1\.pt"):
        second.load(str(foreign))


def test_the_normalisers_first_statistics_cost_no_iteration(tmp_path: Path) -> None:
    cfg = train_cfg()
    cfg["actor"]["obs_normalization"] = cfg["critic"]["obs_normalization"] = True
    runner = Runner(Simulator(4, SIZES), cfg, str(tmp_path / "run"))
    runner.learn(2)
    runner.learn(1)
    assert runner.current_learning_iteration == 2
    assert len(us.runs.metrics.read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


def test_a_subclass_may_change_how_models_are_saved(tmp_path: Path) -> None:
    saved = []

    class Own(Runner):
        def save(self, path: str, infos: dict[str, Any] | None = None) -> None:
            super().save(path, {"counter": 1})
            saved.append(Path(path).name)

    own = Own(Simulator(4, SIZES), train_cfg(), str(tmp_path / "run"))
    own.learn(3)
    assert saved == ["model_0.pt", "model_2.pt", "model_2.pt"]  # the last one at the end, as there
    assert own.load(str(tmp_path / "run" / "model_2.pt")) == {"counter": 1}


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = Runner(Simulator(4, SIZES), {k: x for k, x in train_cfg(logger="wandb").items() if k != "max_iterations"})
    runner.learn(1)  # without an account at W&B
    assert not list(tmp_path.iterdir())


class Young(Simulator):
    """All episodes begin together."""

    def __init__(self) -> None:
        super().__init__(64, SIZES)
        self.episode_length_buf = torch.zeros(64, dtype=torch.long)
        self.ages: list[torch.Tensor] = []

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        self.ages.append(self.episode_length_buf)
        return super().step(actions)


@pytest.mark.parametrize("asked", [False, True])
def test_episodes_begin_at_random_ages_where_that_is_asked_for(asked: bool) -> None:
    env = Young()
    runner = Runner(env, train_cfg())
    runner.learn(1, init_at_random_ep_len=asked)
    assert (len(env.ages[0].unique()) > 3) == asked
    env.episode_length_buf = torch.zeros(64, dtype=torch.long)
    runner.learn(1, init_at_random_ep_len=asked)
    assert (len(env.ages[8].unique()) > 3) == asked


def test_a_memory_is_kept_between_calls_and_forgotten_where_episodes_end() -> None:
    env = Simulator(3, SIZES)
    runner = Runner(env, train_cfg(actor=RECURRENT, critic=RECURRENT))
    policy, obs = runner.get_inference_policy(), env.get_observations()
    first = policy(obs)
    second = policy(obs)
    assert not torch.equal(first, second)
    policy.reset(torch.tensor([1, 0, 0]))
    third = policy(obs)
    assert torch.equal(third[0], first[0])
    assert not torch.equal(third[1], first[1])
    policy.reset()
    assert torch.equal(policy(obs), first)
    assert policy(Simulator(2, SIZES).obs).shape == (2, 2)  # other environments: from the start


def test_a_distillation_takes_its_teacher_from_the_first_file(tmp_path: Path) -> None:
    Runner(Simulator(4, {"policy": 7}), train_cfg(obs_groups={}), str(tmp_path / "teacher")).learn(1)
    cfg = train_cfg(algorithm={"class_name": "Distillation", "num_learning_epochs": 2, "gradient_length": 4})
    cfg |= {"class_name": "DistillationRunner", "obs_groups": {"student": ["policy"], "teacher": ["critic"]}}
    cfg["student"] = cfg.pop("actor")
    cfg["teacher"] = cfg.pop("critic")
    runner = Runner(Simulator(4, SIZES), cfg, str(tmp_path / "student"))
    with pytest.raises(ValueError, match="has no teacher yet: load"):
        runner.learn(1)
    runner.load(str(tmp_path / "teacher" / "model_0.pt"))
    runner.learn(2)
    rows = us.runs.metrics.read_metrics(tmp_path / "student" / "metrics.jsonl")
    assert rows[-1]["teacher/distance"] > 0.0
    again = Runner(Simulator(4, SIZES), cfg)
    again.load(str(tmp_path / "student" / "model_1.pt"))
    assert same(weights(again), weights(runner))
    assert again.current_learning_iteration == 1


class Words(Simulator):
    """st_rl's environment: a tensor and `infos`, with two frames of style features, and a NaN in the reference."""

    def get_observations(self) -> Any:
        return self.obs["policy"], self.infos()

    def reset(self) -> Any:
        return self.get_observations()

    def infos(self) -> dict[str, Any]:
        motion = self.obs["ref_motion"].clone()
        motion[0, 0] = torch.nan
        observations = {"critic": self.obs["critic"], "ref_obs": self.obs["ref_obs"].view(-1, 2, 3)}
        return {"observations": observations, "ref_motion": motion}

    def step(self, actions: torch.Tensor) -> Any:
        _, reward, dones, extras = super().step(actions)
        extras.pop("final_obs")
        return self.obs["policy"], reward, dones, {**extras, **self.infos()}


@pytest.mark.filterwarnings("ignore:the environment does not give final observations")
def test_the_words_of_st_rls_environments(tmp_path: Path) -> None:
    amp = {"hidden_dims": [8], "style_reward_coef": 1.0, "task_reward_lerp": 0.5, "discriminator_grad_pen": 10.0}
    policy = {"class_name": "AmpActorCritic", "actor_hidden_dims": [8], "critic_hidden_dims": [8]}
    cfg = {"num_steps_per_env": 8, "max_iterations": 2, "policy": {**policy, "amp_discriminator": amp}}
    runner = Runner(
        Words(4), {**cfg, "algorithm": {"class_name": "APPO", "mimic_loss_coef": 0.1}}, str(tmp_path / "run")
    )
    runner.learn(2)
    assert runner.alg.policy.critic_groups == ("critic",)
    row = us.runs.metrics.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    names = ("expert_loss", "policy_loss", "grad_len_loss")
    assert all(row[f"Loss/discriminator_{name}"] > 0.0 for name in names)  # NaN is not
    assert row["Loss/discriminator_grad_len_loss"] == pytest.approx(10.0 * row["motion/penalty"])
    assert row["Loss/mimic_loss"] > 0.0
    assert row["Episode_Reward/style_reward"] == row["motion/style_reward"]
