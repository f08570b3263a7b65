"""Search among many vectors: ``python tests/benchmarks/search.py --n 1000000``.

Vectors: 2,000 clusters in a random subspace of 64 dimensions (a normal spread of half that of the centres), turned into
512 dimensions, with noise of 0.02 in each, scaled to unit length. Queries are drawn likewise and are not in the index.

Each index is built and saved by one process and searched by others that only open it: one for the time to open and
the resident memory after all queries, one that alternates, query by query, with FAISS itself on the same files with the
same parameters. Recall@10 is that of the candidates handed up, against exact search, which is what the gallery's exact
second scoring of them gives. Filters allow random ids.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 10
SELECTIVITIES = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
INTRINSIC, CLUSTERS, NOISE = 64, 2000, 0.02


def make(folder: Path, n: int, dim: int, queries: int) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(dim, INTRINSIC)))[0].astype(np.float32)
    centres = rng.normal(size=(CLUSTERS, INTRINSIC)).astype(np.float32)
    for name, rows in (("vectors", n), ("queries", queries)):
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, dim))
        for start in range(0, rows, 50_000):
            count = min(50_000, rows - start)
            inner = centres[rng.integers(CLUSTERS, size=count)]
            inner = inner + 0.5 * rng.normal(size=(count, INTRINSIC)).astype(np.float32)
            wide = inner @ basis.T + NOISE * rng.normal(size=(count, dim)).astype(np.float32)
            out[start : start + count] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        out.flush()
    vectors, wanted = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    np.save(folder / "truth.npy", exact(vectors, wanted, np.arange(n)))


def exact(vectors: Any, queries: Any, rows: Any) -> Any:
    """(Q, K) rows of the best."""
    best = np.full((len(queries), 1), -np.inf, np.float32)
    names = np.zeros((len(queries), 1), np.int64)
    for start in range(0, len(rows), 50_000):
        part = rows[start : start + 50_000]
        best = np.concatenate([best, queries @ vectors[part].T], 1)
        names = np.concatenate([names, np.broadcast_to(part, (len(queries), len(part)))], 1)
        top = np.argsort(-best, axis=1)[:, :K] if best.shape[1] <= 2 * K else np.argpartition(-best, K, axis=1)[:, :K]
        best, names = np.take_along_axis(best, top, 1), np.take_along_axis(names, top, 1)
    return names


def resident() -> float:
    """MB of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def build(folder: Path, kind: str, target: float) -> dict[str, Any]:
    from clf_serve.index import VectorIndex, choose

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    n, dim = vectors.shape

    def batches() -> Iterator[tuple[Any, Any]]:
        for start in range(0, n, 10_000):
            rows = np.array(vectors[start : start + 10_000])
            yield np.arange(start, start + len(rows)), rows

    index = VectorIndex(dim)
    stages: dict[str, float] = {}
    started = time.perf_counter()
    info = index.rebuild(
        batches, n, choose(n, dim, None, kind, target), 1,
        lambda stage, _done, _whole: stages.setdefault(stage, round(time.perf_counter() - started, 1)) and None,
    )  # fmt: skip
    built = time.perf_counter() - started
    started = time.perf_counter()
    index.save(folder / kind, "benchmark")
    effort = getattr(index._view.base, "effort", None)
    size = sum(file.stat().st_size for file in (folder / kind).iterdir())
    return {
        "build_s": built, "stages_begin_at_s": stages, "save_s": time.perf_counter() - started,
        "recall_measured": info.recall, "parameters": info.parameters, "why": info.why,
        "steps": effort.steps if effort else (), "disk_MB": size / 1e6,
    }  # fmt: skip


def opened(folder: Path, kind: str, dim: int) -> Any:
    from clf_serve.index import Stamp, VectorIndex

    index, note = VectorIndex.open(folder / kind, Stamp("benchmark", dim, 1))
    assert note is None, note
    return index


def alone(folder: Path, kind: str) -> dict[str, Any]:
    """A process that only opens and searches."""
    import faiss  # noqa: F401  (the import is not what opening costs)

    queries = np.load(folder / "queries.npy")
    started, worked = time.perf_counter(), time.process_time()
    index = opened(folder, kind, queries.shape[1])
    index.search(queries[0], K)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    before = resident()
    found, times = [], []
    for round_ in range(3):
        for query in queries:
            began = time.perf_counter()
            ids = index.search(query, K).ids
            times.append(time.perf_counter() - began)
            if not round_:
                found.append(set(ids.tolist()))
    truth = np.load(folder / "truth.npy")
    recall = np.mean([len(set(best.tolist()) & ids) / K for best, ids in zip(truth, found, strict=True)])
    return {
        "open_s": seconds, "open_cpu_s": worked, "resident_MB_opened": before, "resident_MB": resident(),
        "median_ms": 1e3 * float(np.median(times)),
        "p99_ms": 1e3 * float(np.quantile(times, 0.99)), "recall": float(recall), "searches": len(times),
    }  # fmt: skip


