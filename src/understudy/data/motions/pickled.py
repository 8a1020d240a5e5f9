"""Read pickled motion files for `understudy motions convert`: containers, numbers, text and numpy arrays.

A pickle is a program. This reader knows the few constructors that such data needs, refuses all others, and stands in
for each of them itself: nothing of the file reaches numpy's own, which trust the numbers that they are given.
It reads the output of pickle and joblib, zlib-compressed or not.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from understudy.core.borders import check_unpacked, parsing
from understudy.data.motions.files import MotionClip, clips_from, clips_of_dictionary, is_pickle

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,6})")
_PIECE = 1 << 24


class _Dtype:
    """Stands for `numpy.dtype`: plain numbers and text only."""

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

    value: np.ndarray | None = None

    def build(self, state: Any, file: io.BytesIO) -> None:
        """Take shape, type and bytes."""
        if isinstance(state, Mapping):  # joblib: one byte with the length of the padding, the padding, then raw memory
            shape, dtype, fortran = state["shape"], state["dtype"], state["order"] == "F"
            if state.get("numpy_array_alignment_bytes") is not None:
                file.read(int.from_bytes(file.read(1), "little"))
            self.fill(file.read(_size(shape, dtype)), dtype, shape, fortran)
        else:
            _, shape, dtype, fortran, data = state
            self.fill(data, dtype, shape, fortran)

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: Any) -> None:
        """Make the array, if the bytes are as many as shape and type ask for."""
        if not isinstance(data, bytes | bytearray) or len(data) != _size(shape, dtype):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:40]} with other bytes")
        self.value = np.ndarray(shape, dtype.dtype, bytes(data), order="F" if fortran else "C")


def _size(shape: Any, dtype: Any) -> int:
    """Bytes of an array."""
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > 8:
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


class _Unpickler(pickle._Unpickler):  # the Python one, whose steps can be replaced
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.source = file

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

    def load_bytearray8(self) -> None:
        """Bytes that are there, in place of memory for as many as the file claims."""
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_pickled_motions(path: str | Path) -> list[MotionClip]:
    """The clips of a pickled dictionary (st_gym's refmotion). Raises ValueError for anything else in the file."""
    path = Path(path)
    with parsing(path, "it is not a readable pickle of plain data: write the clips as plain arrays where it was made"):
        if not is_pickle(path):
            raise ValueError(f"{path} is not a pickle of protocol 2 or later")
        raw = path.read_bytes()
        if raw[:1] == b"x":
            raw = _inflated(path, raw)
        try:
            data = _Plain(3 * len(raw) + 1000)(_Unpickler(io.BytesIO(raw)).load())
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than containers, numbers, text and numpy arrays: {error}. None of it was run; "
                "write the clips as plain arrays where the file was made"
            ) from error
    return clips_from(path, lambda: clips_of_dictionary(data, path.stem))


def _inflated(path: Path, raw: bytes) -> bytes:
    """The contents of zlib-compressed bytes, checked on the way. Raises ValueError where too much comes out."""
    inflate, pieces, total = zlib.decompressobj(), [], 0
    left = raw
    while not inflate.eof:
        piece = inflate.decompress(left, _PIECE)
        left, total = inflate.unconsumed_tail, total + len(piece)
        check_unpacked(path, len(raw), total)
        if not piece and not left and not inflate.eof:
            raise ValueError("the compressed data end too early")
        pieces.append(piece)
    return b"".join(pieces)


class _Plain:
    """Turns what came out of a pickle into plain data; a file whose values hold each other cannot ask for more values
    than it has bytes."""

    def __init__(self, allowance: int) -> None:
        self.allowance = allowance

    def __call__(self, value: Any) -> Any:
        self.allowance -= 1
        if self.allowance < 0:
            raise pickle.UnpicklingError("values that hold each other")
        if isinstance(value, _Array):
            if value.value is None:
                raise pickle.UnpicklingError("an array without contents")
            self.allowance -= value.value.nbytes
            return value.value if value.value.ndim > 1 else self(value.value.tolist())
        if isinstance(value, Mapping):
            return {self(key): self(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self(inner) for inner in value]
        if isinstance(value, bytes):
            return value.decode()
        if value is None or isinstance(value, str | int | float):
            return value
        raise pickle.UnpicklingError(f"a {type(value).__name__}")
