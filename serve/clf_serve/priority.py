"""Threads that compute give way to the one that answers, so that refusals and health are quick on a busy machine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
NICENESS = 5
"""Of threads that compute, above that of the process."""


def give_way() -> None:
    """Lowers the priority of this thread and of those that it starts. Only Linux has a priority for each thread."""
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with suppress(OSError):
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(now, min(now + NICENESS, 19)))


def apart(function: Callable[[], T]) -> T:
    """The result of ``function``, called in a thread that gives way; threads that it starts do so too."""
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        return pool.submit(function).result()
