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


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_torchrl_s_memories_over_whole_columns(kind: str) -> None:
    """`PartLoss` runs columns at once; here every step is run by itself, on from the state that the last one left."""
    from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
    from torch import nn
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, InitTracker, SerialEnv, TransformedEnv
    from torchrl.modules import GRUModule, LSTMModule

    torch.manual_seed(0)
    state = ["h", "c"] if kind == "lstm" else ["h"]
    memory = (LSTMModule if kind == "lstm" else GRUModule)(
        input_size=4,
        hidden_size=6,
        in_keys=["observation", *state],
        out_keys=["hidden", *(("next", key) for key in state)],
    )
    actor = ProbabilisticTensorDictSequential(
        memory,
        TensorDictModule(nn.Linear(6, 2), in_keys=["hidden"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=torch.distributions.OneHotCategorical),
    )
    critic = TensorDictModule(nn.Linear(6, 1), in_keys=["hidden"], out_keys=["state_value"])

    def make() -> Any:
        env = TransformedEnv(GymEnv("CartPole-v1"), InitTracker())
        return env.append_transform(memory.make_tensordict_primer())

    env = SerialEnv(3, make)
    env.set_seed(0)
    collector = Collector(env, actor, frames_per_batch=90, total_frames=180)
    _, rollout = (rollout.clone() for rollout in collector)  # the second one goes on with episodes of the first
    collector.shutdown()
    first = rollout["is_init"].squeeze(-1)
    assert first[:, 1:].any()
    assert not first[:, 0].all()
    rollout["expert_action"] = rollout["action"].long()[torch.randperm(3)]
    rollout["action"] = rollout["action"].long()
    imitate = us.interop.torchrl.PartLoss(us.parts.ScriptedExpertConfig(), actor, critic)
    imitate.prepare(rollout)
    loss = imitate(rollout[torch.tensor([2, 0, 1])])["loss_scripted_expert"]
    loss.backward()
    slopes = [p.grad.clone() for p in actor.parameters()]
    actor.zero_grad()
    costs, carried = [], {key: rollout[key][:, 0] for key in state}
    for t in range(30):
        step = rollout[:, t].select("observation", "is_init").update(carried)
        dist = actor.get_dist(step)  # one step: TorchRL's own mode for acting
        costs.append(-dist.log_prob(rollout["expert_action"][:, t].to(torch.float32)))
        carried = {key: step["next", key] for key in state}
    by_hand = torch.stack(costs).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-6)
    by_hand.backward()
    for mine, other in zip(slopes, actor.parameters(), strict=True):
        torch.testing.assert_close(mine, other.grad, rtol=1e-4, atol=1e-6)
    advise = us.interop.torchrl.PartLoss(us.parts.AdvisorConfig(bound=0.0), actor, critic, latent_key="hidden")
    assert 0.0 < float(advise(rollout)["weight"].mean()) < 1.0
    novelty = us.interop.torchrl.RewardTransform(us.parts.RandomNetworkDistillationConfig(), actor, critic)
    assert novelty(rollout)["next", "reward"].isfinite().all()


def test_an_environment_of_several_choices() -> None:
    """A MultiDiscrete environment of Gymnasium's in TorchRL: one-hot choices side by side, two heads."""
    import gymnasium
    from tensordict.nn import (
        CompositeDistribution,
        ProbabilisticTensorDictModule,
        ProbabilisticTensorDictSequential,
        TensorDictModule,
    )
    from torch import nn
    from torchrl.envs import GymWrapper

    class Choices(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
        action_space = gymnasium.spaces.MultiDiscrete([3, 2])

        def reset(self, **_: Any) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), float(action[0]), False, False, {}

    env = GymWrapper(Choices())
    rollout = env.rollout(7)
    assert rollout["action"].shape == (7, 5)  # one-hot, side by side
    categorical = torch.distributions.Categorical
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(3, 5), ["observation"], ["flat"]),
        TensorDictModule(lambda x: (x[..., :3], x[..., 3:]), ["flat"], [("params", x, "logits") for x in "ab"]),
        ProbabilisticTensorDictModule(
            ["params"], ["a", "b"], distribution_class=CompositeDistribution,
            distribution_kwargs={"distribution_map": {"a": categorical, "b": categorical}},
        ),
    )  # fmt: skip
    rollout["a"], rollout["b"] = (x.argmax(-1) for x in rollout["action"].split([3, 2], -1))
    rollout["expert_action"] = rollout["action"].clone()
    spaces = {"expert_action": Choices.action_space}
    imitate = us.interop.torchrl.PartLoss(us.parts.ScriptedExpertConfig(), actor, observation_spaces=spaces)
    loss = imitate(imitate.prepare(rollout).reshape(-1))["loss_scripted_expert"]
    logits = actor[0].module(rollout["observation"])
    expected = sum(nn.functional.cross_entropy(x, rollout[key]) for x, key in zip(logits.split([3, 2], -1), ("a", "b")))
    torch.testing.assert_close(loss, expected)
