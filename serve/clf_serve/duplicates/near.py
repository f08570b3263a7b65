"""The near level: pictures that an encoder finds alike, and what the threshold means in this gallery."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf_serve.duplicates.groups import File, Pictures, Progress
from clf_serve.duplicates.pairs import Pairs, Vectors, close_pairs, complete_link
from clf_serve.duplicates.threshold import SAMPLE, Chance

_PARTNERS = (0.001, 0.01, 0.1, 1.0)  # by chance, of one image, at the thresholds that are shown
_PLAIN = (0.99, 0.97, 0.95, 0.9)  # thresholds that are shown where chance cannot be told
_STEP_EXAMPLES, _EXAMPLES = 3, 6
_KNOWN = 2000  # pairs of one picture whose cosine is looked at

Batches = Iterable[tuple[NDArray[np.int64], Vectors]]


class Example(NamedTuple):
    one: File
    other: File
    cosine: float


class Step(NamedTuple):
    """A threshold one could choose."""

    cosine: float
    pairs: int
    """Of pictures that reach it; of one picture the fifty closest are counted."""
    chance: float | None
    """Pairs that would reach it among as many unrelated images, where that can be told."""
    examples: tuple[Example, ...]
    """The pairs just above it."""


class Same(NamedTuple):
    """Cosines of pairs that are the same picture: how far re-encoding moves a vector."""

    low: float
    """5 % quantile."""
    median: float
    pairs: int


@dataclass(frozen=True)
class Near:
    """How the near level was decided."""

    threshold: float
    given: bool
    """By the user, and not derived."""
    chance: Chance
    steps: tuple[Step, ...]
    """Highest cosine first."""
    above: tuple[Example, ...]
    below: tuple[Example, ...]
    same: Same | None

    @property
    def derived(self) -> bool:
        """From this gallery; it may also be too small for that."""
        return not self.given and self.chance.distance is not None


class NearPictures(NamedTuple):
    facts: Near
    groups: list[list[int]]
    """Positions to keep (:meth:`Pictures.kept`) of pictures that are near, in lists of two or more."""
    cosines: dict[tuple[int, int], float]
    """Of each with the first of its group."""


def near_pictures(pictures: Pictures, batches: Batches, threshold: float | None, progress: Progress) -> NearPictures:
    """Groups of pictures of which every two are at least ``threshold`` alike.

    Args:
        batches: ids (n,) and unit vectors (n, D) of the gallery; those of other images are passed over.
        threshold: cosine; None derives it.
    """
    kept = pictures.kept()
    known = _same_pairs(pictures)
    vectors = _gather([pictures.files[p].id for p in [*kept, *(other for _, other in known)]], batches)
    rows = {position: row for row, position in enumerate(kept)}
    same = np.array([vectors[rows[keep]] @ vectors[len(kept) + k] for k, (keep, _) in enumerate(known)])
    vectors = vectors[: len(kept)]

    chance = Chance.of(vectors[sampled(len(kept))], len(kept))
    least = chance.threshold if threshold is None else threshold
    progress.begin("comparing vectors", len(kept) * (len(kept) + 1) // 2, "pairs")
    pairs = close_pairs(vectors, vectors, _floor(chance, least), progress.advance)
    groups = complete_link(vectors, pairs, least)
    cosines = {(kept[g[0]], kept[row]): float(vectors[g[0]] @ vectors[row]) for g in groups for row in g[1:]}

    files = [pictures.files[position] for position in kept]
    pairs = pairs.best_first()
    facts = Near(
        threshold=least,
        given=threshold is not None,
        chance=chance,
        steps=tuple(_steps(files, pairs, chance, least)),
        above=tuple(_examples(files, pairs.at_least(least), -_EXAMPLES, None)),
        below=tuple(_examples(files, pairs, len(pairs.at_least(least)), _EXAMPLES)),
        same=Same(float(np.quantile(same, 0.05)), float(np.median(same)), len(same)) if len(same) else None,
    )
    return NearPictures(facts, [[kept[row] for row in group] for group in groups], cosines)


def _same_pairs(pictures: Pictures) -> list[tuple[int, int]]:
    """Of each picture the position to keep, with one that is re-encoded, some of them."""
    pairs = []
    for keep, *rest in pictures.exact.several():
        digest = pictures.files[keep].sha256
        pairs += [(keep, other) for other in rest if pictures.files[other].sha256 != digest]
    return pairs[:_KNOWN]


def _gather(ids: Sequence[int], batches: Batches) -> Vectors:
    """Vectors in the order of ``ids``, (n, D); zeros, which are like nothing, for what is gone."""
    wanted = np.array(ids, np.int64)
    order = np.argsort(wanted)
    ascending = wanted[order]
    gathered = np.zeros((len(ids), 0), np.float32)
    for found, vectors in batches:
        if gathered.shape[1] != vectors.shape[1]:
            gathered = np.zeros((len(ids), vectors.shape[1]), np.float32)
        place = np.minimum(np.searchsorted(ascending, found), max(0, len(ids) - 1))
        here = ascending[place] == found if len(ids) else np.zeros(len(found), np.bool_)
        gathered[order[place[here]]] = vectors[here]
    return gathered


def sampled(n: int) -> NDArray[np.int64]:
    """Up to SAMPLE rows of n, the same ones each time."""
    return np.sort(np.random.default_rng(0).choice(n, min(n, SAMPLE), replace=False))


def _floor(chance: Chance, threshold: float) -> float:
    """The cosine down to which pairs are shown: what lies below the threshold helps to choose it."""
    lowest = chance.cosine(_PARTNERS[-1]) if chance.distance is not None else _PLAIN[-1]
    return max(1e-3, min(lowest, threshold - (1 - threshold) / 2 - 1e-3))


def _steps(files: Sequence[File], pairs: Pairs, chance: Chance, threshold: float) -> list[Step]:
    told = chance.distance is not None
    cosines = {chance.cosine(partners) for partners in _PARTNERS} if told else set(_PLAIN)
    steps = []
    for cosine in sorted({*cosines, threshold}, reverse=True):
        reached = pairs.at_least(cosine)
        partners = chance.partners(cosine)
        by_chance = None if partners is None else partners * chance.images / 2
        steps.append(Step(cosine, len(reached), by_chance, tuple(_examples(files, reached, -_STEP_EXAMPLES, None))))
    return steps


def _examples(files: Sequence[File], pairs: Pairs, start: int, count: int | None) -> list[Example]:
    """Of pairs, best first: ``count`` from ``start`` on; all when None."""
    part = slice(start, None if count is None else start + count)
    return [
        Example(files[i], files[j], float(score))
        for i, j, score in zip(pairs.i[part], pairs.j[part], pairs.score[part], strict=True)
    ]
