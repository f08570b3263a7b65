"""From a command line to a listening server, and cleanly back."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from clf.errors import ServeError, missing_extra
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.runtime import Provider
from clf_serve.service import ServeLimits, Service

_GRACE = 30  # seconds that running requests are given at the end


def run(
    model: Path,
    *,
    gallery: Path | None,
    host: str,
    port: int,
    ui: bool,
    api_keys: Sequence[str],
    provider: Provider,
    threads: int | None,
    limits: ServeLimits,
    say: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what has begun and returns.

    Raises:
        ServeError: the address cannot be had; known before the model is loaded.
        ModelError, GalleryError: they cannot be used.
        MissingExtraError: a package of the extra ``serve`` is missing.
    """
    try:
        import uvicorn

        from clf_serve.app import create_app
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve", "clf serve") from None

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.draining.set()
            super().handle_exit(sig, frame)

    with listen(host, port) as listener:
        engine = Engine(model, provider, threads)
        if engine.note:
            say(engine.note)
        opened = Gallery(gallery, Identity.of(engine.manifest)) if gallery else None
        service = Service(engine, opened, limits)
        app = create_app(service, ui=ui, api_keys=_split(api_keys))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE
        )
        for line in _greeting(service, listener, ui, bool(_split(api_keys))):
            say(line)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has ended
            signal.signal(number, lambda *_: None)
        server = Server(config)
        server.run(sockets=[listener])
    if not server.started:
        raise ServeError("the server could not start; its log says why")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ServeError: the address is unknown, taken or forbidden.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServeError(f"the host {host!r} is unknown: {error.strerror}; try --host 127.0.0.1") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        remedy = "end the other server or choose another --port" if port else "choose another --host"
        raise ServeError(f"cannot listen on {host} port {port}: {error.strerror}; {remedy}") from error
    return listener


def _greeting(service: Service, listener: socket.socket, ui: bool, keys: bool) -> list[str]:
    host, port = listener.getsockname()[:2]
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    manifest = service.engine.manifest
    about = f"{manifest.name} ({manifest.dim} dimensions, {service.engine.device})"
    if service.gallery is not None:
        about += f", {len(service.gallery)} images"
    lines = [f"serving {about} on {base}" + (" (page and API)" if ui else ""), f"API: {base}/docs"]
    if not keys and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        lines.append("anyone who reaches this address can use it: set CLF_API_KEYS to ask for a key")
    return lines


def _split(keys: Sequence[str]) -> list[str]:
    """Keys may be separated by commas in CLF_API_KEYS."""
    return [key for text in keys for key in text.split(",") if key]
