"""Stores with one fault each, and the check that has to find it. All else of them is right."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from shelf_store import Shelf

from clf_serve.gallery.filters import Comparison, Where
from clf_serve.stores import ConflictError, Ids, Row, State


class MakesWhatIsMissing(Shelf):
    finds = "create"

    @classmethod
    def open(cls, url: str, *, write: bool, create: Mapping[str, str] | None = None) -> Shelf:
        return super().open(url, write=write, create=create or {})


class BeginsAnew(Shelf):
    finds = "create"

    @classmethod
    def open(cls, url: str, *, write: bool, create: Mapping[str, str] | None = None) -> Shelf:
        if create is not None:
            Path(url.removeprefix("shelf://")).unlink(missing_ok=True)
        return super().open(url, write=write, create=create)


class HalvesVectors(Shelf):
    """Keeps 16 bits of each number."""

    finds = "round trip"

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        rough = [replace(row, vector=row.vector.astype(np.float16).astype(np.float32)) for row in put]
        super().write(rough, delete, about, at=at)


class LosesThumbnails(Shelf):
    finds = "round trip"

    def rows(self, where: str, *values: Any) -> list[Row]:
        return [replace(row, thumbnail=b"") for row in super().rows(where, *values)]


class FoldsCase(Shelf):
    finds = "odd values"

    def find(self, keys: Sequence[str]) -> dict[str, int]:
        among = "key COLLATE NOCASE IN (SELECT value FROM json_each(?))"
        return dict(self.db.execute(f"SELECT key, id FROM rows WHERE {among}", (json.dumps(keys),)))


class KeepsOldKeys(Shelf):
    finds = "replacement"

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        keys = dict(self.db.execute("SELECT id, key FROM rows").fetchall())
        super().write([replace(row, key=keys.get(row.id, row.key)) for row in put], delete, about, at=at)


class HasGhosts(Shelf):
    """Its index does not hear of removals."""

    finds = "delete"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ghosts: list[int] = []

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        super().write(put, delete, about, at=at)
        self.ghosts += delete

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        found = super().search(vector, k, allowed, exact=exact)
        return [*found, *(id_ for id_ in self.ghosts if id_ not in found)][:k]


class InventsRows(Shelf):
    finds = "unknown ids"

    def read(self, ids: Sequence[int], *, vectors: bool, thumbnails: bool) -> list[Row]:
        found = super().read(ids, vectors=vectors, thumbnails=thumbnails)
        there = {row.id for row in found}
        return [*found, *(Row(id_, "") for id_ in ids if id_ not in there and id_ > 2**60 and len(ids) < 3)]


class ScansByKey(Shelf):
    finds = "scan"

    def scan(self, after: int, limit: int, *, vectors: bool, thumbnails: bool) -> list[Row]:
        return self.rows("id > ? ORDER BY key LIMIT ?", after, limit)


class KeepsTheFirstHalf(Shelf):
    """Keeps what it had done when a write fails."""

    finds = "all or none"

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        read: list[Row] = []
        try:
            read.extend(put)
        except ValueError:
            super().write(read, delete, about, at=at)
            raise
        super().write(read, delete, about, at=at)


class LastOneWins(Shelf):
    finds = "conflict"

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        put = list(put)
        for _ in range(1000):
            try:
                super().write(put, delete, about, at=self.state().generation)
            except ConflictError:
                continue
            return


class RenamesInSilence(Shelf):
    """The generation stays where only names change."""

    finds = "generation"

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        super().write(put, delete, about, at=at)
        if not put and not delete:
            with self.db:
                self.db.execute("UPDATE about SET text = ? WHERE name = 'generation'", (str(at),))


class MissesSome(Shelf):
    """Approximate, and does not say so."""

    finds = "search"

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        found = super().search(vector, k, allowed, exact=exact)
        return [id_ for rank, id_ in enumerate(found) if rank % 7 != 6] if self.state().images > 100 else found


class FiltersTooLate(Shelf):
    finds = "allowed"

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        found = super().search(vector, k, None, exact=exact)
        return found if allowed is None else [id_ for id_ in found if id_ in allowed]


class SearchesItsMemory(Shelf):
    """What other handles write is not found."""

    finds = "two handles"
    _memory: Any = None

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        self._memory = None
        super().write(put, delete, about, at=at)

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        if self._memory is None:
            self._memory = [(row.id, row.vector) for row in self.rows("TRUE")]
        scores = {id_: float(v @ vector) for id_, v in self._memory if allowed is None or id_ in allowed}
        return sorted(scores, key=lambda id_: -scores[id_])[:k]


class MixesThreads(Shelf):
    """Says that threads may call it at a time, and keeps the query in the object."""

    finds = "threads"
    concurrent = True

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        self.query = vector
        time.sleep(0.003)
        return super().search(self.query, k, allowed, exact=exact)


class TakesTrueForOne(Shelf):
    """Filters by itself, as SQLite compares."""

    finds = "filters"

    def ids(self, where: Where | None) -> Ids | None:
        node = where.node if where is not None else None
        if not isinstance(node, Comparison) or node.operator != "$eq" or node.name != "a" or node.value is None:
            return None
        found = self.db.execute(
            "SELECT id FROM rows WHERE json_extract(facts, '$.metadata.a') = ? ORDER BY id", (node.value,)
        )
        return np.array([id_ for (id_,) in found], np.int64)


class WritesLater(Shelf):
    """A write is kept in memory until the next call."""

    finds = "killed writer"
    pending: ClassVar[dict[Path, Any]] = {}
    turn: ClassVar[threading.RLock] = threading.RLock()

    def flush(self) -> None:
        with self.turn:
            if held := self.pending.pop(self.path, None):
                put, delete, about, at = held
                super().write(put, delete, about, at=at)

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        read = list(put)
        with self.turn:
            if self.state().generation != at:
                raise ConflictError
            self.pending[self.path] = (read, list(delete), dict(about), at)

    def state(self) -> State:
        self.flush()
        return super().state()

    def find(self, keys: Sequence[str]) -> dict[str, int]:
        self.flush()
        return super().find(keys)

    def rows(self, where: str, *values: Any) -> list[Row]:
        self.flush()
        return super().rows(where, *values)

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        self.flush()
        return super().search(vector, k, allowed, exact=exact)

    def close(self) -> None:
        self.flush()
        super().close()


WRONG: tuple[type[Shelf], ...] = (
    MakesWhatIsMissing,
    BeginsAnew,
    HalvesVectors,
    LosesThumbnails,
    FoldsCase,
    KeepsOldKeys,
    HasGhosts,
    InventsRows,
    ScansByKey,
    KeepsTheFirstHalf,
    LastOneWins,
    RenamesInSilence,
    MissesSome,
    FiltersTooLate,
    SearchesItsMemory,
    MixesThreads,
    TakesTrueForOne,
    WritesLater,
)
