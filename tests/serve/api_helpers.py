"""What tests of the HTTP API share."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from serve_helpers import encoded, picture, until

from clf_serve.engine import Engine
from clf_serve.limits import ServeLimits

LIMITS = ServeLimits(max_bytes=200_000, max_pixels=1_000_000, max_images=5, max_k=50, timeout=20)


PHOTO = encoded(picture(3))


TEXT = base64.b64encode(PHOTO).decode()


def wait_ready(client: httpx.Client) -> None:
    until(lambda: client.get("/health/ready").status_code == 200)


def vectors(reply: httpx.Response) -> NDArray[np.float32]:
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], np.float32)


def error(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["code"] == code
    return found


def embed(client: httpx.Client, blob: bytes) -> httpx.Response:
    return client.post("/v1/embeddings", content=blob, headers={"Content-Type": "image/png"})


class Gate:
    """Stands in for the model: closed, it holds every batch."""

    def __init__(self, engine: Engine) -> None:
        self.open = threading.Event()
        self.open.set()
        self.seen: list[int] = []
        self._engine = engine
        self._embed = engine.embed

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen.append(len(pixels))
        assert self.open.wait(30)
        rows = self._embed(pixels)
        means = pixels.reshape(len(pixels), -1).mean(axis=1)
        if (means == 255).any():
            raise RuntimeError("the model chokes on white")
        rows[means == 0] = np.nan
        return rows


def in_background(client: httpx.Client, blob: bytes, n: int) -> tuple[ThreadPoolExecutor, list[Any]]:
    pool = ThreadPoolExecutor(n)
    return pool, [pool.submit(embed, client, blob) for _ in range(n)]
