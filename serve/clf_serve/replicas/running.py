"""``clf serve --engine ray``, from its options to its end."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from clf.errors import ServeError
from clf.manifest import read_manifest
from clf_serve.deployment import Folders
from clf_serve.gallery import Identity
from clf_serve.http.cors import read_origins
from clf_serve.keys import split_keys
from clf_serve.logs import LineWriter, logging_to, occupy_standard_descriptors, speaker
from clf_serve.place import AnyPlace
from clf_serve.replicas import cluster
from clf_serve.replicas.board import News
from clf_serve.replicas.machines import check_gpus, check_machines, threads_of
from clf_serve.replicas.replica import GRACE, Plan
from clf_serve.replicas.scale import Scale
from clf_serve.runtime import usable_cores
from clf_serve.server import Options, check_decoding, key_ring, listen, signals, sources
from clf_serve.stores import open_gallery
from clf_serve.tracing import start_tracing

_log = logging.getLogger(__name__)
_START = 900.0  # seconds; a large model on a slow disk, in every replica
_POLL = 0.25
_SETTINGS = ("OTEL_", "PG", "QDRANT_")  # of OpenTelemetry, libpq and Qdrant


def run_replicas(models: Sequence[Path], galleries: Sequence[AnyPlace], options: Options, scale: Scale) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what has begun and returns; no process stays.

    SIGHUP makes every replica open its models, galleries and keys again, each putting the new ones in the place of the
    old when they are warm.

    Raises:
        ServeError: an option cannot be used, or the replicas could not be started.
        ModelError, GalleryError: they cannot be used.
    """
    with signals():
        occupy_standard_descriptors()
        cluster.require_ray()
        plan, remark = _plan(models, galleries, options)
        port = _free_port(options.host, options.port)
        with ExitStack() as stack:
            writer = stack.enter_context(logging_to(options.log_format))
            try:
                plan, threads = _on_a_cluster(plan, options, scale, stack)
            except SystemExit:  # of the handler that Ray puts in the place of ours, with the signal's number
                raise SystemExit(0) from None
            command = _Command(writer, stack.enter_context(_listening()), options.drain)
            stack.callback(command.end)
            command.begin(plan, scale, threads, options.host, port)
            say = speaker(options.log_format)
            if command.started(options.host, port):
                for line in (*filter(None, [remark]), *_greeting(plan, scale, threads, options.host, port)):
                    say(line)
                command.watch()


def _plan(models: Sequence[Path], galleries: Sequence[AnyPlace], options: Options) -> tuple[Plan, str]:
    """Everything that can be known before Ray is started, and a sentence to tell, if any."""
    key_ring(options)
    check_decoding(options)
    tracing, remark = start_tracing(options.otlp)
    if tracing is not None:
        tracing.stop(0)
    found = sources(models, galleries, options)
    for source in found:
        _check_source(source)
    plan = Plan(
        sources=tuple(map(_absolute, found)),
        limits=replace(options.limits, writable=options.writable),
        keys=tuple(split_keys(options.api_keys)),
        key_file=options.api_key_file and options.api_key_file.absolute(),
        ui=options.ui,
        origins=tuple(read_origins(options.origins)),
        access_log=options.access_log,
        log_format=options.log_format,
        otlp=options.otlp,
        loopback=_is_loopback(options.host),
        environment={name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)},
    )
    return plan, remark


def _check_source(source: Folders) -> None:
    """Raises ModelError, GalleryError: they cannot be used, or not together; as far as that shows without the model."""
    identity = Identity.of(read_manifest(source.model))
    if source.gallery is not None:
        open_gallery(source.gallery, identity).close()


def _absolute(source: Folders) -> Folders:
    """As it is found from the folder that Ray starts replicas in."""
    gallery = source.gallery.absolute() if isinstance(source.gallery, Path) else source.gallery
    samples = source.samples and source.samples.absolute()
    return replace(source, model=source.model.absolute(), gallery=gallery, samples=samples)


def _on_a_cluster(plan: Plan, options: Options, scale: Scale, stack: ExitStack) -> tuple[Plan, int]:
    """Starts or joins one for as long as the stack stands; the threads of each replica."""
    if scale.address is None:
        threads = threads_of(scale, options.threads, [max(usable_cores(), scale.most * (options.threads or 1))])
        stack.enter_context(cluster.own_cluster(scale, threads, repeatable=not options.writable))
    else:
        stack.enter_context(cluster.joined_cluster(scale.address))
        paths = [path for each in plan.sources for path in (each.model, each.gallery, each.samples)]
        folders = [path for path in (*paths, plan.key_file) if isinstance(path, Path)]
        galleries = [each.gallery for each in plan.sources if isinstance(each.gallery, Path)]
        threads = threads_of(scale, options.threads, check_machines(folders, options.host, galleries))
    check_gpus(scale)
    return replace(plan, sources=tuple(replace(each, threads=threads) for each in plan.sources)), threads


