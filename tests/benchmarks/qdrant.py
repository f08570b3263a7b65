"""A gallery in Qdrant beside one in a folder: images/s of filling, milliseconds of a search, recall.

    python tests/benchmarks/qdrant.py [--n 10000] [--dim 512] [--url qdrant://HOST:6333/EMPTY_COLLECTION]

Without --url a stand-in answers on this machine: Qdrant's engine (qdrant-edge) behind a small HTTP server in Python, so
the figures are of that server as much as of Qdrant, and the real one should do better. The same vectors go into both
galleries, as `clf index` writes them, and searches take turns. Prints medians, the spread, and the ratio.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from search import K, make

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from qdrant_helpers import standin

from clf_serve.gallery import Entry, Gallery, Identity, Where
from clf_serve.place import Place
from clf_serve.stores.opening import create_in
from clf_serve.stores.qdrant import QdrantStore

_ROWS = 1_000  # upserted at a time
_THUMBNAIL = bytes(range(256)) * 20  # 5 kB, as JPEG thumbnails are


@contextmanager
def server(url: str | None, folder: Path) -> Iterator[str]:
    if url:
        yield url
        return
    with standin(folder / "qdrant") as started:
        yield started.url("benchmark")


def entries(vectors: NDArray[np.float32], first: int) -> list[Entry]:
    return [
        Entry(f"/photos/{i}.jpg", f"photos/{i}.jpg", vector, _THUMBNAIL, metadata={"label": i % 100})
        for i, vector in enumerate(vectors, first)
    ]


def fill(galleries: Sequence[Any], vectors: NDArray[np.float32]) -> list[float]:
    """Seconds for each, a part at a time in turn."""
    spent = [0.0 for _ in galleries]
    for start in range(0, len(vectors), _ROWS):
        part = entries(np.array(vectors[start : start + _ROWS]), start)
        for place, gallery in enumerate(galleries):
            began = time.perf_counter()
            gallery.upsert(part)
            spent[place] += time.perf_counter() - began
    return spent


def index(folder: Gallery, url: str, own: bool) -> None:
    began = time.perf_counter()
    folder.save_index()
    print(f"index of the folder: {time.perf_counter() - began:.1f} s ({folder.facts().index.kind})")
    if own:
        began = time.perf_counter()
        httpx.post(
            f"http{url.removeprefix('qdrant').replace('/benchmark', '/collections/benchmark/optimize')}", timeout=None
        )
        print(f"index of Qdrant: {time.perf_counter() - began:.1f} s (HNSW where a segment is large enough)")


def ask(galleries: Sequence[Any], queries: NDArray[np.float32], rounds: int, **how: Any) -> list[NDArray[np.float64]]:
    """Milliseconds of each, in turn."""
    spent: list[list[float]] = [[] for _ in galleries]
    for i in range(rounds):
        for place, gallery in enumerate(galleries):
            began = time.perf_counter()
            gallery.search(queries[i % len(queries)], K, **how)
            spent[place].append(1000 * (time.perf_counter() - began))
    return [np.array(each[len(galleries) :]) for each in spent]


def report(what: str, spent: Sequence[NDArray[np.float64]]) -> None:
    folder, qdrant = (
        f"{np.median(ms):.2f} ({np.quantile(ms, 0.05):.2f} to {np.quantile(ms, 0.95):.2f})" for ms in spent
    )
    print(f"{what}: folder {folder} ms, Qdrant {qdrant} ms, ratio {np.median(spent[1]) / np.median(spent[0]):.1f}")


def recall(gallery: Any, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    found = [{int(hit.uri[7:-4]) for hit in gallery.search(query, K)} for query in queries]
    return float(np.mean([len(got & set(best[:K].tolist())) for got, best in zip(found, truth, strict=True)])) / K


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--url")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, server(given.url, Path(temporary)) as url:
        place = Path(temporary)
        make(place, given.n, given.dim, 200)
        vectors, queries, truth = (np.load(place / f"{name}.npy") for name in ("vectors", "queries", "truth"))
        model = Identity("synthetic", "0" * 64, given.dim)
        with (
            Gallery.open_or_create(place / "gallery", model, place) as folder,
            create_in(QdrantStore, "store 'qdrant'", Place.of(url), model, place) as qdrant,
        ):
            galleries = (folder, qdrant)
            spent = fill(galleries, vectors)
            rates = [given.n / seconds for seconds in spent]
            print(f"filled: folder {rates[0]:,.0f} images/s, Qdrant {rates[1]:,.0f}, ratio {rates[0] / rates[1]:.1f}")
            index(folder, url, given.url is None)
            report("search", ask(galleries, queries, given.rounds))
            report("exact search", ask(galleries, queries, given.rounds, exact=True))
            report("of one label in a hundred", ask(galleries, queries, given.rounds, where=Where.parse({"label": 7})))
            for name, gallery in (("folder", folder), ("Qdrant", qdrant)):
                print(f"recall@{K}, {name}: {recall(gallery, queries, truth):.4f}")


if __name__ == "__main__":
    main()
