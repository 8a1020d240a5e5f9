"""The package's functions are the real ones, and take what their page says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from tests.fresh import Fresh

import understudy as us
from understudy.ppo.returns import gae
from understudy.tools.evaluate import evaluate
from understudy.training.loop import resume, train

PAGE = Path(__file__).parents[1] / "docs" / "from-python.md"
DOCUMENTED = dict(re.findall(r"^us\.(\w+)(\(.*\)) -> ", PAGE.read_text(), re.M))


def described(function: ast.FunctionDef) -> list[tuple[str, str, str]]:
    """Name, kind and default of each parameter."""
    plain, named = function.args.args, function.args.kwonlyargs
    defaults = [None] * (len(plain) - len(function.args.defaults)) + list(function.args.defaults)
    kinds = [
        *(("plain", *pair) for pair in zip(plain, defaults)),
        *(("named", *p) for p in zip(named, function.args.kw_defaults)),
    ]
    return [(arg.arg, kind, "" if default is None else ast.unparse(default)) for kind, arg, default in kinds]


@pytest.mark.parametrize("real", [train, resume, evaluate, gae], ids=lambda function: function.__name__)
def test_a_public_function_is_the_real_one_and_has_its_signature(real: object) -> None:
    name = real.__name__  # type: ignore[attr-defined]
    assert vars(us).get(name, getattr(us, name)) is real
    [documented] = ast.parse(f"def {name}{DOCUMENTED[name]}: ...").body
    [written] = ast.parse(inspect.cleandoc(inspect.getsource(real))).body  # type: ignore[arg-type]
    assert isinstance(documented, ast.FunctionDef)
    assert isinstance(written, ast.FunctionDef)
    assert described(documented) == described(written)


def test_every_documented_call_is_tested() -> None:
    assert set(DOCUMENTED) == {"train", "resume", "evaluate", "gae"}


def test_loggers_load_no_package_that_nobody_asked_for(fresh: Fresh) -> None:
    code = (
        "import sys, understudy as us; us.Logger; us.train; print({'tensorboard', 'wandb', 'mlflow'} & {*sys.modules})"
    )
    assert fresh("-c", code).stdout.strip() == "set()"
