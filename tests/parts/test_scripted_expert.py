"""The scripted expert: its loss by hand, its actions through every action space, who is forced, and DAgger at work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from understudy.nn.distributions import Categorical
from understudy.nn.policy import ActorCritic, PolicyOutput
from understudy.parts import ScriptedExpert, ScriptedExpertConfig
from understudy.parts.shared.expert_labels import ExpertLabelsConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartContext
from understudy.ppo.ppo import PPO
from understudy.tasks.poisoned_doors import PoisonedDoors

WIDE = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0]))


def context(env: Any, policy: ActorCritic) -> PartContext:
    return PartContext.of(env, policy, name="expert", num_steps=8)


def observed(space: spaces.Space[Any], **groups: spaces.Space[Any]) -> spaces.Dict:
    return spaces.Dict(
        {"policy": spaces.Box(-1.0, 1.0, (3,)), "expert_action": space, "expert_success": spaces.Discrete(2), **groups}
    )


def by_hand(out: torch.Tensor, obs: dict[str, torch.Tensor], part: ScriptedExpert) -> tuple[float, dict[str, Any]]:
    rows = len(out)
    batch = TensorDict(
        {"obs": obs, "valid": torch.ones(rows, dtype=torch.bool), "expert": {"forced": torch.arange(rows) == 0}},
        batch_size=[rows],
    )
    loss, metrics = part.loss(None, batch, PolicyOutput(Categorical(out), torch.zeros(rows)))  # type: ignore[arg-type]
    return float(loss), metrics


@pytest.mark.parametrize(
    ("success", "expected"),
    [((1, 1), -(math.log(0.5) + math.log(0.2)) / 2), ((0, 1), -math.log(0.2)), ((0, 0), 0.0)],
)
def test_the_loss(scripted_env: Any, make_policy: Any, success: tuple[int, int], expected: float) -> None:
    space = spaces.Discrete(3)
    env = scripted_env(2, observation_space=observed(space), action_space=space)
    part = ScriptedExpert(context(env, make_policy(env)), ScriptedExpertConfig(imitation_coef=0.5)).double()
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], dtype=torch.float64).log()
    obs = {"expert_action": torch.tensor([0, 0]), "expert_success": torch.tensor(success)}
    loss, metrics = by_hand(logits, obs, part)
    assert loss == pytest.approx(0.5 * expected, rel=1e-9)
    assert float(metrics["cross_entropy"]) == pytest.approx(expected, rel=1e-9)
    assert float(metrics["forced"]) == 0.5


def test_probabilities_as_labels(scripted_env: Any, make_policy: Any) -> None:
    space = spaces.Discrete(3)
    groups = observed(space, expert_policy=spaces.Box(0.0, 1.0, (3,)))
    env = scripted_env(400, observation_space=groups, action_space=space)
    config = ScriptedExpertConfig(labels=ExpertLabelsConfig(kind="policy"), teacher_forcing=1.0)
    part = ScriptedExpert(context(env, make_policy(env)), config)
    said = torch.tensor([0.25, 0.75, 0.0]).expand(400, -1)
    ones = torch.ones(400, dtype=torch.int64)
    obs = TensorDict({"expert_policy": said, "expert_success": ones}, batch_size=[400])
    label = part.label(obs, ones.bool())
    share = torch.bincount(label["action"], minlength=3) / 400
    torch.testing.assert_close(share, torch.tensor([0.25, 0.75, 0.0]), atol=0.07, rtol=0.0)
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], dtype=torch.float64).log()
    pair = {"expert_policy": said[:2].double(), "expert_success": ones[:2]}
    expected = -(0.25 * math.log(0.5 * 0.2) + 0.75 * math.log(0.3 * 0.7)) / 2
    assert by_hand(logits, pair, part.double())[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unit", ["step", "episode"])
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (spaces.Discrete(3, start=2), {}),
        (spaces.MultiDiscrete([2, 3]), {}),
        (spaces.MultiBinary(2), {}),
        (WIDE, {}),
        (WIDE, {"action_bound": "tanh"}),
    ],
)
def test_the_expert_acts_where_it_is_forced(
    scripted_env: Any, make_ppo: Any, make_policy: Any, space: Any, options: dict[str, Any], unit: str
) -> None:
    """What the environment gets is the expert's action, exactly where it was forced, and that is off-policy."""

    class InBounds(scripted_env):  # type: ignore[misc]
        def _leaf(self, leaf: spaces.Space[Any]) -> torch.Tensor:
            if leaf is not WIDE:
                return super()._leaf(leaf)
            low, high = torch.tensor(WIDE.low), torch.tensor(WIDE.high)
            return low + (high - low) * torch.rand(self.num_envs, 2, generator=self.generator)

    env = InBounds(8, observation_space=observed(space), action_space=space)
    config = ScriptedExpertConfig(teacher_forcing=0.5, teacher_forcing_unit=unit)
    built = make_policy(env, **options)
    part = ScriptedExpert(context(env, built), config)
    ppo = make_ppo(env, policy=options, parts={"expert": part})
    rollout = ppo.collector.collect()
    forced, said = rollout["expert", "forced"], rollout["obs", "expert_action"]
    assert 0 < int(forced.sum()) < forced.numel()
    assert not bool((forced & (rollout["obs", "expert_success"] == 0)).any())
    assert torch.equal(rollout["on_policy"], ~forced)
    executed = rollout["executed_action"][forced]
    torch.testing.assert_close(executed, said[forced].to(executed.dtype), atol=1e-5, rtol=1e-5)
    ppo.collector.evaluate()
    out = ppo.policy(rollout["obs"].flatten(0, 1))
    log_prob = out.distribution.log_prob(rollout["action"].flatten(0, 1)).view(8, 8)
    torch.testing.assert_close(rollout["log_prob"], log_prob.detach(), atol=1e-4, rtol=1e-4)
    if unit == "episode":  # who is forced changes only where an episode begins (or the expert has no label)
        drawn = part.forcing.forced
        assert drawn.shape == (8,)
        labelled = (rollout["obs", "expert_success"] == 1)[1:] & (rollout["obs", "expert_success"] == 1)[:-1]
        assert not bool((labelled & ~rollout["is_first"][1:] & (forced[1:] != forced[:-1])).any())


