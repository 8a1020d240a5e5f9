"""Checkpoints of rsl_rl 2 to 5 and st_rl: the same answers here as there, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import understudy as us
from understudy.cli import main
from understudy.nn.distributions import DiagGaussian
from understudy.nn.policy import ActorCritic
from understudy.types import CheckpointError

OBS, CRITIC_OBS, ACTIONS, MEMORY = 7, 9, 3, 5


class Normalizer(nn.Module):
    """rsl_rl's EmpiricalNormalization, filled."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        var = torch.rand(1, size) * 3.0 + 0.1
        self.register_buffer("_mean", torch.randn(1, size))
        self.register_buffer("_var", var)
        self.register_buffer("_std", var.sqrt())
        self.register_buffer("count", torch.tensor(4096))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self._mean) / (self._std + 1e-2)


class Wrapped(nn.Module):
    """rsl_rl's RNN and Memory: the network is their attribute `rnn`."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](size, MEMORY, 2)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.state = self.rnn(x.unsqueeze(0), self.state)
        return y.squeeze(0)


class Model(nn.Module):
    """rsl_rl 4's and 5's MLPModel and RNNModel."""

    def __init__(self, size: int, outputs: int, memory: str | None, normalized: bool) -> None:
        super().__init__()
        self.obs_normalizer = Normalizer(size) if normalized else nn.Identity()
        self.rnn = Wrapped(memory, size) if memory else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(MEMORY if memory else size, 8), nn.ELU(), nn.Linear(8, 6), nn.ELU(), nn.Linear(6, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.rnn(self.obs_normalizer(x)))


def payload(version: int, actor: Model, critic: Model) -> dict[str, Any]:
    """What that version's runner saves."""
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
    rest = {"optimizer_state_dict": optimizer.state_dict(), "iter": 1500, "infos": None}
    own, other = actor.state_dict(), critic.state_dict()
    if version >= 4:
        std = torch.full((ACTIONS,), 0.5)
        own |= {"distribution.log_std_param": std.log()} if version == 5 else {"std": std}
        return {"actor_state_dict": own, "critic_state_dict": other, **rest}
    names = {"mlp.": "", "rnn.rnn.": "memory_a.rnn.", "obs_normalizer.": "actor_obs_normalizer."}
    model: dict[str, Any] = {"std": torch.full((ACTIONS,), 0.5)}
    kept: dict[str, Any] = {}
    for side, state in (("actor", own), ("critic", other)):
        names = {"mlp.": f"{side}.", "rnn.rnn.": f"memory_{side[0]}.rnn.", "obs_normalizer.": f"{side}_obs_normalizer."}
        for name, x in state.items():
            start = next(start for start in names if name.startswith(start))
            if start == "obs_normalizer." and version == 2:  # the runner's, beside the model
                place = "obs_norm_state_dict" if side == "actor" else "privileged_obs_norm_state_dict"
                kept.setdefault(place, {})[name.removeprefix(start)] = x
            else:
                model[names[start] + name.removeprefix(start)] = x
    return {"model_state_dict": model, **kept, **rest}


