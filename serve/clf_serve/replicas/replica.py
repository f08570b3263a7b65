"""One replica: the whole server of :mod:`clf_serve.app` within a process of Ray's.

Ray runs it as a bare ASGI application. It has started when its models are warm, so that no request reaches it before,
and ends when Ray has drained it. What is one server's business elsewhere and here that of all goes over the board: the
log, the metrics, and reloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from clf.errors import ClfError, ServeError, in_one_line
from clf_serve.app import Outside, create_app
from clf_serve.deployment import Folders
from clf_serve.http.guard import KeyRing
from clf_serve.keys import read_keys
from clf_serve.limits import ServeLimits
from clf_serve.log_format import LogFormat
from clf_serve.logs import logging_to
from clf_serve.problems import draining
from clf_serve.replicas.board import PERIOD, Report
from clf_serve.replicas.gathered import ReplicaMetrics
from clf_serve.service import Service
from clf_serve.tracing import start_tracing

_log = logging.getLogger(__name__)
_BYTES = 4 * 2**20  # of log that may wait for the next report
GRACE = 30.0  # seconds that running requests are given at the end
_RELOAD = 660.0  # seconds that all replicas together may take


@dataclass(frozen=True)
class Plan:
    """What each replica is to be; sent to it by Ray."""

    sources: tuple[Folders, ...]
    limits: ServeLimits = field(default_factory=ServeLimits)
    keys: tuple[str, ...] = field(default=(), repr=False)
    key_file: Path | None = None
    ui: bool = False
    origins: tuple[str, ...] = ()
    access_log: bool = False
    log_format: LogFormat = LogFormat.text
    otlp: str | None = None
    loopback: bool = True
    """Whether nothing may listen on other interfaces."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Settings of collectors and stores, secrets among them; on their way here no list of Ray's shows them."""

    def key_ring(self) -> KeyRing:
        """Raises ServeError: the file cannot be used."""
        path = self.key_file
        return KeyRing(self.keys, None if path is None else lambda: read_keys(path))


class Calls(Protocol):
    """The board, from afar."""

    async def __call__(self, method: str, *args: Any) -> Any: ...


class ReplicaService(Service):
    """A service one of many: a reload is for all of them, and metrics are everyone's.

    Args:
        board: calls it.
        replica: this one's name.
    """

    def __init__(self, plan: Plan, board: Calls, replica: str) -> None:
        self._gathered = ReplicaMetrics(replica)
        super().__init__(plan.sources, plan.limits, self._gathered)
        self._board = board
        self._replica = replica

    async def reload(self, name: str | None = None) -> dict[str, str | None]:
        """:meth:`Service.reload` of every replica."""
        with self.using(name):
            pass
        number = await self._board("ask", name)
        async with asyncio.timeout(_RELOAD):
            while (outcome := await self._board("outcome", number)) is None:
                if self.draining.is_set():
                    raise draining()
                await asyncio.sleep(PERIOD)
        return dict(outcome)

    async def reload_this(self, name: str | None) -> dict[str, str | None]:
        return await super().reload(name)

    async def measure_galleries(self) -> None:
        await super().measure_galleries()
        try:
            self._gathered.others = await self._board("metrics", self._replica)
        except Exception as error:
            _log.warning("the metrics of the other replicas are not known: %s", type(error).__name__)
            self._gathered.others = {}


