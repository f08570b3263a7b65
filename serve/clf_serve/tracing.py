"""Traces of requests by OpenTelemetry, where a collector is named; the extra ``otel``.

A span for each request, after the semantic conventions for HTTP servers
(https://opentelemetry.io/docs/specs/semconv/http/http-spans/), child of the caller's by W3C ``traceparent``
(https://www.w3.org/TR/trace-context/), and one below it for each stage of its Call. ``url.query`` is left out: what a
client writes there may be a secret. Spans go out in batches from a thread of their own and a bounded queue, so a
collector that is slow or away costs spans and no request.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clf import __version__
from clf.errors import MissingExtraError, ServeError, missing_extra
from clf_serve.call import Call
from clf_serve.http.access import method_of, route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_LONGEST = 256  # characters of a text that comes from a client
_UNTRACED = ("/health/", "/v2/health/", "/metrics")


class Tracing:
    """Spans on their way to a collector.

    Args:
        url: the collector's base address or the address of its traces; None takes it from the environment. Everything
            else (headers, certificate, timeout, sampler, sizes of batch and queue, service name) comes from
            OpenTelemetry's own variables.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        ServeError: no address of HTTP.
    """

    def __init__(self, url: str | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import SpanLimits, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or "opentelemetry", "otel", "sending traces") from None
        own = {"service.name": "clf", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        limits = SpanLimits(max_span_attributes=64)
        self._provider: TracerProvider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=traces_url(url) if url else None)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))

    @property
    def tracer(self) -> Tracer:
        return self._provider.get_tracer("clf_serve", __version__)

    def stop(self, seconds: float = 3.0) -> None:
        """Sends what waits, for so many seconds at most; the rest is given up."""
        last = threading.Thread(target=self._provider.shutdown, name="clf-last-spans", daemon=True)
        last.start()
        last.join(seconds)


class TracedRequests:
    """Within Calls and around the guard, so that a refusal is traced too. Probes and ``/metrics`` are not."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_UNTRACED):
            await self._app(scope, receive, send)
            return
        from opentelemetry import context, trace

        call, headers = Call.of(scope), Headers(scope=scope)
        parent = self._propagator.extract(headers, context=context.Context())
        span = self._tracer.start_span(
            method_of(scope), parent, trace.SpanKind.SERVER, attributes=_request_attributes(scope, headers)
        )
        call.trace = trace.format_trace_id(span.get_span_context().trace_id)
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = context.attach(trace.set_span_in_context(span, parent))
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            status = status or 500
            raise
        finally:
            context.detach(token)
            if span.is_recording():
                _finish(span, scope, call, status)
                self._add_stages(span, call)
            span.end()

    def _add_stages(self, span: Span, call: Call) -> None:
        """The Call's stages as spans, once they are known: its monotonic times become those of the wall."""
        from opentelemetry import trace

        within = trace.set_span_in_context(span)
        offset = time.time_ns() - time.monotonic_ns()
        for name, start, end in call.stages:
            stage = self._tracer.start_span(name, within, start_time=round(start * 1e9) + offset)
            stage.end(round(end * 1e9) + offset)


def start_tracing(url: str | None) -> tuple[Tracing | None, str]:
    """Traces when ``--otlp URL`` or a variable of OpenTelemetry names a collector; and a sentence to tell, if any.

    A variable may be set for a whole cluster, so there the missing extra is only told; for ``--otlp`` it is an error.

    Raises:
        MissingExtraError, ServeError: as :class:`Tracing`.
    """
    if not url and (not any(map(os.environ.get, _VARIABLES)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none"):
        return None, ""
    try:
        return Tracing(url), ""
    except MissingExtraError as error:
        if url:
            raise
        return None, f"no traces are sent, though the environment names a collector: {error}"


def traces_url(url: str) -> str:
    """Where spans are posted; a base address gets OTLP's default path.

    >>> traces_url("http://collector:4318")
    'http://collector:4318/v1/traces'

    Raises:
        ServeError: not an http or https address.
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise ServeError(f"--otlp {url!r} is no address of a collector; give one such as http://localhost:4318")
    return url if parts.path.endswith("/v1/traces") else url.rstrip("/") + "/v1/traces"


def _request_attributes(scope: Scope, headers: Headers) -> dict[str, AttributeValue]:
    """What is known at the start, when samplers decide."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method_of(scope),
        "url.scheme": scope["scheme"],
        "url.path": scope["path"][:_LONGEST],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if attributes["http.request.method"] == "_OTHER":
        attributes["http.request.method_original"] = scope["method"][:_LONGEST]
    if agent := headers.get("user-agent"):
        attributes["user_agent.original"] = agent[:_LONGEST]
    if found := _HOST.fullmatch(headers.get("host", "")[:_LONGEST]):
        attributes["server.address"] = found[1]
        if found[2]:
            attributes["server.port"] = int(found[2])
    return attributes


def _finish(span: Span, scope: Scope, call: Call, status: int | None) -> None:
    from opentelemetry.trace import StatusCode

    if route := route_of(scope):
        span.update_name(f"{method_of(scope)} {route}")
        span.set_attribute("http.route", route)
    facts: dict[str, AttributeValue | None] = {
        "http.response.status_code": status,
        "http.request.body.size": call.bytes_in,
        "clf.request_id": call.id,
        "clf.images": call.images,
        "clf.model": call.model or None,
        "clf.refusal": call.refusal or None,
    }
    span.set_attributes({name: value for name, value in facts.items() if value is not None})
    if status is not None and status >= 500:
        span.set_status(StatusCode.ERROR)
        if "error.type" not in (getattr(span, "attributes", None) or {}):
            span.set_attribute("error.type", str(status))
