"""Seconds of ``clf index`` again on a folder of very many images of which few changed.

    python tests/benchmarks/folder_sync.py --files 100000

Makes small pictures, all different, in class folders, a torch-free encoder of 507 dimensions and a gallery, all in a
temporary folder. Then, several times: ten files change (three new, three with other content, two renamed, one touched,
one deleted) and ``clf index`` runs in a process of its own; then once more on the unchanged folder. Wall time is that
of the whole process, the start of Python and all imports included; processor time, which other processes disturb less,
is its user and system time. The page cache is warm.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

PROGRAM = "import sys\nfrom clf.cli import main\nmain(sys.argv[1:])"
PER_FOLDER = 100


def draw(path: Path, seed: int) -> None:
    """A picture of 4 x 4 fields, told apart from every other by its colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).save(path, compress_level=1)


def make(photos: Path, files: int) -> list[Path]:
    paths = [photos / f"class-{i // PER_FOLDER:05d}" / f"photograph-{i:07d}.png" for i in range(files)]
    for seed, path in enumerate(paths):
        if seed % PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        draw(path, seed)
    return paths


def change(paths: list[Path], turn: int) -> None:
    """Ten changes; ``paths`` follows them."""
    first = 20 * turn
    for i in range(3):
        path = paths[first + i].parent / f"new-{turn}-{i}.png"
        draw(path, 10**9 + 10 * turn + i)
        draw(paths[first + 3 + i], 2 * 10**9 + 10 * turn + i)
    for i in (6, 7):
        moved = paths[first + i].with_name(f"renamed-{turn}-{i}.png")
        paths[first + i] = paths[first + i].rename(moved)
    os.utime(paths[first + 8])
    paths[first + 9].unlink()


def run(*words: object) -> tuple[float, float, dict[str, object]]:
    """Wall and processor seconds, and what the command printed."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words), "--json"], capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor, json.loads(done.stdout)


def trial(folder: Path, files: int, repeats: int, kind: str) -> Iterator[str]:
    from serve_helpers import write_model

    model, photos, gallery = write_model(folder / "model", size=26, cells=13, dim=507), folder / "p", folder / "g"
    paths = make(photos, files)
    seconds, _, report = run("index", model, photos, "-o", gallery, "--index", kind)
    yield f"{files:,} files, first time: {seconds:.1f} s, {files / seconds:,.0f} images/s, {report['added']:,} added"
    walls: dict[str, list[float]] = {"ten files changed": [], "nothing changed": []}
    processors: dict[str, list[float]] = {name: [] for name in walls}
    for turn in range(repeats):
        for name in walls:
            if name.startswith("ten"):
                change(paths, turn)
            seconds, processor, report = run("index", model, photos, "-o", gallery)
            walls[name].append(seconds)
            processors[name].append(processor)
            wanted = (3, 3, 2, 1, 1) if name.startswith("ten") else (0, 0, 0, 0, 0)
            found = tuple(report[count] for count in ("added", "updated", "renamed", "touched", "removed"))
            if found != wanted:
                raise SystemExit(f"added, updated, renamed, touched, removed: {found}, not {wanted}")
    for name in walls:
        wall, processor = statistics.median(walls[name]), statistics.median(processors[name])
        yield f"{name}: {wall:.2f} s wall, {processor:.2f} s processor, medians of {repeats}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--within", type=Path, help="make the temporary folder here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--index", default="flat", help="kind of search index, as for clf index")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.within))
    try:
        for line in trial(folder, arguments.files, arguments.repeats, arguments.index):
            print(line, flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
