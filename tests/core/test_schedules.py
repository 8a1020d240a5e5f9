from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field

import pytest
import torch
import tyro
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.core.schedules import Number, Scalar, Schedule, advance_all


def at(schedule: Schedule, position: int) -> float:
    """The value `position` units in, the training being 1000 units long."""
    if schedule.unit == "steps":
        return schedule.value(position, 123456, 1000, 654321)
    return schedule.value(123456, position, 654321, 1000)


# ---- values


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", {0: 1.0, 50: 0.5, 100: 0.0, 200: 0.0}),
        ("exp", {0: 1.0, 100: 0.366032, 200: 0.133980}),
        ("tanh", {0: 0.880797, 100: 0.5, 200: 0.119203}),
        ("constant", {0: 1.0, 100: 1.0, 200: 1.0}),
    ],
)
def test_probabilities(kind: str, expected: dict[int, float]) -> None:
    for unit in ("steps", "it"):
        text = "constant:1" if kind == "constant" else f"{kind}:1:0:100{unit.removeprefix('steps')}"
        for position, number in expected.items():
            assert at(Schedule.parse(text), position) == pytest.approx(number, abs=5e-7)


def test_start_and_end() -> None:
    assert at(Schedule.parse("linear:3:1:100"), 25) == pytest.approx(2.5)
    assert at(Schedule.parse("linear:1:3:100"), 25) == pytest.approx(1.5)
    assert at(Schedule.parse("linear:3:1:100"), 5000) == 1.0
    assert at(Schedule.parse("exp:3:1:100"), 100) == pytest.approx(1 + 2 * 0.99**100)


def test_without_a_length_it_lasts_the_whole_training() -> None:
    schedule = Schedule(kind="linear", start=1.0)
    assert [schedule.value(s, 0, 4000, 7) for s in (0, 1000, 4000, 8000)] == [1.0, 0.75, 0.0, 0.0]
    schedule = Schedule(kind="linear", start=1.0, unit="iterations")
    assert [schedule.value(0, i, 7, 4) for i in (0, 1, 4)] == [1.0, 0.75, 0.0]
    assert schedule.value(0, 0, 0, 0) == 1.0


def test_piecewise() -> None:
    schedule = Schedule.parse("piecewise:10=1,20=0.5,40=2")
    expected = {0: 1.0, 10: 1.0, 15: 0.75, 20: 0.5, 30: 1.25, 40: 2.0, 100: 2.0}
    assert {position: at(schedule, position) for position in expected} == expected


def test_step() -> None:
    schedule = Schedule.parse("step:10it=1,20it=0.5")
    expected = {0: 1.0, 10: 1.0, 19: 1.0, 20: 0.5, 100: 0.5}
    assert {position: at(schedule, position) for position in expected} == expected


