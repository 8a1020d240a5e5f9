"""The scripts in `examples/` that make this benchmark's clips."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from benchmarks.where import ROOT


def example(name: str) -> ModuleType:
    """The module of `examples/<name>.py`; the folder holds scripts and is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
