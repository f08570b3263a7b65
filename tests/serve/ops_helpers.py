"""A small application inside the middlewares of the server, for tests of what surrounds a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clf_serve.call import Call
from clf_serve.http.access import LastResort
from clf_serve.problems import Problem

KEY = "the-key-of-a-customer"


class Door:
    """Asks for a key, as the guard of the server does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or Request(scope).headers.get("x-api-key") == KEY:
            await self._app(scope, receive, send)
            return
        problem = Problem(401, "invalid_api_key", "a valid API key is needed")
        Call.of(scope).refusal = problem.code
        await JSONResponse(problem.body, 401)(scope, receive, send)


async def embed(request: Request) -> Response:
    """Reads the body, and notes stages as a route of the server does."""
    call = Call.of(request.scope)
    start = time.monotonic()
    await request.body()
    call.since("read", start)
    for name, begin, end in (("decode", 0.001, 0.003), ("queue", 0.003, 0.004), ("inference", 0.004, 0.009)):
        call.add(name, start + begin, start + end)
    call.images, call.model = 2, "tiny"
    return JSONResponse({"id": call.id}, headers={"Server-Timing": call.header})


async def busy(request: Request) -> Response:
    problem = Problem(429, "overloaded", "the server is busy", retry_after=3)
    Call.of(request.scope).refusal = problem.code
    return JSONResponse(problem.body, 429, problem.headers)


async def broken(_: Request) -> Response:
    raise RuntimeError("a bug\nFORGED level=info")


async def half(_: Request) -> Response:
    class Half(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError("in the middle of a reply")

    return Half()


async def fine(_: Request) -> Response:
    return JSONResponse({"status": "fine"}, headers={"ETag": '"1"', "Cache-Control": "private, max-age=60"})


def sorry(_: Request) -> Response:
    problem = Problem(500, "internal_error", "an error in the server; see its log")
    return JSONResponse(problem.body, 500)


def application() -> ASGIApp:
    """Routes inside Door and LastResort, in the order of the server."""
    routes = [
        Route("/v1/embeddings", embed, methods=["POST"]),
        Route("/thumbnails/{image_id:int}", fine),
        Route("/health/ready", fine),
        Route("/health/live", broken),
        Route("/busy", busy),
        Route("/broken", broken),
        Route("/half", half),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(LastResort, answer=sorry)
    app.add_middleware(Door)
    return app


def ask(
    app: ASGIApp, *requests: Callable[[httpx.AsyncClient], object] | str, key: str | None = KEY
) -> list[httpx.Response]:
    """Replies to requests, one after the other: a path to GET, or what to do with a client."""

    async def all_of_them() -> list[httpx.Response]:
        headers = {"X-API-Key": key} if key else {}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here:8000", headers=headers) as client:
            return [await (client.get(each) if isinstance(each, str) else each(client)) for each in requests]  # type: ignore[misc]

    return asyncio.run(all_of_them())
