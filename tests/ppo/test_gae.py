from __future__ import annotations

import pytest
import torch
from torch import Tensor

from understudy.ppo.returns import gae

F64 = torch.float64


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64).unsqueeze(1)


def six_steps() -> dict[str, Tensor]:
    """Terminated at t = 1, truncated at t = 3, and the rollout ends at t = 5."""
    return {
        "reward": column(1.0, 0.5, -0.2, 0.3, 0.8, 0.1),
        "value": column(0.5, 0.4, 0.9, 1.1, 0.2, 0.7),
        "next_value": column(0.4, 9.9, 1.1, 0.6, 0.7, 0.3),
        "terminated": column(0, 1, 0, 0, 0, 0).bool(),
        "truncated": column(0, 0, 0, 1, 0, 0).bool(),
    }


# By hand, backwards (gamma .99, lambda .95): delta = -.303, 1.293, -.206, -.011, .1, .896;
# A_4 = 1.293 - .9405 * .303, A_2 = -.011 - .9405 * .206, A_0 = .896 + .9405 * .1
CORRECT = column(0.99005, 0.1, -0.204743, -0.206, 1.0080285, -0.303)
RETURNS = column(1.49005, 0.5, 0.695257, 0.894, 1.2080285, 0.397)


def slow_gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """The definition as a sum over future errors, one environment and one start at a time."""
    steps, envs = reward.shape
    out = torch.zeros(steps, envs, dtype=F64)
    for n in range(envs):
        for start in range(steps):
            discount = 1.0
            for t in range(start, steps):
                future = 0.0 if terminated[t, n] else gamma * float(next_value[t, n])
                out[start, n] += discount * (float(reward[t, n]) + future - float(value[t, n]))
                if terminated[t, n] or truncated[t, n]:
                    break
                discount *= gamma * lam
    return out


def test_six_steps() -> None:
    advantage, target = gae(**six_steps(), gamma=0.99, gae_lambda=0.95)
    torch.testing.assert_close(advantage, CORRECT, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(target, RETURNS, rtol=1e-6, atol=0.0)


def test_defaults_are_the_usual_ones() -> None:
    torch.testing.assert_close(gae(**six_steps())[0], CORRECT, rtol=1e-6, atol=0.0)


def test_terminated_and_truncated_at_once_is_terminated() -> None:
    rollout = six_steps()
    rollout["truncated"][1] = True
    torch.testing.assert_close(gae(**rollout)[0], CORRECT, rtol=1e-6, atol=0.0)
    rollout = six_steps()
    rollout["terminated"][3] = True  # now t = 3 loses its bootstrap: .3 - 1.1, and t = 2: -.011 - .9405 * .8
    expected = column(0.99005, 0.1, -0.7634, -0.8, 1.0080285, -0.303)
    torch.testing.assert_close(gae(**rollout)[0], expected, rtol=1e-6, atol=0.0)


def test_one_step_one_environment() -> None:
    one = {"reward": column(1.0), "value": column(0.5), "next_value": column(2.0)}
    no, yes = column(0).bool(), column(1).bool()
    for terminated, truncated, expected in [(no, no, 2.48), (yes, no, 0.5), (no, yes, 2.48), (yes, yes, 0.5)]:
        advantage, target = gae(**one, terminated=terminated, truncated=truncated, gamma=0.99)
        torch.testing.assert_close(advantage, column(expected))
        torch.testing.assert_close(target, column(expected + 0.5))


@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (1, 5), (7, 1), (40, 6)])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_against_the_definition(steps: int, envs: int, gamma: float, lam: float) -> None:
    random = torch.Generator().manual_seed(steps * 10 + envs)
    numbers = torch.randn(3, steps, envs, generator=random, dtype=F64)
    flags = torch.rand(2, steps, envs, generator=random) < 0.2
    reward, value, next_value = numbers
    terminated, truncated = flags
    advantage, target = gae(reward, value, next_value, terminated, truncated, gamma, lam)
    expected = slow_gae(reward, value, next_value, terminated, truncated, gamma, lam)
    torch.testing.assert_close(advantage, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(target, expected + value, rtol=1e-10, atol=1e-12)


def test_environments_do_not_mix() -> None:
    rollout = six_steps()
    other = {name: torch.zeros_like(x) for name, x in rollout.items()}
    both = {name: torch.cat([other[name], x, other[name]], dim=1) for name, x in rollout.items()}
    advantage, _ = gae(**both)
    torch.testing.assert_close(advantage[:, 1:2], CORRECT, rtol=1e-6, atol=0.0)
    assert not advantage[:, [0, 2]].any()


def test_coefficients_may_be_buffers_and_flags_numbers() -> None:
    rollout = six_steps()
    rollout |= {name: rollout[name].double() for name in ("terminated", "truncated")}
    advantage, _ = gae(**rollout, gamma=torch.tensor(0.99, dtype=F64), gae_lambda=torch.tensor(0.95, dtype=F64))
    torch.testing.assert_close(advantage, CORRECT, rtol=1e-6, atol=0.0)


def test_leaves_its_inputs_alone() -> None:
    rollout = six_steps()
    gae(**rollout)
    for name, x in six_steps().items():
        assert torch.equal(rollout[name], x)


@pytest.mark.parametrize("name", ["value", "next_value", "terminated", "truncated"])
def test_refuses_a_trailing_one(name: str) -> None:
    rollout = six_steps()
    rollout[name] = rollout[name].unsqueeze(-1)
    with pytest.raises(ValueError, match=rf"{name}.*\(6, 1, 1\).*squeeze"):
        gae(**rollout)


def test_refuses_a_flat_rollout() -> None:
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        gae(**{name: x.squeeze(1) for name, x in six_steps().items()})
