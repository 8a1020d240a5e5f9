"""A user's own networks do all that the library's do: train, resume, load, evaluate, record, export, teach."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fresh import Fresh

import understudy as us
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.parts import (
    AdvisorConfig,
    BehaviorCloningConfig,
    RandomNetworkDistillationConfig,
    TeacherConfig,
)
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.config import CheckpointConfig, EvaluationConfig, LoggingConfig, TrainConfig
from understudy.runs.folder import CHECKPOINT_KIND
from understudy.tools.evaluate import evaluate
from understudy.tools.export import export_policy, read_safetensors
from understudy.tools.record import record
from understudy.types import CheckpointError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 16  # environment steps per iteration: 8 of 2 environments

NAMED: dict[str, tuple[str, us.PolicyConfig]] = {  # name -> (module to allow, config)
    "trunk": (
        "residual_trunk",
        us.PolicyConfig(trunk="residual_trunk:ResidualMLP", trunk_kwargs={"width": 8, "blocks": 1}),
    ),
    "one side": (
        "residual_trunk",
        us.PolicyConfig(trunk="residual_trunk:ResidualMLP", critic_trunk="mlp", hidden_sizes=(8,)),
    ),
    "recurrent policy": (
        "attention_memory",
        us.PolicyConfig(factory="attention_memory:AttentionPolicy", factory_kwargs={"horizon": 3, "width": 4}),
    ),
}
ENV = EnvConfig(id="PointMass", num_envs=2)


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def config(path: Path, policy: us.PolicyConfig | None = None, **changes: Any) -> TrainConfig:
    return dataclasses.replace(
        TrainConfig(
            total_steps=4 * STEPS,
            run_dir=str(path),
            device="cpu",
            env=ENV,
            policy=policy or us.PolicyConfig(hidden_sizes=(8,)),
            ppo=us.PPOConfig(num_steps=8, epochs=1, minibatches=2, warmup_steps=0),
            evaluation=EvaluationConfig(episodes=0),
            checkpoint=CheckpointConfig(interval=2 * STEPS, reset_env=True, keep_last=9),
            logging=LoggingConfig(console=False, tensorboard=False),
        ),
        **changes,
    )


def state(run: us.Run) -> dict[str, Any]:
    return load_checkpoint(step_checkpoints(run.path / "checkpoints")[-1], CHECKPOINT_KIND)["state"]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def half_of(run: us.Run, folder: Path) -> Path:
    """The run as if it had been killed after its first checkpoint."""
    shutil.copytree(run.path, folder)
    for later in step_checkpoints(folder / "checkpoints")[1:]:
        later.unlink()
    return folder


def object_policy() -> us.Policy:
    import tensordict_modules as example

    env = ENV.make("cpu", 0)
    torch.manual_seed(5)
    sizes = env.observation_space["policy"].shape[0], env.action_space.shape[0]
    actor, critic = example.make_modules(*sizes, cells=8)
    policy: us.Policy = example.TensorDictPolicy(
        env.observation_space, env.action_space, us.PolicyConfig(critic_groups=("policy",)), actor=actor, critic=critic
    )
    return policy


@pytest.mark.parametrize("name", [*NAMED, "object"])
def test_resuming_equals_an_uninterrupted_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    allow, chosen = NAMED.get(name, ("", None))
    make: Callable[[], us.Policy | None] = object_policy if name == "object" else lambda: None
    whole = us.train(config(tmp_path / "whole", chosen), policy=make())
    half = half_of(whole, tmp_path / "half")
    continued = us.resume(half, policy=make(), allow=(allow,))
    assert same(state(whole), state(continued))


@pytest.mark.parametrize("name", [*NAMED, "object"])
def test_captured_or_not_makes_no_difference(name: str, tmp_path: Path) -> None:
    results = []
    for mode in ("eager", "trace"):
        ppo = us.PPOConfig(num_steps=8, epochs=1, minibatches=2, capture=mode)  # type: ignore[arg-type]
        policy = object_policy() if name == "object" else None
        chosen = config(tmp_path / mode, None if name == "object" else NAMED[name][1], ppo=ppo)
        results.append(us.train(chosen, policy=policy).policy.state_dict())
    for key, x in results[0].items():
        torch.testing.assert_close(results[1][key], x, rtol=1e-4, atol=1e-6)


def test_loaded_in_a_fresh_process_they_act_the_same(tmp_path: Path, fresh: Fresh) -> None:
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\nimport torch, understudy as us\n"
    expected = []
    for name, (allow, chosen) in NAMED.items():
        run = us.train(config(tmp_path / name, chosen, total_steps=STEPS))
        expected.append(str(run.policy.eval().act(torch.linspace(-1.0, 1.0, 12).view(3, 4))[0].tolist()))
        code += f"policy = us.load({str(run.path)!r}, allow=({allow!r},))\n"
        code += "print(policy.act(torch.linspace(-1.0, 1.0, 12).view(3, 4))[0].tolist())\n"
    done = fresh("-c", code)
    assert done.stdout.strip().splitlines()[-len(expected) :] == expected


@pytest.mark.parametrize("name", [*NAMED, "object"])
def test_evaluated_recorded_and_exported(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    allow, chosen = NAMED.get(name, ("", None))
    run = us.train(config(tmp_path / "run", chosen, total_steps=STEPS), policy=None if chosen else object_policy())
    assert evaluate(run.policy, env=ENV, episodes=2).episodes == 2
    if chosen is not None:
        with pytest.raises(CheckpointError, match=allow):
            record(str(tmp_path / "x.npz"), run=run.path, episodes=1)
        assert record(str(tmp_path / "x.npz"), run=run.path, episodes=1, allow=(allow,)).episodes == 1
    # the export compares the file with the policy on a thousand rows and, with a state, over a hundred steps
    # one side's actor is the trunk's; the next test is about a memory in ONNX
    for kind in (*(["onnx"] if name in ("trunk", "object") else []), "torchscript", "safetensors"):
        path = export_policy(run.policy, tmp_path / kind, kind)  # type: ignore[arg-type]
    given = None if chosen else object_policy()
    if chosen is not None:
        with pytest.raises(CheckpointError, match=allow):
            read_safetensors(path)
    again = read_safetensors(path, allow=(allow,), policy=given)
    assert same(dict(again.state_dict()), dict(run.policy.state_dict()))


def test_an_exported_memory_remembers_over_many_steps(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import attention_memory as example

    env = EnvConfig(id="Remember-v0", num_envs=1).make("cpu", 0)
    torch.manual_seed(0)
    policy = example.AttentionPolicy(env.observation_space, env.action_space, horizon=4, width=8).eval()
    path = export_policy(policy, tmp_path / "memory.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours, theirs = None, torch.zeros(1, policy.state_size).numpy()
    for step in range(40):  # the ring turns ten times
        obs = torch.randn(1, 2, generator=torch.Generator().manual_seed(step))
        expected, ours = policy.act(obs, ours)
        found, theirs = session.run(None, {"obs/policy": obs.numpy(), "state_in": theirs})
        assert int(found[0]) == int(expected[0])
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["trunk", "recurrent policy"])
def test_it_teaches_and_is_taught(name: str, tmp_path: Path) -> None:
    allow, chosen = NAMED[name]
    teacher = us.train(config(tmp_path / "teacher", chosen, total_steps=STEPS))
    part = {"teacher": TeacherConfig(checkpoints=(str(teacher.path),), target="l1")}
    with pytest.raises(CheckpointError, match=allow):
        us.train(config(tmp_path / "refused", parts=part))
    student = us.train(config(tmp_path / "ours", parts=part, allow_imports=(allow,)))
    assert student.metrics[-1]["teacher/distance"] > 0.0
    with pytest.raises(CheckpointError, match=allow):
        us.resume(student.path, total_steps=8 * STEPS)
    assert us.resume(student.path, total_steps=5 * STEPS, allow=(allow,)).env_steps == 5 * STEPS
    own = us.train(config(tmp_path / "own", chosen, parts=part))  # named by the training itself
    assert own.metrics[-1]["teacher/distance"] > 0.0
    with pytest.raises(CheckpointError, match=allow):
        us.train(config(tmp_path / "start", start_from=str(teacher.path)))


@pytest.mark.parametrize("name", ["trunk", "recurrent policy", "object"])
def test_the_parts_work_on_it(name: str, tmp_path: Path) -> None:
    chosen = NAMED.get(name, ("", None))[1]
    played = us.train(config(tmp_path / "expert", total_steps=STEPS))
    record(str(tmp_path / "demos.npz"), run=played.path, episodes=2)
    demos = {"demonstrations": str(tmp_path / "demos.npz"), "batch_size": 16}
    parts: dict[str, Any] = {
        "curiosity": RandomNetworkDistillationConfig(),
        "cloning": BehaviorCloningConfig(coef=Schedule.parse("linear:1:0"), sequence_length=4, l2_coef=1e-3, **demos),
    }
    if name != "object":  # which gives no latent "actor"
        parts["advisor"] = AdvisorConfig(use_rollout_labels=False, sequence_length=4, **demos)
    run = us.train(config(tmp_path / "run", chosen, parts=parts), policy=None if chosen else object_policy())
    assert {f"{part}/loss" for part in ("cloning",)} <= set(run.metrics[-1])
    assert all(torch.isfinite(x).all() for x in run.policy.state_dict().values())
