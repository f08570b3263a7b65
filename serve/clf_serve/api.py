"""The HTTP API. Each route reads, asks the service, and writes; refusals are Problems."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from clf_serve import metrics
from clf_serve.inputs import EmbeddingsRequest, parse_embeddings, parse_search, read_body
from clf_serve.problems import Problem, too_late
from clf_serve.service import Service, Timings
from clf_serve.store import Hit

T = TypeVar("T")

_IMAGE_BODY = {
    "image/*": {"schema": {"type": "string", "format": "binary"}},
    "multipart/form-data": {"schema": {"type": "object"}},
}
_EMBED_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {
                        "input": {"description": "an image in base64, a data URI, {image: ...}, or a list of them"},
                        "model": {"type": "string"},
                        "encoding_format": {"enum": ["float", "base64"]},
                        "dimensions": {"type": "integer"},
                    },
                }
            },
            **_IMAGE_BODY,
        },
    }
}
_SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"description": "an image in base64, or a data URI"},
                        "vector": {"type": "array", "items": {"type": "number"}},
                        "id": {"type": "integer", "description": "of an image of the gallery, left out of its hits"},
                        "k": {"type": "integer", "minimum": 1, "default": 10},
                    },
                }
            },
            **_IMAGE_BODY,
        },
    }
}


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    timeout = service.limits.timeout

    @router.post("/v1/embeddings", openapi_extra=_EMBED_BODY)
    @router.post("/embeddings", include_in_schema=False)
    async def embeddings(request: Request) -> Response:
        """Vectors of images, in the shape of OpenAI's API. Bodies: JSON, multipart files, or one raw image."""

        async def work(body: bytes, timings: Timings) -> Response:
            asked = await parse_embeddings(request.headers, body, service.limits)
            _check_model(asked, service)
            vectors = await service.embed(asked.blobs, timings)
            data = [
                {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding)}
                for index, vector in enumerate(vectors)
            ]
            usage = {"prompt_tokens": 0, "total_tokens": 0}
            reply = {"object": "list", "data": data, "model": service.engine.manifest.name, "usage": usage}
            return JSONResponse(reply, headers={"Server-Timing": timings.header})

        return await _attended(request, service, work)

    @router.post("/search", openapi_extra=_SEARCH_BODY)
    async def search(request: Request) -> Response:
        """The images of the gallery nearest to an image, a vector or one of its own images, best first."""

        async def work(body: bytes, timings: Timings) -> Response:
            gallery = service.require_gallery()
            asked = await parse_search(request, body, service.limits, service.engine.dim)
            vector = asked.vector
            if asked.blob is not None:
                vector = (await service.embed([asked.blob], timings))[0]
            elif asked.id is not None:
                vector = await service.vector(asked.id)
            if vector is None:  # cannot be: parse_search gives one of the three
                raise Problem(400, "one_query", "give one of image, vector and id")
            hits = await service.neighbours(vector, asked.k, timings, but=asked.id)
            reply = {"object": "list", "hits": [hit_json(hit) for hit in hits], "model": gallery.model.name}
            return JSONResponse(reply, headers={"Server-Timing": timings.header})

        return await _attended(request, service, work)

    @router.get("/thumbnails/{image_id}", responses={200: {"content": {"image/jpeg": {}}}})
    async def thumbnail(image_id: int, request: Request) -> Response:
        """A small JPEG of one image of the gallery."""
        if not 0 <= image_id < 2**63:
            raise Problem(404, "unknown_id", f"the gallery has no image {image_id}", param="id")
        found = await asyncio.to_thread(service.require_gallery().thumbnail, image_id)
        if found is None:
            raise Problem(404, "unknown_id", f"the gallery has no thumbnail of image {image_id}", param="id")
        tag = f'"{found.sha256[:16]}"'
        fixed = request.query_params.get("v") == found.sha256[:12]
        caching = "private, max-age=31536000, immutable" if fixed else "private, no-cache"
        headers = {"ETag": tag, "Cache-Control": caching}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(found.data, media_type="image/jpeg", headers=headers)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served, and what is known of it."""
        return {"object": "list", "data": [model_json(service)]}

    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process is worth keeping."""
        alive = service.batcher.alive
        return JSONResponse({"status": "alive" if alive else "the batcher has ended"}, 200 if alive else 503)

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 when images are embedded: one was in the last 30 s, or a test image just now."""
        reason = await service.ready()
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    @router.get("/metrics")
    async def prometheus() -> Response:
        """Counters and times in the text format of Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _attended(
        request: Request, service: Service, work: Callable[[bytes, Timings], Awaitable[Response]]
    ) -> Response:
        """Reads the body and works, within the deadline and while the client is there."""
        timings = Timings()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        with service.budget.share() as take:
            try:
                async with asyncio.timeout_at(deadline):
                    start = loop.time()
                    body = await read_body(request, service.limits, take)
                    timings.seconds["read"] = loop.time() - start
                    service.metrics.stage("read").observe(timings.seconds["read"])
            except TimeoutError:
                raise Problem(408, "upload_timeout", f"the body did not arrive within {timeout:g} s") from None
            except ClientDisconnect:
                raise ClientGoneError from None
            return await _while_there(request, work(body, timings), deadline, timeout)

    return router


def hit_json(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "uri": hit.uri,
        "score": hit.score,
        "metadata": hit.metadata,
        "thumbnail": thumbnail_url(hit),
    }


def thumbnail_url(hit: Hit) -> str:
    """The picture's digest is in the URL, so a browser may keep it for ever."""
    return f"/thumbnails/{hit.id}?v={hit.sha256[:12]}"


def model_json(service: Service) -> dict[str, Any]:
    manifest = service.engine.manifest
    facts: dict[str, Any] = {
        "id": manifest.name,
        "object": "model",
        "owned_by": "clf",
        "dim": manifest.dim,
        "image_size": manifest.image_size,
        "plugin": manifest.plugin,
        "backbone": manifest.backbone,
        "run": manifest.run,
        "sha256": manifest.sha256,
        "preprocessing": manifest.preprocessing,
        "device": service.engine.device,
        "max_images": service.limits.max_images,
        "max_bytes": service.limits.max_bytes,
    }
    if service.gallery is not None:
        facts["gallery_images"] = len(service.gallery)
    return facts


def _check_model(asked: EmbeddingsRequest, service: Service) -> None:
    name, dim = service.engine.manifest.name, service.engine.dim
    if asked.model is not None and asked.model != name:
        raise Problem(404, "model_not_found", f"the model {asked.model!r} is not here; {name!r} is", param="model")
    if asked.dimensions not in (None, dim):
        text = f"this model has {dim} dimensions and cannot give {asked.dimensions}"
        raise Problem(400, "invalid_dimensions", text, param="dimensions")


def _encoded(vector: np.ndarray[Any, np.dtype[np.float32]], encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    floats: list[float] = vector.tolist()
    return floats


async def _while_there(request: Request, work: Awaitable[T], deadline: float, timeout: float) -> T:
    """The result of ``work``, which is given up at the deadline or when the client goes away.

    Raises:
        ClientGoneError: it went.
        Problem: 503 at the deadline.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        left = max(0.0, deadline - loop.time())
        await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise too_late(timeout)
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection. Only after the whole body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
