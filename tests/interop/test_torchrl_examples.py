"""The scripts in `examples/coming_from/torchrl_*.py` run against TorchRL's collector, where TorchRL is installed."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import understudy as us

pytest.importorskip("torchrl")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parents[2] / "examples" / "coming_from"
FRAMES = 1024  # two rollouts


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def script(name: str) -> Any:
    return importlib.import_module(name)


def test_one_import_changes_and_no_weight() -> None:
    before, after = (
        [line for line in (EXAMPLES / f"torchrl_{name}.py").read_text().splitlines()[1:] if line]
        for name in ("before", "after")
    )
    assert set(before) - set(after) == {"from torchrl.objectives import ClipPPOLoss"}
    assert set(after) - set(before) == {"from understudy import ClipPPOLoss"}
    (first, theirs), (second, ours) = (script(f"torchrl_{name}").main(FRAMES) for name in ("before", "after"))
    assert first == second > 8.0
    # TorchRL takes the weights out of its modules: those of the collector's policy are what was trained
    for x, y in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=1e-7)


def test_gail_in_a_training_script(tmp_path: Path) -> None:
    metrics = script("torchrl_gail").main(FRAMES, demonstrations=tmp_path / "expert.npz")
    assert metrics["return"] >= 8.0
    assert metrics["reward"] > 0.0
    assert all(math.isfinite(x) for x in metrics.values())
    assert 0.3 < metrics["reward"] < 1.0  # of the discriminator: the task gives 1 for each step


def test_distillation_in_a_training_script(tmp_path: Path) -> None:
    metrics = script("torchrl_distillation").main(FRAMES, teacher=tmp_path / "teacher", teacher_steps=4096)
    assert metrics["last"] < metrics["first"] - 0.02


def test_torchrl_s_distributions_and_the_collector_s_postproc() -> None:
    """`TanhNormal` with the environment's bounds and one-hot choices; rewards in `postproc`, several environments."""
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torch import nn
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl.modules import OneHotCategorical, ProbabilisticActor, TanhNormal

    def actor(size: int, keys: list[str], **options: Any) -> Any:
        net = nn.Sequential(nn.Linear(size, 2), *([NormalParamExtractor()] if len(keys) == 2 else []))
        module = TensorDictModule(net, in_keys=["observation"], out_keys=keys)
        return ProbabilisticActor(module, in_keys=keys, return_log_prob=True, **options)

    bounds = {"low": -2.0, "high": 2.0}
    cases = {
        "Pendulum-v1": actor(3, ["loc", "scale"], distribution_class=TanhNormal, distribution_kwargs=bounds),
        "CartPole-v1": actor(4, ["logits"], distribution_class=OneHotCategorical),
    }
    for name, policy in cases.items():
        novelty = us.interop.torchrl.RewardTransform(us.parts.RandomNetworkDistillationConfig(), policy)
        env = SerialEnv(2, lambda name=name: GymEnv(name))  # type: ignore[misc]
        collector = Collector(env, policy, frames_per_batch=16, total_frames=32, postproc=novelty)
        first, second = (rollout.clone() for rollout in collector)
        collector.shutdown()
        assert novelty.scored == 2
        for rollout in (first, second):
            after, (cos, sin, spin) = rollout["next"], rollout["observation"].unbind(-1)[:3]
            task = torch.ones_like(cos)
            if name == "Pendulum-v1":  # its cost, as Gymnasium has it: collectors write into the memory of the last one
                task = -(torch.atan2(sin, cos) ** 2 + 0.1 * spin**2 + 0.001 * rollout["action"][..., 0] ** 2)
            bonus = after["reward_random_network_distillation"]
            torch.testing.assert_close(after["reward"], task.unsqueeze(-1) + 0.1 * bonus, rtol=1e-4, atol=1e-4)
            assert bonus.shape == (2, 8, 1)
        imitate = us.interop.torchrl.PartLoss(us.parts.ScriptedExpertConfig(), policy)
        second["expert_action"] = second["action"].clone()
        out = imitate(imitate.prepare(second).reshape(-1))
        expected = policy.get_dist(second.copy()).log_prob(second["action"])
        shift = math.log(2.0) if name == "Pendulum-v1" else 0.0  # parts know actions in [-1, 1]
        torch.testing.assert_close(out["loss_scripted_expert"], -expected.mean() - shift, rtol=1e-4, atol=1e-4)
