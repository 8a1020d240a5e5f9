"""Checks shared by every room: the nearest name to a misspelt one, and configs validated from their annotations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import reprlib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar, cast, runtime_checkable

from understudy.core.origin_names import NO_COUNTERPART, ORIGIN_NAMES


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps with a misspelt or abbreviated name: the nearest known ones, or the first 20."""
    names = {known_name.lower(): known_name for known_name in sorted(known)}
    initials = {key: "".join(word[:1] for word in key.split("_")) for key in names if "_" in key}
    short = [key for key, letters in initials.items() if letters == name.lower()][:3]
    for cutoff in (0.8, 0.5):  # a typing error first, then what merely looks like it
        if close := short or get_close_matches(name.lower(), names, n=3, cutoff=cutoff):
            return f"did you mean {' or '.join(names[found] for found in close)}?"
    shown = [*names.values()][:20] + ["..."] * (len(names) > 20)
    return f"known: {', '.join(shown)}" if names else "none is known"


def without_counterpart(name: str) -> str:
    """A clause about an option of another library that does not exist here; "" for any other name."""
    why = NO_COUNTERPART.get(name)
    return f"another library's option, which does not exist here: {why}" if why else ""


def nearest_option(name: str, kind: type, known: Iterable[str]) -> str:
    """A clause that helps with an option that the config `kind` lacks.

    Another library's name is answered with ours: the field of this config, or the path to another one; or with why it
    does not exist here.
    """
    if name not in known and (reason := without_counterpart(name)):
        return reason
    meant = ORIGIN_NAMES.get(name, ())
    place = (kind.PREFIX if issubclass(kind, Config) else "") or f"{kind.__name__}."
    here = [path.rpartition(".")[2] for path in meant if f".{path}".rpartition(".")[0].endswith(f".{place[:-1]}")]
    below = [path for path in meant if path.startswith(place)]  # in a config that this one holds
    return f"it is called {' or '.join((here or below or meant)[:3])} here" if meant else nearest(name, known)


class Limit(ABC):
    """What an annotation asks of a value in addition to its type: `Annotated[float, In(0.0, 1.0)]`."""

    @abstractmethod
    def complaint(self, value: Any) -> str:
        """What is wrong with a value of the right type, as in `fit`; empty if nothing is."""


@dataclass(frozen=True)
class In(Limit):
    """Range of a number, of the numbers in a list, or of a schedule: `Annotated[float, In(0.0, 1.0)]`.

    The ends belong to the range, except those listed in `without`: `In(0.0, without=(0.0,))` is "greater than 0".
    NaN lies in no range.
    """

    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()

    def complaint(self, value: Any) -> str:
        """As in `Limit`."""
        several = value.extremes() if isinstance(value, _Curve) else value
        numbers = several if isinstance(several, tuple | list) else (several,)
        outside = [x for x in numbers if not self.low <= x <= self.high or x in self.without]
        if not outside:
            return ""
        if self.high <= 1.0:
            left, right = "(" if self.low in self.without else "[", ")" if self.high in self.without else "]"
            return f"lie in {left}{self.low:g}, {self.high:g}{right}"
        if outside[0] <= self.low:
            return f"be {'greater than' if self.low in self.without else 'at least'} {self.low:g}"
        return f"be {'less than' if self.high in self.without else 'at most'} {self.high:g}"


class Filled(Limit):
    """Not empty: text with a visible character, or a list with an entry."""

    def complaint(self, value: Any) -> str:
        """As in `Limit`."""
        return "" if (value.strip() if isinstance(value, str) else value) else "not be empty"


LARGEST = 3.4028234663852886e38
"""The largest float32: numbers beyond cannot become tensors."""

Size = Annotated[int, In(1, 16_384)]
"""Width of a layer; wider ones take minutes to initialise and gigabytes to train."""


@runtime_checkable
class _Curve(Protocol):
    """A number that changes while training (`core.schedules.Schedule`)."""

    def extremes(self) -> tuple[float, ...]: ...


class _Signature:
    """`__signature__` of a class whose `__new__` would hide its `__init__` from `inspect.signature`."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        parameters = inspect.signature(vars(owner)["__init__"]).parameters if "__init__" in vars(owner) else {}
        return inspect.Signature([*parameters.values()][1:])


class Config:
    """Base of every config, a frozen keyword-only dataclass: fields are checked against their annotations.

    Checked are type, `Literal` choices, `Limit`s (of a schedule: of all values that it takes) and that numbers are
    finite and fit a tensor. A list given for a tuple becomes one, NumPy's numbers become Python's. A subclass with a
    `__post_init__` of its own calls this one first. Raises ValueError that names the field, `PREFIX` before it, and
    TypeError for an unknown option, with the nearest known one or what another library's option is called here.
    """

    __signature__ = _Signature()

    PREFIX: ClassVar[str] = ""
    """Place of this config in a training's, with a dot at its end: `ppo.`."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Name what an unknown option should be called, which the `__init__` of dataclasses does not."""
        known = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
        for name in options.keys() - known:
            raise TypeError(f"{cls.__name__} has no option {name!r}; {nearest_option(name, cls, known)}")
        return super().__new__(cls)

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
    """`value` as a value of the annotation `kind`; raises ValueError, with the place `where`, if it is not one."""
    wrong = _complaint(kind, value)
    if wrong:
        raise ValueError(f"{where} must {wrong}, got {value if isinstance(value, _Curve) else _SHORT.repr(value)}")
    return _converted(kind, value)


