"""Policies in ONNX and TorchScript files, and functions: the same answers, in every place where a policy may act."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

import understudy as us
from understudy.cli import main
from understudy.envs.registry import EnvConfig
from understudy.nn.acting import ActingPolicy
from understudy.nn.policy import ActorCritic
from understudy.nn.protocol import Policy
from understudy.ppo.config import PPOConfig
from understudy.runs.config import LoggingConfig
from understudy.tasks.point_mass import PointMass
from understudy.tools.export import export_policy
from understudy.tools.play import PolicyActor
from understudy.tools.record import record
from understudy.types import CheckpointError

TRUSTED = ("torch.jit",)


class Recurrent(nn.Module):
    """rsl_rl's and Isaac Lab's exported LSTM: the state is in buffers of one row."""

    def __init__(self, inputs: int = 4, actions: int = 2) -> None:
        super().__init__()
        self.mlp = nn.Linear(5, actions)
        self.rnn = nn.LSTM(inputs, 5, 2)
        self.register_buffer("hidden_state", torch.zeros(2, 1, 5))
        self.register_buffer("cell_state", torch.zeros(2, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        x, (h, c) = self.rnn(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.mlp(x.squeeze(0))


class Steering(nn.Module):
    """Steers PointMass to its goal."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        weight = torch.tensor([[-3.0, 0.0, -2.0, 0.0], [0.0, -3.0, 0.0, -2.0]])
        self.layer.load_state_dict({"weight": sign * weight, "bias": torch.zeros(2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def saved_onnx(path: Path, *, rows: int | str = 1, baked: bool = False, bias: float = 0.0) -> Path:
    """actions = -3 obs[:, :2] + bias + state, state_out = state_in + 1, as other programs name them.

    `baked`: the graph itself holds the one row, not only its signature.
    """
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.zeros((4, 2), np.float32)
    weight[0, 0] = weight[1, 1] = -3.0
    weights = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.float32([bias]), "b")]
    weights.append(onnx.numpy_helper.from_array(np.float32([1.0]), "one"))
    weights.append(onnx.numpy_helper.from_array(np.int64([1 if baked else -1, 2]), "shape"))
    nodes = [
        helper.make_node("MatMul", ["obs", "w"], ["x"]),
        helper.make_node("Add", ["x", "b"], ["y"]),
        helper.make_node("Reshape", ["h_in", "shape"], ["h"]),
        helper.make_node("Add", ["y", "h"], ["actions"]),
        helper.make_node("Add", ["h_in", "one"], ["h_out"]),
    ]
    info = helper.make_tensor_value_info
    state = [1, rows, 2] if rows == 1 else [rows, 2]
    inputs = [info("obs", float32, [rows, 4]), info("h_in", float32, state)]
    outputs = [info("actions", float32, [rows, 2]), info("h_out", float32, state)]
    graph = helper.make_graph(nodes, "policy", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


# ------------------------------------------------------------------ the same answers


@pytest.mark.parametrize(("suffix", "memory"), [("onnx", "gru"), ("pt", "gru"), ("pt", "none"), ("safetensors", "gru")])
def test_our_own_exports_act_as_the_policy(tmp_path: Path, suffix: str, memory: Any) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    space = spaces.Dict(
        {
            "policy": spaces.Dict({"speed": spaces.Box(-9, 9, (3,)), "place": spaces.Box(-9, 9, (2,))}),
            "critic": spaces.Box(-9, 9, (4,)),
        }
    )
    config = us.PolicyConfig(memory=memory, memory_size=4, hidden_sizes=(8,))
    policy = ActorCritic(space, spaces.MultiDiscrete([3, 4], start=[1, 0]), config).eval()
    kinds: dict[str, Any] = {"onnx": "onnx", "pt": "torchscript", "safetensors": "safetensors"}
    path = export_policy(policy, tmp_path / f"policy.{suffix}", kinds[suffix])
    loaded, state, ours = us.load(path, allow=TRUSTED), None, None
    assert loaded.action_space == policy.action_space
    for _ in range(5):
        obs = TensorDict({"policy": {"speed": 3 * torch.randn(50, 3), "place": torch.randn(50, 2)}}, [50])
        (action, state), (expected, ours) = loaded.act(obs, state), policy.act(obs, ours)
        assert (action != expected).double().mean() < 0.01


@torch.no_grad()
def test_a_torchscript_with_a_state_of_one_row_acts_for_many(tmp_path: Path) -> None:
    module = Recurrent()
    policy = us.load(script(module, tmp_path / "policy.pt"), allow=TRUSTED)
    assert policy.state_size == 20
    state, expected = None, None
    for step in range(100):
        obs = torch.randn(6, 4)
        action, state = policy.act(obs, state)
        out, expected = module.rnn(obs.unsqueeze(0), expected)
        torch.testing.assert_close(action, module.mlp(out[0]), atol=1e-5, rtol=0)
        done = torch.rand(6) < 0.2
        assert state is not None
        state = state.masked_fill(done.unsqueeze(-1), 0.0)
        expected = tuple(x.masked_fill(done.view(1, 6, 1), 0.0) for x in expected)
        assert step < 1 or not torch.equal(action[0], action[1])


@pytest.mark.parametrize(("rows", "baked"), [(1, False), (1, True), ("batch", False)])
def test_an_onnx_file_of_one_row_acts_for_many(tmp_path: Path, rows: int | str, baked: bool) -> None:
    policy = us.load(saved_onnx(tmp_path / "policy.onnx", rows=rows, baked=baked, bias=0.5))
    assert isinstance(policy, ActingPolicy)
    assert (policy.run.__name__ == "rows") == baked  # row by row only where nothing else works
    assert policy.state_size == 2
    obs, state = torch.randn(7, 4), None
    for step in range(3):
        action, state = policy.act(obs, state)
        torch.testing.assert_close(action, -3.0 * obs[:, :2] + 0.5 + step, atol=1e-6, rtol=0)


# ------------------------------------------------------------------ every place


def steer(obs: TensorDict, is_first: Tensor) -> Any:
    """Steers PointMass to its goal."""
    return (-3.0 * obs["policy"][:, :2] - 2.0 * obs["policy"][:, 2:4]).clamp(-1.0, 1.0).numpy()


def sources(tmp_path: Path) -> dict[str, Any]:
    return {
        "torchscript": str(script(Steering(), tmp_path / "steering.pt")),
        "module:function": "tests.interop.test_exported:steer",
    }


ALLOWED = (*TRUSTED, "tests.interop.test_exported")


@pytest.mark.parametrize("kind", ["torchscript", "module:function"])
def test_it_is_evaluated_and_recorded(tmp_path: Path, kind: str) -> None:
    source, env = sources(tmp_path)[kind], EnvConfig(id="PointMass", num_envs=4)
    expected = us.evaluate(steer, env=env, episodes=6)
    found = us.evaluate(source, env=env, episodes=6, allow=ALLOWED)
    assert found.returns == pytest.approx(expected.returns, abs=1e-4)
    assert found.mean_length < 100
    recorded = record(tmp_path / "demos.npz", run=source, env=env, episodes=3, allow=ALLOWED)
    assert recorded.episodes == 3
    with np.load(tmp_path / "demos.npz") as demos:
        assert np.abs(demos["actions"]).max() <= 1.0  # the file's own exceed the space
    with pytest.raises(ValueError, match=r"does not say where to play it: give --env\.id"):
        us.evaluate(source, allow=ALLOWED)


def test_a_function_knows_where_episodes_begin() -> None:
    seen = []

    def counting(obs: TensorDict, is_first: Tensor) -> Tensor:
        seen.append(is_first.clone())
        return torch.zeros(len(is_first), 2)

    us.evaluate(counting, env=PointMass(2, max_episode_steps=3), episodes=2)
    assert torch.stack(seen).tolist() == [[True, True], [False, False], [False, False]]


def student(tmp_path: Path, **options: Any) -> us.TrainConfig:
    return us.TrainConfig(
        env=EnvConfig(id="PointMass", num_envs=4),
        policy=us.PolicyConfig(hidden_sizes=(8,)),
        ppo=PPOConfig(num_steps=4, minibatches=1, epochs=1, surrogate_coef=0.0, value_coef=0.0),
        total_steps=16,
        run_dir=str(tmp_path / "run"),
        evaluation=us.EvaluationConfig(episodes=0),
        logging=LoggingConfig(console=False, tensorboard=False),
        allow_imports=ALLOWED,
        **options,
    )


@pytest.mark.parametrize("kind", ["torchscript", "module:function"])
def test_it_teaches(tmp_path: Path, kind: str) -> None:
    source = sources(tmp_path)[kind]
    teacher = us.parts.TeacherConfig(checkpoints=(source,), target="mse_sum", teacher_forcing=1.0)
    run = us.train(student(tmp_path, parts={"teacher": teacher}))
    assert run.metrics[-1]["teacher/distance"] > 0.0
    for options, said in {
        "target": "kl",
        "label": "sample",
    }.items():
        refused = us.parts.TeacherConfig(checkpoints=(source,), **{"target": "real", options: said})
        with pytest.raises(ValueError, match=rf"{options} '{said}' needs .* only gives actions"):
            us.train(student(tmp_path / options, parts={"teacher": refused}))
    latent = us.parts.TeacherConfig(checkpoints=(source,), latents={"actor": "actor"})
    with pytest.raises(ValueError, match="has no latent 'actor'"):
        us.train(student(tmp_path / "latent", parts={"teacher": latent}))


def test_it_answers_daggers_questions(tmp_path: Path) -> None:
    dagger = us.DaggerConfig(
        expert=sources(tmp_path)["torchscript"], rounds=1, episodes_per_round=1, steps_per_round=20
    )
    parts = {"cloning": us.parts.BehaviorCloningConfig()}
    run = us.train(student(tmp_path, parts=parts, offline=us.OfflineConfig(epochs=1, dagger=dagger)))
    with np.load(run.path / "demonstrations" / "round_000.npz") as demos:
        obs, actions = demos["observations/policy"], demos["actions"]
    assert len(obs) >= len(actions) > 0
    assert np.abs(actions).max() <= 1.0


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(script(Steering(), tmp_path / "steering.pt"))
    words = ["evaluate", file, "--env.id", "PointMass", "--episodes", "2", "--json", "--allow-import", "torch.jit"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["env"] == "PointMass"
    assert main(["record", file, "--env.id", "PointMass", "--output", str(tmp_path / "d.npz"), *words[-2:]]) == 0
    assert "return" in capsys.readouterr().out
    assert main(["evaluate", file, *words[-2:]]) == 2
    assert "--env.id" in capsys.readouterr().err
    assert main(["evaluate", file, "--env.backend", "gymnasium", *words[-2:]]) == 2
    assert "--env.backend goes with --env.id" in capsys.readouterr().err


# ------------------------------------------------------------------ refusals


def test_a_program_runs_only_with_consent(tmp_path: Path) -> None:
    file = script(Steering(), tmp_path / "policy.pt")
    for allow in ((), ("torch.jitter",), ("tor",)):
        with pytest.raises(CheckpointError, match=r"TorchScript program.*--allow-import torch\.jit"):
            us.load(file, allow=allow)
    us.load(file, allow=("torch",))
    with pytest.raises(CheckpointError, match="--allow-import tests"):
        us.load("tests.interop.test_exported:steer", env=PointMass(1))


@torch.no_grad()
def test_what_does_not_fit_the_environment_is_named(tmp_path: Path) -> None:
    wide = us.load(script(nn.Linear(5, 2), tmp_path / "wide.pt"), allow=TRUSTED)
    with pytest.raises(ValueError, match=r"the policy sees 'policy' as Box.*\(5,\).*env\.groups=\{'policy'"):
        us.evaluate(wide, env=PointMass(1))
    three = us.load(script(nn.Linear(4, 3), tmp_path / "three.pt"), allow=TRUSTED)
    with pytest.raises(ValueError, match=r"acts in Box.*\(3,\).*takes Box.*\(2,\)"):
        us.evaluate(three, env=PointMass(1))


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Counter(nn.Module):
    """Remembers what no state of ours can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1.0
        return self.layer(x) + self.steps


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sum(1)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (Two, "", "forward takes x, y; one tensor"),
        (Counter, "", r"remembers something in steps \(1,\)"),
        (Flat, "", "not actions"),
        (nn.ReLU, "", "say how many, FILE,inputs=48"),
        (Steering, ",inputs=9", r"takes none of \[9\]"),
        (Steering, ",input=4", "no option 'input'; did you mean inputs"),
    ],
)
def test_other_programs_are_refused(tmp_path: Path, make: Callable[[], nn.Module], options: str, said: str) -> None:
    file = script(make(), tmp_path / "policy.pt")
    with pytest.raises(CheckpointError, match=said):
        us.load(f"{file}{options}", allow=TRUSTED)


def test_damaged_onnx_files_are_named(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "a.onnx").write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match=r"a\.onnx is damaged"):
        us.load(tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match="have 3 rows"):
        us.load(saved_onnx(tmp_path / "three.onnx", rows=3))


def test_weights_outside_the_folder_of_an_onnx_file_are_not_read(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(bytes(32))
    inside = tmp_path / "inside"
    inside.mkdir()
    model = onnx.load(saved_onnx(inside / "policy.onnx"))
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "../secret")
    weight.ClearField("raw_data")
    (inside / "policy.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"secret|external"):
        us.load(inside / "policy.onnx")


def test_vectors_are_put_side_by_side() -> None:
    """A policy that sees one vector, where the environment has it in two groups or in segments."""
    space = spaces.Dict({"policy+height": spaces.Box(-9, 9, (5,))})
    policy: Policy = ActorCritic(
        space, spaces.Box(-1, 1, (2,)), us.PolicyConfig(actor_groups=("policy+height",), normalize_observations=False)
    )
    env: Any = PointMass(3)
    env.observation_space = spaces.Dict(
        {
            "policy": spaces.Dict({"a": spaces.Box(-9, 9, (1,)), "b": spaces.Box(-9, 9, (2,))}),
            "height": spaces.Box(-9, 9, (2,)),
        }
    )
    obs = TensorDict({"policy": {"a": torch.randn(3, 1), "b": torch.randn(3, 2)}, "height": torch.randn(3, 2)}, [3])
    action = PolicyActor(policy, env=env)(obs, torch.ones(3, dtype=torch.bool))
    whole = torch.cat((obs["policy", "a"], obs["policy", "b"], obs["height"]), -1)
    torch.testing.assert_close(action, policy.act(TensorDict({"policy+height": whole}, [3]))[0])


def test_nothing_but_actions_is_given(tmp_path: Path) -> None:
    policy = us.load(script(Steering(), tmp_path / "policy.pt"), allow=TRUSTED)
    assert isinstance(policy, ActingPolicy)
    obs = policy.blank_observation(2)
    out = policy(obs)
    assert out.value.tolist() == [0.0, 0.0]
    for ask in (
        lambda: out.distribution.params,
        lambda: out.distribution.log_prob(torch.zeros(2, 2)),
        out.distribution.entropy,
        lambda: out.distribution.kl(out.distribution),
        lambda: policy.act(obs, deterministic=False),
    ):
        with pytest.raises(ValueError, match="gives actions and no"):
            ask()
