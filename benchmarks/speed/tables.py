"""From the JSON lines of many runs to a Markdown table: medians, paired ratios, and where it was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]  # one JSON line of peer.py


@dataclass(frozen=True, kw_only=True)
class Row:
    """One peer's medians over all rounds."""

    peer: str
    version: str
    runs: int
    wall_s: float
    collect_s: float
    update_s: float
    cpu_s: float
    warmup_s: float
    ratio: float | None  # median over rounds of this peer's wall / ours; None: no common round
    ratio_low: float | None
    ratio_high: float | None
    cpu_ratio: float | None  # the same of CPU seconds: moved less by other work on the machine
    check: tuple[float, float] | None  # the policy's score before and after, in the first round


def paired_ratios(ours: Sequence[Result], theirs: Sequence[Result], key: str = "wall_s") -> list[float]:
    """theirs / ours, round by round: what disturbs the machine for a while disturbs both."""
    mine = {r["round"]: r[key] for r in ours}
    return [r[key] / mine[r["round"]] for r in theirs if r["round"] in mine]


def summarize(results: Sequence[Result], ours: str) -> list[Row]:
    """Rows by median wall time, fastest first."""
    by_peer: dict[str, list[Result]] = {}
    for result in results:
        by_peer.setdefault(result["peer"], []).append(result)
    rows = []
    for peer, found in by_peer.items():
        ratios = paired_ratios(by_peer.get(ours, []), found)
        cpu_ratios = paired_ratios(by_peer.get(ours, []), found, "cpu_s")
        checks = [(r["check_before"], r["check_return"]) for r in found if r["check_return"] is not None]

        def median(key: str, found: list[Result] = found) -> float:
            return statistics.median(float(r[key]) for r in found)

        rows.append(
            Row(
                peer=peer,
                version=found[0]["version"],
                runs=len(found),
                wall_s=median("wall_s"),
                collect_s=median("collect_s"),
                update_s=median("update_s"),
                cpu_s=median("cpu_s"),
                warmup_s=median("warmup_s"),
                ratio=statistics.median(ratios) if ratios else None,
                ratio_low=min(ratios, default=None),
                ratio_high=max(ratios, default=None),
                cpu_ratio=statistics.median(cpu_ratios) if cpu_ratios else None,
                check=checks[0] if checks else None,
            )
        )
    return sorted(rows, key=lambda row: row.wall_s)


def fastest_peer(rows: Sequence[Row], ours: str) -> Row | None:
    """The fastest row that is not a variant of our own library."""
    others = [row for row in rows if not is_ours(row.peer, ours)]
    return min(others, key=lambda row: row.wall_s, default=None)


def is_ours(peer: str, ours: str) -> bool:
    """Our library or one of its variants."""
    return peer == ours or peer.startswith(ours + "-")


def markdown(rows: Sequence[Row], failures: Mapping[str, str], ours: str) -> str:
    """The table, then why some peers are not in it."""
    lines = [
        "| | version | wall s | collect + update s | CPU s | first iteration s | wall / ours (lowest to highest) "
        "| CPU / ours | score, before to after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"**{row.peer}**" if is_ours(row.peer, ours) else row.peer
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        cpu = "-" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}"
        check = "-" if row.check is None else f"{row.check[0]:.3g} to {row.check[1]:.3g}"
        lines.append(
            f"| {name} | {row.version} | {row.wall_s:.2f} | {row.collect_s:.2f} + {row.update_s:.2f} | {row.cpu_s:.2f} "
            f"| {row.warmup_s:.2f} | {ratio} | {cpu} | {check} |"
        )
    lines += [f"| {peer} | - | not run: {reason} | | | | | | |" for peer, reason in sorted(failures.items())]
    best = fastest_peer(rows, ours)
    if best is not None and best.ratio is not None:
        lines += ["", f"Fastest peer / ours: **{best.ratio:.2f}** ({best.peer}; median of {best.runs} paired runs)."]
    return "\n".join(lines)
