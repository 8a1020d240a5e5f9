"""`metrics.jsonl`: one flat JSON object per line, written as training goes, read by the plot and by anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from understudy.core.borders import parse_json, parsing
from understudy.core.files import write_atomic
from understudy.runs.codec import AnyNumber, decode

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

    Raises ValueError, which names the line, for any other damage, a step that is not after the last one among it.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    *lines, unfinished = path.read_bytes().split(b"\n")
    if unfinished and (b"}" in unfinished or not unfinished.startswith(b'{"')):  # no half of a line
        lines.append(unfinished)
    rows: list[dict[str, float]] = []
    last = (0, 0.0)
    for number, line in enumerate(lines, start=1):
        with parsing(f"{path}, line {number}", "delete that line"):
            row = parse_json(line.decode())
            decode(dict[str, AnyNumber | None], row, "it")
            place = (0 if EPOCH in row else 1, decode(int, row.get(STEP), STEP))
            if place <= last:
                raise ValueError(f"step {place[1]} follows step {last[1]}")
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
        last = place
    return rows


def drop_after(path: Path, steps: int, epochs: float = math.inf) -> None:
    """Remove the lines later than `steps` (of offline epochs: than `epochs`), which a resumed run writes again."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row[STEP] <= (epochs if EPOCH in row else steps)]
    write_atomic(path, "".join(json_line(row) + "\n" for row in kept).encode())
