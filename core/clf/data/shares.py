"""How processes divide the filling of a cache: each takes shares of the rows under locks, until none is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clf.data.decode import CHUNK
from clf.data.locks import FileLock, try_lock

SHARES = 64


class Share:
    """Rows that this process fills now; the lock ends with the last chunk, not with the last result that is awaited."""

    def __init__(self, lock: FileLock, chunks: int) -> None:
        self.lock = lock
        self._left = chunks
        self._guard = threading.Lock()

    def finish_one(self) -> None:
        with self._guard:
            self._left -= 1
            if self._left == 0:
                self.lock.release()


def claims(
    folder: Path, files: NDArray[np.int64], rows: NDArray[np.int64]
) -> Generator[tuple[Share, NDArray[np.int64]], None, None]:
    """Files to fill in, as chunks whose rows lie in one block: first those of free shares, then those that others held.

    The ranks of one machine begin at different shares. A share that another process held comes too when that process
    is through with it or gone, for there may be something left to do.

    Args:
        folder: where the locks are.
        files: (m,) numbers of files.
        rows: (m,) the row of each.

    Raises:
        OSError: the folder cannot be written or locked.
    """
    parts = {}
    for share in range(SHARES):
        mine = (rows // CHUNK) % SHARES == share
        if mine.any():
            order = np.argsort(rows[mine], kind="stable")
            block = rows[mine][order] // CHUNK
            parts[share] = np.split(files[mine][order], np.flatnonzero(np.diff(block)) + 1)
    first = int(os.environ.get("LOCAL_RANK", "0")) * SHARES // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    waiting = sorted(parts, key=lambda share: (share - first) % SHARES)
    taken: list[Share] = []
    try:
        while waiting:
            busy = []
            for share in waiting:
                lock = try_lock(folder / f"share-{share:02d}.lock")
                if lock is None:
                    busy.append(share)
                    continue
                taken.append(Share(lock, len(parts[share])))
                for chunk in parts[share]:
                    yield taken[-1], chunk
            if len(busy) == len(waiting):
                time.sleep(0.1)
            waiting = busy
    finally:
        for each in taken:
            each.lock.release()
