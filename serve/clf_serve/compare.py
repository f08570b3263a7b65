"""How much two rankings of the same images agree: what two encoders find for one query.

Rank-biased overlap follows W. Webber, A. Moffat and J. Zobel, A similarity measure for indefinite rankings, ACM
Transactions on Information Systems 28(4), 2010. It counts agreement near the top more than agreement further down,
as a person who reads a ranking from the top does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery import Hit, Item, Where
from clf_serve.stores import AnyGallery

PERSISTENCE = 0.9
"""p of rank-biased overlap: after each rank, a reader goes on to the next with this probability. The first ten ranks
hold 86 % of the weight (equation 21)."""
SAMPLE = 1000
"""Images of the smaller gallery that are looked up in the other to say what they share."""


class Rbo(NamedTuple):
    """Rank-biased overlap of two rankings of which the first k ranks are known."""

    extrapolated: float
    """As if the agreement at rank k went on for ever (equation 23); 1 for equal, 0 for disjoint rankings."""
    least: float
    """Whatever follows (equation 11)."""
    most: float
    """Whatever follows."""


def rbo(first: Sequence[Hashable], second: Sequence[Hashable], p: float = PERSISTENCE) -> Rbo:
    """Of two rankings without repeats; the longer one is cut to the length k of the shorter.

    Args:
        p: in (0, 1); small values count the top ranks only.
    """
    k = min(len(first), len(second))
    overlaps = _overlaps(first[:k], second[:k])  # X_d, d = 1..k
    if not k:
        return Rbo(0.0, 0.0, 1.0)
    x = overlaps[-1]
    series = sum(shared * p**d / d for d, shared in enumerate(overlaps, 1))
    extrapolated = x / k * p**k + (1 - p) / p * series
    least = (1 - p) / p * (sum((shared - x) * p**d / d for d, shared in enumerate(overlaps, 1)) - x * math.log(1 - p))
    return Rbo(extrapolated, max(0.0, least), least + _residual(k, x, p))


def _residual(k: int, x: int, p: float) -> float:
    """By how much the overlap could still rise below rank k.

    It rises the most when every item that one list has alone comes next in the other, at best two new ones a rank: all
    of f = 2k - x ranks are shared then (section 4.3).
    """
    full = 2 * k - x
    ahead = sum(2 * (d - k) * p**d / d for d in range(k + 1, full + 1))
    tail = -math.log(1 - p) - sum(p**d / d for d in range(1, full + 1))  # of p^d / d over d > f
    beyond = p ** (full + 1) / (1 - p)  # of p^d over d > f, where all but nothing is shared
    return (1 - p) / p * (ahead + beyond - x * tail)


def _overlaps(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[int]:
    """How many items the first d ranks of both share, for d = 1..k."""
    left: set[Hashable] = set()
    right: set[Hashable] = set()
    overlaps = []
    shared = 0
    for one, other in zip(first, second, strict=True):
        shared += (one == other) + (one in right) + (other in left)
        left.add(one)
        right.add(other)
        overlaps.append(shared)
    return overlaps


def kendall(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Kendall's tau of the items that both rankings have, in [-1, 1]; None where they share fewer than two.

    Pairs in the same order minus pairs in opposite order, over all pairs (M. G. Kendall, Biometrika 30, 1938).
    """
    ranks = {item: rank for rank, item in enumerate(second)}
    order = [ranks[item] for item in first if item in ranks]
    pairs = math.comb(len(order), 2)
    if not pairs:
        return None
    return sum(1 if i < j else -1 for i, j in combinations(order, 2)) / pairs


class Found(NamedTuple):
    """A hit of one gallery, and what the other says of the same image."""

    hit: Hit
    rank: int | None
    """In the other ranking, from 1, as deep as it was searched; None below that."""
    present: bool
    """Whether the other gallery has the image at all."""


@dataclass(frozen=True)
class Comparison:
    """Two rankings for one query, k hits each, or fewer where a gallery holds fewer."""

    first: list[Found]
    second: list[Found]
    depth: int
    """How far down the other ranking was searched for each hit."""

    @property
    def k(self) -> int:
        return max(len(self.first), len(self.second))

    @property
    def shared(self) -> int:
        """How many images are among the first k of both."""
        return sum(found.rank is not None and found.rank <= len(self.second) for found in self.first)

    @property
    def overlap(self) -> float:
        """``shared`` over k, in [0, 1]."""
        return self.shared / self.k if self.k else 0.0

    @property
    def rbo(self) -> Rbo:
        return rbo(*self._rankings())

    @property
    def tau(self) -> float | None:
        return kendall(*self._rankings())

    def _rankings(self) -> tuple[list[int], list[int]]:
        """Both as numbers: the rank in the second where there is one, else one of its own."""
        theirs = list(range(1, len(self.second) + 1))
        ours = [-i if found.rank is None else found.rank for i, found in enumerate(self.first, 1)]
        return ours, theirs


