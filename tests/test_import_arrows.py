"""The import arrows of the design: who may know whom. A line here that has to change is a change of the structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "understudy"
ALLOWED = {  # room -> rooms it may import from, besides itself
    "types": set(),
    "envs": {"types"},
    "nn": {"types", "envs"},
    "ppo": {"types", "envs", "nn", "parts.part"},
    "data": {"types", "envs", "nn", "ppo"},
    "parts": {"types", "envs", "nn", "ppo", "data"},
    "train": {"types", "envs", "nn", "ppo", "data", "parts", "recipes.registry"},
    "recipes": {"types", "envs", "nn", "ppo", "data", "parts", "train"},
}
SHARED_BY_PARTS = {
    "part",
    "adversarial",
    "features",
    "discriminator",
    "demonstrated",
    "transitions",
    "teacher_forcing",
    "expert_labels",
    "distillation",
    "loaded_teacher",
}
"""Modules of `parts` that several parts are built from; a part imports these and no other part."""


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
            if (SOURCE / module.replace(".", "/")).is_dir():  # `from understudy.ppo import randomness`
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


def test_the_core_knows_no_concrete_part() -> None:
    found = [module for path in files("ppo") for module in imports(path) if module.startswith("parts")]
    assert found  # the contract itself
    assert set(found) == {"parts.part"}


def test_a_part_knows_no_other_part() -> None:
    for path in files("parts"):
        if path.name == "__init__.py":
            continue
        others = {module.split(".")[1] for module in imports(path) if module.startswith("parts.")}
        assert others <= SHARED_BY_PARTS, f"{path.name} imports {others - SHARED_BY_PARTS}"


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport understudy.cli\nfrom understudy.ppo import randomness\n"
        "def f():\n    from understudy.train.loop import train\n"
        "if TYPE_CHECKING:\n    from understudy.nn.policy import ActorCritic\n"
    )
    assert list(imports(file)) == ["cli", "ppo.randomness", "train.loop"]
