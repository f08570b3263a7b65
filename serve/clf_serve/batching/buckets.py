"""Into which batch sizes a number of images is cut."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

Durations: TypeAlias = tuple[tuple[int, float], ...]
"""Batch sizes, ascending from 1, and the seconds that a batch of each takes."""


def next_size(n: int, sizes: tuple[int, ...]) -> int:
    """The first of the batches that n images are cut into without padding: 13 by (1, 4, 8) is 8 + 4 + 1."""
    return max(size for size in sizes if size <= n)


def next_padded_size(n: int, durations: Durations) -> int:
    """The first of the batches that n images are cut into if the last may be padded, in the least time."""
    largest = durations[-1][0]
    return largest if n >= largest else cheapest_cut(n, durations)[0]


@lru_cache(maxsize=1024)
def cheapest_cut(n: int, durations: Durations) -> tuple[int, ...]:
    """Sizes that hold n images together in the least time, largest first; the fewest batches among equals.

    >>> cheapest_cut(5, ((1, 1.0), (4, 1.5), (8, 1.75)))
    (8,)
    >>> cheapest_cut(5, ((1, 1.0), (4, 1.5), (8, 2.75)))
    (4, 1)
    """
    best: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for images in range(1, n + 1):
        options = []
        for size, seconds in durations:
            cost, batches, cut = best[max(0, images - size)]
            options.append((cost + seconds, batches + 1, (size, *cut)))
        best.append(min(options))
    return tuple(sorted(best[n][2], reverse=True))
