"""The OpenAPI document: every route, what it takes, gives and refuses. Written by hand, and held to the truth by tests.

Bodies are read by our own hands (raw bytes, forms of any field names, five dialects of JSON), which FastAPI cannot see;
so it is told. OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from typing import Any

from clf import __version__
from clf_serve.http.gallery_schemas import gallery_schemas
from clf_serve.http.kserve import LENGTH, VERSION
from clf_serve.http.openapi_galleries import gallery_paths, thumbnail
from clf_serve.http.openapi_parts import BINARY, IMAGE_BODIES, JSON, REFUSALS, answer, body, get, headers, in_path, post
from clf_serve.http.schemas import Schema, parameter, ref, schemas
from clf_serve.service import Service

_FILE = {"contentType": "image/*"}
OPEN = ("/health", "/v2/health")
"""Paths that need no key begin so."""


def document(service: Service, *, secured: bool) -> dict[str, Any]:
    """OpenAPI of the models that are served now.

    Args:
        secured: whether callers need an API key.
    """
    limits, models = service.limits, service.models
    dim = max(model.engine.dim for model in models.values())
    galleries = service.galleries
    components = schemas(list(models), dim, limits.max_images, limits.max_k)
    dims = {deployment.engine.dim for deployment in galleries.values()} or {dim}
    components |= gallery_schemas(dims, limits.max_images, limits.max_k)
    paths = {**_embeddings(components), **_search(components), **_operation(components)}
    paths |= gallery_paths(list(galleries), components)
    named = in_path("model", list(models))
    paths |= {**_models(named), **_kserve(named)}
    for path, operations in paths.items():
        for operation in operations.values():
            _finish(path, operation, secured)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clf",
            "version": __version__,
            "description": "Embeddings of images, and search in a gallery of them.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "basic": {"type": "http", "scheme": "basic", "description": "The key is the password."},
            },
        },
    }


_TEXT: Schema = {"schema": {"type": "string"}}
_HEADERS: dict[str, Schema] = {
    "Server-Timing": {"description": "Milliseconds of each stage.", **_TEXT},
    "X-Request-ID": {"description": "Of this request, in the server's log too.", **_TEXT},
    "X-Shape": {"description": "n,D of the numbers in the body.", **_TEXT},
    "X-Dtype": {"description": "Always <f4: little-endian float32.", **_TEXT},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}},
    "WWW-Authenticate": _TEXT,
    "ETag": _TEXT,
    "Cache-Control": _TEXT,
    LENGTH: {"description": "Bytes of JSON before the binary data.", "schema": {"type": "integer", "minimum": 1}},
}


def _embeddings(components: dict[str, Schema]) -> dict[str, Any]:
    content = body(
        {
            JSON: {"schema": ref("EmbeddingsRequest")},
            "multipart/form-data": {"schema": ref("EmbeddingsForm"), "encoding": {"images": _FILE}},
            **IMAGE_BODIES,
        }
    )
    options = [parameter(name, components) for name in ("model", "encoding_format", "dimensions")]
    raw = headers("X-Shape", "X-Dtype", "Server-Timing")
    kinds = {JSON: {"schema": ref("Embeddings")}, "application/x-npy": BINARY, "application/octet-stream": BINARY}
    ok = {"description": "Embeddings of unit length, in order.", "headers": raw, "content": kinds}
    text = (
        "Vectors of images, in the shape of OpenAI's API. Accept chooses the reply: JSON, a .npy file, or the bare "
        "numbers. Options may stand in the body or in the URL; the body's win."
    )
    paths = {}
    for path, summary in (("/v1/embeddings", "Embeddings of images"), ("/embeddings", "The same without a version")):
        paths[path] = {"post": post(summary, text, ok, 504, requestBody=content, parameters=options)}
    nomic = answer("NomicEmbeddings", "Server-Timing")
    words = "The same in the shape of Nomic's API: files as images, or addresses as urls where the server allows them."
    paths["/v1/embedding/image"] = {
        "post": post("Embeddings, as Nomic has them", words, nomic, 504, requestBody=content, parameters=options)
    }
    return paths


def _search(components: dict[str, Schema]) -> dict[str, Any]:
    form = {"schema": ref("SearchForm"), "encoding": {"image": _FILE}}
    content = body({JSON: {"schema": ref("SearchRequest")}, "multipart/form-data": form, **IMAGE_BODIES})
    model = parameter("model", components)
    options = [parameter("k", components), model]
    text = "The images of the gallery nearest to an image, a vector or one of its own images, best first."
    identity = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    about = [{"name": "image_id", "in": "path", "required": True, "schema": identity}, model]
    found = answer("Hits", "Server-Timing")
    return {
        "/search": {"post": post("Nearest images", text, found, 504, requestBody=content, parameters=options)},
        "/thumbnails/{image_id}": {"get": thumbnail(about)},
    }


def _models(named: Schema) -> dict[str, Any]:
    text = "The models that are served, and what is known of them."
    one = get("Model", "One model, and what is known of it.", answer("Model"), 404, parameters=[named])
    return {
        "/v1/models": {"get": get("Models", text, answer("Models"))},
        "/models": {"get": get("The same without a version", text, answer("Models"))},
        "/v1/models/{model}": {"get": one},
    }


def _operation(components: dict[str, Schema]) -> dict[str, Any]:
    live = get("Alive", "200 while the process is worth keeping.", answer("Status"), _or("Status"))
    text = "200 when images are embedded: one was in the last 30 s, or a test image just now."
    ready = get("Ready", text, answer("Status"), _or("Status"))
    numbers = {
        "description": "The text format of Prometheus.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    reload = get(
        "Reload",
        "Opens a model (by default every one) and its gallery again, and puts it in the place of the old one.",
        answer("Reloaded"),
        403,
        404,
        409,
        parameters=[parameter("model", components)],
    )
    return {
        "/health": {"get": get("Alive", "As /health/live.", answer("Status"), _or("Status"))},
        "/health/live": {"get": live},
        "/health/ready": {"get": ready},
        "/metrics": {"get": get("Metrics", "Counters and times for Prometheus.", numbers)},
        "/admin/reload": {"post": reload},
    }


def _kserve(named: Schema) -> dict[str, Any]:
    header = {
        "name": LENGTH,
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of JSON before the binary data; 0: the whole body is one image file.",
    }
    content = body({JSON: {"schema": ref("V2Request")}, "application/octet-stream": BINARY})
    ok = {
        "description": "Embeddings of unit length, in order; in binary where it was asked for.",
        "headers": headers("Server-Timing", LENGTH),
        "content": {JSON: {"schema": ref("V2Reply")}, "application/octet-stream": BINARY},
    }
    ready = _or("V2Ready")
    paths: dict[str, Any] = {
        "/v2": {"get": get("Server", "The server's name and extensions.", answer("V2Server"))},
        "/v2/health/live": {"get": get("Alive", "As /health/live.", answer("V2Live"), _or("V2Live"))},
        "/v2/health/ready": {"get": get("Ready", "As /health/ready.", answer("V2Ready"), ready)},
        "/v2/models/stats": {"get": get("Statistics", "Of all models.", answer("V2Stats"))},
        "/v2/repository/index": {"post": get("Models", "As Triton lists them.", answer("V2Index"))},
    }
    for base, places in (
        ("/v2/models/{model}", [named]),
        ("/v2/models/{model}/versions/{version}", [named, in_path("version", [VERSION])]),
    ):
        of_model: list[tuple[str, str, str, str, tuple[int | dict[str, Any], ...]]] = [
            ("", "Model", "Its inputs and outputs.", "V2Model", (404,)),
            ("/ready", "Model ready", "200 when it embeds images.", "V2Ready", (404, ready)),
            ("/config", "Configuration", "As Triton's.", "V2Config", (404,)),
            ("/stats", "Statistics", "Of calls of infer, as Triton's; times in ns.", "V2Stats", (404,)),
        ]
        for path, summary, text, schema, refusals in of_model:
            paths[base + path] = {"get": get(summary, text, answer(schema), *refusals, parameters=places)}
        text = "Embeddings by the Open Inference Protocol, with the binary tensor data extension."
        infer = post("Infer", text, ok, requestBody=content, parameters=[*places, header])
        paths[f"{base}/infer"] = {"post": infer}
    return paths


def _finish(path: str, operation: dict[str, Any], secured: bool) -> None:
    """What all operations share: an id, errors, the request's id, and keys."""
    operation["responses"] = responses = dict(operation["responses"])
    if secured:
        if path.startswith(OPEN):
            operation["security"] = []
        else:
            operation["security"] = [{"bearer": []}, {"header": []}, {"basic": []}]
            responses["401"] = {"description": REFUSALS[401], "headers": headers("WWW-Authenticate")}
    error = ref("V2Error" if path.startswith("/v2") else "Error")
    for status, response in responses.items():
        response = dict(response)
        about = dict(response.get("headers", {})) | headers("X-Request-ID")
        if int(status) >= 400:
            response.setdefault("content", {JSON: {"schema": error}})
        if status in ("409", "429", "503"):
            about |= headers("Retry-After")
        response["headers"] = about
        responses[status] = response


def _or(schema: str) -> dict[str, Any]:
    either = {"anyOf": [ref(schema), ref("V2Error" if schema.startswith("V2") else "Error")]}
    return {"description": "It is not so.", "content": {JSON: {"schema": either}}}
