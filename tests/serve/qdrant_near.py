"""The store on Qdrant's engine in this process, with requests that fail, are held back, or arrive late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx
import qdrant_edge as edge
from qdrant_client import QdrantClient
from qdrant_helpers import Api, RefusedError

from clf_serve.stores.qdrant import QdrantStore
from clf_serve.stores.qdrant.address import Address
from clf_serve.stores.qdrant.server import Server

Fault = Literal["before", "after", "late", "pause"]
_READS = ("/points", "/points/scroll", "/points/query", "/points/count")


def changes(request: httpx.Request) -> bool:
    """Whether it changes anything."""
    return request.method != "GET" and not (request.method == "POST" and request.url.path.endswith(_READS))


class Line:
    """The way of one handle's requests to the engine.

    Args:
        fault: what happens to the change at ``step``, counted from 0. *before* and *after* the engine has it the
            process dies: nothing of it gets through any more. *late* is before, and the change arrives when ``arrive``
            is called. *pause*: the process stands still there until ``go`` is set.
    """

    def __init__(self, api: Api, fault: Fault = "before", step: int = -1) -> None:
        self._api, self.fault, self.step = api, fault, step
        self.steps = 0
        self.dead = False
        self.waiting, self.go = threading.Event(), threading.Event()
        self._held: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.dead:
            raise httpx.ConnectError("this process is dead")
        if changes(request):
            self.steps += 1
            if self.steps - 1 == self.step:
                return self._fail(request)
        return self._send(request)

    def arrive(self) -> None:
        while self._held:
            self._send(self._held.pop())

    def _fail(self, request: httpx.Request) -> httpx.Response:
        if self.fault == "pause":
            self.waiting.set()
            assert self.go.wait(60)
            return self._send(request)
        self.dead = True
        if self.fault == "after":
            self._send(request)
        elif self.fault == "late":
            self._held.append(request)
        raise httpx.ReadTimeout("this process is dead")

    def _send(self, request: httpx.Request) -> httpx.Response:
        status, text = self._api.talk(request.method, request.url.path, request.read())
        return httpx.Response(status, content=text, headers={"content-type": "application/json"})


def near(folder: Path) -> type[Near]:
    """A class of stores whose galleries lie in one folder. ``near://any/NAME``."""
    api = Api(folder, "1.17.0")
    return type("NearHere", (Near,), {"api": api, "new_line": staticmethod(lambda: Line(api))})


class Near(QdrantStore):
    api: ClassVar[Api]
    new_line: ClassVar[Callable[[], Line]]
    line: Line

    @classmethod
    def connect(cls, address: Address) -> Server:
        return cls.over(cls.new_line(), address)

    @classmethod
    def over(cls, line: Line, address: Address) -> Server:
        client: Any = QdrantClient(
            url=address.server, check_compatibility=False, transport=httpx.MockTransport(line), timeout=address.timeout
        )
        return Server(client, address)

    @classmethod
    def empty(cls, name: str) -> None:
        """So that a gallery can be made there once more, in less time than in a new collection."""
        with suppress(RefusedError):
            cls.api.shards.get(name)[0].update(edge.UpdateOperation.delete_points_by_filter(edge.Filter()))

    @classmethod
    def by(cls, line: Line, name: str) -> QdrantStore:
        """A handle whose requests go that way, of a gallery that is there."""
        address = Address.of(f"qdrant://localhost/{name}")
        return cls(cls.over(line, address), address)
