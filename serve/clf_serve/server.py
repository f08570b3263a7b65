"""From a command line to a listening server, and cleanly back."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from clf.errors import GalleryError, ServeError, missing_extra
from clf.manifest import read_manifest
from clf_serve.deployment import Deployment, Folders
from clf_serve.engine import Decoding, VariantName
from clf_serve.http.cors import read_origins
from clf_serve.http.whole import with_whole_replies
from clf_serve.keys import read_keys, split_keys
from clf_serve.limits import ServeLimits
from clf_serve.log_format import LogFormat
from clf_serve.logs import logging_to, occupy_standard_descriptors, speaker
from clf_serve.place import AnyPlace, Place
from clf_serve.runtime import Provider
from clf_serve.service import Service
from clf_serve.stores import open_gallery
from clf_serve.sync.indexing import list_images
from clf_serve.tls import read_tls

if TYPE_CHECKING:
    from fastapi import FastAPI

    from clf_serve.http.guard import KeyRing

_KEYS = "CLF_API_KEYS"
_GRACE = 30  # seconds that running requests are given at the end
_KEEP_ALIVE = 75  # seconds; longer than most proxies keep an idle connection, so that they are the ones who close it


@dataclass(frozen=True)
class Options:
    """How to serve; what each one means is said by ``clf serve --help``."""

    host: str = "127.0.0.1"
    port: int = 8000
    ui: bool = True
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    provider: Provider = "auto"
    threads: int | None = None
    variant: VariantName = "fp32"
    decoding: Decoding = "exact"
    samples: Path | None = None
    limits: ServeLimits = field(default_factory=ServeLimits)
    writable: bool = False
    origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_key_password_env: str | None = None
    log_format: LogFormat = LogFormat.text
    access_log: bool = True
    log_clients: bool = False
    otlp: str | None = None
    drain: float = 0.0
    """Seconds after SIGTERM in which requests are still taken, while probes are told that the server leaves."""


def run(models: Sequence[Path], galleries: Sequence[AnyPlace], options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what has begun and returns. SIGHUP reloads models and galleries.

    Args:
        models: folders; the first is served where a request names none.
        galleries: each belongs to one of the models.

    Raises:
        ServeError: an option cannot be used, or the address cannot be had; known before a model is loaded.
        ModelError, GalleryError: they cannot be used.
        MissingExtraError: a package of an extra is missing.
    """
    with signals():
        _run(models, galleries, options)


def _run(models: Sequence[Path], galleries: Sequence[AnyPlace], options: Options) -> None:
    try:
        import uvicorn  # noqa: F401

        from clf_serve.app import Outside, create_app
        from clf_serve.tracing import start_tracing
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve", "clf serve") from None
    occupy_standard_descriptors()
    keys = key_ring(options)
    if options.log_clients and not options.access_log:
        raise ServeError("--log-clients needs --access-log (or --log-format json, without --no-access-log)")
    check_decoding(options)
    origins = read_origins(options.origins)
    tls = read_tls(options.tls_cert, options.tls_key, options.tls_key_password_env)
    with ExitStack() as stack:
        listener = stack.enter_context(listen(options.host, options.port))
        stack.enter_context(logging_to(options.log_format))
        say = speaker(options.log_format)
        tracing, remark = start_tracing(options.otlp)
        if tracing is not None:
            stack.callback(tracing.stop)
        limits = replace(options.limits, writable=options.writable)
        service = Service(sources(models, galleries, options), limits)
        outside = Outside(origins, options.access_log, options.log_clients, tracing.tracer if tracing else None)
        context = tls.context() if tls else None
        app = create_app(service, ui=options.ui, api_keys=keys, outside=outside)
        service.also_reload.append(keys.reload)
        if tls is not None and context is not None:
            service.also_reload.append(partial(tls.load_into, context))
        notes = [remark, *(deployment.engine.note for deployment in service.models.values())]
        for line in (*filter(None, notes), *_greeting(service, listener, options.ui, bool(keys), tls is not None)):
            say(line)
        started = _serve(app, service, listener, context, options.drain)
    if not started:
        raise ServeError("the server could not start; its log says why")


@contextmanager
def signals() -> Iterator[None]:
    """Until the server listens to them: SIGHUP would end the process, and the others are to end it in peace.

    Whoever made a mistake gets his own handlers back; a server that has ended is not disturbed on its way out.
    """
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGHUP"):
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise


