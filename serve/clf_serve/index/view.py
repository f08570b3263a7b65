"""What a search looks at: a base, what came since, and what is gone. It never changes; writers make a new one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf_serve.index.bases import ROUNDING, Base, Rows, rows_to_scan
from clf_serve.index.library import Ids, Vectors, best, library, products
from clf_serve.index.lookup import Lookup

NO_IDS: Ids = np.empty(0, np.int64)
_FILTERS = 8


class Found(NamedTuple):
    ids: Ids
    """(m,), best first."""
    scores: Vectors
    """(m,), cosines: exact where the base is flat or of whole vectors, else near them."""


@dataclass(frozen=True)
class Filter:
    """Sorted ids that a search may return, as positions of one view."""

    rows: Ids
    """Of the base, living."""
    base: Rows | None
    """The same, or None when there are none."""
    recent: Ids
    """Of the recent vectors, living."""


@dataclass(frozen=True)
class View:
    base: Base
    dead: Ids
    """Sorted positions of the base that were deleted or replaced."""
    recent_ids: Ids
    """(r,): a prefix of an array that grows."""
    recent: Vectors
    """(r, D), likewise."""
    recent_dead: Ids
    """Sorted positions among the recent that were deleted or replaced."""
    lookup: Lookup
    """Of the base's ids."""
    filters: dict[int, tuple[Ids, Filter]] = field(default_factory=dict, compare=False)
    """Those worked out lately, by the identity of the array they were made of."""

    def __len__(self) -> int:
        return len(self.base.ids) - len(self.dead) + len(self.recent_ids) - len(self.recent_dead)

    @cached_property
    def unchanged(self) -> bool:
        """Whether this is the base and nothing else."""
        return not len(self.dead) and not len(self.recent_ids)

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """(n,): of the base."""
        mask = np.ones(len(self.base.ids), np.bool_)
        mask[self.dead] = False
        return mask

    @cached_property
    def recent_alive(self) -> Ids:
        """Positions."""
        mask = np.ones(len(self.recent_ids), np.bool_)
        mask[self.recent_dead] = False
        return np.flatnonzero(mask)

    @cached_property
    def everything(self) -> Filter:
        rows = np.flatnonzero(self.alive)
        return Filter(rows, Rows(rows, len(self.base.ids)) if len(rows) else None, self.recent_alive)

    def only(self, allowed: Ids) -> Filter:
        """Of sorted ids, which must not be written to afterwards: paging asks for the same array again and again."""
        if known := self.filters.get(id(allowed)):
            return known[1]
        made = self._filter(allowed)
        if len(self.filters) >= _FILTERS:
            self.filters.clear()
        self.filters[id(allowed)] = allowed, made  # held, so that no other array gets its identity
        return made

    def _filter(self, allowed: Ids) -> Filter:
        rows = self.lookup.positions(allowed)
        rows = np.sort(rows[self.alive[rows]]) if len(rows) else rows
        recent = self.recent_alive
        if len(recent):
            ids = self.recent_ids[recent]
            at = np.searchsorted(allowed, ids)
            at[at == len(allowed)] = 0
            recent = recent[allowed[at] == ids] if len(allowed) else NO_IDS
        return Filter(rows, Rows(rows, len(self.base.ids)) if len(rows) else None, recent)

    def search(self, query: Vectors, k: int, within: Filter | None, exact: bool, floor: float | None) -> Found:
        """``query`` is (1, D), contiguous; k at least 1."""
        certain = exact and self.base.kind != "flat"
        wanted = k if exact or self.base.error <= ROUNDING else k + margin(k)
        if self.unchanged and within is None and floor is None and wanted > k:  # the usual case, in microseconds
            positions, scores = self.base.near(query, wanted, None)
            if len(positions) == wanted:
                return Found(self.base.ids[positions], scores)
        if certain:
            positions, scores = self._certain(query, k, within or self.everything, floor)
        else:
            positions, scores = self._near(query, wanted, within)
        ids, slack = self.base.ids[positions], self.base.error
        if len(self.recent_ids):
            more, extra = self._recent(query, k, within)
            if len(more):
                ids, scores = np.concatenate([ids, more]), np.concatenate([scores, extra])
        if wanted > k:  # the scores are too coarse to choose by
            return _in_order(ids, scores, len(ids), slack, floor)
        return _in_order(ids, scores, k, slack, floor)

    def _near(self, query: Vectors, wanted: int, within: Filter | None) -> tuple[Ids, Vectors]:
        """The base's best; as many as wanted unless fewer live there."""
        if within is not None and len(within.rows) == len(self.base.ids):
            within = None
        if within is None:
            if not len(self.base.ids):
                return NO_IDS, np.empty(0, np.float32)
            if not len(self.dead):
                positions, scores = self.base.near(query, wanted, None)
                if len(positions) >= min(wanted, len(self.base.ids)):
                    return positions, scores
                return self.base.scan(query, wanted, None)
            spare = min(len(self.dead), 8 + 2 * wanted * len(self.dead) // len(self.base.ids))
            positions, scores = self.base.near(query, wanted + spare, None)
            lives = self.alive[positions]
            positions, scores = positions[lives], scores[lives]
            if len(positions) >= wanted:
                return positions, scores
            within = self.everything
        if within.base is None:
            return NO_IDS, np.empty(0, np.float32)
        if len(within.base) > rows_to_scan(len(self.base.ids), query.shape[1]):
            positions, scores = self.base.near(query, wanted, within.base)
            if len(positions) >= min(wanted, len(within.base)):
                return positions, scores
        return self.base.scan(query, wanted, within.base)

    def _certain(self, query: Vectors, k: int, within: Filter, floor: float | None) -> tuple[Ids, Vectors]:
        """Every vector of the base that may be among the k best, seen that scores may be off by ``error``.

        The kth best by true score is no worse than the kth of the codes' scores less ``error``, and whatever is better
        has a code's score no worse than that less ``error`` again.
        """
        if within.base is None:
            return NO_IDS, np.empty(0, np.float32)
        rows = within.rows
        scores = self.base.scores(query, None if len(rows) == len(self.base.ids) else rows)
        bound = -np.inf if floor is None else floor - self.base.error
        if k < len(scores):
            bound = max(bound, np.partition(scores, len(scores) - k)[len(scores) - k] - 2 * self.base.error)
        keep = np.flatnonzero(scores >= bound)
        return rows[keep], scores[keep]

    def _recent(self, query: Vectors, k: int, within: Filter | None) -> tuple[Ids, Vectors]:
        if within is None and not len(self.recent_dead):
            scores = products(library(), self.recent, query)
            found = best(scores, k, ROUNDING)
            return self.recent_ids[found], scores[found]
        rows = self.recent_alive if within is None else within.recent
        if len(rows) * 4 < len(self.recent_ids):
            scores = products(library(), self.recent[rows], query)
        else:
            scores = products(library(), self.recent, query)[rows]
        found = best(scores, k, ROUNDING)
        return self.recent_ids[rows[found]], scores[found]


def margin(k: int) -> int:
    """How many more than k are handed up where scores are approximate, to be scored again with the vectors."""
    return max(10, k // 4)


def _in_order(ids: Ids, scores: Vectors, k: int, slack: float, floor: float | None) -> Found:
    """Best first, equal ones by id; without what is surely not among the k best, or surely below the floor."""
    if floor is not None:
        keep = scores >= floor - slack
        ids, scores = ids[keep], scores[keep]
    order = np.lexsort((ids, -scores))
    if len(order) > k:
        order = order[: max(k, int(np.searchsorted(-scores[order], -(scores[order[k - 1]] - 2 * slack), "right")))]
    return Found(ids[order], scores[order])
