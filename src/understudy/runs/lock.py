"""One training at a time in a folder, over processes and machines."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

_held: set[Path] = set()  # by this process, whose own trainings a POSIX lock does not tell apart


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold the folder's lock, the file `name` in it. Raises ValueError, with host and process, where another holds it.

    A POSIX lock: it works over NFS, ends with its process however that dies, and is not inherited by the processes of
    environments. Raises OSError if the file cannot be written. Windows and file systems without locks have none.
    """
    key = folder.resolve()
    if key in _held:
        raise ValueError(f"{folder} is in use by another training of this process: choose another --run-dir")
    with (folder / name).open("a+", encoding="utf-8") as file:
        if not _take(file):
            file.seek(0)
            holder = file.read(200) or "a process that did not say its name"
            raise ValueError(
                f"{folder} is in use by another training ({holder}): wait until that one ends, stop it, or choose "
                "another --run-dir"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def _take(file: TextIO) -> bool:
    """Whether the file's lock is this process's now."""
    if sys.platform != "win32":
        import fcntl  # POSIX only

        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            pass
    return True
