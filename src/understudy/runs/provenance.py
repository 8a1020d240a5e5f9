"""Where a run came from: git revision, package versions, platform; written beside the config, never into it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
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
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return f"{revision}-dirty" if changed else revision


def git_diff(folder: Path) -> tuple[str, str] | None:
    """Name of the checkout that holds `folder`, its state and its changes to tracked files; None outside of git."""
    top, state = _git(folder, "rev-parse", "--show-toplevel"), _git(folder, "status", "--short", "--branch")
    if top is None or state is None:
        return None
    changes = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    return Path(top).name, f"{git_revision(folder)}\n{state}\n\n{changes}\n"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; it runs nothing that the checkout, which may have been downloaded, configures."""
    off = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}
    listed = _run_git(folder, off, "config", "--null", "--name-only", "--get-regexp", r"^filter\.")
    for name in (listed or "").split("\0"):  # filters have names of their own; without a command they do nothing
        if name:
            off[name] = "false" if name.endswith(".required") else ""
    return _run_git(folder, off, *arguments)


def _run_git(folder: Path, options: Mapping[str, str], *arguments: str) -> str | None:
    # in the environment, options may have any name, and are inherited
    variables = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
    variables |= {"GIT_ALLOW_PROTOCOL": "none", "GIT_CONFIG_COUNT": str(len(options))}
    for number, (name, value) in enumerate(options.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    try:
        result = subprocess.run(
            ["git", "--no-pager", *arguments],
            cwd=folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
