"""Read pickled motion files for `understudy motions convert`: containers, numbers, text and numpy arrays.

A pickle is a program. This reader allows the few constructors that such data needs and refuses all others, so the file
cannot call anything else. It reads the output of pickle and joblib, zlib-compressed or not.
"""

from __future__ import annotations

import collections
import io
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from understudy.data.motions.files import MotionClip, clips_of_dictionary


class _JoblibArray:
    """Stands for `joblib.numpy_pickle.NumpyArrayWrapper`: the array's bytes follow it in the file."""

    def read(self, file: io.BytesIO) -> np.ndarray[Any, Any]:
        """The array (joblib writes one byte with the length of the padding, the padding, then raw memory)."""
        state: Mapping[str, Any] = vars(self)
        dtype, shape = np.dtype(state["dtype"]), tuple(state["shape"])
        if dtype.hasobject:
            raise pickle.UnpicklingError("an array of Python objects")
        if state.get("numpy_array_alignment_bytes") is not None:
            file.read(int.from_bytes(file.read(1), "little"))
        values = np.frombuffer(file.read(int(np.prod(shape)) * dtype.itemsize), dtype)
        return values.reshape(shape, order="F" if state["order"] == "F" else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _JoblibArray,
}
for _module in ("numpy.core", "numpy._core"):  # before and after numpy 2
    _ALLOWED[_module + ".multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    _ALLOWED[_module + ".multiarray", "scalar"] = np.float64(0).__reduce__()[0]


class _Unpickler(pickle._Unpickler):  # the Python one, which allows a hook after BUILD
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.source = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ALLOWED[module, name]

    def load_build(self) -> None:
        super().load_build()  # type: ignore[misc]
        if isinstance(self.stack[-1], _JoblibArray):  # type: ignore[attr-defined]
            self.stack[-1] = self.stack[-1].read(self.source)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build


def read_pickled_motions(path: str | Path) -> list[MotionClip]:
    """The clips of a pickled dictionary (st_gym's refmotion). Raises ValueError for anything else in the file."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        data = _Unpickler(io.BytesIO(zlib.decompress(raw) if raw[:1] == b"x" else raw)).load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than containers, numbers, text and numpy arrays: {error}. None of it was run; write "
            "the clips as plain arrays where the file was made"
        ) from error
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from error
    try:
        return clips_of_dictionary(data, path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
