"""Where the time of a training step goes: named phases, measured only when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch

NAMES = ("data", "copy", "augment", "forward", "backward", "optimizer", "method", "other")
"""data: waiting for raw images; copy: to the device; method: its own work beyond the loss; other: all the rest."""


class Phases(Protocol):
    """``with phases("augment"): ...`` marks what the time inside is spent on."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


_NOTHING: AbstractContextManager[None] = nullcontext()


def unmeasured(name: str) -> AbstractContextManager[None]:
    """Phases that measure nothing and cost nothing: what a training uses."""
    return _NOTHING


class Stopwatch:
    """Seconds per phase; a phase inside another is taken out of the outer one.

    On a GPU each border waits for the device, which costs speed: shares are true, the total is a little too large.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self._device = device
        self._open: list[str] = ["other"]
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def reset(self) -> None:
        """Forgets what was measured, for instance after a warm-up."""
        self._charge()
        self.seconds = dict.fromkeys(NAMES, 0.0)

    def _charge(self) -> None:
        """Gives the time since the last border to the innermost open phase."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now
