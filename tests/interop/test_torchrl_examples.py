"""The scripts in `examples/coming_from/torchrl_*.py` run against TorchRL's collector, where TorchRL is installed."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchrl")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parents[2] / "examples" / "coming_from"
FRAMES = 1024  # two rollouts


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def script(name: str) -> Any:
    return importlib.import_module(name)


def test_one_import_changes_and_no_weight() -> None:
    before, after = (
        [line for line in (EXAMPLES / f"torchrl_{name}.py").read_text().splitlines()[1:] if line]
        for name in ("before", "after")
    )
    assert set(before) - set(after) == {"from torchrl.objectives import ClipPPOLoss"}
    assert set(after) - set(before) == {"from understudy import ClipPPOLoss"}
    (first, theirs), (second, ours) = (script(f"torchrl_{name}").main(FRAMES) for name in ("before", "after"))
    assert first == second > 8.0
    # TorchRL takes the weights out of its modules: those of the collector's policy are what was trained
    for x, y in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=1e-7)


def test_gail_in_a_training_script(tmp_path: Path) -> None:
    metrics = script("torchrl_gail").main(FRAMES, demonstrations=tmp_path / "expert.npz")
    assert metrics["return"] >= 8.0
    assert metrics["reward"] > 0.0
    assert all(math.isfinite(x) for x in metrics.values())
    assert 0.3 < metrics["reward"] < 1.0  # of the discriminator: the task gives 1 for each step


def test_distillation_in_a_training_script(tmp_path: Path) -> None:
    metrics = script("torchrl_distillation").main(FRAMES, teacher=tmp_path / "teacher", teacher_steps=4096)
    assert metrics["last"] < metrics["first"] - 0.02
