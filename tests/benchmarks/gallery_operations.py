"""A hundred thousand random operations on galleries, against a dictionary and brute force.

    python tests/benchmarks/gallery_operations.py [--operations 100000] [--steps 100]

Hypothesis draws histories of upserts, deletions, renames, metadata, filters, searches, saves, rebuilds of every kind of
index and reopenings; `tests/serve/gallery_machine.py` says what must hold after each step. A failure is printed as the
shortest history that shows it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from gallery_machine import GalleryMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=100, help="of one history")
    given = parser.parse_args()
    started = time.monotonic()
    histories = -(-given.operations // given.steps)
    chosen = settings(
        max_examples=histories,
        stateful_step_count=given.steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    run_state_machine_as_test(GalleryMachine, settings=chosen)
    seconds = time.monotonic() - started
    print(f"{histories} histories of up to {given.steps} operations hold; {seconds:.0f} s")


if __name__ == "__main__":
    main()
