"""Numbers that change while training: `Schedule`, its text form, and `Scalar`, the buffer that captured code reads."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tyro.constructors import PrimitiveConstructorSpec

from understudy.core.check import Config, In, Limit, fit

ScheduleKind = Literal["constant", "linear", "exp", "tanh", "piecewise", "step", "when"]
ScheduleUnit = Literal["steps", "iterations"]

SCHEDULE_GRAMMAR = """\
a number                         0.0003, 3e-4
linear|exp|tanh:START:END        over the whole training
linear|exp|tanh:START:END:LEN    over LEN environment steps (1e6) or iterations (100it)
piecewise:POS=VALUE,POS=VALUE    linear between the points; POS in steps (1e5) or iterations (50it)
step:POS=VALUE,POS=VALUE         the value of the last point passed
when:METRIC>=NUMBER:START:END    START until a logged metric gets there (>= or <=), END for good after that"""
"""The text form of a `Number`, one form per line, for help texts and error messages."""


class Condition(NamedTuple):
    """`metric >= threshold` (`rising`) or `metric <= threshold`."""

    metric: str
    rising: bool
    threshold: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `METRIC>=NUMBER` or `METRIC<=NUMBER`. Raises ValueError for any other text."""
        match = re.fullmatch(r"([\w./-]+)(>=|<=)(.+)", text)
        if match is None:
            raise ValueError(f"{text!r} is not METRIC>=NUMBER or METRIC<=NUMBER, such as episode/return>=0.95")
        return cls(match[1], match[2] == ">=", _parse_float(match[3]))

    def holds(self, number: float) -> bool:
        """Whether a value of the metric fulfils it; NaN does not."""
        return number >= self.threshold if self.rising else number <= self.threshold


