"""Neighbours among the vectors of a gallery: approximate where exact would be slow, and never behind its changes.

One *base* of any kind over positions 0 .. n - 1 that never changes, plus *recent* vectors that are compared one by
one, minus *tombstones* for what was deleted or replaced. So every kind can add, replace, delete and filter. A search
reads one immutable view, without a lock; an update makes the next view.

It is a cache of the gallery's database: stale means that the caller catches up by generation; missing, foreign or
damaged means rebuilt.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from clf_serve.index import storing
from clf_serve.index.bases import Flat, Graph, Lists
from clf_serve.index.building import Batches, Progress, build
from clf_serve.index.library import Ids, Vectors, library, single_threaded
from clf_serve.index.lookup import Lookup
from clf_serve.index.plan import RECALL_K, Plan, choose, size_of
from clf_serve.index.recall import Truth, measure
from clf_serve.index.view import NO_IDS, Found, View

RECENT_VALUES = 2_500_000
"""Numbers among the recent vectors that cost a search about 1 ms."""
NEWER = "newer than the database"
_FADED = 0.01  # recall lost since the build that calls for another


class Stamp(NamedTuple):
    gallery: str
    dim: int
    generation: int


@dataclass(frozen=True)
class IndexInfo:
    kind: str
    parameters: dict[str, Any]
    vectors: int
    recent: int
    tombstones: int
    bytes: int
    """In memory, about."""
    recall: float | None
    """Recall@10 of what is handed up, against exact search; None: not measured."""
    queries: int
    """That recall is the mean of; 0 for exact search."""
    target: float
    generation: int
    exact: bool
    why: str
    """Why this kind, and where the target was missed, that too."""
    recall_k: int = RECALL_K

    def json(self) -> dict[str, Any]:
        return asdict(self)


class VectorIndex:
    """Thread-safe: any number of searches beside one update, save or rebuild at a time."""

    def __init__(self, dim: int) -> None:
        library()
        self.dim = dim
        self._lock = threading.RLock()
        self._generation = 0
        self._plan = choose(0, dim)
        self._truth: Truth | None = None
        self._recall: tuple[float, int] | None = None
        self._built_recall: float | None = None
        self._kept: storing.Kept | None = None
        self._opened: Any = None
        self._start(Flat(NO_IDS, np.empty((0, dim), np.float32)))

    @classmethod
    def open(cls, folder: Path, stamp: Stamp) -> tuple[Self, str | None]:
        """The saved index, perhaps some generations old; or an empty one and why: ``missing``, ``damaged (...)``."""
        index = cls(stamp.dim)
        index._opened = storing.identity(folder)  # what cannot be used is not worth opening again
        try:
            state = storing.load(folder)
        except storing.UnusableError as error:
            return index, str(error)
        found = Stamp(state.gallery, state.dim, state.generation)
        if (found.gallery, found.dim) != (stamp.gallery, stamp.dim):
            return index, "of another gallery"
        if not 0 <= found.generation <= stamp.generation:
            return index, NEWER
        index._adopt(state)
        return index, None

    def outdated(self, folder: Path) -> bool:
        """Whether another process has saved an index since this one was opened or saved: worth opening again."""
        return bool(storing.identity(folder) != self._opened)

    @property
    def generation(self) -> int:
        return self._generation

    def __len__(self) -> int:
        return len(self._view)

    def update(self, removed: Iterable[int], ids: Any, vectors: Vectors, generation: int) -> None:
        """Removes some ids, then adds or replaces others, (n,) and (n, D). Of an id given twice the last counts."""
        names = np.asarray(ids, np.int64)
        rows = np.asarray(vectors, np.float32)
        if rows.shape != (len(names), self.dim):
            raise ValueError(f"expected vectors of shape ({len(names)}, {self.dim}), got {rows.shape}")
        if len(names) > 1:
            _, last = np.unique(names[::-1], return_index=True)
            if len(last) < len(names):
                keep = np.sort(len(names) - 1 - last)
                names, rows = names[keep], rows[keep]
        stale = np.union1d(np.fromiter(removed, np.int64), names)
        with self._lock:
            self._generation = generation  # before the view: who reads it after a search learns that there was a change
            if len(stale):
                self._view = self._next(stale, names, rows)

    def search(
        self, vector: Vectors, k: int, allowed: Ids | None = None, *, exact: bool = False, floor: float | None = None
    ) -> Found:
        """Candidates for the k nearest, best first: at least k of them, or all that there are.

        Score them again with the stored vectors and keep the best k. Where ``info.exact``, scores are right to 1e-5
        and there are more than k only where scores are as good as equal. Else scores are those of compressed codes,
        and more come along (at least 10, and k // 4), with which the recall was measured.

        Args:
            vector: (D,), unit length.
            allowed: sorted ids; only these are found. Not to be written to afterwards, as what is worked out of it is
                kept for the next search with the same array.
            exact: compare every vector. Of approximate kinds all come back that may be among the k best, as far as
                the codes can tell: all the k best surely are.
            floor: what scores surely less is left out.
        """
        view = self._view
        k = min(k, len(view))
        if k < 1:
            return Found(NO_IDS, np.empty(0, np.float32))
        query = np.ascontiguousarray(vector, np.float32).reshape(1, self.dim)
        within = None if allowed is None else view.only(allowed)
        return view.search(query, k, within, exact, floor)

    def due(self, wanted: Plan | None = None) -> bool:
        """Whether a rebuild pays: many recent vectors or tombstones, another kind for this size, or recall that faded.

        Args:
            wanted: the plan for the present size; default: by what the last was chosen by.
        """
        view, n = self._view, len(self)
        size, live = len(view.base.ids), len(view.recent_ids) - len(view.recent_dead)
        if live * self.dim > RECENT_VALUES and (live * 20 > size or view.base.kind == "flat"):
            return True
        if len(view.dead) * 5 > size:
            return True
        if self._recall and self._built_recall and view.base.kind != "flat":
            faded = self._recall[0] < min(self._built_recall, self._plan.target) - _FADED
            if faded:
                return True
        by = wanted or self._plan
        around = (choose(int(n * change), self.dim, by.memory, by.name, by.target) for change in (0.8, 1.0, 1.25))
        return n > 0 and all(plan.kind != view.base.kind for plan in around)

    def rebuild(
        self, batches: Batches, n: int, plan: Plan, generation: int, progress: Progress | None = None
    ) -> IndexInfo:
        """Replaces everything by what ``batches`` yields, tuned to ``plan.target``. Searches go on meanwhile.

        Args:
            batches: called twice; each time all ids and vectors, (n,) and (n, D), in pieces.
            n: how many there are.
            generation: of the state read, or before it; later changes are to be caught up with.
            progress: told of a stage, how much of it is done, and its whole.
        """
        built = build(batches, n, plan, self.dim, progress or (lambda *_: None))
        with self._lock:
            self._plan, self._generation, self._truth = plan, generation, built.truth
            self._kept = None
            self._built_recall = built.recall
            self._recall = (built.recall, 0 if built.truth is None else len(built.truth.queries))
            self._start(built.base)
        return self.info

    def measure(self) -> float | None:
        """Recall@10 of the present state, recent vectors and tombstones included; 1 where search is exact.

        The true neighbours of the held-back queries are kept since the build, so no other vector need be read. It ends
        after half a second with the queries it has done, at least 50. The figure of a build is of queries that the
        structure had not been given; later ones have them in it, and leave each out of its own neighbours.
        """
        with self._lock:
            view, truth = self._view, self._truth
            changed = len(view.dead) or len(view.recent_ids)
            if truth is not None and (changed or self._recall is None):
                self._recall = measure(view, truth)
            return self._recall[0] if self._recall else None

    def save(self, folder: Path, gallery: str) -> None:
        """Measures, then writes the index into ``folder``; a reader sees the old one or the new one, whole.

        An index in the old place, ``index.faiss`` beside ``folder``, is removed.

        Raises:
            OSError: it could not be written; what was saved before is as it was.
        """
        with self._lock:
            self.measure()
            view = self._view
            state = storing.State(
                gallery, self.dim, self._generation, self._plan, view, self._truth, self._recall, self._built_recall
            )
            self._kept = storing.save(folder, state, self._kept)
            self._opened = storing.identity(folder)

    @property
    def info(self) -> IndexInfo:
        view, plan = self._view, self._plan
        base = view.base
        exact = isinstance(base, Flat)
        recall, queries = (1.0, 0) if exact else self._recall or (None, 0)
        why = plan.why
        if recall is not None and recall < plan.target:
            why += f"; recall@{RECALL_K} is {recall:.3f}, below the target of {plan.target:g}"
        if not len(base.ids):
            why = choose(len(view), self.dim, name="flat").why
        recent = len(view.recent_ids) - len(view.recent_dead)
        size = size_of(base.kind, base.codes, len(base.ids), self.dim) + view.recent.nbytes
        return IndexInfo(
            base.kind, _parameters(base), len(view), recent, len(view.dead), size, recall, queries, plan.target,
            self._generation, exact, why,
        )  # fmt: skip

    def _start(self, base: Any) -> None:
        """A view of a base alone."""
        self._reserve(0)
        self._rows: dict[int, int] = {}
        none = np.empty((0, self.dim), np.float32)
        self._view = View(base, NO_IDS, NO_IDS, none, NO_IDS, Lookup(base.ids))

    def _adopt(self, state: storing.State) -> None:
        self._plan, self._generation, self._truth = state.plan, state.generation, state.truth
        self._recall, self._built_recall, self._kept = state.recall, state.built_recall, state.kept
        self._opened = state.identity
        self._start(state.view.base)
        view = state.view
        if len(view.recent_ids):
            self._view = self._next(view.recent_ids, view.recent_ids, view.recent)
        self._view = replace(self._view, dead=view.dead, filters={})
        single_threaded(library())

    def _next(self, stale: Ids, names: Ids, rows: Vectors) -> View:
        """The view without the sorted ``stale`` ids and with ``names``."""
        view = self._view
        dead = np.union1d(view.dead, view.lookup.positions(stale))
        gone = [row for name in stale.tolist() if (row := self._rows.pop(name, None)) is not None]
        recent_dead = np.union1d(view.recent_dead, np.array(gone, np.int64))
        count = len(view.recent_ids)
        if len(recent_dead) * 2 > count or count + len(names) > len(self._ids):
            live = replace(view, recent_dead=recent_dead).recent_alive
            old_ids, old = view.recent_ids[live], view.recent[live]
            self._reserve(2 * (len(live) + len(names)))
            count, recent_dead = len(live), NO_IDS
            self._ids[:count], self._vectors[:count] = old_ids, old
            self._rows = dict(zip(old_ids.tolist(), range(count), strict=True))
        end = count + len(names)
        self._ids[count:end], self._vectors[count:end] = names, rows  # beyond what any view shows
        self._rows.update(zip(names.tolist(), range(count, end), strict=True))
        return View(view.base, dead, self._ids[:end], self._vectors[:end], recent_dead, view.lookup)

    def _reserve(self, rows: int) -> None:
        """New arrays, so that views of the old ones stay as they are."""
        self._ids: Ids = np.empty(rows, np.int64)
        self._vectors: Vectors = np.empty((rows, self.dim), np.float32)


def _parameters(base: Any) -> dict[str, Any]:
    if isinstance(base, Lists):
        first = base.effort.steps[0]
        return {
            "codes": base.codes, "lists": int(base.index.nlist), "nprobe": first[1], "refine": base.effort.factor,
        }  # fmt: skip
    if isinstance(base, Graph):
        return {"codes": base.codes, "links": int(base.index.hnsw.nb_neighbors(1)), "efSearch": base.effort.steps[0][1]}
    return {"codes": base.codes}
