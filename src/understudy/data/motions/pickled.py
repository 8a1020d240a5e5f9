"""Read pickled motion files for `understudy motions`: containers, numbers, text and numpy arrays.

A pickle is a program. This reader knows the few constructors that such data needs, refuses all others, and stands in
for each of them itself: nothing of the file reaches numpy's own, which trust the numbers that they are given.
It reads the output of pickle, of joblib (plain, or packed by zlib, gzip, bz2, xz or lzma) and of `numpy.save`, which
pickles a dictionary.
"""

from __future__ import annotations

import bisect
import bz2
import functools
import io
import lzma
import math
import operator
import pickle
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from understudy.core.borders import check_unpacked, parsing
from understudy.data.motions.clip import MotionClip
from understudy.data.motions.files import clips_from, is_pickle, read_motions
from understudy.data.motions.formats import clips_of
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.reading import Reading

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,6}|O8?)")
_PIECE = 1 << 24
_FLOATS = re.compile(rb"(?:G.{8})+", re.DOTALL)  # of any length: opcode and eight bytes each
_FLOAT = np.dtype([("opcode", "u1"), ("value", ">f8")])
_ROW = re.compile(rb"\](?:\x94|r(.{4}))?\(((?:G.{8})+)e", re.DOTALL)  # a whole list of them, and its name
_Inflate = type(zlib.decompressobj())
_LZ4 = b"\x04\x22M\x18"
_LZMA_MEMORY = 1 << 28  # bytes that a file may ask for beside its contents; the highest preset asks for a quarter
_UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
    b"]\x00\x00": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
    b"x": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
}


