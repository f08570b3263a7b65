"""What decoding fast costs: embeddings of the same files through :func:`clf.images.prepare` and its fast relative.

Needs no torch: the embedding function is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clf.errors import ImageError
from clf.images import DEFAULT_LIMITS, Limits, find_images, prepare, prepare_fast, read

SAMPLES = 64
Embed: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, S, S, 3) uint8 -> (n, D) unit vectors."""


@dataclass(frozen=True)
class DecodingLoss:
    """What the fast preprocessing changes, on the files it was tried on."""

    files: int
    """Compared."""
    scaled: int
    """Of these, those that came out different: JPEGs large enough to be decoded at a fraction of their size."""
    min_cosine: float
    """Least cosine of a file's two embeddings, over all files."""
    mean_cosine: float
    """Over the ``scaled`` files; 1 if there are none."""
    speed_ratio: float
    """Times as fast as exact decoding and resizing: all files by both in turn, processor time summed."""

    def __str__(self) -> str:
        return (
            f"{self.scaled} of {self.files} files come out different, least cosine {self.min_cosine:.4f}, mean "
            f"{self.mean_cosine:.4f}, {self.speed_ratio:.1f} times as fast"
        )


def compare_decoding(embed: Embed, size: int, sources: Sequence[Path], limits: Limits = DEFAULT_LIMITS) -> DecodingLoss:
    """Compares at most 64 of the files, evenly spaced. Each is read once, before any clock runs; files that cannot be
    decoded are left out.

    Args:
        size: side of the model's square input.

    Raises:
        ImageError: none of the files can be decoded.
    """
    cosines, scaled, seconds = [], [], np.zeros(2)
    for i, path in enumerate(spread(sources)):
        try:
            data = read(path, limits)
            exact, fast, spent = _both(data, size, limits, exact_first=i % 2 == 0)
        except ImageError:
            continue
        seconds += spent
        ours, theirs = (embed(pixels[None])[0].astype(np.float64) for pixels in (exact, fast))
        cosines.append(float(ours @ theirs))
        scaled.append(not np.array_equal(exact, fast))
    if not cosines:
        raise ImageError(
            f"none of the {len(sources)} files to measure fast decoding on is an image that can be decoded"
        )
    changed = [cosine for cosine, differs in zip(cosines, scaled, strict=True) if differs]
    return DecodingLoss(
        files=len(cosines),
        scaled=len(changed),
        min_cosine=min(cosines),
        mean_cosine=float(np.mean(changed)) if changed else 1.0,
        speed_ratio=float(seconds[0] / max(seconds[1], 1e-9)),
    )


def compare_decoding_in(embed: Embed, size: int, folder: Path, limits: Limits = DEFAULT_LIMITS) -> DecodingLoss:
    """:func:`compare_decoding` of the images below a folder.

    Raises:
        ImageError: there is no such folder, or no image in it can be decoded.
    """
    paths = find_images(folder)
    if not paths:
        raise ImageError(
            f"{folder} holds no images to measure fast decoding on: name a folder of photos as your users send"
        )
    return compare_decoding(embed, size, paths, limits)


def spread(items: Sequence[Path], most: int = SAMPLES) -> list[Path]:
    """At most ``most`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def _both(
    data: bytes, size: int, limits: Limits, *, exact_first: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[float, float]]:
    """Exact pixels, fast pixels, and the seconds of each. The caller alternates the order: the second is at home."""
    ways = [prepare, prepare_fast] if exact_first else [prepare_fast, prepare]
    pixels, seconds = {}, {}
    for way in ways:
        start = time.thread_time()
        pixels[way] = way(data, size, limits)
        seconds[way] = time.thread_time() - start
    return pixels[prepare], pixels[prepare_fast], (seconds[prepare], seconds[prepare_fast])
