"""Nearest neighbours in a store: it finds, and the vectors it keeps decide.

Scores are computed in float64 from the stored vectors, so they are those that a folder gallery gives, and equal ones
are put in order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery.filters import Where
from clf_serve.gallery.store import Hit
from clf_serve.gallery.vectors import Ids, Vectors
from clf_serve.stores.calls import Calls
from clf_serve.stores.matching import lets_through
from clf_serve.stores.vector_store import Row

_TRIES = 4  # while rows that were found are gone when they are read
_SPARE = 4  # found beyond what is asked, to see where equal scores end
_EQUAL = 4e-6  # float32 inner products of equal vectors differ by less
_TIES = 20_000  # equal scores that are put in order of their ids; beyond, the store chooses among them
_FEW = 64  # ids to leave out that are taken out of what was found, rather than not looked for


class _GoneError(Exception):
    """A row that was found is not there any more."""


@dataclass(frozen=True)
class Query:
    vector: Vectors
    k: int
    where: Where | None = None
    but: Collection[int] = ()
    offset: int = 0
    exact: bool = False
    at_least: float | None = None


def search(calls: Calls, query: Query, ids: Callable[[Where | None], Ids]) -> list[Hit]:
    """Best first, equal scores by id.

    Each hit is one row as it was when it was read, and passes the filter as it was then. Where others write meanwhile,
    hits may be of states that followed each other.

    Args:
        ids: of the rows that a filter lets through, or of all.
    """
    for attempt in range(_TRIES):
        try:
            found = _best(calls, query, ids, patient=attempt == _TRIES - 1)
        except _GoneError:
            continue
        break
    hits = []
    for row, score in found:
        item = calls.item(row)
        hits.append(Hit(item.id, item.uri, score, item.metadata, item.sha256, item.folder, item.width, item.height))
    return hits


def _best(calls: Calls, query: Query, ids: Callable[[Where | None], Ids], *, patient: bool) -> list[tuple[Row, float]]:
    """Raises _GoneError, unless ``patient``."""
    allowed, left_out = _allowed(query, ids)
    need = query.offset + query.k
    reach, exact = need + len(left_out) + _SPARE, query.exact or not calls.store.approximate
    while True:
        if allowed is not None:
            reach = min(reach, len(allowed))
            if not reach:
                return []
        found = calls.search(query.vector, reach, allowed, exact=exact)
        if len(found) < reach and not exact:  # an approximate search may not find as many as there are
            exact = True
            continue
        rows = calls.read(found, vectors=True)
        if len(rows) < len(found) and not patient:
            raise _GoneError
        scores = _scores(rows, query.vector)
        order = np.lexsort((np.array(list(rows), np.int64), -scores))
        listed = list(rows.values())
        kept = [i for i in order.tolist() if listed[i].id not in left_out and _passes(calls, listed[i], query.where)]
        everything = len(found) < reach or (allowed is not None and reach == len(allowed))
        if everything or reach > _TIES + need or not len(order):
            break
        if len(kept) >= need and scores[order[-1]] < scores[kept[need - 1]] - _EQUAL:
            break
        reach *= 2
    best = [(listed[i], float(scores[i])) for i in kept[query.offset : need]]
    return [(row, score) for row, score in best if query.at_least is None or score >= query.at_least]


def _allowed(query: Query, ids: Callable[[Where | None], Ids]) -> tuple[Ids | None, set[int]]:
    """Which ids the store may find (None: all), and which few are taken out of what it found."""
    left_out = {int(id_) for id_ in query.but if 0 < id_ < 2**63}
    if query.where is None and len(left_out) <= _FEW:
        return None, left_out
    allowed = ids(query.where)
    if left_out:
        allowed = np.setdiff1d(allowed, np.fromiter(left_out, np.int64), assume_unique=True)
    return allowed, set()


def _passes(calls: Calls, row: Row, where: Where | None) -> bool:
    return where is None or lets_through(where, calls.item(row))


def _scores(rows: dict[int, Row], vector: Vectors) -> NDArray[np.float64]:
    """Cosines (n,)."""
    if not rows:
        return np.empty(0)
    vectors = np.stack([row.vector for row in rows.values()]).astype(np.float64)
    # einsum adds in the same order for each row, so equal vectors have equal scores
    scores: NDArray[np.float64] = np.einsum("nd,d->n", vectors, vector.astype(np.float64))
    return np.clip(scores, -1.0, 1.0)
