"""Short trainings give the numbers that were written down before: on the same machine, to the last bit.

Pairs of parts are compared where they are trained anyway: in `tests/parts/test_contract.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.golden.cases import every_case
from tests.golden.kept import KEPT, check_kept
from tests.parts.contract import PAIRS

NAMES = sorted(KEPT["cases"].keys() - {"parts/" + "+".join(pair) for pair in PAIRS})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return every_case(tmp_path_factory.mktemp("golden"))


def test_every_case_is_kept(cases: Any) -> None:
    assert set(cases) == set(KEPT["cases"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_before(name: str, cases: Any) -> None:
    check_kept(name, cases[name]())
