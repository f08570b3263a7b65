"""FAISS as the index uses it: imported late, one thread for a single query, all of them for building."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clf.errors import missing_extra
from clf_serve.cores import usable_cores

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

_SMALL = 4_000_000

_thread = threading.local()


def library() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise missing_extra("faiss", "serve", "searching a gallery") from None
    return faiss


def single_threaded(faiss: Any) -> None:
    """Keeps OpenMP out of the calling thread: searches run beside each other, and a team per query only waits."""
    if not getattr(_thread, "single", False):
        faiss.omp_set_num_threads(1)  # of the calling thread only
        _thread.single = True


@contextmanager
def threads_for(faiss: Any, values: int) -> Iterator[None]:
    """All cores for building an index of that many numbers, or one where a team would mostly wait for itself."""
    faiss.omp_set_num_threads(usable_cores() if values > _SMALL else 1)
    _thread.single = False
    try:
        yield
    finally:
        faiss.omp_set_num_threads(1)
        _thread.single = True


def read(faiss: Any, path: Path) -> Any:
    """A FAISS index whose large arrays are mapped where this FAISS can (1.11 and newer), else read."""
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", None)
    if flag is not None:
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError:
            pass  # a file system that cannot map; the checksum was right, so the plain way decides
    return faiss.read_index(str(path))


def search(index: Any, faiss: Any, query: Vectors, k: int, parameters: Any) -> tuple[Ids, Vectors]:
    """Labels and scores of one query, (1, D), best first, without FAISS's padding."""
    scores = np.empty((1, k), np.float32)
    labels = np.empty((1, k), np.int64)
    single_threaded(faiss)
    index.search_c(1, faiss.swig_ptr(query), k, faiss.swig_ptr(scores), faiss.swig_ptr(labels), parameters)
    found, values = labels[0], scores[0]
    if found[-1] < 0:  # padding stands at the end
        count = int(np.count_nonzero(found >= 0))
        return found[:count], values[:count]
    return found, values


def products(faiss: Any, vectors: Vectors, query: Vectors) -> Vectors:
    """Inner products, (n,), by one thread, where BLAS would start a team; the same for equal rows."""
    rows = np.ascontiguousarray(vectors)
    found = np.empty(len(rows), np.float32)
    if len(rows):
        pointers = faiss.swig_ptr(found), faiss.swig_ptr(query), faiss.swig_ptr(rows)
        faiss.fvec_inner_products_ny(*pointers, query.size, len(rows))
    return found


def best(scores: Vectors, k: int, slack: float) -> Ids:
    """Positions that may be among the k best when each score may be wrong by ``slack``: at least k, at most 2k + 64."""
    if k >= len(scores):
        return np.arange(len(scores))
    worst = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= worst - 2 * slack)
    if len(found) > 2 * k + 64:  # many equal ones: those of the lowest positions stay
        found = found[np.lexsort((found, -scores[found]))[: 2 * k + 64]]
    return found
