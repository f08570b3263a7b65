"""The HTTP API. Each route reads, asks the service, and writes; refusals are Problems.

What the routes take and give is written down in ``clf_serve.http.openapi``; a test holds the two together.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clf_serve import metrics
from clf_serve.call import Call
from clf_serve.deployment import Deployment
from clf_serve.engine import Vectors
from clf_serve.gallery.store import Hit, Item
from clf_serve.http import galleries, kserve_routes
from clf_serve.http.attend import Attended, ClientGoneError, attended, fetched, off_loop
from clf_serve.http.galleries import image_id
from clf_serve.http.gallery_replies import thumbnail_reply
from clf_serve.http.inputs import Options, SearchRequest, parse_embeddings, parse_search, unit_vector
from clf_serve.http.replies import USAGE, JsonReply, accepted, check_dimensions, embeddings_reply, shortened
from clf_serve.problems import Problem
from clf_serve.service import Service

__all__ = ["ClientGoneError", "hit_json", "model_json", "routes", "thumbnail_url"]

_SMALL = 2**14  # bytes of a search in JSON that is more likely for an id or a vector than for an image


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    for path in ("/v1/embeddings", "/embeddings"):
        router.add_route(path, _Embeddings(service).openai, methods=["POST"])
    router.add_route("/v1/embedding/image", _Embeddings(service).nomic, methods=["POST"])
    _add_search(router, service)
    _add_models(router, service)
    _add_health(router, service)
    kserve_routes.add(router, service)
    galleries.add(router, service)
    return router


class _Embeddings:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def openai(self, request: Request) -> Response:
        async def work(job: Attended) -> Response:
            vectors, name, options = await self._vectors(request, job)
            start = time.monotonic()
            kind = accepted(request.headers.get("accept", ""))
            reply = embeddings_reply(vectors, name, kind, options.encoding)
            return _timed(reply, self._service, job.call, start)

        return await attended(request, self._service, work)

    async def nomic(self, request: Request) -> Response:
        """The same images, in the shape that Nomic's clients read."""

        async def work(job: Attended) -> Response:
            vectors, name, _ = await self._vectors(request, job)
            start = time.monotonic()
            reply = JsonReply({"embeddings": list(vectors), "model": name, "usage": USAGE})
            return _timed(reply, self._service, job.call, start)

        return await attended(request, self._service, work)

    async def _vectors(self, request: Request, job: Attended) -> tuple[Vectors, str, Options]:
        limits = self._service.limits
        query = request.query_params
        asked = await off_loop(len(job.body), parse_embeddings, request.headers, query, job.body, limits)
        options = asked.options
        with self._service.using(options.model) as deployment:
            check_dimensions(options.dimensions, deployment.engine.dim)
            blobs = await fetched(asked.sources, limits, job)
            vectors = await deployment.embed(blobs, job.call)
        return shortened(vectors, options.dimensions), deployment.name, options


def _add_search(router: APIRouter, service: Service) -> None:
    async def search(request: Request) -> Response:
        async def work(job: Attended) -> Response:
            args = (request.headers, request.query_params, job.body, service.limits)
            asked = await off_loop(len(job.body), parse_search, *args)
            with service.using(asked.model) as deployment:
                deployment.require_gallery()
                vector = await _query(asked, deployment, service, job)
                hits = await deployment.neighbours(vector, asked.k, job.call, but=asked.id)
            model = None if deployment.name == service.default.name else deployment.name
            found = [hit_json(hit, model) for hit in hits]
            reply = {"object": "list", "hits": found, "model": deployment.name}
            return JsonReply(reply, headers={"Server-Timing": job.call.header})

        announced = request.headers.get("content-length", "")
        small = announced.isdigit() and int(announced) < _SMALL
        json = request.headers.get("content-type", "").lower().startswith("application/json")
        return await attended(request, service, work, room=not (small and json))

    async def thumbnail(request: Request) -> Response:
        id_ = image_id(request)
        with service.using(request.query_params.get("model")) as deployment:
            found = await asyncio.to_thread(deployment.require_gallery().thumbnail, id_)
        if found is None:
            raise Problem(404, "unknown_id", f"the gallery has no thumbnail of image {id_}", param="id")
        return thumbnail_reply(request, found)

    router.add_route("/search", search, methods=["POST"])
    router.add_route("/thumbnails/{image_id}", thumbnail, methods=["GET"])


