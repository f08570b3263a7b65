"""Which web pages of other origins may use the API (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
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


def from_elsewhere(headers: Headers, allowed: Sequence[str] = ()) -> bool:
    """Whether a page of another origin sent this request, and none of ``allowed``.

    A form posts to any server without asking it (no preflight), even to one on the reader's own machine; only its
    answer stays hidden. Browsers say whose page it was: in Sec-Fetch-Site (https://www.w3.org/TR/fetch-metadata/) to
    https and to this machine, else in Origin alone. Programs say neither. The names of Host and X-Forwarded-Host count
    as the server's own: a page cannot choose them.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if "*" in allowed or origin in allowed or site in ("same-origin", "none"):
        return False
    if site is not None or origin is None:
        return site is not None
    own = [*headers.get("x-forwarded-host", "").split(","), headers.get("host", "")]
    host = origin.partition("://")[2].lower()
    return not host or host not in [name.strip().lower() for name in own]


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
