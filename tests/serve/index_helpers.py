"""Clustered vectors, indexes of them, and brute force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from clf_serve.index import VectorIndex, choose

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

DIM = 32
N = 3000
KINDS = ("flat", "hnsw", "ivf")


def unit(n: int, seed: int = 0, dim: int = DIM) -> Vectors:
    """In 40 clusters."""
    centres = np.random.default_rng(99).normal(size=(40, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(40, size=n)] + 0.4 * rng.normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def in_batches(ids: Ids, vectors: Vectors, rows: int = 700) -> Iterator[tuple[Ids, Vectors]]:
    for start in range(0, len(ids), rows):
        yield ids[start : start + rows], vectors[start : start + rows]


def built(kind: str, ids: Ids, vectors: Vectors, generation: int = 1, target: float = 0.98) -> VectorIndex:
    index = VectorIndex(vectors.shape[1])
    plan = choose(len(ids), vectors.shape[1], None, kind, target)
    index.rebuild(lambda: in_batches(ids, vectors), len(ids), plan, generation)
    return index


@cache
def _master(kind: str) -> VectorIndex:
    return built(kind, np.arange(N), unit(N))


def fresh(kind: str) -> VectorIndex:
    """Of ``unit(N)`` with ids 0 .. N - 1, just built: one's own, as updates leave the base as it is."""
    index, master = VectorIndex(DIM), _master(kind)
    for name in ("_plan", "_generation", "_truth", "_recall", "_built_recall"):
        setattr(index, name, getattr(master, name))
    index._start(master._view.base)
    return index


class Brute:
    """What an index should hold, and its exact neighbours."""

    def __init__(self, ids: Iterable[int] = (), vectors: Iterable[Vectors] = ()) -> None:
        self.rows = dict(zip((int(i) for i in ids), vectors, strict=True))

    def update(self, removed: Iterable[int], ids: Iterable[int], vectors: Iterable[Vectors]) -> None:
        for id_ in removed:
            self.rows.pop(int(id_), None)
        self.rows |= dict(zip((int(i) for i in ids), vectors, strict=True))

    def best(self, query: Vectors, k: int, allowed: Iterable[int] | None = None) -> list[int]:
        names = list(self.rows) if allowed is None else [int(i) for i in allowed if int(i) in self.rows]
        return sorted(names, key=lambda id_: (-float(self.rows[id_] @ query), id_))[:k]

    def rescored(self, found: Ids, query: Vectors, k: int) -> list[int]:
        """As the gallery does with what an index hands up. KeyError for an id that is not there."""
        scores = {int(id_): float(self.rows[int(id_)] @ query) for id_ in found}
        assert len(scores) == len(found), "an id came twice"
        return sorted(scores, key=lambda id_: (-scores[id_], id_))[:k]


def recall(
    index: VectorIndex, truth: Brute, queries: Vectors, k: int = 10, allowed: Ids | None = None, exact: bool = False
) -> float:
    shares = []
    for query in queries:
        best = truth.best(query, k, allowed)
        found = truth.rescored(index.search(query, k, allowed, exact=exact).ids, query, k)
        assert len(found) == len(best)
        shares.append(len(set(best) & set(found)) / max(len(best), 1))
    return float(np.mean(shares))