def _end(number: int, frame: FrameType | None) -> None:
    """For a signal that comes before the server listens to it; the first process of a container would not hear it."""
    raise SystemExit(0)


def key_ring(options: Options) -> KeyRing:
    """Raises ServeError: keys that cannot be used, or none where some were meant to be given."""
    from clf_serve.http.guard import KeyRing

    keys, path = split_keys(options.api_keys), options.api_key_file
    if not keys and path is None and (options.api_keys or _KEYS in os.environ):
        raise ServeError(f"--api-key or {_KEYS} is given and holds no key; write one, or leave it out to ask for none")
    return KeyRing(keys, None if path is None else lambda: read_keys(path))


def check_decoding(options: Options) -> None:
    """A folder without images shows now. Raises ServeError, DataError: fast decoding and nothing to measure it on."""
    if options.decoding == "fast" and options.samples is None:
        raise ServeError("--decoding fast needs --samples FOLDER: photos on which its effect is measured at start")
    if options.samples is not None:
        list_images(options.samples)


def _serve(
    app: FastAPI, service: Service, listener: socket.socket, context: ssl.SSLContext | None, drain: float
) -> bool:
    """Whether the server came up; returns when it has ended."""
    import uvicorn

    class Server(uvicorn.Server):
        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            if hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            await super().serve(sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if sig == signal.SIGTERM and drain and self.started and not service.leaving:
                service.leaving = True  # a proxy that asks for /health/ready sends nothing more, and nothing is lost
                asyncio.get_running_loop().call_later(drain, self.handle_exit, sig, frame)
                return
            service.draining.set()
            super().handle_exit(sig, frame)

        def _reload(self) -> None:
            task = asyncio.ensure_future(service.reload_all())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    reloads: set[asyncio.Task[None]] = set()
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    config.load()
    config.http_protocol_class = with_whole_replies(config.http_protocol_class)
    if context is not None:
        config.ssl = context
    server = Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn hears them later, and raises them again when it has ended
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    gc.collect()
    gc.freeze()  # what was imported is not looked through again and again, which would hold up every request
    server.run(sockets=[listener])
    gc.unfreeze()
    return server.started


def sources(models: Sequence[Path], galleries: Sequence[AnyPlace], options: Options) -> list[Folders]:
    """The models, each with the gallery that was made with it.

    Raises:
        ModelError, GalleryError: one cannot be read, or a gallery belongs to none of the models.
        ServeError: a model has two galleries, or a folder is named twice.
    """
    places = [Place.of(gallery) for gallery in galleries]
    for kind, named in (("model", [Place(model) for model in models]), ("gallery", places)):
        if twice := [place for place, n in Counter(place.identity for place in named).items() if n > 1]:
            raise ServeError(f"the {kind} {Place.of(twice[0])} is given twice; name it once")

    def folders(model: Path, gallery: Place | None) -> Folders:
        return Folders(
            model,
            gallery and (gallery.folder or gallery),
            options.provider,
            options.threads,
            options.variant,
            options.decoding,
            options.samples,
        )

    if len(models) == 1 and len(places) < 2:  # what does not fit is said when they are opened
        return [folders(models[0], places[0] if places else None)]
    digests = {model: read_manifest(model).sha256 for model in models}
    owned: dict[Path, Place] = {}
    for gallery in places:
        with open_gallery(gallery) as opened:
            made_with = opened.model
        owner = next((model for model in models if digests[model] == made_with.sha256), None)
        if owner is None:
            raise GalleryError(f"the gallery {gallery} was made with model {made_with}, which is not served here")
        if owner in owned:
            raise ServeError(f"the model {owner} has two galleries, {owned[owner]} and {gallery}; serve one of them")
        owned[owner] = gallery
    return [folders(model, owned.get(model)) for model in models]


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


def _greeting(service: Service, listener: socket.socket, ui: bool, keys: bool, tls: bool) -> list[str]:
    host, port = listener.getsockname()[:2]
    base = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    about = "; ".join(map(_about, service.models.values()))
    lines = [f"serving {about} on {base}" + (" (page and API)" if ui else ""), f"API: {base}/docs"]
    if not keys and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        use = "use it and change its galleries" if service.limits.writable else "use it"
        lines.append(f"anyone who reaches this address can {use}: set CLF_API_KEYS to ask for a key")
    return lines


def _about(deployment: Deployment) -> str:
    about = f"{deployment.name} ({deployment.engine.dim} dimensions, {deployment.engine.device})"
    return about + (f", {len(deployment.gallery)} images" if deployment.gallery is not None else "")
