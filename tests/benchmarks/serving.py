"""What serving costs beyond decoding and the model: ``python tests/benchmarks/serving.py CACHE --images 64``.

Subjects take turns, the others stopped meanwhile (SIGSTOP), several rounds; JPEGs of 640 x 480 over loopback:

- bare: a loop in one process that decodes with the server's own preprocessing and runs the same ONNX file. One image
  after the other for concurrency 1; for more, decoding in as many threads as there are cores beside the model;
- clf: ``clf serve`` with raw bodies (and raw float32 back), forms, and base64 in JSON;
- litserve: LitServe around the same file (``--litserve PYTHON``), its batching off, on, and with two workers;
- infinity: infinity-emb (``--infinity PYTHON``) on CLIP's ViT-B/32, which clf then serves from ONNX with the same
  weights; the cosine between their answers is printed;
- openvino: clf with ``--provider openvino`` and a bare OpenVINO loop (``--openvino``);
- front: ``clf serve`` with decoding and the model patched away, to see what HTTP and batching alone cost.

Images per second of the clock and processor milliseconds per image of the subject's process tree, as medians (least to
most) over the rounds. *Tax* is the share of the server's time that the bare loop would not have needed, by the
processor's clock and by the wall's; the client, in this process, uses the same cores and weighs on the wall's only.
Where other work shares the cores, only the processor's clock says something. Models are made once, in CACHE, by
``serving_models.py``. Linux only.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "serve"))

from vitals import vitals  # noqa: E402

CORES = len(os.sched_getaffinity(0))
SERVE = "import sys\nfrom clf.cli import main\nmain(sys.argv[1:])"
NOTHING = f"""
import numpy as np
from clf_serve.engine import Engine
Engine.prepare = lambda self, source, limits=None: self.blank()
Engine.embed = lambda self, pixels: np.ones((len(pixels), self.dim), np.float32)
{SERVE}"""


def photographs(n: int) -> list[bytes]:
    """JPEGs of 640 x 480 with detail at every scale, about 70 kB each."""
    found = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        pixels = np.full((480, 640, 3), 128.0)
        for scale, strength in ((120, 60), (40, 30), (10, 12), (2, 5)):
            small = rng.normal(0, strength, (480 // scale, 640 // scale, 3)).clip(-127, 127) + 128
            layer = Image.fromarray(small.astype(np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
            pixels += np.asarray(layer) - 128.0
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        found.append(buffer.getvalue())
    return found


def request(kind: str, blobs: list[bytes]) -> bytes:
    """A whole HTTP request that holds the images."""
    path, content_type = "/v1/embeddings", "application/json"
    if kind == "raw":
        content_type, body = "image/jpeg", blobs[0]
    elif kind == "form":
        content_type = "multipart/form-data; boundary=frontier"
        head = (
            b'--frontier\r\nContent-Disposition: form-data; name="f"; filename="x"\r\nContent-Type: image/jpeg\r\n\r\n'
        )
        tail = b'--frontier\r\nContent-Disposition: form-data; name="encoding_format"\r\n\r\nbase64\r\n--frontier--\r\n'
        body = b"".join(head + blob + b"\r\n" for blob in blobs) + tail
    elif kind == "litserve":
        path, body = "/predict", json.dumps({"image": base64.b64encode(blobs[0]).decode()}).encode()
    else:
        uris = ["data:image/jpeg;base64," + base64.b64encode(blob).decode() for blob in blobs]
        options = {"encoding_format": "base64", "modality": "image"}
        body = json.dumps({"input": uris if len(uris) > 1 else uris[0], **options}).encode()
        path = "/embeddings" if kind == "infinity" else path
    accept = "application/octet-stream" if kind == "raw" else "application/json"
    words = f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Type: {content_type}\r\n"
    return f"{words}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ask(connection: socket.socket, message: bytes) -> tuple[int, bytes]:
    """One request and its answer on an open connection: status and body."""
    connection.sendall(message)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    if length is None:
        raise ConnectionError(f"an answer without a length: {head[:200]!r}")
    parts, left = [body], int(length[1]) - len(body)
    while left > 0:
        parts.append(connection.recv(1 << 18))
        left -= len(parts[-1])
    return int(head[9:12]), b"".join(parts)


@dataclass
class Turn:
    seconds: float
    cpu: float
    images: int


@dataclass
class Subject:
    """Something that embeds images, in a process group of its own."""

    name: str
    process: subprocess.Popen[str]
    log: IO[str]
    port: int = 0
    turns: dict[tuple[str, int, int], list[Turn]] = field(default_factory=dict)

    @contextmanager
    def awake(self) -> Iterator[None]:
        os.killpg(self.process.pid, signal.SIGCONT)
        time.sleep(0.2)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def note(self, key: tuple[str, int, int], images: int, work: Callable[[], None]) -> None:
        before, start = vitals(self.process.pid).cpu, time.perf_counter()
        work()
        turn = Turn(time.perf_counter() - start, vitals(self.process.pid).cpu - before, images)
        self.turns.setdefault(key, []).append(turn)

    def load(self, messages: list[bytes], callers: int, requests: int) -> None:
        """Sends that many requests from that many connections, each waiting for its answer."""
        numbers = itertools.count()
        failures: list[str] = []

        def call() -> None:
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while (number := next(numbers)) < requests and not failures:
                    status, body = ask(connection, messages[number % len(messages)])
                    if status != 200:
                        failures.append(f"{self.name}: {status} {body[:300]!r}")

        threads = [threading.Thread(target=call) for _ in range(min(callers, requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise SystemExit(failures[0])

    def bare(self, images: int, callers: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{images} {callers}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline().strip() != "done":
            raise SystemExit(f"{self.name} failed")


class Stage:
    """Starts subjects, and ends them all."""

    def __init__(self, cache: Path, stack: ExitStack) -> None:
        self.cache, self._stack = cache, stack
        self._quiet = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}

    def bare(self, name: str, model: str, batch: int, runtime: str = "onnxruntime") -> Subject:
        words = [sys.executable, str(HERE), str(self.cache), "--bare", model, str(batch), runtime]
        subject = self._start(name, words)
        subject.bare(4, 1)
        return self._rest(subject)

    def clf(self, name: str, model: str, *options: str, program: str = SERVE) -> Subject:
        port = free_port()
        words = [sys.executable, "-c", program, "serve", str(self.cache / model), "--no-ui", "--timeout", "600"]
        return self._ready(self._start(name, [*words, "--port", str(port), *options], port), "raw")

    def litserve(self, name: str, python: str, model: str, batch: int, workers: int) -> Subject:
        port = free_port()
        words = [python, str(HERE.with_name("serving_litserve.py")), str(self.cache / model), str(port)]
        return self._ready(self._start(name, [*words, str(batch), str(workers)], port), "litserve")

    def infinity(self, name: str, python: str) -> Subject:
        port = free_port()
        program = str(Path(python).with_name("infinity_emb"))
        words = [program, "v2", "--model-id", str(self.cache / "tower"), "--engine", "torch"]
        options = ["--device", "cpu", "--no-bettertransformer", "--port", str(port), "--host", "127.0.0.1"]
        return self._ready(self._start(name, [*words, *options], port), "infinity")

    def _start(self, name: str, words: list[str], port: int = 0) -> Subject:
        log: IO[str] = self._stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        pipe = subprocess.PIPE if not port else log
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=pipe, stderr=log, text=True, env=self._quiet, start_new_session=True
        )
        self._stack.callback(end, process)
        return Subject(name, process, log, port)

    def _ready(self, subject: Subject, kind: str) -> Subject:
        """Waits until a photograph is embedded, then sends a few more."""
        message = request(kind, photographs(1))
        deadline = time.monotonic() + 900
        while True:
            try:
                with socket.create_connection(("127.0.0.1", subject.port)) as connection:
                    status, body = ask(connection, message)
                    if status == 200:
                        break
                    if status != 503:  # which means: not yet
                        raise SystemExit(f"{subject.name}: {status} {body[:300]!r}")
            except OSError:
                pass
            if time.monotonic() > deadline or subject.process.poll() is not None:
                subject.log.seek(0)
                raise SystemExit(f"{subject.name} does not start:\n{subject.log.read()[-2000:]}")
            time.sleep(0.5)
        subject.load([message], 4, 8)
        return self._rest(subject)

    def _rest(self, subject: Subject) -> Subject:
        os.killpg(subject.process.pid, signal.SIGSTOP)
        return subject


def end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def bare_loop(folder: Path, batch: int, runtime: str) -> None:
    """The child of :meth:`Stage.bare`: obeys lines of ``IMAGES CALLERS`` on standard input."""
    from clf.images import prepare

    blobs = photographs(8)
    run = runner(folder / "encoder.onnx", runtime)
    with ThreadPoolExecutor(CORES) as pool:
        for line in sys.stdin:
            images, callers = map(int, line.split())
            order = [blobs[i % len(blobs)] for i in range(images)]
            if callers == 1:
                for blob in order:
                    run(prepare(blob, 224)[None])
            else:
                pixels = pool.map(lambda blob: prepare(blob, 224), order)
                while part := list(itertools.islice(pixels, batch)):
                    run(np.stack(part))
            print("done", flush=True)


def runner(model: Path, runtime: str) -> Callable[[np.ndarray], object]:  # type: ignore[type-arg]
    """Spinning threads are off as in the server; ``spinning`` has them, as onnxruntime's default."""
    if runtime == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(str(model), "CPU", {"INFERENCE_NUM_THREADS": CORES})
        return lambda pixels: compiled(pixels)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(runtime == "spinning")))
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["embeddings"], {"images": pixels})


