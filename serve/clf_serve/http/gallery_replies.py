"""Galleries, their images and hits as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from clf_serve.deployment import Deployment
from clf_serve.engine import Vectors
from clf_serve.gallery import FieldFacts, GalleryFacts, Hit, Item, Thumbnail
from clf_serve.http.replies import JsonReply, Kind, accepted, matches, npy


def gallery_json(name: str, deployment: Deployment, facts: GalleryFacts, *, writable: bool) -> dict[str, Any]:
    return {
        "id": name,
        "object": "gallery",
        "images": facts.images,
        "model": deployment.name,
        "dim": facts.dim,
        "generation": facts.generation,
        "format": facts.format,
        "bytes": facts.bytes,
        "index": index_json(facts),
        "writable": writable,
    }


def fields_json(fields: dict[str, FieldFacts]) -> dict[str, Any]:
    return {
        name: {
            "type": each.type,
            "entries": each.entries,
            "distinct": each.distinct,
            "sampled": each.sampled,
            "values": [{"value": value, "count": count} for value, count in each.values],
        }
        for name, each in fields.items()
    }


def index_json(facts: GalleryFacts) -> dict[str, Any] | None:
    """None before the index was first read."""
    return None if facts.index is None else facts.index.json()


def item_json(gallery: str, item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "key": item.key,
        "uri": item.uri,
        "metadata": item.metadata,
        "sha256": item.sha256,
        "width": item.width,
        "height": item.height,
        "size": item.size,
        "mtime": item.mtime_ns / 1e9,
        "folder": item.folder,
        "thumbnail": thumbnail_path(gallery, item.id, item.sha256),
    }


def hit_json(gallery: str, hit: Hit, percentile: float | None, folded: Sequence[int]) -> dict[str, Any]:
    """Args: folded: ids of the hits that are near duplicates of this one, and worse."""
    return {
        "id": hit.id,
        "uri": hit.uri,
        "score": hit.score,
        "percentile": percentile,
        "metadata": hit.metadata,
        "sha256": hit.sha256,
        "width": hit.width,
        "height": hit.height,
        "folder": hit.folder,
        "thumbnail": thumbnail_path(gallery, hit.id, hit.sha256),
        "folded": list(folded),
    }


def thumbnail_path(gallery: str, id_: int, sha256: str) -> str | None:
    """The picture's digest is in it, so a browser may keep it for ever. None for an entry that is only a vector."""
    return f"/v1/galleries/{quote(gallery, safe='')}/images/{id_}/thumbnail?v={sha256[:12]}" if sha256 else None


def thumbnail_reply(request: Request, found: Thumbnail) -> Response:
    tag = f'"{found.sha256[:16]}"'
    fixed = request.query_params.get("v") == found.sha256[:12]
    caching = "private, max-age=31536000, immutable" if fixed else "private, no-cache"
    headers = {"ETag": tag, "Cache-Control": caching}
    if matches(request.headers.getlist("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    return Response(found.data, media_type="image/jpeg", headers=headers)


def vector_reply(request: Request, id_: int, vector: Vectors) -> Response:
    """(D,), as Accept has it."""
    kind: Kind = accepted(request.headers.get("accept", ""))
    if kind == "application/json":
        return JsonReply({"id": id_, "vector": vector})
    raw = npy(vector) if kind == "application/x-npy" else vector.astype("<f4").tobytes()
    return Response(raw, headers={"X-Shape": str(len(vector)), "X-Dtype": "<f4"}, media_type=kind)
