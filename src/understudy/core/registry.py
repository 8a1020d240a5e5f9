"""Names for things that are loaded on first use: the library's own, other packages' (entry points), the user's."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from understudy.core.check import nearest

T = TypeVar("T")

GROUPS = ("understudy.envs", "understudy.parts", "understudy.recipes", "understudy.loggers")
"""Entry point groups under which packages announce what they add."""


def load_object(reference: str) -> Any:
    """What `"module:attribute"` names. Raises ValueError where the module or the attribute is missing.

    The module of a running script is the script itself, not a second copy of it.
    """
    module_name, colon, path = reference.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"{reference!r} does not name an object: write 'module:attribute'")
    try:
        found: Any = sys.modules["__main__"] if module_name == _script_name() else importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{reference!r} names a module that cannot be imported: {error}") from error
    for name in path.split("."):
        if name not in dir(found):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise ValueError(f"{reference!r} names nothing: {module_name} has no {name!r}; {nearest(name, public)}")
        found = getattr(found, name)
        if isinstance(found, ModuleType):  # else "innocent:os.system" would lead out of the module that was named
            raise ValueError(
                f"{reference!r} leads to the module {found.__name__}; name something that is defined in one"
            )
    return found


def reference_to(thing: Any) -> str:
    """`"module:attribute"` of a class or function. Raises ValueError if that does not lead back to it."""
    module = _script_name() if thing.__module__ == "__main__" else thing.__module__
    if module is None or "<locals>" in thing.__qualname__:
        raise ValueError(
            f"{thing.__qualname__} cannot be found again by name, because it is defined in "
            f"{'a function' if module else 'an interactive session'}: define it at the top level of a file that can be "
            "imported, or register it under a name (us.parts.PARTS['my-part'] = MyConfig) wherever it is used"
        )
    reference = f"{module}:{thing.__qualname__}"
    if load_object(reference) is not thing:
        raise ValueError(f"{reference!r} is another object than the one in use; was its module loaded twice?")
    return reference


def _script_name() -> str | None:
    """The name under which the running script (`python my_script.py`, `python -m my_package.train`) can be imported."""
    main = vars(sys.modules["__main__"])
    spec, file = main.get("__spec__"), main.get("__file__")
    if spec is not None or file is None:
        return None if spec is None else str(spec.name)
    try:
        found = importlib.util.find_spec(Path(file).stem)
    except (ImportError, ValueError):
        return None
    return found.name if found and found.origin and Path(found.origin).resolve() == Path(file).resolve() else None


def summary_of(place: str) -> str:
    """First line of the docstring of what `"module:attribute"` names, read from the source: nothing is imported."""
    module, _, name = place.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a package that is broken, or a module without a file
        return ""
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body if spec and spec.origin else []
    found = (node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)
    return next(((ast.get_docstring(node) or "").partition("\n")[0] for node in found), "")


def announced_modules() -> set[str]:
    """Modules that installed packages announce as entry points of the library."""
    return {place.partition(":")[0] for group in GROUPS for place in _announced(group).values()}


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
        """The thing called `name`, or named by `"module:attribute"`. Raises ValueError with the nearest names."""
        if ":" in name:
            return cast("T", load_object(name))
        if name not in self:
            raise ValueError(f"unknown {self.what} {name!r}; {nearest(name, self)}")
        return self[name]

    def reserved(self, name: str) -> bool:
        """Whether the library or a package has the name."""
        return name in self._known()

    def name_of(self, thing: T) -> str | None:
        """The name under which a thing is registered, None if it is not."""
        for name, known in self._loaded.items():
            if known is thing:
                return name
        module = vars(thing)["__module__"]  # only things from the same module can be it: the others stay unloaded
        return next((n for n, p in self._known().items() if p.partition(":")[0] == module and self[n] is thing), None)

    def summary(self, name: str, *, strip: str = "") -> str:
        """First line of a thing's docstring, or of the one whose name lacks the ending `strip`; imports nothing."""
        if name in self._loaded:
            thing: Any = self._loaded[name]
            return summary_of(f"{thing.__module__}:{thing.__qualname__.removesuffix(strip)}")
        return summary_of(self._known()[name].removesuffix(strip))

    def _known(self) -> dict[str, str]:
        return {**_announced(self.group), **self._places}

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            self._loaded[name] = cast("T", load_object(self._known()[name]))
        return self._loaded[name]

    def __setitem__(self, name: str, thing: T) -> None:
        self._loaded[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._loaded, *self._known()}))

    def __len__(self) -> int:
        return len({*self._loaded, *self._known()})


@functools.cache
def _announced(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=group)}
