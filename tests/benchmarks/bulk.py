"""Bulk embedding by the local engine, by Ray Data and into one file: ``python tests/benchmarks/bulk.py MODEL PHOTOS``.

MODEL is an exported model (or one of ``serving_models.py``), PHOTOS a folder of images or a tar. One interleaved run:
in each round every way embeds all images into a new place. Ray is started once, before the first round; its start is
timed apart. A round's time has all else in it: listing, opening the model, a process for Ray's worker, writing. CPU
time says more than a clock where others use the machine too; Ray's is that of this process and all that descend from it
(Linux). The bytes of all outputs are compared. ``--listing N`` instead lists a folder of N empty files that it makes,
twice, and says how long that takes and how much memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from clf.manifest import read_manifest
from clf_serve.bulk import BulkEngine, LocalEngine, OpenModel, Options, Settings, find_source, prepare, rays, run
from clf_serve.bulk.plan import make_plan
from clf_serve.engine import Engine
from clf_serve.output import writer
from clf_serve.sync.indexing import list_images


def into_shards(model: Path, photos: Path, out: Path, engine: BulkEngine, size: int) -> int:
    manifest = read_manifest(model)
    settings = Settings(
        manifest.name, manifest.sha256, manifest.dim, "fp32", manifest.preprocessing, "cpu", 32, size, "parquet"
    )
    opened = OpenModel(model.absolute(), manifest.sha256, "fp32", "cpu", 32)
    bulk = prepare(find_source([str(photos)]), str(out), settings, opened)
    return run(bulk, engine, "local").made


def into_file(model: Path, photos: Path, out: Path) -> int:
    with Engine(model, "cpu") as engine:
        vectors, paths, skipped = engine.embed_files(list_images(photos))
        writer(out)(vectors, paths, engine.manifest)
    return len(paths) + len(skipped)


def same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def cpu_seconds() -> float:
    """Of this process and those that descend from it, those that have ended among them."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            table[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    family = {os.getpid()}
    while more := {pid for pid, (parent, _) in table.items() if parent in family and pid not in family}:
        family |= more
    return sum(table[pid][1] for pid in family & table.keys()) / os.sysconf("SC_CLK_TCK")


def rounds(model: Path, photos: Path, count: int, size: int, workers: int | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        start = time.perf_counter()
        with rays.started():
            print(f"Ray started in {time.perf_counter() - start:.1f} s")
            ways: dict[str, Callable[[Path], int]] = {
                "local": lambda out: into_shards(model, photos, out, LocalEngine(Options()), size),
                "ray": lambda out: into_shards(model, photos, out, rays.RayEngine(Options(workers=workers)), size),
            }
            if photos.is_dir():
                ways["file"] = lambda out: into_file(model, photos, out.with_suffix(".npz"))
            rates: dict[str, list[float]] = {name: [] for name in ways}
            costs: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(count):
                for name, way in ways.items():
                    shutil.rmtree(top / name, ignore_errors=True)
                    clock = cpu_seconds if name == "ray" else time.process_time
                    start, spent = time.perf_counter(), clock()
                    done = way(top / name)
                    costs[name].append(1000 * (clock() - spent) / done)
                    rates[name].append(done / (time.perf_counter() - start))
                print(turn, {name: round(each[-1], 1) for name, each in rates.items()}, flush=True)
        for name, each in rates.items():
            cost = f"{statistics.median(costs[name]):.1f} ms of CPU time for an image"
            print(f"{name:6} {statistics.median(each):8.1f} images/s ({min(each):.1f} to {max(each):.1f}), {cost}")
        for other in rates.keys() - {"local"}:
            ratios = [a / b for a, b in zip(rates["local"], rates[other], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            cost = statistics.median(b / a for a, b in zip(costs["local"], costs[other], strict=True))
            print(f"local / {other}: {statistics.median(ratios):.2f} ({spread}); CPU time {other} / local: {cost:.2f}")
        print("same bytes, local and ray:", same(top / "local", top / "ray"))
        if "file" in rates:
            from pyarrow import parquet

            tables = [parquet.read_table(path) for path in sorted((top / "local").glob("part-*.parquet"))]
            vectors = np.concatenate([np.stack(table["vector"].to_numpy()) for table in tables])
            print("same vectors, shards and file:", np.array_equal(vectors, np.load(top / "file.npz")["vectors"]))


def listing(count: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        for i in range(count):
            if i % 1000 == 0:
                (photos / f"{i // 1000:05d}").mkdir(parents=True)
            (photos / f"{i // 1000:05d}" / f"{i:08d}.jpg").touch()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settings = Settings("any", "0" * 64, 1)
        for turn in ("first", "again"):
            start = time.perf_counter()
            with (Path(scratch) / "listing.jsonl").open("wb") as file:
                plan = make_plan(find_source([str(photos)]), settings, file, lambda found: None)
            seconds, size = time.perf_counter() - start, (Path(scratch) / "listing.jsonl").stat().st_size
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(
                f"{turn}: {plan.listed} files in {seconds:.1f} s, {grown:.0f} MiB more, listing of {size / 1e6:.0f} MB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--listing", type=int)
    options = parser.parse_args()
    if options.listing:
        listing(options.listing)
    else:
        rounds(options.model, options.photos, options.rounds, options.shard_size, options.workers)


if __name__ == "__main__":
    main()
