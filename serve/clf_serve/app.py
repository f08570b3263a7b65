"""The whole application: guard, API, documents, and the page."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from tempfile import mkdtemp

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from clf import __version__
from clf.errors import GalleryError, missing_extra
from clf_serve.api import ClientGoneError, routes
from clf_serve.docs import docs_page
from clf_serve.guard import Guard
from clf_serve.problems import Problem
from clf_serve.service import Service

_log = logging.getLogger(__name__)


def create_app(service: Service, *, ui: bool = True, api_keys: Collection[str] = ()) -> FastAPI:
    """An ASGI application around ``service``, which it starts and stops with itself.

    Raises:
        MissingExtraError: ``ui`` without gradio.
    """

    uploads = _page_folder() if ui else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()
        if uploads is not None:
            shutil.rmtree(uploads, ignore_errors=True)

    app = FastAPI(title="clf", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(routes(service))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url).rstrip("/")))

    _add_error_handlers(app, service)
    if ui:
        from clf_serve.ui import mount

        mount(app, service)
    app.add_middleware(Guard, service=service, keys=api_keys)
    return app


def _page_folder() -> str:
    """Makes Gradio ready: no reports to its maker, and a folder of its own for what people upload."""
    folder = mkdtemp(prefix="clf-page-")
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read while it is imported
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        shutil.rmtree(folder)
        raise missing_extra(error.name or "gradio", "serve", "the web page (or use --no-ui)") from None
    return folder


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    def answer(problem: Problem) -> Response:
        service.metrics.refused(problem.code)
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(Problem)
    async def refused(_: Request, error: Problem) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return answer(Problem(error.status_code, "http_error", str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answer(Problem(400, "invalid_request", str(first["msg"]), param=".".join(map(str, first["loc"]))))

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, error: ClientGoneError) -> Response:
        service.metrics.abandoned.inc()
        return Response(status_code=499)  # nobody reads it; nginx's number for this

    @app.exception_handler(GalleryError)
    async def gallery(_: Request, error: GalleryError) -> Response:
        _log.error("%s", error)
        return answer(Problem(503, "gallery_unavailable", "the gallery cannot be read; see the server's log"))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return answer(Problem(500, "internal_error", "an error in the server; see its log"))
