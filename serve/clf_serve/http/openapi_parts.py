"""The pieces that the OpenAPI document is put together from."""

from __future__ import annotations

from typing import Any

from clf_serve.http.schemas import Schema, ref

JSON = "application/json"
BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}
IMAGE_BODIES = {"image/*": BINARY, "application/octet-stream": BINARY}
REFUSALS = {
    400: "The request is malformed, or an input is text.",
    401: "A valid API key is needed.",
    403: "Not here: the server has no API keys, or its galleries cannot be changed.",
    404: "There is no such model, image or gallery.",
    408: "The body did not arrive in time.",
    409: "In conflict with how things are; nothing was changed. With Retry-After: another process is writing.",
    413: "Too many bytes or images.",
    415: "The Content-Type or Content-Encoding is not understood.",
    422: "An image cannot be decoded, has too many pixels, or has no finite embedding.",
    429: "There is no room; Retry-After says how long the present work will take.",
    500: "An error in the server.",
    503: "Warming up, shutting down, or no answer within the deadline.",
    504: "An image's URL did not answer in time.",
    507: "The disk is full; nothing was changed.",
}
_POSTED = (400, 404, 408, 413, 415, 422, 429)


def post(summary: str, text: str, ok: dict[str, Any], *refusals: int, **more: Any) -> dict[str, Any]:
    return get(summary, text, ok, *_POSTED, *refusals, **more)


def get(summary: str, text: str, ok: dict[str, Any], *refusals: int | dict[str, Any], **more: Any) -> dict[str, Any]:
    """Args: refusals: statuses; or a response for 503 that is no error but another answer."""
    responses: dict[str, Any] = {"200": ok}
    for refusal in (*refusals, 500, 503):
        status = 503 if isinstance(refusal, dict) else refusal
        responses.setdefault(str(status), refusal if isinstance(refusal, dict) else {"description": REFUSALS[refusal]})
    return {"summary": summary, "description": text, "responses": responses, **more}


def body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def answer(schema: str, *names: str) -> dict[str, Any]:
    """Args: names: of its headers."""
    return {"description": "So it is.", "content": {JSON: {"schema": ref(schema)}}, "headers": headers(*names)}


def headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def in_path(name: str, values: list[str]) -> dict[str, Any]:
    schema: Schema = {"enum": values} if values else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}
