"""Files that are replaced whole."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path of the same name to write to, which takes the place of `path` when the block ends without an error.

    A crash or a full disk at any moment leaves the old or the new file, never a mix: the new one is written in a
    folder beside the old one, synced, renamed, and the rename synced. Raises OSError that names `path`, which is then
    untouched.
    """
    with beside(path) as folder:
        unfinished = folder / path.name
        try:
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            if error.filename is not None:
                raise
            reason = error.strerror or str(error)  # a full disk: neither the system nor numpy say which file
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    _sync_folder(path.parent)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; those that killed processes left beside it are removed, too."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with _locked(leftover) as nobodys:
            if nobodys:
                shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        with _locked(folder):
            yield folder
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk: say for which file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Take a folder's lock, which ends with its process; False where another has it, or where there are no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _take(descriptor)
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl  # POSIX only

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, as `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    # the rename itself is only durable once the folder's entry is on disk; some platforms cannot open a folder
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
