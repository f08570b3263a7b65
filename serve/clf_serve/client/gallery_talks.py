"""What a client says to its server about one gallery, as conversations of :mod:`clf_serve.client.exchange`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from clf.errors import ImageError
from clf.images import find_images
from clf_serve.client.exchange import (
    Call,
    ClientError,
    RefusedError,
    Reply,
    Send,
    Spread,
    Steps,
    UnexpectedReplyError,
    Vectors,
    read_json,
)
from clf_serve.client.talks import Loaded, Skipped, Talks, Upload, bar, chunked, numbers, of_image, skips
from clf_serve.client.uploads import Source, encode, listed, named

T = TypeVar("T")
Where: TypeAlias = Mapping[str, Any]
"""A filter: ``{"label": "cat", "year": {"$gte": 2020}}``."""
Metadata: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery."""

    id: int
    key: str
    uri: str
    metadata: dict[str, Any]
    sha256: str
    width: int
    height: int
    size: int
    mtime: float
    """Seconds since 1970."""
    folder: str = ""
    thumbnail: str | None = None
    """Path of a small picture, relative to the server."""


@dataclass(frozen=True)
class GalleryHit:
    """A neighbour; ``score`` is the cosine of the angle between it and the query."""

    id: int
    uri: str
    score: float
    percentile: float | None = None
    """Share of random pairs of the gallery that are less alike."""
    metadata: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    width: int = 0
    height: int = 0
    folder: str = ""
    thumbnail: str | None = None
    folded: tuple[int, ...] = ()
    """Further hits that are near duplicates of this one."""


class Page(NamedTuple):
    images: list[GalleryImage]
    next: int | None
    """What to ask for ``after``; None on the last page."""


class Stored(NamedTuple):
    """What became of an image that was sent."""

    id: int
    key: str
    created: bool
    """False where it took the place of one with the same key."""


class FolderStored(NamedTuple):
    """Row i of ``stored`` belongs to ``paths[i]``."""

    stored: list[Stored]
    paths: list[Path]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Weighted:
    """A query that counts for more or less than others: an id, an image, or a vector (D,)."""

    query: Any
    weight: float


