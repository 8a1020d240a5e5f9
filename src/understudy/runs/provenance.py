"""Where a run came from: git revision, package versions, platform; written beside the config, never into it."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from understudy.version import __version__

_PACKAGES = ("torch", "tensordict", "numpy", "gymnasium", "envpool", "mujoco", "minari")


def provenance() -> dict[str, Any]:
    """Start time (UTC, ISO 8601), command line, folder, git revisions, versions and platform, ready for JSON."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "directory": str(Path.cwd()),
        "git": {"working_directory": git_revision(Path.cwd()), "library": git_revision(Path(__file__).parent)},
        "versions": {"understudy": __version__, "python": platform.python_version(), **package_versions()},
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that can change a result; None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_revision(folder: Path) -> str | None:
    """Commit of the checkout that holds `folder`, with "-dirty" if tracked files differ; None outside of git."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}-dirty" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
