"""Running somebody else's code: what it prints kept off standard output, its slowness told while it lasts."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

SLOW = 5.0
"""Seconds after which a person is told what is being waited for; again after as long once more, and so on."""


_ONE_AT_A_TIME = threading.RLock()
"""Standard output is the process's: of two threads that moved it and put it back, one would put back the other's."""


@contextmanager
def off_standard_output() -> Iterator[None]:
    """Sends what is printed to standard error, also by C code and by child processes: standard output is parsed."""
    with _ONE_AT_A_TIME, _descriptor_moved(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def _descriptor_moved() -> Iterator[None]:
    _flush()
    try:
        kept = os.dup(1)
    except OSError:  # started without standard output
        yield
        return
    try:
        with suppress(OSError):  # without standard error there is nowhere to send it
            os.dup2(2, 1)
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, or never there
            stream.flush()  # type: ignore[union-attr]


@contextmanager
def told_when_slow(what: str) -> Iterator[None]:
    """Writes ``still importing plugin 'x' after 5 s ...`` on standard error for as long as it lasts."""
    done = threading.Event()
    watcher = threading.Thread(target=_tell, args=(what, done), name="clf: waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _tell(what: str, done: threading.Event) -> None:
    waited = pause = SLOW
    while not done.wait(pause):
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"still {what} after {waited:.0f} s; Ctrl-C ends it\n")
            sys.stderr.flush()
        pause = waited
        waited += pause
