"""A gallery in PostgreSQL with pgvector beside one in a folder (FAISS), on the same images and queries.

    python tests/benchmarks/postgres.py [--sizes 10000x128,10000x512,100000x128,100000x512]

Both are asked through the gallery's own methods, in turn, query by query; the figures are medians of 60 searches for
the 10 nearest, and the quickest of them in brackets, which a busy machine changes less. PostgreSQL is that of the
package pgserver, on this machine, as it comes but for 512 MB of shared_buffers; fsync and synchronous_commit are on.
Vectors lie in 200 clusters with a spread like that of photos. Prints for each size: images written per second (1,000 at
a time), seconds to build the index, and for exact search, search by HNSW (FAISS: its automatic choice) and filtered
search (1 %, 10 % and 50 % let through): milliseconds, the ratio of the two, and recall@10 where it is not exact.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "serve")]

from postgres_helpers import a_server, make  # noqa: E402

from clf_serve.gallery import Entry, Gallery, Identity, Where  # noqa: E402
from clf_serve.stores import AnyGallery  # noqa: E402

QUERIES, K, BATCH = 60, 10, 1_000
SHARES = (0.01, 0.1, 0.5)


def vectors_of(n: int, dim: int, seed: int) -> Any:
    centres = np.random.default_rng(99).normal(size=(200, dim))
    random = np.random.default_rng(seed)
    found = centres[random.integers(200, size=n)] + random.normal(size=(n, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write(gallery: AnyGallery, vectors: Any) -> float:
    """Images a second."""
    jpeg, n, random = bytes(4_000), len(vectors), np.random.default_rng(0)
    places = random.permutation(n)
    started = time.perf_counter()
    for first in range(0, n, BATCH):
        gallery.upsert(
            [
                Entry(f"/p/{i}.jpg", f"{i}.jpg", vectors[i], jpeg, 10_000, 1, "ab" * 32, 640, 480, facts(places[i], n))
                for i in range(first, min(n, first + BATCH))
            ]
        )
    return n / (time.perf_counter() - started)


def facts(place: int, n: int) -> dict[str, Any]:
    return {"share": float(place) / n, "label": f"class {place % 100}", "year": 2000 + int(place) % 25}


def compared(asked: list[Callable[[Any], Any]], queries: Any) -> tuple[list[tuple[float, float]], list[list[set[int]]]]:
    """Medians in milliseconds, and what was found. Each query goes to all, one after another."""
    seconds: list[list[float]] = [[] for _ in asked]
    found: list[list[set[int]]] = [[] for _ in asked]
    for query in queries:
        for times, sets, ask in zip(seconds, found, asked, strict=True):
            started = time.perf_counter()
            hits = ask(query)
            times.append(time.perf_counter() - started)
            sets.append({hit.id for hit in hits})
    return [(median(times) * 1e3, min(times) * 1e3) for times in seconds], found


def recall(found: list[set[int]], best: list[set[int]]) -> float:
    return float(np.mean([len(one & other) / len(other) for one, other in zip(found, best, strict=True)]))


@contextmanager
def both(dim: int, url: str) -> Iterator[tuple[AnyGallery, AnyGallery]]:
    model = Identity("bench", "ab" * 32, dim)
    with (
        tempfile.TemporaryDirectory() as folder,
        Gallery.open_or_create(Path(folder) / "g", model, Path(folder)) as here,
        make(url, model) as there,
    ):
        yield here, there


def run(n: int, dim: int, url: str) -> None:
    vectors, queries = vectors_of(n, dim, 0), vectors_of(QUERIES, dim, 1)
    print(f"\n{n:,} x {dim}", flush=True)
    with both(dim, url) as (folder, postgres):
        rates = [write(gallery, vectors) for gallery in (folder, postgres)]
        show("images written / s", rates, digits=0)
        started = time.perf_counter()
        folder.save_index()
        built = [time.perf_counter() - started]
        folder.search(queries[0], K)
        exact = [lambda q, g=g: g.search(q, K, exact=True) for g in (folder, postgres)]
        compared(exact, queries[:5])
        times, best = compared(exact, queries)
        show("exact search, ms", times)
        started = time.perf_counter()
        info = postgres.optimize("hnsw")
        show("index built, s", [*built, time.perf_counter() - started])
        print(
            f"  folder: {folder.facts().index.kind}; PostgreSQL: hnsw {info.parameters}, recall told {info.recall:.4f}"
        )
        near = [lambda q, g=g: g.search(q, K) for g in (folder, postgres)]
        compared(near, queries[:5])
        times, found = compared(near, queries)
        show("index search, ms", times, [recall(each, best[0]) for each in found])
        for share in SHARES:
            where = Where.parse({"share": {"$lt": share}})
            started = time.perf_counter()
            firsts = []
            for gallery in (folder, postgres):
                started = time.perf_counter()
                gallery.search(queries[0], K, where=where)
                firsts.append(1e3 * (time.perf_counter() - started))
            show(f"filter {share:.0%}, first, ms", firsts)
            filtered = [lambda q, g=g, w=where: g.search(q, K, where=w) for g in (folder, postgres)]
            truth = [{h.id for h in postgres.search(q, K, where=where, exact=True)} for q in queries]
            times, found = compared(filtered, queries)
            show(f"filter {share:.0%}, then, ms", times, [recall(each, truth) for each in found])


def show(name: str, pair: list[Any], recalls: list[float] | None = None, digits: int = 2) -> None:
    """Args: pair: of the folder and of PostgreSQL; each a figure, or the median and the least."""
    told = "" if recalls is None else f"   recall {recalls[0]:.3f} / {recalls[1]:.3f}"
    both = [each if isinstance(each, tuple) else (each, None) for each in pair]
    texts = [f"{one:,.{digits}f}" + ("" if least is None else f" ({least:,.{digits}f})") for one, least in both]
    ratio = both[1][0] / both[0][0]
    print(f"  {name:22} folder {texts[0]:>16}   PostgreSQL {texts[1]:>18}   x{ratio:.2f}{told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000x128,10000x512,100000x128,100000x512")
    sizes = [tuple(map(int, size.split("x"))) for size in parser.parse_args().sizes.split(",")]
    with a_server(fsync="on", shared_buffers="512MB", autovacuum="on") as server:
        for n, dim in sizes:
            run(n, dim, server.url())


if __name__ == "__main__":
    main()