class _Dtype:
    """Stands for `numpy.dtype`: plain numbers and text, and objects, which the file itself brings."""

    def __init__(self, name: object = "", *_: object) -> None:
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of type {str(name)[:20]!r}")
        self.dtype = np.dtype(name)

    def build(self, state: Any, file: io.BytesIO) -> None:
        """Take the byte order; the other entries describe fields, sub-arrays and sizes, which plain types lack."""
        order, *rest = state[1:5]
        if order not in ("<", ">", "|", "=") or rest != [None, None, None]:
            raise pickle.UnpicklingError("an array of composed type")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for `numpy.ndarray`, as numpy and joblib pickle it."""

    objects: list[Any] | None = None  # of an array of them, `[n]`
    single = False  # of shape ()

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value

    def build(self, state: Any, file: io.BytesIO) -> None:
        """Take shape, type and bytes."""
        if isinstance(state, dict):  # joblib: one byte with the length of the padding, the padding, then raw memory
            shape, dtype, fortran = state["shape"], state["dtype"], state["order"] == "F"
            if state.get("numpy_array_alignment_bytes") is not None:
                file.read(int.from_bytes(file.read(1), "little"))
            self.fill(file.read(_size(shape, dtype)), dtype, shape, fortran)
        else:
            version, shape, dtype, fortran, data = state
            if version != 1:
                raise pickle.UnpicklingError(f"an array of version {str(version)[:20]}")
            if isinstance(data, list) and shape in ((), (len(data),)):  # of objects
                self.objects, self.single = data, shape == ()
            else:
                self.fill(data, dtype, shape, fortran)

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: Any) -> None:
        """Make the array, if the bytes are as many as shape and type ask for."""
        if not isinstance(data, bytes | bytearray) or len(data) != _size(shape, dtype):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:40]} with other bytes")
        self.value = np.ndarray(shape, dtype.dtype, bytes(data), order="F" if fortran else "C")


@functools.lru_cache(maxsize=16)  # some files hold an array for each frame
def _size(shape: Any, dtype: Any) -> int:
    """Bytes of an array."""
    if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject or not isinstance(shape, tuple) or len(shape) > 8:
        raise pickle.UnpicklingError("an array without a type or a shape")
    if not all(isinstance(size, int) and 0 <= size < 1 << 40 for size in shape):
        raise pickle.UnpicklingError(f"an array of shape {str(shape)[:40]}")
    return math.prod(shape) * dtype.dtype.itemsize


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(data, dtype, shape, order == "F")
    return array


def _scalar(dtype: Any, data: Any) -> _Array:
    return _frombuffer(data, dtype, (), "C")


def _encode(text: str, codec: str) -> bytes:
    """Bytes, as protocol 2 writes them."""
    return text.encode("latin1" if codec == "latin1" else "ascii")


def _no_call(*_: object) -> None:
    raise pickle.UnpicklingError("a call of numpy.ndarray")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _no_call,  # only named, as the kind of array to make
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Array,
}
for _module in ("numpy.core", "numpy._core"):  # before and after numpy 2
    _ALLOWED[_module + ".multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[_module + ".multiarray", "scalar"] = _scalar
    _ALLOWED[_module + ".numeric", "_frombuffer"] = _frombuffer


class _Skipped:
    """Stands for a value that only helped to make an array: nothing refers to it in a file of data."""


class _Memo(dict[int, Any]):
    """Values that have names, which are numbers. Of rows that were taken at once, only the first name is kept."""

    def __init__(self) -> None:
        self.starts, self.runs, self.count = list[int](), list[tuple[int, int, np.ndarray]](), 0

    def add(self, start: int, each: int, own: int, rows: np.ndarray) -> None:
        """Rows that have `each` names from `start` on, of which number `own` is that of the row itself."""
        self.starts.append(start)
        self.runs.append((each, own, rows))
        self.count += each * len(rows)

    def __len__(self) -> int:
        return super().__len__() + self.count

    def __missing__(self, name: int) -> Any:
        k = bisect.bisect_right(self.starts, name) - 1
        each, own, rows = self.runs[k] if k >= 0 else (1, 0, np.empty(0))
        i, which = divmod(name - self.starts[k], each) if k >= 0 else (0, 0)
        if i >= len(rows):
            raise KeyError(name)
        return rows[i] if which == own else _Skipped()


class _Place(NamedTuple):
    """Where a pickle is when it has made a value."""

    value: Any
    end: int
    named: int  # how many values have names
    puts: list[tuple[int, int]]


class _Unpickler(pickle._Unpickler):  # the Python one, whose steps can be replaced
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    memo: _Memo

    def __init__(self, raw: bytes) -> None:
        self.raw, self.source = raw, io.BytesIO(raw)
        super().__init__(self.source)
        self.memo = _Memo()
        self.puts: list[tuple[int, int]] = []  # places and names since the last array
        self.before = _Place(None, 0, 0, [])

    def load(self) -> Any:
        """What the pickle holds; frames, which only help to read ahead, are left out."""
        self.read, self.readline, self.readinto = self.source.read, self.source.readline, self.source.readinto
        self.metastack: list[Any] = []
        self.stack = []
        self.append, self.proto = self.stack.append, 0
        try:
            while key := self.read(1):
                self.dispatch[key[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise EOFError("the file ends too early")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ALLOWED[module, name]

    def load_build(self) -> None:
        """Hand a state to one of the stand-ins; anything else has none."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype | _Array):
            raise pickle.UnpicklingError(f"a state for a {type(self.stack[-1]).__name__}")
        self.stack[-1].build(state, self.source)
        before, self.before = self.before, _Place(self.stack[-1], self.source.tell(), len(self.memo), self.puts)
        self.puts = []
        if len(self.stack) > 1 and self.stack[-2] is before.value:
            self._take_alike(before, self.before)

    def _take_alike(self, before: _Place, last: _Place) -> None:
        """Take all arrays that follow and differ from the last in numbers alone: some files have one for each frame.

        The bytes from the end of the one before to its end are a template, in which the numbers are free and the names
        that the file gives to values, which it may refer to later, count on.
        """
        start, size, named = before.end, last.end - before.end, last.named - before.named
        array = last.value.value if isinstance(last.value, _Array) else None
        if array is None or array.ndim != 1 or not 8 <= array.nbytes < 256 or size > 1000:
            return
        data = self.raw.find(b"C" + bytes([array.nbytes]) + array.tobytes(), start, last.end) + 2 - start
        count = min((len(self.raw) - last.end) // size, 1000)
        rows = np.frombuffer(self.raw, np.uint8, size * (count + 1), start).reshape(-1, size)  # the template first
        alike, rest = np.full(count + 1, data > 1), rows.copy()
        rest[:, data : data + array.nbytes] = 0
        for place, name in last.puts:
            at = slice(place - start, place - start + 4)
            told, rest[:, at] = rows[:, at].copy().view("<u4")[:, 0], 0
            alike &= told == name + named * np.arange(count + 1)
        alike &= (rest == rest[0]).all(1)
        many = len(alike) if alike.all() else int(alike.argmin())
        own = next((name for name in range(before.named, last.named) if self.memo.get(name) is last.value), None)
        if many < 2 or own is None:
            return
        values = rows[1:many, data : data + array.nbytes].copy().view(array.dtype)
        self.memo.add(last.named, named, own - before.named, values)
        self.stack.extend(values)
        self.source.seek(last.end + size * len(values))
        self.before = _Place(self.stack[-1], self.source.tell(), len(self.memo), [])

    def load_long_binput(self) -> None:
        """Name a value, and remember where."""
        name = int.from_bytes(self.read(4), "little")
        self.puts.append((self.source.tell() - 4, name))
        self.memo[name] = self.stack[-1]

    def load_bytearray8(self) -> None:
        """Bytes that are there, in place of memory for as many as the file claims."""
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_frame(self) -> None:
        """Skip the claim of how many bytes belong together."""
        self.read(8)

    def load_empty_list(self) -> None:
        """Begin a list; take all lists of as many numbers that follow each other at once, but for the last of them.

        Some files have one for each frame. The last may go on. In place of each there is an array.
        """
        start = self.source.tell() - 1
        row = _ROW.match(self.raw, start)
        if row is None:
            self.stack.append([])
            return
        size, first = len(row.group()), row.start(2) - start
        rows = np.frombuffer(self.raw, np.uint8, (len(self.raw) - start) // size * size, start).reshape(-1, size)
        name = None if row.group(1) is None else int.from_bytes(row.group(1), "little")
        fixed = (slice(2), slice(6, first) if name is not None else slice(2, first), slice(first, size, 9))
        many, alike = 1, np.ones(1, dtype=bool)
        while alike.all() and many < len(rows):  # looks no further than twice as far as they are alike
            part = rows[many : 2 * many]
            alike = np.all([(part[:, at] == rows[0, at]).all(1) for at in fixed], axis=0)
            if name is not None:  # which counts on
                alike &= part[:, 2:6].copy().view("<u4")[:, 0] == name + np.arange(many, many + len(part))
            many += len(part) if alike.all() else int(alike.argmin())
        values = rows[: many - 1, first : size - 1].copy().view(_FLOAT)["value"].astype(float)
        if first > 2:
            self.memo.add(len(self.memo) if name is None else name, 1, 0, values)
        self.stack.extend(values)
        self.stack.append([])
        self.source.seek(start + size * (many - 1) + 1)

    def load_binfloat(self) -> None:
        """All numbers that follow each other, at once: a list of them is most of some files."""
        start = self.source.tell() - 1
        run = _FLOATS.match(self.raw, start)
        if run is None:
            raise EOFError("the file ends in a number")
        self.stack.extend(np.frombuffer(run.group(), _FLOAT)["value"].tolist())
        self.source.seek(run.end())

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.LONG_BINPUT[0]] = load_long_binput
    dispatch[pickle.EMPTY_LIST[0]] = load_empty_list
    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.BINFLOAT[0]] = load_binfloat
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_pickled_motions(path: str | Path, options: ReadOptions | None = None) -> list[MotionClip]:
    """The clips of a pickled dictionary: refmotion, GMR, amp-rsl-rl, MimicKit, motion_lib.

    Raises ValueError for anything else in the file, and for what does not fit the robot of the options.
    """
    path, reading = Path(path), Reading(options or ReadOptions())
    with parsing(path, "it is not a readable pickle of plain data: write the clips as plain arrays where it was made"):
        if not is_pickle(path):
            raise ValueError(f"{path} is not a pickle of protocol 2 or later")
        raw = _pickle_in(path, path.read_bytes())
        try:
            data = _Plain(3 * len(raw) + 1000)(_Unpickler(raw).load())
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than containers, numbers, text and numpy arrays: {error}. None of it was run; "
                "write the clips as plain arrays where the file was made"
            ) from error
    return clips_from(path, reading, lambda: clips_of("dictionary", data, path.stem, reading))


