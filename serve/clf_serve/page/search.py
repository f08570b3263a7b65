"""The search tab and its routes. The tab's markup is fixed; ``search.js`` asks the routes and puts in what they give.

The routes are the page's own: below ``page/``, not in the OpenAPI document, behind the same keys and limits as the API.
A picture goes from the browser to ``page/embed`` as the bytes of its file and is never written to disk, so the page and
the API agree on every file, EXIF orientation included.
"""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from clf.errors import ImageError
from clf.images import decode, resize
from clf_serve.background import Background, percent
from clf_serve.call import Call
from clf_serve.deployment import Deployment
from clf_serve.engine import Vectors
from clf_serve.http.api import model_json
from clf_serve.http.attend import Attended, attended, fetched, off_loop
from clf_serve.http.inputs import read_json
from clf_serve.http.replies import JsonReply
from clf_serve.http.shapes import image_of
from clf_serve.index import IndexInfo
from clf_serve.page import cards
from clf_serve.page.finding import find
from clf_serve.page.form import filter_form
from clf_serve.page.layout import Page
from clf_serve.page.state import COUNTS, Crop, parse_crop, parse_search, vector_text
from clf_serve.problems import Problem

_SAMPLES = 12
_PREVIEW = 1024  # pixels of the longer side, where the browser cannot show the file itself


def build(page: Page) -> None:
    """The tab, inside ``gradio.Tab``."""
    markup = (Path(__file__).parent / "search.html").read_text(encoding="utf-8")
    counts = "".join(f'<label><input type="radio" name="clf-k" value="{k}"><span>{k}</span></label>' for k in COUNTS)
    urls = "" if page.service.limits.allow_urls else "hidden"
    page.html(markup.replace("@COUNTS@", counts).replace("@URLS@", urls), "clf-search-tab")


def header() -> str:
    """Filled by ``search.js`` from ``page/gallery``, as a reload may change everything it says."""
    return (
        '<header class="clf-head"><div class="clf-brand"><h1>clf<span> search</span></h1><p id="clf-about"></p></div>'
        '<nav aria-label="Page"><a href="docs">API</a>'
        '<button type="button" id="clf-theme" aria-label="Light or dark" title="Light or dark"></button></nav></header>'
    )


def add_routes(page: Page) -> None:
    routes = _Routes(page)
    for path, route, method in (
        ("/page/embed", routes.embed, "POST"),
        ("/page/preview", routes.preview, "POST"),
        ("/page/fetch", routes.fetch, "POST"),
        ("/page/search", routes.search, "POST"),
        ("/page/gallery", routes.gallery, "GET"),
        ("/page/item/{image_id:int}", routes.item, "GET"),
    ):
        page.app.add_route(path, route, methods=[method], include_in_schema=False)


