"""One training at a time in a folder, over processes and machines."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

_held: set[Path] = set()  # by this process, whose own trainings a POSIX lock does not tell apart


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a folder that is the file `path` in it. Raises ValueError, with host and process, if it is held.

    A POSIX lock: it works over NFS, ends with its process however that dies, and is not inherited by the processes of
    environments. Raises OSError if the file cannot be written. Windows and file systems without locks have none.
    """
    key = path.resolve()
    if key in _held:
        raise ValueError(f"{path.parent} is in use by another training of this process: choose another --run-dir")
    with path.open("a+", encoding="utf-8") as file:
        if sys.platform != "win32":
            import fcntl  # POSIX only

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise ValueError(
                    f"{path.parent} is in use by another training ({file.read(200)}): wait until that one ends, stop "
                    "it, or choose another --run-dir"
                ) from None
            except OSError:  # a file system without locks
                pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
