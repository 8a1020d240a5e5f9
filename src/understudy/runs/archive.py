"""Files of `torch.save`: tensors and plain data, sealed with a checksum, read without running anything of them."""

from __future__ import annotations

import hashlib
import io
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from understudy.core.borders import check_nesting, check_unpacked

_CHECKSUM = "checksum"
_MOST_OPCODES = 4_000_000  # a tensor takes about 40
_LONGEST_PICKLE = 64 * 2**20
_DTYPES = {
    "torch BFloat16Storage": torch.bfloat16,
    "torch BoolStorage": torch.bool,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch ComplexDoubleStorage": torch.complex128,
    "torch ComplexFloatStorage": torch.complex64,
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch ShortStorage": torch.int16,
}


def archived(value: Any) -> bytes:
    """A file of `torch.save` with one more member: a checksum of the names, sizes and checksums of the others."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        members = archive.infolist()
        archive.writestr(f"{_top(members)}/{_CHECKSUM}", _seal(members))
    return buffer.getvalue()


def is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint of this library, as far as it can be read; a damaged one is taken for ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("data.pkl")]
            if f"{_top(archive.infolist())}/{_CHECKSUM}" in names or not pickles:
                return True
            with archive.open(pickles[0]) as file:
                return b"format_version" in file.read(_LONGEST_PICKLE)
    except Exception:  # damage provokes anything; who reads it says what
        return True


def read_archive(path: Path, content: bytes | None = None) -> Any:
    """Content of a file of `torch.save`, with or without the checksum of `archived`; tensors are on the CPU.

    `content`: the file's bytes, where it lies in another file, `path`.

    Sizes are checked before memory is taken, and every byte that is read against the zip's own checksums. Raises what
    the damage provokes: call it within `parsing`.
    """
    size = path.stat().st_size if content is None else len(content)
    with path.open("rb") if content is None else io.BytesIO(content) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_members(members, size)
        top = _top(members)
        if f"{top}/{_CHECKSUM}" in archive.namelist() and archive.read(f"{top}/{_CHECKSUM}").decode() != _seal(members):
            raise ValueError("its checksum is another")
        if archive.NameToInfo.get(f"{top}/byteorder") and archive.read(f"{top}/byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        if archive.getinfo(f"{top}/data.pkl").file_size > _LONGEST_PICKLE:
            raise ValueError("its description is too long")
        tensors = _Tensors(lambda key: _content(file, archive.getinfo(f"{top}/data/{key}")), path, size)
        value = _plain(archive.read(f"{top}/data.pkl"), tensors)
    check_nesting(value)
    return value


def _top(members: list[zipfile.ZipInfo]) -> str:
    return members[0].filename.partition("/")[0]


def _seal(members: list[zipfile.ZipInfo]) -> str:
    own = f"{_top(members)}/{_CHECKSUM}"
    lines = sorted(f"{x.filename} {x.file_size} {x.CRC}" for x in members if x.filename != own)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Members are stored as they are, each once and beside the others: nothing in there is larger than the file."""
    if not members:
        raise ValueError("it is an empty archive")
    if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in members):
        raise ValueError("its members are compressed")
    if len({info.filename for info in members}) < len(members) or sum(info.file_size for info in members) > size:
        raise ValueError("its members overlap")


def _content(file: IO[bytes], info: zipfile.ZipInfo) -> Tensor:
    """Bytes of a member, uint8 `[S]`; `ZipFile.read` would copy them twice."""
    file.seek(info.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # name and extra field
    content = torch.empty(info.file_size, dtype=torch.uint8)
    memory = content.numpy().data
    if file.readinto(memory) != len(memory) or zlib.crc32(memory) != info.CRC:  # type: ignore[attr-defined]
        raise ValueError(f"its member {info.filename} has another checksum")
    return content


class _Name(NamedTuple):
    """What a pickle would import."""

    text: str


class _Tensors:
    """Makes the tensors that a pickle describes, with their numbers from the archive's members."""

    def __init__(self, read: Callable[[str], Tensor], path: Path, size: int) -> None:
        self.read, self.path, self.size, self.asked = read, path, size, 0
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def storage(self, kind: str, name: _Name, key: str, location: str, numel: int) -> Tensor:
        """All numbers of one member `[numel]`."""
        dtype = _DTYPES[name.text]
        if kind != "storage" or not isinstance(key, str):
            raise ValueError(f"it refers to a {kind!r}")
        if (key, dtype) not in self.storages:
            content = self.read(key)
            if len(content) != numel * dtype.itemsize or (dtype == torch.bool and bool((content > 1).any())):
                raise ValueError(f"tensor {key} does not have {numel} numbers")
            self.storages[key, dtype] = content.view(dtype)
        return self.storages[key, dtype]

    def tensor(self, storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
        """A view of a storage, within its bounds."""
        if not all(type(x) is int and 0 <= x < 2**48 for x in (offset, *shape, *strides)) or len(shape) > 64:
            raise ValueError(f"a tensor has the shape {shape}")
        numel = 1
        for length in shape:
            numel *= length
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if numel and last >= storage.numel():
            raise ValueError(f"a tensor {shape} exceeds its storage of {storage.numel()} numbers")
        self.asked += numel * storage.itemsize
        check_unpacked(self.path, self.size, self.asked)
        return storage.as_strided(shape, strides, offset)


def _plain(data: bytes, tensors: _Tensors) -> Any:
    """What a pickle of plain data describes. The machine knows containers, numbers, text and tensors: nothing else."""
    calls: Mapping[str, Callable[..., Any]] = {
        "torch._utils _rebuild_tensor_v2": tensors.tensor,
        "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
        "torch Size": tuple,
        "collections OrderedDict": lambda: OrderedDict(),
        "collections Counter": lambda counts: {**counts},
        "_codecs encode": lambda text, _: text.encode("latin1"),
    }
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def fill(mapping: Any, items: list[Any]) -> None:
        keys = items[::2]
        if not isinstance(mapping, dict) or any(type(key) not in (str, int) for key in keys):
            raise ValueError("it has a key that is neither text nor a number")
        mapping.update(zip(keys, items[1::2], strict=True))

    argument: Any
    for opcode, argument, _ in islice(pickletools.genops(data), _MOST_OPCODES):
        match opcode.name:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                marks.append(len(stack) - int(opcode.name[-1]))
                stack.append(tuple(since_mark()))
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                list.extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                if opcode.name == "SETITEM":
                    marks.append(len(stack) - 2)
                items = since_mark()
                fill(stack[-1], items)
            case "GLOBAL":
                if argument not in calls and argument not in _DTYPES:
                    raise ValueError(f"it holds more than tensors and plain data: {argument}")
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(tensors.storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(calls[stack.pop().text](*arguments))
            case "BUILD":  # of an ordered dict: torch's versions of modules
                if not isinstance(stack[-2], OrderedDict):
                    raise ValueError("it holds more than tensors and plain data")
                stack.pop()
            case "STOP":
                return stack.pop()
            case "PROTO":
                pass
            case other:
                raise ValueError(f"it holds more than tensors and plain data: {other}")
    raise ValueError("its description is too long")