async def _query(asked: SearchRequest, deployment: Deployment, service: Service, job: Attended) -> Vectors:
    """The vector (D,) that a search is for."""
    if asked.vector is not None:
        return unit_vector(asked.vector, deployment.engine.dim)
    if asked.id is not None:
        return await deployment.vector(asked.id)
    sources = [] if asked.source is None else [asked.source]
    found: Vectors = (await deployment.embed(await fetched(sources, service.limits, job), job.call))[0]
    return found


def _add_models(router: APIRouter, service: Service) -> None:
    async def models(_: Request) -> Response:  # off the event loop, since a gallery may be at the end of a network
        data = [await asyncio.to_thread(model_json, service, model) for model in list(service.models.values())]
        return JsonReply({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        with service.using(request.path_params["model"]) as deployment:
            return JsonReply(await asyncio.to_thread(model_json, service, deployment))

    for path in ("/v1/models", "/models"):
        router.add_route(path, models, methods=["GET"])
    router.add_route("/v1/models/{model:path}", model, methods=["GET"])


def _add_health(router: APIRouter, service: Service) -> None:
    async def live(_: Request) -> Response:
        alive = service.alive
        return JsonReply({"status": "alive" if alive else "the batcher has ended"}, 200 if alive else 503)

    async def ready(_: Request) -> Response:
        reason = await service.ready()
        return JsonReply({"status": reason or "ready"}, 503 if reason else 200)

    async def prometheus(_: Request) -> Response:
        await service.measure_galleries()
        return Response(service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    for path in ("/health", "/health/live"):
        router.add_route(path, live, methods=["GET"])
    router.add_route("/health/ready", ready, methods=["GET"])
    router.add_route("/metrics", prometheus, methods=["GET"])


def hit_json(hit: Hit, model: str | None = None) -> dict[str, Any]:
    """Args: model: in whose gallery it is, when that is not the first model's."""
    return {
        "id": hit.id,
        "uri": hit.uri,
        "score": hit.score,
        "metadata": hit.metadata,
        "thumbnail": thumbnail_url(hit, model),
    }


def thumbnail_url(hit: Hit | Item, model: str | None = None) -> str:
    """The picture's digest is in the URL, so a browser may keep it for ever."""
    url = f"/thumbnails/{hit.id}?v={hit.sha256[:12]}"
    return url if model is None else f"{url}&model={quote(model, safe='')}"


def model_json(service: Service, deployment: Deployment) -> dict[str, Any]:
    """What is known of a model: OpenAI's fields, then the manifest's, then how it runs."""
    manifest = deployment.engine.manifest
    facts: dict[str, Any] = {
        "id": deployment.name,
        "object": "model",
        "created": _seconds(manifest.created),
        "owned_by": "clf",
        "dim": manifest.dim,
        "image_size": manifest.image_size,
        "plugin": manifest.plugin,
        "backbone": manifest.backbone,
        "run": manifest.run,
        "sha256": manifest.sha256,
        "preprocessing": deployment.engine.preprocessing,
        "device": deployment.engine.device,
        "engine": deployment.engine.facts(),
        "max_images": service.limits.max_images,
        "max_bytes": service.limits.max_bytes,
    }
    if deployment.gallery is not None:
        facts["gallery_images"] = len(deployment.gallery)
    return facts


def _seconds(created: str) -> int:
    """ISO 8601 as seconds since 1970; 0 where the manifest has no date."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0


def _timed(reply: Response, service: Service, call: Call, start: float) -> Response:
    service.metrics.stage("write").observe(call.since("write", start))
    reply.headers["Server-Timing"] = call.header
    return reply
