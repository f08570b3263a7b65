"""Models without torch, pictures, and what a server in its own process looks like."""

from __future__ import annotations

import asyncio
import io
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

from clf.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, Parity, sha256_file, write_manifest
from clf_serve.app import create_app
from clf_serve.deployment import Folders, Opened
from clf_serve.engine import Engine
from clf_serve.limits import ServeLimits
from clf_serve.server import listen
from clf_serve.service import Service
from clf_serve.stores import AnyGallery

SIZE = 32
DIM = 12  # 2 x 2 cells x RGB


def write_model(
    folder: Path, *, name: str = "tiny", size: int = SIZE, dim: int = DIM, cells: int = 2, output: str = "embeddings"
) -> Path:
    """A model folder whose encoder is the mean colour of cells x cells fields, of unit length."""
    folder.mkdir(parents=True, exist_ok=True)
    field = size // cells
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float", "one"], ["shifted"]),  # so that black has a direction too
        helper.make_node("Transpose", ["shifted"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["fields"], kernel_shape=[field, field], strides=[field, field]),
        helper.make_node("Flatten", ["fields"], ["flat"]),
        helper.make_node("LpNormalization", ["flat"], [output], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 3 * cells * cells])],
        [numpy_helper.from_array(np.array(1.0, np.float32), "one")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / MODEL_FILE))
    write_manifest(
        folder,
        Manifest(
            name=name,
            image_size=size,
            dim=dim,
            channels=3,
            sha256=sha256_file(folder / MODEL_FILE),
            plugin="none",
            backbone="means",
            parity=Parity(images=1, min_cosine=1.0, max_abs_error=0.0),
        ),
    )
    return folder


def expected(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What :func:`write_model`'s encoder computes, by numpy: (S, S, 3) -> (D,)."""
    half = SIZE // 2
    fields = pixels.reshape(2, half, 2, half, 3).astype(np.float64).mean(axis=(1, 3)) + 1
    flat = fields.transpose(2, 0, 1).ravel()
    unit: NDArray[np.float64] = flat / np.linalg.norm(flat)
    return unit


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Four fields of random colours: pictures of different seeds are told apart by the tiny model."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_pictures(folder: Path, n: int, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:04d}.png" for seed in range(first, first + n)]
    for seed, path in enumerate(paths, first):
        picture(seed).save(path)
    return paths


def sign(folder: Path) -> None:
    """Makes the manifest agree with whatever the model file holds now."""
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    write_manifest(folder, manifest.model_copy(update={"sha256": sha256_file(folder / MODEL_FILE)}))


@dataclass
class Server:
    """``clf serve`` in a process of its own."""

    base: str
    process: subprocess.Popen[str]
    log: list[str]


PROGRAM = "import sys\nfrom clf.cli import main\nmain(sys.argv[1:])"
SLOW = (
    "import time\n"
    "from clf_serve.engine import Engine\n"
    "embed = Engine.embed\n"
    "def slow(self, pixels):\n"
    "    time.sleep(1.0)\n"
    "    return embed(self, pixels)\n"
    "Engine.embed = slow\n"
) + PROGRAM
"""A server whose model takes a second for each batch."""


def service_of(engine: Engine, gallery: AnyGallery | None = None, limits: ServeLimits | None = None) -> Service:
    """A service of one model that stays open."""
    return Service([Opened(engine, gallery)], limits)


@asynccontextmanager
async def running(*folders: Folders, limits: ServeLimits | None = None) -> AsyncIterator[Service]:
    """A service that is ready, in this event loop."""
    service = Service(folders, limits)
    await service.start()
    try:
        async with asyncio.timeout(20):
            while await service.ready():
                await asyncio.sleep(0.01)
        yield service
    finally:
        await service.stop()


@contextmanager
def served(service: Service, *, ui: bool = False, api_keys: Collection[str] = ()) -> Iterator[httpx.Client]:
    """A real server in a thread of this process, so that a test can reach into its service."""
    listener = listen("127.0.0.1", 0)
    app = create_app(service, ui=ui, api_keys=api_keys)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
            client.get("/health/live")
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for what must become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
