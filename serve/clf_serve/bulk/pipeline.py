"""Images on their way through one worker: read and decoded ahead of the model, across the bounds of shards."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from clf import images
from clf.errors import ImageError
from clf_serve.backends.base import Pixels
from clf_serve.bulk.parts import Row

T = TypeVar("T")
_MOST_BYTES = 512 * 2**20
"""Of files that have been read and not yet been decoded."""
_POLL = 0.1  # seconds until a thread sees that nobody wants its results any more


@dataclass(frozen=True)
class Image:
    """One image to embed."""

    key: str
    uri: str
    size: int
    mtime_ns: int
    fetch: Callable[[], bytes] = field(repr=False)
    """Its bytes. Raises ImageError."""


class Begin(NamedTuple):
    """A part begins."""

    shard: int
    slice: int


class End(NamedTuple):
    """A part ends."""

    next: int | None
    left_out: int = 0


class Known(NamedTuple):
    """All parts of a shard are there."""

    shard: int


class Bad(NamedTuple):
    """Something in the source that cannot be used."""

    key: str
    reason: str


Step: TypeAlias = Begin | Image | Bad | End | Known


class Decoded(NamedTuple):
    row: Row
    pixels: Pixels
    """(S, S, 3)."""


def decode(image: Image, size: int) -> Decoded:
    """Raises ImageError."""
    try:
        f"{image.key}{image.uri}".encode()
    except UnicodeEncodeError:
        raise ImageError(f"{image.uri!r} is no valid Unicode; rename it") from None
    data = image.fetch()
    picture = images.decode(data, name=image.uri)
    row = Row(
        image.key,
        image.uri,
        picture.width,
        picture.height,
        len(data),
        image.mtime_ns,
        hashlib.sha256(data).hexdigest(),
    )
    return Decoded(row, images.resize(picture, size))


def decoded(
    steps: Callable[[], Iterator[Step]], size: int, threads: int, depth: int
) -> Generator[tuple[Step, Future[Decoded] | None], None, None]:
    """The steps in order, images with what comes of them, begun up to ``depth`` steps before they are asked for.

    The steps are made in a thread of their own, so that reading a tar does not hold up the model. It can be
    closed early.
    """
    budget = Budget(_MOST_BYTES)

    def work(image: Image) -> Decoded:
        try:
            return decode(image, size)
        finally:
            budget.give_back(_held(image))

    pending: deque[tuple[Step, Future[Decoded] | None]] = deque()
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="clf-decode") as pool,
        closing(Ahead(steps, budget, depth)) as made,
    ):
        try:
            for step in made:
                pending.append((step, pool.submit(work, step) if isinstance(step, Image) else None))
                while len(pending) >= depth:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                if future is not None:
                    future.cancel()


class Budget:
    """So many bytes that may be held at a time; one thing larger than that may be held alone."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()

    def take(self, size: int, stopped: Callable[[], bool]) -> None:
        """Waits until it fits, or nobody wants it any more."""
        with self._changed:
            while self._held and self._held + size > self._most and not stopped():
                self._changed.wait(_POLL)
            self._held += size

    def give_back(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()


class Ahead(Generic[T]):
    """What an iterator gives, made in a thread up to ``depth`` things ahead; what it raises is raised here."""

    def __init__(self, make: Callable[[], Iterator[T]], budget: Budget, depth: int) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._make, self._budget = make, budget
        self._thread = threading.Thread(target=self._run, name="clf-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            made, error = self._queue.get()
            if error is not None:
                raise error
            if made is None:
                return
            yield made

    def close(self) -> None:
        self._closed.set()
        self._thread.join(5)  # a network that hangs does not hold up the end

    def _run(self) -> None:
        try:
            for made in self._make():
                if isinstance(made, Image):
                    self._budget.take(_held(made), self._closed.is_set)
                if not self._put((made, None)):
                    return
            self._put((None, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, thing: tuple[T | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(thing, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False


def _held(image: Image) -> int:
    """Bytes that are in memory already: those of a tar's member."""
    return image.size if isinstance(image.fetch, Content) else 0


@dataclass(frozen=True)
class Content:
    """Bytes that have been read."""

    data: bytes

    def __call__(self) -> bytes:
        return self.data
