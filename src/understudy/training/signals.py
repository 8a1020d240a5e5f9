"""SIGINT and SIGTERM as a polite request: finish the iteration, write a checkpoint, leave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from understudy.core import ranks

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """A second SIGTERM: leave at once, with the exit code that shells give it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class StopSignals:
    """While they are `heeded`, the first SIGINT or SIGTERM sets `received`, and says so through `announce`.

    The second one raises KeyboardInterrupt or `Terminated`, a third one acts as it did before. Handlers can only be set
    in the main thread: elsewhere this does nothing and the caller's handlers stay. Of processes that torchrun started,
    each gets a terminal's Ctrl-C twice: what comes within a second counts once.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.announce = announce
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Listen while the block runs."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.receive(signal.Signals(number))
            return
        if ranks.count() > 1 and time.monotonic() - self._since < 1.0:
            return
        self._restore()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def receive(self, number: signal.Signals) -> None:
        """Take a signal, of this process or of another rank, and say so."""
        self.received, self._since = number, time.monotonic()
        again = "press Ctrl-C again" if number == signal.SIGINT else "send it again"
        after = "stopping with a checkpoint after this iteration or evaluation"
        self.announce(f"{number.name}: {after}; {again} to stop now")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