def stages(model: Path, rounds: int) -> tuple[float, float]:
    """Processor seconds of decoding one photograph and of one run of the model, alone: medians."""
    from clf.images import prepare

    blobs, run = photographs(8), runner(model, "onnxruntime")
    pixels = [prepare(blob, 224)[None] for blob in blobs]
    decoding, running = [], []
    for _ in range(rounds):
        start = time.process_time()
        for blob in blobs:
            prepare(blob, 224)
        middle = time.process_time()
        for image in pixels:
            run(image)
        decoding.append((middle - start) / len(blobs))
        running.append((time.process_time() - middle) / len(blobs))
    return statistics.median(decoding), statistics.median(running)


def spread(values: list[float], form: str = ".1f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(subjects: list[Subject], bare: list[Subject], keys: list[tuple[str, int, int]]) -> None:
    """One line for each subject and kind of request; tax against the cheapest bare loop of the same runtime."""
    for callers in sorted({key[1] for key in keys}):
        at = ("bare", callers, 1)
        print(f"\nconcurrency {callers}\n| | images/s | CPU ms an image | tax by CPU | tax by the clock |")
        print("|---|---|---|---|---|")
        for subject in [*bare, *subjects]:
            for key, turns in sorted(subject.turns.items()):
                if key[1] != callers:
                    continue
                rate = [turn.images / turn.seconds for turn in turns]
                cost = [1000 * turn.cpu / turn.images for turn in turns]
                words = f"{subject.name}, {key[0]}" if key[0] not in subject.name else subject.name
                words += f", {key[2]} a call" if key[2] > 1 else ""
                taxes = " | "
                same = [loop for loop in bare if ("openvino" in loop.name.lower()) == ("openvino" in subject.name)]
                best = min(same, key=lambda loop: statistics.median(turn.cpu for turn in loop.turns[at]), default=None)
                if best is not None and subject not in bare:
                    pairs = list(zip(turns, best.turns[at], strict=True))
                    by_cpu = [100 * (1 - b.cpu / b.images / (t.cpu / t.images)) for t, b in pairs]
                    by_clock = [100 * (1 - b.seconds / b.images / (t.seconds / t.images)) for t, b in pairs]
                    taxes = f"{spread(by_cpu)} % | {spread(by_clock)} %"
                print(f"| {words} | {spread(rate)} | {spread(cost)} | {taxes} |", flush=True)


def compare(arguments: argparse.Namespace, model: str, kinds: dict[str, list[tuple[str, int]]], stage: Stage) -> None:
    """Measures all subjects of one model. ``kinds``: for each, its kinds of requests and images a call."""
    blobs = photographs(8)
    bare = [stage.bare("bare, batch 1", model, 1), stage.bare("bare, batch 8", model, 8)]
    bare.append(stage.bare("bare, spinning threads", model, 1, "spinning"))
    subjects = {"clf": stage.clf("clf", model)}
    if arguments.openvino:
        bare.append(stage.bare("bare OpenVINO", model, 1, "openvino"))
        subjects["openvino"] = stage.clf("clf, openvino", model, "--provider", "openvino")
    if arguments.litserve and "litserve" in kinds:
        for batch, workers in ((1, 1), (8, 1), (1, 2)):
            name = f"litserve, max_batch_size {batch}, workers {workers}"
            subjects[name] = stage.litserve(name, arguments.litserve, model, batch, workers)
    if "infinity" in kinds:
        subjects["infinity"] = stage.infinity("infinity", arguments.infinity)
        agree(subjects["clf"], subjects["infinity"], blobs[0])
    plan: list[tuple[Subject, str, int, int]] = [(loop, "bare", n, 1) for loop in bare for n in arguments.concurrency]
    for name, subject in subjects.items():
        for kind, per in kinds.get(name.partition(",")[0], kinds["clf"]):
            plan += [(subject, kind, callers, per) for callers in arguments.concurrency]
    for _ in range(arguments.rounds):
        for subject, kind, callers, per in plan:
            calls = max(1, arguments.images // per)
            messages = (
                [request(kind, [blobs[(i + j) % 8] for j in range(per)]) for i in range(8)] if subject.port else []
            )
            with subject.awake():
                if subject.port:
                    work = lambda: subject.load(messages, callers, calls)  # noqa: B023, E731
                else:
                    work = lambda: subject.bare(calls, callers)  # noqa: B023, E731
                subject.note((kind, callers, per), calls * per, work)
    decode, run = stages(stage.cache / model / "encoder.onnx", arguments.rounds)
    print(
        f"\n## {model}\n\ndecoding alone {1000 * decode:.1f} CPU ms an image, the model alone {1000 * run:.1f}: ",
        end="",
    )
    print(f"{CORES} cores cannot do more than {CORES / (decode + run):.1f} images/s")
    table(list(subjects.values()), bare, [(kind, callers, per) for _, kind, callers, per in plan])


def agree(one: Subject, other: Subject, blob: bytes) -> None:
    """Prints the cosine between two servers' vectors of one photograph."""
    rows = []
    for subject, kind in ((one, "json"), (other, "infinity")):
        with subject.awake(), socket.create_connection(("127.0.0.1", subject.port)) as connection:
            reply = json.loads(ask(connection, request(kind, [blob]))[1])
        rows.append(np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), "<f4").astype(np.float64))
    cosine = rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    print(f"cosine between {one.name} and {other.name}: {cosine:.6f}", flush=True)


