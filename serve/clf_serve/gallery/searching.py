"""Nearest neighbours of one consistent state: the index finds, the database decides.

The index in memory follows the database's generations. A search reads in a transaction, brings the index to the
generation that the transaction sees, and asks it without holding a lock. When the index has moved on by the time it
answers, what it found belongs to another state, and the search is made again. Scores are computed from the stored
vectors in float64, so they are the same whatever index found the images.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery import rows
from clf_serve.gallery.database import Database
from clf_serve.gallery.filters import Where
from clf_serve.gallery.following import Follower, StaleError
from clf_serve.gallery.matching import Matching
from clf_serve.gallery.store import Hit
from clf_serve.gallery.vectors import Ids, Vectors, decode, stored
from clf_serve.index import VectorIndex

_TRIES = 4  # before writers have to wait for a search
_SPARE = 4  # found beyond what is asked, to see where equal scores end
_EQUAL = 4e-6  # float32 inner products of equal vectors differ by less
_TIES = 20_000  # equal scores that are put in order of their ids; beyond, the index chooses among them


@dataclass(frozen=True)
class Query:
    vector: Vectors
    k: int
    where: Where | None = None
    but: Collection[int] = ()
    offset: int = 0
    exact: bool = False
    at_least: float | None = None


class Searcher:
    """Thread-safe."""

    def __init__(self, database: Database, follower: Follower, matching: Matching, dim: int) -> None:
        self._db = database
        self._follower = follower
        self._matching = matching
        self._dim = dim

    def search(self, query: Query) -> list[Hit]:
        for _ in range(_TRIES):
            with suppress(StaleError):
                return self._once(query)
        with self._follower.lock:  # the index stands still now
            try:
                return self._once(query)
            except StaleError:
                raise self._db.damaged("the index names images that are not there") from None

    def _once(self, query: Query) -> list[Hit]:
        """Raises StaleError."""
        with self._db.reading() as connection:
            at = self._follower.at(connection)
            scores = self._best(connection, at.index, query)
            items = rows.by_ids(connection, list(scores))
            if not at.still() or len(items) < len(scores):
                raise StaleError
        found = ((items[id_], score) for id_, score in scores.items())
        return [Hit(i.id, i.uri, s, i.metadata, i.sha256, i.folder, i.width, i.height) for i, s in found]

    def _best(self, connection: Connection, index: VectorIndex, query: Query) -> dict[int, float]:
        """Ids and scores of the answer, best first."""
        allowed, left_out = self._allowed(connection, query)
        available = len(index) if allowed is None else len(allowed)
        need, exact = query.offset + query.k, query.exact
        reach = need + len(left_out) + _SPARE
        while True:
            reach = min(reach, available)
            if reach < 1:
                return {}
            floor = None if query.at_least is None else query.at_least - _EQUAL
            ids = index.search(query.vector, reach, allowed, exact=exact, floor=floor).ids
            if len(ids) < reach and not exact:  # an approximate index may not find as many as there are
                exact = True
                continue
            scores = self._scores(connection, ids, query.vector)
            order = np.lexsort((ids, -scores))
            kept = [i for i in order.tolist() if int(ids[i]) not in left_out]
            if len(ids) >= available or len(ids) < reach or reach > _TIES + need or len(kept) < 1:
                break
            if len(kept) >= need and scores[order[-1]] < scores[kept[need - 1]] - _EQUAL:
                break
            reach *= 2
        best = [(int(ids[i]), float(scores[i])) for i in kept[query.offset : need]]
        return {id_: score for id_, score in best if query.at_least is None or score >= query.at_least}

    def _allowed(self, connection: Connection, query: Query) -> tuple[Ids | None, set[int]]:
        """Which ids the index may find (None: all), and which few are taken out of what it found."""
        left_out = {int(id_) for id_ in query.but if 0 < id_ < 2**63}
        if query.where is None and len(left_out) <= 64:
            return None, left_out
        generation = self._db.number("generation", connection)
        allowed = self._matching.ids(connection, generation, query.where)
        if left_out:
            allowed = np.setdiff1d(allowed, np.fromiter(left_out, np.int64), assume_unique=True)
        return allowed, set()

    def _scores(self, connection: Connection, ids: Ids, vector: Vectors) -> NDArray[np.float64]:
        """Cosines (n,) by the stored vectors. Raises StaleError."""
        found = stored(connection, ids.tolist())
        if len(found) < len(ids):
            raise StaleError
        vectors = decode(self._db, [found[id_] for id_ in ids.tolist()], self._dim)
        # einsum adds in the same order for each row, so equal vectors have equal scores
        scores: NDArray[np.float64] = np.einsum("nd,d->n", vectors.astype(np.float64), vector.astype(np.float64))
        return np.clip(scores, -1.0, 1.0)