# ---- text


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("3e-4", Schedule(kind="constant", start=3e-4)),
        ("constant:0.5", Schedule(kind="constant", start=0.5)),
        ("linear:3e-4:0", Schedule(kind="linear", start=3e-4)),
        (" linear:1:0.1:1e6 ", Schedule(kind="linear", start=1.0, end=0.1, length=1_000_000)),
        ("linear:1:0:100it", Schedule(kind="linear", start=1.0, length=100, unit="iterations")),
        ("exp:1:0:it", Schedule(kind="exp", start=1.0, unit="iterations")),
        ("tanh:-1:1e-3:50", Schedule(kind="tanh", start=-1.0, end=1e-3, length=50)),
        ("piecewise:0=1,1e5=0.5", Schedule(kind="piecewise", points=((0, 1.0), (100_000, 0.5)))),
        ("when:episode/return>=0.95:1:0", Schedule(kind="when", condition="episode/return>=0.95", start=1.0)),
        ("when:ppo/entropy<=1e-2:0:2", Schedule(kind="when", condition="ppo/entropy<=1e-2", end=2.0)),
        ("step:0it=1,10it=0.1", Schedule(kind="step", points=((0, 1.0), (10, 0.1)), unit="iterations")),
    ],
)
def test_text_both_ways(text: str, schedule: Schedule) -> None:
    assert Schedule.parse(text) == schedule
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a number"),
        ("fast", "'fast' is not a number"),
        ("nan", "not finite"),
        ("linear:1:inf", "not finite"),
        ("linear", "not a number"),
        ("linear:1", "does not take 1 fields"),
        ("linear:1:0:100:7", "does not take 4 fields"),
        ("linear:1:0:", "not a number"),
        ("linear:1:0:2.5", "not a whole number"),
        ("linear:1:0:-100", "length must be at least 1"),
        ("linear:1:0:0it", "length must be at least 1"),
        ("linaer:1:0", "did you mean linear"),
        ("constant:1:2", "constant does not take 2 fields"),
        ("piecewise:", "not a number"),
        ("piecewise:0", "not a number"),
        ("piecewise:it=1", "not POS=VALUE"),
        ("piecewise:0=1,0=2", "ascending"),
        ("piecewise:-5=1,5=2", "positions from 0"),
        ("piecewise:0=1,5it=2", "mixed"),
        ("when:episode/return:1:0", "not METRIC>=NUMBER"),
        ("when:episode/return>0.9:1:0", "not METRIC>=NUMBER"),
        ("when:episode/return>=high:1:0", "'high' is not a number"),
        ("when:episode/return>=1:1", "when does not take 2 fields"),
    ],
)
def test_bad_text_says_the_grammar(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)linear\|exp\|tanh:START:END") as error:
        Schedule.parse(text)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "cosine", "start": 1.0}, "kind must be one of .* got 'cosine'"),
        ({"kind": "linear", "unit": "step"}, "did you mean steps"),
        ({"kind": "linear", "length": -1}, "at least 1"),
        ({"kind": "linear", "start": math.nan}, "finite"),
        ({"kind": "linear", "points": ((0, 1.0),)}, "has no points"),
        ({"kind": "constant", "start": 1.0, "end": 2.0}, "only a start"),
        ({"kind": "piecewise"}, "needs points"),
        ({"kind": "when", "start": 1.0}, "not METRIC>=NUMBER"),
        ({"kind": "when", "condition": "a>=1", "length": 5}, "only start and end"),
        ({"kind": "linear", "condition": "a>=1"}, "has no condition"),
        ({"kind": "piecewise", "points": ((0, 1.0),), "start": 1.0}, "only points"),
        ({"kind": "step", "points": ((5, 1.0), (4, 1.0))}, "ascending"),
    ],
)
def test_bad_fields(fields: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Schedule(**fields)


# ---- command line and YAML


FADING = Schedule(kind="linear", start=0.01)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner."""

    learning_rate: Number = 3e-4
    """Step size."""
    entropy_coef: Number = FADING
    """Bonus."""
    target: Number | None = None
    """Optional."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer."""

    ppo: Inner = field(default_factory=Inner)
    """The core."""


def test_command_line() -> None:
    assert tyro.cli(Outer, args=[]) == Outer()
    config = tyro.cli(Outer, args=["--ppo.learning-rate", "linear:3e-4:0", "--ppo.entropy-coef", "0.02"])
    assert config.ppo.learning_rate == Schedule(kind="linear", start=3e-4)
    assert config.ppo.entropy_coef == 0.02
    assert tyro.cli(Outer, args=["--ppo.learning-rate", "-1e-3"]).ppo.learning_rate == -1e-3
    assert tyro.cli(Outer, args=["--ppo.target", "exp:1:0:10it"]).ppo.target == Schedule.parse("exp:1:0:10it")
    assert tyro.cli(Outer, args=["--ppo.target", "None"]).ppo.target is None
    default = Outer(ppo=Inner(learning_rate=Schedule.parse("tanh:1:0:5")))
    assert tyro.cli(Outer, args=[], default=default) == default


def test_command_line_help_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Outer, args=["--help"])
    text = capsys.readouterr().out
    assert "--ppo.learning-rate NUMBER|SCHEDULE" in text
    assert "Step size" in text
    assert "linear:0.01:0.0" in text
    with pytest.raises(SystemExit):
        tyro.cli(Outer, args=["--ppo.learning-rate", "linear:oops"])
    assert "START:END" in capsys.readouterr().err