def front(arguments: argparse.Namespace, model: str, stage: Stage) -> None:
    """Requests per second of a server that does everything but decode and embed; 45 kB bodies, as many floats as D."""
    subject = stage.clf("front process", model, program=NOTHING)
    body = photographs(1)[0][:45_000].ljust(45_000, b"\0")
    for _ in range(arguments.rounds):
        for kind in ("raw", "form", "json"):
            with subject.awake():
                work = lambda: subject.load([request(kind, [body])], 16, 1500)  # noqa: B023, E731
                subject.note((kind, 16, 1), 1500, work)
    print(f"\n## front process, no decoding and no model ({model}'s dimensions)")
    table([subject], [], [("raw", 16, 1)])


def make(arguments: argparse.Namespace) -> None:
    script = str(HERE.with_name("serving_models.py"))
    for model in arguments.models:
        if not (arguments.cache / model / "manifest.json").exists():
            words = [sys.executable, script, "timm", model, str(arguments.cache / model)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    if arguments.infinity and not (arguments.cache / "clip" / "manifest.json").exists():
        words = [arguments.infinity, script, "clip", str(arguments.cache / "tower"), str(arguments.cache / "clip")]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder for the models; kept")
    parser.add_argument("--models", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="of each turn")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--infinity", metavar="PYTHON", help="an interpreter with infinity-emb, onnx and onnxscript")
    parser.add_argument("--litserve", metavar="PYTHON", help="an interpreter with litserve and onnxruntime")
    parser.add_argument("--openvino", action="store_true", help="measure clf serve --provider openvino too")
    parser.add_argument("--front", action="store_true", help="measure HTTP and batching alone too")
    parser.add_argument("--bare", nargs=3, metavar=("MODEL", "BATCH", "RUNTIME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_loop(arguments.cache / arguments.bare[0], int(arguments.bare[1]), arguments.bare[2])
        return
    make(arguments)
    one = [("raw", 1), ("form", 1), ("json", 1)]
    for model in arguments.models:
        with ExitStack() as stack:
            compare(arguments, model, {"clf": one, "litserve": [("litserve", 1)]}, Stage(arguments.cache, stack))
    if arguments.infinity:
        with ExitStack() as stack:
            kinds = {"clf": [("json", 1), ("json", 8)], "infinity": [("infinity", 1), ("infinity", 8)]}
            compare(arguments, "clip", kinds, Stage(arguments.cache, stack))
    if arguments.front:
        with ExitStack() as stack:
            front(arguments, (arguments.models or ["resnet50"])[-1], Stage(arguments.cache, stack))


if __name__ == "__main__":
    main()
