"""Makes a base: samples and holds back queries, trains, adds, and tunes it to the recall that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from clf_serve.index.bases import ROUNDING, Base, Flat, Graph, Lists, empty_graph, empty_storage
from clf_serve.index.effort import Effort
from clf_serve.index.library import Ids, Vectors, library, threads_for
from clf_serve.index.plan import RECALL_K, Plan, subquantizers
from clf_serve.index.recall import QUERIES, Truth, timed
from clf_serve.index.view import margin

Batches = Callable[[], Iterable[tuple[Ids, Vectors]]]
Progress = Callable[[str, int, int], None]

_PER_LIST = 64  # vectors to learn a list's centre from
_LEAST_SAMPLE = 65_536
_RANKS = (RECALL_K, 64, 256)
_FACTORS = (1, 2, 4, 8, 16, 32)
_WIDEST_GRAPH = 2048
_NEARLY = 0.003  # of neighbours beyond the tenth, less recall than the best that is worth no wider search
_PLATEAU = 0.0005  # a doubled width that gains no more recall than this has found what there is


@dataclass
class Built:
    base: Base
    truth: Truth | None
    recall: float
    """Recall@10 against exact search, of queries that the structure had not been given."""


@dataclass
class _Sample:
    """What the first pass keeps: vectors to train on, queries held back from that, and the range of each dimension."""

    training: Vectors
    queries: Vectors
    own: Ids
    least: Vectors
    most: Vectors


def build(batches: Batches, n: int, plan: Plan, dim: int, progress: Progress) -> Built:
    """Reads the vectors once for ``flat``, else twice; what a second reading adds or lacks does no harm."""
    if plan.kind == "flat":
        ids, vectors = _gather(batches(), dim, n, progress)
        return Built(Flat(ids, vectors), None, 1.0)
    sample = _sample(batches(), n, plan, dim, progress)
    if sample is None:
        return Built(Flat(np.empty(0, np.int64), np.empty((0, dim), np.float32)), None, 1.0)
    faiss = library()
    with threads_for(faiss, n * dim):
        structure = _Structure(faiss, plan, dim, sample, progress)
        truth = Truth.start(sample.queries, sample.own)
        for done, (ids, vectors) in _counted(batches()):
            keep = ~np.isin(ids, sample.own)
            structure.add(ids[keep], np.ascontiguousarray(vectors[keep], np.float32))
            truth.add(ids[keep], vectors[keep])
            progress("adding", min(done, n), n)
        effort, recall = _tune(structure.base(), truth, plan.target, progress)
        structure.add(sample.own, sample.queries)
        truth.add(sample.own, sample.queries)
    return Built(structure.base().with_effort(effort), truth, recall)


class _Structure:
    """A graph or inverted lists while it grows."""

    def __init__(self, faiss: Any, plan: Plan, dim: int, sample: _Sample, progress: Progress) -> None:
        self.faiss, self.plan, self.error = faiss, plan, ROUNDING
        self.ids: list[Ids] = []
        self.count = 0
        progress("training", 0, 1)
        if plan.kind == "hnsw":
            self.index = empty_graph(faiss, plan.codes, dim, sample.least, sample.most)
            self.storage = faiss.downcast_index(self.index.storage)
        else:
            self.index = _trained_lists(faiss, plan.lists, dim, sample.training)
            self.storage = empty_storage(faiss, plan.codes, dim, sample.least, sample.most)
        progress("training", 1, 1)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        if not len(ids):
            return
        self.index.add(vectors)
        if self.plan.kind == "ivf":
            self.storage.add(vectors)
        self.ids.append(ids)
        if self.plan.codes != "fp32":
            size, end = self.storage.code_size, self.count + len(ids)
            codes = self.faiss.rev_swig_ptr(self.storage.codes.data(), end * size)[self.count * size :]
            decoded = self.storage.sa_decode(np.ascontiguousarray(codes.reshape(len(ids), size)))
            worst = float(np.linalg.norm(decoded - vectors, axis=1).max())
            self.error = max(self.error, worst + ROUNDING)
        self.count += len(ids)

    def base(self) -> Graph | Lists:
        ids, effort = np.concatenate(self.ids), Effort(((1, 1),))
        if self.plan.kind == "hnsw":
            return Graph(ids, self.plan.codes, self.error, self.index, effort)
        return Lists(ids, self.plan.codes, self.error, self.index, self.storage, effort)


def _counted(batches: Iterable[tuple[Ids, Vectors]]) -> Iterator[tuple[int, tuple[Ids, Vectors]]]:
    done = 0
    for ids, vectors in batches:
        done += len(ids)
        yield done, (np.asarray(ids, np.int64), vectors)


def _gather(batches: Iterable[tuple[Ids, Vectors]], dim: int, n: int, progress: Progress) -> tuple[Ids, Vectors]:
    ids, parts = [np.empty(0, np.int64)], [np.empty((0, dim), np.float32)]
    for done, (names, vectors) in _counted(batches):
        ids.append(names)
        parts.append(np.asarray(vectors, np.float32))
        progress("adding", min(done, n), n)
    return np.concatenate(ids), np.concatenate(parts)


def _sample(batches: Iterable[tuple[Ids, Vectors]], n: int, plan: Plan, dim: int, progress: Progress) -> _Sample | None:
    rng = np.random.default_rng(0)
    held = min(QUERIES, n // 10)
    wanted = min(n, max(_PER_LIST * plan.lists, _LEAST_SAMPLE) + held) if plan.kind == "ivf" else held
    chosen = rng.permutation(n)[:wanted]
    queries = np.zeros(n, np.bool_)
    queries[chosen[:held]] = True
    chosen.sort()
    least, most = np.full(dim, np.inf, np.float32), np.full(dim, -np.inf, np.float32)
    picked: list[Vectors] = []
    names: list[Ids] = []
    asked: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    for done, (ids, vectors) in _counted(batches):
        if len(ids):
            least, most = np.minimum(least, vectors.min(0)), np.maximum(most, vectors.max(0))
        first = done - len(ids)
        rows = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, done)]
        picked.append(vectors[rows - first])
        names.append(ids[rows - first])
        asked.append(queries[rows])
        progress("sampling", min(done, n), n)
    if not sum(map(len, picked)):
        return None
    vectors, mask = np.concatenate(picked).astype(np.float32, copy=False), np.concatenate(asked)
    return _Sample(vectors[~mask], vectors[mask], np.concatenate(names)[mask], least, most)


def _trained_lists(faiss: Any, lists: int, dim: int, sample: Vectors) -> Any:
    quantizer = faiss.IndexFlatIP(dim)
    lists = max(1, min(lists, len(sample) // 4))
    index = faiss.IndexIVFPQFastScan(quantizer, dim, lists, subquantizers(dim), 4, faiss.METRIC_INNER_PRODUCT)
    quantizer.this.disown()
    index.own_fields = True
    index.cp.niter = 10
    index.cp.max_points_per_centroid = _PER_LIST
    for learned in (index.cp, index.pq.cp):
        learned.min_points_per_centroid = 1  # or FAISS prints warnings
    index.train_q1(len(sample), faiss.swig_ptr(sample), False, faiss.METRIC_INNER_PRODUCT)
    # the codes' hundreds of small k-means take one thread a second, and a team of them several
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    index.train(sample)
    faiss.omp_set_num_threads(threads)
    return index


def _tune(base: Graph | Lists, truth: Truth, target: float, progress: Progress) -> tuple[Effort, float]:
    """The least time that reaches the target, a little surpassed as other queries differ; else the best there is."""
    aim = target + (1 - target) / 4
    factors = _FACTORS if isinstance(base, Lists) else (1,)
    widest = int(base.index.nlist) if isinstance(base, Lists) else _WIDEST_GRAPH
    trials: list[tuple[float, float, int, int]] = []  # seconds, recall, width, factor
    reached = 0
    for step, factor in enumerate(factors):
        progress("tuning", step, len(factors) + len(_RANKS))
        found = _widen(base, truth, RECALL_K, factor, aim, widest)
        trials += found
        reached += found[-1][1] >= aim
        if reached == 2:
            break  # still more candidates to score only take longer
    good = [trial for trial in trials if trial[1] >= aim]
    _, reached_recall, width, factor = (
        min(good) if good else max(trials, key=lambda trial: (round(trial[1], 3), -trial[0]))
    )
    steps = [(RECALL_K + margin(RECALL_K), width)]
    for step, rank in enumerate(_RANKS[1:], len(factors)):
        progress("tuning", step, len(factors) + len(_RANKS))
        if len(base.ids) >= 4 * rank:
            tried = _widen(base, truth, rank, factor, aim, widest, width)
            enough = min(aim, max(recall for _, recall, _, _ in tried) - _NEARLY)
            wider = next(width for _, recall, width, _ in tried if recall >= enough)
            steps.append((rank + margin(rank), max(wider, steps[-1][1])))
    progress("tuning", 1, 1)
    return Effort(tuple(steps), factor), reached_recall


def _widen(
    base: Graph | Lists, truth: Truth, rank: int, factor: int, aim: float, widest: int, width: int = 1
) -> list[tuple[float, float, int, int]]:
    """Doubles the width until the aim is reached or recall rises no more; every trial."""
    trials: list[tuple[float, float, int, int]] = []
    wanted = rank + margin(rank)
    if isinstance(base, Graph):
        width = max(width, wanted)
    while True:
        width = min(width, widest)
        tried = base.with_effort(Effort(((1, width), (10**9, width)), factor))
        recall, seconds = timed(partial(_nearest, tried, wanted), truth, rank, base.error)
        flat = len(trials) > 1 and recall - trials[-1][1] < _PLATEAU
        trials.append((seconds, recall, width, factor))
        if recall >= aim or flat or width >= widest:
            return trials
        width *= 2


def _nearest(base: Graph | Lists, k: int, query: Vectors) -> tuple[Ids, Vectors]:
    positions, scores = base.near(query, k, None)
    return base.ids[positions], scores
