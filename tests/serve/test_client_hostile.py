"""The client against servers that lie or stall, and against callers who hand it what they should not."""

from __future__ import annotations

import asyncio
import io
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serve_helpers import encoded

from clf.errors import ImageError
from clf_serve.client import connection
from clf_serve.client.client import (
    AsyncClient,
    Client,
    ClientError,
    RefusedError,
    UnexpectedReplyError,
    UnreachableError,
)
from clf_serve.client.exchange import Reply, read_retry_after, read_vectors
from clf_serve.client.uploads import encode

HEAD = b"HTTP/1.1 200 OK\r\n"
GZIP = b"\x1f\x8b\x08\x08" + bytes(6)  # RFC 1952: a file's name follows, up to a zero byte


def as_json(tree: Any) -> httpx.Response:
    return httpx.Response(200, content=json.dumps(tree).encode(), headers={"Content-Type": "application/json"})


def talking(answer: Callable[[httpx.Request], httpx.Response], **facts: Any) -> httpx.MockTransport:
    def handle(asked: httpx.Request) -> httpx.Response:
        if asked.method == "POST":
            return answer(asked)
        return as_json({"data": [{"id": "m", "dim": 2, "max_images": 8, "max_bytes": 10**6, **facts}]})

    return httpx.MockTransport(handle)


def one(*embedding: Any, index: Any = 0) -> httpx.Response:
    return as_json({"data": [{"index": index, "embedding": embedding}]})


@pytest.mark.parametrize(
    "rows",
    [
        [(0, [1.0]), (0, [2.0])],
        [(5, [1.0]), (9, [2.0])],
        [(0, [math.nan]), (1, [1.0])],
        [(math.inf, [1.0]), (1, [1.0])],
        [(0, [10**400]), (1, [1.0])],
        [(0, [1e300]), (1, [1.0])],
        [(0, []), (1, [])],
    ],
)
def test_vectors_that_cannot_be_are_refused(rows: list[tuple[Any, Any]]) -> None:
    body = json.dumps({"data": [{"index": index, "embedding": row} for index, row in rows]}).encode()
    with pytest.raises(UnexpectedReplyError, match="holds no embeddings"):
        read_vectors(Reply(200, httpx.Headers(), body), 2)

    about = {"Content-Type": "application/octet-stream", "X-Shape": "1,2", "X-Dtype": "<f4"}
    with pytest.raises(UnexpectedReplyError, match="not finite"):
        read_vectors(Reply(200, httpx.Headers(about), np.array([1, math.nan], "<f4").tobytes()), 1)


@pytest.mark.parametrize(
    "facts", [{"max_images": 0}, {"max_images": -1}, {"max_images": math.inf}, {"max_bytes": 0}, {"dim": -1}], ids=str
)
def test_limits_that_cannot_be_lose_no_image(facts: dict[str, Any]) -> None:
    with Client("http://x", transport=talking(lambda _: one(1.0, 0.0), **facts)) as client:
        for images in ([b"a"], []):
            with pytest.raises(UnexpectedReplyError, match="limits cannot be read"):
                client.embed(images)


def test_a_model_that_changes_in_between_is_told() -> None:
    transport = talking(lambda asked: one(*[1.0] * len(asked.content)))
    with Client("http://x", transport=transport, batch_size=1) as client:
        assert client.embed([b"aa", b"bb"]).shape == (2, 2)
        with pytest.raises(UnexpectedReplyError, match="not all of one length"):
            client.embed([b"aa", b"bbb"])


@pytest.mark.parametrize("number", ["1 Jan 99999999999999999999", "99999999999999999999 Jan 2031"])
def test_a_date_beyond_all_calendars_is_none(number: str) -> None:
    assert read_retry_after({"retry-after": f"Wed, {number} 00:00:00 GMT"}) is None


