"""The one writer of a gallery in a server: opened at the first write, and closed when there is nothing more to do.

Writes go through one thread in the order they came; those that wait for it together become one transaction. While the
writer is open ``clf index`` and other writers have to wait, so it closes after a few seconds of rest, when the index
has been saved, and at once when one of them asks for its turn. Nothing is acknowledged before it is committed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from clf.errors import GalleryError
from clf_serve.gallery import Identity
from clf_serve.gallery.metadata import EntryError
from clf_serve.gallery.store import Entry
from clf_serve.place import AnyPlace, Place
from clf_serve.problems import Problem, draining
from clf_serve.stores import AnyGallery, ConflictError, open_gallery
from clf_serve.worker import Worker

T = TypeVar("T")
_log = logging.getLogger(__name__)
_REST = 3.0  # seconds without a write after which the index is saved and the gallery closed
_ASK = 0.1  # seconds between two looks whether another process waits
_TURN = 1.0  # seconds of writing before another process is given its turn: opening a large gallery takes time too
_PASS = 0.5  # seconds in which the other takes it
_MOST = 1024  # entries of one transaction that several requests share
_END = 10.0  # seconds that whatever runs is given at the end
_BUSY, _LOCKED, _READ_ONLY, _CANNOT_OPEN, _FULL = 5, 6, 8, 14, 13  # SQLite's primary result codes


class Written(NamedTuple):
    """What became of one entry."""

    id: int
    created: bool
    """False where it took the place of one with the same key."""


@dataclass(eq=False)
class _Job:
    """One write; ``entries`` can share a transaction, ``work`` has its own."""

    identity: Identity
    done: asyncio.Future[Any]
    entries: Sequence[Entry] = ()
    work: Callable[[AnyGallery], Any] | None = None
    outcome: Any = None
    error: Exception | None = field(default=None, repr=False)

    def deliver(self) -> None:
        if self.done.done():  # nobody waits any more
            return
        if self.error is None:
            self.done.set_result(self.outcome)
        else:
            self.done.set_exception(self.error)


class Writer:
    """Of the gallery at one place. Belongs to one event loop; outlives reloads of the model."""

    def __init__(self, place: AnyPlace) -> None:
        self.place = Place.of(place)
        self._waiting: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._gallery: AnyGallery | None = None
        self._opened_at = 0.0
        self._unsaved = False
        self._reopen = False
        self._closing = False

    async def upsert(self, entries: Sequence[Entry], identity: Identity) -> list[Written]:
        """Adds or replaces entries, all or none.

        Raises:
            Problem: 409 another process writes; 507 the disk is full; 503 shutting down, or the gallery was replaced.
            GalleryError: it cannot be used.
        """
        found: list[Written] = await self._do(_Job(identity, self._promise(), entries))
        return found

    async def change(self, work: Callable[[AnyGallery], T], identity: Identity) -> T:
        """The result of ``work`` with the gallery open for writing. Raises as :meth:`upsert`."""
        result: T = await self._do(_Job(identity, self._promise(), work=work))
        return result

    def release(self) -> None:
        """The folder may hold another gallery now: what is written from here on opens it again."""
        self._reopen = True
        self._wake.set()

    async def close(self) -> None:
        """Writes what waits, and closes the gallery."""
        self._closing = True
        self._wake.set()
        end = time.monotonic() + _END
        while self._task is not None and time.monotonic() < end:  # one that handed over is followed by another
            await asyncio.wait([self._task], timeout=max(0.0, end - time.monotonic()))

    @property
    def is_open(self) -> bool:
        """Whether the gallery is held, so that no other process can write."""
        return self._task is not None

    def _promise(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def _do(self, job: _Job) -> Any:
        if self._closing:
            raise draining()
        self._waiting.append(job)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="clf-write")
        return await job.done

    async def _serve(self) -> None:
        thread = Worker("clf-write")
        wanted = False
        try:
            wanted = await self._hold(thread)
        finally:
            await thread(self._shut)
            await thread.close(_END)
            if wanted:
                await asyncio.sleep(_PASS)
            self._task = asyncio.create_task(self._serve(), name="clf-write") if self._waiting else None

    async def _hold(self, thread: Worker) -> bool:
        """Until there is nothing more to do, or, which is True, another process wants to write."""
        last = time.monotonic()
        while True:
            await self._write(thread)
            if self._closing and not self._waiting:
                return False
            if await self._is_wanted(thread):
                return True
            if self._waiting or await self._woken(_ASK):
                last = time.monotonic()
            elif time.monotonic() - last > _REST:
                if not self._unsaved:
                    return False
                if await self._save(thread):
                    return True
                if not self._waiting:
                    return False
                last = time.monotonic()

    async def _is_wanted(self, thread: Worker) -> bool:
        gallery = self._gallery
        if gallery is None or time.monotonic() - self._opened_at < _TURN:
            return False
        return await thread(gallery.is_wanted)

    async def _write(self, thread: Worker) -> None:
        """All that waits, and what comes meanwhile, for as long as a turn lasts."""
        end = time.monotonic() + _TURN
        if self._reopen:
            self._reopen = False
            await thread(self._shut)
        while time.monotonic() < end and (batch := self._next()):
            await thread(lambda batch=batch: self._run(batch))  # type: ignore[misc]
            if self._gallery is None:  # it cannot be opened; finding that out again for each would take seconds
                for job in [job for job in self._waiting if job.identity == batch[0].identity]:
                    self._waiting.remove(job)
                    job.error = batch[0].error
                    batch.append(job)
            for job in batch:
                job.deliver()

    def _next(self) -> list[_Job]:
        """One change, or as many upserts in a row as may share a transaction."""
        batch: list[_Job] = []
        entries = 0
        while self._waiting:
            job = self._waiting[0]
            if batch and (
                job.work is not None
                or batch[0].work is not None
                or job.identity != batch[0].identity
                or entries + len(job.entries) > _MOST
            ):
                break
            self._waiting.popleft()
            if not job.done.done():  # else its caller has gone, and it was not begun
                batch.append(job)
                entries += len(job.entries)
        return batch

    def _run(self, batch: Sequence[_Job]) -> None:
        try:
            gallery = self._opened(batch[0].identity)
            if batch[0].work is not None:
                batch[0].outcome = batch[0].work(gallery)
            else:
                _upsert(gallery, batch)
            self._unsaved = True
        except Exception as error:
            if isinstance(error, (EntryError, ValueError)) and len(batch) > 1:  # of one of them
                for job in batch:
                    self._run([job])
                return
            problem = _as_problem(error, self.place)
            for job in batch:
                job.error = problem

    def _opened(self, identity: Identity) -> AnyGallery:
        if self._gallery is None:
            self._gallery = open_gallery(self.place, identity, write=True)
            self._opened_at = time.monotonic()
        try:
            self._gallery.require(identity)
        except GalleryError as error:
            text = "the model was replaced meanwhile; send the request again"
            raise Problem(503, "model_replaced", text, retry_after=1) from error
        return self._gallery

    def _shut(self) -> None:
        gallery, self._gallery = self._gallery, None
        if gallery is not None:
            gallery.close()

    async def _save(self, thread: Worker) -> bool:
        """The index, in a thread of its own; writes go on meanwhile. Whether another process asked for its turn."""
        self._unsaved = wanted = False
        gallery = self._gallery
        if gallery is None:
            return False
        aside = Worker("clf-index")
        saving = asyncio.ensure_future(aside(gallery.save_index))
        while not saving.done():
            waking = asyncio.ensure_future(self._woken(_TURN))
            await asyncio.wait({saving, waking}, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()
            if self._closing:
                await asyncio.wait([saving], timeout=_END)
                break
            while self._waiting and not self._reopen:  # or the gallery would be closed in the middle of it
                await self._write(thread)
            wanted = wanted or await self._is_wanted(thread)
        await aside.close(0)
        if not saving.done():
            saving.cancel()
            _log.warning("the index of %s was not saved in time; it is made again when it is needed", self.place)
        elif note := saving.exception() or gallery.cache_note:
            _log.warning("the index of %s: %s", self.place, note)
        return wanted

    async def _woken(self, seconds: float) -> bool:
        """Whether something happened within so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        woken = self._wake.is_set() or bool(self._waiting)
        self._wake.clear()
        return woken


