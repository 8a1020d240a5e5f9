"""Several ranks train as one: two of N environments against one of 2N, run folders, deaths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fresh import Fresh
from tests.training.ranks import CASES, outcome

ROOT = Path(__file__).parents[2]


def on_two_ranks(fresh: Fresh, function: str, folder: Path) -> None:
    """Run a function of `tests.training.ranks` (rank, folder) in two processes."""
    code = f"import torch.multiprocessing as m\nfrom tests.training.ranks import {function}\n"
    code += f"m.start_processes({function}, args=({str(folder)!r},), nprocs=2, start_method='fork')"
    fresh("-c", code, cwd=ROOT)


@pytest.fixture(scope="module")
def proven(fresh: Fresh, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either rank has after some iterations of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(fresh, "prove", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_does_with_all_their_environments(case: str, proven: list[dict[str, Any]]) -> None:
    first, second = (found[case] for found in proven)
    alone = outcome(case, 0, 1)
    assert first.keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        error = torch.linalg.vector_norm((first[name] - expected).double())
        limit = 1e-5 if case.endswith("float32") else 1e-10
        assert error <= limit * torch.linalg.vector_norm(expected.double()), (name, error)