@dataclass(frozen=True, kw_only=True)
class Schedule(Config):
    """A number as a function of training progress. Text form: `Schedule.parse`, `str`.

    With i the progress in `unit` and s = `length` (the whole training if None), value = end + (start - end) p(i):

    - linear: p = max(0, 1 - i / s), so `end` is reached after `length` and kept;
    - exp:    p = (1 - 1 / s)^i, so `length` is the time constant;
    - tanh:   p = (1 - tanh((i - s) / s)) / 2, so `length` is the half-way point (and p(0) = 0.88, not 1);
    - constant: `start`;
    - when:   `start` until an iteration ended with `condition` true, then `end` for good (the `Scalar` remembers it);
    - piecewise: linear between `points` ((position, value), ...), constant outside; step: the last point passed.

    Raises ValueError on an unknown kind or unit, a length below 1, non-finite numbers, missing or unordered points,
    an unreadable condition, or a field that the kind does not use.
    """

    PREFIX = "a schedule's "

    kind: ScheduleKind
    """Shape of the curve."""
    start: float = 0.0
    """Value at the beginning."""
    end: float = 0.0
    """Value that is approached (linear: reached)."""
    length: Annotated[int | None, In(1)] = None
    """Scale of the curve, in `unit`; None is the whole training."""
    unit: ScheduleUnit = "steps"
    """What progress is counted in: environment steps or iterations."""
    points: tuple[tuple[int, float], ...] = ()
    """Piecewise and step: (position, value), positions ascending."""
    condition: str = ""
    """When: a logged metric and what it must reach, `episode/return>=0.95`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "when" and self.condition:
            raise ValueError(f"a {self.kind} schedule has no condition; use kind='when'")
        if self.kind == "when":
            self.parsed_condition()
            if self.points or self.length is not None or self.unit != "steps":
                raise ValueError("a schedule with a condition has only start and end beside it")
        elif self.kind in ("piecewise", "step"):
            self._check_points()
        elif self.points:
            raise ValueError(f"a {self.kind} schedule has no points; use kind='piecewise' or 'step'")
        elif self.kind == "constant" and (self.end != 0.0 or self.length is not None or self.unit != "steps"):
            raise ValueError("a constant schedule has only a start; use kind='linear' for one that moves")

    def _check_points(self) -> None:
        positions = [position for position, _ in self.points]
        if not positions or positions[0] < 0 or any(a >= b for a, b in pairwise(positions)):
            raise ValueError(
                f"a {self.kind} schedule needs points ((position, value), ...), positions from 0 and ascending, "
                f"got {self.points}"
            )
        if self.start != 0.0 or self.end != 0.0 or self.length is not None:
            raise ValueError(f"a {self.kind} schedule has only points; leave out start, end and length")

    def parsed_condition(self) -> Condition:
        """The condition of a `when`. Raises ValueError if it is none."""
        return Condition.parse(self.condition)

    def extremes(self) -> tuple[float, ...]:
        """Numbers among which are the least and the greatest that the curve can take."""
        if self.points:
            return tuple(value for _, value in self.points)
        return (self.start,) if self.kind == "constant" else (self.start, self.end)

    @property
    def needs_total(self) -> bool:
        """Whether the curve depends on the length of the whole training."""
        return self.length is None and self.kind in ("linear", "exp", "tanh")

    def value(self, steps: int, iteration: int, total_steps: int, total_iterations: int) -> float:
        """The number after `steps` environment steps and `iteration` iterations, of so many in the whole training.

        That of a `when` before its condition held.
        """
        if self.kind in ("constant", "when"):
            return self.start
        progress, total = (steps, total_steps) if self.unit == "steps" else (iteration, total_iterations)
        if self.points:
            return self._at_point(progress)
        length = max(total, 1) if self.length is None else self.length
        if self.kind == "linear":
            share = max(0.0, 1.0 - progress / length)
        elif self.kind == "exp":
            share = (1.0 - 1.0 / length) ** progress
        else:
            share = 0.5 * (1.0 - math.tanh((progress - length) / length))
        return self.end + (self.start - self.end) * share

    def _at_point(self, progress: int) -> float:
        after = bisect_right([position for position, _ in self.points], progress)
        if after == 0:
            return self.points[0][1]
        position, value = self.points[after - 1]
        if self.kind == "step" or after == len(self.points):
            return value
        next_position, next_value = self.points[after]
        return value + (next_value - value) * (progress - position) / (next_position - position)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read the text form, e.g. "linear:3e-4:0:100it"; raise ValueError, with the grammar, if it is none."""
        try:
            return cls._parse(text.strip())
        except ValueError as error:
            raise ValueError(f"not a schedule: {text!r} ({error}). Write one of\n{SCHEDULE_GRAMMAR}") from None

    @classmethod
    def _parse(cls, text: str) -> Schedule:
        kind, colon, rest = text.partition(":")
        if not colon:
            return cls(kind="constant", start=_parse_float(kind))
        fields = rest.split(":")
        if kind == "constant" and len(fields) == 1:
            return cls(kind="constant", start=_parse_float(fields[0]))
        if kind == "when" and len(fields) == 3:
            return cls(kind="when", condition=fields[0], start=_parse_float(fields[1]), end=_parse_float(fields[2]))
        if kind in ("linear", "exp", "tanh") and len(fields) in (2, 3):
            length, unit = _parse_position(fields[2]) if len(fields) == 3 else (None, None)
            start, end = _parse_float(fields[0]), _parse_float(fields[1])
            return cls(kind=kind, start=start, end=end, length=length, unit=unit or "steps")  # type: ignore[arg-type]
        if kind in ("piecewise", "step") and len(fields) == 1:
            points, units = [], set()
            for pair in fields[0].split(","):
                position, _, value = pair.partition("=")
                number, unit = _parse_position(position)
                if number is None:
                    raise ValueError(f"{pair!r} is not POS=VALUE")
                points.append((number, _parse_float(value)))
                units.add(unit)
            if len(units) > 1:
                raise ValueError("positions in steps and in iterations are mixed")
            return cls(kind=kind, points=tuple(points), unit=units.pop())  # type: ignore[arg-type]
        fit(ScheduleKind, kind, "a schedule's kind")
        raise ValueError(f"{kind} does not take {len(fields)} fields")

    def __str__(self) -> str:
        """The text form: `Schedule.parse(str(schedule)) == schedule`."""
        suffix = "it" if self.unit == "iterations" else ""
        if self.kind == "constant":
            return f"constant:{self.start!r}"
        if self.kind == "when":
            return f"when:{self.condition}:{self.start!r}:{self.end!r}"
        if self.points:
            return f"{self.kind}:" + ",".join(f"{position}{suffix}={value!r}" for position, value in self.points)
        length = f"{'' if self.length is None else self.length}{suffix}"
        return f"{self.kind}:{self.start!r}:{self.end!r}" + (f":{length}" if length else "")


def _constructor(optional: bool) -> PrimitiveConstructorSpec[Any]:
    """How the command line reads and writes such a field: one word."""

    def read(words: list[str]) -> float | Schedule | None:
        if optional and words[0] == "None":
            return None
        schedule = Schedule.parse(words[0])
        return schedule if ":" in words[0] else schedule.start

    def is_one(value: Any) -> bool:
        return (optional and value is None) or (
            isinstance(value, int | float | Schedule) and not isinstance(value, bool)
        )

    metavar = "NUMBER|SCHEDULE|None" if optional else "NUMBER|SCHEDULE"
    return PrimitiveConstructorSpec(1, metavar, read, is_one, lambda number: [str(number)])


