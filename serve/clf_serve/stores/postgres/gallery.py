"""What SQL does better for a gallery than reading its rows one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from clf.errors import GalleryError
from clf_serve.gallery.facts import SHOWN, TYPES, FieldFacts, GalleryFacts, Value
from clf_serve.gallery.filters import Where
from clf_serve.gallery.following import Progress
from clf_serve.gallery.metadata import BOOL, MEMBER, NUMBER, TEXT
from clf_serve.gallery.store import Item, Known
from clf_serve.gallery.vectors import Ids, Vectors
from clf_serve.index import IndexInfo
from clf_serve.stores.calls import told
from clf_serve.stores.postgres import index
from clf_serve.stores.postgres.binary import vectors_of
from clf_serve.stores.postgres.index import Built
from clf_serve.stores.postgres.words import in_words
from clf_serve.stores.store_gallery import StoreGallery
from clf_serve.stores.vector_store import State

if TYPE_CHECKING:
    from clf_serve.stores.postgres.store import PostgresStore

_LOOKED_AT = 2_000_000  # facts; of a larger table, only those of every n-th image
_ROWS = 20_000  # of a listing, at a time


class PostgresGallery(StoreGallery):
    """Counts, fields, samples and listings are queries; ``optimize`` builds, or drops, an HNSW index on the server."""

    @property
    def store(self) -> PostgresStore:
        return cast("PostgresStore", self.calls.store)

    @property
    def name(self) -> str:
        return self.store.target.schema

    @property
    def wishes(self) -> tuple[str | None, int | None, float | None]:
        self.calls.state()
        return Built.of(self.store.index).wishes

    def count(self, where: Where | None = None) -> int:
        if where is None:
            return len(self)

        def ask() -> int:
            text, values = self.store.query("", where)
            return int(self._rows_of(f"SELECT count(*) FROM (SELECT DISTINCT id FROM ({text}) f) d", values)[0][0])

        return self._remembered(f"count {where}", ask)

    def sample(self, n: int) -> list[Item]:
        if n < 1:
            return []
        with told(self._store_name, self.place, "read"):
            ids = self.store.lines.again("sample images", lambda line: self.store.spread(line, n))
        return self.items(ids)

    def batches(self, rows: int = 10_000) -> Iterator[tuple[Ids, Vectors]]:
        text = "SELECT id, vector_send(vector) FROM vectors WHERE id > %s ORDER BY id LIMIT %s"
        for part in self._parts(text, rows):
            yield (
                np.array([row[0] for row in part], np.int64),
                vectors_of([row[1] for row in part], self.model.dim),
            )

    def listing(self) -> dict[str, Known]:
        text = "SELECT id, key, size, mtime_ns, sha256 FROM images WHERE id > %s ORDER BY id LIMIT %s"
        return {
            key: Known(id_, size, mtime_ns, sha256.decode())
            for part in self._parts(text, _ROWS)
            for id_, key, size, mtime_ns, sha256 in part
        }

    def fields(self) -> dict[str, FieldFacts]:
        return dict(self._remembered("fields", self._fields))

    def facts(self) -> GalleryFacts:
        text = (
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c"
            " WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'clf_gallery'::regclass)"
            " AND relkind = 'r'"
        )
        return replace(super().facts(), bytes=int(self._rows_of(text)[0][0]))

    def index_info(self, state: State) -> IndexInfo:
        built = Built.of(self.store.index)
        exact = built.kind == "flat"
        parameters: dict[str, Any] = (
            {} if exact else {"m": index.LINKS, "ef_construction": index.EFFORT, "ef_search": built.ef}
        )
        if built.type == "halfvec":
            parameters["type"] = built.type
        text = "SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint FROM pg_class c JOIN pg_am a ON a.oid = relam"
        text += " JOIN pg_index ON indexrelid = c.oid WHERE amname = 'hnsw' AND indrelid = 'vectors'::regclass"
        return IndexInfo(
            kind=built.kind,
            parameters=parameters,
            vectors=state.images,
            recent=0,
            tombstones=0,
            bytes=int(self._rows_of(text)[0][0]),
            recall=1.0 if exact else built.recall,
            queries=built.queries,
            target=built.target,
            generation=built.generation,
            exact=exact,
            why=built.why,
        )

    def save_index(self, *, progress: Progress = lambda stage, done: None) -> None:
        """Builds an index where the gallery has become too large for none, and measures recall as it grows.

        Nothing, where another process is at it.
        """
        state = self.calls.state()
        built = Built.of(self.store.index)
        if not self._write or not index.due(self.store, state.images):
            return
        with suppress(index.BusyError):
            if built.kind == "hnsw":
                self._do("measure recall", lambda: index.measure_again(self.store, progress))
            else:
                self._do("build the index", lambda: index.bring_about(self.store, built.wishes, progress))

    def optimize(
        self,
        kind: str | None = None,
        *,
        memory: int | None = None,
        recall: float | None = None,
        progress: Progress = lambda stage, done: None,
    ) -> IndexInfo:
        """Builds the index anew, by ``CREATE INDEX CONCURRENTLY``: searches and writes go on.

        Args:
            kind: auto, flat (none: every vector is compared) or hnsw; what is left out stays as it was chosen last.
            memory: bytes that the server may use to build it (its ``maintenance_work_mem``).
            recall: recall@10 that searches take the effort to reach.

        Raises:
            GalleryError: no such kind, another process builds it, or pgvector has none for so many dimensions.
        """
        self._require_write()
        if kind is not None and kind not in index.KINDS:
            raise GalleryError(
                f"{self.place} has indexes of the kinds {', '.join(index.KINDS)}; {kind} is of galleries in folders"
            )
        before = self.wishes
        wishes = (kind or before[0], before[1] if memory is None else memory, recall or before[2])
        self._do("build the index", lambda: index.bring_about(self.store, wishes, progress))
        return self.index_info(self.calls.state())

    def _fields(self) -> dict[str, FieldFacts]:
        [(total,)] = self._rows_of("SELECT count(*) FROM facts")
        step = -(-max(total, 1) // _LOOKED_AT)
        folders = self._rows_of(
            "SELECT convert_from(folder, 'UTF8'), count(*), count(*) OVER (), sum(count(*)) OVER ()::bigint FROM images"
            f" GROUP BY folder ORDER BY 2 DESC, folder LIMIT {SHOWN}"
        )
        entries, distinct = (folders[0][3], folders[0][2]) if folders else (0, 0)
        found = {"@folder": FieldFacts("text", entries, tuple(row[:2] for row in folders), distinct)}
        some = f" AND mod(id, {step}) = 0" if step > 1 else ""
        kinds: dict[bytes, dict[int, int]] = {}
        listed = self._rows_of(
            f"SELECT n.name, kind, count(*) FROM facts f JOIN names n ON n.number = f.name WHERE kind < {MEMBER}{some}"
            " GROUP BY 1, 2"
        )
        for name, kind, count in listed:
            if kind in TYPES:
                kinds.setdefault(name, {})[kind] = count
        values = self._values(some)
        for name in sorted(kinds):
            own = kinds[name]
            type_ = TYPES[next(iter(own))] if len(own) == 1 else "mixed"
            shown, different = values.get(name, ((), 0))
            text = name.decode("utf-8", "surrogatepass")
            found[text] = FieldFacts(type_, sum(own.values()), shown, different, step > 1)
        return found

    def _values(self, some: str) -> dict[bytes, tuple[tuple[tuple[Value, int], ...], int]]:
        """The most frequent values of each name, and how many different ones there are."""
        rows = self._rows_of(
            "WITH counted AS ("
            f"SELECT name, mod(kind, {MEMBER}) AS own, number, text, count(*) AS times FROM facts"
            f" WHERE mod(kind, {MEMBER}) IN ({BOOL}, {NUMBER}, {TEXT}){some} GROUP BY 1, 2, 3, 4), "
            "ranked AS (SELECT *, count(*) OVER (PARTITION BY name) AS different, row_number() OVER"
            f" (PARTITION BY name ORDER BY times DESC, own = {TEXT}, number, text) AS place FROM counted)"
            " SELECT n.name, own, r.number, text, times, different FROM ranked r JOIN names n ON n.number = r.name"
            f" WHERE place <= {SHOWN} ORDER BY n.name, place"
        )
        found: dict[bytes, tuple[tuple[tuple[Value, int], ...], int]] = {}
        for name, own, number, text, times, different in rows:
            shown = found.get(name, ((), 0))[0]
            found[name] = (*shown, (_value(own, number, text), times)), different
        return found

    def _parts(self, text: str, rows: int) -> Iterator[list[tuple[Any, ...]]]:
        """Of a query whose first column is the id; it is bound to the last one seen and the number of rows."""
        after = 0
        while part := self._rows_of(text, [after, rows]):
            after = part[-1][0]
            yield part

    def _rows_of(self, text: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        with told(self._store_name, self.place, "read"):
            return self.store.rows("read the gallery", text, values or [])

    def _do(self, purpose: str, work: Callable[[], Any]) -> None:
        with told(self._store_name, self.place, "optimize"), in_words(self.store.target, purpose):
            work()


def _value(kind: int, number: Decimal | None, text: bytes | None) -> Value:
    if text is not None:
        return text.decode("utf-8", "surrogatepass")
    assert number is not None
    if kind == BOOL:
        return bool(number)
    return int(number) if number == number.to_integral_value() and abs(number) < 2**63 else float(number)
