"""Names for things that are loaded on first use: the library's own, other packages' (entry points), the user's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

from understudy.core.check import nearest

T = TypeVar("T")


def load_object(reference: str) -> Any:
    """What `"module:attribute"` names. Raises ValueError where the module or the attribute is missing."""
    module_name, colon, path = reference.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"{reference!r} does not name an object: write 'module:attribute'")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{reference!r} names a module that cannot be imported: {error}") from error
    for name in path.split("."):
        if name not in dir(found):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise ValueError(f"{reference!r} names nothing: {module_name} has no {name!r}; {nearest(name, public)}")
        found = getattr(found, name)
    return found


class Registry(MutableMapping[str, T]):
    """Things of one kind by name; a mapping whose values are imported when they are asked for.

    `own` maps names to `"module:attribute"`. Packages announce theirs under the entry point group `group`; a program
    registers its own by item assignment, which wins over both. A missing name is a KeyError from `[]`; `find` raises
    ValueError with the nearest names.
    """

    def __init__(self, what: str, group: str, own: Mapping[str, str]) -> None:
        self.what, self.group = what, group
        self._places = dict(own)
        self._loaded: dict[str, T] = {}

    def find(self, name: str) -> T:
        """The thing called `name`. Raises ValueError, with the nearest names, if there is none."""
        if name not in self:
            raise ValueError(f"unknown {self.what} {name!r}; {nearest(name, self)}")
        return self[name]

    def reserved(self, name: str) -> bool:
        """Whether the library or a package has the name."""
        return name in self._places or name in self._announced()

    def name_of(self, thing: T) -> str | None:
        """The name under which a thing is registered, None if it is not."""
        return next((name for name, known in self._loaded.items() if known is thing), None) or self._name_of_own(thing)

    def _name_of_own(self, thing: Any) -> str | None:
        # only things from the same module can be it: nothing else is imported for the comparison
        for name, place in self._places.items():
            if place.partition(":")[0] == thing.__module__ and self[name] is thing:
                return name
        for name, point in self._announced().items():
            if point.module == thing.__module__ and self[name] is thing:
                return name
        return None

    def _announced(self) -> dict[str, EntryPoint]:
        return _entry_points(self.group)

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name in self._places:
                self._loaded[name] = load_object(self._places[name])
            else:
                self._loaded[name] = cast("T", self._announced()[name].load())
        return self._loaded[name]

    def __setitem__(self, name: str, thing: T) -> None:
        self._loaded[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._places or name in self._announced()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._loaded, *self._places, *self._announced()}))

    def __len__(self) -> int:
        return len({*self._loaded, *self._places, *self._announced()})


@functools.cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
