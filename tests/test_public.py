"""The public names: their three lists agree, and each loads first, alone, and with nothing that it does not need."""

from __future__ import annotations

import ast
import importlib
import types
from pathlib import Path

import pytest
from tests.fresh import Fresh

import understudy
from understudy import parts

SOURCE = Path(understudy.__file__).parent


def typed_homes(path: Path, package: str) -> dict[str, str]:
    """Name -> module, of the imports under `if TYPE_CHECKING`; a room of the package is its own home."""
    homes = {}
    for block in ast.parse(path.read_text()).body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                assert node.module is not None
                for alias in node.names:
                    room = node.module == package
                    homes[alias.asname or alias.name] = f"{package}.{alias.name}" if room else node.module
    return homes


def modules(room: str) -> list[str]:
    """All modules of a room, or the single ones beside the rooms; none that needs a simulator."""
    files = SOURCE.glob("*.py") if room == "." else (SOURCE / room).rglob("*.py")
    names = ["understudy." + ".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in sorted(files)]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]
    return [name for name in names if not name.startswith("understudy.envs.simulators.")]


ROOMS = [".", *sorted(folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file())]


def test_type_checkers_and_the_interpreter_find_the_same_names() -> None:
    homes = typed_homes(SOURCE / "__init__.py", "understudy")
    assert sorted([*homes, "__version__"]) == sorted(understudy.__all__) == sorted(dir(understudy))
    for name, module in homes.items():
        home = importlib.import_module(module)
        assert getattr(understudy, name) is (home if module == f"understudy.{name}" else vars(home)[name])


def test_type_checkers_and_the_interpreter_find_the_same_parts() -> None:
    typed = typed_homes(SOURCE / "parts" / "__init__.py", "understudy.parts")
    homes = {name: module for name, module in typed.items() if name in parts.__all__}  # others are for annotations
    for name, module in homes.items():
        assert getattr(parts, name) is vars(importlib.import_module(module))[name]
    configs = {config.__name__ for config in (parts.PARTS[name] for name in parts.PARTS)}
    assert configs | {name.removesuffix("Config") for name in configs} <= set(homes)
    # what is in __all__ and not among the parts is there once the package is imported
    assert set(parts.__all__) - set(homes) <= set(vars(parts))


LIGHT = {
    name: f"""
import sys, understudy
understudy.{name}
loaded = {{m for m in sys.modules if m.startswith(("understudy.parts.", "understudy.data", "understudy.tasks."))}}
assert loaded <= {{"understudy.tasks.registration"}}, loaded
"""
    for name in ("PPO", "make_env", "ActorCritic")
}


@pytest.mark.parametrize("home", [understudy, parts], ids=["understudy", "parts"])
def test_public_names_load_in_a_fresh_process(fresh: Fresh, home: types.ModuleType) -> None:
    fresh("-c", "\n".join(f"from {home.__name__} import {name}" for name in home.__all__))


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_can_be_imported_before_the_other_rooms(fresh: Fresh, room: str) -> None:
    """The last file first; `test_import_arrows.py` has it that no file imports itself through others."""
    assert modules(room)
    fresh("-c", "\n".join(f"import {name}" for name in reversed(modules(room))))


@pytest.mark.parametrize("name", LIGHT)
def test_the_core_loads_no_part_no_data_and_no_task(fresh: Fresh, name: str) -> None:
    fresh("-c", LIGHT[name])
