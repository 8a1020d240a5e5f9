"""Files that are replaced whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path of the same name to write to, which takes the place of `path` when the block ends without an error.

    A crash or a full disk at any moment leaves the old or the new file, never a mix: the new one is written in a
    folder beside the old one, synced, renamed, and the rename synced. Raises OSError; `path` is then untouched.
    """
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    unfinished = folder / path.name
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _sync_folder(path.parent)


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