Number = Annotated[float | Schedule, _constructor(optional=False)]
"""The type of a config field that is a number or a `Schedule`; one token on the command line."""

OptionalNumber = Annotated[float | Schedule | None, _constructor(optional=True)]
"""`Number`, or None for off."""


Weight = Annotated[Number, In(0.0, 1e6)]
"""Weight of a loss."""

RewardWeight = Annotated[Number, In(-1e6, 1e6)]
"""Weight of a reward, of a bonus or of a punishment."""

Probability = Annotated[Number, In(0.0, 1.0)]


class Unconditional(Limit):
    """A number, or a schedule other than `when`: for numbers that move where no metric is at hand."""

    def complaint(self, value: Any) -> str:
        """As in `Limit`."""
        waits = isinstance(value, Schedule) and value.kind == "when"
        return "not wait for a metric, which has no effect here (use linear, exp, piecewise or step)" if waits else ""


class Scalar(nn.Module):
    """A number that may change while training, as a 0-D float32 buffer: captured code reads `scalar()`.

    `source` is a number, a `Schedule`, or a function (steps, iteration) -> float. The buffer is filled in place, so
    compiled code and CUDA graphs see the new value; it is part of the state dict, and the next `advance` follows
    `source` again. Whether the condition of a `when` ever held is a buffer too, moved by `observe`. Raises ValueError
    on a number that is not finite.
    """

    value: Tensor  # 0-D float32
    reached: Tensor  # 0-D bool, of a `when` only

    def __init__(
        self, source: float | Schedule | Callable[[int, int], float], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.source = source
        self.condition = source.parsed_condition() if isinstance(source, Schedule) and source.kind == "when" else None
        if self.condition is not None:
            self.register_buffer("reached", torch.zeros((), dtype=torch.bool, device=device))
        # at step 0 no schedule depends on the length of the training
        start = self._compute(0, 0, 1, 1)
        self.register_buffer("value", torch.tensor(start, dtype=torch.float32, device=device))

    def forward(self) -> Tensor:
        """The current value, 0-D (the buffer itself)."""
        return self.value

    @torch.no_grad()
    def advance(self, steps: int, iteration: int, total_steps: int, total_iterations: int) -> None:
        """Fill the buffer with the value after `steps` environment steps and `iteration` iterations; no host sync."""
        self.value.fill_(self._compute(steps, iteration, total_steps, total_iterations))
        if self.condition is not None:
            assert isinstance(self.source, Schedule)
            self.value.masked_fill_(self.reached, self.source.end)

    @torch.no_grad()
    def observe(self, metrics: Mapping[str, float]) -> None:
        """Look at host metrics: from the next `advance` on, the condition counts as having held if it holds now."""
        condition = self.condition
        if condition is not None and condition.metric in metrics and condition.holds(metrics[condition.metric]):
            self.reached.fill_(True)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return str(self.source)

    def _compute(self, steps: int, iteration: int, total_steps: int, total_iterations: int) -> float:
        if isinstance(self.source, Schedule):
            number = self.source.value(steps, iteration, total_steps, total_iterations)
        elif callable(self.source):
            number = float(self.source(steps, iteration))
        else:
            number = float(self.source)
        if not math.isfinite(number):
            raise ValueError(f"{self.source!r} gave {number} after {steps} steps: a scheduled number must be finite")
        return number


def advance_all(module: nn.Module, steps: int, iteration: int, total_steps: int, total_iterations: int) -> None:
    """`advance` every `Scalar` inside `module` (itself included)."""
    for part in module.modules():
        if isinstance(part, Scalar):
            part.advance(steps, iteration, total_steps, total_iterations)


def _parse_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number


def _parse_position(text: str) -> tuple[int | None, ScheduleUnit]:
    """LEN and POS: "100000", "1e5" (steps), "100it" (iterations), "it" (all iterations)."""
    unit: ScheduleUnit = "iterations" if text.endswith("it") else "steps"
    digits = text.removesuffix("it")
    if not digits and unit == "iterations":
        return None, unit
    number = _parse_float(digits)
    if number != int(number):
        raise ValueError(f"{text!r} is not a whole number of {unit}")
    return int(number), unit
