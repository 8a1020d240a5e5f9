"""Zips of Stable-Baselines3: the same answers here as there; nothing in them is unpickled."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

import understudy as us
from understudy.types import CheckpointError

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(np.float32([-2.0, -0.4]), np.float32([2.0, 0.4])),
    "discrete": spaces.Discrete(4, start=1),
    "multi": spaces.MultiDiscrete([3, 2]),
    "binary": spaces.MultiBinary(3),
}


class Trap:
    def __reduce__(self) -> Any:
        return (open, ("trapped", "w"))


def described(thing: Any, items: dict[str, Any]) -> dict[str, Any]:
    """As their `data_to_json` writes what JSON cannot hold: a pickle, here one that would execute something."""
    text = {name: x if isinstance(x, bool | int | str | list | None) else str(x) for name, x in items.items()}
    return {":type:": str(type(thing)), ":serialized:": base64.b64encode(pickle.dumps(Trap())).decode(), **text}


def save(
    path: Path, state: dict[str, Tensor], space: spaces.Space[Any], actions: spaces.Space[Any], **data: Any
) -> Path:
    """A zip as their `save` writes it."""
    plain = {
        "policy_class": {"__module__": "stable_baselines3.common.policies"},
        "policy_kwargs": {},
        "use_sde": False,
        "observation_space": described(space, {k: [*v] if k == "_shape" else v for k, v in vars(space).items()}),
        "action_space": described(actions, {k: [*v] if k == "_shape" else v for k, v in vars(actions).items()}),
        **data,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(plain, indent=4))
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("pytorch_variables.pth", pickle.dumps(Trap()))
    return path


def networks(outputs: int, hidden: type[nn.Module] = nn.Tanh) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """Actor, critic, and their state dict."""
    actor = nn.Sequential(nn.Linear(5, 8), hidden(), nn.Linear(8, outputs))
    critic = nn.Sequential(nn.Linear(5, 6), hidden(), nn.Linear(6, 1))
    state = {}
    for who, output, net in (("policy", "action_net", actor), ("value", "value_net", critic)):
        for name, x in net.state_dict().items():
            state[f"mlp_extractor.{who}_net.{name}" if name[0] == "0" else f"{output}.{name[2:]}"] = x
    return actor, critic, state


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    assert not (tmp_path / "trapped").exists()


@torch.no_grad()
def test_a_gaussian_answers_as_it_did(tmp_path: Path) -> None:
    actor, critic, state = networks(2, nn.ReLU)
    log_std = torch.tensor([-0.5, 0.25])
    kwargs = described({}, {"activation_fn": nn.ReLU, "net_arch": [8, 6]})
    path = save(tmp_path / "ppo.zip", state | {"log_std": log_std}, VECTOR, ACTIONS["box"], policy_kwargs=kwargs)
    policy = us.load(path)
    x = 3.0 * torch.randn(1000, 5)
    out = policy(TensorDict({"policy": x, "critic": x}, [1000]))
    mean = actor(x)
    torch.testing.assert_close(out.distribution.mode(), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.value, critic(x).squeeze(-1), atol=1e-5, rtol=0)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + 0.3).sum(-1)
    torch.testing.assert_close(out.distribution.log_prob(mean + 0.3), expected, atol=1e-4, rtol=0)
    assert policy.action_space == ACTIONS["box"]
    low, high = (torch.as_tensor(side) for side in (ACTIONS["box"].low, ACTIONS["box"].high))  # type: ignore[attr-defined]
    torch.testing.assert_close(policy.act(x)[0], mean.clamp(low, high), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["discrete", "multi", "binary"])
@torch.no_grad()
def test_choices_are_made_as_they_were(tmp_path: Path, kind: str) -> None:
    sizes = {"discrete": [4], "multi": [3, 2], "binary": [1] * 3}[kind]
    actor, _, state = networks(sum(sizes))
    policy = us.load(save(tmp_path / "a2c.zip", state, VECTOR, ACTIONS[kind]))
    x = torch.randn(500, 5)
    logits = actor(x)
    best = torch.stack([part.argmax(-1) for part in logits.split(sizes, dim=-1)], dim=-1)
    expected = {"discrete": best[:, 0] + 1, "multi": best, "binary": logits > 0}[kind]
    assert torch.equal(policy.act(x)[0], expected.long())


@torch.no_grad()
def test_statistics_come_from_an_npz_never_from_a_pickle(tmp_path: Path) -> None:
    actor, _, state = networks(4)
    path = save(tmp_path / "ppo.zip", state, VECTOR, ACTIONS["discrete"])
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"without executing it.*np\.savez.*ppo\.zip,statistics=statistics\.npz"):
        us.load(path)
    mean, var = np.arange(5.0), np.arange(1.0, 6.0)
    np.savez(tmp_path / "s.npz", mean=mean, var=var, epsilon=1e-4, clip_obs=1.5)
    policy = us.load(f"{path},statistics={tmp_path / 's.npz'}")
    x = 4.0 * torch.randn(500, 5)
    seen = ((x - torch.tensor(mean)) / (torch.tensor(var) + 1e-4).sqrt()).clamp(-1.5, 1.5).float()
    logits = policy.distribution(TensorDict({"policy": x}, [500])).params
    torch.testing.assert_close(logits, actor(seen), atol=1e-5, rtol=0)
    bare = us.load(f"{path},statistics=none")
    torch.testing.assert_close(bare.distribution(TensorDict({"policy": x}, [500])).params, actor(x), atol=1e-5, rtol=0)
    for arrays, said in {
        "shape": ({"mean": mean[:3], "var": var[:3]}, r"shape \(3,\)"),
        "nan": ({"mean": mean, "var": var * np.nan}, "not finite"),
        "lacks": ({"mean": mean}, "var"),
    }.values():
        np.savez(tmp_path / "s.npz", **arrays)
        with pytest.raises(CheckpointError, match=rf"s\.npz.*{said}"):
            us.load(f"{path},statistics={tmp_path / 's.npz'}")


@torch.no_grad()
def test_pictures_go_through_their_nature_cnn(tmp_path: Path) -> None:
    convolutions = nn.Sequential(
        *(nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()),
        nn.Flatten(),
    )
    linear, actor, critic = nn.Linear(64, 512), nn.Linear(512, 4), nn.Linear(512, 1)
    state = {f"action_net.{k}": x for k, x in actor.state_dict().items()}
    state |= {f"value_net.{k}": x for k, x in critic.state_dict().items()}
    for prefix in ("features_extractor", "pi_features_extractor", "vf_features_extractor"):
        state |= {f"{prefix}.cnn.{k}": x for k, x in convolutions.state_dict().items()}
        state |= {f"{prefix}.linear.0.{k}": x for k, x in linear.state_dict().items()}
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = us.load(save(tmp_path / "cnn.zip", state, space, ACTIONS["discrete"]))
    x = torch.randint(0, 256, (20, 3, 36, 36), dtype=torch.uint8)
    features = linear(convolutions(x / 255.0)).relu()
    out = policy(TensorDict({"policy": x, "critic": x}, [20]))
    torch.testing.assert_close(out.distribution.params, actor(features), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.value, critic(features).squeeze(-1), atol=1e-5, rtol=0)
    other = {k: x[:, :, :2, :2] if k.endswith("cnn.0.weight") else x for k, x in state.items()}
    with pytest.raises(CheckpointError, match="features extractor of its own"):
        us.load(save(tmp_path / "cnn.zip", other, space, ACTIONS["discrete"]))


@torch.no_grad()
def test_of_gsde_only_the_action_is_given(tmp_path: Path) -> None:
    actor, _, state = networks(2)
    state["log_std"] = torch.zeros(8, 2)
    path = save(
        tmp_path / "sde.zip", state, VECTOR, ACTIONS["box"], use_sde=True, policy_kwargs={"squash_output": True}
    )
    policy = us.load(path)
    x = torch.randn(100, 5)
    torch.testing.assert_close(policy.act(x)[0], actor(x).tanh() * torch.tensor([2.0, 0.4]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no samples"):
        policy.act(x, deterministic=False)


def test_other_models_are_named(tmp_path: Path) -> None:
    _, _, state = networks(4)
    discrete = ACTIONS["discrete"]
    kwargs = described({}, {"activation_fn": "<class 'mine.Swish'>"})
    cases: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
        r"actor\.mu\.weight.*SAC": ({"actor.mu.weight": torch.ones(1)}, {}),
        r"has attention\.weight": (state | {"attention.weight": torch.ones(1)}, {}),
        r"activation 'Swish'.*activation=relu": (state, {"policy_kwargs": kwargs}),
        r"activation .*activation=relu": (state, {"policy_class": {"__module__": "mine"}}),
        r"observation_space is a Dict": (
            state,
            {"observation_space": {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}},
        ),
        r"mlp_extractor\.policy_net\.0": (state | {"mlp_extractor.policy_net.0.bias": torch.ones(3)}, {}),
    }
    for said, (found, data) in cases.items():
        with pytest.raises(CheckpointError, match=said):
            us.load(save(tmp_path / "model.zip", found, VECTOR, discrete, **data))
    us.load(f"{save(tmp_path / 'model.zip', state, VECTOR, discrete, policy_kwargs=kwargs)},activation=silu")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(CheckpointError, match=r"other\.zip is a zip of readme"):
        us.load(tmp_path / "other.zip")


def test_a_zip_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", "")
        with archive.open("data", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(2**20))
    with pytest.raises(CheckpointError, match=r"claims 0\.3 GiB"):
        us.load(tmp_path / "bomb.zip")


class Random(gym.Env[Any, Any]):
    def __init__(self, actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = VECTOR, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("kind", ACTIONS)
def test_against_stable_baselines3(tmp_path: Path, kind: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = Random(ACTIONS[kind])
    if kind == "discrete":
        env.action_space = spaces.Discrete(4)  # theirs know no start
    for algorithm, kwargs in (
        (sb3.PPO, {"activation_fn": nn.ELU, "net_arch": {"pi": [8], "vf": [7]}}),
        (sb3.A2C, None),
    ):
        model = algorithm("MlpPolicy", env, device="cpu", policy_kwargs=kwargs)
        with torch.no_grad():
            for p in model.policy.parameters():
                p.add_(0.3 * torch.randn_like(p))
        model.save(tmp_path / "model.zip")
        policy = us.load(tmp_path / "model.zip")
        obs = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32) * 3
        np.testing.assert_allclose(policy.act(obs)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)