class GalleryTalks:
    """All calls about one gallery."""

    def __init__(self, talks: Talks, name: str) -> None:
        self._talks = talks
        self._top = f"/v1/galleries/{quote(name, safe='')}"

    def info(self) -> Steps[dict[str, Any]]:
        return read_json((yield from self._talks.asked(Send("GET", self._top))))

    def search(
        self,
        image: Source | None,
        vector: ArrayLike | None,
        id_: int | None,
        like: Sequence[Any],
        unlike: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Steps[list[GalleryHit]]:
        given = [each for each in (image, vector, id_) if each is not None]
        if len(given) > 1 or not (given or like or unlike):
            raise ClientError("search takes one of image, vector and id, or a list like")
        tree = {name: value for name, value in options.items() if value is not None}
        if image is not None:
            tree |= yield from self._query(image, "the image")
        elif vector is not None:
            tree["vector"] = numbers(vector)
        elif id_ is not None:
            tree["id"] = int(id_)
        for side, queries in (("like", like), ("unlike", unlike)):
            if queries:
                tree[side] = []
                for place, query in enumerate(queries):
                    tree[side].append((yield from self._term(query, f"{side}[{place}]")))
        try:
            reply = yield from self._talks.asked(Send("POST", f"{self._top}/search", {"json": tree}))
        except RefusedError as refusal:
            if refusal.status != 422:
                raise
            raise of_image(refusal, refusal.param or "the image", 0) from refusal
        return _read(lambda: [_hit(hit) for hit in read_json(reply)["hits"]], "neighbours")

    def page(self, after: int, limit: int, where: Where | None) -> Steps[Page]:
        asked: dict[str, Any] = {"after": after, "limit": limit}
        if where is not None:
            asked["where"] = json.dumps(where)
        reply = yield from self._talks.asked(Send("GET", f"{self._top}/images", {"params": asked}))

        def page() -> Page:
            tree = read_json(reply)
            following = tree["next"]
            return Page([_image(each) for each in tree["images"]], None if following is None else int(following))

        return _read(page, "page of images")

    def get(self, id_: int) -> Steps[GalleryImage | None]:
        reply = yield from self._one(Send("GET", self._image(id_)))
        return None if reply is None else _read(lambda: _image(read_json(reply)), "image")

    def vector(self, id_: int) -> Steps[Vectors | None]:
        asked = Send("GET", self._image(id_) + "/vector", {"headers": {"Accept": "application/octet-stream"}})
        reply = yield from self._one(asked)
        return None if reply is None else _read(lambda: np.frombuffer(reply.body, "<f4").astype(np.float32), "vector")

    def thumbnail(self, id_: int) -> Steps[bytes | None]:
        reply = yield from self._one(Send("GET", self._image(id_) + "/thumbnail"))
        return None if reply is None else reply.body

    def set_metadata(self, id_: int, patch: Metadata | None) -> Steps[GalleryImage]:
        asked = Send("PATCH", self._image(id_), {"json": {"metadata": patch}})
        reply = yield from self._talks.asked(asked)
        return _read(lambda: _image(read_json(reply)), "image")

    def delete(self, ids: Iterable[int]) -> Steps[int]:
        return (yield from self._delete({"ids": [int(id_) for id_ in ids]}))

    def delete_where(self, where: Where, confirm: int) -> Steps[int]:
        return (yield from self._delete({"where": where, "confirm": confirm}))

    def upsert(
        self,
        images: Source | Iterable[Source],
        keys: Sequence[str] | None,
        uris: Sequence[str] | None,
        metadata: Sequence[Metadata] | None,
    ) -> Steps[list[Stored]]:
        sources = listed(images)
        about = _about(keys, uris, metadata, len(sources) if isinstance(sources, Sized) else None)
        uploads = (Upload(i, named(source, f"images[{i}]"), source, about(i)) for i, source in enumerate(sources))
        rows = yield from self._talks.sent(uploads, _Upserting(self._top), skip=False)
        return [row for row in rows if isinstance(row, Stored)]

    def upsert_vectors(
        self,
        vectors: ArrayLike,
        keys: Sequence[str] | None,
        uris: Sequence[str] | None,
        metadata: Sequence[Metadata] | None,
    ) -> Steps[list[Stored]]:
        rows = numbers(vectors)
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise ClientError("vectors must be of shape (n, D)")
        about = _about(keys, uris, metadata, len(rows))
        items = ({"vector": row, **about(i)} for i, row in enumerate(rows))
        room = yield from self._talks.known_room()
        parts = yield Spread(self._vectors, chunked(items, min(self._talks.batch_size, room.images)), 1)
        return [row for part in parts for row in part]

    def upsert_folder(
        self,
        folder: str | Path,
        metadata: Callable[[Path], Metadata] | None,
        on_error: str,
        progress: bool,
    ) -> Steps[FolderStored]:
        skip = skips(on_error)
        paths: list[Path] = yield Call(partial(find_images, Path(folder)))
        uploads = (
            Upload(i, str(path), path, _of_path(path, metadata(path) if metadata else {}))
            for i, path in enumerate(paths)
        )
        with bar("uploading", len(paths), progress) as advance:
            rows = yield from self._talks.sent(uploads, _Upserting(self._top), skip=skip, advance=advance)
        kept = [(path, row) for path, row in zip(paths, rows, strict=True) if isinstance(row, Stored)]
        skipped = [
            Skipped(path, str(row)) for path, row in zip(paths, rows, strict=True) if isinstance(row, ImageError)
        ]
        return FolderStored([row for _, row in kept], [path for path, _ in kept], skipped)

    def _vectors(self, items: list[dict[str, Any]]) -> Steps[list[Stored]]:
        reply = yield from self._talks.asked(Send("POST", f"{self._top}/images", {"json": {"images": items}}))
        return list(_stored(reply, len(items)))

    def _delete(self, tree: Mapping[str, Any]) -> Steps[int]:
        reply = yield from self._talks.asked(Send("POST", f"{self._top}/delete", {"json": tree}))
        return _read(lambda: int(read_json(reply)["deleted"]), "count")

    def _one(self, send: Send) -> Steps[Reply | None]:
        """The answer about one image, or None where there is no such image."""
        try:
            return (yield from self._talks.asked(send))
        except RefusedError as refusal:
            if refusal.code != "unknown_id":
                raise
            return None

    def _term(self, query: Any, name: str) -> Steps[dict[str, Any]]:
        weight = query.weight if isinstance(query, Weighted) else None
        query = query.query if isinstance(query, Weighted) else query
        about: dict[str, Any] = {} if weight is None else {"weight": weight}
        if isinstance(query, (int, np.integer)):
            return {"id": int(query), **about}
        if isinstance(query, (list, tuple)) or (isinstance(query, np.ndarray) and query.ndim == 1):
            return {"vector": numbers(query), **about}
        return {**(yield from self._query(query, name)), **about}

    def _query(self, image: Source, name: str) -> Steps[dict[str, Any]]:
        room = yield from self._talks.known_room()
        blob: bytes = yield Call(partial(encode, image, named(image, name), room.bytes))
        return {"image": base64.b64encode(blob).decode()}

    def _image(self, id_: int) -> str:
        return f"{self._top}/images/{int(id_)}"


class _Upserting:
    def __init__(self, top: str) -> None:
        self._path = f"{top}/images"

    def send(self, group: Sequence[Loaded]) -> Send:
        files: list[tuple[str, Any]] = [
            ("file", (item.name[-200:], io.BytesIO(blob), "application/octet-stream")) for item, blob in group
        ]
        about = json.dumps([dict(item.about) for item, _ in group])
        return Send("POST", self._path, {"files": [*files, ("images", (None, about))]})

    def read(self, reply: Reply, n: int) -> Sequence[Stored]:
        return _stored(reply, n)


def _stored(reply: Reply, n: int) -> Sequence[Stored]:
    def rows() -> list[Stored]:
        found = [Stored(int(row["id"]), str(row["key"]), bool(row["created"])) for row in read_json(reply)["images"]]
        if len(found) != n:
            raise ValueError(f"{len(found)} rows for {n} images")
        return found

    return _read(rows, "ids of these images")


def _about(
    keys: Sequence[str] | None, uris: Sequence[str] | None, metadata: Sequence[Metadata] | None, n: int | None
) -> Callable[[int], dict[str, Any]]:
    """What is said of the image at a place.

    Args:
        n: images, where it is known before they are sent.

    Raises:
        ClientError: keys, uris or metadata are not as many, now or at the first place that has none.
    """
    given = {"key": keys, "uri": uris, "metadata": metadata}
    wrong = "keys, uris and metadata must be as many as the images"
    if n is not None and any(values is not None and len(values) != n for values in given.values()):
        raise ClientError(wrong)

    def about(place: int) -> dict[str, Any]:
        try:
            return {name: values[place] for name, values in given.items() if values is not None}
        except IndexError:
            raise ClientError(wrong) from None

    return about


def _of_path(path: Path, metadata: Metadata) -> dict[str, Any]:
    return {"key": str(path), "uri": str(path), "metadata": dict(metadata)}


def _image(tree: Mapping[str, Any]) -> GalleryImage:
    return GalleryImage(**{each.name: tree[each.name] for each in fields(GalleryImage)})


def _hit(tree: Mapping[str, Any]) -> GalleryHit:
    return GalleryHit(**{each.name: tree[each.name] for each in fields(GalleryHit)} | {"folded": tuple(tree["folded"])})


def _read(read: Callable[[], T], what: str) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UnexpectedReplyError(f"the server's answer holds no {what} ({error!r})") from error


def galleries(talks: Talks) -> Steps[list[dict[str, Any]]]:
    data = read_json((yield from talks.asked(Send("GET", "/v1/galleries")))).get("data")
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise UnexpectedReplyError("the server's list of galleries is none; is this its address?")
    return data
