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
"""Of threads that compute, beyond that of the thread that answers."""


def give_way() -> None:
    """Lowers the priority of this thread and of those that it starts, once. Only Linux has one for each thread."""
    if sys.platform != "linux":
        return
    with suppress(OSError):
        process = os.getpriority(os.PRIO_PROCESS, os.getpid())  # that of its first thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(process + NICENESS, 19))


def full_pool(size: int, name: str, initializer: Callable[[], None] | None = None) -> ThreadPoolExecutor:
    """A pool whose threads all run from the start, so that a server has at its first request as many as ever."""
    pool = ThreadPoolExecutor(size, thread_name_prefix=name, initializer=initializer)
    here = threading.Barrier(size + 1)
    for _ in range(size):
        pool.submit(here.wait)  # a thread that waits is not idle, so each call needs one more
    here.wait()
    return pool


def apart(function: Callable[[], T]) -> T:
    """The result of ``function``, called in a thread that gives way; threads that it starts do so too."""
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        return pool.submit(function).result()
