"""The whole application: guard, API, documents, and the page."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse

from clf import __version__
from clf.errors import missing_extra
from clf_serve.http import admin
from clf_serve.http.access import Calls, LastResort
from clf_serve.http.api import routes
from clf_serve.http.attend import readers
from clf_serve.http.cors import Cors
from clf_serve.http.docs import docs_page
from clf_serve.http.guard import Guard, KeyRing
from clf_serve.http.handlers import add_error_handlers, bug_reply
from clf_serve.http.openapi import document
from clf_serve.priority import full_pool
from clf_serve.processes import Claim, abandoned
from clf_serve.runtime import usable_cores
from clf_serve.service import Service
from clf_serve.tracing import TracedRequests

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_PREFIX, _UPLOADS = "clf-page-", "uploads"  # names of the folder of the page, and in it


@dataclass(frozen=True)
class Outside:
    """What surrounds the routes: who may come in, and who hears of it."""

    origins: Sequence[str] = ()
    """Of other web pages that may use the API."""
    log: bool = True
    """Whether each request gets a line in the log."""
    log_clients: bool = False
    """Whether that line names the client's address."""
    tracer: Tracer | None = None


def create_app(
    service: Service, *, ui: bool = True, api_keys: Collection[str] | KeyRing = (), outside: Outside | None = None
) -> FastAPI:
    """An ASGI application around ``service``, which it starts and stops with itself.

    Raises:
        MissingExtraError: ``ui`` without gradio.
    """
    keys = api_keys if isinstance(api_keys, KeyRing) else KeyRing(api_keys)
    page = _import_gradio() if ui else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        aside = full_pool(min(32, usable_cores() + 4), "clf-aside")  # as many as asyncio's own, which start one by one
        asyncio.get_running_loop().set_default_executor(aside)
        readers()
        await service.start()
        try:
            yield
            await service.stop()
        finally:
            if page is not None:
                page.remove()

    app = FastAPI(title="clf", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(routes(service))
    app.include_router(admin.routes(service, keys=bool(keys)))
    app.openapi = lambda: document(service, secured=bool(keys))  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url).rstrip("/")))

    add_error_handlers(app, service)
    if ui:
        from clf_serve.page import mount

        mount(app, service)
    _surround(app, service, keys, outside or Outside())
    return app


def _surround(app: FastAPI, service: Service, keys: KeyRing, outside: Outside) -> None:
    """From the innermost to the outermost: a refusal of the guard is traced, logged, and readable for other pages."""
    app.add_middleware(LastResort, answer=bug_reply(service))
    app.add_middleware(Guard, service=service, keys=keys, origins=outside.origins)
    if outside.origins:
        app.add_middleware(Cors, origins=outside.origins)
    if outside.tracer is not None:
        app.add_middleware(TracedRequests, tracer=outside.tracer)
    app.add_middleware(Calls, log=outside.log, clients=outside.log_clients)


class _PageFolder:
    """What people upload to the page; nothing of it outlives the server, or at least not the start of the next one."""

    def __init__(self) -> None:
        for left in abandoned(Path(gettempdir()), _PREFIX):
            _remove(left)
        self._path = Path(mkdtemp(prefix=_PREFIX))
        self.uploads = self._path / _UPLOADS
        self._claim: Claim | None = None
        with suppress(OSError):  # a full disk is no reason not to serve
            self._claim = Claim(self._path)
        atexit.register(self.remove)  # where the server ends before it has begun

    def remove(self) -> None:
        _remove(self._path)
        if self._claim is not None:
            self._claim.release()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / _UPLOADS, ignore_errors=True)  # first: whoever is killed here leaves it known as his
    shutil.rmtree(folder, ignore_errors=True)


def _import_gradio() -> _PageFolder:
    """Makes Gradio ready: no reports to its maker, and a folder of its own for what people upload."""
    folder = _PageFolder()
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder.uploads)}  # read by the import
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        folder.remove()
        raise missing_extra(error.name or "gradio", "serve", "the web page (or use --no-ui)") from None
    return folder
