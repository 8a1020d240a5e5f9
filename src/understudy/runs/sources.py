"""Where policies come from: runs and checkpoints of ours, files of other programs, functions."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from understudy.core.check import nearest
from understudy.core.registry import load_object
from understudy.nn.protocol import Policy
from understudy.types import CheckpointError

Kind = Literal["torch", "stable-baselines3", "torchscript", "onnx", "safetensors"]
Reader = Callable[[Path, Mapping[str, str], Collection[str]], Policy]

READERS: dict[Kind, str] = {
    "torch": "understudy.interop.rsl_rl.checkpoints:read_policy",  # where it is not ours
    "stable-baselines3": "understudy.interop.stable_baselines3:read_policy",
    "torchscript": "understudy.interop.exported:read_torchscript",
    "onnx": "understudy.interop.exported:read_onnx",
    "safetensors": "understudy.tools.export:read_exported",
}
"""By name, because this room knows neither: loaded where such a file is read."""

FORMATS = (
    "a run's folder or checkpoint, rsl_rl's or st_rl's model_*.pt, Stable-Baselines3's .zip, TorchScript, .onnx, "
    ".safetensors"
)
_NEAR = {
    ".npz": "arrays: demonstrations or motion clips, which parts read",
    ".hdf5": "demonstrations, which parts read",
    ".pkl": "a pickle, which would have to be executed: save the policy's weights with its program, or export it",
    ".yaml": "a configuration: name the checkpoint beside it",
}


class Source(NamedTuple):
    """A path, and what the file does not say itself: `model_1500.pt,activation=elu`."""

    path: Path
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str | Path) -> Source:
        """Split the options off. Raises CheckpointError for one that is said twice."""
        path, *pairs = re.split(r",(?=[a-z_]+=)", str(text)) if not Path(text).exists() else [str(text)]
        options = dict(pair.split("=", 1) for pair in pairs)
        if len(options) < len(pairs):
            raise CheckpointError(f"{text} says an option twice")
        return cls(Path(path), options)


def kind_of(path: Path) -> Kind:
    """What kind of file this is, by its content where that tells; raises CheckpointError for what is no policy."""
    names = _members(path)
    if names is None:
        if path.suffix in (".onnx", ".safetensors"):
            return "onnx" if path.suffix == ".onnx" else "safetensors"
        if path.suffix not in (".pt", ".pth"):
            found = _NEAR.get(path.suffix, "a file that is no zip, as files of torch and Stable-Baselines3 are")
            raise CheckpointError(f"{path} is not a policy but {found}. A policy is {FORMATS}")
        return "torch"
    if "policy.pth" in names:
        return "stable-baselines3"
    if any("/code/" in name for name in names):
        return "torchscript"
    if not any(name.endswith("data.pkl") for name in names) and path.suffix not in (".pt", ".pth"):
        found = ", ".join(names[:5]) or "nothing"
        near = _NEAR.get(path.suffix, "looked for data.pkl (torch), policy.pth (Stable-Baselines3) and code/")
        raise CheckpointError(f"{path} is a zip of {found}; {near}. A policy is {FORMATS}")
    return "torch"


def _members(path: Path) -> list[str] | None:
    """Names in a zip; None for another file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # damage provokes anything; who reads it says what
        return None


def reader_of(kind: Kind) -> Reader:
    """What reads a file of this kind as `reader(path, options, allow)`."""
    reader: Reader = load_object(READERS[kind])
    return reader


def check_options(options: Mapping[str, str], known: Collection[str], source: str | Path) -> None:
    """Raise CheckpointError for an option that the reader of a file does not know."""
    for name in options:
        if name not in known:
            raise CheckpointError(f"{source} takes no option {name!r}; {nearest(name, known)}")


def newest_model(folder: Path) -> Path | None:
    """The newest `model_N.pt` in a folder that rsl_rl wrote."""
    found = [(int(match[1]), path) for path in folder.glob("model_*.pt") if (match := _MODEL.fullmatch(path.name))]
    return max(found)[1] if found else None


_MODEL = re.compile(r"model_(\d+)\.pt")
