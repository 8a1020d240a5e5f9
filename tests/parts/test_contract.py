"""Every registered part, and small parts for each hook, alone, in pairs, all together, permuted, compiled, resumed."""

from __future__ import annotations

import functools

import pytest
import torch
from tensordict import TensorDict
from tests.golden.cases import outcome
from tests.golden.kept import check_kept
from tests.parts.contract import (
    ALL,
    ALONE,
    BUILDERS,
    FEED_FORWARD_ONLY,
    PAIRS,
    REGISTERED,
    Bonus,
    Doubt,
    Scripted,
    make_ppo,
    run,
    weights,
)
from torch import Tensor

from understudy.nn.policy import PolicyOutput
from understudy.parts import PARTS
from understudy.ppo.part import Part, Rewards


def test_every_registered_part_is_tested_here() -> None:
    assert set(REGISTERED) == set(PARTS)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("names", [*ALONE, *PAIRS, ALL], ids="+".join)
def test_trains_to_the_kept_numbers_in_any_order(names: tuple[str, ...]) -> None:
    forward = make_ppo(names)
    before = weights(forward).clone()
    metrics = run(forward, 2)
    assert not torch.equal(before, weights(forward))
    assert metrics["ppo/first_ratio_error"] < 1e-5
    if "scripted" not in names:  # executed actions of an override have a log-prob of their own, the ratio is still 1
        assert metrics["ppo/skipped_steps"] == 0.0
    assert torch.isfinite(weights(forward)).all()
    if len(names) > 1:
        backward = make_ppo(names[::-1])
        assert run(backward, 2) == metrics
        assert torch.equal(weights(backward), weights(forward))
    if names in PAIRS:
        check_kept("parts/" + "+".join(names), outcome(metrics, weights(forward)))


@functools.cache
def critic_without_parts() -> Tensor:
    ppo = make_ppo(())
    run(ppo, 2)
    return ppo.policy.value_head.weight.detach()


@pytest.mark.parametrize("names", [*ALONE, ALL], ids="+".join)
def test_a_part_has_an_effect(names: tuple[str, ...]) -> None:
    with_parts = make_ppo(names)
    run(with_parts, 2)
    same = torch.equal(with_parts.policy.value_head.weight, critic_without_parts())
    own_optimizer_only = {"critique"}  # learns beside the policy, on purpose without touching it
    assert same == (set(names) <= own_optimizer_only)


@pytest.mark.parametrize("names", [(), *ALONE, ALL], ids="+".join)
def test_traced_equals_eager_bit_for_bit(names: tuple[str, ...]) -> None:
    traced, eager = make_ppo(names), make_ppo(names, capture="eager")
    assert run(traced, 2) == run(eager, 2)
    assert torch.equal(weights(traced), weights(eager))


@pytest.mark.parametrize("names", [(), *ALONE, ALL], ids="+".join)
def test_resumes_bit_for_bit(names: tuple[str, ...]) -> None:
    straight, first = make_ppo(names), make_ppo(names)
    run(straight, 2)
    expected = run(straight, 2)
    run(first, 2)
    state = first.state_dict()
    second = make_ppo(names, seed=1)  # other weights, other streams: everything must come from the state
    second.load_state_dict(state)
    assert run(second, 2) == expected
    assert torch.equal(weights(second), weights(straight))


@pytest.mark.parametrize("memory", ["lstm", "gru"])
def test_trains_with_a_memory(memory: str) -> None:
    names = tuple(name for name in ALL if name not in FEED_FORWARD_ONLY and name != "imitate")
    metrics = run(make_ppo(names, memory=memory), 2)
    assert metrics["ppo/first_ratio_error"] < 1e-5


def assert_near(found: dict[str, float], expected: dict[str, float]) -> None:
    """Equal up to the rounding of a program whose operations were fused."""
    assert found.keys() == expected.keys()
    for name, number in expected.items():
        assert found[name] == pytest.approx(number, rel=1e-3, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("names", [(), ALL], ids="+".join)
def test_compiled_equals_traced(names: tuple[str, ...]) -> None:
    torch._dynamo.reset()
    assert_near(run(make_ppo(names, capture="compile"), 1), run(make_ppo(names), 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("names", [(), *ALONE, ALL], ids="+".join)
def test_a_cuda_graph_equals_traced(names: tuple[str, ...]) -> None:
    recorded, traced = (make_ppo(names, capture=mode, device="cuda") for mode in ("cudagraph", "trace"))
    assert_near(run(recorded, 2), run(traced, 2))


def test_two_overriding_parts_are_refused() -> None:
    BUILDERS["second"] = Scripted
    try:
        with pytest.raises(ValueError, match="at most one part may override"):
            make_ppo(("scripted", "second"))
    finally:
        del BUILDERS["second"]


def test_a_misspelt_hook_fails_at_construction() -> None:
    class Wrong(Part, Rewards):
        def rewards(self, rollout: TensorDict) -> Tensor:
            return rollout["task_reward"]

    BUILDERS["wrong"] = Wrong
    try:
        with pytest.raises(TypeError, match="abstract"):
            make_ppo(("wrong",))
    finally:
        del BUILDERS["wrong"]


@pytest.mark.parametrize("hook", ["reward", "weight"])
def test_a_wrong_shape_is_refused_with_the_part_named(hook: str) -> None:
    class Wrong(Bonus if hook == "reward" else Doubt):  # type: ignore[misc]
        def reward(self, rollout: TensorDict) -> Tensor:
            return super().reward(rollout).unsqueeze(-1)

        def weight(self, batch: TensorDict, out: PolicyOutput) -> Tensor:
            return super().weight(batch, out).unsqueeze(-1)

    BUILDERS["wrong"] = Wrong
    try:
        with pytest.raises(ValueError, match="part 'wrong'"):
            run(make_ppo(("wrong",)), 1)
    finally:
        del BUILDERS["wrong"]
