"""How alike two images must be to be called near duplicates: derived from the gallery, because no cosine means the same
for two encoders.

Random pairs say how often two *unrelated* images come as close as a threshold. There are far too few of them to count
the closest, and the closest may be duplicates, so the tail is extrapolated from where it can be counted: below a small
distance x the share of pairs is p (x / x_p)^m, with m the local intrinsic dimension (L. Amsaleg et al., Estimating
Local Intrinsic Dimensionality, KDD 2015). m is read off two quantiles that lie far beyond the duplicates of a gallery,
even where an image has ten of them. The threshold is the cosine at which an image has CHANCE partners by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]

CHANCE = 0.01
"""Partners by chance of one image at the default threshold: one in a hundred images."""

SAMPLE = 2000
"""Images of which all pairs are looked at, two million."""

_FALLBACK = 0.95  # where there are too few images to say anything
_FEW = 300  # pairs, of 25 images
_NEAR, _MOST = 1e-3, 0.1  # bounds of the share of random pairs that are closer than the nearer quantile
_PARTNERS = 20  # of one image that are closer than it; the farther quantile takes in ten times as many
_CLOSEST = 1e-3  # a distance below which rounding of float32 decides


@dataclass(frozen=True)
class Chance:
    """How many partners by chance an image has at a threshold, in a gallery of ``images``.

    ``dimension`` and ``distance`` are m and x_p of the module's text, with p = ``share``; None without enough pairs.
    """

    images: int
    pairs: int = 0
    share: float = _NEAR
    distance: float | None = None
    dimension: float | None = None

    @classmethod
    def of(cls, sample: Vectors, images: int) -> Chance:
        """From (n, D) unit vectors drawn at random from a gallery of ``images``."""
        pairs = len(sample) * (len(sample) - 1) // 2
        if pairs < _FEW:
            return cls(images, pairs)
        rows, columns = np.triu_indices(len(sample), 1)
        apart = _chord((sample @ sample.T)[rows, columns])
        near = min(max(_NEAR, _PARTNERS / images), _MOST)
        far = min(10 * near, 5 * _MOST)
        close, less = (float(value) for value in np.quantile(apart, [near, far]))
        if close <= _CLOSEST or less <= close * 1.0001:  # most of the sample is one image
            return cls(images, pairs)
        return cls(images, pairs, near, close, math.log(far / near) / math.log(less / close))

    @property
    def threshold(self) -> float:
        """The cosine for CHANCE partners; 0.95 where there are too few images to tell."""
        return self.cosine(CHANCE) if self.distance is not None else _FALLBACK

    def cosine(self, partners: float) -> float:
        """The cosine that ``partners`` of the others reach by chance, for one image."""
        if self.distance is None or self.dimension is None or self.images < 2:
            return _FALLBACK
        share = min(partners / (self.images - 1), self.share)
        cosine: float = 1 - (self.distance * (share / self.share) ** (1 / self.dimension)) ** 2 / 2
        return cosine

    def partners(self, cosine: float) -> float | None:
        """The inverse of :meth:`cosine`, for cosines closer than what the quantiles were taken at; else None."""
        if self.distance is None or self.dimension is None:
            return None
        apart = math.sqrt(max(0.0, 2 - 2 * cosine))
        if apart > self.distance:
            return None
        partners: float = self.share * (apart / self.distance) ** self.dimension * (self.images - 1)
        return partners


def _chord(cosines: Vectors) -> Vectors:
    """Euclidean distance of unit vectors."""
    distance: Vectors = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    return distance
