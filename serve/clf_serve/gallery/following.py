"""The search index of a gallery in memory: opened from the disk, kept at the database's state, built anew, saved.

It follows the database by *generations*: what changed since the index's own is read and applied. The table of deletions
is pruned once a saved index has seen them, up to a *floor*; an index from before that cannot know what it missed, and
is not followed up but replaced.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from clf.errors import GalleryError
from clf_serve.gallery.database import Database
from clf_serve.gallery.vectors import Ids, Vectors, decode
from clf_serve.index import TARGET, IndexInfo, Plan, Stamp, VectorIndex, choose
from clf_serve.index.storing import identity
from clf_serve.index.vector_index import NEWER

Progress = Callable[[str, float], None]
"""Called with the name of a stage and how much of it is done, in [0, 1]."""
_ROWS = 10_000  # vectors read at a time
_DELETED = 50_000  # deletions that are remembered before those are pruned that the saved index has seen


class StaleError(Exception):
    """The index has left the state that the transaction sees."""


@dataclass(frozen=True)
class Following:
    """An index that was at the transaction's state; ``still`` says whether nothing has begun to change it since."""

    index: VectorIndex
    still: Callable[[], bool]


class Follower:
    """Thread-safe. One change of the index at a time; searches look at it without a lock."""

    def __init__(self, database: Database, folder: Path, uuid: str, dim: int) -> None:
        self.note: str | None = None
        """What was wrong with the saved index, in a sentence."""
        self.lock = threading.RLock()
        """Whoever holds it keeps the index as it is."""
        self._db = database
        self._folder = folder / "index"
        self._uuid = uuid
        self._dim = dim
        self._index: VectorIndex | None = None
        self._seen: object = None  # saved index and generation for which a better one was last looked for
        self._changes = 0
        self._building = threading.Lock()

    def forget(self) -> None:
        """Lets go of the index, whose files would else stay open for as long as anything refers to the gallery."""
        self._index = None

    def at(self, connection: Connection) -> Following:
        """The index at the state that the transaction of ``connection`` sees. Raises StaleError when it is ahead."""
        generation = self._db.number("generation", connection)
        with self.lock:
            index = self._usable(connection, generation)
            if index is None:
                self._changes += 1
                index = self._index = self._opened(connection, generation)
            elif index.generation != generation:
                self._changes += 1
                self._catch_up(connection, index, generation)
            changes = self._changes
        return Following(index, lambda: self._changes == changes)

    def _usable(self, connection: Connection, generation: int) -> VectorIndex | None:
        """The index in memory, if it can be brought to this generation; None when another is to be opened."""
        index = self._index
        if index is None or self._is_surpassed(index, connection, generation):
            return None
        if index.generation == generation:
            return index
        if index.generation > generation:
            if index.generation <= self._db.number("generation"):
                raise StaleError
            return None  # the database was put back to an older state
        return index if index.generation >= self._db.number("floor", connection) else None

    def _is_surpassed(self, index: VectorIndex, connection: Connection, generation: int) -> bool:
        """Whether another process has saved one, and a better one, as this is due. Looked into once for each state."""
        state = identity(self._folder), generation
        if state == self._seen:
            return False
        self._seen = state
        return state[0] is not None and index.outdated(self._folder) and index.due(self._plan(len(index), connection))

    def now(self) -> VectorIndex:
        """The index at the present state."""
        while True:
            with self._db.reading() as connection, suppress(StaleError):
                return self.at(connection).index

    def save(self, progress: Progress) -> None:
        """Builds the index anew where that pays, measures its recall and writes it.

        It is only a cache: where it cannot be written, ``note`` says so.
        """
        with self._building:
            index = self.now()
            plan = self._plan(len(index))
            if index.due(plan):
                index = self._built(plan, progress)
            self._write(index)

    def optimize(self, kind: str | None, memory: int | None, recall: float | None, progress: Progress) -> IndexInfo:
        """Keeps what is chosen, builds the index anew and writes it. Raises GalleryError for what cannot be chosen."""
        try:
            choose(1, self._dim, memory, kind or "auto", TARGET if recall is None else recall)
        except ValueError as error:
            raise GalleryError(f"no index of {self._folder.parent} can be built so: {error}") from error
        chosen = {"index_kind": kind, "index_memory": memory, "index_recall": recall}
        if wishes := {key: str(value) for key, value in chosen.items() if value is not None}:
            self._db.set_meta(wishes)
        with self._building:
            index = self._built(self._plan(len(self.now())), progress)
            self._write(index)
        return index.info

    def wishes(self, connection: Connection | None = None) -> tuple[str | None, int | None, float | None]:
        """Kind, bytes and recall as the user chose them last. Raises ValueError for what is no number."""
        kind, memory, recall = (self._db.option(f"index_{name}", connection) for name in ("kind", "memory", "recall"))
        return kind, int(memory) if memory else None, float(recall) if recall else None

    def _plan(self, n: int, connection: Connection | None = None) -> Plan:
        """By what the user chose."""
        try:
            kind, memory, recall = self.wishes(connection)
            return choose(n, self._dim, memory or None, kind or "auto", recall or TARGET)
        except ValueError as error:
            raise self._db.damaged(f"the kind of index that it names: {error}") from error

    def _built(self, plan: Plan, progress: Progress) -> VectorIndex:
        """Another index in the present one's place; searches use the present one meanwhile."""
        fresh = VectorIndex(self._dim)
        with self._db.reading() as connection:
            generation = self._db.number("generation", connection)
            count = connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
        fresh.rebuild(
            self._batches, count, plan, generation, lambda stage, done, whole: progress(stage, done / max(whole, 1))
        )
        with self.lock, self._db.reading() as connection:
            self._catch_up(connection, fresh, self._db.number("generation", connection))
            self._changes += 1
            self._index = fresh
        return fresh

    def _batches(self) -> Iterator[tuple[Ids, Vectors]]:
        with self._db.reading() as connection:
            yield from batches(self._db, connection, self._dim, _ROWS)

    def _write(self, index: VectorIndex) -> None:
        seen = index.generation  # at least this is saved, however far a search brings it meanwhile
        try:
            index.save(self._folder, self._uuid)
        except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError on a full disk
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            self.note = f"the index could not be saved ({reason}); the gallery is complete, and its first search slower"
            return
        if self._db.writable:
            self._prune(seen)

    def _prune(self, seen: int) -> None:
        """Forgets the deletions that the saved index has seen, when there are many."""
        with self._db.changing() as connection:
            if connection.execute("SELECT count(*) FROM deleted").fetchone()[0] > _DELETED:
                connection.execute("DELETE FROM deleted WHERE generation <= ?", (seen,))
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('floor', ?)", (str(seen),))

    def _opened(self, connection: Connection, generation: int) -> VectorIndex:
        """The saved index, or one of all vectors compared one by one; ``note`` says why.

        Raises StaleError when the saved one is of a state that was written after the transaction began.
        """
        index, reason = VectorIndex.open(self._folder, Stamp(self._uuid, self._dim, generation))
        if reason == NEWER and self._db.number("generation") > generation:
            raise StaleError
        if reason is None and index.generation < self._db.number("floor", connection):
            reason = "too old"
        count = connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
        if reason is None:
            self._catch_up(connection, index, generation)
            if len(index) != count:
                reason = f"of {len(index)} vectors where the database has {count}"
        if reason is not None:
            plan = self._plan(count, connection)
            if plan.kind != "flat":
                why = f"{count:,} vectors of {self._dim} dimensions: each is compared until an index of them is saved"
                plan = replace(choose(count, self._dim, name="flat"), why=why)
            index.rebuild(lambda: batches(self._db, connection, self._dim, _ROWS), count, plan, generation)
            if reason != "missing":
                self.note = f"the saved index is {reason}; it was rebuilt from the database"
        count = connection.execute("SELECT count(*) FROM images").fetchone()[0]
        if count != len(index):
            raise self._db.damaged(f"{count} images, {len(index)} vectors")
        return index

    def _catch_up(self, connection: Connection, index: VectorIndex, generation: int) -> None:
        since = index.generation
        gone = connection.execute("SELECT id FROM deleted WHERE generation > ?", (since,)).fetchall()
        removed: NDArray[np.int64] = np.array([row[0] for row in gone], np.int64)
        changed = connection.execute("SELECT id, vector FROM vectors WHERE generation > ?", (since,))
        while part := changed.fetchmany(_ROWS):
            vectors = decode(self._db, [row[1] for row in part], self._dim)
            index.update(removed, np.array([row[0] for row in part], np.int64), vectors, since)
            removed = removed[:0]
        index.update(removed, removed[:0], np.empty((0, self._dim), np.float32), generation)


def batches(database: Database, connection: Connection, dim: int, rows: int) -> Iterator[tuple[Ids, Vectors]]:
    """Ids (n,) and vectors (n, dim) by rising id, up to ``rows`` at a time."""
    last = 0
    while part := connection.execute(
        "SELECT id, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?", (last, rows)
    ).fetchall():
        last = part[-1][0]
        yield np.array([row[0] for row in part], np.int64), decode(database, [row[1] for row in part], dim)


def forget_a_lost_future(folder: Path, generation: int) -> None:
    """Removes a saved index that has seen more than the database, which was put back to an older state.

    Done before the database can catch up with its generation and the index look right again.
    """
    path = folder / "index" / "index.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        if int(json.loads(path.read_bytes())["generation"]) > generation:
            path.unlink()