F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """A public function that names what an unknown option should be called, and checks values as a `Config` does.

    Checked are numbers, texts and choices, where annotations can be resolved; the function knows its objects better.
    Raises TypeError and ValueError as `Config` does.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in known:
                theirs = [last for path in ORIGIN_NAMES.get(name, ()) if (last := path.rpartition(".")[2]) in known]
                meant = f"it is called {theirs[0]} here" if theirs else nearest_option(name, object, known)
                raise TypeError(f"{function.__name__} has no option {name!r}; {meant}")
        hints = _hints_of_call(function)
        for name, value in (*zip(known, arguments), *options.items()):
            if value is not known[name].default and _plain(kind := hints.get(name, Any)):
                fit(kind, value, f"{function.__name__}: {name}")
        return function(*arguments, **options)

    return cast(F, call)


def _plain(kind: Any) -> bool:
    """Whether an annotation names no class but Python's own."""
    members = typing.get_args(kind)
    return all(map(_plain, members)) if members else not isinstance(kind, type) or kind.__module__ == "builtins"


@functools.cache
def _hints_of_call(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        return {}


class _Short(reprlib.Repr):
    """The beginning of any value's text."""

    def repr_int(self, x: int, level: int) -> str:
        """Of more than 4,300 digits, Python prints none."""
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length():,} bits"


_SHORT = _Short()
"""Values in messages: a file may hold one that takes forever to print."""
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20
_SHORT.maxstring, _SHORT.maxother = 120, 200


def _complaint(kind: Any, value: Any) -> str:
    """What is wrong with a value, as the rest of a sentence that begins with "must"; empty if nothing is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        wrong = _complaint(arguments[0], value)
        if wrong or value is None:
            return wrong
        return next((c for limit in arguments[1:] if isinstance(limit, Limit) and (c := limit.complaint(value))), "")
    if origin is Literal:
        known = tuple(map(str, arguments))
        # True == 1, which Literal[1] does not mean
        fits = any(type(value) is type(choice) and value == choice for choice in arguments)
        given = value if isinstance(value, str) else _SHORT.repr(value)
        return "" if fits else f"be one of {', '.join(known)} ({nearest(given[:100], known)})"
    if origin in (typing.Union, types.UnionType):
        complaints = [_complaint(member, value) for member in arguments]
        if not all(complaints):
            return ""
        said = [c for member, c in zip(arguments, complaints) if member is not type(None)]
        return said[0] if len(said) == 1 else " or ".join(said)
    if origin in (tuple, list) or kind in (tuple, list):
        return _sequence_complaint(arguments, value, tuple if origin is tuple or kind is tuple else list)
    if origin is Collection:
        if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
            return f"be a list of {_PLURALS.get(arguments[0], 'values')}"
        return next((f"in each entry {c}" for x in value if (c := _complaint(arguments[0], x))), "")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return "be a mapping"
        if any(_complaint(arguments[0], key) for key in value):
            return "have texts as its keys"
        return next((f"in each entry {c}" for inner in value.values() if (c := _complaint(arguments[1], inner))), "")
    return _plain_complaint(kind, value)


def _sequence_complaint(members: tuple[Any, ...], value: Any, kind: type) -> str:
    if not isinstance(value, tuple | list):
        return f"be a list of {_PLURALS.get(members[0] if members else None, 'values')}"
    if not members:
        return ""
    if kind is tuple and not (len(members) == 2 and members[1] is Ellipsis):
        if len(value) != len(members):
            return f"have {len(members)} values"
        return next((wrong for member, x in zip(members, value) if (wrong := _complaint(member, x))), "")
    return next((f"in each entry {wrong}" for x in value if (wrong := _complaint(members[0], x))), "")


_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts", Size: "whole numbers"}
_NAMES = {str: "be text", bool: "be true or false", type(None): "be None"}


def _plain_complaint(kind: Any, value: Any) -> str:
    if kind is Any or not isinstance(kind, type):
        return ""
    if kind is float:
        if not isinstance(value, Real) or isinstance(value, bool):
            return "be a number"
        if -LARGEST <= value <= LARGEST:  # type: ignore[operator]  # reals are ordered
            return ""
        return "be finite" if value != value or value in (math.inf, -math.inf) else "fit a float32"
    if kind is int:
        if not isinstance(value, Integral) or isinstance(value, bool):
            return "be a whole number"
        return "" if -(2**63) <= int(value) < 2**63 else "fit 64 bits"
    if isinstance(value, kind):
        return ""
    if dataclasses.is_dataclass(kind):
        needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
        arguments = ", ".join(f"{name}=..." for name in needed)
        in_a_file = f", in a file {{{', '.join(f'{name}: ...' for name in needed)}}}" if needed else ""
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        return f"be {article} {kind.__name__}, written {kind.__name__}({arguments}){in_a_file}"
    return _NAMES.get(kind, f"be {'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}")


def _converted(kind: Any, value: Any) -> Any:
    """A list as the tuple, and a number as the float or int, that the annotation asks for."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _converted(arguments[0], value)
    if origin in (typing.Union, types.UnionType):
        return next((_converted(m, value) for m in arguments if not _complaint(m, value)), value)
    if kind in (int, float) and type(value) is not kind:
        return kind(value)
    if isinstance(value, list | tuple) and (origin is tuple or kind is tuple):
        members = arguments or (Any, ...)
        each = members[:1] * len(value) if len(members) == 2 and members[1] is Ellipsis else members
        fitting = tuple(_converted(member, x) for member, x in zip(each, value))
        return value if isinstance(value, tuple) and all(a is b for a, b in zip(fitting, value)) else fitting
    return value
