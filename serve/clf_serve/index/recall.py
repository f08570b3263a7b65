"""Held-back queries with their true neighbours, kept up to date as the gallery changes.

Of several vectors that are equally near none is a truer neighbour than another: whichever is found counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clf_serve.index.library import Ids, Vectors
from clf_serve.index.plan import RECALL_K
from clf_serve.index.view import View

QUERIES = 400
DEPTH = 256
"""True neighbours known of each query: as many may be deleted, less ten, before it can no longer be used."""
_EQUAL = 4e-6  # scores of equal vectors differ by less
_SECONDS = 0.5
"""A measurement that takes longer ends with the queries it has done, at least fifty."""


@dataclass
class Truth:
    """The best of everything seen so far, for each query: (Q, depth) ids and scores, best first."""

    queries: Vectors
    own: Ids
    """(Q,): the id of each query, which is not its own neighbour."""
    ids: Ids
    scores: Vectors

    @classmethod
    def start(cls, queries: Vectors, own: Ids) -> Truth:
        n = len(queries)
        return cls(queries, own, np.full((n, DEPTH), -1, np.int64), np.full((n, DEPTH), -np.inf, np.float32))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Takes further vectors into account, (n,) and (n, D)."""
        if not len(ids) or not len(self.queries):
            return
        scores = self.queries @ vectors.T
        scores[self.own[:, None] == ids[None, :]] = -np.inf
        near = np.flatnonzero((scores > self.scores[:, -1:]).any(axis=0))
        scores, ids = scores[:, near], ids[near]
        if scores.shape[1] > DEPTH:
            top = np.argpartition(-scores, DEPTH, axis=1)[:, :DEPTH]
            scores, names = np.take_along_axis(scores, top, 1), ids[top]
        else:
            names = np.broadcast_to(ids, scores.shape)
        scores, names = np.concatenate([self.scores, scores], 1), np.concatenate([self.ids, names], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        self.scores, self.ids = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)

    def share(self, number: int, rank: int, found: Ids, scores: Vectors, error: float, beyond: float) -> float:
        """How much of the true neighbours of a query up to ``rank``, or of what is as near as they are, was found.

        Args:
            scores: of what was found, right to ``error``. They decide only where more are equally near than are known.
            beyond: no vector that is not among the known is nearer.
        """
        names, known = self.ids[number], self.scores[number]
        least = np.partition(known, len(known) - rank)[len(known) - rank] - _EQUAL
        count = len(np.intersect1d(names[known >= least], found))
        if beyond >= least:
            others = ~np.isin(found, names) & (found != self.own[number])
            count += int(np.count_nonzero(scores[others] >= least - error))
        return min(count, rank) / rank


def measure(view: View, truth: Truth) -> tuple[float, int] | None:
    """Recall@10 of what a search hands up to be scored exactly, and of how many queries it is the mean.

    Exact neighbours are those known from the build, less what is gone, and with what came since. A query is a vector of
    the gallery that training did not see; it is not counted as its own neighbour. None: no query has enough of them.
    """
    before = view.base.ids[view.dead]
    gone = np.isin(truth.ids, before) | ~np.isfinite(truth.scores)
    left = np.count_nonzero(~gone, axis=1)
    rows = view.recent_alive
    now = Truth(truth.queries, truth.own, truth.ids, np.where(gone, -np.inf, truth.scores).astype(np.float32))
    now.add(view.recent_ids[rows], view.recent[rows])
    shares, started = [], time.monotonic()
    for number in range(len(truth.queries)):
        if left[number] < RECALL_K:
            continue
        query = truth.queries[number : number + 1]
        found, scores = view.search(query, RECALL_K + 1, None, False, None)
        beyond = float(truth.scores[number, -1])
        shares.append(now.share(number, RECALL_K, found, scores, view.base.error, beyond))
        if len(shares) >= 50 and time.monotonic() - started > _SECONDS:
            break
    return (float(np.mean(shares)), len(shares)) if shares else None


def timed(
    search: Callable[[Vectors], tuple[Ids, Vectors]], truth: Truth, rank: int, error: float
) -> tuple[float, float]:
    """Recall of the true neighbours up to ``rank``, and median seconds of a query.

    Args:
        search: gives ids and scores, right to ``error``.
    """
    shares, seconds = [], []
    for number, query in enumerate(truth.queries):
        started = time.perf_counter()
        found, scores = search(query[None])
        seconds.append(time.perf_counter() - started)
        shares.append(truth.share(number, rank, found, scores, error, float(truth.scores[number, -1])))
    return float(np.mean(shares)), float(np.median(seconds))
