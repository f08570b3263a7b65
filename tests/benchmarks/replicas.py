"""Requests per second and latency through HAProxy and nginx, with one and three replicas, beside one direct server.

    python tests/benchmarks/replicas.py [--seconds 4] [--rounds 5] [--clients 16] [--model FOLDER] [--image FILE]

Wants `haproxy`, `nginx` and `wrk` (Debian has all three). The proxies have the files that users copy, serve/haproxy.cfg
and serve/nginx.conf. Each replica runs its model in one thread. By default the model is one of mean colours, so that
what is measured is the way there and back; the body is a JPEG of about 45 kB, the answer raw float32. All are asked in
turn, round after round; a line gives medians over the rounds, of the rates the least and the most too, the ratio to the
direct server in the same round, and processor time per request, which a busy machine disturbs least. Clients, proxy and
replicas share the machine's cores: three replicas can be faster than one only where there are cores for them.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
from proxy_helpers import KINDS, Replica, proxy, replicas
from serve_helpers import write_model

SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
wrk.headers["Content-Type"] = "image/jpeg"
wrk.headers["Accept"] = "application/octet-stream"

done = function(summary, latency, requests)
  local failed = summary.errors.status + summary.errors.read + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), failed))
end
"""
Row = tuple[float, float, float, float, float]
"""Requests per second, p50 and p99 in milliseconds, microseconds of processor per request in the proxy and in clf."""
TICK = os.sysconf("SC_CLK_TCK")


def jpeg() -> bytes:
    """About 45 kB."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def spent(pids: Sequence[int]) -> float:
    """Seconds of processor time of processes and their children."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total += spent([int(child) for child in children])
    return total


def load(base: str, script: Path, clients: int, seconds: float, pids: tuple[Sequence[int], Sequence[int]]) -> Row:
    before = [spent(each) for each in pids]
    command = [
        "wrk",
        "-t1",
        "--timeout=60s",
        f"-c{clients}",
        f"-d{seconds:g}s",
        "-s",
        str(script),
        f"{base}/v1/embeddings",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", text)
    assert found, text
    asked, micros, median, tail, failed = map(int, found.groups())
    assert not failed, text
    proxied, served = ((spent(each) - then) / asked * 1e6 for each, then in zip(pids, before, strict=True))
    return asked / micros * 1e6, median / 1000, tail / 1000, proxied, served


def targets(stack: ExitStack, folder: Path, every: Sequence[Replica]) -> dict[str, tuple[str, list[int]]]:
    """By what they are called: the address, and the process of the proxy."""
    ports = [each.port for each in every]
    found: dict[str, tuple[str, list[int]]] = {"direct, 1 server": (every[0].base, [])}
    for n in (1, 3):
        for kind in KINDS:
            made = stack.enter_context(proxy(kind, folder / f"{kind}{n}", (ports * 3)[:3] if n == 3 else ports[:1] * 3))
            found[f"{kind}, {n} replica{'s' if n > 1 else ''}"] = (made.base, [made.pid])
    return found


def show(name: str, rows: list[Row], direct: list[Row]) -> None:
    rates = [row[0] for row in rows]
    ratio = statistics.median(row[0] / beside[0] for row, beside in zip(rows, direct, strict=True))
    middle, tail = (statistics.median(row[i] for row in rows) for i in (1, 2))
    costs = " + ".join(f"{statistics.median(row[i] for row in rows):4.0f}" for i in (3, 4))
    spread = f"{statistics.median(rates):6.0f} ({min(rates):.0f}-{max(rates):.0f})"
    print(
        f"{name:20} {spread:22} req/s   p50 {middle:6.2f} ms   p99 {tail:7.2f} ms   {ratio:.2f} of direct   {costs} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        body, script = folder / "body", folder / "ask.lua"
        body.write_bytes(options.image.read_bytes() if options.image else jpeg())
        script.write_text(SCRIPT.replace("{body}", str(body)))
        model = options.model or write_model(folder / "model")
        every = stack.enter_context(replicas(folder, [(model, "--no-ui", "--threads", 1)] * 3))
        served = [each.process.pid for each in every]
        places = targets(stack, folder, every)
        rows: dict[str, list[Row]] = {place: [] for place in places}
        for _ in range(options.rounds + 1):
            for place, (base, pids) in places.items():
                rows[place].append(load(base, script, options.clients, options.seconds, (pids, served)))
        print(f"{body.stat().st_size / 1000:.0f} kB, {options.clients} connections, {options.rounds} rounds")
        for place, found in rows.items():
            show(place, found[1:], rows["direct, 1 server"][1:])  # in the first round all is cold


if __name__ == "__main__":
    main()
