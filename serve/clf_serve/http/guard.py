"""What stands before every route: API keys, counting, and headers that keep the page to itself."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clf_serve.call import Call
from clf_serve.http.cors import from_elsewhere
from clf_serve.http.openapi import OPEN
from clf_serve.http.replies import refusal
from clf_serve.problems import Problem
from clf_serve.service import Service

# The page may load nothing from elsewhere: fonts, scripts and pictures of third parties are blocked by the browser.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:"
)
_OPEN = frozenset(f"{top}{end}" for top in OPEN for end in ("", "/live", "/ready"))
_COUNTED = (
    *("/v1/embeddings", "/embeddings", "/v1/embedding/image", "/v1/models", "/models", "/v2", "/search", "/thumbnails"),
    *("/v1/galleries", "/admin", "/health", "/metrics", "/docs", "/openapi.json"),
)
_CHANGING = ("/v1/galleries", "/admin", "/gradio_api")
"""Below these a request may change something, except by GET and HEAD and except for a search."""
_WORK = frozenset(("/v1/embeddings", "/embeddings", "/v1/embedding/image"))
"""Routes that need the model whatever the request says."""


class KeyRing:
    """API keys, of which only digests are kept.

    Args:
        keys: given for good.
        more: reads further ones, now and at each reload; raises ServeError.
    """

    def __init__(self, keys: Collection[str], more: Callable[[], Collection[str]] | None = None) -> None:
        self._fixed = tuple(keys)
        self._more = more
        self._digests: list[bytes] = []
        self.reload()

    def __bool__(self) -> bool:
        """Whether a key is needed at all. Does not change with a reload."""
        return bool(self._fixed) or self._more is not None

    def reload(self) -> None:
        """Raises ServeError; the keys stay as they were then."""
        more = self._more() if self._more is not None else ()
        self._digests = [_digest(key) for key in (*self._fixed, *more)]

    def knows(self, key: str) -> bool:
        """In a time that does not depend on how much of the key is right. No key is never one of them."""
        digest = _digest(key)
        return bool(key) and any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419 - looks at all


class Guard:
    """Pure ASGI, so that a client's going away reaches the routes.

    Args:
        origins: of other web pages that may use the API; others must not change anything.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: KeyRing, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._service = service
        self._keys = keys
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        answer = self._counting(path, send)
        if self._keys and path not in _OPEN and not self._knows(Headers(scope=scope)):
            problem = Problem(401, "invalid_api_key", "a valid API key is needed: Authorization: Bearer KEY")
            reply = self._refusal(problem, scope)
            reply.headers["WWW-Authenticate"] = 'Basic realm="clf", charset="UTF-8"'  # a browser asks for it then
            await reply(scope, receive, answer)
            return
        if _changes(scope) and from_elsewhere(headers := Headers(scope=scope), self._origins):
            source = headers.get("origin", "another site")
            text = f"a web page of {source} may change nothing here; to allow it: clf serve --cors ORIGIN"
            await self._refusal(Problem(403, "cross_site", text), scope)(scope, receive, answer)
            return
        if scope.get("method") == "POST" and path in _WORK:
            try:
                self._service.check_room(time.monotonic() + self._service.limits.timeout)
            except Problem as problem:  # as early as can be: under overload most requests end here
                await self._refusal(problem, scope)(scope, receive, answer)
                return
        if "/heartbeat/" in path:
            await self._until_drained(scope, receive, answer)
        else:
            await self._app(scope, receive, answer)

    def _refusal(self, problem: Problem, scope: Scope) -> Response:
        self._service.metrics.refused(problem.code)
        Call.of(scope).refusal = problem.code
        return refusal(problem, scope["path"])

    def _knows(self, headers: Headers) -> bool:
        """Bearer, X-API-Key, or Basic with the key as password."""
        given = headers.get("x-api-key", "")
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = value.strip()
        elif scheme.lower() == "basic":
            given = _password(value)
        return self._keys.knows(given)

    def _counting(self, path: str, send: Send) -> Send:
        route = next((name for name in _COUNTED if _below(path, (name,))), "ui")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.answered(route, message["status"])
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                if headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("Content-Security-Policy", _POLICY)
                    headers.setdefault("Referrer-Policy", "same-origin")
            await send(message)

        return answer

    async def _until_drained(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An open page holds a connection for ever; it must not hold up the end of the server."""
        stream = asyncio.ensure_future(self._app(scope, receive, send))
        drained = asyncio.ensure_future(self._service.draining.wait())
        try:
            await asyncio.wait({stream, drained}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stream.cancel()
            drained.cancel()
        await asyncio.gather(stream, return_exceptions=True)


def _changes(scope: Scope) -> bool:
    """Whether a request may change a gallery, the server, or what lies on its disk."""
    if scope.get("method") in (None, "GET", "HEAD", "OPTIONS"):
        return False
    return _below(scope["path"], _CHANGING) and not scope["path"].endswith("/search")


def _below(path: str, tops: Collection[str]) -> bool:
    return any(path == top or path.startswith(top + "/") for top in tops)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
