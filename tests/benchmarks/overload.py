"""A server under more load than it can bear: ``python tests/benchmarks/overload.py --seconds 30``.

Starts ``clf serve`` in a process of its own, on a model of convolutions made here (or ``--model FOLDER``), measures its
capacity with 16 connections that always wait for an answer, and then sends raw JPEGs at 0.5, 1, 2 and 5 times that
capacity at random (Poisson) moments, whatever the answers are: an open loop, from another process, by plain sockets.
Latency counts from the moment a request was due, so a client that falls behind shows; its lag is printed. A refusal's
time is what the client saw of it, and holds two delays that are not the server's: that of the client's own event loop,
and that of the machine, which a process shows that does nothing but sleep. Both are measured meanwhile and printed.

Goodput is answers within the deadline (``--timeout``) per second; beside it the same for each CPU second that the
server was given, which other work on the machine does not touch. ``room`` is the time from a refusal until a request
sent later was accepted; ``kept`` is the share of refusals after which that happened within the ``Retry-After`` they
carried. Where client and server share the cores, the client takes its part of them: ``--nice 5`` puts the server's
needs below the client's, as a machine of the client's own would.

``--simulate`` needs no server: the true batcher on a simulated clock, against every pair of batch size and window of a
grid, for a CPU-like model (0 + 20 ms an image) and a GPU-like one (5 ms + 0.2 ms an image).
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

SIZE = 224
TICK = 0.005  # seconds between two looks at how late something wakes
PROGRAM = "import sys\nfrom clf.cli import main\nmain(sys.argv[1:])"
LAYERS = ((3, 64, 7, 4), (64, 128, 3, 2), (128, 256, 3, 1), (256, 256, 3, 1))  # 1.6 GFLOP an image
WINDOWS = (0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)


def write_model(folder: Path) -> Path:
    """Convolutions with random weights, their mean over the places, of unit length."""
    from onnx import TensorProto, helper, numpy_helper, save

    from clf.manifest import MODEL_FILE, Manifest, Parity, sha256_file, write_manifest

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    weights = [numpy_helper.from_array(np.array(255.0, np.float32), "scale")]
    for i, (came, leaves, kernel, stride) in enumerate(LAYERS):
        w = rng.normal(0, (2 / (came * kernel**2)) ** 0.5, (leaves, came, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"y{i}"], strides=[stride] * 2, pads=pads))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{len(LAYERS)}"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("LpNormalization", ["flat"], ["embeddings"], axis=1, p=2),
    ]
    dim = LAYERS[-1][1]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", dim])],
        weights,
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MODEL_FILE
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    facts = {"name": "convolutions", "image_size": SIZE, "dim": dim, "channels": 3, "sha256": sha256_file(file)}
    parity = Parity(images=1, min_cosine=1.0, max_abs_error=0.0)
    write_manifest(folder, Manifest(**facts, plugin="none", backbone="convolutions", parity=parity))
    return folder


def jpeg(seed: int) -> bytes:
    """A photograph-like JPEG of 500 x 375, about 50 kB."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    pixels = np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def server(model: Path, timeout: float, nice: int, more: Sequence[str]) -> Iterator[tuple[str, int]]:
    """``clf serve`` with everything at its defaults but the deadline; yields its address and process when ready."""
    command = [sys.executable, "-c", PROGRAM, "serve", str(model), "--port", "0", "--no-ui"]
    process = subprocess.Popen(
        ["nice", "-n", str(nice), *command, "--timeout", f"{timeout:g}", *more],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"on (http://\S+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        asyncio.run(_until_ready(found[1]))
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(process: int) -> float:
    """Of all threads of a process so far; not a number where there is no /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _until_ready(base: str) -> None:
    for _ in range(600):
        answer = await Connections(base).send("GET", "/health/ready", b"")
        if answer.status == 200:
            return
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not become ready")


class Answer(NamedTuple):
    status: int
    """0: the connection broke."""
    retry_after: float


class Connections:
    """Keeps connections open and uses one that is free; plain sockets, as an HTTP library would be the bottleneck."""

    def __init__(self, base: str) -> None:
        self._address = urlsplit(base)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, method: str, path: str, body: bytes) -> Answer:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            if self._free:
                reader, writer = self._free.pop()
            else:
                reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
            writer.write(head.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            await reader.readexactly(int(fields.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError):
            return Answer(0, 0.0)
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return Answer(int(lines[0].split()[1]), float(fields.get("retry-after", 0)))


class Sent(NamedTuple):
    due: float
    lag: float
    """Seconds from when it was due until it was sent."""
    end: float
    status: int
    retry_after: float


async def open_loop(base: str, rate: float, seconds: float, blobs: Sequence[bytes]) -> tuple[list[Sent], list[float]]:
    """What was sent, and how late this event loop was at work that was due at a known moment, in seconds."""
    connections, clock = Connections(base), time.perf_counter
    start, due, dice = clock(), 0.0, random.Random(0)
    sent: list[Sent] = []

    async def one(due: float, blob: bytes) -> None:
        lag = clock() - start - due
        answer = await connections.send("POST", "/v1/embeddings?encoding_format=base64", blob)
        sent.append(Sent(due, lag, clock() - start, *answer))

    late: list[float] = []
    watch = asyncio.create_task(_watch(late))
    tasks = []
    while (due := due + dice.expovariate(rate)) < seconds:
        if (early := start + due - clock()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(one(due, dice.choice(blobs))))
    await asyncio.gather(*tasks)
    watch.cancel()
    return sent, late


async def _watch(late: list[float]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + TICK
        await asyncio.sleep(TICK)
        late.append(clock() - due)


def idle(seconds: float) -> list[float]:
    """How late a process wakes that only sleeps, in seconds."""
    end, late = time.monotonic() + seconds, []
    while (start := time.monotonic()) < end:
        time.sleep(TICK)
        late.append(time.monotonic() - start - TICK)
    return late


async def closed_loop(base: str, clients: int, seconds: float, blobs: Sequence[bytes]) -> float:
    """Images per second with so many clients that each wait for their answers; a third of the time is not counted."""
    connections, clock = Connections(base), time.perf_counter
    start, done = clock(), 0

    async def client() -> None:
        nonlocal done
        while (now := clock() - start) < seconds:
            answer = await connections.send("POST", "/v1/embeddings?encoding_format=base64", random.choice(blobs))
            done += answer.status == 200 and now > seconds / 3

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (clock() - start - seconds / 3)


def in_a_process(*words: object) -> subprocess.Popen[bytes]:
    """This file, run as a client by itself; it prints JSON."""
    return subprocess.Popen([sys.executable, __file__, "--client", *map(str, words)], stdout=subprocess.PIPE)


def told(process: subprocess.Popen[bytes]) -> Any:
    """What a client prints, once it has ended."""
    words, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a client ended with status {process.returncode}")
    return json.loads(words)


def client(kind: str, base: str, number: float, seconds: float) -> None:
    if kind == "idle":
        print(json.dumps(idle(seconds)))
        return
    blobs = [jpeg(seed) for seed in range(16)]
    if kind == "closed":
        print(json.dumps(asyncio.run(closed_loop(base, int(number), seconds, blobs))))
    else:
        print(json.dumps(asyncio.run(open_loop(base, number, seconds, blobs))))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def row(sent: list[Sent], seconds: float, timeout: float) -> tuple[float, str]:
    """Goodput, and the other columns in words."""
    accepted = [one.end - one.due for one in sent if one.status == 200]
    good = sum(latency <= timeout for latency in accepted)
    refused = [one for one in sent if one.status in (429, 503) and one.retry_after]
    late = [one for one in sent if one.status == 503]
    answering = max(one.end for one in sent) - min(one.due for one in sent)
    refusals = [1000 * (one.end - one.due - one.lag) for one in refused if one not in late]
    moments = sorted(one.due + one.lag for one in sent if one.status == 200)
    rooms = []
    for one in refused:
        after = bisect.bisect_right(moments, one.end)
        if one.end + one.retry_after < seconds:  # later ones cannot be told
            rooms.append((moments[after] - one.end if after < len(moments) else float("inf"), one.retry_after))
    kept = sum(room <= hint for room, hint in rooms) / len(rooms) if rooms else float("nan")
    hints = [hint for _, hint in rooms]
    words = (
        f"{percentile(accepted, 0.5):6.2f} {percentile(accepted, 0.99):6.2f} s, "
        f"{good / max(1, len(accepted) + len(late)):6.1%} in time | {len(refused) - len(late):6} refused in "
        f"{percentile(refusals, 0.5):6.1f} {percentile(refusals, 0.99):6.1f} ms, hint {percentile(hints, 0.5):.0f} "
        f"(most {max(hints, default=float('nan')):.0f}) s, room {percentile([room for room, _ in rooms], 0.5):.3f} s, "
        f"kept {kept:6.1%} | {sum(one.status not in (200, 429, 503) for one in sent)} broken, "
        f"client's lag {1000 * percentile([one.lag for one in sent], 0.99):.1f} ms"
    )
    return good / max(seconds, answering), words


def measure(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or write_model(Path(folder) / "model")
        with server(model, arguments.timeout, arguments.nice, arguments.serve) as (base, process):
            capacity = told(in_a_process("closed", base, 16, min(arguments.seconds, 15)))
            print(f"capacity {capacity:.1f} images/s with 16 connections; deadline {arguments.timeout:g} s")
            print("load   offered  goodput  for a CPU s | accepted: p50, p99 | refused: p50, p99")
            goodputs = {}
            for load in arguments.loads:
                spent = cpu_seconds(process)
                sleeper = in_a_process("idle", base, 0, arguments.seconds)
                found, looped = told(in_a_process("open", base, load * capacity, arguments.seconds))
                spent = cpu_seconds(process) - spent
                machine = told(sleeper)
                sent = [Sent(due, lag, end, int(status), hint) for due, lag, end, status, hint in found]
                goodputs[load], words = row(sent, arguments.seconds, arguments.timeout)
                good = sum(one.status == 200 and one.end - one.due <= arguments.timeout for one in sent) / spent
                offered = len(sent) / arguments.seconds
                words += f", its loop's {1000 * percentile(looped, 0.99):.1f} ms"
                words += f", the machine's {1000 * percentile(machine, 0.99):.1f} ms"
                print(f"{load:4g} {offered:9.1f} {goodputs[load]:8.1f} {good:12.1f} | {words}", flush=True)
            peak = max(capacity, *goodputs.values())
            last = arguments.loads[-1]
            print(f"goodput at {last:g} times the capacity: {goodputs[last] / peak:.1%} of the best ({peak:.1f}/s)")


def simulate(images: int) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
    from batcher_simulation import CPU, GPU, fixed, learned, poisson

    for model in (CPU, GPU):
        print(f"{model.name}: {1000 * model.fixed:g} + {1000 * model.each:g} n ms, up to {model.capacity:.0f} images/s")
        print("  load | learned: mean ms, images/s | best fixed: mean ms (size, window), images/s | learned / best")
        for load in (0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 2.0):
            arrivals = poisson(load * model.capacity, images)
            mine = learned(model, arrivals)
            grid = [(fixed(model, arrivals, size, window), size, window) for size in model.sizes for window in WINDOWS]
            best, size, window = min(grid, key=lambda tried: tried[0].latency)
            most = max(outcome.throughput for outcome, _, _ in grid)
            print(
                f"{load:6.2f} | {1000 * mine.latency:9.2f} {mine.throughput:8.1f} | {1000 * best.latency:9.2f} "
                f"({size:3}, {1000 * window:3g} ms) {most:8.1f} | {mine.latency / best.latency:6.3f} "
                f"{mine.throughput / most:6.3f}",
                flush=True,
            )


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        kind, base, number, seconds = sys.argv[2:]
        client(kind, base, float(number), float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder made by clf export; by default convolutions, made here")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    parser.add_argument("--timeout", type=float, default=5.0, help="the deadline, in seconds")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 1.0, 2.0, 5.0])
    parser.add_argument("--nice", type=int, default=0, help="of the server")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="further words for clf serve")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--images", type=int, default=20_000, help="of each simulated load")
    arguments = parser.parse_args()
    if arguments.simulate:
        simulate(arguments.images)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