def agreement(policy: ActorCritic, mean: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of actions and values, over 1,000 observations, or 100 steps with a memory."""
    worst, state = 0.0, None
    for _ in range(100 if policy.recurrent else 1):
        obs = {"policy": 2.0 * torch.randn(1000, OBS), "critic": 2.0 * torch.randn(1000, CRITIC_OBS)}
        out = policy(TensorDict(obs, [1000]), state)
        state = out.state
        differences = (out.distribution.mode() - mean(obs["policy"]), out.value - value(obs["critic"]).squeeze(-1))
        worst = max(worst, *(float(x.abs().max()) for x in differences))
    return worst


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize(("memory", "normalized"), [(None, False), (None, True), ("lstm", True), ("gru", False)])
@torch.no_grad()
def test_a_checkpoint_answers_as_it_did(tmp_path: Path, version: int, memory: str | None, normalized: bool) -> None:
    actor, critic = (Model(*sizes, memory, normalized) for sizes in ((OBS, ACTIONS), (CRITIC_OBS, 1)))
    torch.save(payload(version, actor, critic), tmp_path / "model_1500.pt")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "agent.yaml").write_text("policy: {activation: elu}\nobs_groups: {policy: [policy]}\n")
    policy = us.load(tmp_path)  # the folder's newest
    assert isinstance(policy, ActorCritic)
    assert policy.has_critic
    assert policy.config.hidden_sizes == (8, 6)
    assert agreement(policy, actor, critic) < 1e-5
    out = policy.run_actor(policy.blank_observation(1))[0]
    assert isinstance(out, DiagGaussian)
    torch.testing.assert_close(out.log_std.exp(), torch.full((ACTIONS,), 0.5))


def test_against_rsl_rl(tmp_path: Path) -> None:
    models = pytest.importorskip("rsl_rl.models")
    obs = TensorDict({"actor": torch.randn(2, OBS), "critic": torch.randn(2, CRITIC_OBS)}, [2])
    groups = {"actor": ["actor"], "critic": ["critic"]}
    for options in ({}, {"rnn_type": "lstm", "rnn_hidden_dim": 8}, {"rnn_type": "gru", "rnn_hidden_dim": 8}):
        make = models.RNNModel if options else models.MLPModel
        noise = {"class_name": "GaussianDistribution", "init_std": 0.5}
        actor = make(obs, groups, "actor", ACTIONS, [8, 6], "elu", True, noise, **options)
        critic = make(obs, groups, "critic", 1, [8], "elu", True, **options)
        for model in (actor, critic):
            model.update_normalization(TensorDict({k: 3.0 * torch.randn(50, x.shape[1]) for k, x in obs.items()}, [50]))
            model.eval()
        states = {"actor_state_dict": actor.state_dict(), "critic_state_dict": critic.state_dict()}
        torch.save({**states, "iter": 2, "infos": None}, tmp_path / "model_2.pt")
        policy = us.load(f"{tmp_path / 'model_2.pt'},activation=elu")
        assert isinstance(policy, ActorCritic)
        with torch.no_grad():
            worst = agreement(policy, seen_by(actor, "actor"), seen_by(critic, "critic"))
        assert worst < 1e-5


def seen_by(model: Any, group: str) -> Callable[[Tensor], Tensor]:
    return lambda x: model(TensorDict({group: x}, [len(x)]))


def test_a_student_is_the_policy_of_a_distillation(tmp_path: Path) -> None:
    student, teacher = Model(OBS, ACTIONS, None, True), Model(CRITIC_OBS, ACTIONS, None, True)
    state = student.state_dict() | {"distribution.std_param": torch.ones(ACTIONS)}
    torch.save({"student_state_dict": state, "teacher_state_dict": teacher.state_dict()}, tmp_path / "model_9.pt")
    policy = us.load(f"{tmp_path / 'model_9.pt'},activation=elu")
    assert not policy.has_critic
    x = torch.randn(1000, OBS)
    torch.testing.assert_close(policy.act(x)[0], student(x).detach(), atol=1e-5, rtol=0)


def test_it_is_exported_for_a_robot(tmp_path: Path) -> None:
    file = f"{tmp_path / 'model_1.pt'},activation=elu"
    torch.save(payload(5, Model(OBS, ACTIONS, "gru", True), Model(CRITIC_OBS, 1, "gru", True)), tmp_path / "model_1.pt")
    robot = str(tmp_path / "go1.pt")
    assert main(["export", file, "--format", "torchscript", "--output", robot]) == 0
    policy, exported, states = us.load(file), us.load(robot, allow=("torch.jit",)), [None, None]
    assert main(["export", robot, "--output", robot, "--allow-import", "torch.jit"]) == 2  # it only acts
    for _ in range(3):
        obs = torch.randn(5, OBS)
        (x, states[0]), (y, states[1]) = policy.act(obs, states[0]), exported.act(obs, states[1])
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


def test_groups_and_tuples_of_the_configuration(tmp_path: Path) -> None:
    """mjlab writes Python's tuples, and calls its groups otherwise."""
    torch.save(payload(5, Model(OBS, 3, None, False), Model(CRITIC_OBS, 1, None, False)), tmp_path / "model_1.pt")
    (tmp_path / "params").mkdir()
    file = tmp_path / "params" / "agent.yaml"
    file.write_text(
        "actor:\n  activation: elu\n  hidden_dims: !!python/tuple\n  - 8\n  - 6\n"
        "obs_groups:\n  actor: !!python/tuple [actor, height_scan]\n  critic: !!python/tuple [critic]\n"
    )
    policy = us.load(tmp_path / "model_1.pt")
    assert [*policy.observation_space] == ["critic", "policy+height_scan"]
    file.write_text(file.read_text().replace("- 6", "- 7"))
    with pytest.raises(CheckpointError, match=r"hidden layers \[8, 6\], .*agent.yaml says \[8, 7\]"):
        us.load(tmp_path / "model_1.pt")
    file.write_text("actor: !!python/object/apply:os.system [echo]\n")
    with pytest.raises(CheckpointError, match=r"agent\.yaml"):
        us.load(tmp_path / "model_1.pt")


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["actor_state_dict"].pop(name)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no std": (without("std"), "no standard deviation.*ONNX"),
    "a layer is gone": (without("mlp.2.weight"), r"mlp\.\d"),
    "a bias is gone": (without("mlp.2.bias"), r"mlp\.2 is not a linear layer"),
    "an encoder": (lambda s: s["actor_state_dict"].update({"cnns.camera.0.weight": torch.ones(1)}), r"cnns\.camera"),
    "NaN": (lambda s: s["actor_state_dict"]["mlp.0.weight"].fill_(np.nan), "not finite"),
    "std below 0": (lambda s: s["actor_state_dict"]["std"].fill_(-1.0), "not positive"),
    "more actions": (lambda s: s["actor_state_dict"].update(std=torch.ones(4)), "3 outputs for 4 actions"),
    "no policy": (lambda s: s.pop("actor_state_dict"), "looked for model_state_dict or actor_state_dict"),
}


