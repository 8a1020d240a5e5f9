"""Live progress on a terminal (one table that updates in place), or one line every few seconds elsewhere."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import rich.console
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from understudy.training.loggers import Logger, Phase

LINE_INTERVAL = 5.0
"""Seconds between lines where the output is not a terminal."""

LINE_WIDTH = 120
"""Characters of a line there, at most."""

_HEADLINES = {
    "episode/return": "episode return",
    "episode/length": "episode length",
    "evaluation/return": "evaluation return",
    "ppo/kl": "KL",
    "ppo/entropy": "entropy",
    "ppo/explained_variance": "explained variance",
}
"""Metric -> what the display calls it, in order; metrics of parts follow."""

_CORE_GROUPS = ("episode", "evaluation", "ppo", "time", "env")
_HIDDEN = ("reward/task",)  # the episode return says it better; the other rewards are those of parts


class Console(Logger):
    """Shows progress, speed, time left, episode return, KL and what the parts report. Writes to stderr or `file`."""

    def __init__(self, *, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._live: Live | None = None
        self._console = rich.console.Console(file=file, stderr=file is None, highlight=False)
        self._width = self._console.width if self._console.is_terminal else LINE_WIDTH

    def start(self, phase: Phase) -> None:
        """Say where the run lies and what it trains on; show an empty table where the output is a terminal."""
        self._first = self._step = phase.first_step
        self._total, self._unit = phase.total_steps, "epochs" if phase.kind == "offline" else "steps"
        self._start, self._last_line = self._clock(), -math.inf
        self._shown: dict[str, float] = {}
        self.note(f"{phase.folder}: {phase.total_steps:,} {self._unit} on {phase.setting or phase.config.env.id}")
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=False)
            self._live.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the state after `step` environment steps or epochs. A metric that is NaN keeps its last value."""
        self._step = step
        self._shown.update((name, value) for name, value in metrics.items() if math.isfinite(value))
        if self._live is not None:
            self._live.update(self._table())
        elif self._clock() - self._last_line >= LINE_INTERVAL or step >= self._total:
            self._last_line = self._clock()
            self._print(self._line())

    def note(self, text: str) -> None:
        """Print one sentence, above the table where there is one."""
        self._print(textwrap.fill(text, self._width, break_long_words=False, break_on_hyphens=False))

    def close(self) -> None:
        """Leave the last table on the screen and give the cursor back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _progress(self) -> list[str]:
        speed = (self._step - self._first) / max(self._clock() - self._start, 1e-9)
        left = duration(max(self._total - self._step, 0) / speed) if speed > 0 else "?"
        return [f"{speed:,.0f} {self._unit}/s" if speed >= 10 else f"{speed:.2g} {self._unit}/s", f"{left} left"]

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(label, _number(self._shown[name])) for name, label in _HEADLINES.items() if name in self._shown]
        parts = [name for name in self._shown if name.split("/")[0] not in _CORE_GROUPS and name not in _HIDDEN]
        return rows + [(name, _number(self._shown[name])) for name in sorted(parts)]

    def _line(self) -> str:
        """Progress, and as many metrics as the line has room for."""
        share = 100 * min(self._step / self._total, 1.0)
        line = " | ".join([f"{self._step:,} {self._unit} ({share:.0f} %)", *self._progress()])
        for label, value in self._rows():
            longer = f"{line} | {label} {value}"
            line = longer if len(longer) <= self._width else line
        return line

    def _table(self) -> Group:
        head = "   ".join([f"{self._step:,} of {self._total:,} {self._unit}", *self._progress()])
        table = Table.grid(padding=(0, 3))
        for label, value in self._rows():
            table.add_row(label, value)
        bar = Table.grid()  # a bare ProgressBar does not end its line
        bar.add_row(ProgressBar(total=self._total, completed=min(self._step, self._total), width=60))
        return Group(head, bar, table)


def duration(seconds: float) -> str:
    """Seconds as `45s`, `3m 05s` or `2h 07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _number(value: float) -> str:
    if value != 0 and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
