"""``python -m clf_serve.umap_process``: lays out vectors by UMAP, for :mod:`clf_serve.projection`.

Standard input brings n and C as two little-endian uint32, then (n, C) float32; (n, 2) float32 go to standard output.
Standard error carries the progress, one ``stage<TAB>share`` a line, and ends before the result comes. The process ends
when its standard input is closed.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE = struct.Struct("<II")
_SHARE = 0.3  # of the time that has passed, roughly, when the neighbours are found


def main() -> None:
    with suppress(AttributeError, OSError):
        os.nice(10)  # who searches comes first
    n, columns = SHAPE.unpack(sys.stdin.buffer.read(SHAPE.size))
    vectors = np.frombuffer(sys.stdin.buffer.read(4 * n * columns), "<f4").reshape(n, columns)
    threading.Thread(target=_until_nobody_waits, daemon=True).start()
    nowhere, result = os.open(os.devnull, os.O_WRONLY), os.dup(1)
    os.dup2(nowhere, 1)  # for what UMAP and its libraries print
    try:
        points = layout(vectors)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # the thread that waits would make an ordinary end a fatal error
    os.dup2(nowhere, 2)
    file = os.fdopen(result, "wb")
    file.write(points.astype("<f4").tobytes())
    file.flush()  # not closed: whoever reads closes our input at its end, and that would be another way to end
    os._exit(0)  # numba's threads need no farewell


def layout(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, C) -> (n, 2); the same for the same input.

    It starts from the first two columns, which are the principal components when they come from
    :func:`clf_serve.projection.pca`: distances between clusters mean more then, and no start is left to chance.
    """
    _say("loading UMAP", 0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        umap: Any = import_module("umap")
        start = vectors[:, :2] if vectors.shape[1] > 1 else np.column_stack([vectors, np.zeros(len(vectors))])
        start = np.ascontiguousarray(10 * start / (np.abs(start).max() or 1.0), np.float32)
        _say("finding neighbours", 0.1)
        reducer = umap.UMAP(
            n_neighbors=min(15, len(vectors) - 1),
            min_dist=0.1,
            init=start,
            random_state=0,
            n_jobs=1,
            verbose=True,
            tqdm_kwds={"file": _Epochs(), "bar_format": "{n_fmt}/{total_fmt}", "disable": False},
        )
        points: Any = reducer.fit_transform(vectors)
    return np.ascontiguousarray(points, np.float32)


class _Epochs:
    """Where the progress bar writes to."""

    def write(self, text: str) -> None:
        done, slash, total = text.strip().partition("/")
        if slash and done.isdigit() and total.isdigit():
            _say("laying out", _SHARE + (1 - _SHARE) * int(done) / int(total))

    def flush(self) -> None:
        """Nothing is held back."""


def _say(stage: str, share: float) -> None:
    print(f"{stage}\t{share:.3f}", file=sys.stderr, flush=True)


def _until_nobody_waits() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
