"""How fast galleries are copied: ``python tests/benchmarks/copying.py --images 100000 --dim 128``.

A gallery of clustered vectors, metadata and thumbnails of random bytes is copied from a folder to a folder, to a store
and back, each in a process of its own, which prints images a second of each stage and its peak memory. ``--to URL``
names stores, whose packages must be installed; ``{n}`` becomes the number of the round, and ``shelf:///new/file{n}.db``
is the example of the tests, one SQLite file. A bare copy of the database's file by the operating system, and
``clf gallery backup`` with ``restore``, are what no copy can beat.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from clf_serve.gallery import Entry, Gallery, Identity

SHELF = Path(__file__).parent.parent / "serve"
CENTRES = 200


def make(folder: Path, images: int, dim: int, thumbnail: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, dim))
    with Gallery.open_or_create(folder, Identity("bench", "ab" * 32, dim), folder.parent) as gallery:
        for first in range(0, images, 5_000):
            n = min(5_000, images - first)
            vectors = centres[rng.integers(0, CENTRES, n)] + 0.4 * rng.normal(size=(n, dim))
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
            gallery.upsert(
                [
                    Entry(
                        f"/photos/{i:08d}.jpg",
                        f"photos/{i:08d}.jpg",
                        vector,
                        rng.bytes(thumbnail),
                        1000 + i,
                        10**18 + i,
                        f"{i:064x}",
                        640,
                        480,
                        {"label": f"class {i % 10}", "year": 2000 + i % 25},
                    )
                    for i, vector in enumerate(vectors, first)
                ]
            )
        gallery.save_index()


def child(source: str, new: str) -> None:
    """Copies once, and prints the seconds of each stage, the rows and MiB at the peak."""
    from shelf_store import Shelf

    from clf_serve.copying import Steps, copy
    from clf_serve.stores import installed, opening

    find, load = installed.find_store, installed.load_store
    opening.find_store = lambda place: "shelf" if place.scheme == "shelf" else find(place)  # type: ignore[assignment]
    opening.load_store = lambda info: Shelf if info == "shelf" else load(info)  # type: ignore[assignment]
    seconds: dict[str, float] = {}
    now = [("opening", time.perf_counter())]

    def stage(label: str, rows: int) -> None:
        before, start = now[0]
        seconds[before] = seconds.get(before, 0.0) + time.perf_counter() - start
        now[0] = (label, time.perf_counter())

    def building(label: str, done: float) -> None:
        if now[0][0] != "index":
            stage("index", 0)

    start = time.perf_counter()
    report = copy(source, new, Steps(stage=stage, building=building))
    stage("", 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    whole = {"rows": report.images, "all": time.perf_counter() - start, "cpu": time.process_time(), "peak": peak}
    print(json.dumps({**whole, **seconds}))


def measure(source: str, new: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", source, new]
    environment = {**os.environ, "PYTHONPATH": f"{SHELF}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bare(folder: Path, scratch: Path) -> dict[str, dict[str, float]]:
    from clf_serve.moving import backup, restore

    start = time.perf_counter()
    shutil.copyfile(folder / "gallery.sqlite", scratch / "bytes")
    with (scratch / "bytes").open("rb") as file:
        os.fsync(file.fileno())
    copied = time.perf_counter()
    images = backup(folder, scratch / "backup").images
    restore(scratch / "backup", scratch / "restored")
    end = time.perf_counter()
    for path in ("bytes", "backup"):
        (scratch / path).unlink()
    shutil.rmtree(scratch / "restored")
    times = {"the file's bytes": copied - start, "backup, restore": end - copied}
    return {name: {"rows": images, "all": seconds} for name, seconds in times.items()}


def one_round(folder: Path, scratch: Path, urls: list[str], number: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = dict(bare(folder, scratch))
    found["folder to folder"] = measure(str(folder), str(scratch / "new"))
    shutil.rmtree(scratch / "new")
    for url in urls:
        scheme, url = url.partition("://")[0], url.replace("{n}", str(number))
        found[f"folder to {scheme}"] = measure(str(folder), url)
        found[f"{scheme} to folder"] = measure(url, str(scratch / "back"))
        shutil.rmtree(scratch / "back")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--thumbnail", type=int, default=4_000, help="bytes of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to", action="append", default=[], metavar="URL")
    parser.add_argument("--within", type=Path, help="make the temporary folder here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    scratch = Path(tempfile.mkdtemp(dir=arguments.within))
    try:
        make(scratch / "gallery", arguments.images, arguments.dim, arguments.thumbnail)
        rounds = [one_round(scratch / "gallery", scratch, arguments.to, n) for n in range(arguments.rounds)]
    finally:
        shutil.rmtree(scratch)
    for way in rounds[0]:
        names = dict.fromkeys(name for each in rounds for name in each[way] if name not in ("rows", "peak", "cpu"))
        medians = {name: statistics.median(each[way].get(name, 0.0) for each in rounds) for name in names}
        rows = rounds[0][way]["rows"]
        rates = ", ".join(f"{name} {rows / s:,.0f}" for name, s in medians.items() if s > 0.05 and name != "all")
        peak = max(each[way].get("peak", 0.0) for each in rounds)
        cpu = statistics.median(each[way].get("cpu", 0.0) for each in rounds)
        memory = f"; {peak:.0f} MiB, {cpu:.1f} s of the CPU by this process" if peak else ""
        print(f"{way}: {medians['all']:.1f} s, {rows / medians['all']:,.0f} images/s ({rates}){memory}")


if __name__ == "__main__":
    main()
