"""The numbers that were written down before, and the comparison with them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tests.golden.cases import GOLDEN, machine

KEPT = json.loads(GOLDEN.read_text())


def check_kept(name: str, found: dict[str, Any]) -> None:
    """On the machine that wrote them the numbers are the same to the last bit."""
    expected = dict(KEPT["cases"][name])
    kept, later = expected["metrics"], re.compile("env/.*|.*/loss_(pi|exp)")  # the numbers that are logged since
    found = {**found, "metrics": {k: x for k, x in found["metrics"].items() if k in kept or not later.fullmatch(k)}}
    if machine() == expected.pop("machine"):
        assert found == expected
        return
    # another processor rounds otherwise: as many digits as three short iterations leave
    assert set(found["metrics"]) == set(expected["metrics"])
    wrong = {
        key: (found["metrics"][key], value)
        for key, value in expected["metrics"].items()
        if not math.isclose(found["metrics"][key], value, rel_tol=1e-2, abs_tol=1e-3)
    }
    assert not wrong