def _upsert(gallery: AnyGallery, batch: Sequence[_Job]) -> None:
    entries = [entry for job in batch for entry in job.entries]
    known = {entry.key for entry in entries if gallery.find(entry.key) is not None}
    ids = iter(gallery.upsert(entries))
    for job in batch:
        job.outcome = []
        for entry in job.entries:
            job.outcome.append(Written(next(ids), entry.key not in known))
            known.add(entry.key)


def _as_problem(error: Exception, place: Place) -> Exception:
    """What a caller can do about it; other errors as they are."""
    if isinstance(error, EntryError):
        return Problem(400, "invalid_entry", str(error), param="images")
    if not isinstance(error, GalleryError):
        return error
    cause = error.__cause__
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF if isinstance(cause, sqlite3.Error) else 0
    number = cause.errno if isinstance(cause, OSError) else 0
    if code in (_BUSY, _LOCKED) or isinstance(cause, ConflictError):
        text = "another process is writing to this gallery; try again in 5 s"
        return Problem(409, "gallery_busy", text, retry_after=5)
    if code == _FULL or number in (errno.ENOSPC, errno.EDQUOT):
        _log.error("%s", error)
        return Problem(507, "disk_full", "the gallery's disk is full; nothing of this request was written")
    if code in (_READ_ONLY, _CANNOT_OPEN) or number in (errno.EROFS, errno.EACCES, errno.EPERM):
        _log.error("%s", error)
        return Problem(503, "gallery_not_writable", "the server may not write to the gallery's folder; see its log")
    return error
