"""One virtual environment per peer under benchmarks/.venvs/, made the first time it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.workloads import PEERS, SIMULATORS, TORCH

ROOT = Path(__file__).resolve().parents[1] / ".venvs"


class InstallError(RuntimeError):
    """A peer could not be installed; the table then says so."""


def python_of(peer: str, ours: str) -> str:
    """The interpreter that runs `peer`: its venv's, or `ours` for what needs no package of its own."""
    requirements, alone = PEERS[peer].requirements, PEERS[peer].without_dependencies
    if not requirements:
        return ours
    folder = ROOT / peer
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "requirements.txt"  # written last: a half-made venv is made again
    wanted = "\n".join((TORCH, *requirements, *SIMULATORS, *alone)) + "\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    print(f"installing {', '.join((*requirements, *alone))} into {folder}", file=sys.stderr, flush=True)
    run(sys.executable, "-m", "venv", "--clear", str(folder))
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, TORCH)  # first and alone
    run(*pip, TORCH, *requirements, *SIMULATORS)
    if alone:
        run(*pip, "--no-deps", *alone)
    stamp.write_text(wanted)
    return str(python)


def run(*command: str) -> None:
    """Run a command quietly, at low priority; InstallError with the end of its output where it fails."""
    done = subprocess.run(("nice", "-n", "19", *command), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise InstallError(f"{' '.join(command)} failed: {lines[-1] if lines else 'no output'}")
