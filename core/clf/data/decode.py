"""Image files to canvases in threads: each file is read once and decoded once, and hashed from the bytes read.

Pillow and torch give up Python's interpreter lock while they decode and resample, numpy while it copies, and hashlib
and zlib while they sum, so that threads use the cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image

from clf import images
from clf.errors import DataError, ImageError

CHUNK = 16
"""Files that a thread takes at a time."""
_MOST_THREADS = 32
_AHEAD = 2  # chunks a thread that wait in line, so that no thread runs dry

J = TypeVar("J")
R = TypeVar("R")


class UnreadableError(ImageError):
    """A file cannot be read just now; nothing is said of what it holds."""


@dataclass(frozen=True)
class Picture:
    """A decoded file."""

    path: Path
    image: Image
    sha256: bytes
    """Of the file's bytes."""

    def canvas(self, out: NDArray[np.uint8]) -> None:
        """Writes the central square into ``out`` (3, side, side), from which views are cropped.

        Bicubic with antialiasing as :meth:`clean`, but by torch, which takes a third of Pillow's time where there is
        AVX2. What lies beside the square has no part in its margin, and some pixels come out a level or two apart.

        Raises:
            DataError: there is no memory for it.
        """
        width, height = self.image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        with self._in_memory():
            pixels = torch.from_numpy(np.array(self.image.crop((left, top, left + side, top + side))))
            planes = pixels.permute(2, 0, 1)
            if planes.shape != out.shape:
                # a batch of one with this stride makes torch write the result by planes, which spares a transposition
                planes = F.interpolate(planes[None], size=out.shape[1:], mode="bicubic", antialias=True)[0]
            out[...] = planes.numpy()

    def clean(self, out: NDArray[np.uint8]) -> None:
        """Writes what :func:`clf.images.prepare` gives into ``out`` (3, side, side).

        Raises:
            DataError: there is no memory for it.
        """
        with self._in_memory():
            square = images.square(self.image, out.shape[1])
            for plane, channel in zip(out, "RGB", strict=True):  # by planes in half the time of a transposed copy
                plane[...] = np.frombuffer(square.tobytes("raw", channel), np.uint8).reshape(plane.shape)

    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch has no class for it
                raise
            raise _no_memory(f"{self.path} cannot be resized for lack of memory") from error


def decode(path: Path) -> Picture:
    """A file as :func:`clf.images.decode` sees it, with its checksum.

    Raises:
        UnreadableError: the file is missing or cannot be read, or Pillow's decoder had no memory for it.
        ImageError: it is no image, or a damaged one.
        DataError: there is no memory for it. To skip it would make the data set depend on the machine.
    """
    try:
        data = images.read(path)
    except ImageError as error:
        raise UnreadableError(str(error)) from error
    try:
        return Picture(path, images.decode(data), hashlib.sha256(data).digest())
    except ImageError as error:
        message = str(error).replace("the image", str(path), 1)
        if isinstance(error.__cause__, MemoryError):
            raise _no_memory(message) from error
        raise (UnreadableError if "out of memory" in message else ImageError)(message) from error


def _no_memory(message: str) -> DataError:
    return DataError(f"{message}: free some memory, or set data.workers lower")


def file_states(root: Path, names: Sequence[str], workers: Workers) -> NDArray[np.int64]:
    """(n, 3) size, time of change, and time when the file or its properties changed, in nanoseconds; -1 where unknown.

    The last cannot be set by programs, so that a file that was replaced by one of the same size and time is noticed.
    It is 0 on Windows, where it means something else.
    """

    def ask(chunk: Sequence[int]) -> NDArray[np.int64]:
        found = np.full((len(chunk), 3), -1, np.int64)
        for j, i in enumerate(chunk):
            with contextlib.suppress(OSError):
                stat = os.stat(f"{root}/{names[i]}")  # noqa: PTH116  a Path would cost more than the call
                found[j] = stat.st_size, stat.st_mtime_ns, 0 if os.name == "nt" else stat.st_ctime_ns
        return found

    return np.concatenate(list(workers.over(ask, len(names), 1024)))


def default_workers() -> int:
    """Threads where ``data.workers`` is not set: this process's part of the cores, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _MOST_THREADS))


class Workers:
    """Threads that decode. They end when this object is gone."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or default_workers()
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="clf-decode")

    def map(self, function: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Results in the order of the jobs; the jobs are asked for as threads get free, and dropped after an error."""
        running: deque[Future[R]] = deque()
        try:
            for job in jobs:
                running.append(self._pool.submit(function, job))
                if len(running) > (1 + _AHEAD) * self.count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            for future in running:
                if not future.cancelled():
                    future.exception()  # waits: a thread may still be writing

    def over(self, function: Callable[[Sequence[int]], R], n: int, chunk: int = CHUNK) -> Iterator[R]:
        """``function`` over the numbers 0 to n - 1 in chunks."""
        return self.map(function, (range(start, min(start + chunk, n)) for start in range(0, n, chunk)))