def raw(folder: Path, kind: str, index: Any) -> Any:
    """The same search by FAISS's own interface."""
    import faiss

    base = index._view.base
    file = {path.name.partition("-")[0]: str(path) for path in (folder / kind).iterdir()}
    if kind == "flat":
        flat = faiss.IndexFlatIP(index.dim)
        flat.add(np.array(base.vectors))
        return lambda query: flat.search(query[None], K)
    wanted = K + 10
    if kind == "hnsw":
        graph = faiss.read_index(file["graph"], faiss.IO_FLAG_MMAP_IFC)
        near = faiss.SearchParametersHNSW(efSearch=base.effort.width(wanted))
        return lambda query: graph.search(query[None], wanted, params=near)
    lists = faiss.read_index(file["lists"], faiss.IO_FLAG_MMAP_IFC)
    codes = faiss.read_index(file["codes"], faiss.IO_FLAG_MMAP_IFC)
    refined = faiss.IndexRefine(lists, codes)
    probes = faiss.SearchParametersIVF(nprobe=base.effort.width(wanted))
    near = faiss.IndexRefineSearchParameters(k_factor=base.effort.factor, base_index_params=probes)
    parts = lists, codes  # which FAISS only points to
    return lambda query: parts and refined.search(query[None], wanted, params=near)


def beside(folder: Path, kind: str) -> dict[str, Any]:
    """Alternates with FAISS, then filters."""
    import faiss

    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    index = opened(folder, kind, queries.shape[1])
    other = raw(folder, kind, index)
    faiss.omp_set_num_threads(1)
    ours, theirs = [], []
    for _ in range(3):
        for number, query in enumerate(queries):
            pair = [(ours, lambda query: index.search(query, K)), (theirs, other)]
            for times, function in pair if number % 2 else reversed(pair):
                began = time.perf_counter()
                function(query)
                times.append(time.perf_counter() - began)
    result: dict[str, Any] = {"ratio_to_faiss": float(np.median(ours) / np.median(theirs)), "filters": {}}
    rng = np.random.default_rng(1)
    some = queries[:100]
    for share in SELECTIVITIES:
        allowed = np.sort(rng.choice(len(vectors), max(1, int(share * len(vectors))), replace=False))
        began = time.perf_counter()
        index.search(some[0], K, allowed)
        first = time.perf_counter() - began
        times, hits = [], []
        for query, best in zip(some, exact(vectors, some, allowed), strict=True):
            began = time.perf_counter()
            ids = index.search(query, K, allowed).ids
            times.append(time.perf_counter() - began)
            hits.append(len(np.intersect1d(best, ids)) / min(K, len(allowed)))
        result["filters"][share] = (float(np.mean(hits)), 1e3 * float(np.median(times)), 1e3 * first)
    return result


def child(step: str, folder: Path, kind: str, target: float) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--step",
        step,
        "--folder",
        str(folder),
        "--kind",
        kind,
        "--target",
        str(target),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(kind: str, n: int, facts: dict[str, Any]) -> None:
    print(f"\n{kind}, {n:,} vectors: {facts['why']}; {facts['parameters']}, steps {facts['steps']}")
    for name, fact in facts.items():
        if isinstance(fact, float | int):
            print(f"  {name:20} {fact:.4g}")
    print(f"  stages begin at (s)  {facts['stages_begin_at_s']}")
    print("  filter allows   recall@10   median ms   first ms")
    for share, (recall, median, first) in facts["filters"].items():
        print(f"  {100 * float(share):10.2f} %   {recall:9.4f}   {median:9.2f}   {first:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kind", default="auto", choices=("auto", "flat", "hnsw", "ivf"))
    parser.add_argument("--target", type=float, default=0.98)
    parser.add_argument("--within", type=Path, help="make the temporary folder here; 1 million x 512 takes 3 GB")
    parser.add_argument("--step", choices=("build", "alone", "beside"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "build":
        print(json.dumps(build(arguments.folder, arguments.kind, arguments.target)))
        return
    if arguments.step:
        print(json.dumps({"alone": alone, "beside": beside}[arguments.step](arguments.folder, arguments.kind)))
        return
    from clf_serve.index import choose

    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=arguments.within) as name:
        folder = Path(name)
        make(folder, arguments.n, arguments.dim, arguments.queries)
        kind = choose(arguments.n, arguments.dim, None, arguments.kind).kind
        facts: dict[str, Any] = {}
        for step in ("build", "alone", "beside"):
            facts |= child(step, folder, kind, arguments.target)
        show(kind, arguments.n, facts)


if __name__ == "__main__":
    main()
