"""The chaos test at length: ``python tests/benchmarks/chaos.py --requests 10000``, or ``--reloads 100``.

Starts a ``clf serve`` around a tiny model and sends it the load of ``tests/serve/chaos_load.py``: raw bodies, forms
and lists in JSON, slow senders, callers who leave in the middle; 5 % of the requests hold a bad image of
``tests/serve/corpus.py``. Prints what was answered, what was wrong, and the server's memory, threads and open files
over time. With ``--reloads`` the model is loaded again that often meanwhile. Linux only; the exit status is 1 if
anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from chaos_load import OPTIONS, Load, Report, second_half
from serve_helpers import PROGRAM, write_model
from vitals import slope

MIB = 2**20


def start(model: Path, temporary: Path) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, and its URL. Its log goes to a file beside the model."""
    with (model.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", PROGRAM, "serve", str(model), "--port", "0", *OPTIONS],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"on (http://\S+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, found[1]
    raise SystemExit("the server did not start:\n" + (model.parent / "log").read_text())


def reload_often(process: subprocess.Popen[str], times: int, log: Path, done: threading.Event) -> int:
    """SIGHUP again and again, each when the last one is through by the log; returns how many were."""
    for number in range(times):
        process.send_signal(signal.SIGHUP)
        while log.read_text().count("was reloaded") <= number:
            if done.wait(0.05):
                return number
    return times


def table(report: Report, rows: int = 12) -> None:
    print("\n| seconds | RSS MiB | threads | open files |\n|---|---|---|---|")
    step = max(1, len(report.watched) // rows)
    for seconds, seen in [*report.watched[::step], report.watched[-1]]:
        print(f"| {seconds:.0f} | {seen.rss / MIB:.1f} | {seen.threads} | {seen.files} |")
    rise = slope(second_half(report, lambda seen: seen.rss)) / MIB
    threads, files = (slope(second_half(report, value)) for value in (lambda v: v.threads, lambda v: v.files))
    print(f"\nover the second half: RSS {rise:+.1f} MiB, threads {threads:+.1f}, open files {files:+.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--bad", type=float, default=0.05, help="share of requests with a bad image")
    parser.add_argument("--reloads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        process, base = start(write_model(Path(folder) / "model"), temporary)
        try:
            load = Load(base, process.pid, arguments.bad, arguments.seed)
            while not load.solo:
                time.sleep(0.5)
                load.report.wrong.clear()
                load.ask_solo()
            begun, done, reloaded = time.monotonic(), threading.Event(), []
            hups = threading.Thread(
                target=lambda: reloaded.append(reload_often(process, arguments.reloads, Path(folder) / "log", done))
            )
            hups.start()
            report = load.run(arguments.requests, arguments.callers, every=0.5)
            seconds = time.monotonic() - begun
            done.set()
            hups.join()
            process.terminate()
            status = process.wait(60)
        finally:
            process.kill()
        left = [path.name for path in temporary.iterdir()]
        log = (Path(folder) / "log").read_text()
    print(f"{arguments.requests} requests in {seconds:.0f} s, {report.spoilt} with a bad image, {reloaded[0]} reloads")
    for (kind, answer), times in sorted(report.answers.items()):
        print(f"  {kind:>5} {answer or 'nobody waited':>13} {times:>6}")
    table(report)
    print(f"\nwrong: {len(report.wrong)}; exit status {status}; left in the temporary folder: {left or 'nothing'}")
    for line in report.wrong[:20]:
        print("  " + line)
    told = [line for line in log.splitlines() if "was reloaded" not in line]
    print(f"log, but for reloads: {len(told)} lines")
    print("\n".join("  " + line for line in told[:30]))
    return int(bool(report.wrong or left or status))


if __name__ == "__main__":
    sys.exit(main())
