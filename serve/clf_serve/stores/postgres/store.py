"""A gallery in PostgreSQL, by the methods of a vector store."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from clf.errors import GalleryError
from clf_serve.gallery.filters import Where
from clf_serve.stores.postgres import filters, schema
from clf_serve.stores.postgres.binary import Float4s, Int8s, Uuids, digest, ids_of, vectors_of
from clf_serve.stores.postgres.gallery import PostgresGallery
from clf_serve.stores.postgres.lines import LOCK, STATEMENT, Line, Lines
from clf_serve.stores.postgres.putting import Put
from clf_serve.stores.postgres.target import Target
from clf_serve.stores.postgres.words import in_words
from clf_serve.stores.store_gallery import StoreGallery
from clf_serve.stores.vector_store import ConflictError, Ids, NoGalleryError, Row, State, Vector, VectorStore

DEEPEST = 1_000
"""``hnsw.ef_search`` at most: an index gives no more neighbours than that."""
_FRESH = 5.0  # seconds that what is known of the index is believed
_FEW = 1_000  # allowed ids that are compared one by one sooner than an index is asked
_MANY = 20_000  # beyond these an index is gone through until enough are allowed, where the extension can


class PostgresStore(VectorStore):
    """``postgresql://USER@HOST/DATABASE?gallery=NAME``

    Reads are repeated on a new connection where one breaks. A write whose connection breaks is tried again: its
    transaction first looks whether the one before has come through. ``synchronous_commit`` is the server's.
    """

    approximate: ClassVar[bool] = True
    concurrent: ClassVar[bool] = True
    gallery: ClassVar[type[StoreGallery] | None] = PostgresGallery

    def __init__(self, target: Target, lines: Lines, dim: int) -> None:
        self.target = target
        self.lines = lines
        self.dim = dim
        self.index: Mapping[str, Any] = {}
        """What is known of the index, as it was when the state was asked for last."""
        self._seen = -math.inf
        self._names: dict[str, int] = {}

    @classmethod
    def open(cls, url: str, *, write: bool, create: Mapping[str, str] | None = None) -> Self:
        target = Target.of(url)
        lines = Lines(target, read_only=not write)
        try:
            return cls(target, lines, cls._prepared(target, lines, write, create))
        except BaseException:
            lines.close()
            raise

    @staticmethod
    def _prepared(target: Target, lines: Lines, write: bool, create: Mapping[str, str] | None) -> int:
        with in_words(target, "open the gallery"), lines.one() as line:
            lines.server.require(target, write=write)
            if not lines.server.there:
                if create is None:
                    raise NoGalleryError(f"there is no gallery {target.schema!r} at {target.place}")
                lines.server = schema.create(line, target, create)
            return schema.require_format(line, target)

    def state(self) -> State:
        text = "SELECT generation, images, about, index, current_schema()::text FROM clf_gallery"
        [(generation, images, about, index, own)] = self.rows("read the gallery's state", text)
        self.target.require_own(own)
        self.index, self._seen = json.loads(index), time.monotonic()
        return State(generation, images, json.loads(about))

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        change = Put(put, delete, about, uuid.uuid4())
        try:
            self.lines.again("write to the gallery", lambda line: change.carry_out(line, at), STATEMENT + LOCK)
        except ConflictError:
            raise
        except GalleryError as error:
            if change.in_doubt:
                text = f"{error}. It broke off while it was being committed: all of it is there, or nothing"
                raise GalleryError(text) from error
            raise

    def find(self, keys: Sequence[str]) -> Mapping[str, int]:
        wanted = Uuids([digest(key) for key in keys])
        found = self.rows("find keys", "SELECT key, id FROM images WHERE digest = ANY(%s)", [wanted])
        return dict(found)

    def read(self, ids: Sequence[int], *, vectors: bool, thumbnails: bool) -> Sequence[Row]:
        return self._read("JOIN unnest(%s) AS wanted (id) USING (id)", [Int8s(ids)], vectors, thumbnails)

    def scan(self, after: int, limit: int, *, vectors: bool, thumbnails: bool) -> Sequence[Row]:
        text = "WHERE id > %s ORDER BY id LIMIT %s"
        return self._read(text, [after, limit], vectors, thumbnails)

    def _read(self, which: str, values: list[Any], vectors: bool, thumbnails: bool) -> Sequence[Row]:
        columns = ["id", "key", "facts", "thumbnail" if thumbnails else "''::bytea"]
        source = "images"
        if vectors:
            columns.append("vector_send(vector)")
            source += " JOIN vectors USING (id)"
        found = self.rows("read images", f"SELECT {', '.join(columns)} FROM {source} {which}", values)
        if not vectors:
            return [Row(id_, key, facts, thumbnail=jpeg) for id_, key, facts, jpeg in found]
        whole = vectors_of([row[4] for row in found], self.dim)
        return [
            Row(id_, key, facts, vector, jpeg) for (id_, key, facts, jpeg, _), vector in zip(found, whole, strict=True)
        ]

    def search(self, vector: Vector, k: int, allowed: Ids | None, *, exact: bool) -> Sequence[int]:
        known = {} if exact or k > DEEPEST else self._known_index()
        if not known.get("ef") or (allowed is not None and len(allowed) <= _FEW):
            return self._exact(vector, k, allowed)
        if allowed is None:
            return self._near(known, vector, k)
        return self._near_allowed(known, vector, k, allowed)

    def _known_index(self) -> Mapping[str, Any]:
        """Another process may have built one seconds ago."""
        if time.monotonic() - self._seen > _FRESH:
            self.state()
        return self.index

    def _exact(self, vector: Vector, k: int, allowed: Ids | None) -> list[int]:
        among, values = "", []
        if allowed is not None:
            among, values = "JOIN unnest(%s) AS allowed (id) USING (id)", [Int8s(allowed)]
        # what is added keeps the planner from every index
        text = f"SELECT id FROM vectors {among} ORDER BY 0.0 + (vector <#> %s::vector) LIMIT {int(k)}"
        return [id_ for (id_,) in self.rows("search", text, [*values, Float4s(vector)])]

    def _near(self, known: Mapping[str, Any], vector: Vector, k: int, allowed: Ids | None = None) -> list[int]:
        found = self.lines.again("search", lambda line: self.near(line, known, vector, k, allowed))
        return [id_ for id_, _ in found]

    def near(
        self, line: Line, known: Mapping[str, Any], vector: Vector, k: int, allowed: Ids | None = None
    ) -> list[tuple[int, float]]:
        """Ids by the index, if the planner finds it the quicker way, and the scores of their whole vectors.

        Args:
            known: of the index: its ``type``, and in ``ef`` the nodes of the graph that are looked at beyond the k.
            allowed: only these, which takes an extension whose scans are iterative.
        """
        column, query = "vector", "%s::vector"
        if known["type"] == "halfvec":
            column, query = f"vector::halfvec({self.dim})", f"%s::vector::halfvec({self.dim})"
        among = "" if allowed is None else "WHERE id = ANY(%s)"
        score = "0.0 - (vector <#> %s::vector)"  # half a vector's could not be compared with those of exact searches
        text = f"SELECT id, {score} FROM vectors {among} ORDER BY {column} <#> {query} LIMIT {int(k)}"
        _set_effort(line, min(DEEPEST, int(known["ef"]) + k), iterative=allowed is not None)
        bound = Float4s(vector)
        values = [bound, bound] if allowed is None else [bound, Int8s(allowed), bound]
        return [(id_, score) for id_, score in line.execute(text, values, binary=True)]

    def _near_allowed(self, known: Mapping[str, Any], vector: Vector, k: int, allowed: Ids) -> list[int]:
        """Enough neighbours of any id that k of them will be allowed; else by what the extension's version has."""
        [(images,)] = self.rows("search", "SELECT images FROM clf_gallery")
        reach = int(k * max(images, len(allowed)) / len(allowed) * 1.5) + 20
        if reach <= DEEPEST // 2:
            found = np.array(self._near(known, vector, reach), np.int64)
            places = np.minimum(np.searchsorted(allowed, found), len(allowed) - 1)
            kept = found[allowed[places] == found][:k]
            if len(kept) == k:
                return [int(id_) for id_ in kept]
        if self.lines.server.features >= (0, 8) and len(allowed) > _MANY:
            few = self._near(known, vector, k, allowed)
            if len(few) == k:
                return few
        return self._exact(vector, k, allowed)

    def spread(self, line: Line, n: int) -> list[int]:
        """Ids of up to n images, evenly spread, rising."""
        [(total,)] = line.execute("SELECT images FROM clf_gallery").fetchall()
        places = Int8s(np.arange(n) * total // n if total > n else np.arange(total))
        text = (
            "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM images) AS numbered"
            " JOIN unnest(%s) AS wanted (place) USING (place) ORDER BY id"
        )
        return [row[0] for row in line.execute(text, (places,), binary=True)]

    def ids(self, where: Where | None) -> Ids | None:
        text, values = self.query("SELECT id FROM images", where)
        text = f"SELECT array_send(array_agg(id)) FROM ({text}) AS found"
        [(array,)] = self.rows("filter", text, values)
        return np.unique(ids_of(array))

    def query(self, everything: str, where: Where | None) -> filters.Query:
        """A query of the ids that a filter lets through, or of all. Some may come twice."""
        if where is None:
            return everything, []
        wanted = [name for name in filters.names_in(where.node) if name not in self._names]
        if wanted:
            digests = {digest(name): name for name in wanted}
            found = self.rows(
                "filter", "SELECT digest, number FROM names WHERE digest = ANY(%s)", [Uuids(list(digests))]
            )
            self._names |= {digests[each.bytes]: number for each, number in found}  # which a name keeps for good
        return filters.query_of(where.node, self._names)

    def rows(self, purpose: str, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Of one statement that changes nothing. Args: purpose: as a verb, for errors."""
        return self.lines.again(purpose, lambda line: line.execute(text, values, binary=True).fetchall())

    def close(self) -> None:
        self.lines.close()


def _set_effort(line: Line, effort: int, *, iterative: bool) -> None:
    if line.effort == (effort, iterative):
        return
    line.execute("SELECT set_config('hnsw.ef_search', %s, false)", (str(effort),))
    if iterative or (line.effort and line.effort[1]):
        line.execute("SELECT set_config('hnsw.iterative_scan', %s, false)", ("strict_order" if iterative else "off",))
    line.effort = effort, iterative
