"""SIGINT and SIGTERM as a request to stop after the step in hand.

The handler only takes a note and says so, so it cannot disturb a rank that is waiting for the others.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a sentence for the person about what it ended."""


class StopRequest:
    """While entered, the first signal sets ``requested``; a second SIGINT interrupts at once, a third one kills.

    Signals reach the main thread only; entered in another thread it does nothing.

    Args:
        told: what a person at the terminal is told after the first SIGINT; nothing when it is empty.
    """

    def __init__(self, told: str = "") -> None:
        self._told = told
        self.requested = False
        self.number = 0
        """The signal that came last; 0 for none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def ask(self, number: signal.Signals = signal.SIGINT) -> None:
        """Asks for the stop as the signal would."""
        self.requested = True
        self.number = number

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one ends even what catches KeyboardInterrupt
            raise KeyboardInterrupt
        self.ask(signal.Signals(number))
        if self._told and number == signal.SIGINT:
            with suppress(OSError, ValueError, AttributeError, RuntimeError):  # gone, or being written to right now
                sys.stderr.write(f"{self._told}\n")
                sys.stderr.flush()
