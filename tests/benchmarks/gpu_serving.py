"""Images per second of the serving engine on a GPU: ``python tests/benchmarks/gpu_serving.py``.

ResNet-50 and ViT-S/16 of timm with random weights, exported as ``clf export`` does, in fp32 and fp16, 224 px. In turn,
several times over:

- from tensors (n, 224, 224, 3) uint8 in main memory to vectors in main memory, for several n: the engine (IO binding,
  fixed batch sizes, CUDA graphs), bare ``session.run`` of the same file on the same provider, torch on the same device;
- from JPEG bytes of 500 x 375: the engine's own stream, decoding in threads, exactly and fast; the same with bare
  ``session.run``; decoding alone, which is the ceiling.

Prints what the engine found out about its device, a table of medians with the least and the most of the rounds, the
slowest call against the median one, and the least cosine to the fp32 graph on the CPU; ``--json FILE`` keeps it all.
TF32 is off everywhere, so that fp32 means the same thing to all. Needs torch, timm, onnx, onnxruntime(-gpu) and clf.

``--provider cpu --quick`` runs all of it in a minute with tiny networks on a CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from clf.images import prepare, prepare_fast
from clf.manifest import MODEL_FILE, Manifest, Parity, Variant, sha256_file, write_manifest
from clf.onnx_graph import Embedder, by_torchscript, by_tracing_export, quiet
from clf.quantize import half
from clf_serve.backends.base import least_cosine
from clf_serve.engine import Engine
from clf_serve.probes import probe_images
from clf_serve.runtime import load_onnxruntime, usable_cores, why_no_cuda

Run = Callable[[np.ndarray], np.ndarray]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_small_patch16_224"], help="names of timm")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "fp16"], default=["fp32", "fp16"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--files", type=int, default=2048, help="JPEGs of a measurement")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few rounds")
    given = parser.parse_args()
    if given.quick:
        given.models, given.size = ["test_resnet", "test_vit"], 160
        given.batches, given.rounds, given.seconds, given.files = [1, 4], 2, 0.05, 24
    return given


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0)
    net.train()
    with torch.no_grad():
        for _ in range(3):  # batch norms with running statistics that fit the weights
            net(torch.rand(8, 3, *net.default_cfg["input_size"][1:]))
    return net.eval()


def write_folder(folder: Path, name: str, net: torch.nn.Module, size: int) -> Path:
    """A model folder with its fp16 variant."""
    folder.mkdir()
    path, halved = folder / MODEL_FILE, folder / "encoder.fp16.onnx"
    embedder = Embedder(net, 3).eval()
    with quiet():
        try:
            by_tracing_export(embedder, size, path)
        except Exception:  # without onnxscript
            by_torchscript(embedder, size, path)
    half(path, halved)
    pixels = probe_images(4, size)
    exact, rough = (reference(file)(pixels) for file in (path, halved))
    cosine = least_cosine(exact, rough)
    variant = Variant(
        file=halved.name,
        sha256=sha256_file(halved),
        bytes=halved.stat().st_size,
        method="float16",
        images=len(pixels),
        mean_cosine=cosine,
        min_cosine=cosine,
    )
    manifest = Manifest(
        name=name,
        image_size=size,
        dim=exact.shape[1],
        channels=3,
        sha256=sha256_file(path),
        plugin="none",
        backbone=name,
        parity=Parity(images=1, min_cosine=1.0, max_abs_error=0.0),
        variants={"fp16": variant},
    )
    write_manifest(folder, manifest)
    return folder


def reference(path: Path) -> Run:
    return bare(path, "cpu")


def bare(path: Path, provider: str) -> Run:
    """``session.run`` with numpy in and out, and nothing set but TF32."""
    ort = load_onnxruntime()
    if provider == "cuda":
        ort.preload_dlls()
    providers: dict[str, list[Any]] = {
        "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
        "cpu": ["CPUExecutionProvider"],
    }
    session = ort.InferenceSession(str(path), providers=providers[provider], enable_fallback=0)
    if provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("onnxruntime could not start CUDA")
    return lambda pixels: np.asarray(session.run(None, {"images": pixels})[0])


def in_torch(net: torch.nn.Module, precision: str, provider: str) -> Run:
    """The same work by torch: bytes to the device, scaled there, vectors back; convolutions in channels-last."""
    device = torch.device("cuda" if provider == "cuda" else "cpu")
    kind = torch.float16 if precision == "fp16" else torch.float32
    moved = net.to(device=device, dtype=kind, memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).to(kind) / 255
        return np.asarray(F.normalize(moved(x).float(), dim=1).cpu())

    return run


def jpegs(n: int) -> list[bytes]:
    """A few photograph-like pictures, again and again."""
    files = []
    for seed in range(min(n, 32)):
        rng = np.random.default_rng(seed)
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.clip(np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return [files[i % len(files)] for i in range(n)]


class Table:
    """Images per second of each subject at each kind of work, and the durations of single calls."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, str], list[float]] = {}
        self.calls: dict[tuple[str, str], list[float]] = {}

    def add(self, work: str, subject: str, images: int, calls: list[float]) -> None:
        self.rates.setdefault((work, subject), []).append(images * len(calls) / sum(calls))
        self.calls.setdefault((work, subject), []).extend(calls)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "work": work,
                "subject": subject,
                "images_per_second": statistics.median(rates),
                "least": min(rates),
                "most": max(rates),
                "slowest_call_over_median": max(self.calls[work, subject])
                / statistics.median(self.calls[work, subject]),
            }
            for (work, subject), rates in self.rates.items()
        ]


