"""Read a foreign configuration key by key, and collect all that is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from understudy.core.check import fit, nearest
from understudy.core.schedules import Number, Schedule, ScheduleKind

T = TypeVar("T")

CURVES: dict[str, ScheduleKind] = {"linear": "linear", "exp": "exp", "tanh": "tanh"}
"""st_rl's names of schedules."""

MISSING = dataclasses.MISSING
"""What Isaac Lab's configurations hold where nothing was set."""


class Block:
    """One level of a configuration, a mapping or a dataclass; every key of it is taken, ignored or refused by name.

    What is wrong is a sentence in `problems`, which all blocks of a configuration share; reading goes on.
    """

    def __init__(self, values: Any, place: str, problems: list[str]) -> None:
        self.place, self.problems = place, problems
        if dataclasses.is_dataclass(values) and not isinstance(values, type):
            values = {field.name: vars(values)[field.name] for field in dataclasses.fields(values)}
        if not isinstance(values, Mapping):
            problems.append(f"{place.rstrip('.') or 'the configuration'} must be a mapping or a dataclass")
            values = {}
        self.left = {name: value for name, value in values.items() if value is not MISSING}
        self.known: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.left.get(name) is not None

    def take(self, name: str, kind: Any, default: Any) -> Any:
        """The value of a key, of the annotation `kind`; `default` where it is missing, None or of another kind."""
        self.known.add(name)
        value = self.left.pop(name, None)
        if value is None:
            return default
        try:
            return fit(kind, value, f"{self.place}{name}")
        except ValueError as error:
            self.problems.append(str(error))
            return default

    def choose(self, name: str, meanings: Mapping[str, T], default: str, *, lower: bool = False) -> T:
        """What the text of a key means here."""
        text = self.take(name, str, default)
        text = text.lower() if lower else text
        return meanings[text] if text in meanings else meanings[self.unknown(name, text, meanings, default)]

    def unknown(self, name: str, text: str, known: Iterable[str], default: str) -> str:
        """Note that a key's text means nothing here; go on with `default`."""
        self.problems.append(f"{self.place}{name} {text!r} has no counterpart ({nearest(text, known)})")
        return default

    def block(self, name: str) -> Block | None:
        """The block under a key; None where there is none."""
        self.known.add(name)
        value = self.left.pop(name, None)
        return None if value is None else Block(value, f"{self.place}{name}.", self.problems)

    def ignore(self, *names: str) -> None:
        """Keys that have no effect on the training."""
        self.known.update(names)
        for name in names:
            self.left.pop(name, None)

    def number(self, name: str, default: float | str, length: int) -> Number:
        """A number, or the name of one of st_rl's curves over iterations, `GET_PROB_FUNC(name, length)`."""
        value = self.take(name, float | str, default)
        if not isinstance(value, str):
            return float(value)
        if value not in CURVES:
            self.problems.append(f"{self.place}{name} {value!r} is neither a number nor one of {', '.join(CURVES)}")
            return 1.0
        return Schedule(kind=CURVES[value], start=1.0, end=0.0, length=length, unit="iterations")

    def class_name(self, default: str, known: Collection[str]) -> str:
        """The bare name of the class that `class_name` names: a class, "module:Class", "module.Class" or "Class"."""
        self.known.add("class_name")
        value = self.left.pop("class_name", None) or default
        text = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)
        module, _, name = text.replace(":", ".").rpartition(".")
        if name in known and module.split(".")[0] in ("", "rsl_rl", "st_rl", "isaaclab_rl"):
            return name
        self.problems.append(
            f"{self.place}class_name {text!r} is unknown: a class of your own becomes a part, a trunk or a policy "
            f"({nearest(name, known)})"
        )
        return next(iter(known))

    def merge(self, name: str) -> None:
        """Take the keys of a nested block for keys of this one, which come first."""
        nested = self.left.pop(name, None)
        if nested is not None:
            inner = Block(nested, f"{self.place}{name}.", self.problems).left
            self.left = {key: value for key, value in inner.items() if key != "class_name"} | self.left

    def refuse(self, name: str, why: str, *, unless: tuple[Any, ...] = ()) -> None:
        """A key that cannot be expressed, but where its value is empty or one of `unless`."""
        self.known.add(name)
        value = self.left.pop(name, None)
        empty = value is None or (isinstance(value, str | Mapping | list | tuple) and len(value) == 0)
        if not empty and value not in unless:
            self.problems.append(f"{self.place}{name}: {why}")

    def close(self) -> None:
        """Refuse the keys that nobody knows."""
        for name in self.left:
            self.problems.append(f"{self.place}{name} is unknown ({nearest(str(name), self.known)})")


def attempt(problems: list[str], build: Callable[..., T], fallback: Callable[..., T], **options: Any) -> T:
    """`build(**options)`; where a value is out of its range, the sentence about it goes to `problems`."""
    try:
        return build(**options)
    except ValueError as error:
        problems.append(str(error))
        return fallback()
