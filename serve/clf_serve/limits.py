"""What one request may cost, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clf.images import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class ServeLimits:
    max_bytes: int = 64 * 2**20
    """Of a request's body."""
    max_bytes_together: int = 1024 * 2**20
    """Of all bodies being read or worked on."""
    max_pixels: int = DEFAULT_LIMITS.max_pixels
    """Of one image, as its header states them."""
    max_images: int = 256
    """Of one request."""
    max_k: int = 1000
    """Neighbours of one search."""
    queue: int = 1024
    """Images inside the server at a time, for each model."""
    timeout: float = 30.0
    """Seconds from the first byte of a request to its answer."""
    allow_urls: bool = False
    """Whether images may be named by URL, which the server then fetches."""
    writable: bool = False
    """Whether callers may change the galleries."""

    @property
    def image(self) -> Limits:
        return Limits(max_bytes=self.max_bytes, max_pixels=self.max_pixels)


class Budget:
    """Bytes that all request bodies together may hold in memory."""

    def __init__(self, total: int) -> None:
        self._left = total

    @contextmanager
    def share(self) -> Iterator[Callable[[int], bool]]:
        """Yields a function that takes n more bytes, or says False; all are given back at the end."""
        taken = 0

        def take(n: int) -> bool:
            nonlocal taken
            if n > self._left:
                return False
            self._left -= n
            taken += n
            return True

        try:
            yield take
        finally:
            self._left += taken