def from_tensors(table: Table, subjects: dict[str, Run], given: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    for batch in given.batches:
        pixels = rng.integers(0, 256, (batch, given.size, given.size, 3), dtype=np.uint8)
        for run in subjects.values():
            run(pixels)
            run(pixels)
        for _ in range(given.rounds):
            for name, run in subjects.items():
                calls: list[float] = []
                while sum(calls) < given.seconds:
                    start = time.perf_counter()
                    run(pixels)
                    calls.append(time.perf_counter() - start)
                table.add(f"tensors, {batch} a call", name, batch, calls)


def from_jpegs(table: Table, engine: Engine, plain: Run, given: argparse.Namespace) -> None:
    blobs, batch = jpegs(given.files), given.batches[-1]
    names = {Path(str(i)): blob for i, blob in enumerate(blobs)}
    ways = {"exact": prepare, "fast": prepare_fast}

    def streamed(run_through: Engine, way: str) -> None:
        def load(path: Path) -> tuple[np.ndarray, Path]:
            return ways[way](names[path], given.size), path

        for _ in run_through.stream(names, load, batch):
            pass

    with ThreadPoolExecutor(usable_cores()) as pool:

        def by_hand(way: str) -> None:
            waiting: list[np.ndarray] = []
            for pixels in pool.map(lambda blob: ways[way](blob, given.size), blobs):
                waiting.append(pixels)
                if len(waiting) == batch:
                    plain(np.stack(waiting))
                    waiting.clear()
            if waiting:
                plain(np.stack(waiting))

        def decode(way: str) -> None:
            for _ in pool.map(lambda blob: ways[way](blob, given.size), blobs):
                pass

        for turn in range(max(2, given.rounds // 2)):
            for way in ways:
                subjects = {
                    "engine": lambda way: streamed(engine, way),
                    "session.run": by_hand,
                    "decoding alone": decode,
                }
                for name, run in subjects.items():
                    start = time.perf_counter()
                    run(way)
                    if turn:  # the first one warms up
                        table.add(f"JPEG bytes, {way}", name, given.files, [time.perf_counter() - start])


@contextmanager
def open_engine(folder: Path, precision: str, given: argparse.Namespace) -> Iterator[tuple[Engine, float]]:
    engine = Engine(folder, given.provider, variant=precision)  # type: ignore[arg-type]
    if engine.device != given.provider:
        raise SystemExit(engine.note)
    start = time.perf_counter()
    with engine:
        yield engine, time.perf_counter() - start


def measure(folder: Path, net: torch.nn.Module, precision: str, given: argparse.Namespace) -> dict[str, Any]:
    table = Table()
    file = folder / (MODEL_FILE if precision == "fp32" else "encoder.fp16.onnx")
    probe = probe_images(8, given.size)
    with open_engine(folder, precision, given) as (engine, seconds):
        plain = bare(file, given.provider)
        cosine = least_cosine(reference(folder / MODEL_FILE)(probe), engine.embed(probe))
        from_tensors(
            table,
            {"engine": engine.embed, "session.run": plain, "torch": in_torch(net, precision, given.provider)},
            given,
        )
        from_jpegs(table, engine, plain, given)
        facts = engine.facts()
    return {
        "model": engine.manifest.name,
        "precision": precision,
        "warm_up_seconds": seconds,
        "least_cosine_to_fp32_on_the_cpu": cosine,
        "engine": facts,
        "rows": table.rows(),
    }


def show(found: dict[str, Any]) -> None:
    warm_up, cosine = found["warm_up_seconds"], found["least_cosine_to_fp32_on_the_cpu"]
    print(
        f"\n{found['model']}, {found['precision']}: warm-up {warm_up:.1f} s, least cosine to fp32 on CPU {cosine:.6f}"
    )
    print(json.dumps(found["engine"]))
    print(f"{'':30s} {'':16s} {'images/s':>10s} {'least':>10s} {'most':>10s}   slowest call / median")
    for row in found["rows"]:
        print(
            f"{row['work']:30s} {row['subject']:16s} {row['images_per_second']:10.1f} {row['least']:10.1f} "
            f"{row['most']:10.1f}   {row['slowest_call_over_median']:.1f}"
        )


def machine(provider: str) -> dict[str, Any]:
    ort = load_onnxruntime()
    return {
        "device": torch.cuda.get_device_name() if provider == "cuda" else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    given = arguments()
    if given.provider == "cuda" and (why := why_no_cuda(load_onnxruntime())):
        raise SystemExit(f"{why}; --provider cpu --quick tries this script without a GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(usable_cores())
    report: dict[str, Any] = {"machine": machine(given.provider), "results": []}
    print(json.dumps(report["machine"]))
    with tempfile.TemporaryDirectory() as parent:
        for name in given.models:
            folder = write_folder(Path(parent) / name, name, network(name), given.size)
            for precision in given.precisions:
                report["results"].append(measure(folder, network(name), precision, given))
                show(report["results"][-1])
                if given.json:  # after each, so that a run that is cut short keeps what it has
                    given.json.write_text(json.dumps(report, indent=2) + os.linesep)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
