"""Searches in galleries, off the event loop, in a bounded number of threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from clf_serve.call import Call
from clf_serve.limits import ServeLimits
from clf_serve.metrics import Metrics
from clf_serve.priority import full_pool, give_way
from clf_serve.problems import overloaded, too_late
from clf_serve.runtime import usable_cores

T = TypeVar("T")


class Lookups:
    """As many threads as there are cores, since a search uses one; and two at least, so that a slow filter does not
    hold up everyone."""

    def __init__(self, limits: ServeLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._inside = 0
        self._pool = full_pool(max(2, usable_cores()), "clf-search", give_way)

    async def __call__(self, work: Callable[[], T], call: Call) -> T:
        """The result of ``work``, which is not begun after the call's deadline.

        Raises:
            Problem: 429 too many wait already; 503 its deadline has passed.
        """
        if self._inside >= self._limits.queue:
            raise overloaded(1)
        self._inside += 1
        start = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._in_time, work, call)
        finally:
            self._inside -= 1
            self._metrics.stage("search").observe(call.since("search", start))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _in_time(self, work: Callable[[], T], call: Call) -> T:
        if not call.left:
            raise too_late(self._limits.timeout)
        return work()
