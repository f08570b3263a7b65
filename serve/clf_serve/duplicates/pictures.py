"""Whether two thumbnails show the same picture, whatever its format, size or quality of encoding.

A picture is looked at as 32 x 32 fields of colour, stretched to a square; the sizes say how it was stretched.
*Candidates* are pictures whose coarse colours are close, found for all at once (:func:`code`); what is *the same* is
then decided field by field (:func:`difference`): where two pictures differ by more than coding and resampling account
for, they are two. What resampling does is in proportion to the contrast on the spot, so an edge may differ by more than
a plain wall, on which a small object that is in one picture only stands out.

The constants come from ``tests/benchmarks/duplicates.py`` on photos; serve/README.md has the table.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clf_serve.duplicates.groups import File, Partition, Progress
from clf_serve.duplicates.pairs import close_pairs
from clf_serve.runtime import usable_cores

SIDE = 32
"""Fields along a side of a :data:`Look`."""

CODE = 96
"""Length of a code: 8 x 8 of luminance, and twice 4 x 4 of colour difference."""

NEARBY = 8.0
"""Root mean square difference of coarse colours, in grey levels of 255, up to which pictures are compared. Photos
scaled to a quarter stay below 7; of 1.5 million pairs of photos, the six below 8 are copies of one another."""

Look: TypeAlias = NDArray[np.uint8]
"""(SIDE, SIDE, 3)."""
Codes: TypeAlias = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_FLOOR = 4.0  # grey levels that a plain field may differ by
_SHARE = 0.35  # of the contrast on the spot that a field may differ by
_FINE = 1.25  # so much more is allowed in fields of a quarter of the area, which average fewer pixels
_READ = 512  # thumbnails on their way at a time
_KEPT = 20_000  # looks of 3 KiB each, while pairs are compared
_ASPECT = 0.02  # relative difference of aspect ratios, beside that of rounding to whole pixels


def look(thumbnail: bytes) -> Look | None:
    """A thumbnail as fields of colour; None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(thumbnail)) as image:
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    except (OSError, ValueError):
        return None


def code(fields: Look) -> Codes:
    """(CODE,): the Euclidean distance of two is the root mean square difference of their coarse colours."""
    colours = _means(fields.astype(np.float32), 4)  # (8, 8, 3)
    luma = colours @ _LUMA
    blue, red = colours[..., 2] - luma, colours[..., 0] - luma
    parts = [(luma - 128) / 8, _means(blue[..., None], 2) / 8, _means(red[..., None], 2) / 8]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def distances(codes: Codes) -> tuple[Codes, Codes]:
    """(n, CODE) -> two (n, CODE + 2) whose inner products are the squared distances, negative, for a matrix product."""
    squares = (codes**2).sum(axis=1, keepdims=True)
    ones = np.ones_like(squares)
    return np.hstack([2 * codes, -squares, -ones]), np.hstack([codes, ones, squares])


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) may be of one picture, scaled and rounded to whole pixels."""
    if min(*one, *other) < 1:
        return False
    rounding = 0.5 / min(one) + 0.5 / min(other)
    return bool(abs(np.log(one[0] * other[1] / (one[1] * other[0]))) <= _ASPECT + rounding)


def difference(one: Look, other: Look) -> float:
    """Largest difference of two pictures, as a multiple of what coding and resampling account for; at most 1: the same.

    The mean absolute difference of each of 8 x 8 and of 16 x 16 fields is held against the contrast there.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    apart = np.abs(_means(a - b, 2))  # (16, 16, 3): of the means, so that noise averages out
    coarse = np.abs(_means(a - b, 4)).mean(axis=-1)  # (8, 8)
    allowed = _FLOOR + _SHARE * np.maximum(_contrast(a), _contrast(b))  # (8, 8)
    fine = apart.mean(axis=-1) / np.kron(allowed, np.ones((2, 2), np.float32))
    return float(max((coarse / allowed).max(), fine.max() / _FINE))


def _contrast(fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation of the grey levels within each of 8 x 8 fields."""
    grey = fields.mean(axis=-1)[..., None]
    mean = _means(grey, 4)
    spread: NDArray[np.float32] = np.sqrt(np.maximum(_means(grey**2, 4) - mean**2, 0))[..., 0]
    return spread


def _means(fields: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(S, S, C) -> (S / side, S / side, C), means of side x side fields."""
    n = len(fields) // side
    means: NDArray[np.float32] = fields.reshape(n, side, n, side, -1).mean(axis=(1, 3))
    return means


def same_pictures(files: Sequence[File], thumbnail: Callable[[int], bytes], progress: Progress) -> list[list[int]]:
    """Positions of the files that show one picture, in lists of two or more.

    A picture joins others when it is the same as one of them *and* as the first of them, which is what would be kept:
    a slow pan, each frame of which looks like the one before, does not become one picture.

    Args:
        files: the best to keep first; without a thumbnail they are like no other.
        thumbnail: of an id; empty where there is none. Called from several threads.
    """
    progress.begin("looking at pictures", len(files), "images")
    positions, codes = _codes(files, thumbnail, progress)
    progress.begin("comparing pictures", len(positions) * (len(positions) + 1) // 2, "pairs")
    pairs = close_pairs(*distances(codes), -(NEARBY**2), progress.advance)

    @lru_cache(maxsize=_KEPT)
    def seen(position: int) -> Look | None:
        return look(thumbnail(files[position].id))

    def same(one: int, other: int) -> bool:
        if not same_shape((files[one].width, files[one].height), (files[other].width, files[other].height)):
            return False
        a, b = seen(one), seen(other)
        return a is not None and b is not None and difference(a, b) <= 1

    groups = Partition(len(files))
    for i, j in pairs:
        one, other = positions[i], positions[j]
        if groups.of(one) != groups.of(other) and same(one, other):
            firsts = groups.first(one), groups.first(other)
            if firsts == (one, other) or same(*firsts):
                groups.merge(groups.of(one), groups.of(other))
    return groups.several()


def _codes(files: Sequence[File], thumbnail: Callable[[int], bytes], progress: Progress) -> tuple[list[int], Codes]:
    """Of the files whose thumbnail can be decoded: positions (n), and (n, CODE)."""

    def read(file: File) -> Codes | None:
        fields = look(thumbnail(file.id))
        return None if fields is None else code(fields)

    positions: list[int] = []
    codes: list[Codes] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for part in _parts(range(len(files))):
            found = pool.map(read, (files[position] for position in part))
            for position, row in zip(part, found, strict=True):
                if row is not None:
                    positions.append(position)
                    codes.append(row)
            progress.advance(len(part))
    return positions, np.stack(codes) if codes else np.empty((0, CODE), np.float32)


def _parts(positions: range) -> Iterator[range]:
    return (positions[start : start + _READ] for start in range(0, len(positions), _READ))
