"""Optional packages: one sentence names the one that is missing and the extra that brings it."""

from __future__ import annotations

import importlib.util


def install(extra: str) -> str:
    """The command that installs an extra; the distribution is not called as the package, which another project took."""
    return f'pip install "understudy-rl[{extra}]"'


def require(purpose: str, *packages: str, extra: str) -> None:
    """Raise ImportError unless the packages are installed (they are not imported: that takes seconds)."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ImportError(f"{purpose} needs {' and '.join(missing)}: {install(extra)}")