class Side(NamedTuple):
    """A gallery and what it is asked."""

    gallery: AnyGallery
    vector: NDArray[np.float32]
    """(D,), unit length, of its own encoder."""
    but: Collection[int] = ()
    """Ids to leave out: the query itself."""


def compare(first: Side, second: Side, k: int, depth: int = 500) -> Comparison:
    """The k nearest images of two galleries for the same query. Images are the same when their keys or bytes are.

    Args:
        depth: how far down the other ranking an image is looked for, at least k.
    """
    depth = max(k, depth)
    hits, others = (side.gallery.search(side.vector, depth, but=side.but) for side in (first, second))
    items, theirs = _items(first.gallery, hits), _items(second.gallery, others)
    partner = _partners(items, theirs)
    back = {j: i for i, j in partner.items()}
    return Comparison(
        _found(hits[:k], items, partner, second.gallery), _found(others[:k], theirs, back, first.gallery), depth
    )


def same_image(item: Item, gallery: AnyGallery) -> Item | None:
    """The same image in another gallery: of the same key, or else of the same bytes."""
    if (found := gallery.find(item.key)) is not None or not item.sha256:
        return found
    return next(iter(gallery.page(limit=1, where=Where.parse({"@sha256": item.sha256}))), None)


class Common(NamedTuple):
    """Images of the smaller gallery that the other has too."""

    share: float
    """In [0, 1]."""
    exact: bool
    """False when it is the share of a sample of a thousand."""


def common(first: AnyGallery, second: AnyGallery) -> Common:
    """Of two galleries that are not both empty; 0 where one is."""
    small, large = sorted((first, second), key=len)
    items = small.sample(SAMPLE)
    if not items:
        return Common(0.0, True)
    return Common(sum(_present(items, large)) / len(items), len(small) <= SAMPLE)


def _items(gallery: AnyGallery, hits: Sequence[Hit]) -> list[Item | None]:
    """In order of the hits; None for an image that was deleted meanwhile."""
    items = {item.id: item for item in gallery.items([hit.id for hit in hits])}
    return [items.get(hit.id) for hit in hits]


def _partners(ours: Sequence[Item | None], theirs: Sequence[Item | None]) -> dict[int, int]:
    """Position in theirs of the same image, by position in ours; each at most once, the best ranked first."""
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for name in ("key", "sha256"):
        places: dict[str, list[int]] = {}
        for j, item in enumerate(theirs):
            if item is not None and j not in taken and getattr(item, name):
                places.setdefault(getattr(item, name), []).append(j)
        for i, item in enumerate(ours):
            if item is None or i in partner or not (free := places.get(getattr(item, name))):
                continue
            partner[i] = free.pop(0)
            taken.add(partner[i])
    return partner


def _found(
    hits: Sequence[Hit], items: Sequence[Item | None], partner: dict[int, int], other: AnyGallery
) -> list[Found]:
    alone = [i for i in range(len(hits)) if i not in partner]
    known = [item for i in alone if (item := items[i]) is not None]
    present = {item.id for item, there in zip(known, _present(known, other), strict=True) if there}
    return [
        Found(hit, partner[i] + 1, True) if i in partner else Found(hit, None, hit.id in present)
        for i, hit in enumerate(hits)
    ]


def _present(items: Sequence[Item], gallery: AnyGallery) -> list[bool]:
    """Whether the gallery has each of some other gallery's images."""
    by_key = [gallery.find(item.key) is not None for item in items]
    rest = sorted({item.sha256 for item, there in zip(items, by_key, strict=True) if not there and item.sha256})
    bytes_there: set[str] = set()
    for start in range(0, len(rest), 100):
        where = Where.parse({"@sha256": {"$in": rest[start : start + 100]}})
        bytes_there.update(item.sha256 for item in gallery.page(limit=1000, where=where))
    return [there or item.sha256 in bytes_there for item, there in zip(items, by_key, strict=True)]
