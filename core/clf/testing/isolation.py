"""Keeping what a plugin does within its check: time, output, random numbers, switches of the process."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import Any

from clf.errors import in_one_line
from clf.testing.sources import shown

CPU_LIMIT = 120.0
"""Seconds of the processor that one check may take in this process; each takes a few."""
LIMIT = 1200.0
"""Seconds that one check may take on a machine that is busy otherwise; for those that sleep or wait for ever."""


class TookTooLong(BaseException):
    """A check did not end. No Exception, so that code which survives those does not survive this."""


class Nowhere(TextIOBase):
    """A text stream that keeps nothing, so that a plugin may print without end."""

    def write(self, text: str, /) -> int:
        return len(text)

    def writable(self) -> bool:
        return True


@contextmanager
def isolated() -> Iterator[None]:
    """Output and warnings go nowhere, and what belongs to the whole process is as before afterwards.

    Raises:
        TookTooLong: the body took more than :data:`LIMIT` seconds, or :data:`CPU_LIMIT` of the processor.
    """
    with ExitStack() as stack:
        stack.enter_context(_in_time())
        stack.enter_context(redirect_stdout(Nowhere()))
        stack.enter_context(redirect_stderr(Nowhere()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for restore in _restorers():
            stack.callback(restore)
        yield


def explained(error: BaseException, files: Sequence[Path]) -> str:
    """An exception in one sentence, with the innermost line of the plugin's own files, or else of any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = {str(file) for file in files} | {str(file.resolve()) for file in files}
    mine = [frame for frame in frames if frame.filename in own] or list(frames)
    place = f" ({shown(mine[-1].filename)}, line {mine[-1].lineno})" if mine else ""
    text = in_one_line(error) or "no message"
    return f"{type(error).__name__}: {text}{place}"


def _restorers() -> Iterator[Callable[[], object]]:
    """Functions that put back what is now."""
    python, folder, path = random.getstate(), Path.cwd(), list(sys.path)
    yield lambda: random.setstate(python)
    yield lambda: os.chdir(folder)
    yield lambda: sys.path.__setitem__(slice(None), path)
    if "torch" not in sys.modules:  # no check has trained yet
        return
    import numpy as np
    import torch

    numpy, state, dtype = np.random.get_state(), torch.get_rng_state(), torch.get_default_dtype()
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    yield lambda: np.random.set_state(numpy)
    yield lambda: torch.set_rng_state(state)
    yield lambda: torch.set_default_dtype(dtype)
    yield lambda: torch.set_num_threads(threads)
    yield lambda: torch.set_grad_enabled(gradients)


@contextmanager
def _in_time() -> Iterator[None]:
    """Ends the body by an exception, where the system has alarms and this is the thread that hears them."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    with (
        _alarm(signal.ITIMER_PROF, signal.SIGPROF, CPU_LIMIT, "s of the processor"),
        _alarm(signal.ITIMER_REAL, signal.SIGALRM, LIMIT, "s"),
    ):
        yield


@contextmanager
def _alarm(which: int, number: signal.Signals, seconds: float, unit: str) -> Iterator[None]:
    """An alarm that gives way to another one which rings before it, and puts back one which rings after it."""

    def ring(*unused: Any) -> None:
        raise TookTooLong(f"it was not done after {seconds:g} {unit}, and was ended")

    before, every = signal.getitimer(which)
    if 0 < before <= seconds:
        yield
        return
    handler = signal.signal(number, ring)
    signal.setitimer(which, seconds)
    try:
        yield
    finally:
        spent = seconds - signal.setitimer(which, 0)[0]
        signal.signal(number, handler)
        if before:
            signal.setitimer(which, max(before - spent, 0.001), every)