class _Wishes:
    """What signals have asked for."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.reload = threading.Event()
        self.hurry = threading.Event()
        """Set by Ctrl-C, and by whatever comes after the first SIGTERM: nobody is told in advance then."""

    def hear(self, number: int) -> None:
        if number == signal.SIGINT or self.end.is_set():
            self.hurry.set()
        self.end.set()


@contextmanager
def _listening() -> Iterator[_Wishes]:
    """From here on signals are heard; Ray has put its own handlers in the place of ours while it started."""
    wishes = _Wishes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda heard, _: wishes.hear(heard))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: wishes.reload.set())
    yield wishes


class _Command:
    """The command's side of the board, and the end of everything.

    Args:
        writer: of the log, which the replicas' lines join.
        drain: seconds after SIGTERM in which requests are still taken.
    """

    def __init__(self, writer: LineWriter, wishes: _Wishes, drain: float) -> None:
        self._writer = writer
        self._wishes = wishes
        self._drain = drain
        self._ready = 0
        self._board = cluster.Post()
        self._deployed = self._joined = False

    def begin(self, plan: Plan, scale: Scale, threads: int, host: str, port: int) -> None:
        """Raises ServeError: Ray Serve does not work."""
        self._deployed, self._joined = True, scale.address is not None
        cluster.deploy(plan, scale, threads, host, port, self._board)

    def started(self, host: str, port: int) -> bool:
        """Whether the address answers; False when the command was asked to end before.

        Raises:
            ServeError: a replica cannot be started, or none was in time.
        """
        deadline = time.monotonic() + _START
        while not self._wishes.end.wait(_POLL):
            if failures := self._news().failures:
                raise ServeError(failures[0])
            if reason := cluster.why_failed():
                raise ServeError(f"Ray Serve could not start the replicas: {reason}")
            if _answers(host, port):
                return True
            if time.monotonic() > deadline:
                raise ServeError(f"no replica was ready within {_START:g} s; see the log above")
        return False

    def watch(self) -> None:
        """Until the command is asked to end. Raises ServeError: the cluster is gone."""
        while not self._wishes.end.wait(_POLL):
            for reason in self._news().failures:  # one more under load, or in the place of another; Ray tries again
                _log.warning("a replica could not start: %s", reason)
            if self._wishes.reload.is_set():
                self._wishes.reload.clear()
                self._board("ask", None)

    def end(self) -> None:
        """What has begun is answered; then replicas and ingress end."""
        if not self._deployed:
            return
        with suppress(ServeError):
            if self._drain and self._wishes.end.is_set() and not self._wishes.hurry.is_set():
                self._board("end", at_once=False)
                self._wishes.hurry.wait(self._drain)
            self._board("end", at_once=True)
            deadline = time.monotonic() + GRACE + 5
            while self._news().present and time.monotonic() < deadline:
                time.sleep(_POLL)
            if self._joined:
                cluster.withdraw()

    def _news(self) -> News:
        news: News = self._board("news")
        for line in news.lines:
            self._writer.put(line)
        if news.ready != self._ready:
            _log.info("%d %s at work", news.ready, "replica is" if news.ready == 1 else "replicas are")
            self._ready = news.ready
        return news


def _answers(host: str, port: int) -> bool:
    """Whether a replica says through the ingress that it is ready."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"{_base(_reachable(host), port)}/health/ready", timeout=5
        ) as reply:
            return bool(reply.status == 200)
    except OSError:  # URLError and HTTPError among them
        return False


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ServeError: the address cannot be had."""
    listener = listen(host, port)
    try:
        found: int = listener.getsockname()[1]
        return found
    finally:
        listener.close()


def _greeting(plan: Plan, scale: Scale, threads: int, host: str, port: int) -> list[str]:
    models = ", ".join(read_manifest(source.model).name for source in plan.sources)
    number = f"{scale.least} to {scale.most}" if scale.scales else str(scale.least)
    each = f"{threads} thread{'s' if threads > 1 else ''} each"
    where = f"the Ray cluster {scale.address}" if scale.address else "Ray on this machine"
    base = _base(host, port)
    shown = " (page and API)" if plan.ui else ""
    lines = [f"serving {models} on {base}{shown}, replicas: {number}, {each}, by {where}", f"API: {base}/docs"]
    if not plan.loopback and not (plan.keys or plan.key_file):
        use = "use it and change its galleries" if plan.limits.writable else "use it"
        lines.append(f"anyone who reaches this address can {use}: set CLF_API_KEYS to ask for a key")
    if not plan.loopback and scale.address is None:
        lines.append("the replicas' own ports (from 30000 on) are open to the network too; they ask for the same keys")
    return lines


def _base(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _reachable(host: str) -> str:
    """From this machine, where the server listens on every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
