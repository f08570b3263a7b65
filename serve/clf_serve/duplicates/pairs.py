"""Pairs of close vectors among many, and groups of them, in memory that does not grow with the square."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clf_serve.duplicates.groups import Partition

Vectors: TypeAlias = NDArray[np.float32]

MOST = 50
"""Later partners of one row that are kept, the closest ones."""

LARGEST = 1000
"""Members of a complete-link group, so that a film's worth of equal frames costs no more than its square root."""

_ROWS, _COLUMNS = 512, 8192  # of a block of the matrix product: 16 MiB
_SLACK = 1e-5  # two products of the same vectors may differ by their order of summation


@dataclass(frozen=True)
class Pairs:
    """Positions i < j and the inner product of each pair, by rising i."""

    i: NDArray[np.int32]
    j: NDArray[np.int32]
    score: Vectors

    def best_first(self) -> Pairs:
        order = np.lexsort((self.j, self.i, -self.score))
        return Pairs(self.i[order], self.j[order], self.score[order])

    def at_least(self, score: float) -> Pairs:
        chosen = self.score >= score
        return Pairs(self.i[chosen], self.j[chosen], self.score[chosen])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.i.tolist(), self.j.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.score)


def close_pairs(
    rows: Vectors, columns: Vectors, least: float, advance: Callable[[int], None] = lambda done: None, most: int = MOST
) -> Pairs:
    """Pairs i < j of which rows[i] . columns[j] is at least ``least``; of each i the ``most`` best.

    Every product is computed, block by block: n² F / 2 multiplications, and memory for one block and n ``most`` pairs.

    Args:
        rows: (n, F).
        columns: (n, F); the same array, or the other side of a bilinear form.
        advance: called with the number of pairs done since the last call, of n (n + 1) / 2 in all.
    """
    found = []
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        kept = _none()
        bar = np.full((len(block), 1), least, np.float32)
        for left in range(start, len(columns), _COLUMNS):
            scores = block @ columns[left : left + _COLUMNS].T
            i, j = np.divmod(np.flatnonzero(scores >= bar), scores.shape[1])
            later = j + left > i + start
            i, j = i[later], j[later]
            if len(i):
                fresh = (i.astype(np.int32) + np.int32(start), (j + left).astype(np.int32), scores[i, j])
                kept = _most(_joined([kept, Pairs(*fresh)]), most)
                _raise(bar, kept, start, most)
        found.append(kept)
        left = len(rows) - start
        advance(left * (left + 1) // 2 - (left - len(block)) * (left - len(block) + 1) // 2)
    return _joined([_none(), *found])


def _raise(bar: Vectors, kept: Pairs, start: int, most: int) -> None:
    """Above the last of each row that has its ``most``: thousands of equal vectors are sorted once, not in each block.

    Args:
        bar: (rows, 1), of the rows from ``start`` on; changed.
        kept: by rising i, best first.
    """
    counts = np.bincount(kept.i - start, minlength=len(bar))
    full = np.flatnonzero(counts >= most)
    bar[full, 0] = np.nextafter(kept.score[counts.cumsum()[full] - 1], np.float32(np.inf))


def _none() -> Pairs:
    return Pairs(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def _joined(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(
        np.concatenate([part.i for part in parts]),
        np.concatenate([part.j for part in parts]),
        np.concatenate([part.score for part in parts]),
    )


def _most(pairs: Pairs, most: int) -> Pairs:
    """Of each i the ``most`` best, by rising i, best first."""
    order = np.lexsort((pairs.j, -pairs.score, pairs.i))
    i = pairs.i[order]
    order = order[np.arange(len(i)) - np.searchsorted(i, i) < most]
    return Pairs(pairs.i[order], pairs.j[order], pairs.score[order])


def complete_link(vectors: Vectors, pairs: Pairs, least: float) -> list[list[int]]:
    """Groups of two or more in which *every* two are at least ``least`` alike, built from the closest pair on.

    Complete-linkage clustering (T. Sørensen, 1948): connected components would chain unlike images together over what
    lies between them. Pairs beyond those given are never merged, and a group has at most LARGEST members.

    Args:
        vectors: (n, D), unit.
        pairs: candidates, of positions in ``vectors``.
    """
    groups = Partition(len(vectors))
    apart: dict[int, set[int]] = {}
    for i, j in pairs.at_least(least).best_first():
        a, b = groups.of(i), groups.of(j)
        if a == b or b in apart.get(a, ()):
            continue
        one, other = groups.members(a), groups.members(b)
        if len(one) + len(other) <= LARGEST and _all_alike(vectors, one, other, least):
            stays, goes = groups.merge(a, b)
            for third in apart.pop(goes, ()):
                apart[third].discard(goes)
                _keep_apart(apart, stays, third)
        else:
            _keep_apart(apart, a, b)
    return groups.several()


def _keep_apart(apart: dict[int, set[int]], one: int, other: int) -> None:
    apart.setdefault(one, set()).add(other)
    apart.setdefault(other, set()).add(one)


def _all_alike(vectors: Vectors, one: Sequence[int], other: Sequence[int], least: float) -> bool:
    if len(one) == len(other) == 1:
        return True  # they are the pair
    return bool((vectors[one] @ vectors[other].T).min() >= least - _SLACK)
