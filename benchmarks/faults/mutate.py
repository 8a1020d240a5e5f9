"""Damaged copies of files, and a judge of the functions that read them.

A mutation turns the bytes of a sound file into those of a damaged one; it returns None where it does not apply. A
`Case` is a sound file with its reader; `judge` gives every mutant to the reader, in a child process with limits of
memory and time. The right answers are the content of the sound file, or one error of a known type, which names the
file. Everything follows from a seed.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Mutation = Callable[[bytes, random.Random], bytes | None]

RIGHT = ("same", "refused")
"""Outcomes that are right; the others are "other" content, "unnamed" file, "traceback", "memory", "hang", "crash"."""

AS_SAID = "as the file says"
"""Detail of the verdict on a mutant whose content changed with its bytes, where the format has no checksum."""


# ---------------------------------------------------------------------------------------------- any bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """One to four flipped bits."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """The beginning alone, of any length; often all but a few bytes."""
    return data[: rng.randrange(len(data)) if rng.random() < 0.7 else -rng.randrange(1, min(64, len(data)))]


def zero(data: bytes, rng: random.Random) -> bytes:
    """A run of zeros, as a block that was never written."""
    start, length = rng.randrange(len(data)), rng.choice((1, 8, 64, 512, 4096))
    end = min(start + length, len(data))
    return data[:start] + bytes(end - start) + data[end:]


def scramble(data: bytes, rng: random.Random) -> bytes:
    """A run of random bytes."""
    start, length = rng.randrange(len(data)), rng.choice((1, 4, 16, 256))
    end = min(start + length, len(data))
    return data[:start] + rng.randbytes(end - start) + data[end:]


def duplicate(data: bytes, rng: random.Random) -> bytes:
    """A block that is there twice."""
    start = rng.randrange(len(data))
    end = min(start + rng.choice((1, 16, 128, 4096)), len(data))
    return data[:end] + data[start:end] + data[end:]


def remove(data: bytes, rng: random.Random) -> bytes:
    """A block that is missing."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 16, 128, 4096)) :]


def append(data: bytes, rng: random.Random) -> bytes:
    """Something behind the end."""
    return data + rng.choice((b"\n", b"\x00" * 64, b"}", b"garbage", data))


