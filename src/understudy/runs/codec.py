"""Config dataclasses as plain data (dicts, lists, numbers, strings) and back, guided by their type annotations."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from understudy.core.check import nearest
from understudy.core.schedules import Schedule
from understudy.parts import PARTS
from understudy.ppo.part import PartConfig

T = TypeVar("T")

PART_TAG = "part"
"""Key under which a part's config carries its registered name."""


def to_plain(value: Any) -> Any:
    """Nested dicts, lists, numbers and strings that `from_plain` turns back into an equal value.

    Raises ValueError for a value that has no plain form (a tensor, an object).
    """
    if isinstance(value, PartConfig):
        return {PART_TAG: _part_name(type(value)), **_fields_to_plain(value)}
    if isinstance(value, Schedule):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_to_plain(value)
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"a config cannot hold a {type(value).__name__}; use numbers, strings, tuples, dicts or dataclasses"
    )


def from_plain(kind: type[T], plain: Any, where: str = "config") -> T:
    """A value of type `kind` from plain data; `where` is the dotted place that errors name.

    Raises ValueError for an unknown or missing key (with the nearest known ones) and for a value of another type.
    """
    value: T = _decode(kind, plain, where)
    return value


def _fields_to_plain(value: Any) -> dict[str, Any]:
    return {field.name: to_plain(value.__getattribute__(field.name)) for field in dataclasses.fields(value)}


def _decode(kind: Any, plain: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return plain
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, plain, where)
    if origin is Literal:
        if plain in arguments:
            return plain
        raise ValueError(f"{where} is {plain!r}; choose one of {', '.join(map(repr, arguments))}")
    if origin in (tuple, list) or kind in (tuple, list):
        return _decode_sequence(origin or kind, arguments, plain, where)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(plain, Mapping), "a mapping", plain, where)
        return {key: _decode(arguments[1], inner, f"{where}.{key}") for key, inner in plain.items()}
    if kind is PartConfig:
        return _decode_part(plain, where)
    if isinstance(kind, type) and issubclass(kind, Schedule):
        _require(isinstance(plain, str), "a schedule", plain, where)
        return Schedule.parse(plain)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, plain, where)
    return _decode_scalar(kind, plain, where)


def _decode_scalar(kind: Any, plain: Any, where: str) -> Any:
    if kind is float:
        if isinstance(plain, str):  # YAML 1.1 reads 1e-3, unlike 1.0e-3, as a string
            try:
                return float(plain)
            except ValueError:
                pass
        _require(isinstance(plain, int | float) and not isinstance(plain, bool), "a number", plain, where)
        return float(plain)
    if kind is int:
        _require(isinstance(plain, int) and not isinstance(plain, bool), "a whole number", plain, where)
        return plain
    if kind is Path:
        _require(isinstance(plain, str), "a path", plain, where)
        return Path(plain)
    if kind in (None, type(None)):
        _require(plain is None, "null", plain, where)
        return None
    if kind in (bool, str):
        _require(isinstance(plain, kind), "true or false" if kind is bool else "text", plain, where)
        return plain
    if isinstance(kind, type) and isinstance(plain, kind):
        return plain
    raise ValueError(f"{where} is {plain!r}, which does not fit its type {kind}")


def _decode_union(members: tuple[Any, ...], plain: Any, where: str) -> Any:
    if type(plain) in members:
        return plain  # an exact match wins: 3 stays an int where int and float are both allowed
    complaints = []
    for member in members:
        try:
            return _decode(member, plain, where)
        except ValueError as error:
            complaints.append(str(error))
    # the last words of a dataclass or a schedule say more than "null expected"
    raise ValueError(max(complaints, key=len))


def _decode_sequence(kind: type, members: tuple[Any, ...], plain: Any, where: str) -> Any:
    _require(isinstance(plain, list | tuple), "a list", plain, where)
    if not members:
        return kind(plain)
    if kind is list or (len(members) == 2 and members[1] is Ellipsis):
        return kind(_decode(members[0], inner, f"{where}[{i}]") for i, inner in enumerate(plain))
    _require(len(plain) == len(members), f"{len(members)} values", plain, where)
    return tuple(_decode(member, inner, f"{where}[{i}]") for i, (member, inner) in enumerate(zip(members, plain)))


def _decode_part(plain: Any, where: str) -> PartConfig:
    _require(isinstance(plain, Mapping) and PART_TAG in plain, f"a mapping with the key {PART_TAG!r}", plain, where)
    name = plain[PART_TAG]
    if name not in PARTS:
        raise ValueError(f"{where}.{PART_TAG} is {name!r}, which is no part; {nearest(str(name), PARTS)}")
    part: PartConfig = _decode_dataclass(PARTS[name], {k: v for k, v in plain.items() if k != PART_TAG}, where)
    return part


def _decode_dataclass(kind: Any, plain: Any, where: str) -> Any:
    _require(isinstance(plain, Mapping), "a mapping", plain, where)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in plain:
        if key not in fields:
            raise ValueError(f"{where}.{key} is no option; {nearest(str(key), fields)}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in plain]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**{key: _decode(hints[key], inner, f"{where}.{key}") for key, inner in plain.items()})


def _part_name(kind: type[PartConfig]) -> str:
    for name, registered in PARTS.items():
        if registered is kind:
            return name
    raise ValueError(f"{kind.__name__} is not registered; add it to understudy.parts.PARTS before storing a config")


def _require(condition: bool, expected: str, plain: Any, where: str) -> None:
    if not condition:
        raise ValueError(f"{where} is {plain!r}; expected {expected}")
