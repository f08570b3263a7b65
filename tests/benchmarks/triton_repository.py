"""What `clf export --format triton` writes, served by a real Triton: the vectors must be those of clf's own engine.

nvidia-pytriton carries NVIDIA's server with its Python backend; it needs a Python that is built as distributions build
theirs (Debian's /usr/bin/python3 will do, pyenv's will not), so it lives in an environment of its own:

    /usr/bin/python3 -m venv /tmp/pytriton
    /tmp/pytriton/bin/pip install nvidia-pytriton onnxruntime pillow==VERSION-THAT-CLF-HAS
    python tests/benchmarks/triton_repository.py /tmp/pytriton/bin/python [--model FOLDER] [--images FOLDER]

Another version of Pillow may decode a JPEG a little differently (12.3 and 13.0 do with four inks), which is why the
repository's requirements.txt names one.

The second interpreter is that of clf, with `tritonclient[http]`. FOLDER is one of `clf export`; by default a small one
is made here. With `--images` the files of a folder are asked for too. Prints what agrees, and ends with status 1 where
something does not.

That server has no onnxruntime backend. So both kinds of repository are written: the one for the Python backend is
served whole, of the other everything must load but the model that wants the missing backend, for that reason alone.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient import http
from tritonclient.utils import InferenceServerException

from clf.images import find_images
from clf.triton import repository_name, write_repository
from clf_serve.engine import Engine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
from running import free_port
from serve_helpers import picture, write_model

WHERE = "import pytriton, sys; print(pytriton.__path__[0], '%d.%d' % sys.version_info[:2])"


@contextmanager
def triton(python: str, repository: Path, folder: Path, *words: str) -> Iterator[tuple[str, Path]]:
    """The server of nvidia-pytriton on a repository: its address and its log."""
    where = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True).stdout.split()
    server = Path(where[0]) / "tritonserver"
    backends = folder / "backends"
    if not backends.exists():
        shutil.copytree(server / "backends", backends)
        shutil.copy(server / "python_backend_stubs" / where[1] / "triton_python_backend_stub", backends / "python")
    port = free_port()
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={repository}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += ["--allow-grpc=false", "--allow-metrics=false", *words]
    libraries = server.parents[1] / "nvidia_pytriton.libs"
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PATH": path}
    env.pop("PYTHONPATH", None)
    log = folder / "triton.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        yield f"127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(60)


def ready(address: str, log: Path) -> http.InferenceServerClient:
    client = http.InferenceServerClient(address, concurrency=16)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if client.is_server_live():
                return client
        except OSError:
            time.sleep(0.2)
    raise SystemExit(log.read_text())


def files() -> list[bytes]:
    """Pictures in the formats and modes that differ most."""
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (90, 70), np.uint16))
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [(picture(1, 640, 480), "JPEG", {"exif": exif})]
    made += [(picture(2, 300, 200), "PNG", {}), (picture(3, 99, 140).convert("CMYK"), "JPEG", {})]
    made += [(picture(4).convert("P"), "GIF", {}), (picture(5).convert("LA"), "PNG", {}), (deep, "PNG", {})]
    made += [(picture(6, 500, 333), "WEBP", {}), (picture(7, 64, 64).convert("1"), "TIFF", {})]
    blobs = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        blobs.append(buffer.getvalue())
    return blobs


class Asked:
    """Requests to the two models of a repository, from one thread (the client knows no others)."""

    def __init__(self, address: str, name: str) -> None:
        self._client, self._name = http.InferenceServerClient(address), name

    def images(self, pixels: NDArray[np.uint8], binary: bool = True) -> NDArray[np.float32]:
        given = http.InferInput("images", list(pixels.shape), "UINT8").set_data_from_numpy(pixels, binary_data=binary)
        return self._answer(self._name, given)

    def encoded(self, blobs: list[bytes], binary: bool = True) -> NDArray[np.float32]:
        array = np.array(blobs if binary else [base64.b64encode(blob) for blob in blobs], object)
        given = http.InferInput("encoded", [len(blobs)], "BYTES").set_data_from_numpy(array, binary_data=binary)
        return self._answer(f"{self._name}_encoded", given)

    def _answer(self, model: str, given: http.InferInput) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._client.infer(model, [given]).as_numpy("embeddings")
        return found


def agreement(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> str:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    same = int((found == wanted).all(axis=1).sum())
    cosine = float((found.astype(np.float64) * wanted).sum(axis=1).min())
    assert cosine > 0.99999, cosine
    return f"{same} of {len(wanted)} equal to the bit, least cosine {cosine:.7f}"


def refused(what: Callable[[], object], text: str) -> None:
    try:
        what()
    except InferenceServerException as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"it was not refused ({text})")


def check(address: str, name: str, engine: Engine, blobs: list[bytes]) -> None:
    """Parity, many clients at once, refusals."""
    asked, size = Asked(address, name), engine.image_size
    pixels = np.stack([engine.prepare(blob) for blob in blobs])
    wanted = np.concatenate([engine.embed(each[None]) for each in pixels])
    for binary in (True, False):
        how = "binary" if binary else "JSON"
        print(f"images, {how}: {agreement(asked.images(pixels[:16], binary), wanted[:16])}")
        print(f"encoded, {how}: {agreement(asked.encoded(blobs[:16], binary), wanted[:16])}")
    for start in range(0, len(blobs), 64):
        agreement(asked.encoded(blobs[start : start + 64]), wanted[start : start + 64])
    print(f"encoded, all {len(blobs)} files: no disagreement")

    def some(number: int) -> None:
        asked = Asked(address, name)
        rows = np.random.default_rng(number).integers(0, len(blobs), 1 + number % 5)
        found = asked.images(pixels[rows]) if number % 2 else asked.encoded([blobs[row] for row in rows])
        agreement(found, wanted[rows])
        if number % 10 == 0:
            refused(lambda: asked.encoded([blobs[0], blobs[1][:60]]), "encoded[1]: the image is ")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(some, range(400)))
    about = http.InferenceServerClient(address).get_inference_statistics(name)["model_stats"][0]
    print(f"400 requests by 16 clients, some with a bad file: {about['inference_count']} images of {name}", end=" ")
    print(f"in {about['execution_count']} batches")
    refused(lambda: asked.images(pixels[:1, : size // 2]), "unexpected shape")
    refused(lambda: asked.images(np.zeros((257, size, size, 3), np.uint8)), "batch-size must be <= 256")
    refused(lambda: asked.encoded([b""]), "encoded[0]: the image is empty")
    print("wrong shapes, too many images and files that are none are refused")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("python")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or write_model(folder / "model")
        engine = Engine(model, "cpu")
        engine.warm_up()
        blobs = files() + [path.read_bytes() for path in (find_images(options.images) if options.images else [])]
        served = repository_name(engine.manifest.name)
        for backend in ("python", "onnxruntime"):
            (folder / backend).mkdir()
            write_repository(model, folder / backend, backend)
        with triton(options.python, folder / "python", folder) as (address, log):
            ready(address, log)
            check(address, served, engine, blobs)
        words = ("--exit-on-error=false",)
        with triton(options.python, folder / "onnxruntime", folder, *words) as (address, log):
            states = {each["name"]: each for each in ready(address, log).get_model_repository_index()}
            assert states[f"{served}_decode"]["state"] == "READY", states
            assert "unable to find backend library for backend 'onnxruntime'" in states[served]["reason"], states
            print("for the onnxruntime backend: all loads but what wants that backend, which this server has not")


if __name__ == "__main__":
    main()
