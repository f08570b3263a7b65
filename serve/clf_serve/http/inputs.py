"""From the bytes of a request to images, vectors and options; whatever is wrong with them becomes a Problem."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from starlette.datastructures import Headers
from starlette.requests import Request

from clf.errors import missing_extra
from clf_serve.engine import Vectors
from clf_serve.http.forms import Form, read_form
from clf_serve.http.shapes import Source, Url, image_of, images_of
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem, overloaded

try:
    import orjson
except ModuleNotFoundError:
    raise missing_extra("orjson", "serve", "clf serve") from None

Encoding = Literal["float", "base64"]
_OPTIONS = ("model", "encoding_format", "dimensions", "k")
MOST_VALUES = 2**18
"""Of JSON."""
_VALUES = 16  # of JSON that an image may need
_PIECE = 2**20  # bytes looked at in one go; other threads may run in between
_BLOCK = 2**18  # bytes of a body that are joined at a time
_MOST_PIECES = 2**12  # that a block may have come in; small ones take many times their bytes
MORE_PARTS = 100
"""Of a form than images."""
_NO_MODEL = "default/not-specified"  # what infinity's client sends when it is told none


@dataclass(frozen=True)
class Options:
    encoding: Encoding = "float"
    model: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class EmbeddingsRequest:
    sources: list[Source]
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class SearchRequest:
    """One of source, vector and id is given."""

    k: int = 10
    model: str | None = None
    source: Source | None = None
    vector: list[float] | None = None
    id: int | None = None


async def read_body(
    request: Request, limits: ServeLimits, take: Callable[[int], bool], aside: Callable[[list[bytes]], Awaitable[bytes]]
) -> bytes:
    """The body, refused as soon as it is known to be too large.

    Args:
        aside: joins the blocks of a large body; copying one of 64 MiB takes longer than others should be kept waiting.

    Raises:
        Problem: 413 too large; 429 too much in memory already.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_bytes:
        raise _too_large(limits)
    blocks: list[bytes] = []
    pieces: list[bytes] = []
    size = gathered = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limits.max_bytes:
            raise _too_large(limits)
        if not take(len(piece)):
            raise overloaded(1)
        pieces.append(piece)
        gathered += len(piece)
        if gathered >= _BLOCK or len(pieces) >= _MOST_PIECES:
            blocks.append(b"".join(pieces))
            pieces, gathered = [], 0
    blocks.append(b"".join(pieces))
    return blocks[0] if len(blocks) == 1 else await aside(blocks)


