"""Images and vectors on their way into a gallery that is being served."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from clf import images
from clf_serve.call import Call
from clf_serve.deployment import Deployment
from clf_serve.engine import Pixels, Vectors
from clf_serve.gallery import Identity
from clf_serve.gallery.filters import Where
from clf_serve.gallery.metadata import EntryError
from clf_serve.gallery.store import Entry, Item
from clf_serve.limits import ServeLimits
from clf_serve.metrics import Metrics
from clf_serve.problems import Problem
from clf_serve.stores import AnyGallery
from clf_serve.sync.thumbnails import thumbnail
from clf_serve.writing import Writer, Written

__all__ = ["Incoming", "Ingest", "Written", "digest_key"]

T = TypeVar("T")


class Incoming(NamedTuple):
    """One image to keep, or one vector."""

    key: str
    uri: str
    content: bytes | Vectors
    """An image file, or a vector (D,) of unit length."""
    metadata: Mapping[str, Any] = {}


def digest_key(content: bytes | Vectors) -> str:
    """The key of what was given none: the same bytes sent twice are one entry."""
    blob = content if isinstance(content, bytes) else np.ascontiguousarray(content, "<f4").tobytes()
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


class _Look(NamedTuple):
    width: int
    height: int
    thumbnail: bytes
    sha256: str


class Ingest:
    """Changes one gallery. All methods raise, besides what they name:

        Problem: 409 gallery_busy, another process writes; 507 disk_full; 503.

    Args:
        name: of the gallery, for the metrics.
        writer: of its folder.
    """

    def __init__(
        self, name: str, deployment: Deployment, writer: Writer, limits: ServeLimits, metrics: Metrics
    ) -> None:
        self._name = name
        self._deployment = deployment
        self._writer = writer
        self._limits = limits
        self._metrics = metrics
        self._identity = Identity.of(deployment.engine.manifest)

    async def upsert(self, items: Sequence[Incoming], call: Call) -> list[Written]:
        """Embeds images and keeps them; all or none. An entry of the same key is replaced and keeps its id.

        Raises:
            Problem: 413 too many; 422 an image cannot be used; 429.
        """
        if len(items) > self._limits.max_images:
            text = f"{len(items)} images are more than the {self._limits.max_images} a request may hold"
            raise Problem(413, "too_many_images", text, param="images")
        entries = await self._entries(items, call)
        start = time.monotonic()
        try:
            written = await self._writer.upsert(entries, self._identity)
        finally:
            self._metrics.stage("store").observe(call.since("store", start))
        created = sum(each.created for each in written)
        self._count("created", created)
        self._count("replaced", len(written) - created)
        return written

    async def delete(self, ids: Collection[int], call: Call) -> int:
        """How many of these there were."""
        wanted = sorted(set(ids))
        count = await self._change(lambda gallery: gallery.delete(wanted), call)
        self._count("deleted", count)
        return count

    async def delete_where(self, where: Where, confirm: int, call: Call) -> int:
        """Removes whatever matches, if it is as many as the caller thinks.

        Raises:
            Problem: 409 it is another number; nothing was removed.
        """

        def work(gallery: AnyGallery) -> int:
            ids = gallery.ids(where).tolist()
            if len(ids) != confirm:
                text = f"{len(ids)} images match and {confirm} were expected; nothing was deleted"
                raise Problem(409, "count_differs", text, param="confirm")
            return gallery.delete(ids)

        count = await self._change(work, call)
        self._count("deleted", count)
        return count

    async def set_metadata(self, id_: int, patch: Mapping[str, Any] | None, call: Call) -> Item:
        """Merges ``patch`` into an image's metadata (RFC 7396); None clears it.

        Raises:
            Problem: 404 there is no such image; 400 its metadata would grow too large.
        """

        def work(gallery: AnyGallery) -> Item:
            try:
                gallery.set_metadata({id_: patch})
            except EntryError as error:
                raise Problem(400, "invalid_metadata", str(error), param="metadata") from error
            after = gallery.get(id_)
            if after is None:
                raise unknown_id(id_)
            return after

        item = await self._change(work, call)
        self._count("changed", 1)
        return item

    async def _entries(self, items: Sequence[Incoming], call: Call) -> list[Entry]:
        now = time.time_ns()
        places = [place for place, item in enumerate(items) if isinstance(item[2], bytes)]
        blobs = [content for _, _, content, _ in items if isinstance(content, bytes)]
        names = [f"images[{place}]" for place in places]
        found: dict[int, tuple[Vectors, _Look]] = {}
        if blobs:
            vectors, looks = await self._deployment.embed_with(blobs, names, call, self._prepare)
            found = dict(zip(places, zip(vectors, looks, strict=True), strict=True))
        entries = []
        for place, (key, uri, content, metadata) in enumerate(items):
            if isinstance(content, bytes):
                vector, look = found[place]
            else:
                vector, look = content, _Look(0, 0, b"", "")
            entries.append(
                Entry(
                    key=key,
                    uri=uri,
                    vector=vector,
                    thumbnail=look.thumbnail,
                    size=len(content) if isinstance(content, bytes) else 0,
                    mtime_ns=now,
                    sha256=look.sha256,
                    width=look.width,
                    height=look.height,
                    metadata=metadata,
                    folder=_folder(uri),
                )
            )
        return entries

    def _prepare(self, blob: bytes | Path) -> tuple[Pixels, _Look]:
        """Exactly, as ``clf index`` does, however queries are decoded."""
        assert isinstance(blob, bytes)
        picture = images.decode(blob, self._limits.image)
        pixels = images.resize(picture, self._deployment.engine.image_size)
        width, height = picture.size
        return pixels, _Look(width, height, thumbnail(picture), hashlib.sha256(blob).hexdigest())

    async def _change(self, work: Callable[[AnyGallery], T], call: Call) -> T:
        start = time.monotonic()
        try:
            return await self._writer.change(work, self._identity)
        finally:
            self._metrics.stage("store").observe(call.since("store", start))

    def _count(self, change: str, images_: int) -> None:
        self._metrics.changed(self._name, change, images_)


def _folder(uri: str) -> str:
    """The folder that a relative path names; none for an address, or a path from the root of some other machine."""
    folder = uri.rpartition("/")[0]
    return "" if "://" in uri or uri.startswith("/") else folder


def unknown_id(id_: int) -> Problem:
    return Problem(404, "unknown_id", f"the gallery has no image {id_}", param="id")
