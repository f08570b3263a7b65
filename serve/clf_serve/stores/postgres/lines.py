"""Connections to a PostgreSQL server: lent to one call at a time, limited in time, and made anew when one breaks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from clf.errors import GalleryError
from clf_serve.stores.postgres import binary
from clf_serve.stores.postgres.server import Server, greet
from clf_serve.stores.postgres.target import Target
from clf_serve.stores.postgres.words import in_words

T = TypeVar("T")
IDLE = TransactionStatus.IDLE

STATEMENT = 120.0
"""Seconds that a statement may take, unless the URL or the role says something else."""
LOCK = 30.0
"""Seconds that a write waits for another one."""
_GRACE = 15.0  # seconds after which a server that ought to have broken off a statement is given up
_KEPT = 8  # idle connections of a handle
_PAUSES = (0.0, 0.2, 0.5, 1.0, 2.0, 2.0)  # seconds before each attempt; a server restarts in less than their sum


class UnansweredError(psycopg.OperationalError):
    """Time is up."""


class Line(psycopg.Connection[tuple[Any, ...]]):
    """A connection that gives up a server which does not answer: its host may be gone, or the process stopped."""

    ends = math.inf
    """When, by the monotonic clock."""
    target: Target
    effort: tuple[int, bool] | None = None
    """``hnsw.ef_search`` and whether scans are iterative, as they were set last."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **named: Any) -> T:
        return super().wait(_until(gen, self), *args, **named)


def _until(gen: Generator[Any, Any, T], line: Line) -> Generator[Any, Any, T]:
    """The same generator, unless time is up: libpq itself waits for ever."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > line.ends:
                raise UnansweredError("the server does not answer")
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class Lines:
    """Thread-safe.

    Args:
        read_only: refuse every change.
    """

    def __init__(self, target: Target, *, read_only: bool) -> None:
        self._target = target
        self._read_only = read_only
        self._idle: list[Line] = []
        self._lock = threading.Lock()
        self._closed = False
        self.server = Server()
        """As it was when the last connection was made."""

    @contextmanager
    def one(self, limit: float | None = STATEMENT) -> Iterator[Line]:
        """A connection in autocommit mode. One that breaks is closed, and with it the idle ones, which are as old.

        Args:
            limit: seconds for each statement; None: as long as it takes.
        """
        line = self._take() or self.connect()
        try:
            # what a transaction holds takes a few statements; the server's own limit is for each
            line.ends = math.inf if limit is None else time.monotonic() + max(limit, self.server.limit) + _GRACE
            yield line
        except BaseException as error:
            if line.broken and isinstance(error, psycopg.OperationalError):
                self._drop_idle()
            if isinstance(error, Exception) and line.pgconn.transaction_status == IDLE:
                self._give_back(line)
            else:
                line.close()
            raise
        self._give_back(line)

    def again(self, purpose: str, ask: Callable[[Line], T], limit: float | None = STATEMENT) -> T:
        """What ``ask`` returns; where its connection breaks, it is called once more on a new one, for some seconds."""
        with in_words(self._target, purpose):
            for number, pause in enumerate(_PAUSES, 1):
                time.sleep(pause)
                try:
                    with self.one(limit) as line:
                        return ask(line)
                except psycopg.OperationalError as error:
                    if number == len(_PAUSES) or not is_lost(error):
                        raise
            raise AssertionError

    def connect(self) -> Line:
        line = Line.connect(**self._target.settings, autocommit=True)
        try:
            line.target = self._target
            line.prepare_threshold = None  # plans for any value would be made for none
            binary.register(line)
            self.server = greet(line, self._target.schema, read_only=self._read_only, seconds=(STATEMENT, LOCK))
        except BaseException:
            line.close()
            raise
        return line

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._drop_idle()

    def _take(self) -> Line | None:
        with self._lock:
            if self._closed:
                raise GalleryError(f"the gallery {self._target.place} was closed")
            return self._idle.pop() if self._idle else None

    def _give_back(self, line: Line) -> None:
        line.ends = math.inf
        with self._lock:
            kept = not self._closed and len(self._idle) < _KEPT and not line.closed
            if kept:
                self._idle.append(line)
        if not kept:
            line.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()


def is_lost(error: psycopg.OperationalError) -> bool:
    """Whether a connection broke or could not be made, so that another one may do better.

    Class 57P is of a server that goes down or comes up; what has no code did not come from a server's statement.
    """
    if isinstance(error, UnansweredError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