def read_any_motions(path: str | Path, options: ReadOptions | None = None) -> list[MotionClip]:
    """The clips of a motion file, pickled or not; raises as `read_motions` and `read_pickled_motions` do."""
    path = Path(path)
    return read_pickled_motions(path, options) if is_pickle(path) else read_motions(path, options)


def _pickle_in(path: Path, raw: bytes) -> bytes:
    """The pickle in what a file holds: unpacked, and without the header of a `.npy`."""
    if raw.startswith(_LZ4):
        raise ValueError(f"{path} is packed with lz4, which is not read: write it with joblib.dump(data, path)")
    if unpacker := next((make for mark, make in _UNPACKERS.items() if raw.startswith(mark)), None):
        raw = _unpacked(path, raw, unpacker())
    if not raw.startswith(b"\x93NUMPY"):
        return raw
    file = io.BytesIO(raw)
    old = np.lib.format.read_magic(file) == (1, 0)
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
    if not dtype.hasobject:
        raise ValueError(f"{path} is an array of shape {shape} without names: expected a dictionary of named arrays")
    return raw[file.tell() :]


def _unpacked(path: Path, raw: bytes, unpacker: Any) -> bytes:
    """What a decompressor of the standard library makes of bytes. Raises ValueError where too much comes out."""
    pieces, total, left = list[bytes](), 0, raw
    while not unpacker.eof:
        piece = unpacker.decompress(left, _PIECE)
        left = unpacker.unconsumed_tail if isinstance(unpacker, _Inflate) else b""  # the others keep what is left
        total += len(piece)
        check_unpacked(path, len(raw), total)
        if not piece and not left and not unpacker.eof:
            raise ValueError("the compressed data end too early")
        pieces.append(piece)
    return b"".join(pieces)


