"""The whole search of a large gallery, entries read and scored from the database: a million by default.

    python tests/benchmarks/gallery_search.py [--n 1000000] [--dim 512]

Fills a gallery with the vectors of `search.py`, lets it choose and build its index, and searches it from another
process that only opens it. Prints images/s of filling, seconds of building and opening, median and p99 of one search,
also with a filter on metadata, recall, and the resident memory at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from search import K, make, resident

from clf_serve.gallery import Entry, Gallery, Identity, Where

ROUNDS = 2000
_ROWS = 10_000  # upserted at a time


def fill(folder: Path, vectors: NDArray[np.float32]) -> None:
    n, dim = vectors.shape
    began = time.monotonic()
    with Gallery.open_or_create(folder, Identity("synthetic", "0" * 64, dim), folder.parent) as gallery:
        for start in range(0, n, _ROWS):
            rows = np.array(vectors[start : start + _ROWS])
            gallery.upsert(
                [
                    Entry(f"/photos/{i}.jpg", f"photos/{i}.jpg", vector, metadata={"label": i % 100})
                    for i, vector in enumerate(rows, start)
                ]
            )
        filled = time.monotonic()
        gallery.save_index()
        print(f"filled at {n / (filled - began):,.0f} images/s; index built in {time.monotonic() - filled:.0f} s")
        print(json.dumps(gallery.facts().index.json()), flush=True)


def times(gallery: Gallery, asked: NDArray[np.float32], where: Where | None) -> str:
    spent = []
    for i in range(ROUNDS):
        began = time.perf_counter()
        gallery.search(asked[i % len(asked)], K, where=where)
        spent.append(1000 * (time.perf_counter() - began))
    return f"median {np.median(spent):.3f} ms, p99 {np.quantile(spent, 0.99):.3f} ms (first {spent[0]:.0f} ms)"


def ask(folder: Path) -> None:
    """A process that only opens and searches."""
    asked, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    began = time.monotonic()
    with Gallery(folder / "gallery") as gallery:
        gallery.load_index()
        print(f"opened in {time.monotonic() - began:.2f} s")
        print("search:", times(gallery, asked, None))
        uris = [{hit.uri for hit in gallery.search(query, K)} for query in asked]
        found = [len(got & {f"photos/{i}.jpg" for i in best}) for got, best in zip(uris, truth, strict=True)]
        print(f"recall@{K}: {np.mean(found) / K:.4f}")
        print("of one label in a hundred:", times(gallery, asked, Where.parse({"label": 7})))
        print(f"resident after all: {resident():.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        ask(given.ask)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, given.n, given.dim, 400)
        fill(folder / "gallery", np.load(folder / "vectors.npy", mmap_mode="r"))
        subprocess.run([sys.executable, __file__, "--ask", str(folder)], check=True)


if __name__ == "__main__":
    main()
