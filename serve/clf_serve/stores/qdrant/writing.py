"""A write as one change that is seen whole or not at all, though Qdrant changes one point at a time.

1. The ledger's point is claimed: on the condition that nobody else writes, it takes a text of ours and gives out a
   number.
2. New versions of the rows are added *from* that number, and those that they replace are marked to end *to* it. No
   reader counts either.
3. The ledger is committed: on the condition that the claim is still ours, it takes the number as the last one that
   counts. That is a change of one point.

A writer that dies leaves a claim. Whoever wants to write sees that it does not move for ``CLAIM_SECONDS``, by its own
clock, and claims the ledger anew, which gives the old number up for good: whatever of it arrives late counts as little
as what was there. A writer that was only slow finds that its commit has no effect, and is told of a conflict.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from qdrant_client import models

from clf.errors import GalleryError
from clf_serve.stores.qdrant.ledger import Ledger, is_ledger
from clf_serve.stores.qdrant.points import FOR_EVER, batches, point_of
from clf_serve.stores.qdrant.server import Server
from clf_serve.stores.vector_store import ConflictError, Row

CLAIM_SECONDS = 10.0
"""A claim that does not move for so long is that of a writer that died."""
KEEP_SECONDS = 900.0
"""Versions that have ended are kept for so long, and read for a third of it at most (``store.SNAPSHOT_SECONDS``): the
clocks of writers may differ by the rest."""
_PAUSE = 0.02  # seconds between looks at another's claim, longer after each
_LONGEST_PAUSE = 0.5
_MOST_IDS = 1_000  # in one filter


class Writing:
    """Writes to one collection.

    Args:
        look: reads the ledger.
    """

    def __init__(self, server: Server, look: Callable[[], Ledger]) -> None:
        self._server = server
        self._look = look

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], at: int) -> None:
        """Raises ConflictError."""
        put = [*put]  # all are read before anything is changed
        gone = sorted({*map(int, delete), *(row.id for row in put)})
        ledger = self._claim(at)
        try:
            self._fill(ledger, put, gone)
            ended = sum(self._server.count(ledger.visible(_among(part))) for part in _parts(gone))
        except BaseException:
            with suppress(GalleryError):
                self._give_up(ledger)
            raise
        self._commit(ledger, ledger.images - ended + len(put), about)

    def _claim(self, at: int) -> Ledger:
        """The ledger as it is while it is ours. Waits for whoever else writes. Raises ConflictError."""
        writer, pause = uuid.uuid4().hex, _PAUSE
        seen, since = self._look(), time.monotonic()
        while True:
            if seen.generation != at:
                raise ConflictError
            if not seen.writer or time.monotonic() - since > CLAIM_SECONDS:
                mine = seen.claimed(writer)
                same = is_ledger(generation=at, writer=seen.writer, begun=seen.begun, beat=seen.beat)
                self._server.set_payload(_changed(mine, "begun", "writer", "beat", "failed"), same)
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            found = self._look()
            if found.writer == writer:
                return found
            if (found.writer, found.begun, found.beat) != (seen.writer, seen.begun, seen.beat):
                seen, since = found, time.monotonic()

    def _fill(self, ledger: Ledger, put: Sequence[Row], gone: Sequence[int]) -> None:
        """Args: gone: ids whose present versions end."""
        server, beat = self._server, _Beat(self._server, ledger)
        past = _is_past(ledger)
        if ledger.failed and (past or ledger.failed[-1] == ledger.begun - 1):
            server.delete(ledger.given_up())
            server.set_payload({"to": FOR_EVER}, ledger.unmarked())
        if past:
            server.delete(ledger.dead())
        for points in batches([point_of(row, ledger.begun) for row in put]):
            beat()
            server.upsert(points)
        for part in _parts(gone):
            beat()
            server.set_payload({"to": ledger.begun}, ledger.unended(part))

    def _commit(self, ledger: Ledger, images: int, about: Mapping[str, str]) -> None:
        """Raises ConflictError: the claim is another's."""
        done = replace(
            ledger,
            generation=ledger.generation + 1,
            images=images,
            about={**ledger.about, **about},
            committed=ledger.begun,
            writer="",
        )
        if _is_past(ledger) or not ledger.old_since:
            done = replace(done, old=done.committed, old_since=time.time())
        try:
            self._server.set_payload(done.payload(), is_ledger(writer=ledger.writer))
            kept = self._look().has_committed(ledger.begun)
        except BaseException as error:
            if not self._was_committed(ledger) or not isinstance(error, Exception):
                raise
            return
        if not kept:
            raise ConflictError

    def _was_committed(self, ledger: Ledger) -> bool:
        """Whether a write whose commit failed is kept all the same; if not, it never will be.

        Raises GalleryError: the server does not say.
        """
        try:
            return self._give_up(ledger)
        except GalleryError as error:
            raise GalleryError(f"whether the last change was kept is not known: {error}") from error

    def _give_up(self, ledger: Ledger) -> bool:
        """Undoes a write that has begun, unless it is committed: whether it is."""
        self._server.set_payload(_changed(ledger.released(), "writer", "failed"), is_ledger(writer=ledger.writer))
        if self._look().has_committed(ledger.begun):
            return True
        with suppress(GalleryError):  # the next writer will do that
            self._server.delete(models.Filter(must=[_number("from", ledger.begun)]))
        return False


class _Beat:
    """Shows that the writer lives, every now and then."""

    def __init__(self, server: Server, ledger: Ledger) -> None:
        self._server, self._mine, self._beat = server, is_ledger(writer=ledger.writer), ledger.beat
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last < CLAIM_SECONDS / 5:
            return
        self._beat += 1
        self._server.set_payload({"beat": self._beat}, self._mine)
        self._last = time.monotonic()


def _is_past(ledger: Ledger) -> bool:
    return bool(ledger.old_since) and time.time() - ledger.old_since > KEEP_SECONDS


def _changed(ledger: Ledger, *names: str) -> dict[str, object]:
    payload = ledger.payload()
    return {name: payload[name] for name in names}


def _among(ids: Sequence[int]) -> models.FieldCondition:
    return models.FieldCondition(key="id", match=models.MatchAny(any=list(ids)))


def _number(name: str, value: int) -> models.FieldCondition:
    return models.FieldCondition(key=name, match=models.MatchValue(value=value))


def _parts(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[start : start + _MOST_IDS] for start in range(0, len(ids), _MOST_IDS)]
