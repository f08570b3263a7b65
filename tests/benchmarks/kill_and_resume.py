"""Twenty kills of a run of every installed plugin, and the same run left alone: do they end with the same bits?

    python tests/benchmarks/kill_and_resume.py [--kills 20] [key=value ...]

The same as ``clf verify resume --plugin NAME`` for one plugin after the other; the last line says how many hold.
"""

from __future__ import annotations

import argparse
import sys
import time

from clf import config, plugins, verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("changes", nargs="*", metavar="key=value")
    given = parser.parse_args()
    changes = config.parse_overrides(given.changes).values
    names = [
        row.name for row in plugins.list_plugins() if row.state == "available" and plugins.load_plugin(row.name).methods
    ]
    held = 0
    for name in names:
        started = time.monotonic()
        report = verify.resume(name, changes, given.kills)
        held += report.holds
        print(f"{report}\n{time.monotonic() - started:.0f} s\n", flush=True)
    print(f"{held} of {len(names)} plugins hold")
    return int(held < len(names))


if __name__ == "__main__":
    sys.exit(main())
