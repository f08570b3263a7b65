"""The Triton client's part of tests/serve/real_clients.py against a real Triton: proof that the test itself is right.

nvidia-pytriton carries NVIDIA's server; it needs a Python that is built as distributions build theirs (Debian's
/usr/bin/python3 will do, pyenv's will not), so it runs in an environment of its own:

    /usr/bin/python3 -m venv /tmp/pytriton
    /tmp/pytriton/bin/pip install nvidia-pytriton 'tritonclient[http]' pillow
    /tmp/pytriton/bin/python tests/benchmarks/real_triton.py

The model is made here: mean colours of the four quarters, as in tests/serve/serve_helpers.py, with the names, types and
shapes of tensors that `clf serve` has. Prints one line and ends with status 0, or with what differs.
"""

from __future__ import annotations

import base64
import io
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
import real_clients

SIZE, DIM = 32, 12


def embed(pixels: Any) -> Any:
    """(n, S, S, 3) uint8 -> (n, 12) float32 of unit length."""
    half = SIZE // 2
    fields = pixels.reshape(-1, 2, half, 2, half, 3).astype(np.float64).mean(axis=(2, 4)) + 1
    flat = fields.transpose(0, 3, 1, 2).reshape(len(pixels), DIM)
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


def picture(seed: int) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((SIZE, SIZE), Image.Resampling.NEAREST)


def decoded(blob: bytes) -> Any:
    file = blob if blob.startswith(b"\x89PNG") else base64.b64decode(blob)  # JSON holds no bytes
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def infer(requests: Any) -> Any:
    answers = []
    for request in requests:
        if "images" in request.data:
            pixels = request.data["images"]
        else:
            pixels = np.stack([decoded(blob) for blob in request.data["encoded"].ravel()])
        answers.append({"embeddings": embed(pixels)})
    return answers


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def main() -> None:
    http, grpc, metrics = free_port(), free_port(), free_port()
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http,
        grpc_address="127.0.0.1",
        grpc_port=grpc,
        allow_metrics=False,
        metrics_port=metrics,
    )
    blobs = []
    for seed in range(3):
        buffer = io.BytesIO()
        picture(seed).save(buffer, "PNG")
        blobs.append(buffer.getvalue())
    pixels = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    with Triton(config=config) as triton:
        triton.bind(
            model_name="tiny",
            infer_func=infer,
            inputs=[
                Tensor(name="images", dtype=np.uint8, shape=(-1, SIZE, SIZE, 3), optional=True),
                Tensor(name="encoded", dtype=bytes, shape=(-1,), optional=True),
            ],
            outputs=[Tensor(name="embeddings", dtype=np.float32, shape=(-1, DIM))],
            config=ModelConfig(batching=False),
        )
        triton.run()
        task = real_clients.Task(f"http://127.0.0.1:{http}", blobs, pixels, embed(pixels))
        real_clients.triton(task)
    print("a real Triton gives the test's client what the test expects")


if __name__ == "__main__":
    main()
