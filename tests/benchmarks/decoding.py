"""How fast a folder fills its cache, beside bare Pillow: ``python tests/benchmarks/decoding.py --files 1000``.

Draws JPEG photographs of 500 x 375 in a temporary folder and, in turn, several times over

- bare threads, bare processes: open, decode, resize to the canvas and to the clean image, nothing else;
- decode only, in threads: the decoder's own limit, without the two images that have to be made;
- fill: what :mod:`clf.data` does in threads: list, read, hash, decode, resize, sum, write, record.

Prints images per second, of the clock and of CPU time, and the fill's share of each, as medians over the turns. Where
other work shares the cores, the shares of CPU time are the ones to look at.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (256, 224)


def make(folder: Path, files: int) -> list[Path]:
    paths = []
    for i in range(files):
        rng = np.random.default_rng(i)
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3))
        paths.append(folder / f"{i:06d}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def bare(path: Path, sides: tuple[int, ...] = SIDES) -> None:
    """Decodes and resizes the central square with Pillow alone."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    for size in sides:
        image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def threads(paths: list[Path], workers: int, sides: tuple[int, ...]) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(partial(bare, sides=sides), paths))


def processes(paths: list[Path], workers: int) -> None:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(bare, paths, chunksize=16))


def fill(folder: Path, workers: int, cache: Path) -> None:
    from clf.config import DataSection
    from clf.data import load_source

    options = {"cache_above_mib": 0, "cache_dir": str(cache)}
    section = DataSection(name="folder", root=str(folder), image_size=SIDES[1], workers=workers, options=options)
    load_source(section, 0)


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, help="threads and processes; default as data.workers")
    parser.add_argument("--within", type=Path, help="make the temporary folder here")
    arguments = parser.parse_args()
    from clf.data.decode import default_workers

    workers = arguments.workers or default_workers()
    folder = Path(tempfile.mkdtemp(dir=arguments.within))
    try:
        (folder / "photos").mkdir()
        paths = make(folder / "photos", arguments.files)
        kinds: dict[str, Callable[[], None]] = {
            "bare threads": partial(threads, paths, workers, SIDES),
            "bare processes": partial(processes, paths, workers),
            "decode only": partial(threads, paths, workers, ()),
            "fill": partial(fill, folder / "photos", workers, folder / "cache"),
        }
        rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(arguments.turns):
            for kind, run in kinds.items():
                shutil.rmtree(folder / "cache", ignore_errors=True)
                clock, cpu = time.perf_counter(), cpu_seconds()
                run()
                rates[kind].append((len(paths) / (time.perf_counter() - clock), len(paths) / (cpu_seconds() - cpu)))
        print(f"{workers} workers, {len(paths)} JPEGs of 500 x 375, median (least to most) of {arguments.turns} turns")
        for kind, found in rates.items():
            words = []
            for unit, mine, theirs in zip(
                ("s", "CPU s"), zip(*rates["fill"], strict=True), zip(*found, strict=True), strict=True
            ):
                share = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
                middle = statistics.median(theirs)
                words.append(
                    f"{middle:5.0f} ({min(theirs):.0f} to {max(theirs):.0f}) images/{unit}, fill is {share:.0%}"
                )
            print(f"{kind:>15}: {'; '.join(words)}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
