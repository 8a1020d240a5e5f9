"""Starting from another policy, or from part of it: what is taken, that it answers alike, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.interop.test_rsl_rl_checkpoints import Model
from tests.interop.test_stable_baselines3 import networks, save
from torch import Tensor, nn

import understudy as us
from understudy.cli import main
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import ActorCritic
from understudy.ppo.config import PPOConfig
from understudy.runs.config import EvaluationConfig, LoggingConfig, StartConfig, TrainConfig
from understudy.training.start import start_from
from understudy.types import CheckpointError

STILL = PPOConfig(num_steps=8, epochs=1, minibatches=1, surrogate_coef=0.0, value_coef=0.0, entropy_coef=0.0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def rsl_rl_file(
    path: Path, memory: str | None = None, normalized: bool = False, sizes: tuple[int, int] = (4, 6)
) -> tuple[str, Model, Model]:
    """What rsl_rl saves of a policy for PointMass, as a source with its activation; actor and critic."""
    actor, critic = Model(sizes[0], 2, memory, normalized), Model(sizes[1], 1, memory, normalized)
    own = actor.state_dict() | {"distribution.std_param": torch.tensor([0.25, 0.5])}
    torch.save({"actor_state_dict": own, "critic_state_dict": critic.state_dict()}, path)
    return f"{path},activation=elu", actor, critic


def training(tmp_path: Path, **options: Any) -> TrainConfig:
    given = {
        "env": EnvConfig(id="PointMass", num_envs=4),
        "ppo": STILL,
        "total_steps": 32,
        "run_dir": str(tmp_path / "run"),
        "evaluation": EvaluationConfig(episodes=0),
        "logging": LoggingConfig(console=False, tensorboard=False),
        "allow_imports": ("torch.jit",),
    }
    return TrainConfig(**(given | options))


def like(source: str, **options: Any) -> us.PolicyConfig:
    return dataclasses.replace(us.load(source).config, **options)


def segmented() -> spaces.Dict:
    """PointMass's observations, the actor's cut into components."""

    def box(size: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)

    return spaces.Dict({"policy": spaces.Dict({"place": box(3), "speed": box(1)}), "critic": box(6)})


@pytest.mark.parametrize("memory", [None, "lstm", "gru"])
@torch.no_grad()
def test_an_rsl_rl_policy_answers_alike_in_our_networks(tmp_path: Path, memory: str | None) -> None:
    source, actor, critic = rsl_rl_file(tmp_path / "model_1.pt", memory, normalized=True)
    policy = ActorCritic(segmented(), spaces.Box(-np.inf, np.inf, (2,)), like(source))
    start_from(policy, training(tmp_path, start_from=source))
    state = None
    for _ in range(100 if memory else 1):
        x, y = 3.0 * torch.randn(1000, 4), 3.0 * torch.randn(1000, 6)
        obs = TensorDict({"policy": {"place": x[:, :3], "speed": x[:, 3:]}, "critic": y}, [1000])
        out = policy(obs, state)
        state = out.state
        torch.testing.assert_close(out.distribution.mode(), actor(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.value, critic(y).squeeze(-1), atol=1e-5, rtol=0)
    for key in policy.input_keys:
        obs[key] = policy.raw(key, torch.randn_like(obs[key]))
    before = policy.run_actor(obs)[0].params
    policy.update_normalizers(obs)  # they go on from 4096 rows: no jump
    assert float((policy.run_actor(obs)[0].params - before).abs().max()) < 0.05


def test_a_training_starts_from_it(tmp_path: Path) -> None:
    source, actor, critic = rsl_rl_file(tmp_path / "model_1.pt")
    run = us.train(training(tmp_path, start_from=source, policy=like(source)))
    found = run.policy.state_dict()
    torch.testing.assert_close(found["actor.mlp.layers.0.weight"], actor.state_dict()["mlp.0.weight"])
    torch.testing.assert_close(found["value_head.bias"], critic.state_dict()["mlp.4.bias"])
    torch.testing.assert_close(found["head.std.log_std"].exp(), torch.tensor([0.25, 0.5]))


def test_the_command_line_takes_the_networks_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, actor, _ = rsl_rl_file(tmp_path / "model_1.pt")
    run = str(tmp_path / "run")
    words = ["train", "ppo", "--start-from", source, "--env.id", "PointMass", "--total-steps", "1", "--run-dir", run]
    words += ["--start.std", "0.3", "--start.critic", "fresh", "--evaluation.episodes", "0", "--env.num-envs", "4"]
    words += ["--ppo.num-steps", "4", "--ppo.minibatches", "1", "--ppo.critic-warmup", "1"]
    assert main(words) == 0, capsys.readouterr().err
    policy = us.load(run)
    assert policy.config.hidden_sizes == (8, 6)
    assert policy.config.activation == "elu"
    found = policy.state_dict()
    torch.testing.assert_close(found["actor.mlp.layers.0.weight"], actor.state_dict()["mlp.0.weight"])  # held still
    torch.testing.assert_close(found["head.std.log_std"].exp(), torch.full((2,), 0.3))


def test_a_stable_baselines3_zip_starts_a_training(tmp_path: Path) -> None:
    cartpole = us.make_env("CartPole-v1", 1)
    actor, _, state = networks(2)
    state = {name: x[:, :4] if name.endswith("net.0.weight") else x for name, x in state.items()}
    path = save(tmp_path / "ppo.zip", state, cartpole.observation_space["policy"], cartpole.action_space)
    env = EnvConfig(id="CartPole-v1", num_envs=4)
    run = us.train(training(tmp_path, start_from=str(path), env=env, policy=like(str(path))))
    torch.testing.assert_close(run.policy.state_dict()["head.linear.bias"], actor.state_dict()["2.bias"])


# ------------------------------------------------------------------ part of a policy


def test_the_critic_comes_from_elsewhere(tmp_path: Path) -> None:
    source, actor, critic = rsl_rl_file(tmp_path / "model_1.pt", normalized=True)
    teacher, _, other = rsl_rl_file(tmp_path / "model_2.pt", normalized=True)
    space, actions = us.make_env("PointMass", 1).observation_space, spaces.Box(-np.inf, np.inf, (2,))
    values = {}
    for option in ("same", "fresh", teacher):
        policy = ActorCritic(space, actions, like(source))
        untrained = policy.value_head.weight.clone()
        start_from(policy, training(tmp_path, start_from=source, start=StartConfig(critic=option)))
        x = torch.randn(100, 4)
        torch.testing.assert_close(policy.act(x)[0], actor(x).detach(), atol=1e-5, rtol=0)
        y = torch.randn(100, 6)
        values[option] = policy.value(TensorDict({"critic": y, "policy": x}, [100])).detach()
        assert torch.equal(policy.value_head.weight, untrained) == (option == "fresh")
    torch.testing.assert_close(values["same"], critic(y).squeeze(-1).detach(), atol=10.0, rtol=0)
    torch.testing.assert_close(values[teacher], other(y).squeeze(-1).detach(), atol=1e-5, rtol=0)


def test_the_actor_is_held_while_the_critic_warms_up(tmp_path: Path) -> None:
    source, _, _ = rsl_rl_file(tmp_path / "model_1.pt", normalized=False)
    ppo = PPOConfig(num_steps=8, epochs=2, minibatches=2, entropy_coef=0.01, critic_warmup=2, desired_kl=0.01)
    config = training(tmp_path, start_from=source, policy=like(source), ppo=ppo)
    weights, rates = [], []
    for iterations in (1, 2, 3):
        config = dataclasses.replace(config, total_steps=32 * iterations, run_dir=str(tmp_path / str(iterations)))
        run = us.train(config)
        weights.append(run.policy.state_dict())
        rates.append(run.metrics[-1]["ppo/learning_rate"])
    start = us.load(source).state_dict()
    actor = [name for name in start if name.startswith(("actor.", "head."))]
    for state in weights[:2]:
        assert all(torch.equal(state[name], start[name]) for name in actor)
        assert not torch.equal(state["value_head.weight"], start["value_head.weight"])
    assert not any(torch.equal(weights[2][name], start[name]) for name in actor)
    assert rates[0] == rates[1] == pytest.approx(3e-4)  # no KL to follow


def test_a_shared_trunk_is_held_with_the_actor(tmp_path: Path) -> None:
    ppo = PPOConfig(num_steps=8, minibatches=1, critic_warmup=1)
    shared = us.PolicyConfig(shared_trunk=True, hidden_sizes=(4,), normalize_observations=False)
    first = us.train(training(tmp_path, run_dir=str(tmp_path / "a"), policy=shared))
    run = us.train(training(tmp_path, policy=shared, ppo=ppo, start_from=str(first.path)))
    before, after = first.policy.state_dict(), run.policy.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"value_head.weight", "value_head.bias"}
    with pytest.raises(ValueError, match="weight_decay moves"):
        PPOConfig(critic_warmup=1, optimizer=us.OptimizerConfig(weight_decay=0.1))


# ------------------------------------------------------------------ refusals


def test_what_does_not_answer_alike_is_named(tmp_path: Path) -> None:
    source, _, _ = rsl_rl_file(tmp_path / "model_1.pt", normalized=True)
    narrow, _, _ = rsl_rl_file(tmp_path / "model_2.pt", normalized=True, sizes=(3, 6))
    torch.save({"student_state_dict": torch.load(tmp_path / "model_1.pt")["actor_state_dict"]}, tmp_path / "model_3.pt")
    student = f"{tmp_path / 'model_3.pt'},activation=elu"
    cases = {
        r"distribution differs by .*policy\.activation is 'elu' there": (source, like(source, activation="tanh")),
        r"action differs.*policy\.action_bound is 'none' there": (source, like(source, action_bound="tanh")),
        r"needs policy\.normalize_observations True": (source, like(source, normalize_observations=False)),
        r"of another shape.*policy=us\.load": (source, us.PolicyConfig(hidden_sizes=(8, 7))),
        r"of another shape: actor\.mlp\.layers\.0": (narrow, like(narrow)),
        r"has no critic that fits: set start\.critic to 'fresh'": (student, like(student)),
    }
    for said, (start, policy) in cases.items():
        with pytest.raises(CheckpointError, match=said):
            us.train(training(tmp_path, start_from=start, policy=policy))
        assert not (tmp_path / "run").exists()


class Steering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Steering()).save(str(tmp_path / "policy.pt"))
    with pytest.raises(CheckpointError, match="only acts: a training starts from weights"):
        us.train(training(tmp_path, start_from=str(tmp_path / "policy.pt")))
    with pytest.raises(ValueError, match="name what to start from"):
        training(tmp_path, start=StartConfig(std=0.3))
    discrete = {"env": EnvConfig(id="CartPole-v1", num_envs=4)}
    run = us.train(training(tmp_path, **discrete))
    again = training(
        tmp_path, **discrete, start_from=str(run.path), start=StartConfig(std=0.3), run_dir=str(tmp_path / "b")
    )
    with pytest.raises(CheckpointError, match=r"start\.std resets one learned number per action"):
        us.train(again)