class _Plain:
    """Turns what came out of a pickle into plain data; a file whose values hold each other cannot ask for more values
    than it has bytes."""

    def __init__(self, allowance: int) -> None:
        self.allowance = allowance

    def __call__(self, value: Any) -> Any:
        self._take(1)
        if isinstance(value, _Array):
            return self._array(value)
        if isinstance(value, np.ndarray):
            return self._numbers(value)
        if isinstance(value, dict):
            return {self(key): self(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            kinds = set(map(type, value))
            if kinds <= {float, int}:
                self._take(len(value))
                return list(value)
            if kinds <= {_Array, np.ndarray, list} and (rows := self._rows(value)) is not None:
                return rows
            return [self(inner) for inner in value]
        if isinstance(value, bytes):
            return value.decode()
        if value is None or isinstance(value, str | int | float):
            return value
        raise pickle.UnpicklingError(f"a {type(value).__name__}")

    def _rows(self, held: Sequence[Any]) -> np.ndarray | None:
        """Vectors of numbers of one length and type as a table; None for others."""
        rows = [*map(_row, held)]
        if any(row is None for row in rows):
            return None
        if any(len(set(map(operator.attrgetter(what), rows))) > 1 for what in ("dtype", "shape")):
            return None
        if rows[0].ndim != 1 or rows[0].dtype.kind not in "iuf":
            return None
        self._take(len(rows) * (1 + rows[0].nbytes))
        return np.concatenate(rows).reshape(len(rows), -1)

    def _array(self, value: _Array) -> Any:
        if value.objects is not None:
            held = [self(inner) for inner in value.objects]
            return held[0] if value.single else held
        if value.value is None:
            raise pickle.UnpicklingError("an array without contents")
        return self._numbers(value.value)

    def _numbers(self, value: np.ndarray) -> Any:
        self._take(value.nbytes)
        text = value.dtype.kind in "US" and value.ndim < 2
        return value.tolist() if text or not value.ndim else value

    def _take(self, size: int) -> None:
        self.allowance -= size
        if self.allowance < 0:
            raise pickle.UnpicklingError("values that hold each other")


def _row(value: Any) -> Any:
    """An array, or a list of floats as one; None for anything else."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list):
        return np.array(value) if set(map(type, value)) == {float} else None
    return value
