"""Borders: a file from outside is parsed, not trusted, and every failure names it and the remedy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

LIMIT_VARIABLE = "UNDERSTUDY_MAX_UNPACKED_GIB"
"""Environment variable: memory in GiB that a small file may ask for."""

_HARMLESS_GIB = 0.25
_USUAL_RATIO = 50  # arrays of numbers and images rarely pack better
_MOST_VALUES, _DEEPEST = 1_000_000, 100
_MOST_YAML_VALUES = 50_000  # it takes seconds to read so many
LONGEST_YAML = 2**20
"""Characters of the longest YAML that is read."""


@contextmanager
def parsing(source: str | Path, remedy: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """Turn any failure while `source` is read into one `error` that names the source, the cause and the remedy.

    An `error` that names the source already passes as it is, and so does ImportError (a missing extra).
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as cause:  # parsers of damaged bytes raise whatever they stumble over
        if isinstance(cause, error) and str(source) in str(cause):
            raise
        if isinstance(cause, FileNotFoundError):
            raise error(f"there is no file {source}") from cause
        said = " ".join(str(cause).split())[:160]
        raise error(f"{source} is damaged or of another format ({type(cause).__name__}: {said}); {remedy}") from cause


def check_unpacked(source: str | Path, packed: int, unpacked: int) -> None:
    """Raise ValueError before memory is taken for `unpacked` bytes that a file of `packed` bytes claims to hold.

    Refused are claims that exceed both 50 times the file and UNDERSTUDY_MAX_UNPACKED_GIB (0.25 GiB unless set).
    """
    allowed = float(os.environ.get(LIMIT_VARIABLE) or _HARMLESS_GIB) * 2**30
    if unpacked > allowed and unpacked > packed * _USUAL_RATIO:
        raise ValueError(
            f"{source} claims {unpacked / 2**30:.1f} GiB in {packed:,} bytes, so it is damaged or means to exhaust "
            f"memory; if you trust it, set the environment variable {LIMIT_VARIABLE}={unpacked / 2**30 + 1:.0f}"
        )


def check_nesting(plain: Any, most: int = _MOST_VALUES) -> None:
    """Raise ValueError if plain data has more than `most` containers and keys, or more than 100 levels.

    What is there several times counts several times: a program that walks through the data takes that long.
    """
    count, level = 0, [plain]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict | list | tuple):
                count += len(value)
                if count > most:
                    raise ValueError(f"it holds more than {most:,} values")
                inner.extend(value.values() if isinstance(value, dict) else value)
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Strict JSON. Raises ValueError for a key that is there twice and, if `finite`, for NaN, infinity and 1e999."""
    number = _finite if finite else float
    plain = json.loads(text, object_pairs_hook=_unique, parse_constant=number, parse_float=number)
    check_nesting(plain)
    return plain


def parse_yaml(text: str) -> Any:
    """YAML of plain data. Raises ValueError, in one line, for a key that is there twice, and for what is too large."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has more than {LONGEST_YAML:,} characters")
    try:
        plain = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is not valid YAML: {' '.join(str(error).split())[:300]}") from error
    check_nesting(plain, _MOST_YAML_VALUES)
    return plain


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in pairs:
        if key in plain:
            raise ValueError(f"it has the key {key[:100]!r} twice")
        plain[key] = value
    return plain


class _PlainLoader(yaml.SafeLoader):
    """Counts values with every alias written out, before any is built; refuses a key that is there twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.count, self.depth, self.sizes = 0, 0, dict[yaml.Node, int]()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; one that is still being composed cannot be its own alias."""
        before = self.count
        self.depth += 1
        if self.depth > _DEEPEST:  # before the scanner, whose time grows with the square of the depth, gets there
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        self.count = before + self.sizes[node] if node in self.sizes else self.count + 1
        self.sizes.setdefault(node, self.count - before)
        if self.count > _MOST_YAML_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_YAML_VALUES:,} values")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping."""
        node = super().compose_mapping_node(anchor)
        _unique((key.value, None) for key, _ in node.value if isinstance(key.value, str))
        return node
