"""Files on their way through an engine: decoded ahead in threads, embedded in order, the bad ones told apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from clf_serve.backends.base import Vectors

T = TypeVar("T")


class Skipped(NamedTuple):
    path: Path
    reason: str


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A part of a stream of files: what was embedded, and what could not be."""

    items: list[T]
    vectors: Vectors
    """(len(items), D)."""
    skipped: list[Skipped]


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Path], T], paths: Iterable[Path], depth: int
) -> Generator[tuple[Path, Future[T]], None, None]:
    """``function`` of each path, in order, begun up to ``depth`` items before it is asked for.

    Closing it cancels what has not begun.
    """
    pending: deque[tuple[Path, Future[T]]] = deque()
    try:
        for path in paths:
            pending.append((path, pool.submit(function, path)))
            if len(pending) >= depth:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for _, future in pending:
            future.cancel()
