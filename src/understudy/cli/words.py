"""Words of a command as its options: numbers as people write them, and the option that was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from understudy.core.check import without_counterpart
from understudy.core.origin_names import ORIGIN_NAMES

T = TypeVar("T")

_NUMBERS = ConstructorRegistry()


@_NUMBERS.primitive_rule
def _whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """Whole numbers, also as 1e5."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: _read_whole(words[0]),
        is_instance=lambda x: isinstance(x, int) and not isinstance(x, bool),
        str_from_instance=lambda x: [str(x)],
    )


def _read_whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        number = float(word)
    if not number.is_integer():
        raise ValueError(f"{word} is not a whole number")
    return int(number)


def parse(
    kind: Callable[..., T],
    words: Sequence[str],
    program: str,
    known: Iterable[str],
    *,
    otherwise: str = "see --help",
    **options: Any,
) -> T:
    """What tyro makes of `words`. Raises ValueError for an unknown option: the `known` ones meant, or `otherwise`.

    Leaves with SystemExit as tyro does, its help or its message printed.
    """
    found, unknown = tyro.cli(kind, prog=program, args=words, registry=_NUMBERS, return_unknown_args=True, **options)
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
        raise ValueError(f"{program} has no option {word}; {meant(word, known) or otherwise}")
    result: T = found
    return result


def meant(word: str, known: Iterable[str]) -> str:
    """A clause with the options that a misspelt, shortened or abbreviated one may stand for: `--lr`, `--env`."""
    names = sorted(set(known), key=lambda name: (name.count("."), name))
    bare = word.strip("-").replace("_", "-").lower()
    ends = {name: name.strip("-").split(".")[-1] for name in names}
    last = bare.rpartition(".")[2]
    if last not in ends.values() and (reason := without_counterpart(last.replace("-", "_"))):
        return reason
    theirs = ORIGIN_NAMES.get(last.replace("-", "_"), ())
    close = [name for name in names if name in {f"--{path.replace('_', '-')}" for path in theirs}]
    close += [name for name in names if ends[name] == bare or name.strip("-") == bare]
    close += [name for name in names if name.startswith(f"--{bare}.") and ends[name] == "id"]
    close += [name for name in names if "-" in ends[name] and "".join(x[0] for x in ends[name].split("-")) == last]
    close = close or get_close_matches(word, names, n=3, cutoff=0.75)
    close += [name for end in get_close_matches(bare, set(ends.values()), n=2) for name in names if ends[name] == end]
    shown = [*dict.fromkeys(close)][:3]
    return f"did you mean {' or '.join(shown)}?" if shown else ""