class Front:
    """The ASGI application that Ray runs.

    Args:
        board: calls it.
        replica: the name that metrics and reports give this replica.
    """

    def __init__(self, plan: Plan, board: Calls, replica: str) -> None:
        self._plan = plan
        self._board = board
        self._replica = replica
        self._app: FastAPI | None = None
        self._service: ReplicaService | None = None
        self._lines: deque[str] = deque()
        self._waiting = 0
        self._done = 0
        self._outcomes: dict[int, dict[str, str | None]] = {}
        self._reloading: asyncio.Task[None] | None = None
        self._open = AsyncExitStack()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._stopping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert self._app is not None
        self._inside += 1
        self._empty.clear()
        try:
            await self._app(scope, receive, _without_second_id(scope, send))
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def check(self) -> None:
        """Raises RuntimeError when the replica would not answer, so that Ray replaces it."""
        service = self._service
        if service is None or service.leaving or service.draining.is_set():
            return
        if reason := await service.ready():
            raise RuntimeError(reason)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start(self._open)
        except Exception as error:
            if not isinstance(error, ClfError):
                _log.exception("a replica could not start")
            await self._open.aclose()
            await self._failed(error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop(0)
        await send({"type": "lifespan.shutdown.complete"})

    async def _stop(self, seconds: float) -> None:
        """Answers what has begun, for so many seconds at most, and closes everything. Does nothing the second time."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop_once(seconds), name="clf-stop")
        await asyncio.shield(self._stopping)

    async def _stop_once(self, seconds: float) -> None:
        assert self._service is not None
        self._service.draining.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        await self._open.aclose()
        with contextlib.suppress(Exception):
            await self._board("leave", self._replica, self._taken())

    async def _start(self, stack: AsyncExitStack) -> None:
        """Raises ClfError; whatever is wrong with the model."""
        plan = self._plan
        stack.enter_context(logging_to(plan.log_format, self._write))
        tracing, _ = start_tracing(plan.otlp)
        if tracing is not None:
            stack.callback(tracing.stop)
        self._done = await self._board("begin")
        keys = plan.key_ring()
        self._service = service = ReplicaService(plan, self._board, self._replica)
        service.also_reload.append(keys.reload)
        outside = Outside(plan.origins, plan.access_log, tracer=tracing.tracer if tracing else None)
        self._app = create_app(service, ui=plan.ui, api_keys=keys, outside=outside)
        await stack.enter_async_context(self._app.router.lifespan_context(self._app))
        while reason := await service.ready():
            if any(deployment.failed for deployment in service.models.values()):
                raise ServeError(f"a model or its gallery does not work ({reason}); the log says why")
            await asyncio.sleep(0.05)
        reports = asyncio.create_task(self._keep_reporting(service), name="clf-reports")
        stack.push_async_callback(_ended, reports)

    async def _failed(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, ClfError) else f"{type(error).__name__}: {in_one_line(error)}"
        with contextlib.suppress(Exception):
            await self._board("fail", reason, self._taken())

    async def _keep_reporting(self, service: ReplicaService) -> None:
        while True:
            try:
                await self._report(service)
            except Exception as error:  # whoever started the replicas is gone, or the cluster is busy
                _log.debug("no report was made: %s", error)
            await asyncio.sleep(PERIOD)

    async def _report(self, service: ReplicaService) -> None:
        ready = not service.draining.is_set()
        outcomes, self._outcomes = self._outcomes, {}
        report = Report(os.getpid(), ready, service.metrics.snapshot(), self._taken(), self._done, outcomes)
        order = await self._board("report", self._replica, report)
        service.leaving = service.leaving or order.leaving
        if order.ending and self._stopping is None:
            service.draining.set()
            self._stopping = asyncio.create_task(self._stop_once(GRACE), name="clf-stop")
        reloads = order.reloads[self._done - report.done :]  # one may have been done since the report was sent
        if reloads and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.create_task(self._reload(service, reloads), name="clf-reload")

    async def _reload(self, service: ReplicaService, models: list[str | None]) -> None:
        for model in models:
            try:
                outcome = await service.reload_this(model)
            except Exception as error:
                outcome = {model or "": str(error)}
            self._outcomes[self._done] = outcome
            self._done += 1

    def _write(self, data: bytes) -> int:
        """What the log's thread calls; what is too much is lost, and counted by it."""
        if self._waiting > _BYTES:
            raise OSError("too much of the log waits for the command")
        self._waiting += len(data)
        self._lines.append(bytes(data).decode("utf-8", "replace").rstrip("\n"))
        return len(data)

    def _taken(self) -> list[str]:
        taken = [self._lines.popleft() for _ in range(len(self._lines))]
        self._waiting = 0
        return taken


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _without_second_id(scope: Scope, send: Send) -> Send:
    """Ray puts ``X-Request-ID`` on each reply; the application's own is left out where it is the same."""
    given = Headers(scope=scope).get("x-request-id") if scope["type"] == "http" else None
    if given is None:
        return send

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("x-request-id") == given:
                del headers["x-request-id"]
        await send(message)

    return answer
