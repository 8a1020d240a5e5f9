from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest

from understudy.envs.registry import EnvConfig
from understudy.runs.config import TrainConfig
from understudy.training.console import LINE_INTERVAL, LINE_WIDTH, Console, duration
from understudy.training.loggers import Phase


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def started(first_step: int, total_steps: int, **options: Any) -> Console:
    console = Console(**options)
    config = TrainConfig(env=EnvConfig(id="PointMass"), total_steps=1)
    console.start(Phase("ppo", Path(), config, first_step, total_steps))
    return console


def test_lines_show_progress_rate_and_time_left() -> None:
    clock, out = Clock(), io.StringIO()
    console = started(1000, 11_000, file=out, clock=clock)
    clock.now = 10.0
    console.log(3000, {"episode/return": 12.345, "ppo/kl": 0.00123, "gail/reward": 0.5, "ppo/loss": 7.0})
    line = out.getvalue()
    # 2,000 steps in 10 s; 8,000 are left: 40 s
    for text in (
        "3,000 steps (27 %)",
        "200 steps/s",
        "40s left",
        "episode return 12.3",
        "KL 1.2e-03",
        "gail/reward 0.5",
    ):
        assert text in line
    assert "loss" not in line


def test_lines_are_rare_but_the_last_one_is_never_left_out() -> None:
    clock, out = Clock(), io.StringIO()
    console = started(0, 400, file=out, clock=clock)
    for step in (100, 200, 300):  # one after the other, within the interval
        clock.now += LINE_INTERVAL / 10
        console.log(step, {})
    assert out.getvalue().count(" left") == 1
    console.log(400, {})
    assert out.getvalue().count(" left") == 2
    clock.now += LINE_INTERVAL
    console.note("checkpoint [written]")
    assert "checkpoint [written]" in out.getvalue()
    console.close()


def test_lines_are_short_and_say_what_they_count() -> None:
    out = io.StringIO()
    console = Console(file=out, clock=Clock())
    config = TrainConfig(env=EnvConfig(id="PointMass"), total_steps=1)
    console.start(Phase("offline", Path("runs/x"), config, 0, 20, "2 x PointMass (its own maker), device cpu"))
    console.log(20, {"episode/return": 1.0, **{f"some_part/metric_{n}": float(n) for n in range(40)}})
    console.note("word " * 60)
    lines = out.getvalue().splitlines()
    assert lines[0] == "runs/x: 20 epochs on 2 x PointMass (its own maker), device cpu"
    assert lines[1].startswith("20 epochs (100 %)")
    assert "steps" not in lines[1]
    assert "episode return 1 | some_part/metric_0 0 | " in lines[1]
    assert all(80 < len(line) <= LINE_WIDTH for line in lines[1:4])


def test_nan_keeps_the_last_value() -> None:
    clock, out = Clock(), io.StringIO()
    console = started(0, 100, file=out, clock=clock)
    console.log(1, {"episode/return": 5.0})
    console.log(100, {"episode/return": math.nan})
    assert out.getvalue().splitlines()[-1].endswith("episode return 5")


def test_terminal_shows_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    console = started(0, 100, file=out)
    console.log(50, {"episode/return": 5.0, "ppo/kl": 0.01})
    console.close()
    console.close()  # twice is harmless
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line.strip() for line in plain.splitlines()]
    head, bar, first, second = lines[-4:]
    assert head.startswith("50 of 100 steps")
    assert set(bar) <= set("━╸╺ ")
    assert first.split() == ["episode", "return", "5"]
    assert second.split() == ["KL", "0.01"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (61, "1m 01s"), (3599, "59m 59s"), (7620, "2h 07m")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
