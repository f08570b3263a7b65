"""The part of the OpenAPI document that is about ``/v1/galleries``."""

from __future__ import annotations

from typing import Any

from clf_serve.http.gallery_schemas import FILTER_TEXT, ID, Schema
from clf_serve.http.openapi_parts import BINARY, IMAGE_BODIES, JSON, answer, body, get, headers, in_path, post
from clf_serve.http.schemas import ref, written

_QUERY_TEXT: Schema = {"type": "string"}


def gallery_paths(names: list[str], components: dict[str, Schema]) -> dict[str, Any]:
    """Args: names: of the galleries that are served."""
    one = "/v1/galleries/{gallery}"
    gallery = in_path("gallery", names)
    image = {"name": "image_id", "in": "path", "required": True, "schema": ID}
    text = "The galleries that are served: what they hold, and how their index does."
    facts = "What a gallery holds: images, index with measured recall, and the names and values of its metadata."
    timed = "Server-Timing"
    return {
        "/v1/galleries": {"get": get("Galleries", text, answer("Galleries", timed))},
        one: {"get": get("Gallery", facts, answer("Gallery", timed), 404, 429, parameters=[gallery])},
        f"{one}/images": {"get": _listing(gallery), "post": _upsert(gallery)},
        f"{one}/images/{{image_id}}": _one_image([gallery, image]),
        f"{one}/images/{{image_id}}/thumbnail": {"get": thumbnail([gallery, image])},
        f"{one}/images/{{image_id}}/vector": {"get": _vector([gallery, image])},
        f"{one}/delete": {"post": _deletion(gallery)},
        f"{one}/search": _searches(gallery, components),
    }


def thumbnail(parameters: list[Schema]) -> dict[str, Any]:
    """A picture with its cache headers."""
    picture = {
        "description": "A small JPEG.",
        "headers": headers("ETag", "Cache-Control"),
        "content": {"image/jpeg": BINARY},
    }
    about = [
        *parameters,
        _in_query("v", _QUERY_TEXT, "Of its digest; may be kept then."),
        {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}},
    ]
    found = get("Thumbnail", "A small JPEG of one image of the gallery.", picture, 400, 404, parameters=about)
    found["responses"]["304"] = {
        "description": "As If-None-Match has it.",
        "headers": headers("ETag", "Cache-Control"),
    }
    return found


def _listing(gallery: Schema) -> dict[str, Any]:
    parameters = [
        gallery,
        _in_query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Images of a page."),
        _in_query("after", {**ID, "default": 0}, "next of the page before."),
        _where(),
    ]
    text = "Images in order of their ids, page by page: ask again with after=next until next is null."
    return get("Images of a gallery", text, answer("Items", "Server-Timing"), 400, 404, 429, parameters=parameters)


def _upsert(gallery: Schema) -> dict[str, Any]:
    text = (
        "Adds images or vectors, all or none. What has the key of an image that is there takes its place and keeps its "
        "id; without a key the digest of the bytes is one. An image that is the whole body is described in the URL. "
        "The answer comes when all is committed; the next search finds it."
    )
    content = {
        JSON: {"schema": ref("NewImages")},
        "multipart/form-data": {
            "schema": ref("NewImagesForm"),
            "encoding": {"file": {"contentType": "image/*"}},
        },
        **IMAGE_BODIES,
    }
    key = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[a-z0-9]+$"}
    parameters = [gallery, _in_query("key", key, "Of an image that is the whole body.")]
    ok = answer("Written", "Server-Timing")
    return post("Upsert", text, ok, 403, 409, 504, 507, requestBody=body(content), parameters=parameters)


def _one_image(parameters: list[Schema]) -> dict[str, Any]:
    patch = {"application/merge-patch+json": {"schema": ref("MetadataPatch")}, JSON: {"schema": ref("MetadataPatch")}}
    changes = (400, 403, 404, 408, 409, 413, 429, 507)
    return {
        "get": get(
            "Image", "One image of the gallery.", answer("Item", "Server-Timing"), 400, 404, parameters=parameters
        ),
        "patch": get(
            "Change metadata",
            "Merges into the metadata of an image: names change, and null deletes one (RFC 7396).",
            answer("Item", "Server-Timing"),
            *changes,
            415,
            requestBody=body(patch),
            parameters=parameters,
        ),
        "delete": get(
            "Delete an image",
            "Takes one image out of the gallery. The file that it came from is not touched.",
            answer("Deleted", "Server-Timing"),
            *changes,
            parameters=parameters,
        ),
    }


def _vector(parameters: list[Schema]) -> dict[str, Any]:
    kinds = {JSON: {"schema": ref("StoredVector")}, "application/x-npy": BINARY, "application/octet-stream": BINARY}
    about = headers("X-Shape", "X-Dtype", "Server-Timing")
    ok = {"description": "The vector, of unit length, as Accept has it.", "headers": about, "content": kinds}
    return get("Vector of an image", "As it is stored, without loss.", ok, 400, 404, parameters=parameters)


def _deletion(gallery: Schema) -> dict[str, Any]:
    text = (
        "Takes images out by id, or all that match a filter, if they are as many as confirm says. Unknown ids are no "
        "error. Files are not touched."
    )
    ok = answer("Deleted", "Server-Timing")
    content = body({JSON: {"schema": ref("Deletion")}})
    return post("Delete images", text, ok, 403, 409, 507, requestBody=content, parameters=[gallery])


def _searches(gallery: Schema, components: dict[str, Schema]) -> dict[str, Any]:
    options = components["GallerySearchRequest"]["properties"]
    named = [_in_query(name, written(options[name]), "") for name in ("k", "offset", "min_score", "exact")]
    shared = [gallery, *named, _where()]
    id_ = {**_in_query("id", ID, "Whose neighbours."), "required": True}
    form = {"schema": ref("GallerySearchForm"), "encoding": {"image": {"contentType": "image/*"}}}
    content = body({JSON: {"schema": ref("GallerySearchRequest")}, "multipart/form-data": form, **IMAGE_BODIES})
    ok = answer("GalleryHits", "Server-Timing")
    text = (
        "The images nearest to an image, a vector, an image of the gallery, or a weighted sum of several, best first. "
        "percentile says how many random pairs are less alike; index says how well the search is known to find."
    )
    link = "The images nearest to one of the gallery, as a link that can be shared."
    return {
        "get": get("Search by link", link, ok, 400, 404, 429, parameters=[*shared, id_]),
        "post": post("Search in a gallery", text, ok, 504, requestBody=content, parameters=shared),
    }


def _where() -> Schema:
    return _in_query("where", FILTER_TEXT, "A Filter, as JSON text.")


def _in_query(name: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, **({"description": text} if text else {})}