def exchange(data: bytes, rng: random.Random) -> bytes:
    """Two blocks in each other's place."""
    size = min(rng.choice((1, 16, 256)), len(data) // 2)
    a, b = sorted((rng.randrange(len(data) - size + 1), rng.randrange(len(data) - size + 1)))
    if b < a + size:
        return flip_bits(data, rng)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def another_file(data: bytes, rng: random.Random) -> bytes:
    """Something else under this name: nothing, text, JSON, numpy, zip, HDF5, a pickle that would print."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../outside", "x")
    array = io.BytesIO()
    np.save(array, np.arange(3))
    return rng.choice(
        (
            b"", b"\x00" * 100, b"hello\n", b"\xff\xfe\xfa", b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 100_000,
            b'{"a":' * 100_000, buffer.getvalue(), array.getvalue(), b"\x89HDF\r\n\x1a\n" + bytes(100),
            b"PK\x05\x06" + bytes(18), b"cbuiltins\nprint\n(S'ran'\ntR.", b"\x80\x02}q\x00.", bytes(rng.randbytes(500)),
        )
    )  # fmt: skip


ANY_BYTES: tuple[Mutation, ...] = (
    flip_bits, flip_bits, flip_bits, truncate, zero, scramble, duplicate, remove, append, exchange, another_file,
)  # fmt: skip


# -------------------------------------------------------------------------------------------- plain data


def odd_values(rng: random.Random) -> Any:
    """A value of a wrong type or size."""
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    return rng.choice(
        (
            None, True, -1, 0, 3.5, 10**12, 2**63, -(2**63), 10**400, math.nan, math.inf, 1e308, "", "text", "../../x",
            "os:system", "1e999", "\ud800", [], [1, "a"], {}, {"a": {"b": 1}}, [[[]]], deep, "x" * 10_000, [0] * 1000,
        )
    )  # fmt: skip


def mutate_plain(plain: Any, rng: random.Random) -> Any:
    """Plain data with one place changed: a key deleted, added, renamed, exchanged, or a value of another type."""
    plain = _copied(plain)
    holders = [holder for holder in _containers(plain) if holder]
    if not holders or rng.random() < 0.03:
        return odd_values(rng)
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    what = rng.choice(("delete", "value", "value", "value", "rename", "add", "exchange", "nest"))
    if what == "delete":
        del holder[key]
    elif what == "value":
        holder[key] = odd_values(rng)
    elif what == "nest":
        holder[key] = rng.choice(([holder[key]], {"value": holder[key]}))
    elif what == "exchange":
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    elif isinstance(holder, dict):
        new = rng.choice((f"{key}_", f"{key}"[:-1], "", "__class__", "../x", "a.b", "x" * 300))
        holder[new] = holder.pop(key) if what == "rename" else odd_values(rng)
    else:
        holder.insert(key, odd_values(rng))
    return plain


def json_mutation(data: bytes, rng: random.Random) -> bytes | None:
    """A JSON file with one place changed; NaN, Infinity, 1e999 and doubled keys among the changes."""
    try:
        plain = json.loads(data)
    except ValueError:
        return None
    text = json.dumps(mutate_plain(plain, rng))
    if rng.random() < 0.2:  # an overflowing number in place of some number
        text = json.dumps(plain)
        places = [i for i in range(1, len(text)) if text[i].isdigit() and text[i - 1] in " [:"]
        if places:
            place = rng.choice(places)
            text = text[:place] + rng.choice(("1e999", "-1e999", "NaN", "9" * 5000, "0x1")) + text[place + 1 :]
    elif rng.random() < 0.1 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + ", " + text[1:-1] + "}"
    return text.encode("utf-8", "surrogatepass")


def lines_mutation(data: bytes, rng: random.Random) -> bytes | None:
    """A file of JSON lines with a line changed, doubled, dropped, joined or moved."""
    lines = data.splitlines()
    if len(lines) < 2:
        return None
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.choice(("change", "change", "change", "double", "move", "join", "blank"))
    if what == "change":
        lines[i] = json_mutation(lines[i], rng) or b""
    elif what == "double":
        lines.insert(j, lines[i])
    elif what == "move":
        lines[i], lines[j] = lines[j], lines[i]
    elif what == "join":
        lines[i : i + 2] = [b"".join(lines[i : i + 2])]
    else:
        lines.insert(i, rng.choice((b"", b"   ", b"\xff", b"null", b"[]")))
    return b"\n".join(lines) + b"\n"


def text_mutation(data: bytes, rng: random.Random) -> bytes | None:
    """A YAML file with a line changed: anchors that multiply, tags that call, tabs, doubled keys, deep nesting."""
    lines = data.decode("utf-8", "replace").splitlines()
    i = rng.randrange(len(lines))
    key = lines[i].split(":")[0]
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    lines[i : i + 1] = rng.choice(
        (
            [], [lines[i], lines[i]], [f"{key}: !!python/object/apply:os.system ['true']"], [f"{key}: *nothing"],
            [f"\t{lines[i]}"], [f"{key}: " + "[" * 5000], [f"{key}: &me [*me]"], [*bomb, f"{key}: *a9"],
            [f"{key}: .nan"], [f"{key}: .inf"], [f"{key}: 1e999"], [f"{key}: {'9' * 5000}"], [f"{key}: !!binary AA=="],
            [f"{key}: 2026-01-01"], [f"{key}: ../../x"], [f"{key}: os:system"], [f"? [{key}]", ": 1"], [f"{key}:"],
            [f"<<: {{{key.strip()}: 1}}"], [f"{key}: \ud800"], ["---"], ["%YAML 9.9"], [f"{key}: true"], [f"{key}: -3"],
        )
    )  # fmt: skip
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# --------------------------------------------------------------------------------------------------- zip


def zip_mutation(data: bytes, rng: random.Random) -> bytes | None:
    """An archive with members swapped, renamed, missing, added, doubled, packed; bombs; or of changed content."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
            packed = {info.filename: info.compress_type for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError):
        return None
    if not members:
        return None
    i, j = rng.randrange(len(members)), rng.randrange(len(members))
    (name, content), (other, other_content) = members[i], members[j]
    what = rng.choice(("swap", "swap", "rename", "delete", "add", "outside", "double", "claim", "empty", "cut", "pack"))
    what = "bomb" if rng.random() < 0.02 else what  # a quarter of a GiB takes a second to pack
    method = zipfile.ZIP_DEFLATED if what in ("bomb", "pack") else None
    if what == "swap":
        members[i], members[j] = (name, other_content), (other, content)
    elif what == "rename":
        members[i] = (name + rng.choice(("_", "/x", "é")), content)
    elif what == "delete":
        del members[i]
    elif what == "add":
        members.append((os.path.dirname(name) + "/extra", b"extra"))
    elif what == "outside":
        members[i] = ("../" + name, content)
    elif what == "double":
        members.append((name, other_content))
    elif what == "bomb":
        members[i] = (name, bytes(2**28))
    elif what == "empty":
        members[i] = (name, b"")
    elif what == "cut":
        members[i] = (name, content[: len(content) // 2])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, inner in members:
            info = zipfile.ZipInfo(member)
            info.compress_type = packed.get(member, 0) if method is None else method
            archive.writestr(info, inner)
    damaged = bytearray(buffer.getvalue())
    if what == "claim":  # the directory says that a member is huge
        places = [found.start() for found in re.finditer(b"PK\x01\x02", damaged)]
        start = rng.choice(places) + rng.choice((20, 24))
        damaged[start : start + 4] = (2**32 - 2**20).to_bytes(4, "little")
    return bytes(damaged)


# ------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Case:
    """A sound file, how to read it, and how to damage it beside the damages of `ANY_BYTES`."""

    name: str
    data: bytes
    filename: str
    read: Callable[[Path], Any]
    """Content of the file at a path; its errors are of the kinds `errors` and name the file."""
    errors: tuple[type[Exception], ...] = (ValueError,)
    mutations: tuple[Mutation, ...] = ()
    faithful: Callable[[bytes, Any], bool] | None = None
    """Whether another content is what the damaged bytes say: text that people edit has no checksum."""
    prepare: Callable[[Path], None] | None = None
    """Called with the folder before the damaged file is written into it: other files that the reader needs."""


class Verdict(NamedTuple):
    """What became of one mutant."""

    case: str
    mutation: str
    number: int
    outcome: str
    detail: str


class Limits(NamedTuple):
    """What one reading may take, beyond what the process has already."""

    memory: int = 2**30  # bytes of address space
    seconds: float = 10.0


LIMITS = Limits()


def mutant(case: Case, number: int, seed: int) -> tuple[str, bytes]:
    """Name of the mutation, and the damaged bytes, of the mutant with this number."""
    rng = random.Random(f"{seed}/{case.name}/{number}")
    while True:
        own = case.mutations and rng.random() < 0.5
        mutation = rng.choice(case.mutations if own else ANY_BYTES)
        data = mutation(case.data, rng)
        if data is not None and data != case.data:
            return mutation.__name__, data


def place(data: bytes, path: Path, rng: random.Random) -> str:
    """Write the file; now and then a folder, a loop of links, a link to nothing or a device instead. Says which."""
    if rng.random() >= 0.02:
        path.write_bytes(data)
        return ""
    what = rng.choice(("folder", "loop", "nothing", "device"))
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": path.name, "nothing": "missing", "device": "/dev/zero"}[what])
    return what


def judge(
    case: Case, numbers: Sequence[int], seed: int, folder: Path, limits: Limits = LIMITS, *, places: bool = True
) -> Iterator[Verdict]:
    """Verdicts on the mutants with these numbers. Children read them, a new one after each that dies."""
    left = list(numbers)
    while left:
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            os.close(receiver)
            try:
                _read_all(case, left, seed, folder / f"{case.name}-{os.getpid()}", limits, places, sender)
            finally:
                os._exit(0)
        os.close(sender)
        with os.fdopen(receiver, "rb") as reports:
            while left:
                try:
                    yield Verdict(*pickle.load(reports))
                except EOFError:
                    break
                left.pop(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if left:  # it died of the next one
            number = left.pop(0)
            outcome = "hang" if status == -signal.SIGALRM else "crash"
            yield Verdict(case.name, mutant(case, number, seed)[0], number, outcome, f"exit status {status}")


def _read_all(
    case: Case, numbers: list[int], seed: int, folder: Path, limits: Limits, places: bool, sender: int
) -> None:
    """What a child does."""
    folder.mkdir(parents=True)
    sound = folder / "sound"
    sound.mkdir()
    if case.prepare is not None:
        case.prepare(sound)
    (sound / case.filename).write_bytes(case.data)
    expected = case.read(sound / case.filename)
    with open(os.devnull, "w") as quiet:
        os.dup2(quiet.fileno(), 1)
        os.dup2(quiet.fileno(), 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(sender, "wb") as reports:
        for number in numbers:
            mutation, data = mutant(case, number, seed)
            inner = folder / str(number)
            inner.mkdir()
            if case.prepare is not None:
                case.prepare(inner)
            path = inner / case.filename
            odd = place(data, path, random.Random(f"{seed}/place/{number}")) if places else ""
            if not places:
                path.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # its signal ends the process
            outcome, detail = _verdict(case, path, None if odd else data, expected)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pickle.dump((case.name, odd or mutation, number, outcome, detail), reports)
            reports.flush()


def _verdict(case: Case, path: Path, data: bytes | None, expected: Any) -> tuple[str, str]:
    try:
        content = case.read(path)
    except BaseException as error:
        chain, cause = [], error
        while cause is not None:
            chain.append(f"{type(cause).__name__}: {cause}")
            cause = cause.__cause__ or cause.__context__
        said = f"{type(error).__name__}: {error}"[:1500]
        if any("MemoryError" in text or "allocate" in text for text in chain):
            return "memory", said
        if not isinstance(error, case.errors):
            return "traceback", said
        return ("refused" if path.name in str(error) else "unnamed"), said
    if equal(content, expected):
        return "same", ""
    if data is not None and case.faithful is not None and case.faithful(data, content):
        return "same", AS_SAID
    return "other", repr(content)[:300]


def equal(a: Any, b: Any) -> bool:
    """Whether two contents are the same, bit for bit in tensors and arrays; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        a, b = a.numpy(force=True), b.numpy(force=True) if isinstance(b, torch.Tensor) else None
    if isinstance(a, np.ndarray):
        kinds = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return kinds and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and bool(a == b)


def run_cases(cases: Sequence[Case], count: int, seed: int, folder: Path, limits: Limits = LIMITS) -> list[Verdict]:
    """Verdicts on `count` mutants, the cases in turn."""
    verdicts: list[Verdict] = []
    for n, case in enumerate(cases):
        verdicts += judge(case, range(n, count, len(cases)), seed, folder, limits)
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line: how many of each outcome."""
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    return f"{len(verdicts)} mutants: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: files down, outcomes across."""
    outcomes = [*RIGHT, "other", "unnamed", "traceback", "memory", "hang", "crash"]
    rows = [f"| file | mutants | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 2) + "|"]
    for case in dict.fromkeys(verdict.case for verdict in verdicts):
        found = Counter(verdict.outcome for verdict in verdicts if verdict.case == case)
        rows.append(f"| {case} | {sum(found.values())} | {' | '.join(str(found[o]) for o in outcomes)} |")
    return "\n".join(rows)


def _containers(plain: Any) -> Iterator[Any]:
    if isinstance(plain, dict | list):
        yield plain
        for inner in plain.values() if isinstance(plain, dict) else plain:
            yield from _containers(inner)


def _copied(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _copied(inner) for key, inner in plain.items()}
    return [_copied(inner) for inner in plain] if isinstance(plain, list | tuple) else plain
