"""What Ray Serve costs and gives: ``python tests/benchmarks/ray_serving.py --rounds 5 --seconds 4``.

Subjects: one plain ``clf serve``, and ``clf serve --engine ray`` with one and with two replicas, behind Ray's HAProxy
and behind its Python proxy. All of them run at once and take turns at being asked; those that are not are idle,
and Ray idles at a few per cent of a core. Two encoders with random weights: ``tiny``, which takes nearly nothing, so
that what is seen is the way of a request; and ``conv``, three convolutions at 224 pixels, some milliseconds a photo.

Eight connections ask again and again (closed loop) with one JPEG of 640 x 480 in a raw body, from a process of its own
on the same cores. Printed: medians over the rounds of images per second, of the median and the 99th percentile of an
answer's time, and of processor milliseconds per image over all processes of the subject; the ratio to the plain
server's rate in the same round; and the memory (resident, summed over the processes; what they share counts each time).
Where other work shares the cores, only the processor's clock says something. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "serve")]

from running import free_port  # noqa: E402
from serve_helpers import PROGRAM, write_model  # noqa: E402
from serving import photographs  # noqa: E402

from clf.manifest import MODEL_FILE, Manifest, Parity, sha256_file, write_manifest  # noqa: E402

SUBJECTS = {
    "plain": [],
    "ray, 1 replica, HAProxy": ["--engine", "ray", "--replicas", "1"],
    "ray, 2 replicas, HAProxy": ["--engine", "ray", "--replicas", "2"],
    "ray, 1 replica, Python": ["--engine", "ray", "--replicas", "1", "--ingress", "python"],
    "ray, 2 replicas, Python": ["--engine", "ray", "--replicas", "2", "--ingress", "python"],
}
CONNECTIONS = 8
Figures: TypeAlias = tuple[float, float, float, float]
"""Images per second, median and 99th percentile of milliseconds, processor milliseconds per image."""


def write_conv(folder: Path) -> Path:
    """A model folder whose encoder is three strided convolutions, their means of unit length."""
    folder.mkdir(parents=True)
    rng, weights, channels = np.random.default_rng(0), [], 3
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    for index, wide in enumerate((32, 64, 128)):
        kernel = rng.normal(0, 0.05, (wide, channels, 5, 5)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes += [
            helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"y{index}"], strides=[2, 2], pads=[2, 2, 2, 2]),
            helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]),
        ]
        channels = wide
    nodes += [
        helper.make_node("GlobalAveragePool", ["x3"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("LpNormalization", ["flat"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 224, 224, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 128])],
        weights,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / MODEL_FILE))
    manifest = Manifest(
        name="conv",
        image_size=224,
        dim=128,
        channels=3,
        sha256=sha256_file(folder / MODEL_FILE),
        plugin="none",
        backbone="convolutions",
        parity=Parity(images=1, min_cosine=1.0, max_abs_error=0.0),
    )
    write_manifest(folder, manifest)
    return folder


@dataclass
class Subject:
    name: str
    words: list[str]
    models: list[Path]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self, stack: ExitStack) -> None:
        self.port = free_port()
        words = ["serve", *map(str, self.models), "--no-ui", "--port", str(self.port), *self.words]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            env={**os.environ, "CLF_BENCHMARK": self.mark},
            stdout=subprocess.DEVNULL,
        )
        stack.callback(self.stop)

    def wait(self) -> None:
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} has ended with status {self.process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5).read()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)

    def _processes(self) -> list[tuple[float, int]]:
        """Processor seconds and resident bytes of each."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
                    pages = int((folder / "statm").read_text().split()[1])
                    ticks = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
                    found.append((ticks, pages * os.sysconf("SC_PAGE_SIZE")))
            except OSError:
                continue
        return found

    def processor(self) -> float:
        """Seconds of the processor that it has used."""
        return sum(seconds for seconds, _ in self._processes())

    def memory(self) -> tuple[int, int]:
        """Processes, and their resident bytes together."""
        sizes = [size for _, size in self._processes()]
        return len(sizes), sum(sizes)

    def asked(self, model: str, blobs: list[bytes], seconds: float) -> Figures:
        before = self.processor()
        number, took, half, slow = ask(self.port, model, blobs, seconds)
        return number / took, half, slow, 1000 * (self.processor() - before) / number


def ask(port: int, model: str, blobs: list[bytes], seconds: float) -> Figures:
    """Images, seconds, and the median and 99th percentile of milliseconds; from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_asked, (port, model, blobs, seconds))


def _asked(port: int, model: str, blobs: list[bytes], seconds: float) -> Figures:
    times: list[float] = []

    async def connection(number: int, deadline: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while time.monotonic() < deadline:
            blob = blobs[turn % len(blobs)]
            turn += 1
            head = (
                f"POST /v1/embeddings?model={model} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                f"Accept: application/octet-stream\r\nContent-Length: {len(blob)}\r\n\r\n"
            )
            start = time.monotonic()
            writer.write(head.encode() + blob)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if not answer.startswith("http/1.1 200"):
                raise SystemExit(answer)
            await reader.readexactly(int(answer.partition("content-length:")[2].split()[0]))
            times.append(time.monotonic() - start)
        writer.close()

    async def all_of_them() -> None:
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(connection(number, deadline) for number in range(CONNECTIONS)))

    start = time.monotonic()
    asyncio.run(all_of_them())
    took = time.monotonic() - start
    ordered = sorted(times)
    return len(times), took, 1000 * ordered[len(ordered) // 2], 1000 * ordered[int(0.99 * (len(ordered) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    blobs = photographs(16)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        models = [write_model(Path(scratch, "tiny")), write_conv(Path(scratch, "conv"))]
        subjects = [Subject(name, words, models) for name, words in SUBJECTS.items()]
        for subject in subjects:
            start = time.monotonic()
            subject.start(stack)
            subject.wait()
            print(f"{subject.name}: ready after {time.monotonic() - start:.1f} s", flush=True)
        found: dict[tuple[str, str], list[Figures]] = {}
        for turn in range(-1, options.rounds):
            for model in ("tiny", "conv"):
                for subject in subjects:
                    figures = subject.asked(model, blobs, options.seconds if turn >= 0 else 1.0)
                    if turn >= 0:  # the first is to warm up
                        found.setdefault((model, subject.name), []).append(figures)
        report(found, subjects)


def report(found: dict[tuple[str, str], list[Figures]], subjects: list[Subject]) -> None:
    for model in ("tiny", "conv"):
        print(f"\n{model:26} images/s   p50 ms   p99 ms   CPU ms   of plain (least to most)")
        plain = [rate for rate, *_ in found[model, "plain"]]
        for subject in subjects:
            rounds = found[model, subject.name]
            rate, half, slow, work = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = sorted(mine / its for (mine, *_), its in zip(rounds, plain, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{subject.name:26} {rate:8.0f} {half:8.1f} {slow:8.1f} {work:8.1f}   {spread}")
    print()
    for subject in subjects:
        number, size = subject.memory()
        print(f"{subject.name:26} {number:3d} processes, {size / 2**20:6.0f} MiB")


if __name__ == "__main__":
    main()