def test_an_answer_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MOST_REPLY", 100_000)
    transport = talking(lambda _: httpx.Response(200, content=bytes(100_001)))

    async def main() -> None:
        async with AsyncClient("http://x", transport=transport) as other:
            await other.embed(b"a")

    with pytest.raises(UnexpectedReplyError, match="longer than"):
        asyncio.run(main())
    with Client("http://x", transport=transport) as client, pytest.raises(UnexpectedReplyError, match="longer than"):
        client.embed(b"a")


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that answers one connection as it likes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "begun", [HEAD + b"X: ", HEAD + b"Content-Encoding: gzip\r\n\r\n" + GZIP], ids=["headers", "gzip"]
)
def test_headers_that_drip_end_with_the_attempt(begun: bytes) -> None:
    """Each read is quick, and httpx hands over nothing that could be timed."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(9999)
        connection.sendall(begun)
        end = time.monotonic() + 20
        while not stop.wait(0.02) and time.monotonic() < end:
            try:
                connection.sendall(b" ")
            except OSError:
                return

    with listening(drip) as port, Client(f"http://127.0.0.1:{port}", timeout=0.3, attempts=1) as client:
        start = time.monotonic()
        with pytest.raises(UnreachableError):
            client.models()
        assert time.monotonic() - start < 15
        stop.set()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_handshake_that_hangs_leaves_no_connection(kind: Any) -> None:
    said: list[bytes] = []

    def silent(connection: socket.socket) -> None:
        while piece := connection.recv(4096):  # until the client closes it
            said.append(piece)

    def blocking(port: int) -> None:
        client = Client(f"https://127.0.0.1:{port}", timeout=0.3, attempts=1)
        with pytest.raises(UnreachableError):
            client.models()

    async def awaited(port: int) -> None:
        client = AsyncClient(f"https://127.0.0.1:{port}", timeout=0.3, attempts=1)
        with pytest.raises(UnreachableError):
            await client.models()
        await asyncio.sleep(0.1)

    with listening(silent) as port:
        blocking(port) if kind is Client else asyncio.run(awaited(port))
    assert said


def test_nothing_is_sent_any_more_after_a_failure() -> None:
    """The images of one batch are refused one by one, which takes requests; a sibling's failure ends that."""
    failed, asked_after = threading.Event(), []

    def answer(asked: httpx.Request) -> httpx.Response:
        if asked.content == b"x":
            failed.set()
            return httpx.Response(500)
        failed.wait(20)
        time.sleep(0.2)
        asked_after.append(asked)
        return httpx.Response(413)

    transport = talking(answer)
    with (
        Client("http://x", transport=transport, batch_size=8, in_flight=2) as client,
        pytest.raises(RefusedError) as caught,
    ):
        client.embed([b"a"] * 8 + [b"x"])
    assert caught.value.status == 500 and len(asked_after) == 1


@pytest.mark.parametrize("key", ["secret\n", " secret", "s\u00e9cret", "a\r\nX: y"])
def test_a_key_that_is_no_header_is_not_repeated(key: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ClientError, match="the API key has") as caught:
            kind(api_key=key)
        assert key.strip() not in str(caught.value)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0])
def test_an_attempt_has_an_end(seconds: float) -> None:
    with pytest.raises(ClientError, match="timeout finite"):
        Client(timeout=seconds)


def test_numbers_and_images_that_are_none() -> None:
    with Client("http://x", transport=talking(lambda _: one(1.0))) as client:
        with pytest.raises(ClientError, match="must be numbers"):
            client.search(vector=[10**400])
        with pytest.raises(ImageError, match="the input is a NoneType"):
            client.embed(None)  # type: ignore[arg-type]


def test_of_an_open_file_no_more_is_read_than_may_be_sent() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 1001
            self.given += (n := min(size, 100))  # a pipe gives what it has
            return bytes(n)

    file = Endless()
    with pytest.raises(ImageError, match="more than"):
        encode(file, "x", 1000)  # type: ignore[arg-type]
    assert file.given == 1001


def test_one_picture_many_times_is_read_by_one_thread() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    blob = encoded(Image.fromarray(noise))
    with ThreadPoolExecutor(8) as pool:
        lazy = Image.open(io.BytesIO(blob))
        for found in pool.map(lambda _: encode(lazy, "x", 10**9), range(8)):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found))), noise)