def test_forcing_never_and_always(scripted_env: Any, make_ppo: Any, make_policy: Any) -> None:
    space = spaces.Discrete(3)
    for probability in (0.0, 1.0):
        env = scripted_env(8, observation_space=observed(space), action_space=space)
        config = ScriptedExpertConfig(teacher_forcing=probability)
        ppo = make_ppo(env, parts={"expert": ScriptedExpert(context(env, make_policy(env)), config)})
        rollout = ppo.collector.collect()
        expected = (rollout["obs", "expert_success"] == 1) & (probability == 1.0)
        assert torch.equal(rollout["expert", "forced"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imitation_coef": -1.0}, "imitation_coef must be at least 0"),
        ({"teacher_forcing": 1.5}, r"teacher_forcing must lie in \[0, 1\]"),
        ({"teacher_forcing_unit": "steps"}, "did you mean step"),
        ({"labels": ExpertLabelsConfig(action="policy_action")}, "does not exist"),
    ],
)
def test_what_it_refuses(scripted_env: Any, make_policy: Any, options: dict[str, Any], message: str) -> None:
    space = spaces.Discrete(3)
    env = scripted_env(2, observation_space=observed(space), action_space=space)
    with pytest.raises(ValueError, match=message):
        ScriptedExpert(context(env, make_policy(env)), ScriptedExpertConfig(**options))


def test_the_first_label_is_looked_at(scripted_env: Any, make_policy: Any) -> None:
    space = spaces.Discrete(3)
    env = scripted_env(2, observation_space=observed(space), action_space=space)
    part = ScriptedExpert(context(env, make_policy(env)), ScriptedExpertConfig())
    obs = TensorDict({"expert_action": torch.tensor([0, 3]), "expert_success": torch.ones(2).long()}, batch_size=[2])
    with pytest.raises(ValueError, match="outside Discrete"):
        part.label(obs, torch.ones(2, dtype=torch.bool))


def test_clones_the_expert_without_reinforcement_learning(make_ppo: Any, make_policy: Any) -> None:
    """On the expert's own states, from its labels alone: the doors stay a guess, as imitation cannot tell them."""
    env = PoisonedDoors(64, code_length=2)
    policy = {"hidden_sizes": (), "shared_trunk": True}
    part = ScriptedExpert(context(env, make_policy(env, **policy)), ScriptedExpertConfig(teacher_forcing=1.0))
    ppo: PPO = make_ppo(
        env,
        policy=policy,
        parts={"expert": part},
        surrogate_coef=0.0,
        num_steps=8,
        epochs=4,
        optimizer=OptimizerConfig(learning_rate=0.1),
    )
    before = ppo.iterate()["expert/cross_entropy"]
    for _ in range(8):
        metrics = ppo.iterate()
    assert before > 1.2
    assert metrics["expert/cross_entropy"] == pytest.approx(math.log(3), abs=0.05)
    assert metrics["expert/forced"] == 1.0
    assert metrics["episode/return"] == 2.0  # the expert acts
