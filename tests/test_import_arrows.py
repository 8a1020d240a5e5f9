"""The import arrows of the design: who may know whom. A line here that has to change is a change of the structure."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fresh import Fresh

import understudy

SOURCE = Path(understudy.__file__).parent
ALLOWED = {  # room -> rooms it may import from, besides itself
    "types": set(),
    "version": set(),
    "core": set(),
    "envs": {"types", "core"},
    "tasks": {"types", "core", "envs"},
    "nn": {"types", "core", "envs"},
    "ppo": {"types", "core", "envs", "nn"},
    "data": {"types", "core", "envs"},
    "parts": {"types", "core", "envs", "nn", "ppo", "data"},
    "runs": {"types", "version", "core", "envs", "nn", "ppo", "parts"},
    "tools": {"types", "version", "core", "envs", "nn", "ppo", "parts", "data", "runs"},
    "training": {"types", "version", "core", "envs", "nn", "ppo", "parts", "data", "runs", "tools"},
    "recipes": {"types", "core", "envs", "nn", "ppo", "parts", "data", "runs", "tasks"},
    "interop": {"types", "version", "core", "envs", "nn", "ppo", "parts", "data", "runs", "tools", "training"},
}
LOADED_BY_PPO = {"types", "version", "core", "envs", "nn", "ppo"}
"""Rooms that `us.PPO` may load at run time."""


def imports(path: Path) -> Iterator[str]:
    """Modules of the library that a file imports at run time, without the package's name (`ppo.optim`)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("understudy"):
            module = node.module.removeprefix("understudy").removeprefix(".")
            if (SOURCE / module.replace(".", "/")).is_dir():  # `from understudy.core import randomness`
                names = (f"{module}.{alias.name}".removeprefix(".") for alias in node.names)
                yield from (name for name in names if name != "__version__")
            else:
                yield module
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("understudy.") for a in node.names if a.name.startswith("understudy."))


def files(room: str) -> list[Path]:
    folder = SOURCE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_the_design_allows(room: str) -> None:
    assert files(room)
    wrong = [
        f"{path.relative_to(SOURCE)} imports {module}"
        for path in files(room)
        for module in imports(path)
        if module.split(".")[0] != room
        and module.split(".")[0] not in ALLOWED[room]
        and ".".join(module.split(".")[:2]) not in ALLOWED[room]
    ]
    assert not wrong


def test_the_core_loads_no_part_no_data_and_no_trainer(fresh: Fresh) -> None:
    code = "import sys, understudy; understudy.PPO; print(*(m for m in sys.modules if m.startswith('understudy.')))"
    loaded = fresh("-c", code).stdout.split()
    assert "understudy.ppo.ppo" in loaded
    assert {module.split(".")[1] for module in loaded} <= LOADED_BY_PPO


def test_a_part_knows_no_other_part() -> None:
    for path in files("parts"):
        if path.name == "__init__.py":
            continue
        others = {module.split(".")[1] for module in imports(path) if module.startswith("parts.")}
        assert others <= {"shared"}, f"{path.name} imports {others - {'shared'}}"


def test_no_file_imports_itself_through_others() -> None:
    graph = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): set(imports(path)) for path in SOURCE.rglob("*.py")
    }
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    graphlib.TopologicalSorter(graph).prepare()


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport understudy.cli\nfrom understudy.core import randomness\n"
        "def f():\n    from understudy.training.loop import train\n"
        "if TYPE_CHECKING:\n    from understudy.nn.policy import ActorCritic\n"
    )
    assert list(imports(file)) == ["cli", "core.randomness", "training.loop"]