def test_schedules_are_values() -> None:
    assert asdict(Outer())["ppo"]["learning_rate"] == 3e-4
    assert len({Schedule.parse("linear:1:0"), Schedule.parse("linear:1.0:0.0")}) == 1


# ---- the buffer


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = Scalar(Schedule.parse("linear:1:0:100it"))
        self.inner = nn.ModuleDict(
            {"mixing": Scalar(lambda steps, iteration: steps + iteration / 2), "fixed": Scalar(3)}
        )


def test_scalar_starts_at_the_beginning() -> None:
    module = Two()
    assert float(module.rate()) == 1.0
    assert float(Scalar(Schedule.parse("tanh:1:0"))()) == pytest.approx(0.880797, abs=1e-6)
    assert (module.rate().shape, module.rate().dtype) == ((), torch.float32)
    assert not list(module.parameters())


def test_advance_all_fills_the_same_buffers() -> None:
    module = Two()
    before = {name: x.data_ptr() for name, x in module.named_buffers()}
    advance_all(module, steps=10, iteration=25, total_steps=1000, total_iterations=1000)
    numbers = {name: float(x) for name, x in module.named_buffers()}
    assert numbers == {"rate.value": 0.75, "inner.mixing.value": 22.5, "inner.fixed.value": 3.0}
    assert {name: x.data_ptr() for name, x in module.named_buffers()} == before
    alone = Scalar(Schedule.parse("linear:1:0"))
    advance_all(alone, steps=500, iteration=0, total_steps=1000, total_iterations=1)
    assert float(alone()) == 0.5


def test_captured_code_sees_the_new_value() -> None:
    scalar = Scalar(Schedule.parse("linear:1:0:4"))
    x = torch.tensor([2.0])
    traced = make_fx(lambda x, rate: x * rate)(x, scalar())
    compiled = torch.compile(lambda x: x * scalar(), fullgraph=True, backend="eager")
    assert (float(traced(x, scalar())), float(compiled(x))) == (2.0, 2.0)
    scalar.advance(2, 0, 4, 1)
    assert (float(traced(x, scalar())), float(compiled(x))) == (1.0, 1.0)


def test_state_dict() -> None:
    module, other = Two(), Two()
    advance_all(module, 10, 25, 1000, 1000)
    other.load_state_dict(module.state_dict())
    assert float(other.rate()) == 0.75
    assert float(copy.deepcopy(module).rate()) == 0.75


def test_scalar_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        Scalar(math.nan)
    scalar = Scalar(lambda steps, _: 1.0 if steps == 0 else math.inf)
    with pytest.raises(ValueError, match="after 5 steps"):
        scalar.advance(5, 0, 10, 1)


def test_a_condition_holds_for_good_and_survives_a_checkpoint() -> None:
    source = Schedule.parse("when:episode/return>=0.95:1:0.25")
    scalar = Scalar(source)
    seen = []
    for number in (math.nan, 0.5, 0.95, 0.1):
        scalar.advance(0, 0, 1, 1)
        seen.append(float(scalar()))
        scalar.observe({"episode/return": number, "episode/length": 7.0})
    assert seen == [1.0, 1.0, 1.0, 0.25]  # seen at the end of an iteration, followed from the next one on
    resumed = Scalar(source)
    resumed.load_state_dict(scalar.state_dict())
    resumed.advance(0, 0, 1, 1)
    assert float(resumed()) == 0.25
    falling = Scalar(Schedule.parse("when:loss<=-1:0:3"))
    for number, expected in ((0.0, 0.0), (-1.0, 3.0), (5.0, 3.0)):
        falling.observe({"loss": number})
        falling.advance(0, 0, 1, 1)
        assert float(falling()) == expected
