"""The wheel that people install: every module, the type marker, the command, and each extra that a message names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="the tests of an installed wheel: nothing to build")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    [path] = folder.glob("understudy_rl-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def test_every_source_file_is_in_the_wheel_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "understudy").rglob("*.py")}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {*files, "understudy/py.typed"}


def test_the_wheel_has_the_name_the_command_and_the_extras_that_messages_name(wheel: zipfile.ZipFile) -> None:
    contents = {name.rpartition("/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(wheel.read(contents["METADATA"]).decode())
    assert metadata["Name"] == "understudy-rl"
    assert "understudy = understudy.cli:main" in wheel.read(contents["entry_points.txt"]).decode()
    sources = "".join(wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py"))
    named = set(re.findall(r"""(?:extra=|install\()["'](\w+)["']""", sources))
    assert {"demos", "envpool", "export", "mlflow", "plot", "video", "wandb"} <= named
    assert {*named, "mujoco", "box2d"} <= set(metadata.get_all("Provides-Extra", []))
    assert f'version("{metadata["Name"]}")' in wheel.read("understudy/version.py").decode()
