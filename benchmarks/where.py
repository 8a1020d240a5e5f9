"""Where and with what something was measured: machine, versions, revision, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""


def machine() -> dict[str, str]:
    """Processor, number of cores, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.machine()}"}


def revision(root: Path = ROOT) -> str:
    """Short git revision of the library, with + where the library's sources differ from it."""
    git = ("git", "-C", str(root))
    head = subprocess.run((*git, "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    dirty = subprocess.run((*git, "status", "--porcelain", "src"), capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def versions(*packages: str) -> str:
    """`torch 2.13.0, gymnasium 1.4.0`."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def today() -> str:
    """The date, as in 2026-11-21."""
    return datetime.date.today().isoformat()


def threads(count: int) -> None:
    """Limit this process and those that it starts to so many threads; call it before torch and numpy are imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(count)