class _Routes:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._service = page.service

    async def embed(self, request: Request) -> Response:
        """The vector of the picture in the body, or of the part of it that ``crop`` names."""

        async def work(job: Attended) -> Response:
            crop = parse_crop(request.query_params.get("crop", ""))
            with self._page.using(request.query_params.get("gallery")) as deployment:
                vectors = await self._vectors(deployment, job, crop)
                model = deployment.engine.manifest.sha256
            return JsonReply({"vector": vector_text(vectors[0]), "model": model, "times": _times(job.call)})

        return await attended(request, self._service, work)

    async def _vectors(self, deployment: Deployment, job: Attended, crop: Crop | None) -> Vectors:
        if crop is None:
            return await deployment.embed([job.body], job.call)
        start = time.monotonic()
        limits = self._service.limits.image
        pixels = await asyncio.to_thread(_cropped, job.body, crop, deployment.engine.image_size, limits)
        job.call.since("decode", start)
        return await deployment.embed_pixels([pixels], job.call)

    async def preview(self, request: Request) -> Response:
        """A JPEG of a file that the browser cannot show."""

        async def work(job: Attended) -> Response:
            small = await asyncio.to_thread(_preview, job.body, self._service.limits.image)
            return Response(small, media_type="image/jpeg")

        return await attended(request, self._service, work)

    async def fetch(self, request: Request) -> Response:
        """The bytes of a picture by URL, where the server allows it, by the rules of the API. Nothing but pictures."""

        async def work(job: Attended) -> Response:
            tree = read_json(job.body)
            source = image_of({"url": tree.get("url")}, "url", self._service.limits.allow_urls)
            blob = (await fetched([source], self._service.limits, job))[0]
            await asyncio.to_thread(_preview, blob, self._service.limits.image)  # raises Problem for anything else
            return Response(blob, media_type="application/octet-stream")

        return await attended(request, self._service, work, room=False)

    async def search(self, request: Request) -> Response:
        async def work(job: Attended) -> Response:
            tree = await off_loop(len(job.body), read_json, job.body)
            wanted = parse_search(tree)
            with self._page.using(wanted.gallery) as deployment:
                found = await find(deployment, wanted, self._service.memory, job.call, self._service.limits.max_k)
                links = self._links(deployment, wanted.gallery)

                asked = {str(item.id): {"name": item.uri, "picture": links.picture(item)} for item in found.asked}
                reply = {
                    "html": cards.cards(found.groups, found.shares, links, wanted.page * wanted.k + 1),
                    "shown": len(found.groups),
                    "folded": sum(len(group) - 1 for group in found.groups),
                    "more": found.more,
                    "among": found.among,
                    "images": found.images,
                    "generation": found.generation,
                    "asked": asked,
                    "times": _times(job.call),
                }
            return JsonReply(reply)

        return await attended(request, self._service, work, room=False)

    def _links(self, deployment: Deployment, gallery: str | None) -> cards.Links:
        def search(id_: int) -> str:
            return "?" + urlencode({"gallery": gallery, "like": id_} if gallery else {"like": id_})

        return cards.Links(lambda image: self._page.picture(image, deployment), search)

    async def gallery(self, request: Request) -> Response:
        """What the tab says of a gallery: its facts, its filter form, and pictures to start from."""
        name = request.query_params.get("gallery")
        with self._page.using(name) as deployment:
            reply = JsonReply(await asyncio.to_thread(self._gallery, deployment, name))
            if deployment.gallery is not None:  # so that the first search need not wait for it
                reply.background = BackgroundTask(Background.of, deployment.gallery)
        return reply

    def _gallery(self, deployment: Deployment, name: str | None) -> dict[str, Any]:
        names = [
            {"name": each, "images": len(held.require_gallery()), "model": held.name}
            for each, held in self._page.galleries.items()
        ]
        facts = model_json(self._service, deployment)
        trained = " · ".join(str(facts[part]) for part in ("id", "plugin", "backbone") if facts[part])
        about: dict[str, Any] = {
            "name": None,
            "galleries": names,
            "form": "",
            "index": "",
            "near": None,
            "generation": 0,
            "images": 0,
        }
        about |= {"about": f"{trained} · {facts['dim']} dimensions"}
        gallery = deployment.gallery
        if gallery is None:
            text = "This server has no gallery. Drop a picture to see its embedding, or start it with --gallery."
            return about | {"welcome": cards.message("Drop a picture", text)}
        items = gallery.sample(_SAMPLES)
        memory = self._service.memory
        known = memory.facts(gallery)
        about |= {"name": name or names[0]["name"], "images": known.images, "generation": known.generation}
        about |= {"form": filter_form(memory.fields(gallery)), "index": index_text(known.index)}
        about |= {"near": memory.near(gallery) if items else None}
        if not items:
            message = cards.message("The gallery is empty", "Fill it: clf index MODEL IMAGES -o GALLERY")
            return about | {"welcome": message}
        text = "Its nearest neighbours appear here, the most alike first. Or paste one, or use the camera."
        samples = cards.samples(items, self._links(deployment, name))
        message = cards.message("Drop a picture anywhere", text)
        return about | {"welcome": f'<div class="clf-welcome">{message}</div>{samples}'}

    async def item(self, request: Request) -> Response:
        """Everything known of one image."""
        id_ = int(request.path_params["image_id"])
        with self._page.using(request.query_params.get("gallery")) as deployment:
            gallery = deployment.require_gallery()
            found = await asyncio.to_thread(gallery.get, id_) if id_ < 2**63 else None
            if found is None:
                text = f"the gallery has no image {id_}; it may have been removed"
                raise Problem(404, "unknown_id", text, param="id")
            return HTMLResponse(cards.details(found, self._page.picture(found, deployment)))


def index_text(index: IndexInfo) -> str:
    """How the gallery is searched, and what that was measured to find."""
    if index.exact:
        return "Exact search: the query is compared with every image."
    if index.recall is None:
        return f"Approximate search ({index.kind}); what it finds has not been measured yet."
    return (
        f"Approximate search ({index.kind}): finds {percent(index.recall)} of the true {index.recall_k} nearest,"
        f" measured on {index.queries:,} held-back images."
    )


def _times(call: Call) -> dict[str, float]:
    """Milliseconds of each stage."""
    return {name: round(1000 * seconds, 2) for name, seconds in call.seconds.items()}


def _cropped(blob: bytes, crop: Crop, size: int, limits: Any) -> Any:
    """A part of the upright picture as the model sees it: (S, S, 3) uint8. Raises Problem 422."""
    try:
        image = decode(blob, limits)
    except ImageError as error:
        raise Problem(422, "invalid_image", str(error), param="image") from error
    width, height = image.size
    left, top = min(int(crop[0] * width), width - 1), min(int(crop[1] * height), height - 1)
    right = min(width, max(left + 1, round((crop[0] + crop[2]) * width)))
    bottom = min(height, max(top + 1, round((crop[1] + crop[3]) * height)))
    return np.ascontiguousarray(resize(image.crop((left, top, right, bottom)), size))


def _preview(blob: bytes, limits: Any) -> bytes:
    try:
        image = decode(blob, limits)
    except ImageError as error:
        raise Problem(422, "invalid_image", str(error), param="image") from error
    image.thumbnail((_PREVIEW, _PREVIEW))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
