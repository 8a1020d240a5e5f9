"""Who acts: per episode or per step, with a probability that moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from understudy.core.schedules import Schedule, advance_all
from understudy.parts.scripted_expert import ScriptedExpertConfig
from understudy.parts.shared.teacher_forcing import TeacherForcing
from understudy.parts.teacher import TeacherConfig

N = 4000
FIRST, LATER = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)


class Forcing:
    """A forcing with its stream."""

    def __init__(self, probability: float | Schedule, unit: str = "episode", seed: int = 0) -> None:
        self.module = TeacherForcing(probability, unit, N, torch.device("cpu"))  # type: ignore[arg-type]
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, is_first: Tensor) -> Tensor:
        return self.module.draw(is_first, self.generator).clone()


def share(forced: Tensor) -> float:
    return float(forced.float().mean())


def test_an_episode_has_one_actor() -> None:
    force = Forcing(0.3)
    first = force(FIRST)
    assert share(first) == pytest.approx(0.3, abs=0.03)  # the first episodes too are drawn, from p(0)
    assert torch.equal(force(LATER), first)
    half = torch.arange(N) < N // 2
    second = force(half)
    assert torch.equal(second[~half], first[~half])
    assert not torch.equal(second[half], first[half])


def test_each_step_has_its_own() -> None:
    force = Forcing(0.3, "step")
    first, second = force(FIRST), force(LATER)
    assert share(first & second) == pytest.approx(0.09, abs=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # st_rl's curves with scale 100
        ("linear:1:0:100it", (1.0, 0.0, 0.0)),
        ("exp:1:0:100it", (1.0, 0.366032, 0.133980)),
        ("tanh:1:0:100it", (0.880797, 0.5, 0.119203)),
        ("piecewise:0it=1,100it=0.5,200it=0", (1.0, 0.5, 0.0)),
    ],
)
def test_the_probability_moves(text: str, expected: tuple[float, ...]) -> None:
    force = Forcing(Schedule.parse(text))
    for iteration, prob in zip((0, 100, 200), expected):
        advance_all(force.module, 0, iteration, 1, 1000)
        assert float(force.module.probability()) == pytest.approx(prob, abs=1e-6)
        assert share(force(FIRST)) == pytest.approx(prob, abs=0.03)


def test_certainty() -> None:
    assert Forcing(1.0)(FIRST).all()
    assert not Forcing(0.0)(FIRST).any()


def test_state_survives() -> None:
    force, other = Forcing(0.5), Forcing(0.5, seed=1)
    force(FIRST)
    other.module.load_state_dict(force.module.state_dict())
    assert torch.equal(other(LATER), force(LATER))


@pytest.mark.parametrize("config", [ScriptedExpertConfig, TeacherConfig])
def test_what_configs_refuse(config: Any) -> None:
    with pytest.raises(ValueError, match=r"teacher_forcing must lie in \[0.*1.5"):
        config(teacher_forcing=Schedule.parse("linear:0:1.5:10"))
    with pytest.raises(ValueError, match="did you mean step"):
        config(teacher_forcing_unit="steps")