@pytest.mark.parametrize("flaw", REFUSED)
def test_what_does_not_fit_is_named(tmp_path: Path, flaw: str) -> None:
    state = payload(4, Model(OBS, ACTIONS, None, False), Model(CRITIC_OBS, 1, None, False))
    damage, said = REFUSED[flaw]
    damage(state)
    torch.save(state, tmp_path / "model_1.pt")
    with pytest.raises(CheckpointError, match=said):
        us.load(f"{tmp_path / 'model_1.pt'},activation=elu")


def test_the_activation_has_to_be_said(tmp_path: Path) -> None:
    file = tmp_path / "model_1.pt"
    torch.save(payload(4, Model(OBS, ACTIONS, None, False), Model(CRITIC_OBS, 1, None, False)), file)
    for source, said in {
        f"{file}": r"params/agent\.yaml.*model_1\.pt,activation=elu",
        f"{file},activation=mish": "activation 'mish' has no counterpart",
        f"{file},activaton=elu": "no option 'activaton'; did you mean activation",
        f"{file},activation=elu,activation=relu": "twice",
    }.items():
        with pytest.raises(CheckpointError, match=said):
            us.load(source)


def test_files_that_are_no_policies_say_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "clip.npz", x=np.ones(3))
    (tmp_path / "agent.yaml").write_text("a: 1")
    (tmp_path / "notes.txt").write_text("hello")
    for name, said in {
        "clip.npz": "demonstrations or motion",
        "agent.yaml": "a configuration",
        "notes.txt": "no zip",
    }.items():
        with pytest.raises(CheckpointError, match=rf"{name}.*{said}.*rsl_rl's"):
            us.load(tmp_path / name)


def test_nothing_of_a_pickle_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "trapped"), "w"))

    torch.save({"actor_state_dict": {"mlp.0.weight": Trap()}}, tmp_path / "model_1.pt")
    with pytest.raises(CheckpointError, match="more than tensors and plain data"):
        us.load(f"{tmp_path / 'model_1.pt'},activation=elu")
    assert not (tmp_path / "trapped").exists()
