"""The public names: their three lists agree, and each loads first, alone, and with nothing that it does not need."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import understudy
from understudy import parts

SOURCE = Path(understudy.__file__).parent
FORKS = """
import json, os, sys
import gymnasium, numpy, tensordict, torch, torch._dynamo, torch.utils.tensorboard, tyro, yaml

def attempt(code):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            exec(code, {})
            os.write(write, b"fine")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}"[:500].encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer

assert not any(name.startswith("understudy") for name in sys.modules)
answers = {code: attempt(code) for code in json.load(sys.stdin)}
print(json.dumps({code: answer for code, answer in answers.items() if answer != "fine"}))
"""
"""Runs each piece of code in a process of its own that has not imported the library: a fork of one that has imported
what the library needs, which takes seconds."""


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
    """All modules of a room, or the single ones beside the rooms."""
    files = SOURCE.glob("*.py") if room == "." else (SOURCE / room).rglob("*.py")
    names = ["understudy." + ".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in sorted(files)]
    return [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]


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


NAMES = [f"from {home.__name__} import {name}" for home in (understudy, parts) for name in home.__all__]
MODULES = {room: [f"import {name}" for name in modules(room)] for room in ROOMS}
LIGHT = {
    name: f"""
import sys, understudy
understudy.{name}
loaded = {{m for m in sys.modules if m.startswith(("understudy.parts.", "understudy.data", "understudy.tasks."))}}
assert loaded <= {{"understudy.tasks.registration"}}, loaded
"""
    for name in ("PPO", "make_env", "ActorCritic")
}


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """Code that fails in a fresh process -> why."""
    codes = [*NAMES, *(code for room in MODULES.values() for code in room), *LIGHT.values()]
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(command, input=json.dumps(codes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_public_name_loads_alone_in_a_fresh_process(failures: dict[str, str]) -> None:
    assert {code: failures[code] for code in NAMES if code in failures} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_can_be_imported_first(failures: dict[str, str], room: str) -> None:
    assert MODULES[room]
    assert {code: failures[code] for code in MODULES[room] if code in failures} == {}


@pytest.mark.parametrize("name", LIGHT)
def test_the_core_loads_no_part_no_data_and_no_task(failures: dict[str, str], name: str) -> None:
    assert LIGHT[name] not in failures, failures[LIGHT[name]]
