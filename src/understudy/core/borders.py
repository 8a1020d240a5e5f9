"""Borders: a file from outside is parsed, not trusted, and every failure names it and the remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_VARIABLE = "UNDERSTUDY_MAX_UNPACKED_GIB"
"""Environment variable: memory in GiB that a small file may ask for."""

_HARMLESS_GIB = 0.25
_USUAL_RATIO = 50  # arrays of numbers and images rarely pack better


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
