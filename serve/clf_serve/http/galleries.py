"""Routes of ``/v1/galleries``: what a gallery holds, searches in it, and changes to it where those are allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clf_serve.deployment import Deployment
from clf_serve.engine import Vectors
from clf_serve.http.attend import Attended, attended, fetched, off_loop
from clf_serve.http.gallery_bodies import NewImage, check_names, parse_deletion, parse_patch, parse_upsert, parse_where
from clf_serve.http.gallery_queries import Query, parse_link, parse_query
from clf_serve.http.gallery_replies import (
    fields_json,
    gallery_json,
    item_json,
    thumbnail_reply,
    vector_reply,
)
from clf_serve.http.gallery_search import search
from clf_serve.http.inputs import body_kind
from clf_serve.http.replies import JsonReply
from clf_serve.http.shapes import Url
from clf_serve.ingest import Incoming, digest_key, unknown_id
from clf_serve.problems import Problem
from clf_serve.service import Service
from clf_serve.stores import AnyGallery

MOST_LISTED = 1000
"""Images of one page of a listing."""
_SMALL = 2**14  # bytes of JSON that are more likely ids, vectors and filters than images
_TOP = "/v1/galleries"


@dataclass(frozen=True)
class _Asked:
    """A request to one gallery, whose model stays open for it."""

    request: Request
    job: Attended
    name: str
    deployment: Deployment

    @property
    def gallery(self) -> AnyGallery:
        return self.deployment.require_gallery()


_Work: TypeAlias = Callable[[_Asked], Awaitable[Response]]


def add(router: APIRouter, service: Service) -> None:
    """Adds the routes."""
    reads, writes = _Reads(service), _Writes(service)
    one = _TOP + "/{gallery}"
    image = one + "/images/{image_id}"
    tables: dict[str, dict[str, _Work]] = {
        one: {"GET": reads.gallery},
        one + "/images": {"GET": reads.images, "POST": writes.upsert},
        image: {"GET": reads.image, "PATCH": writes.patch, "DELETE": writes.delete_one},
        image + "/thumbnail": {"GET": reads.thumbnail},
        image + "/vector": {"GET": reads.vector},
        one + "/delete": {"POST": writes.delete},
        one + "/search": {"GET": reads.link, "POST": reads.search},
    }
    router.add_route(_TOP, reads.galleries, methods=["GET"])
    for path, methods in tables.items():
        router.add_route(path, _route(service, methods), methods=list(methods))


def _route(service: Service, methods: Mapping[str, _Work]) -> Callable[[Request], Awaitable[Response]]:
    """One endpoint for all methods of a path, so that 405 names them all."""

    async def answer(request: Request) -> Response:
        work = methods["GET" if request.method == "HEAD" else request.method]
        name = request.path_params["gallery"]
        service.check_gallery(name)
        if isinstance(getattr(work, "__self__", None), _Writes):
            service.check_writable()

        async def within(job: Attended) -> Response:
            with service.using_gallery(name) as deployment:
                reply = await work(_Asked(request, job, name, deployment))
            reply.headers["Server-Timing"] = job.call.header
            return reply

        return await attended(request, service, within, room=_may_embed(request))

    return answer


def _may_embed(request: Request) -> bool:
    """Whether a body is likely to hold an image, by what is announced of it."""
    if request.method != "POST" or request.url.path.endswith("/delete"):
        return False
    announced = request.headers.get("content-length", "")
    small = announced.isdigit() and int(announced) < _SMALL
    return not (small and request.headers.get("content-type", "").lower().startswith("application/json"))


class _Reads:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def galleries(self, request: Request) -> Response:
        async def work(job: Attended) -> Response:
            data = []
            for name in list(self._service.galleries):
                with self._service.using_gallery(name) as deployment:
                    data.append(await deployment.look_up(partial(self._facts, name, deployment), job.call))
            return JsonReply({"object": "list", "data": data}, headers={"Server-Timing": job.call.header})

        return await attended(request, self._service, work, room=False)

    async def gallery(self, asked: _Asked) -> Response:
        def look() -> dict[str, Any]:
            fields = fields_json(self._service.memory.fields(asked.gallery))
            return {**self._facts(asked.name, asked.deployment), "fields": fields}

        return JsonReply(await asked.deployment.look_up(look, asked.job.call))

    async def images(self, asked: _Asked) -> Response:
        query = asked.request.query_params
        check_names(query, {"limit", "after", "where"})
        limit = _bounded(query.get("limit"), "limit", 100, 1, MOST_LISTED)
        after = _bounded(query.get("after"), "after", 0, 0, 2**63 - 1)
        where = parse_where(query.get("where"))
        gallery = asked.gallery

        def look() -> JsonReply:
            items = gallery.page(after=after, limit=limit + 1, where=where)
            page = {
                "object": "list",
                "images": [item_json(asked.name, item) for item in items[:limit]],
                "next": items[limit - 1].id if len(items) > limit else None,
                "matching": self._service.memory.count(gallery, where),
            }
            return JsonReply(page)  # off the event loop: metadata may have many MiB

        return await asked.deployment.look_up(look, asked.job.call)

    async def image(self, asked: _Asked) -> Response:
        id_ = image_id(asked.request)
        item = await asyncio.to_thread(asked.gallery.get, id_)
        if item is None:
            raise unknown_id(id_)
        return JsonReply(item_json(asked.name, item))

    async def thumbnail(self, asked: _Asked) -> Response:
        id_ = image_id(asked.request)
        found = await asyncio.to_thread(asked.gallery.thumbnail, id_)
        if found is None:
            raise Problem(404, "unknown_id", f"the gallery has no thumbnail of image {id_}", param="id")
        return thumbnail_reply(asked.request, found)

    async def vector(self, asked: _Asked) -> Response:
        id_ = image_id(asked.request)
        vector = await asyncio.to_thread(asked.gallery.vector, id_)
        if vector is None:
            raise unknown_id(id_)
        return vector_reply(asked.request, id_, vector)

    async def search(self, asked: _Asked) -> Response:
        limits, body = self._service.limits, asked.job.body
        headers, query = asked.request.headers, asked.request.query_params
        wanted = await off_loop(len(body), parse_query, headers, query, body, limits, asked.gallery.model.dim)
        return await self._found(asked, wanted)

    async def link(self, asked: _Asked) -> Response:
        return await self._found(asked, parse_link(asked.request.query_params, self._service.limits))

    async def _found(self, asked: _Asked, query: Query) -> Response:
        self._service.metrics.searched(asked.name)
        return await search(asked.name, asked.deployment, query, self._service.memory, self._service.limits, asked.job)

    def _facts(self, name: str, deployment: Deployment) -> dict[str, Any]:
        facts = self._service.memory.facts(deployment.require_gallery())
        return gallery_json(name, deployment, facts, writable=self._service.limits.writable)


class _Writes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def upsert(self, asked: _Asked) -> Response:
        limits, job, request = self._service.limits, asked.job, asked.request
        args = (request.headers, request.query_params, job.body, limits, asked.gallery.model.dim)
        images = await off_loop(len(job.body), parse_upsert, *args)
        items = await off_loop(len(job.body), _incoming, images, await _contents(images, self._service, job))
        written = await self._service.ingest(asked.deployment).upsert(items, job.call)
        rows = [
            {"id": each.id, "key": item.key, "created": each.created} for item, each in zip(items, written, strict=True)
        ]
        return JsonReply({"object": "list", "images": rows, "gallery": asked.name})

    async def patch(self, asked: _Asked) -> Response:
        id_ = image_id(asked.request)
        kind = asked.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/merge-patch+json", "application/json"):
            text = f"Content-Type is {kind or 'missing'}; send application/merge-patch+json or application/json"
            raise Problem(415, "unsupported_content_type", text)
        patch = await off_loop(len(asked.job.body), parse_patch, asked.job.body)
        item = await self._service.ingest(asked.deployment).set_metadata(id_, patch, asked.job.call)
        return JsonReply(item_json(asked.name, item))

    async def delete_one(self, asked: _Asked) -> Response:
        id_ = image_id(asked.request)
        if not await self._service.ingest(asked.deployment).delete([id_], asked.job.call):
            raise unknown_id(id_)
        return JsonReply({"deleted": 1})

    async def delete(self, asked: _Asked) -> Response:
        body_kind(asked.request.headers, ["json"])
        order = await off_loop(len(asked.job.body), parse_deletion, asked.job.body)
        ingest = self._service.ingest(asked.deployment)
        if order.where is not None:
            count = await ingest.delete_where(order.where, order.confirm, asked.job.call)
        else:
            count = await ingest.delete(order.ids, asked.job.call)
        return JsonReply({"deleted": count})


async def _contents(images: Sequence[NewImage], service: Service, job: Attended) -> list[bytes | Vectors]:
    """Those named by URL are fetched."""
    sources = [image.content for image in images if isinstance(image.content, (bytes, Url))]
    blobs = iter(await fetched(sources, service.limits, job))
    return [next(blobs) if isinstance(image.content, (bytes, Url)) else image.content for image in images]


def _incoming(images: Sequence[NewImage], contents: Sequence[bytes | Vectors]) -> list[Incoming]:
    """With the keys and URIs of those that were given none."""
    items = []
    for image, content in zip(images, contents, strict=True):
        key = image.key or digest_key(content)
        address = image.content.address if isinstance(image.content, Url) else None
        items.append(Incoming(key, image.uri or address or key, content, image.metadata))
    return items


def image_id(request: Request) -> int:
    """Raises Problem: 400 it is no integer; 404 there can be no such image."""
    text = request.path_params["image_id"]
    if not text.removeprefix("-").isdecimal() or not text.isascii():
        raise Problem(400, "invalid_id", "id must be an integer", param="id")
    if len(text) > 19 or not 0 <= (number := int(text)) < 2**63:
        raise Problem(404, "unknown_id", f"the gallery has no image {text[:20]}", param="id")
    return number


def _bounded(text: str | None, name: str, default: int, least: int, most: int) -> int:
    if text is None:
        return default
    if text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise Problem(400, f"invalid_{name}", f"{name} must be an integer from {least} to {most}", param=name)
