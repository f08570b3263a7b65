"""Seconds and memory of listing a folder of very many files: ``python tests/benchmarks/listing.py --files 1000000``.

The files are empty and lie in a temporary folder, in 1,000 class folders or all in one. Each listing runs in a process
of its own, which prints its seconds and by how much its peak resident memory grew.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDERS = 1000


def make(folder: Path, files: int, flat: bool) -> None:
    parents = [folder] if flat else [folder / f"class-{i:04d}" for i in range(FOLDERS)]
    for parent in parents:
        parent.mkdir(exist_ok=True)
    for i in range(files):
        (parents[i % len(parents)] / f"photograph-{i:07d}.jpg").touch()


def measure(folder: Path) -> None:
    """The child: lists once and prints seconds, MiB and what it found."""
    from clf.data.listing import list_folder

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    listing = list_folder(folder)
    seconds = time.perf_counter() - started
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
        2**20 if sys.platform == "darwin" else 1024
    )
    print(f"{seconds:.2f} {added:.1f} {len(listing)} {len(listing.classes or ())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--within", type=Path, help="make the temporary folder here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    for flat in (False, True):
        folder = Path(tempfile.mkdtemp(dir=arguments.within))
        try:
            make(folder, arguments.files, flat)
            rows = []
            for _ in range(arguments.repeats):
                command = [sys.executable, __file__, "--measure", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append([float(word) for word in done.stdout.split()])
            seconds, added, files, classes = (statistics.median(column) for column in zip(*rows, strict=True))
            kind = "one folder" if flat else f"{FOLDERS} folders"
            print(f"{files:,.0f} files in {kind} ({classes:.0f} classes): {seconds:.1f} s, {added:.0f} MiB added")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
