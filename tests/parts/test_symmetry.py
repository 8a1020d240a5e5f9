"""The symmetry losses, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.parts.harness import context_of

from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts.symmetry import MirrorSpec, Symmetry, SymmetryConfig

SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
SWAP = MirrorSpec(permutation=(1, 0), sign=(1.0, 1.0))
FLIP = MirrorSpec(permutation=(0, 1), sign=(-1.0, 1.0))


def linear_policy(weight: list[list[float]], actions: spaces.Space[Any] = ACTIONS) -> ActorCritic:
    """mu(s) = W s, V(s) = s_0 + 2 s_1, std 1."""
    policy = ActorCritic(SPACE, actions, PolicyConfig(hidden_sizes=(), normalize_observations=False))
    with torch.no_grad():
        policy.head.linear.weight.copy_(torch.tensor(weight))
        policy.value_head.weight.copy_(torch.tensor([[1.0, 2.0]]))
    return policy.double()


def build(policy: ActorCritic, **options: Any) -> Symmetry:
    options = {"observations": {"policy": SWAP}, "action": SWAP, **options}
    return SymmetryConfig(**options).build(context_of(SPACE, policy.action_space, policy))


def rows(**columns: Any) -> TensorDict:
    batch = TensorDict({"obs": {"policy": torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=torch.float64)}}, batch_size=[2])
    batch["valid"] = torch.tensor([True, True])
    for name, value in columns.items():
        batch[name] = torch.tensor(value, dtype=torch.float64)
    return batch


def test_mirror_loss_by_hand() -> None:
    policy = linear_policy([[1.0, 0.0], [0.0, 3.0]])
    part, batch = build(policy, mirror_coef=0.5), rows()
    loss, metrics = part.loss(policy, batch, policy(batch["obs"]))
    # row 0: mu = (1, 0), mirrored target (0, 1); mu(0, 1) = (0, 3): squares 0, 4
    # row 1: mu = (2, 9), target (9, 2); mu(3, 2) = (3, 6): squares 36, 16
    assert metrics["mirror_loss"].item() == pytest.approx((0 + 4 + 36 + 16) / 4)
    assert loss.item() == pytest.approx(7.0)


def test_a_symmetric_policy_has_no_mirror_loss() -> None:
    policy = linear_policy([[1.0, 2.0], [2.0, 1.0]])
    batch = rows()
    assert build(policy).loss(policy, batch, policy(batch["obs"]))[0].item() == 0.0


def test_the_mirrored_side_is_a_constant() -> None:
    policy = linear_policy([[1.0, 0.0], [0.0, 3.0]])
    part, batch = build(policy), rows()
    part.loss(policy, batch, policy(batch["obs"]))[0].backward()
    # d/dW mean((W s' - c)^2) with s' the mirrored rows (0, 1), (3, 2) and errors (0, 2), (-6, 4)
    expected = torch.tensor([[2 * (-6 * 3) / 4, 2 * (-6 * 2) / 4], [2 * (4 * 3) / 4, 2 * (2 * 1 + 4 * 2) / 4]])
    torch.testing.assert_close(policy.head.linear.weight.grad, expected.double())


def test_rows_that_are_no_transition_do_not_count() -> None:
    policy = linear_policy([[1.0, 0.0], [0.0, 3.0]])
    part, batch = build(policy), rows()
    batch["valid"] = torch.tensor([True, False])
    assert part.loss(policy, batch, policy(batch["obs"]))[0].item() == pytest.approx(4 / 4)


def test_augmentation_by_hand() -> None:
    policy = linear_policy([[0.0, 0.0], [0.0, 0.0]])
    part = build(policy, mirror_coef=0.0, augmentation_coef=2.0, value_coef=0.5, clip_epsilon=0.2)
    # a zero mean and unit std: the mirrored action is as likely as the action, the log-ratio is what is left out below
    action = [[0.5, -0.5], [1.0, 0.0]]
    log_prob = [-np.log(2 * np.pi) - 0.25 - np.log(1.5), -np.log(2 * np.pi) - 0.5]
    batch = rows(action=action, log_prob=log_prob, advantage=[1.0, -2.0], value_target=[1.0, 7.0])
    loss, metrics = part.loss(policy, batch, policy(batch["obs"]))
    # surrogate: ratio 1.5 clipped to 1.2 -> -1.2; ratio 1 -> 2. V of the mirrored rows: 2, 7; errors 1, 0
    assert metrics["augmented_loss"].item() == pytest.approx((-1.2 + 2.0) / 2 + 0.5 * (1.0 + 0.0) / 2)
    assert loss.item() == pytest.approx(2 * metrics["augmented_loss"].item())


def test_a_sign_and_an_unnamed_component() -> None:
    policy = linear_policy([[1.0, 0.0], [0.0, 1.0]])
    flipped = build(policy, observations={"policy": FLIP}).mirror(rows()["obs"])
    assert flipped["policy"].tolist() == [[-1.0, 0.0], [-2.0, 3.0]]
    assert torch.equal(build(policy, observations={}).mirror(rows()["obs"])["policy"], rows()["obs", "policy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": None}, "needs a continuous action and its mirror"),
        ({"observations": {"polcy": SWAP}}, "did you mean '?policy"),
        ({"action": MirrorSpec(permutation=(0,), sign=(1.0,))}, "the mirror of 'action' has 1 entries, 'action' has 2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(linear_policy([[1.0, 0.0], [0.0, 1.0]]), **options)


def test_what_is_no_mirror_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a permutation of 0\.\.2"):
        MirrorSpec(permutation=(0, 0, 1), sign=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="applied twice, the mirror changes entry 0"):
        MirrorSpec(permutation=(1, 2, 0), sign=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="changes entry 0"):
        MirrorSpec(permutation=(1, 0), sign=(1.0, -1.0))


def test_recurrent_and_discrete_policies_are_refused() -> None:
    recurrent = ActorCritic(SPACE, ACTIONS, PolicyConfig(memory="gru"))
    with pytest.raises(ValueError, match="feed-forward policy"):
        build(recurrent)
    with pytest.raises(ValueError, match="continuous action"):
        build(ActorCritic(SPACE, spaces.Discrete(2), PolicyConfig()))