def expanded(body: bytes, encoding: str, limits: ServeLimits) -> bytes:
    """The body without its Content-Encoding: gzip, deflate (RFC 9110, section 8.4.1: in zlib's format) or none.

    Raises:
        Problem: 400 it is damaged; 413 it grows beyond the limit, of which no more than that is ever made; 415 another
            encoding.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    formats = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
    if name not in formats:
        text = f"Content-Encoding {name} is not understood; send gzip, deflate or none"
        raise Problem(415, "unsupported_content_encoding", text)
    unpacker = zlib.decompressobj(formats[name])
    try:
        plain = unpacker.decompress(body, limits.max_bytes + 1)
    except zlib.error as error:
        raise Problem(400, "invalid_content_encoding", f"the body is not valid {name}: {error}") from error
    if len(plain) > limits.max_bytes:
        raise _too_large(limits)
    if not unpacker.eof or unpacker.unused_data:
        raise Problem(400, "invalid_content_encoding", f"the body is not valid {name}: it ends early or late")
    return plain


def parse_embeddings(headers: Headers, query: Mapping[str, str], body: bytes, limits: ServeLimits) -> EmbeddingsRequest:
    """Options of the body win over those of the URL.

    Raises:
        Problem: 400, 413, 415.
    """
    kind = body_kind(headers)
    given = _of_query(query)
    options = _options(given)
    if kind == "image":
        return EmbeddingsRequest([body], options)
    if kind == "form":
        form = read_form(headers["content-type"], body, limits.max_images + MORE_PARTS)
        return EmbeddingsRequest(
            [*form.files, *urls_of(form, limits)], _options(_merged(given, _of_query(form.last())))
        )
    tree = read_json(body, max(MOST_VALUES, _VALUES * limits.max_images))
    given = _merged(given, tree)
    return EmbeddingsRequest(images_of(tree, limits.max_images, limits.allow_urls), _options(given))


def parse_search(headers: Headers, query: Mapping[str, str], body: bytes, limits: ServeLimits) -> SearchRequest:
    """Raises Problem 400, 415."""
    kind = body_kind(headers)
    given = _of_query(query)
    k, model = _k(given.get("k"), limits), _model(given.get("model"))
    if kind == "image":
        return SearchRequest(k, model, body)
    if kind == "form":
        form = read_form(headers["content-type"], body, limits.max_images + MORE_PARTS)
        sources: list[Source] = [*form.files, *urls_of(form, limits)]
        if len(sources) != 1:
            raise Problem(400, "one_image", f"a search takes one image, not {len(sources)}", param="image")
        given = _merged(given, _of_query(form.last()))
        return SearchRequest(_k(given.get("k"), limits), _model(given.get("model")), sources[0])
    tree = read_json(body)
    given = _merged(given, tree)
    asked = [name for name in ("image", "vector", "id") if tree.get(name) is not None]
    if len(asked) != 1:
        raise Problem(400, "one_query", f"give one of image, vector and id; {len(asked)} were given")
    k, model = _k(given.get("k"), limits), _model(given.get("model"))
    if asked == ["image"]:
        return SearchRequest(k, model, image_of(tree["image"], "image", limits.allow_urls))
    if asked == ["vector"]:
        return SearchRequest(k, model, vector=tree["vector"])
    id_ = whole(tree["id"])
    if id_ is None or not -(2**63) <= id_ < 2**63:
        raise Problem(400, "invalid_id", "id must be an integer", param="id")
    return SearchRequest(k, model, id=id_)


def unit_vector(value: Any, dim: int, param: str = "vector") -> Vectors:
    """(dim,) float32. Any direction will do: it is brought to unit length, as scores are cosines.

    Raises:
        Problem: 400 it is no list of so many finite numbers, or has no direction.
    """
    wanted = f"{param} must be a list of {dim} finite numbers, not all zero"
    if not isinstance(value, list) or len(value) != dim or not all(type(x) in (int, float) for x in value):
        raise Problem(400, "invalid_vector", wanted, param=param)
    vector = np.array(value, np.float64)
    scale = np.abs(vector).max()
    if not 0 < scale < np.inf:
        raise Problem(400, "invalid_vector", wanted, param=param)
    vector = vector / scale  # so that no square over- or underflows
    unit: Vectors = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def read_json(body: bytes | memoryview, most: int = MOST_VALUES) -> dict[str, Any]:
    """A JSON object (RFC 8259: UTF-8, no NaN).

    Args:
        most: as :func:`check_values` has it.

    Raises:
        Problem: 400; 413 too many values.
    """
    plain = bytes(body)
    check_values([plain], most)
    try:
        tree = orjson.loads(plain)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", f"the body is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Problem(400, "invalid_json", "the body must be a JSON object")
    return tree


def check_values(texts: Iterable[bytes], most: int) -> None:
    """Refuses JSON before it is read.

    Args:
        most: about as many values as the texts together may hold. Millions of tiny objects would take 25 times their
            bytes in memory, and hold up every other thread for many seconds, as the reader does not let go of the
            interpreter.

    Raises:
        Problem: 413 too many values.
    """
    values = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            values += sum(text.count(mark, start, start + _PIECE) for mark in (b",", b"[", b"{"))
            if values > most:
                words = f"the JSON holds more than {most} values; send images as files, in base64, or as binary data"
                raise Problem(413, "too_many_values", words)


BodyKind = Literal["json", "form", "image"]


def body_kind(headers: Headers, kinds: Sequence[BodyKind] = ("json", "form", "image")) -> BodyKind:
    """What a body is, of those that may be. Raises Problem 415."""
    name = headers.get("content-type", "").partition(";")[0].strip().lower()
    kind: BodyKind | None = None
    if name == "application/json":
        kind = "json"
    elif name == "multipart/form-data":
        kind = "form"
    elif name.startswith("image/") or name == "application/octet-stream":
        kind = "image"
    if kind in kinds and kind is not None:
        return kind
    wanted = {"json": "application/json", "form": "multipart/form-data", "image": "image/*"}
    text = f"Content-Type is {name or 'missing'}; send {' or '.join(wanted[each] for each in kinds)}"
    raise Problem(415, "unsupported_content_type", text)


def urls_of(form: Form, limits: ServeLimits) -> list[Url]:
    """Nomic's field ``urls``, one address each."""
    addresses = form.fields.get("urls", [])
    found = [image_of({"url": address}, f"urls[{i}]", limits.allow_urls) for i, address in enumerate(addresses)]
    return [source for source in found if isinstance(source, Url)]


def _options(given: Mapping[str, Any]) -> Options:
    return Options(
        _encoding(given.get("encoding_format")), _model(given.get("model")), _dimensions(given.get("dimensions"))
    )


def _of_query(query: Mapping[str, str]) -> dict[str, Any]:
    """Options in a URL or a form, where numbers are written in digits."""
    found: dict[str, Any] = {
        name: query[name] for name in ("encoding_format", "model", "dimensions", "k") if name in query
    }
    for name in ("dimensions", "k"):
        text = found.get(name)
        if text is not None and text.isascii() and text.isdigit() and len(text) < 10:
            found[name] = int(text)
    return found


def _merged(query: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The body's options win, but a URL that names one model and a body that names another are not one request."""
    given = query | {name: body[name] for name in _OPTIONS if body.get(name) is not None}
    if "model" in query and given["model"] != query["model"]:
        raise Problem(400, "invalid_model", "the URL and the body name different models", param="model")
    return given


def _encoding(value: Any) -> Encoding:
    if value in (None, "float"):
        return "float"
    if value == "base64":
        return "base64"
    raise Problem(400, "invalid_encoding", "encoding_format must be 'float' or 'base64'", param="encoding_format")


def _model(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None if value == _NO_MODEL else value
    raise Problem(400, "invalid_model", "model must be a string", param="model")


def _dimensions(value: Any) -> int | None:
    """0, which infinity's client sends when it is told none, means all."""
    if value is None:
        return None
    number = whole(value)
    if number is None or number < 0:
        raise Problem(400, "invalid_dimensions", "dimensions must be an integer of at least 1", param="dimensions")
    return number or None


def _k(value: Any, limits: ServeLimits) -> int:
    if value is None:
        return 10
    number = whole(value)
    if number is None or not 1 <= number <= limits.max_k:
        raise Problem(400, "invalid_k", f"k must be an integer from 1 to {limits.max_k}", param="k")
    return number


_EXACT = 2.0**53


def whole(value: Any) -> int | None:
    """In JSON 2 and 2.0 are the same number. Beyond 2^53 a float may stand for another one: orjson makes floats of all
    integers that 64 bits do not hold, and the one below the least would come out as the least."""
    if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value if type(value) is int else None


def _too_large(limits: ServeLimits) -> Problem:
    return Problem(413, "too_large", f"the request is larger than {limits.max_bytes / 2**20:g} MiB")
