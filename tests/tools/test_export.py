"""Exported policies: equal to the policy, described, refused where they would not be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import CNNConfig, EncoderConfig
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.runs.folder import read_robot
from understudy.tools import export
from understudy.tools.export import (
    METADATA,
    DeployedPolicy,
    ExportError,
    check_same_actions,
    export_policy,
    read_safetensors,
)

HAS_ONNX = all(__import__("importlib.util").util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
FORMATS = ["torchscript", "safetensors", *(["onnx"] if HAS_ONNX else [])]


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


SPACE = spaces.Dict(
    {
        "policy": spaces.Dict({"pose": box(3), "speed": box(2)}),
        "critic": box(4),
        "terrain": spaces.MultiDiscrete([3, 2]),
        "image": spaces.Box(0, 255, (9, 8), np.uint8),
    }
)
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
SMALL = EncoderConfig(cnn=CNNConfig(channels=(4,), kernel_sizes=(3,), strides=(2,), paddings=(0,), hidden_sizes=(8,)))
POLICIES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "plain": (ACTIONS, {}),
    "three": (spaces.Box(-1.0, 1.0, (3,), np.float32), {"memory": "gru"}),
    "tanh": (ACTIONS, {"distribution": DistributionConfig(kind="tanh_gaussian")}),
    "beta": (ACTIONS, {"distribution": DistributionConfig(kind="beta")}),
    "discrete": (spaces.Discrete(4, start=1), {}),
    "multi discrete": (spaces.MultiDiscrete([3, 2]), {}),
    "bits": (spaces.MultiBinary(3), {}),
    "everything": (ACTIONS, {"actor_groups": ("policy", "terrain", "image"), "encoder": SMALL}),
    "lstm": (ACTIONS, {"memory": "lstm"}),
    "gru": (ACTIONS, {"memory": "gru", "memory_layers": 2}),
    "changes": (ACTIONS, {"memory": "gru", "memory_changes": 2.0}),
    "estimators": (
        ACTIONS,
        {
            "actor_groups": ("policy/pose",),
            "estimators": {
                "speed": EstimatorHeadConfig(targets=("policy/speed",), memory="gru", memory_size=4, replace_prob=0.5),
                "hidden": EstimatorHeadConfig(targets=("critic",), inputs=("policy",)),
            },
        },
    ),
}


def build(name: str = "plain") -> ActorCritic:
    actions, options = POLICIES[name]
    torch.manual_seed(0)
    policy = ActorCritic(SPACE, actions, PolicyConfig(**{"hidden_sizes": (8,), "memory_size": 6, **options}))
    with torch.no_grad():
        policy.head.linear.weight.normal_()  # actions that differ from each other
        for normalizer in policy.normalizers.values():
            normalizer.update(3.0 + 2.0 * torch.randn(50, normalizer.size))  # type: ignore[operator, call-overload]
    return policy


def metadata_of(path: Path, format: str) -> dict[str, Any]:
    if format == "torchscript":
        files = {METADATA: ""}
        torch.jit.load(str(path), _extra_files=files)
        return dict(json.loads(files[METADATA]))
    if format == "safetensors":
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            return dict(json.loads(file.metadata()[METADATA]))
    import onnx

    return dict(json.loads({p.key: p.value for p in onnx.load(str(path)).metadata_props}[METADATA]))


@pytest.mark.parametrize(
    ("name", "format"), [("plain", "torchscript"), *(("estimators", format) for format in FORMATS)]
)
def test_a_file_acts_as_the_policy_and_says_what_it_is(name: str, format: Any, tmp_path: Path) -> None:
    policy = build(name)  # a thousand inputs, one, and a hundred steps: compared while exporting
    path = export_policy(policy, tmp_path / "new" / "policy.file", format, task="Task-v0")
    assert [p.name for p in path.parent.iterdir()] == ["policy.file"]
    found = metadata_of(path, format)
    assert found["task"] == "Task-v0"
    names = [row["name"] for row in found["observations"]]
    assert names == (["obs/policy/pose"] if name == "estimators" else ["obs/policy/pose", "obs/policy/speed"])
    assert found["observations"][0] == {
        "name": "obs/policy/pose",
        "group": "policy",
        "component": "pose",
        "shape": [3],
        "dtype": "float32",
    }
    assert found["state_size"] == (4 if name == "estimators" else 0)
    assert found["action_space"]["high"] == [2.0, 1.0]
    assert policy.training


@pytest.mark.parametrize("name", POLICIES)
def test_every_kind_of_policy_goes_through(name: str, tmp_path: Path) -> None:
    export_policy(build(name), tmp_path / "policy.pt", "torchscript")


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra export")
@pytest.mark.parametrize("name", ["everything", "lstm", "discrete", "beta", "three"])
def test_onnx(name: str, tmp_path: Path) -> None:
    import onnxruntime

    policy = build(name)
    path = export_policy(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {x.name: x.shape for x in session.get_inputs()}
    assert all(shape[0] == "batch" for shape in shapes.values())
    recurrent = name in ("lstm", "three")
    assert ("state_in" in shapes) == recurrent
    obs = {"policy": {"pose": np.full(3, 4.0, np.float32), "speed": np.ones(2, np.float32)}}
    if name != "everything":
        feed = {f"obs/policy/{k}": v[None] for k, v in obs["policy"].items()}
        if recurrent:
            feed["state_in"] = np.zeros((1, policy.actor_state_size), np.float32)
        np.testing.assert_allclose(session.run(None, feed)[0][0], policy.act(obs)[0], rtol=1e-5, atol=1e-6)


ROBOT = {
    "joint_names": ["hip", "knee"],
    "joint_stiffness": [20.5, 1.0 / 3.0],
    "observation_terms_clip": [[-float("inf"), 2.0], [0, 1]],
    "step_dt": 0.02,
}


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_robot_has_to_know_goes_into_the_file(format: Any, tmp_path: Path) -> None:
    path = export_policy(build(), tmp_path / "policy", format, robot=ROBOT)
    assert metadata_of(path, format)["robot"] == json.loads(json.dumps(ROBOT))
    if format == "onnx":
        import onnx

        props = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert props["joint_names"] == "hip,knee"
        assert props["joint_stiffness"] == "20.5,0.333333"
        assert props["observation_terms_clip"] == "-inf;2,0;1"
        assert props["step_dt"] == "0.02"


def test_robots_are_read_from_the_run_or_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert read_robot(run) == {}
    (run / "robot.json").write_text('{"step_dt": 0.02, "low": -Infinity}')
    assert read_robot(run)["step_dt"] == 0.02
    assert read_robot(run / "checkpoints" / "best.pt")["step_dt"] == 0.02
    own = tmp_path / "own.json"
    own.write_text('{"step_dt": 0.1}')
    assert read_robot(run, own) == {"step_dt": 0.1}
    own.write_text("[1]")
    with pytest.raises(ValueError, match=r"own\.json.*it is not an object"):
        read_robot(run, own)
    with pytest.raises(ValueError, match=r"none\.json"):
        read_robot(run, tmp_path / "none.json")


@pytest.mark.parametrize("format", [x for x in FORMATS if x != "safetensors"])
def test_broken_numbers_count_as_0_as_they_do_in_act(format: str, tmp_path: Path) -> None:
    policy, runtime = build("plain"), {"torchscript": export._write_torchscript}
    if format == "onnx":
        runtime["onnx"] = export._write_onnx
    act = runtime[format](policy.eval(), tmp_path / "policy.file", "{}")
    torch.manual_seed(1)
    obs = policy.blank_observation(6)
    for key in policy.sensor_keys:
        obs[key] = 3.0 + torch.randn(obs[key].shape)
    obs["policy", "pose"][:4, 1] = torch.tensor([float("nan"), float("inf"), 1e30, -1e8])
    obs["policy", "pose"][5, 1] = obs["policy", "speed"][5, 0] = 1e5  # large, but possible
    (action,) = act([obs[key] for key in policy.sensor_keys])
    torch.testing.assert_close(action, policy.act(obs)[0])
    torch.testing.assert_close(action[:4], policy.act(obs.apply(lambda x: torch.where(x.abs() < 1e6, x, 0.0)))[0][:4])
    assert torch.isfinite(action).all()


def test_safetensors_come_back_as_a_policy(tmp_path: Path) -> None:
    policy = build("estimators")
    again = read_safetensors(export_policy(policy, tmp_path / "policy.safetensors", "safetensors"))
    assert again.config == policy.config
    for name, x in policy.state_dict().items():
        assert torch.equal(x, again.state_dict()[name])
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="not a policy"):
        read_safetensors(tmp_path / "other.safetensors")


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(DeployedPolicy):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            action, *rest = super().forward(*inputs)
            return (action + 1e-3, *rest)

    policy = build("lstm")
    wrong = Wrong(policy)
    monkeypatch.setattr(export, "_write_torchscript", lambda *_: lambda inputs: list(wrong(*inputs)))
    with pytest.raises(ExportError, match=r"differs from the policy by 0\.001"):
        export_policy(policy, tmp_path / "policy.pt", "torchscript")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match="gives"):
        check_same_actions(policy, lambda inputs: [x[:, :1] for x in wrong(*inputs)])


def test_a_file_that_does_not_run_is_an_export_error() -> None:
    def broken(inputs: list[Tensor]) -> list[Tensor]:
        raise KeyError("state_in")

    with pytest.raises(ExportError, match="does not run on 1000 random inputs"):
        check_same_actions(build(), broken)


def test_a_state_that_is_not_reset_is_noticed() -> None:
    policy = build("gru")
    reference, kept = DeployedPolicy(policy), []

    def act(inputs: list[Tensor]) -> list[Tensor]:
        if kept and len(inputs[-1]) == 8:
            inputs = [*inputs[:-1], kept[-1]]
        out = list(reference(*inputs))
        if len(inputs[-1]) == 8:
            kept.append(out[1].detach())
        return out

    with pytest.raises(ExportError, match="in step"):
        check_same_actions(policy, act)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build()
    with pytest.raises(ValueError, match=r"format must be one of .* \(did you mean onnx\?\), got 'onx'"):
        export_policy(policy, tmp_path / "x", "onx")  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "understudy-rl\[export\]"'):
        export_policy(build(), tmp_path / "x")
    assert not list(tmp_path.iterdir())
