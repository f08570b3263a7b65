"""The three structures: every vector compared, a graph, inverted lists. None changes after it was built.

Vectors lie at positions 0 .. n - 1; what is found are positions. Scores are inner products with the stored codes: exact
for ``Flat`` and for codes ``fp32``, else off by no more than ``error``, because |q . x - q . y| <= |x - y| for unit q.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clf_serve.index.effort import Effort
from clf_serve.index.library import Ids, Vectors, best, library, products, search, single_threaded
from clf_serve.index.plan import FLAT_VALUES, LINKS

ROUNDING = 1e-5
"""Inner products of unit vectors in fp32 differ by less between one way of summing and another."""
_CHUNK = 4096  # rows decoded at a time: they stay in the processor's cache
_SCATTERED = 16  # decoding rows one by one pays while they are fewer than one in this many
_EXPECTED = 16  # allowed rows in the nearest lists, were they allowed at random
_AVOIDED = 4  # so many times fewer of them are no accident
_TYPES = {"sq8": "QT_8bit", "sq6": "QT_6bit", "sq4": "QT_4bit"}


class Rows:
    """Some of the positions of a base: ascending, at least one, none twice."""

    def __init__(self, positions: Ids, total: int) -> None:
        self.positions = positions
        self.total = total
        self.per_list: Ids | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def selector(self) -> Any:
        mask = np.zeros(self.total, np.bool_)
        mask[self.positions] = True
        return library().IDSelectorBitmap(np.packbits(mask, bitorder="little"))


class Base(Protocol):
    kind: str
    codes: str
    error: float
    ids: Ids
    """(n,) by position."""

    def near(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        """About the k best; fewer when it looked too narrowly. ``query`` is (1, D)."""
        ...

    def scan(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        """The k best of all rows by the codes, and up to k + 64 more that the codes can hardly tell from them."""
        ...

    def scores(self, query: Vectors, rows: Ids | None) -> Vectors:
        """(m,), by the codes, of these positions or of all."""
        ...


class Flat:
    """Every vector is compared."""

    kind, codes, error = "flat", "fp32", ROUNDING

    def __init__(self, ids: Ids, vectors: Vectors) -> None:
        self.ids, self.vectors = ids, vectors

    def near(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        return self.scan(query, k, rows)

    def scan(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        scores = self.scores(query, None if rows is None else rows.positions)
        found = best(scores, k, ROUNDING)
        return found if rows is None else rows.positions[found], scores[found]

    def scores(self, query: Vectors, rows: Ids | None) -> Vectors:
        if rows is not None and len(rows) * 4 < len(self.ids):
            return products(library(), self.vectors[rows], query)
        scores = products(library(), self.vectors, query)
        return scores if rows is None else scores[rows]


class _Coded:
    """What the two structures over a FAISS storage share."""

    def __init__(self, ids: Ids, codes: str, error: float, storage: Any) -> None:
        self.faiss = library()
        self.ids, self.codes, self.error, self.storage = ids, codes, error, storage
        self._noise = max(ROUNDING, 2 * error / math.sqrt(storage.d))

    def scan(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        count = len(self.ids) if rows is None else len(rows)
        wanted = min(2 * k + 64, count)
        if rows is not None and count * _SCATTERED < len(self.ids):
            positions, scores = self._among(query, wanted, rows.positions)
        else:
            parameters = None if rows is None else self.faiss.SearchParameters(sel=rows.selector)
            positions, scores = search(self.storage, self.faiss, query, wanted, parameters)
        found = best(scores, k, self._noise)
        return positions[found], scores[found]

    def _among(self, query: Vectors, k: int, rows: Ids) -> tuple[Ids, Vectors]:
        """The k best of few rows: by an index of their codes, which compares in a third of the time of decoding."""
        if self.codes == "fp32" or not hasattr(self.storage, "add_sa_codes_c"):  # which older FAISS lack
            scores = self.scores(query, rows)
            found = np.argsort(-scores, kind="stable")[:k]
            return rows[found], scores[found]
        part = self.faiss.IndexScalarQuantizer(self.storage.d, self.storage.sq.qtype, self.faiss.METRIC_INNER_PRODUCT)
        part.sq, part.is_trained = self.storage.sq, True
        part.add_sa_codes(np.ascontiguousarray(self._code_rows[rows]))
        places, scores = search(part, self.faiss, query, k, None)
        return rows[places], scores

    def scores(self, query: Vectors, rows: Ids | None) -> Vectors:
        count = len(self.ids) if rows is None else len(rows)
        scores = np.empty(count, np.float32)
        single_threaded(self.faiss)
        for start in range(0, count, _CHUNK):
            part = slice(start, min(start + _CHUNK, count))
            codes = self._code_rows[part if rows is None else rows[part]]
            scores[part] = products(self.faiss, self.storage.sa_decode(np.ascontiguousarray(codes)), query)
        return scores

    @cached_property
    def _code_rows(self) -> NDArray[np.uint8]:
        size = self.storage.code_size
        rows: NDArray[np.uint8] = self.faiss.rev_swig_ptr(self.storage.codes.data(), len(self.ids) * size)
        return rows.reshape(len(self.ids), size)


class Graph(_Coded):
    """A hierarchical navigable small world (Malkov and Yashunin 2016, arXiv 1603.09320)."""

    kind = "hnsw"

    def __init__(self, ids: Ids, codes: str, error: float, index: Any, effort: Effort) -> None:
        super().__init__(ids, codes, error, library().downcast_index(index.storage))
        self.index, self.effort = index, effort
        self._known: dict[int, Any] = {}

    def near(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        if rows is None:
            parameters = self._known.get(k)
            if parameters is None:
                parameters = self._known[k] = self._parameters(k, None)
            return search(self.index, self.faiss, query, min(k, len(self.ids)), parameters)
        rank = k * len(self.ids) / len(rows)
        return search(self.index, self.faiss, query, min(k, len(rows)), self._parameters(rank, rows.selector))

    def with_effort(self, effort: Effort) -> Graph:
        return Graph(self.ids, self.codes, self.error, self.index, effort)

    def _parameters(self, rank: float, selector: Any) -> Any:
        width = max(self.effort.width(rank), int(rank))
        return self.faiss.SearchParametersHNSW(efSearch=width, sel=selector)


class Lists(_Coded):
    """Inverted lists of 4-bit product codes compared in registers (Andre et al. 2017, arXiv 1704.07355), then refined.

    Of what the lists hold, the best ``effort.factor`` x k are scored again by finer codes.
    """

    kind = "ivf"

    def __init__(self, ids: Ids, codes: str, error: float, index: Any, storage: Any, effort: Effort) -> None:
        super().__init__(ids, codes, error, storage)
        self.index, self.effort = index, effort
        self.refined = self.faiss.IndexRefine(index, storage)
        self._known: dict[int, Any] = {}

    def near(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Ids, Vectors]:
        if rows is None:
            parameters = self._known.get(k)
            if parameters is None:
                parameters = self._known[k] = self._parameters(self.effort.width(k), None)
            return search(self.refined, self.faiss, query, min(k, len(self.ids)), parameters)
        probes = self._probes(query, k, rows)
        if not probes:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        parameters = self._parameters(probes, rows.selector)
        return search(self.refined, self.faiss, query, min(k, len(rows)), parameters)

    def with_effort(self, effort: Effort) -> Lists:
        return Lists(self.ids, self.codes, self.error, self.index, self.storage, effort)

    def _parameters(self, probes: int, selector: Any) -> Any:
        probes = min(probes, int(self.index.nlist))
        within = self.faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        return self.faiss.IndexRefineSearchParameters(k_factor=self.effort.factor, base_index_params=within)

    def _probes(self, query: Vectors, k: int, rows: Rows) -> int:
        """Lists to visit until k allowed rows are as surely found as k / share ones are without a filter.

        The share of allowed rows is that of the lists nearest to the query. A filter that avoids those puts the
        neighbours where many vectors are about as far, and codes cannot tell them apart: 0, to have all rows compared.
        """
        if rows.per_list is None:
            rows.per_list = np.bincount(self._list_of[rows.positions], minlength=self.index.nlist)
        order, _ = search(self.index.quantizer, self.faiss, query, self.index.nlist, None)
        allowed, seen = np.cumsum(rows.per_list[order]), np.cumsum(self._sizes[order])
        expected = seen * (len(rows) / len(self.ids))
        first = min(int(np.searchsorted(expected, _EXPECTED)), len(order) - 1)
        if allowed[first] < expected[first] / _AVOIDED:
            return 0
        ranks = k * seen / np.maximum(allowed, 1)
        enough = (np.arange(1, len(order) + 1) >= self.effort.widths(ranks)) & (allowed >= k)
        return int(np.argmax(enough)) + 1 if enough.any() else int(self.index.nlist)

    @cached_property
    def _sizes(self) -> Ids:
        return np.bincount(self._list_of, minlength=self.index.nlist)

    @cached_property
    def _list_of(self) -> NDArray[np.int32]:
        """(n,): the list of each position."""
        found = np.empty(len(self.ids), np.int32)
        lists = self.index.invlists
        for number in range(self.index.nlist):
            if size := lists.list_size(number):
                found[self.faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
        return found


def empty_storage(faiss: Any, codes: str, dim: int, least: Vectors, most: Vectors) -> Any:
    """A scalar quantizer of the range from ``least`` to ``most``, (D,) each."""
    kind = getattr(faiss.ScalarQuantizer, _TYPES[codes])
    storage = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
    storage.train(np.stack([least, most]))
    return storage


def empty_graph(faiss: Any, codes: str, dim: int, least: Vectors, most: Vectors) -> Any:
    if codes == "fp32":
        index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        kind = getattr(faiss.ScalarQuantizer, _TYPES[codes])
        index = faiss.IndexHNSWSQ(dim, kind, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.train(np.stack([least, most]))
    index.hnsw.efConstruction = 80
    return index


def rows_to_scan(total: int, dim: int) -> int:
    """So many rows of a filter are compared one by one about as quickly as an index finds its way among them."""
    return max(FLAT_VALUES // 2 // dim, total // 50)
