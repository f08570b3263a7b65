"""When a client tries again, how long it waits, and when it gives up; with clocks and servers made for it."""

from __future__ import annotations

import asyncio
import io
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serve_helpers import encoded, picture

from clf.errors import ClfError
from clf_serve.client import exchange
from clf_serve.client.client import (
    AsyncClient,
    BusyServerError,
    Client,
    ClientError,
    RefusedError,
    RefusedImageError,
    UnexpectedReplyError,
    UnreachableError,
    WrongKeyError,
)
from clf_serve.client.exchange import Patience, Reply, Send, Wait, read_retry_after, request

Answer = httpx.Response | Exception


class Clock:
    """Time that passes only in pauses; it notes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        monkeypatch.setattr(exchange.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def converse(
    answers: Iterator[Answer], clock: Clock, *, attempts: int = 6, timeout: float = 60, deadline: float = 180
) -> Reply:
    """Drives one request by hand; whatever it sends gets the next answer."""
    steps = request(Send("POST", "/x"), Patience(attempts, timeout, deadline))
    step = next(steps)
    try:
        while True:
            if isinstance(step, Wait):
                clock.pauses.append(step.seconds)
                clock.now += step.seconds
                step = steps.send(None)
                continue
            assert isinstance(step, Send) and step.timeout <= timeout
            answer = next(answers)
            if isinstance(answer, Exception):
                step = steps.throw(answer)
            else:
                step = steps.send(Reply(answer.status_code, answer.headers, answer.content))
    except StopIteration as end:
        reply: Reply = end.value
        return reply


def busy(status: int = 429, **headers: str) -> httpx.Response:
    error = {"message": "the server is busy", "code": "overloaded", "type": "rate_limit_error", "param": None}
    return httpx.Response(status, json={"error": error}, headers={k.replace("_", "-"): v for k, v in headers.items()})


OK = httpx.Response(200, json={})


@pytest.mark.parametrize(
    "trouble",
    [
        *map(busy, (429, 502, 503, 504)),
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("disconnected"),
        httpx.WriteError("broken pipe"),
    ],
    ids=str,
)
def test_what_passes_is_tried_again(trouble: Answer, clock: Clock) -> None:
    assert converse(iter([trouble, trouble, OK]), clock).status == 200
    assert len(clock.pauses) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 500, 501, 505])
def test_what_will_not_change_is_not_tried_again(status: int, clock: Clock) -> None:
    with pytest.raises(RefusedError) as caught:
        converse(iter([busy(status, Retry_After="1")]), clock)
    assert caught.value.status == status and clock.pauses == []
    assert isinstance(caught.value, WrongKeyError) is (status in (401, 403))


def test_a_certificate_that_is_wrong_stays_wrong(clock: Clock) -> None:
    trouble = httpx.ConnectError("certificate verify failed")
    trouble.__cause__ = ssl.SSLCertVerificationError("self-signed")

    for error in (trouble, httpx.UnsupportedProtocol("x"), httpx.DecodingError("not gzip")):
        with pytest.raises(UnreachableError):
            converse(iter([error]), clock)
    assert clock.pauses == []


def test_redirects_are_not_followed_with_the_key(clock: Clock) -> None:
    with pytest.raises(UnexpectedReplyError, match=r"https://other\.example"):
        converse(iter([httpx.Response(307, headers={"Location": "https://other.example"})]), clock)


def test_pauses_grow_and_are_not_all_the_same(clock: Clock) -> None:
    first: set[float] = set()
    for _ in range(50):
        clock.pauses.clear()
        with pytest.raises(BusyServerError):
            converse((busy() for _ in count()), clock, attempts=9, deadline=1e6)
        first.add(clock.pauses[0])
        for pause, longest in zip(clock.pauses, [0.5, 1, 2, 4, 8, 16, 20, 20], strict=True):
            assert longest / 2 <= pause <= longest
    assert len(first) > 40


@given(
    seconds=st.integers(0, 10**9 - 1),
    attempts=st.integers(1, 8),
    deadline=st.floats(0.1, 300),
    refusals=st.integers(0, 10),
)
def test_retry_after_is_obeyed_or_given_up(seconds: int, attempts: int, deadline: float, refusals: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        answers = [busy(Retry_After=str(seconds))] * refusals + [OK]
        sent = iter(answers)
        try:
            reply = converse(sent, clock, attempts=attempts, deadline=deadline)
        except BusyServerError as error:
            assert error.retry_after == seconds
        else:
            assert reply.status == 200 and refusals < attempts
        used = len(answers) - len(list(sent))
        assert used <= attempts and len(clock.pauses) == used - 1
        assert all(pause >= seconds for pause in clock.pauses)
        assert sum(clock.pauses) <= deadline


def test_retry_after_may_be_a_date_of_the_server_s_own_clock() -> None:
    then = datetime(2031, 5, 6, 7, 8, 30, tzinfo=UTC)
    date = format_datetime(then, usegmt=True)
    asked = format_datetime(then - timedelta(seconds=12), usegmt=True)

    assert read_retry_after({"retry-after": date, "date": asked}) == 12
    assert read_retry_after({"retry-after": asked, "date": date}) == 0  # long past
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = read_retry_after({"retry-after": soon})
    assert found is not None and 20 < found <= 30
    assert read_retry_after({"retry-after": " 7 "}) == 7
    for nonsense in ("", "-1", "1.5", "soon", "٣", "9" * 30, "Wed, 99 Foo 2031"):
        assert read_retry_after({"retry-after": nonsense}) is None


@given(st.binary(max_size=60), st.integers(400, 599))
def test_any_refusal_has_a_reason(body: bytes, status: int) -> None:
    error = exchange.refusal(Reply(status, httpx.Headers(), body), None)

    assert isinstance(error, RefusedError) and error.status == status and str(error)


def test_a_refusal_carries_the_server_s_words() -> None:
    words = {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    reply = httpx.Response(404, json={"error": words}, headers={"X-Request-ID": "abc"})
    error = exchange.refusal(Reply(404, reply.headers, reply.content), None)

    assert isinstance(error, RefusedError) and isinstance(error, ClfError)
    assert (error.message, error.status, error.code, error.param) == ("no such model", 404, "model_not_found", "model")
    assert (error.request_id, error.index, error.retry_after) == ("abc", None, None)


# both clients, over httpx's own in-memory transport


def both(handle: Callable[[httpx.Request], httpx.Response], **options: Any) -> list[Callable[[Any], Any]]:
    transport = httpx.MockTransport(handle)

    def blocking(images: Any) -> Any:
        with Client("http://x", transport=transport, **options) as client:
            return client.embed(images)

    def awaited(images: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient("http://x", transport=transport, **options) as client:
                return await client.embed(images)

        return asyncio.run(main())

    return [blocking, awaited]


def blobs_of(asked: httpx.Request) -> list[bytes]:
    if asked.headers["content-type"] == "application/octet-stream":
        return [asked.content]
    boundary = b"--" + asked.headers["content-type"].partition("boundary=")[2].encode()
    return [part.partition(b"\r\n\r\n")[2][:-2] for part in asked.content.split(boundary)[1:-1]]


def vectors_of(blobs: list[bytes]) -> httpx.Response:
    data = [{"index": i, "embedding": [float(blob), 1.0]} for i, blob in enumerate(blobs)]
    return httpx.Response(200, json={"data": data})


def models(**facts: int) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"id": "m", "dim": 2, "max_images": 8, "max_bytes": 10**6, **facts}]})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_FIRST_PAUSE", 0.002)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_flaky_server_still_gives_everything_in_order(kind: int, quick: None) -> None:
    lock, seen = threading.Lock(), Counter[bytes]()
    inside = most = 0

    def handle(asked: httpx.Request) -> httpx.Response:
        nonlocal inside, most
        if asked.method == "GET":
            return models()
        blobs = blobs_of(asked)
        with lock:
            inside += 1
            most = max(most, inside)
            seen[blobs[0]] += 1
            turn = seen[blobs[0]]
        time.sleep(0.002)
        with lock:
            inside -= 1
        if turn == 1:
            return busy(503)
        if turn == 2:
            raise httpx.ReadError("broken", request=asked)
        return vectors_of(blobs)

    vectors = both(handle, in_flight=3)[kind]([str(i).encode() for i in range(100)])
    np.testing.assert_array_equal(vectors[:, 0], np.arange(100))
    assert most <= 3


@pytest.mark.parametrize("kind", [0, 1])
def test_a_proxy_that_takes_less_gets_less(kind: int) -> None:
    def handle(asked: httpx.Request) -> httpx.Response:
        if asked.method == "GET":
            return models()
        blobs = blobs_of(asked)
        return vectors_of(blobs) if len(blobs) <= 2 else httpx.Response(413, text="<html>too large</html>")

    vectors = both(handle)[kind]([str(i).encode() for i in range(20)])
    np.testing.assert_array_equal(vectors[:, 0], np.arange(20))


@pytest.mark.parametrize("kind", [0, 1])
def test_the_server_s_limits_are_kept(kind: int) -> None:
    sizes: list[tuple[int, int]] = []

    def handle(asked: httpx.Request) -> httpx.Response:
        if asked.method == "GET":
            return models(max_images=6, max_bytes=4000)
        sizes.append((len(blobs_of(asked)), len(asked.content)))
        return vectors_of(blobs_of(asked))

    images = [b"%01000d" % i for i in range(5)] + [b"%d" % i for i in range(5, 30)]
    vectors = both(handle, batch_size=32)[kind](images)
    np.testing.assert_array_equal(vectors[:, 0], np.arange(30))
    assert all(n <= 6 and size <= 4000 for n, size in sizes)
    assert sum(n for n, _ in sizes) == 30 and max(n for n, _ in sizes) == 6


@pytest.mark.parametrize("kind", [0, 1])
def test_a_failure_ends_the_others_waits(kind: int) -> None:
    """One batch is told to come back in 100 s; another is refused for good. Nobody waits 100 s."""

    def handle(asked: httpx.Request) -> httpx.Response:
        if asked.method == "GET":
            return models()
        if b"9" in blobs_of(asked):
            return busy(429, Retry_After="100")
        return busy(500)

    start = time.monotonic()
    with pytest.raises(RefusedError) as caught:
        both(handle, batch_size=1, in_flight=4)[kind]([b"9", b"1", b"9"])
    assert caught.value.status == 500 and time.monotonic() - start < 30


@pytest.mark.parametrize("kind", [0, 1])
def test_an_answer_that_drips_is_cut_off(kind: int) -> None:
    """Each read is quick, so only the clock of the whole attempt can end it."""

    class Drip(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                time.sleep(0.02)
                yield b" "

        async def __aiter__(self) -> Any:
            while True:
                await asyncio.sleep(0.02)
                yield b" "

    def handle(asked: httpx.Request) -> httpx.Response:
        return models() if asked.method == "GET" else httpx.Response(200, stream=Drip())

    with pytest.raises(UnreachableError, match=r"no whole answer within 0\.2 s"):
        both(handle, timeout=0.2, attempts=1)[kind](b"1")


def test_a_refused_search_names_the_image(tmp_path: Path) -> None:
    words = {"message": "the image is truncated", "code": "invalid_image", "param": "input[0]", "type": "x"}

    def handle(asked: httpx.Request) -> httpx.Response:
        return models() if asked.method == "GET" else httpx.Response(422, json={"error": words})

    with Client("http://x", transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(RefusedImageError, match=r"^the image: the image is truncated$"):
            client.search(encoded(picture(1)))
        with pytest.raises(ClientError, match="one of image, vector and id"):
            client.search()


def test_files_are_read_as_they_go_out() -> None:
    """A long iterator is not drawn up into memory: no more batches are read than may be on their way."""
    drawn = 0
    most = 0
    sent = 0

    def images() -> Iterator[Any]:
        nonlocal drawn
        for i in range(200):
            drawn += 1
            yield io.BytesIO(str(i).encode())

    def handle(asked: httpx.Request) -> httpx.Response:
        nonlocal most, sent
        if asked.method == "GET":
            return models(max_images=5)
        most = max(most, drawn - sent)
        sent += len(blobs_of(asked))
        return vectors_of(blobs_of(asked))

    assert both(handle, in_flight=2)[1](images()).shape == (200, 2)
    assert most <= 5 * 4


def test_a_mode_that_no_file_holds_is_told() -> None:
    image = Image.new("RGB", (4, 4))
    image._mode = "XYZ"
    with (
        Client("http://x", transport=httpx.MockTransport(lambda _: models())) as client,
        pytest.raises(ClfError, match="mode XYZ; convert it to RGB"),
    ):
        client.embed(image)
