"""What a score is worth: the cosine of random pairs of a gallery, against which the cosine of a neighbour is held.

How alike two unrelated images are differs from encoder to encoder and from gallery to gallery: 0.8 may be a near
duplicate for one, and less than two random photos have in common for another. The share of random pairs that are less
alike than a given pair, the score's percentile, means the same everywhere.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clf.errors import GalleryError

_IMAGES = 1000  # of which all pairs are looked at: 499,500
_FRESH = 60.0  # seconds that the sample of a gallery of much the same size is good for, though it was written to
_GROWN = 0.1  # share by which a gallery may grow or shrink until a new sample is drawn at once


class Vectors(Protocol):
    """What is needed of a gallery."""

    @property
    def generation(self) -> int: ...

    def ids(self) -> NDArray[np.int64]: ...

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]: ...

    def __len__(self) -> int: ...


class Sample(NamedTuple):
    ids: NDArray[np.int64]
    """(n,), rising."""
    vectors: NDArray[np.float32]
    """(n, D), of unit length; the caller's own."""
    images: int
    """Of the gallery."""


def sample(gallery: Vectors, most: int) -> Sample:
    """All vectors of a gallery, or so many, evenly spread over it.

    Raises:
        GalleryError: images are deleted faster than they can be read.
    """
    for _ in range(5):
        ids = gallery.ids()
        images = len(ids)
        if images > most:
            ids = ids[np.arange(most) * images // most]
        try:
            return Sample(ids, np.array(gallery.vectors(ids.tolist())), images)
        except KeyError:  # deleted in between
            continue
    raise GalleryError("the gallery changes too fast to be looked at as a whole; try again later")


class Background:
    """The cosines of random pairs, as an empirical distribution.

    Args:
        cosines: (P,), P >= 1, in any order.
    """

    def __init__(self, cosines: NDArray[np.float32]) -> None:
        self._sorted = np.sort(cosines)

    @property
    def pairs(self) -> int:
        return len(self._sorted)

    @classmethod
    def of(cls, gallery: Vectors) -> Background | None:
        """Of a gallery's random pairs; None where it has fewer than three images.

        Kept for each open gallery until it has grown or shrunk by a tenth, or has changed and a minute has passed.
        """
        return _backgrounds.of(gallery)

    @classmethod
    def among(cls, vectors: NDArray[np.float32]) -> Background:
        """Of all pairs of (n, D) unit vectors, n >= 2."""
        rows, columns = np.triu_indices(len(vectors), 1)
        return cls((vectors @ vectors.T)[rows, columns])

    @overload
    def percentile(self, score: float) -> float: ...
    @overload
    def percentile(self, score: NDArray[np.floating]) -> NDArray[np.float64]: ...
    def percentile(self, score: ArrayLike) -> float | NDArray[np.float64]:
        """Share of random pairs that are less alike than ``score`` (cosine; a number, or an array of any shape).

        Of P pairs that were drawn, c less alike make c / (P + 1): in [0, 1) and never 1, because a sample cannot show
        that nothing beyond it exists; the next pair drawn is above all P with the probability 1 / (P + 1).
        """
        below = np.searchsorted(self._sorted, np.asarray(score, np.float32), side="left")
        share = below / (self.pairs + 1)
        return float(share) if np.ndim(share) == 0 else share


def words(percentile: float) -> str:
    """A percentile as people read it, rounded down so that it never says too much.

    >>> words(0.9984)
    'closer than 99.8 % of random pairs'
    """
    return f"closer than {percent(percentile)} of random pairs"


def percent(percentile: float) -> str:
    """``99.8 %``, from 99.9 % on with one digit more; rounded down, so that nothing is said to be more than it is."""
    share = 100 * percentile
    digits = 1 if percentile < 0.999 else 2
    scale = 10**digits
    return f"{math.floor(share * scale + 1e-6) / scale:.{digits}f} %"


@dataclass(frozen=True)
class _Kept:
    background: Background | None
    images: int
    generation: int
    drawn: float

    def serves(self, gallery: Vectors, generation: int) -> bool:
        if generation == self.generation:
            return True
        fresh = time.monotonic() - self.drawn < _FRESH
        return fresh and abs(len(gallery) - self.images) <= _GROWN * self.images


class _Backgrounds:
    """One for each gallery that is open."""

    def __init__(self) -> None:
        self._kept: MutableMapping[Vectors, _Kept] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, gallery: Vectors) -> Background | None:
        generation = gallery.generation
        with self._lock:
            kept = self._kept.get(gallery)
        if kept is None or not kept.serves(gallery, generation):
            _, vectors, images = sample(gallery, _IMAGES)
            background = Background.among(vectors) if len(vectors) > 2 else None
            kept = _Kept(background, images, generation, time.monotonic())
            with self._lock:
                self._kept[gallery] = kept
        return kept.background


_backgrounds = _Backgrounds()
