"""Config dataclasses as plain data (dicts, lists, numbers, strings) and back, guided by their annotations."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NewType, NotRequired, TypeVar

from understudy.core.check import fit, hints_of, nearest_option
from understudy.core.registry import announced_modules, reference_to
from understudy.core.schedules import Schedule
from understudy.parts import PARTS
from understudy.ppo.part import PartConfig

T = TypeVar("T")

AnyNumber = NewType("AnyNumber", float)
"""A number in a file that may also be NaN or infinite."""

PART_TAG = "part"
"""Key under which a part's config carries its registered name, or the `module:Config` of one that is not registered."""
_REFERENCE = re.compile(r"[^:/\\]+:[^\W\d][\w./-]*")
_SIMULATORS = ("isaaclab", "maniskill", "mjlab", "playground")
_DATA = ("kwargs", "run_dir", "wandb_project", "mlflow_experiment")
"""Endings of options whose text is data: nothing is imported by it."""


def to_plain(value: Any, where: str = "a config") -> Any:
    """Nested dicts, lists, numbers and strings that `from_plain` turns back into an equal value.

    Raises ValueError for a value that has no plain form (a tensor, a function), naming its place below `where`, and for
    a part that nobody could import.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule | Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: to_plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(inner, where) for inner in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(
            f"{where.removeprefix('a config.')} cannot hold a {type(value).__name__}, which no config file can: "
            "use numbers, strings, tuples, dicts or dataclasses"
        )
    tag = {}
    if isinstance(value, PartConfig):
        tag = {PART_TAG: PARTS.name_of(type(value)) or reference_to(type(value))}
    names = (field.name for field in dataclasses.fields(value))
    return tag | {name: to_plain(vars(value)[name], f"{where}.{name}") for name in names}


def from_plain(kind: type[T], plain: Any, where: str = "", *, allow: Collection[str] | None = ()) -> T:
    """A value of type `kind` from plain data; errors name the dotted place, below `where`.

    A part by `module:Config` is imported here, with the consent that `check_imports` asks for; None consents to all.
    Raises ValueError without consent, for an unknown or missing key (with the nearest known ones) and for a value that
    does not fit.
    """
    if allow is not None:
        check_imports(plain, allow, where, parts_only=True)
    return decode(kind, plain, where)


def decode(kind: type[T], plain: Any, where: str) -> T:
    """`from_plain` of data whose imports, if it names any, are allowed. Keys beside those of a TypedDict are kept."""
    value: T = _decode(kind, plain, where)
    return value


def check_imports(plain: Any, allow: Collection[str], where: str = "", *, parts_only: bool = False) -> None:
    """Raise ValueError if plain data names a `module:attribute` whose import nobody has allowed; imports nothing.

    Allowed are the modules in `allow`, those of packages in it, and entry points of the library that are installed.
    `parts_only`: look at parts, not at networks, environments, loggers and everything else that is imported later.
    """
    announced = announced_modules()
    for place, key, text in _texts(plain, where):
        if (parts_only and key != PART_TAG) or not (key == "id" or _REFERENCE.fullmatch(text)):
            continue
        known = (*allow, *announced, *(_SIMULATORS if key == "id" else ()))
        for module in text.split(":")[:-1]:  # Gymnasium imports what stands before the last colon of an id
            if not any(f"{module}.".startswith(f"{name}.") for name in known):
                raise ValueError(
                    f"{place} is {text!r}, which would import the module {module!r} and so run its code: allow that "
                    f"with --allow-import {module} (from Python: allow=({module!r},)) if you trust it"
                )


def is_reference(text: str) -> bool:
    """Whether a text has the form `module:attribute`."""
    return _REFERENCE.fullmatch(text) is not None


def _texts(plain: Any, where: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Place, key and value of every text in plain data that is not mere data."""
    if isinstance(plain, Mapping):
        for name, inner in plain.items():
            # a part may have any name
            if not str(name).endswith(_DATA) or (isinstance(inner, Mapping) and PART_TAG in inner):
                yield from _texts(inner, _below(where, name), str(name))
    elif isinstance(plain, list | tuple):
        for inner in plain:
            yield from _texts(inner, where, key)
    elif isinstance(plain, str):
        yield where, key, plain


