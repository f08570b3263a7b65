"""SIGINT and SIGTERM as a request to stop after the step in hand.

The handler only takes a note, so it cannot disturb a rank that is waiting for the others.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While entered, the first signal sets ``requested``; a second SIGINT interrupts at once.

    Signals reach the main thread only; entered in another thread it does nothing.
    """

    def __init__(self) -> None:
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
            raise KeyboardInterrupt
        self.ask(signal.Signals(number))
