"""Whatever goes wrong, in the shape that its caller reads."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from clf.errors import GalleryError
from clf_serve.call import Call
from clf_serve.http.attend import ClientGoneError
from clf_serve.http.replies import refusal
from clf_serve.problems import Problem
from clf_serve.service import Service

_log = logging.getLogger(__name__)


def bug_reply(service: Service) -> Callable[[Request], Response]:
    """What makes the answer to a request that an error in the server has ended."""

    def answer(request: Request) -> Response:
        return _refuse(service, request, Problem(500, "internal_error", "an error in the server; see its log"))

    return answer


def _refuse(service: Service, request: Request, problem: Problem) -> Response:
    service.metrics.refused(problem.code)
    Call.of(request.scope).refusal = problem.code
    return refusal(problem, request.url.path)


def add_error_handlers(app: FastAPI, service: Service) -> None:
    def answer(request: Request, problem: Problem) -> Response:
        return _refuse(service, request, problem)

    @app.exception_handler(Problem)
    async def refused(request: Request, error: Problem) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        reply = answer(request, Problem(error.status_code, "http_error", str(error.detail)))
        reply.headers.update(error.headers or {})  # 405 says what is allowed
        return reply

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return answer(request, Problem(400, "invalid_request", str(first["msg"]), param=where))

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, error: ClientGoneError) -> Response:
        service.metrics.abandoned.inc()
        return Response(status_code=499)  # nobody reads it; nginx's number for this

    @app.exception_handler(GalleryError)
    async def gallery(request: Request, error: GalleryError) -> Response:
        _log.error("%s", error)
        return answer(request, Problem(503, "gallery_unavailable", "the gallery cannot be read; see the server's log"))