def part_kind(name: str, where: str = "part") -> type[PartConfig]:
    """The config class of a registered part, or of `module:Config`, which is imported. Raises ValueError."""
    try:
        kind = PARTS.find(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, PartConfig) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"{where}: {name!r} is not the config of a part; name a dataclass that inherits us.PartConfig")
    return kind


def _decode(kind: Any, plain: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Annotated:
        return fit(kind, _decode(arguments[0], plain, where), where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(kind, arguments, plain, where)
    if isinstance(plain, str):
        if origin is Schedule or origin is Path:
            return Schedule.parse(plain) if origin is Schedule else Path(plain)
        if origin in (float, int) and re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", plain):
            plain = float(plain)  # YAML 1.1 reads 1e-3, unlike 1.0e-3, as text
    if origin is int and isinstance(plain, float) and plain.is_integer():
        plain = int(plain)  # total_steps: 1e5
    if kind is AnyNumber:
        return float(plain) if type(plain) in (int, float) else fit(float, plain, where)
    if isinstance(plain, list | tuple) and origin in (tuple, list) and arguments:
        several = origin is list or arguments[-1] is Ellipsis
        members = arguments[:1] * len(plain) if several else arguments
        if len(members) == len(plain):
            return origin(_decode(m, inner, f"{where}[{i}]") for i, (m, inner) in enumerate(zip(members, plain)))
    if isinstance(plain, Mapping):
        if not all(isinstance(key, str) for key in plain):
            raise ValueError(f"{where or 'the config'} has a key that is not text")
        if typing.is_typeddict(origin):
            return dict(plain) | _decode_record(origin, plain, where)
        if isinstance(origin, type) and issubclass(origin, Mapping) and arguments:
            return {key: _decode(arguments[1], inner, _below(where, key)) for key, inner in plain.items()}
        if origin is PartConfig:
            rest = {key: inner for key, inner in plain.items() if key != PART_TAG}
            if PART_TAG not in plain:
                raise ValueError(f"{where} lacks the key {PART_TAG!r}, the name of the part")
            return _decode_dataclass(part_kind(str(plain[PART_TAG]), _below(where, PART_TAG)), rest, where)
        if dataclasses.is_dataclass(origin):
            return _decode_dataclass(origin, plain, where)
    elif typing.is_typeddict(origin):
        raise ValueError(f"{where} must be a mapping, got {plain!r:.200}")
    return fit(kind, plain, where)


def _decode_record(kind: Any, plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    optional = {key for key, hint in hints.items() if typing.get_origin(hint) is NotRequired}
    if lacking := [key for key in hints if key not in plain and key not in optional]:
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    kinds = {key: typing.get_args(hint)[0] if key in optional else hint for key, hint in hints.items()}
    return {key: _decode(kinds[key], plain[key], _below(where, key)) for key in hints if key in plain}


def _decode_union(kind: Any, members: tuple[Any, ...], plain: Any, where: str) -> Any:
    if type(plain) in members:
        return plain  # an exact match wins: 3 stays an int where int and float are both allowed
    telling: ValueError | None = None
    for member in members:
        try:
            return _decode(member, plain, where)
        except ValueError as error:
            if member is Schedule and isinstance(plain, str):
                telling = ValueError(f"{where}: {error}")
            elif member is AnyNumber or (dataclasses.is_dataclass(member) and isinstance(plain, Mapping)):
                telling = error
    if telling:  # a schedule or a nested config knows what is wrong in it; the others are named together
        raise telling
    return fit(kind, plain, where)


def _decode_dataclass(kind: Any, plain: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in plain:
        if key not in fields:
            raise ValueError(f"there is no option {_below(where, key)}; {nearest_option(str(key), kind, fields)}")
    missing = dataclasses.MISSING
    required = [name for name, field in fields.items() if field.default is field.default_factory is missing]
    if lacking := [name for name in required if name not in plain]:
        raise ValueError(f"{where or 'the config'} lacks {', '.join(lacking)}")
    hints = hints_of(kind)
    return kind(**{key: _decode(hints.get(key, Any), inner, _below(where, key)) for key, inner in plain.items()})


def _below(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
