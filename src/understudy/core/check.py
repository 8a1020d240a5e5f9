"""Checks shared by every room: the nearest name to a misspelt one, and configs validated from their annotations."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps with a misspelt name: the nearest known names, whatever their case, or the first 20."""
    names = {known_name.lower(): known_name for known_name in sorted(known)}
    for cutoff in (0.8, 0.5):  # a typing error first, then what merely looks like it
        if close := get_close_matches(name.lower(), names, n=3, cutoff=cutoff):
            return f"did you mean {' or '.join(names[found] for found in close)}?"
    shown = [*names.values()][:20] + ["..."] * (len(names) > 20)
    return f"known: {', '.join(shown)}" if names else "none is known"


class In(NamedTuple):
    """Range of a config's number or schedule: `Annotated[float, In(0.0, 1.0)]`.

    The ends belong to the range, except those listed in `without`: `In(0.0, without=(0.0,))` is "greater than 0".
    """

    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()

    def holds(self, number: float) -> bool:
        """Whether a number lies in the range; NaN never does."""
        return self.low <= number <= self.high and number not in self.without

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be {'greater than' if self.low in self.without else 'at least'} {self.low:g}"
        left, right = "(" if self.low in self.without else "[", ")" if self.high in self.without else "]"
        return f"lie in {left}{self.low:g}, {self.high:g}{right}"


@runtime_checkable
class _Curve(Protocol):
    """A number that changes while training (`core.schedules.Schedule`)."""

    def extremes(self) -> tuple[float, ...]: ...


class Config:
    """Base of every config, a frozen keyword-only dataclass: fields are checked against their annotations.

    Checked are type, `Literal` choices, `In` ranges (of a schedule: of all values that it takes) and finiteness; a
    list given for a tuple becomes one. A subclass with a `__post_init__` of its own calls this one first. Raises
    ValueError that names the field, `PREFIX` before it.
    """

    PREFIX: ClassVar[str] = ""
    """Place of this config in a training's, with a dot at its end: `ppo.`."""

    def __post_init__(self) -> None:
        assert dataclasses.is_dataclass(self)
        for name, kind in hints_of(type(self)).items():
            value = vars(self)[name]
            fitting = fit(kind, value, f"{self.PREFIX}{name}")
            if fitting is not value:
                object.__setattr__(self, name, fitting)


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Annotations of a dataclass's fields; none where only a type checker can resolve them."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError:
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def fit(kind: Any, value: Any, where: str) -> Any:
    """`value` as a value of the annotation `kind`; raises ValueError, with the place `where`, if it is none."""
    wrong = _complaint(kind, value)
    if wrong:
        raise ValueError(f"{where} must {wrong}, got {value if isinstance(value, _Curve) else repr(value)}")
    return _converted(kind, value)


def _complaint(kind: Any, value: Any) -> str:
    """What is wrong with a value, as the rest of a sentence that begins with "must"; empty if nothing is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        wrong = _complaint(arguments[0], value)
        if wrong or value is None:
            return wrong
        return next((str(r) for r in arguments[1:] if isinstance(r, In) and not _within(r, value)), "")
    if origin is Literal:
        known = tuple(map(str, arguments))
        return "" if value in arguments else f"be one of {', '.join(known)} ({nearest(str(value), known)})"
    if origin in (typing.Union, types.UnionType):
        complaints = [_complaint(member, value) for member in arguments]
        if not all(complaints):
            return ""
        said = [c for member, c in zip(arguments, complaints) if member is not type(None)]
        return said[0] if len(said) == 1 else " or ".join(said)
    if origin in (tuple, list) or kind in (tuple, list):
        return _sequence_complaint(arguments, value, tuple if origin is tuple or kind is tuple else list)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return "be a mapping"
        return next((f"in each entry {c}" for inner in value.values() if (c := _complaint(arguments[1], inner))), "")
    return _plain_complaint(kind, value)


def _sequence_complaint(members: tuple[Any, ...], value: Any, kind: type) -> str:
    if not isinstance(value, tuple | list):
        return "be a list of values"
    if not members:
        return ""
    if kind is tuple and not (len(members) == 2 and members[1] is Ellipsis):
        if len(value) != len(members):
            return f"have {len(members)} values"
        return next((wrong for member, x in zip(members, value) if (wrong := _complaint(member, x))), "")
    return next((f"in each entry {wrong}" for x in value if (wrong := _complaint(members[0], x))), "")


def _plain_complaint(kind: Any, value: Any) -> str:
    if kind is Any or not isinstance(kind, type):
        return ""
    if kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "be a number"
        return "" if math.isfinite(value) else "be finite"
    if kind is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "be a whole number"
    if isinstance(value, kind):
        return ""
    names = {str: "be text", bool: "be true or false", type(None): "be None"}
    return names.get(kind, f"be {'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}")


def _within(limits: In, value: Any) -> bool:
    if isinstance(value, _Curve):
        return all(limits.holds(x) for x in value.extremes())
    if isinstance(value, tuple | list):
        return all(limits.holds(x) for x in value)
    return limits.holds(value)


def _converted(kind: Any, value: Any) -> Any:
    """A list as the tuple that the annotation asks for."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _converted(arguments[0], value)
    if isinstance(value, list):
        if origin in (typing.Union, types.UnionType):
            return next((_converted(m, value) for m in arguments if not _complaint(m, value)), value)
        if origin is tuple or kind is tuple:
            return tuple(value)
    return value


def check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest name, unless `value` is one of `known`."""
    if value not in known:
        close = get_close_matches(value, known, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {field} {value!r}{hint} (known: {', '.join(known)})")
