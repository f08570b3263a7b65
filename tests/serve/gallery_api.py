"""A server with a gallery that may be changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from api_helpers import LIMITS, wait_ready
from numpy.typing import NDArray
from serve_helpers import encoded, picture, served, service_of

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.service import Service

WRITABLE = replace(LIMITS, writable=True, max_images=20, max_bytes=600_000)
TOP = "/v1/galleries/gallery"


@dataclass(frozen=True)
class Live:
    client: httpx.Client
    service: Service
    folder: Path

    def search(self, body: dict[str, Any], name: str = "gallery") -> dict[str, Any]:
        reply = self.client.post(f"/v1/galleries/{name}/search", json=body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def put(self, *images: dict[str, Any]) -> list[dict[str, Any]]:
        """What became of images in JSON."""
        reply = self.client.post(f"{TOP}/images", json={"images": images})
        assert reply.status_code == 200, reply.text
        rows: list[dict[str, Any]] = reply.json()["images"]
        return rows

    def writer_is_open(self) -> bool:
        return any(writer.is_open for writer in self.service._writers.values())


@contextmanager
def live(engine: Engine, folder: Path, limits: Any = WRITABLE) -> Iterator[Live]:
    """The gallery in ``folder``, which is made if it is not there."""
    if not folder.exists():
        Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder).close()
    service = service_of(engine, Gallery(folder), limits)
    with served(service) as client:
        wait_ready(client)
        yield Live(client, service, folder)


def png(seed: int) -> bytes:
    return encoded(picture(seed))


def truth(engine: Engine, *blobs: bytes) -> NDArray[np.float32]:
    """(n, D)."""
    return engine.embed(np.stack([engine.prepare(blob) for blob in blobs]))
