"""A mixed load for a real server: good and bad images in every kind of request, and callers who misbehave.

What each request is follows from its number alone, so a run can be repeated. Shared by ``test_chaos.py`` and
``tests/benchmarks/chaos.py``.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from corpus import Sample, bad, good
from vitals import Vitals, vitals

PATIENCE = 300  # seconds; longer is taken for a hang
OPTIONS = ("--no-ui", "--max-mib", "3", "--timeout", str(PATIENCE))
"""Of the server that is loaded."""
_LINGER = struct.pack("ii", 1, 0)  # closing sends a reset instead of a farewell
Message = tuple[dict[str, str], bytes]


@dataclass
class Report:
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By kind of request and status; 0 for those that nobody waited for."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it should be."""
    spoilt: int = 0
    """Requests with a bad image."""
    watched: list[tuple[float, Vitals]] = field(default_factory=list)
    """Of the server, with the seconds since the start."""


class Load:
    """Callers of one server.

    Args:
        base: the server's URL.
        pid: of the server's process.
        bad_share: of requests, how many hold a bad image.
    """

    def __init__(self, base: str, pid: int, bad_share: float = 0.05, seed: int = 0) -> None:
        self._address = (urlsplit(base).hostname or "", urlsplit(base).port or 0)
        self._pid = pid
        self._bad_share = bad_share
        self._seed = seed
        self._good, self._bad = good(), bad()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self.report = Report()
        self.solo: dict[str, str] = {}
        """The answer to each good image alone, in base64."""

    def ask_solo(self) -> None:
        """Asks for each good image alone, once; every later answer is compared with these, bit for bit."""
        for sample in self._good:
            status, reply = self._send(raw(sample.data))
            if status == 200:
                self.solo[sample.name] = vectors(reply)[0]
            else:
                self.report.wrong.append(f"{sample.name}: {status} {reply[:200]!r}")
        self.close()
        self._local.connection = None

    def run(self, requests: int, callers: int = 12, every: float = 0.25) -> Report:
        """Sends that many requests, and looks after the server meanwhile."""
        with self._watching(every), ThreadPoolExecutor(callers) as pool:
            for number, error in pool.map(self._guarded, range(requests)):
                if error is not None:
                    self.report.wrong.append(f"request {number}: {error!r}")
        self.close()
        return self.report

    def close(self) -> None:
        """Hangs up."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _guarded(self, number: int) -> tuple[int, Exception | None]:
        try:
            self._one(random.Random(f"{self._seed} {number}"))
        except Exception as error:
            self._local.connection = None
            return number, error
        return number, None

    def _one(self, draw: random.Random) -> None:
        kind = draw.choices(["raw", "form", "json", "left", "cut", "slow"], [35, 20, 27, 6, 6, 6])[0]
        several = kind in ("form", "json")
        picked = [draw.choice(self._good) for _ in range(draw.randrange(1, 6) if several else 1)]
        place = draw.randrange(len(picked)) if draw.random() < self._bad_share else None
        if place is not None:
            picked[place] = draw.choice(self._bad)
        make = {"form": form, "json": as_json}.get(kind)
        message = make([sample.data for sample in picked]) if make else raw(picked[0].data, draw.choice(_MIMES))
        status, reply = 0, b""
        if kind in ("left", "cut"):
            self._go_away(message, draw, kind == "cut")
        elif kind == "slow":
            status, reply = self._send_slowly(message)
        else:
            status, reply = self._send(message)
        self._judge(kind, picked, place, status, reply)

    def _judge(self, kind: str, picked: list[Sample], place: int | None, status: int, reply: bytes) -> None:
        names = [sample.name for sample in picked]
        wrong = None
        if status and place is not None:
            wanted = {picked[place].status} | ({400} if kind == "json" else set())  # 400: taken for text, not an image
            error = json.loads(reply).get("error", {})
            if status not in wanted or (status != 413 and error["param"] != f"input[{place}]"):
                wrong = f"{kind} {names}, the bad one at {place}: {status} {reply[:300]!r}"
        elif status and (status != 200 or vectors(reply) != [self.solo[name] for name in names]):
            wrong = f"{kind} {names}: {status} {reply[:300]!r}"
        with self._lock:
            self.report.answers[kind, status] += 1
            self.report.spoilt += place is not None
            if wrong:
                self.report.wrong.append(wrong)

    def _send(self, message: Message) -> tuple[int, bytes]:
        """On this thread's connection, which is opened again where the server has closed it."""
        headers, body = message
        for attempt in (0, 1):
            connection = getattr(self._local, "connection", None)
            if connection is None or attempt:
                connection = self._local.connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE)
                self._connections.append(connection)
            try:
                with suppress(BrokenPipeError, ConnectionResetError):  # refused before it was sent whole
                    connection.request("POST", "/v1/embeddings?encoding_format=base64", body, headers)
                reply = connection.getresponse()
                return reply.status, reply.read()
            except (http.client.HTTPException, ConnectionError):
                if attempt:
                    raise
                connection.close()
        raise AssertionError("unreachable")

    def _send_slowly(self, message: Message) -> tuple[int, bytes]:
        with self._connected(message) as connection:
            body = message[1]
            step = len(body) // 8 + 1
            with suppress(BrokenPipeError, ConnectionResetError):
                for start in range(0, len(body), step):
                    connection.sendall(body[start : start + step])
                    time.sleep(0.03)
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            return reply.status, reply.read()

    def _go_away(self, message: Message, draw: random.Random, in_the_middle: bool) -> None:
        """In the middle of the body, or when it is sent; politely or not."""
        body = message[1][: len(message[1]) // 2] if in_the_middle else message[1]
        with self._connected(message) as connection:
            if draw.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(body)
            time.sleep(draw.random() * 0.02)

    @contextmanager
    def _connected(self, message: Message) -> Iterator[socket.socket]:
        """A new connection on which the head of a request has been sent."""
        headers = {"Host": "x", "Content-Length": str(len(message[1])), "Connection": "close", **message[0]}
        words = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(self._address, timeout=PATIENCE) as connection:
            connection.sendall(f"POST /v1/embeddings?encoding_format=base64 HTTP/1.1\r\n{words}\r\n".encode())
            yield connection

    @contextmanager
    def _watching(self, every: float) -> Iterator[None]:
        done, start = threading.Event(), time.monotonic()

        def watch() -> None:
            while not done.wait(every):
                self.report.watched.append((time.monotonic() - start, vitals(self._pid)))
                try:
                    connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE)
                    connection.request("GET", "/health/ready")
                    reply = connection.getresponse()
                    words = reply.read()
                    connection.close()
                    if reply.status != 200:
                        self.report.wrong.append(f"not ready: {words!r}")
                except OSError as error:
                    self.report.wrong.append(f"health: {error!r}")

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


