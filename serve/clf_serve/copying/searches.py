"""What a search must find: the neighbours by comparing every vector as it goes by, and what a gallery finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clf_serve.gallery.vectors import Ids, Vectors, unit
from clf_serve.stores import AnyGallery

QUERIES = 32
K = 10
_EQUAL = 4e-6  # float32 inner products of equal vectors differ by less

Found = list[tuple[int, float]]
"""Ids and cosines, best first, equal ones by id."""


class Nearest:
    """The ``K`` best of all vectors that were added, for each query; scores in float64, as a gallery computes them."""

    def __init__(self, queries: Sequence[Vectors]) -> None:
        """Args: queries: (D,) each, as they are stored."""
        self.queries = [unit(query, len(query)) for query in queries]
        self._matrix = np.stack(self.queries) if queries else np.empty((0, 0), np.float32)
        self._best: list[Found] = [[] for _ in queries]

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Args: ids: (n,). vectors: (n, D)."""
        if not self.queries:
            return
        rough = vectors @ self._matrix.T  # (n, Q)
        for i, query in enumerate(self.queries):
            best = self._best[i]
            least = best[-1][1] if len(best) == K else -2.0
            near = np.flatnonzero(rough[:, i] >= least - _EQUAL)
            if len(near) > K:  # of more, those that are not among the K best here are not among the best of all
                least = np.partition(rough[near, i], -K)[-K]
                near = near[rough[near, i] >= least - _EQUAL]
            if len(near):
                scores = np.einsum("nd,d->n", vectors[near].astype(np.float64), query.astype(np.float64))
                more = zip(ids[near].tolist(), np.clip(scores, -1.0, 1.0).tolist(), strict=True)
                self._best[i] = sorted([*best, *more], key=lambda pair: (-pair[1], pair[0]))[:K]

    def differs(self, gallery: AnyGallery) -> str:
        """What an exact search of a gallery finds otherwise, in a sentence; empty where nothing is."""
        for query, wanted in zip(self.queries, self._best, strict=True):
            found = [(hit.id, hit.score) for hit in gallery.search(query, K, exact=True)]
            if found != wanted:
                pairs = zip([*found, (0, 0.0)], [*wanted, (0, 0.0)], strict=False)
                (id_, score), (best, right) = next(pair for pair in pairs if pair[0] != pair[1])
                return (
                    f"an exact search of {gallery.place} found image {id_} (score {score:.9f}) where comparing every "
                    f"vector finds image {best} ({right:.9f})"
                )
        return ""
