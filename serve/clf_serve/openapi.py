"""The OpenAPI document: every route, what it takes, gives and refuses. Written by hand, and held to the truth by tests.

Bodies are read by our own hands (raw bytes, forms of any field names, five dialects of JSON), which FastAPI cannot see;
so it is told. OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from typing import Any

from clf import __version__
from clf_serve.kserve import LENGTH, VERSION
from clf_serve.schemas import Schema, parameter, ref, schemas
from clf_serve.service import Service

_JSON = "application/json"
_BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}
_FILE = {"contentType": "image/*"}
_REFUSALS = {
    400: "The request is malformed, or an input is text.",
    401: "A valid API key is needed.",
    403: "The server has no API keys.",
    404: "There is no such model, image or gallery.",
    408: "The body did not arrive in time.",
    409: "A model could not be opened or does not work; it goes on as it was.",
    413: "Too many bytes or images.",
    415: "The Content-Type or Content-Encoding is not understood.",
    422: "An image cannot be decoded, has too many pixels, or has no finite embedding.",
    429: "There is no room; Retry-After says how long the present work will take.",
    500: "An error in the server.",
    503: "Warming up, shutting down, or no answer within the deadline.",
    504: "An image's URL did not answer in time.",
}
_POSTED = (400, 404, 408, 413, 415, 422, 429)
_IMAGE_BODIES = {"image/*": _BINARY, "application/octet-stream": _BINARY}
OPEN = ("/health", "/v2/health")
"""Paths that need no key begin so."""


def document(service: Service, *, secured: bool) -> dict[str, Any]:
    """OpenAPI of the models that are served now.

    Args:
        secured: whether callers need an API key.
    """
    limits, models = service.limits, service.models
    dim = max(model.engine.dim for model in models.values())
    components = schemas(list(models), dim, limits.max_images, limits.max_k)
    paths = {**_embeddings(components), **_search(components), **_operation(components)}
    named = _in_path("model", list(models))
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
    body = _body(
        {
            _JSON: {"schema": ref("EmbeddingsRequest")},
            "multipart/form-data": {"schema": ref("EmbeddingsForm"), "encoding": {"images": _FILE}},
            **_IMAGE_BODIES,
        }
    )
    options = [parameter(name, components) for name in ("model", "encoding_format", "dimensions")]
    raw = _headers("X-Shape", "X-Dtype", "Server-Timing")
    kinds = {_JSON: {"schema": ref("Embeddings")}, "application/x-npy": _BINARY, "application/octet-stream": _BINARY}
    ok = {"description": "Embeddings of unit length, in order.", "headers": raw, "content": kinds}
    text = (
        "Vectors of images, in the shape of OpenAI's API. Accept chooses the reply: JSON, a .npy file, or the bare "
        "numbers. Options may stand in the body or in the URL; the body's win."
    )
    paths = {}
    for path, summary in (("/v1/embeddings", "Embeddings of images"), ("/embeddings", "The same without a version")):
        paths[path] = {"post": _post(summary, text, ok, 504, requestBody=body, parameters=options)}
    nomic = _answer("NomicEmbeddings", "Server-Timing")
    words = "The same in the shape of Nomic's API: files as images, or addresses as urls where the server allows them."
    paths["/v1/embedding/image"] = {
        "post": _post("Embeddings, as Nomic has them", words, nomic, 504, requestBody=body, parameters=options)
    }
    return paths


def _search(components: dict[str, Schema]) -> dict[str, Any]:
    form = {"schema": ref("SearchForm"), "encoding": {"image": _FILE}}
    body = _body({_JSON: {"schema": ref("SearchRequest")}, "multipart/form-data": form, **_IMAGE_BODIES})
    model = parameter("model", components)
    options = [parameter("k", components), model]
    text = "The images of the gallery nearest to an image, a vector or one of its own images, best first."
    picture = {
        "description": "A small JPEG.",
        "headers": _headers("ETag", "Cache-Control"),
        "content": {"image/jpeg": _BINARY},
    }
    unchanged = {"description": "As If-None-Match has it.", "headers": _headers("ETag", "Cache-Control")}
    identity = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    about = [
        {"name": "image_id", "in": "path", "required": True, "schema": identity},
        {"name": "v", "in": "query", "schema": {"type": "string"}, "description": "Of its digest; may be kept then."},
        {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}},
        model,
    ]
    thumbnail = _get("Thumbnail", "A small JPEG of one image of the gallery.", picture, 400, 404, parameters=about)
    thumbnail["responses"]["304"] = unchanged
    found = _answer("Hits", "Server-Timing")
    return {
        "/search": {"post": _post("Nearest images", text, found, 504, requestBody=body, parameters=options)},
        "/thumbnails/{image_id}": {"get": thumbnail},
    }


def _models(named: Schema) -> dict[str, Any]:
    text = "The models that are served, and what is known of them."
    one = _get("Model", "One model, and what is known of it.", _answer("Model"), 404, parameters=[named])
    return {
        "/v1/models": {"get": _get("Models", text, _answer("Models"))},
        "/models": {"get": _get("The same without a version", text, _answer("Models"))},
        "/v1/models/{model}": {"get": one},
    }


def _operation(components: dict[str, Schema]) -> dict[str, Any]:
    live = _get("Alive", "200 while the process is worth keeping.", _answer("Status"), _or("Status"))
    text = "200 when images are embedded: one was in the last 30 s, or a test image just now."
    ready = _get("Ready", text, _answer("Status"), _or("Status"))
    numbers = {
        "description": "The text format of Prometheus.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    reload = _get(
        "Reload",
        "Opens a model (by default every one) and its gallery again, and puts it in the place of the old one.",
        _answer("Reloaded"),
        403,
        404,
        409,
        parameters=[parameter("model", components)],
    )
    return {
        "/health": {"get": _get("Alive", "As /health/live.", _answer("Status"), _or("Status"))},
        "/health/live": {"get": live},
        "/health/ready": {"get": ready},
        "/metrics": {"get": _get("Metrics", "Counters and times for Prometheus.", numbers)},
        "/admin/reload": {"post": reload},
    }


def _kserve(named: Schema) -> dict[str, Any]:
    header = {
        "name": LENGTH,
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of JSON before the binary data; 0: the whole body is one image file.",
    }
    body = _body({_JSON: {"schema": ref("V2Request")}, "application/octet-stream": _BINARY})
    ok = {
        "description": "Embeddings of unit length, in order; in binary where it was asked for.",
        "headers": _headers("Server-Timing", LENGTH),
        "content": {_JSON: {"schema": ref("V2Reply")}, "application/octet-stream": _BINARY},
    }
    ready = _or("V2Ready")
    paths: dict[str, Any] = {
        "/v2": {"get": _get("Server", "The server's name and extensions.", _answer("V2Server"))},
        "/v2/health/live": {"get": _get("Alive", "As /health/live.", _answer("V2Live"), _or("V2Live"))},
        "/v2/health/ready": {"get": _get("Ready", "As /health/ready.", _answer("V2Ready"), ready)},
        "/v2/models/stats": {"get": _get("Statistics", "Of all models.", _answer("V2Stats"))},
        "/v2/repository/index": {"post": _get("Models", "As Triton lists them.", _answer("V2Index"))},
    }
    for base, places in (
        ("/v2/models/{model}", [named]),
        ("/v2/models/{model}/versions/{version}", [named, _in_path("version", [VERSION])]),
    ):
        of_model: list[tuple[str, str, str, str, tuple[int | dict[str, Any], ...]]] = [
            ("", "Model", "Its inputs and outputs.", "V2Model", (404,)),
            ("/ready", "Model ready", "200 when it embeds images.", "V2Ready", (404, ready)),
            ("/config", "Configuration", "As Triton's.", "V2Config", (404,)),
            ("/stats", "Statistics", "Of calls of infer, as Triton's; times in ns.", "V2Stats", (404,)),
        ]
        for path, summary, text, schema, refusals in of_model:
            paths[base + path] = {"get": _get(summary, text, _answer(schema), *refusals, parameters=places)}
        text = "Embeddings by the Open Inference Protocol, with the binary tensor data extension."
        infer = _post("Infer", text, ok, requestBody=body, parameters=[*places, header])
        paths[f"{base}/infer"] = {"post": infer}
    return paths


def _post(summary: str, text: str, ok: dict[str, Any], *refusals: int, **more: Any) -> dict[str, Any]:
    return _get(summary, text, ok, *_POSTED, *refusals, **more)


def _get(summary: str, text: str, ok: dict[str, Any], *refusals: int | dict[str, Any], **more: Any) -> dict[str, Any]:
    """Args: refusals: statuses; or a response for 503 that is no error but another answer."""
    responses: dict[str, Any] = {"200": ok}
    for refusal in (*refusals, 500, 503):
        status = 503 if isinstance(refusal, dict) else refusal
        responses.setdefault(str(status), refusal if isinstance(refusal, dict) else {"description": _REFUSALS[refusal]})
    return {"summary": summary, "description": text, "responses": responses, **more}


def _finish(path: str, operation: dict[str, Any], secured: bool) -> None:
    """What all operations share: an id, errors, the request's id, and keys."""
    operation["responses"] = responses = dict(operation["responses"])
    if secured:
        if path.startswith(OPEN):
            operation["security"] = []
        else:
            operation["security"] = [{"bearer": []}, {"header": []}, {"basic": []}]
            responses["401"] = {"description": _REFUSALS[401], "headers": _headers("WWW-Authenticate")}
    error = ref("V2Error" if path.startswith("/v2") else "Error")
    for status, response in responses.items():
        response = dict(response)
        headers = dict(response.get("headers", {})) | _headers("X-Request-ID")
        if int(status) >= 400:
            response.setdefault("content", {_JSON: {"schema": error}})
        if status in ("429", "503"):
            headers |= _headers("Retry-After")
        response["headers"] = headers
        responses[status] = response


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def _answer(schema: str, *headers: str) -> dict[str, Any]:
    return {"description": "So it is.", "content": {_JSON: {"schema": ref(schema)}}, "headers": _headers(*headers)}


def _or(schema: str) -> dict[str, Any]:
    either = {"anyOf": [ref(schema), ref("V2Error" if schema.startswith("V2") else "Error")]}
    return {"description": "It is not so.", "content": {_JSON: {"schema": either}}}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _in_path(name: str, values: list[str]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"enum": values}}
