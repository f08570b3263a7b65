"""What surrounds every request: its id, its line in the log, and an answer even when a route fails."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clf_serve.call import Call
from clf_serve.logs import current

_log = logging.getLogger(__name__)
_SANE_ID = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"))
_PROBES = frozenset(("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"))


class Calls:
    """Outermost: begins the Call of a request, gives it its id, and logs at its end what became of it.

    The id is the client's ``X-Request-ID`` when it is 1 to 128 letters, digits and ``._:/=+@-``, else a new one; the
    reply carries it. A line holds the method, the route's template, the status, times and sizes: no image, key, file
    name, query or raw path. Probes and ``/metrics`` are logged only when they fail.

    Args:
        log: whether to write a line for each request.
        clients: whether the line names the client's address.
    """

    def __init__(self, app: ASGIApp, *, log: bool = True, clients: bool = False) -> None:
        self._app = app
        self._log = log
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call.of(scope)
        call.id = request_id(Headers(scope=scope))
        status: int | None = None
        start = time.monotonic()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = call.id
            await send(message)

        async def counted() -> Message:
            message = await receive()
            call.bytes_in += len(message.get("body", b""))
            return message

        token = current.set(call)
        try:
            await self._app(scope, counted, answer)
        except BaseException:
            status = status or 500
            raise
        finally:
            if self._log and (scope["path"] not in _PROBES or status is None or status >= 400):
                self._write(scope, call, status, time.monotonic() - start)
            current.reset(token)

    def _write(self, scope: Scope, call: Call, status: int | None, seconds: float) -> None:
        client = scope.get("client")
        facts = {
            "method": method_of(scope),
            "route": route_of(scope),
            "status": status,
            "ms": round(1000 * seconds, 1),
            "images": call.images,
            "bytes_in": call.bytes_in,
            "client": client[0] if self._clients and client else None,
            "model": call.model or None,
            "refusal": call.refusal or None,
            "stages_ms": {name: round(1000 * each, 1) for name, each in call.seconds.items()} or None,
            "trace_id": call.trace or None,
        }
        level = logging.ERROR if status == 500 else logging.INFO
        _log.log(level, "request", extra={"event": "request", "facts": facts})


class LastResort:
    """Innermost: an error in a route is logged under its request's id, and answered.

    Starlette answers such errors outside of all middleware, where the reply is neither counted nor carries the headers
    that a browser or a client needs.

    Args:
        answer: makes the reply with status 500.
    """

    def __init__(self, app: ASGIApp, answer: Callable[[Request], Response]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if begun:
                raise
            _log.exception("an error in %s %s", method_of(scope), route_of(scope))
            await self._answer(Request(scope))(scope, receive, send)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own id of its request when it is harmless, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def route_of(scope: Scope) -> str | None:
    """The template of the route that took the request, as ``/thumbnails/{image_id}``; None where none did.

    FastAPI names the route only of functions that it has wrapped itself; of the others the parameters' values are taken
    out of the path.
    """
    route: Any = scope.get("route")
    if path := getattr(route, "path", None):
        return str(path)
    if "endpoint" not in scope:
        return None
    template: str = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        before, found, after = template.rpartition(f"/{value}")
        if not found:
            return None
        template = f"{before}/{{{name}}}{after}"
    return template


def method_of(scope: Scope) -> str:
    """One of HTTP's methods, or ``_OTHER``: a label must not be whatever a client sends."""
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"
