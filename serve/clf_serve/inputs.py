"""From the bytes of a request to images, vectors and options; whatever is wrong with them becomes a Problem."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from clf_serve.engine import Vectors
from clf_serve.problems import Problem, overloaded
from clf_serve.service import ServeLimits

Encoding = Literal["float", "base64"]
_MORE_THAN_ANY = 100_000  # parts of a form; the limit of images is checked after it is read


@dataclass(frozen=True)
class EmbeddingsRequest:
    blobs: list[bytes]
    encoding: Encoding = "float"
    model: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class SearchRequest:
    """One of the three is given."""

    k: int = 10
    blob: bytes | None = None
    vector: Vectors | None = None
    id: int | None = None


async def read_body(request: Request, limits: ServeLimits, take: Callable[[int], bool]) -> bytes:
    """The body, refused as soon as it is known to be too large.

    Raises:
        Problem: 413 too large; 429 too much in memory already.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_bytes:
        raise _too_large(limits)
    body = bytearray()
    async for piece in request.stream():
        if len(body) + len(piece) > limits.max_bytes:
            raise _too_large(limits)
        if not take(len(piece)):
            raise overloaded(1)
        body += piece
    return bytes(body)


async def parse_embeddings(headers: Headers, body: bytes, limits: ServeLimits) -> EmbeddingsRequest:
    kind = _kind(headers)
    if kind == "image":
        return EmbeddingsRequest([body])
    if kind == "form":
        blobs, fields = await _read_form(headers, body, limits)
        return EmbeddingsRequest(blobs, _encoding(fields.get("encoding_format")), fields.get("model"))
    tree = _read_json(body)
    model, dimensions = tree.get("model"), tree.get("dimensions")
    if model is not None and not isinstance(model, str):
        raise Problem(400, "invalid_model", "model must be a string", param="model")
    if dimensions is not None and type(dimensions) is not int:
        raise Problem(400, "invalid_dimensions", "dimensions must be an integer", param="dimensions")
    if "input" not in tree:
        raise Problem(400, "no_images", "the field 'input' is missing: an image in base64, or a list", param="input")
    return EmbeddingsRequest(_images(tree["input"], limits), _encoding(tree.get("encoding_format")), model, dimensions)


async def parse_search(request: Request, body: bytes, limits: ServeLimits, dim: int) -> SearchRequest:
    kind = _kind(request.headers)
    asked_k: Any = request.query_params.get("k")
    if kind == "image":
        return SearchRequest(_k(asked_k, limits), body)
    if kind == "form":
        blobs, fields = await _read_form(request.headers, body, limits)
        if len(blobs) != 1:
            raise Problem(400, "one_image", f"a search takes one image, not {len(blobs)}", param="image")
        return SearchRequest(_k(fields.get("k", asked_k), limits), blobs[0])
    tree = _read_json(body)
    given = [name for name in ("image", "vector", "id") if tree.get(name) is not None]
    if len(given) != 1:
        raise Problem(400, "one_query", f"give one of image, vector and id; {len(given)} were given")
    k = _k(tree.get("k", asked_k), limits)
    if given == ["image"]:
        return SearchRequest(k, _image(tree["image"], "image"))
    if given == ["vector"]:
        return SearchRequest(k, vector=_vector(tree["vector"], dim))
    if type(tree["id"]) is not int or not -(2**63) <= tree["id"] < 2**63:
        raise Problem(400, "invalid_id", "id must be an integer", param="id")
    return SearchRequest(k, id=tree["id"])


def _kind(headers: Headers) -> Literal["json", "form", "image"]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return "json"
    if kind == "multipart/form-data":
        return "form"
    if kind.startswith("image/") or kind == "application/octet-stream":
        return "image"
    raise Problem(
        415,
        "unsupported_content_type",
        f"Content-Type is {kind or 'missing'}; send application/json, multipart/form-data or image/*",
    )


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "invalid_json", f"the body is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Problem(400, "invalid_json", "the body must be a JSON object")
    return tree


async def _read_form(headers: Headers, body: bytes, limits: ServeLimits) -> tuple[list[bytes], dict[str, str]]:
    """All uploaded files, whatever their field names, and the other fields."""

    class InMemory(MultiPartParser):
        spool_max_size = limits.max_bytes  # the body is in memory already; nothing goes to disk

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemory(headers, stream(), max_files=_MORE_THAN_ANY, max_fields=1000).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Problem(400, "invalid_form", f"the form cannot be read: {error}") from error
    blobs, fields = [], {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            blobs.append(await value.read())
            await value.close()
        else:
            fields[name] = value
    return blobs, fields


def _images(value: Any, limits: ServeLimits) -> list[bytes]:
    if not isinstance(value, list):
        return [_image(value, "input")]
    if value and all(type(item) in (int, list) for item in value):
        text = "input holds token numbers; this model embeds images (LangChain: check_embedding_ctx_length=False)"
        raise Problem(400, "text_input", text, param="input")
    if len(value) > limits.max_images:
        text = f"{len(value)} images are more than the {limits.max_images} a request may hold"
        raise Problem(413, "too_many_images", text, param="input")
    return [_image(item, f"input[{index}]") for index, item in enumerate(value)]


def _image(value: Any, param: str) -> bytes:
    """A data URI, plain base64, or {"image": either}."""
    if isinstance(value, dict) and set(value) == {"image"}:
        value = value["image"]
    if not isinstance(value, str):
        text = f'{param} must be an image in base64, a data URI, or {{"image": ...}}'
        raise Problem(400, "invalid_input", text, param=param)
    head = value[:64].lower()
    if head.startswith(("http:", "https:", "file:", "ftp:", "s3:")):
        text = f"{param} is a URL; this server fetches nothing, send the image itself in base64"
        raise Problem(400, "url_input", text, param=param)
    if head.startswith("data:"):
        header, _, value = value.partition(",")
        if not header.lower().endswith(";base64"):
            raise Problem(400, "invalid_data_uri", f"{param} must be data:image/...;base64,...", param=param)
    return _base64(value, param)


def _base64(text: str, param: str) -> bytes:
    text = text.replace("\n", "").replace("\r", "").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        words = f"{param} is neither base64 nor a data URI ({error}); this model embeds images, not text"
        raise Problem(400, "invalid_base64", words, param=param) from error


def _encoding(value: Any) -> Encoding:
    if value in (None, "float"):
        return "float"
    if value == "base64":
        return "base64"
    raise Problem(400, "invalid_encoding", "encoding_format must be 'float' or 'base64'", param="encoding_format")


def _k(value: Any, limits: ServeLimits) -> int:
    if value is None:
        return 10
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 1 <= value <= limits.max_k:
        raise Problem(400, "invalid_k", f"k must be an integer from 1 to {limits.max_k}", param="k")
    return value


def _vector(value: Any, dim: int) -> Vectors:
    """Any direction will do: it is brought to unit length, as scores are cosines."""
    wanted = f"vector must be a list of {dim} finite numbers, not all zero"
    if not isinstance(value, list) or len(value) != dim or not all(type(x) in (int, float) for x in value):
        raise Problem(400, "invalid_vector", wanted, param="vector")
    try:
        vector = np.array(value, np.float64)
    except OverflowError:  # an integer beyond any float
        vector = np.zeros(dim)
    scale = np.abs(vector).max()
    if not 0 < scale < np.inf:
        raise Problem(400, "invalid_vector", wanted, param="vector")
    vector = vector / scale  # so that no square over- or underflows
    unit: Vectors = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def _too_large(limits: ServeLimits) -> Problem:
    return Problem(413, "too_large", f"the request is larger than {limits.max_bytes / 2**20:g} MiB")
