"""Hundreds of SIGKILLs of a gallery's writer, in the middle of upserts, deletions, renames, saves and rebuilds.

    python tests/benchmarks/gallery_kills.py [--kills 300] [--sync 100] [--seed 0]

After each kill the gallery is opened again: every acknowledged entry must be there exactly once with its own vector,
the operation in work wholly or not at all, and search must equal brute force. The same gallery goes through all of
them. Then `clf index` is killed on a folder that changes, and run again: the gallery must hold the folder as it is. The
first thing that does not hold ends the script with an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import gallery_kills
import sync_kills
from serve_helpers import write_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--sync", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report("writer", list(gallery_kills.rounds(Path(folder) / "one", given.kills, given.seed)), started)
        started = time.monotonic()
        model = write_model(Path(folder) / "model")
        report("clf index", list(sync_kills.rounds(Path(folder), model, given.sync, given.seed)), started)


def report(what: str, sizes: list[int], started: float) -> None:
    seconds = time.monotonic() - started
    print(f"{what}: {len(sizes)} kills, all checks hold; {min(sizes)} to {max(sizes)} entries; {seconds:.0f} s")


if __name__ == "__main__":
    main()
