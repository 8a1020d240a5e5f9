"""`metrics.jsonl`: one flat JSON object per line, written as training goes, read by the plot and by anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from understudy.core.files import write_atomic

STEP = "step"
"""Key of the environment steps (all environments together) in every line."""

EPOCH = "offline/epoch"
"""Key in every line of offline training, whose `step` counts epochs."""


def json_line(values: Mapping[str, object]) -> str:
    """One line of strict JSON; non-finite floats as null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, allow_nan=False)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All lines of a metrics file, null as NaN; a half-written last line (a crash) is left out.

    Raises ValueError that names the line if any other line is damaged, FileNotFoundError if there is no file.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not JSON; delete that line") from error
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows


def drop_after(path: Path, steps: int, epochs: float = math.inf) -> None:
    """Remove the lines later than `steps` (of offline epochs: than `epochs`), which a resumed run writes again."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row[STEP] <= (epochs if EPOCH in row else steps)]
    write_atomic(path, "".join(json_line(row) + "\n" for row in kept).encode())
