"""How both clients reach their server."""

from __future__ import annotations

from typing import Any

import httpx

from clf_serve.client.exchange import ClientError, UnexpectedReplyError

_MOST_REPLY = 256 * 2**20  # bytes, unpacked


def grow(body: bytearray, piece: bytes) -> None:
    body += piece
    if len(body) > _MOST_REPLY:
        raise UnexpectedReplyError(f"the server's answer is longer than {_MOST_REPLY / 2**20:g} MiB")


def connection_options(url: str, api_key: str | None, in_flight: int) -> dict[str, Any]:
    """What both of httpx's clients are made with."""
    base = url.strip().rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(base)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url!r} is not the URL of a server: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url!r} is not the URL of a server; it looks like http://127.0.0.1:8000")
    headers = {"User-Agent": "clf-vision"}
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
            raise ClientError("the API key has spaces around it, line ends, or characters that are not ASCII")
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": parsed,
        "headers": headers,
        "follow_redirects": False,  # the key is for this server alone
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=in_flight + 4),
    }
