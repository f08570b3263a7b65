"""Every form of input over real connections, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import json
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import LIMITS, PHOTO, TEXT, embed, error, vectors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serve_helpers import DIM, encoded, picture
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message

from clf_serve.engine import Engine
from clf_serve.http.inputs import parse_embeddings, parse_search, read_body
from clf_serve.http.shapes import image_of
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem

URI = "data:image/png;base64," + TEXT


def body_of(pieces: list[bytes], limits: ServeLimits, taken: list[int], joins: list[int]) -> bytes:
    """What read_body makes of the pieces; notes what was taken of the budget, and what was joined aside."""

    async def messages() -> AsyncIterator[Message]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    async def aside(blocks: list[bytes]) -> bytes:
        joins.append(len(blocks))
        return b"".join(blocks)

    def take(n: int) -> bool:
        taken.append(n)
        return True

    request = Request({"type": "http", "headers": []}, messages().__anext__)
    return asyncio.run(read_body(request, limits, take, aside))


@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 1460, 2**16, 2**18 - 1, 2**18])), max_size=12))
def test_a_body_is_its_pieces_however_they_come(sizes: list[tuple[int, int]]) -> None:
    pieces = [bytes([value]) * size for value, size in sizes]
    taken: list[int] = []
    joins: list[int] = []
    body = body_of(pieces, ServeLimits(), taken, joins)
    assert body == b"".join(pieces) and sum(taken) == len(body)
    assert bool(joins) == (len(body) >= 2**18)


def test_a_body_in_small_pieces_is_joined_on_the_way() -> None:
    """Each piece takes some forty bytes of its own."""
    taken: list[int] = []
    joins: list[int] = []
    assert body_of([b"x"] * 10_000, ServeLimits(), taken, joins) == b"x" * 10_000
    assert joins == [3]


def test_a_body_that_grows_too_large_is_refused_before_it_has_come() -> None:
    taken: list[int] = []
    with pytest.raises(Problem) as refused:
        body_of([bytes(600)] * 3, ServeLimits(max_bytes=1000), taken, [])
    assert (refused.value.status, taken) == (413, [600])


IMAGE_URL = {"type": "image_url", "image_url": {"url": URI}}


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"input": TEXT}},
        {"json": {"input": TEXT.rstrip("=")}},
        {"json": {"input": base64.encodebytes(PHOTO).decode()}},
        {"json": {"input": "data:image/png;base64," + TEXT}},
        {"json": {"input": [TEXT], "model": "tiny", "encoding_format": "float", "dimensions": DIM, "user": "u"}},
        {"json": {"input": [{"image": TEXT}]}},
        {"json": {"input": {"image": "data:image/png;base64," + TEXT}}},
        {"json": {"input": URI, "modality": "image", "model": "default/not-specified", "dimensions": 0}},
        {"json": {"input": [{"type": "image_url", "image_url": {"url": URI, "detail": "low"}}]}},
        {"json": {"inputs": [{"content": [{"type": "image_base64", "image_base64": URI}]}]}},
        {"json": {"images": [TEXT]}},
        {"json": {"messages": [{"role": "user", "content": [IMAGE_URL, {"type": "text", "text": ""}]}]}},
        {"json": {"messages": [{"content": [{"type": "input_image", "image_url": URI}]}]}},
        {"content": gzip.compress(PHOTO), "headers": {"Content-Type": "image/png", "Content-Encoding": "gzip"}},
        {"content": PHOTO, "headers": {"Content-Type": "image/png"}},
        {"content": PHOTO, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"image": ("a.png", PHOTO, "image/png")}},
        {
            "files": [
                ("images", ("a.png", PHOTO)),
            ],
            "data": {"model": "tiny"},
        },
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_every_form_of_input_gives_the_same_vector(
    client: httpx.Client, engine: Engine, request_: dict[str, Any], path: str
) -> None:
    reply = client.post(path, **request_)

    np.testing.assert_array_equal(vectors(reply), engine.embed(engine.prepare(PHOTO)[None]))


def test_the_reply_has_the_shape_of_openai_s_api(client: httpx.Client) -> None:
    reply = client.post("/v1/embeddings", json={"input": [TEXT, TEXT]}).json()

    assert {key: reply[key] for key in ("object", "model")} == {"object": "list", "model": "tiny"}
    assert [(row["object"], row["index"]) for row in reply["data"]] == [("embedding", 0), ("embedding", 1)]
    assert reply["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_base64_replies_are_the_same_numbers(client: httpx.Client) -> None:
    reply = client.post("/v1/embeddings", json={"input": TEXT, "encoding_format": "base64"}).json()

    raw = np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(raw, vectors(embed(client, PHOTO))[0])


def test_many_files_come_back_in_order(client: httpx.Client, engine: Engine) -> None:
    blobs = [encoded(picture(seed), kind) for seed, kind in enumerate(["PNG", "JPEG", "WEBP", "GIF", "BMP"])]

    reply = client.post("/v1/embeddings", files=[("images", (f"{i}", blob)) for i, blob in enumerate(blobs)])

    np.testing.assert_array_equal(vectors(reply), engine.embed(np.stack([engine.prepare(blob) for blob in blobs])))


def test_a_turned_photo_is_embedded_upright(client: httpx.Client) -> None:
    upright = picture(5, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)

    np.testing.assert_array_equal(vectors(embed(client, turned)), vectors(embed(client, encoded(upright))))


def test_compressed_bodies_are_bounded(client: httpx.Client) -> None:
    def send(content: bytes, encoding: str) -> httpx.Response:
        headers = {"Content-Type": "image/png", "Content-Encoding": encoding}
        return client.post("/v1/embeddings", content=content, headers=headers)

    assert len(vectors(send(zlib.compress(PHOTO), "deflate"))) == 1
    error(send(gzip.compress(bytes(10**8)), "gzip"), 413, "too_large")
    error(send(gzip.compress(PHOTO)[:-9], "gzip"), 400, "invalid_content_encoding")
    error(send(PHOTO, "deflate"), 400, "invalid_content_encoding")
    error(send(PHOTO, "br"), 415, "unsupported_content_encoding")


def bomb() -> bytes:
    return encoded(Image.new("1", (2000, 1000)))


JSON_REFUSALS: list[tuple[Any, int, str, str | None]] = [
    ({}, 400, "no_images", "input"),
    ({"input": []}, 400, "no_images", "input"),
    ({"input": None}, 400, "no_images", "input"),
    ({"input": 7}, 400, "invalid_input", "input"),
    ({"input": {"text": "x"}}, 400, "text_input", "input"),
    ({"input": [{"image": TEXT}, {"text": "x"}]}, 400, "text_input", "input[1]"),
    ({"input": {"image": TEXT, "text": "x"}}, 400, "text_input", "input"),
    ({"input": {"image": TEXT, "url": TEXT}}, 400, "invalid_input", "input"),
    ({"input": {"image": {"url": {"url": TEXT}}}}, 400, "invalid_input", "input"),
    ({"input": [{"content": [{"image": TEXT}, {"image": TEXT}]}]}, 400, "invalid_input", "input[0]"),
    ({"input": TEXT, "images": TEXT}, 400, "invalid_input", "images"),
    ({"input": ["test"], "modality": "text"}, 400, "text_input", "input"),
    ({"input": TEXT, "modality": "smell"}, 400, "invalid_modality", "modality"),
    ({"input": "test"}, 400, "text_input", "input"),
    ({"messages": "x"}, 400, "invalid_input", "messages"),
    ({"messages": ["x"]}, 400, "invalid_input", "messages[0]"),
    ({"messages": [{"role": "user", "content": "a cat"}]}, 400, "text_input", "messages[0].content"),
    ({"messages": [{"content": [{"image": TEXT}] * 6}]}, 413, "too_many_images", "messages"),
    ({"input": [1, 2, 3]}, 400, "text_input", "input"),
    ({"input": [[1, 2], [3]]}, 400, "text_input", "input"),
    ({"input": "a photo of a cat"}, 400, "invalid_base64", "input"),
    ({"input": [TEXT, "ä" * 9]}, 400, "invalid_base64", "input[1]"),
    ({"input": "https://example.org/cat.jpg"}, 400, "url_input", "input"),
    ({"input": [TEXT, "FILE:///etc/passwd"]}, 400, "url_input", "input[1]"),
    ({"input": "data:image/png,%89PNG"}, 400, "invalid_data_uri", "input"),
    ({"input": TEXT, "encoding_format": "int8"}, 400, "invalid_encoding", "encoding_format"),
    ({"input": TEXT, "model": "gpt"}, 404, "model_not_found", "model"),
    ({"input": TEXT, "model": 3}, 400, "invalid_model", "model"),
    ({"input": TEXT, "dimensions": DIM + 1}, 400, "invalid_dimensions", "dimensions"),
    ({"input": TEXT, "dimensions": True}, 400, "invalid_dimensions", "dimensions"),
    ({"input": [TEXT] * 6}, 413, "too_many_images", "input"),
    ({"input": ""}, 400, "text_input", "input"),
    ({"input": {"image": ""}}, 422, "invalid_image", "input[0]"),
    ({"input": base64.b64encode(b"plain text " * 4).decode()}, 422, "invalid_image", "input[0]"),
    ({"input": [TEXT, base64.b64encode(PHOTO[:70]).decode(), TEXT]}, 422, "invalid_image", "input[1]"),
    ({"input": base64.b64encode(bomb()).decode()}, 422, "invalid_image", "input[0]"),
    ([], 400, "invalid_json", None),
    ("x", 400, "invalid_json", None),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), JSON_REFUSALS)
def test_a_bad_embedding_request_is_refused_with_the_reason(
    client: httpx.Client, body: Any, status: int, code: str, param: str | None
) -> None:
    found = error(client.post("/v1/embeddings", json=body), status, code)

    assert found["param"] == param
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b'{"input": [' + b"{}," * 50_000 + b"{}]}", "application/json", 400, "invalid_input"),
        (b'{"input": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (b"", "image/png", 422, "invalid_image"),
        (PHOTO, "text/plain", 415, "unsupported_content_type"),
        (PHOTO, "application/x-www-form-urlencoded", 415, "unsupported_content_type"),
        (PHOTO, "", 415, "unsupported_content_type"),
        (b"--x--", "multipart/form-data", 400, "invalid_form"),
        (b"garbage", "multipart/form-data; boundary=x", 400, "invalid_form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "no_images"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    client: httpx.Client, content: bytes, kind: str, status: int, code: str
) -> None:
    error(client.post("/v1/embeddings", content=content, headers={"Content-Type": kind}), status, code)


@pytest.mark.parametrize("parse", [parse_embeddings, parse_search])
@pytest.mark.parametrize("tiny", [b"{},", b"[],", b"7,", b'"",'])
def test_millions_of_tiny_values_are_refused_unread(parse: Callable[..., Any], tiny: bytes) -> None:
    body = b'{"a": [' + tiny * 2**18 + b"7]}"
    with pytest.raises(Problem) as caught:
        parse(Headers({"content-type": "application/json"}), {}, body, ServeLimits())
    assert (caught.value.status, caught.value.code) == (413, "too_many_values")


def test_where_more_images_are_allowed_they_may_have_more_values() -> None:
    body = json.dumps({"input": [{"image": {"url": "AAAA"}}] * 90_000}).encode()
    asked = parse_embeddings(Headers({"content-type": "application/json"}), {}, body, ServeLimits(max_images=90_000))
    assert len(asked.sources) == 90_000


@pytest.mark.parametrize("size", [0, 1, 2, 3, 2**18 * 3 // 4, 2**18 * 3 // 4 + 1, 2**18 + 5])
@pytest.mark.parametrize("padded", [True, False])
def test_base64_of_any_length_comes_back(size: int, padded: bool) -> None:
    blob = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    text = base64.b64encode(blob).decode()
    assert image_of({"image": text if padded else text.rstrip("=")}, "input", urls=False) == blob


def test_a_large_body_is_refused_before_and_while_it_comes(client: httpx.Client) -> None:
    large = bytes(LIMITS.max_bytes + 1)
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=20)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()  # and not one byte of it
    reply = connection.getresponse()
    assert (reply.status, json.loads(reply.read())["error"]["code"]) == (413, "too_large")
    connection.close()

    pieces = (large[i : i + 50_000] for i in range(0, len(large), 50_000))  # no Content-Length
    error(client.post("/v1/embeddings", content=pieces, headers={"Content-Type": "image/png"}), 413, "too_large")
