"""Which web pages of other origins may use the API (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clf.errors import ServeError

METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "Idempotency-Key"),
    *("Inference-Header-Content-Length", "traceparent", "tracestate"),
)
REPLY_HEADERS = (
    *("Retry-After", "Server-Timing", "X-Request-ID", "X-Shape", "X-Dtype", "ETag"),
    "Inference-Header-Content-Length",
)


class Cors:
    """Around the guard: a preflight carries no key, and a page can read a refusal only if it has these headers too.

    Cookies are not allowed for (``Access-Control-Allow-Credentials``): a key goes into a header, so ``*`` gives a
    stranger's page nothing that its own server could not ask for.

    Args:
        origins: of :func:`read_origins`.
        expose: further headers of replies that a page may read.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], expose: Sequence[str] = ()) -> None:
        self._cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=(*REPLY_HEADERS, *expose),
        )
        self._differs = "*" not in origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._cors(scope, receive, self._varying(send) if self._differs else send)

    def _varying(self, send: Send) -> Send:
        """A browser that keeps a thumbnail for one page must not offer the same reply to a page of another origin."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                known = {word.strip().lower() for line in headers.getlist("vary") for word in line.split(",")}
                if not known & {"origin", "*"}:
                    headers.add_vary_header("Origin")
            await send(message)

        return answer


def read_origins(origins: Sequence[str]) -> list[str]:
    """What ``--cors`` was given, checked.

    Raises:
        ServeError: not an origin: ``https://app.example.org``, ``http://localhost:3000``, or ``*`` alone.
    """
    if "*" in origins and len(set(origins)) > 1:
        raise ServeError("--cors '*' allows every origin already; leave the others out, or leave '*' out")
    return [origin if origin == "*" else _origin(origin) for origin in dict.fromkeys(origins)]


def _origin(text: str) -> str:
    remedy = "give scheme and host as a browser sends them, such as https://app.example.org or http://localhost:3000"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ServeError(f"--cors {text!r} is no origin ({error}); {remedy}") from error
    host = f"[{host}]" if ":" in host else host
    exact = f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, _DEFAULT_PORTS.get(parts.scheme)) else "")
    if parts.scheme not in _DEFAULT_PORTS or not host or not text.isascii() or "*" in text:
        raise ServeError(f"--cors {text!r} is no origin; {remedy}")
    if text != exact:
        raise ServeError(f"--cors {text!r} would never match what a browser sends; write {exact}")
    return exact


_DEFAULT_PORTS = {"http": 80, "https": 443}