_MIMES = ("image/jpeg", "image/png", "image/x-whatever", "application/octet-stream")


def raw(data: bytes, mime: str = "image/jpeg") -> Message:
    return {"Content-Type": mime}, data


def form(blobs: list[bytes]) -> Message:
    part = b'--xxchaosxx\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n%s\r\n'
    option = b'--xxchaosxx\r\nContent-Disposition: form-data; name="encoding_format"\r\n\r\nbase64\r\n--xxchaosxx--\r\n'
    body = b"".join(part % blob for blob in blobs) + option
    return {"Content-Type": "multipart/form-data; boundary=xxchaosxx"}, body


def as_json(blobs: list[bytes]) -> Message:
    images = [base64.b64encode(blob).decode() for blob in blobs]
    body = {"input": [f"data:image/jpeg;base64,{images[0]}", *images[1:]], "encoding_format": "base64"}
    return {"Content-Type": "application/json"}, json.dumps(body).encode()


def vectors(reply: bytes) -> list[str]:
    """Each in base64, whether it came as that or as numbers."""
    found = [row["embedding"] for row in json.loads(reply)["data"]]
    return [row if isinstance(row, str) else _packed(row) for row in found]


def _packed(row: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def second_half(report: Report, value: Callable[[Vitals], float]) -> list[float]:
    """What was watched, when half of the time had passed."""
    return [value(seen) for _, seen in report.watched[len(report.watched) // 2 :]]
