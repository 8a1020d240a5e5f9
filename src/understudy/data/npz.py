"""`.npz` archives: read without trust (nothing unpickled, checksums compared), written whole or not at all."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from understudy.core.borders import check_unpacked, parsing
from understudy.core.files import replacing

AGAIN = "copy it again, or record it again"
"""What helps against a damaged file."""

_CHECKSUMS = "checksums"  # the array that says which others there are


@contextmanager
def open_npz(path: Path, growth: int = 1) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an archive by name; each is read and checked when it is first asked for.

    Arrays that are stored uncompressed are mapped; `growth`: how many times its size the caller makes of one. Raises
    ValueError for a file of another kind, and for an array that is damaged, of another size than its header says, or of
    anything but numbers and text.
    """
    with parsing(path, AGAIN):
        archive = zipfile.ZipFile(path)
    with archive:
        check_unpacked(path, path.stat().st_size, growth * sum(member.file_size for member in archive.infolist()))
        arrays = _Arrays(path, archive)
        if _CHECKSUMS in arrays and arrays[_CHECKSUMS].tolist() != _checksums(archive):
            raise ValueError(f"{path} does not hold the arrays that it was written with: {AGAIN}")
        yield arrays


def save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write `path` uncompressed, so that reading can map it; an existing file is replaced once the new one is whole.

    An array of checksums goes with the others, so that one that is missing or in another's place is noticed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        for name, array in arrays.items():
            _write(archive, name, np.asanyarray(array))
        _write(archive, _CHECKSUMS, np.array(_checksums(archive)))


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    # as np.savez does, which however pickles what it cannot write
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _checksums(archive: zipfile.ZipFile) -> str:
    """Names and checksums of the arrays, as text."""
    return json.dumps({x.filename: x.CRC for x in archive.infolist() if x.filename != f"{_CHECKSUMS}.npy"})


class _Arrays(Mapping[str, np.ndarray]):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        members = archive.infolist()
        self.path, self.archive = path, archive
        self.members = {member.filename.removesuffix(".npy"): member for member in members}
        self.arrays: dict[str, np.ndarray] = {}
        if len(self.members) < len(members):
            raise ValueError(f"{path} holds two arrays of one name: {AGAIN}")
        with parsing(path, AGAIN):
            for member in members:  # compares its name in the directory with the one before its data
                archive.open(member).close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> np.ndarray:
        member = self.members[name]
        if name not in self.arrays:
            with parsing(f"{self.path}: {name}", AGAIN), self.archive.open(member) as file:
                self.arrays[name] = self._read(name, member, file)
        return self.arrays[name]

    def _read(self, name: str, member: zipfile.ZipInfo, file: IO[bytes]) -> np.ndarray:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("packed by a method that numpy does not write")
        old = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        start = file.tell()
        if dtype.hasobject:
            raise ValueError(
                f"{self.path}: {name} holds pickled Python objects, which are never loaded, as they can run code: "
                "store plain arrays"
            )
        if dtype.kind not in "biufUS":
            raise ValueError(f"{self.path}: {name} holds values of type {dtype}: store numbers or text")
        if min(shape, default=0) < 0 or member.file_size != start + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"it has {member.file_size} bytes, other than {dtype} of shape {shape} takes")
        if member.compress_type == zipfile.ZIP_STORED and shape and 0 not in shape and not fortran:
            while file.read(1 << 20):  # to the end, where zipfile compares the checksum
                pass
            return np.memmap(self.path, dtype, "r", _data_start(self.path, member) + start, shape)
        return np.ndarray(shape, dtype, file.read(), order="F" if fortran else "C")


def _data_start(path: Path, member: zipfile.ZipInfo) -> int:
    """First byte of a member: after its local header, whose last two fields are the lengths of name and extra."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
    return member.header_offset + 30 + int(name) + int(extra)
