"""Traces: what a span says, whose child it is, and what a collector that is away costs."""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from ops_helpers import application, ask
from starlette.types import ASGIApp, Receive, Scope, Send
from web_helpers import Silent, answering

from clf.errors import MissingExtraError, ServeError
from clf_serve.http.access import Calls
from clf_serve.tracing import TracedRequests, Tracing, start_tracing, traces_url

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of the specification
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


class Recorder:
    """A traced application whose spans stay here."""

    def __init__(self, app: ASGIApp | None = None, *, off: bool = False) -> None:
        provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF)) if off else TracerProvider()
        self._kept = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.app = Calls(TracedRequests(app or application(), provider.get_tracer("test")), log=False)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._kept.get_finished_spans()}


def test_a_request_is_a_server_span_with_its_stages_below() -> None:
    recorder = Recorder()
    before = time.time_ns()
    [reply] = ask(
        recorder.app,
        lambda client: client.post("/v1/embeddings?key=SECRET", content=b"12345", headers={"User-Agent": "test/1"}),
    )
    after = time.time_ns()

    assert list(recorder.spans) == ["read", "decode", "queue", "inference", "POST /v1/embeddings"]
    span = recorder.spans["POST /v1/embeddings"]
    assert (span.kind, span.parent, span.status.status_code) == (SpanKind.SERVER, None, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "http.request.body.size": 5,
        "url.scheme": "http",
        "url.path": "/v1/embeddings",
        "network.protocol.version": "1.1",
        "server.address": "here",
        "server.port": 8000,
        "user_agent.original": "test/1",
        "clf.request_id": reply.headers["X-Request-ID"],
        "clf.images": 2,
        "clf.model": "tiny",
    }
    assert "SECRET" not in span.to_json()
    for name, milliseconds in (("decode", 2), ("queue", 1), ("inference", 5)):
        stage = recorder.spans[name]
        assert stage.parent == span.context and stage.start_time and stage.end_time
        assert (
            abs(stage.end_time - stage.start_time - milliseconds * 1e6) < 2000
        )  # ns; a float of seconds holds no more
        assert abs(stage.start_time - before) < 1e9 + after - before  # ns; the two clocks are read one after the other
    assert span.start_time and span.end_time and before <= span.start_time <= span.end_time <= after


def test_a_caller_with_a_trace_is_the_parent() -> None:
    recorder = Recorder()
    ask(recorder.app, lambda client: client.get("/thumbnails/7", headers={"traceparent": PARENT, "tracestate": "a=1"}))

    [span] = recorder.spans.values()
    assert span.name == "GET /thumbnails/{image_id:int}" and span.context and span.parent
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2] and span.parent.is_remote
    assert span.context.trace_state.get("a") == "1"


@pytest.mark.parametrize("header", ["", "x", PARENT.replace("0af7", "zzzz"), "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_another_traceparent_begins_a_trace(header: str) -> None:
    recorder = Recorder()
    ask(recorder.app, lambda client: client.get("/thumbnails/7", headers={"traceparent": header}))

    [span] = recorder.spans.values()
    assert span.parent is None


def test_errors_and_refusals() -> None:
    recorder = Recorder()
    ask(recorder.app, "/busy", "/broken")
    ask(recorder.app, lambda client: client.request("BREW", "/nowhere", headers={"Host": "a b"}), key=None)

    busy, broken, other = (recorder.spans[name] for name in ("GET /busy", "GET /broken", "_OTHER"))
    assert busy.attributes and broken.attributes and other.attributes
    assert (busy.status.status_code, busy.attributes["clf.refusal"]) == (StatusCode.UNSET, "overloaded")
    assert (broken.status.status_code, broken.attributes["error.type"]) == (StatusCode.ERROR, "500")
    assert (other.attributes["http.request.method_original"], other.attributes["clf.refusal"]) == (
        "BREW",
        "invalid_api_key",
    )
    assert "server.address" not in other.attributes and "http.route" not in other.attributes


def test_an_error_in_the_middle_of_a_reply_is_seen() -> None:
    recorder = Recorder()
    with pytest.raises(RuntimeError):
        ask(recorder.app, "/half")
    attributes = recorder.spans["GET /half"].attributes
    assert attributes and attributes["error.type"] == "RuntimeError"


def test_probes_are_not_traced_and_what_is_not_sampled_is_not_recorded() -> None:
    recorder = Recorder()
    ask(recorder.app, "/health/ready", "/health/live")
    assert not recorder.spans

    off = Recorder(off=True)
    ask(off.app, lambda client: client.post("/v1/embeddings"))
    assert not off.spans
    ask(off.app, lambda client: client.post("/v1/embeddings", headers={"traceparent": PARENT}))  # its caller wants it
    assert len(off.spans) == 5


def test_what_runs_inside_is_part_of_the_trace() -> None:
    seen = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(get_current_span().get_span_context().span_id)
        await application()(scope, receive, send)

    recorder = Recorder(inner)
    ask(recorder.app, "/busy")
    [span] = recorder.spans.values()
    assert span.context and seen == [span.context.span_id]
    assert not get_current_span().get_span_context().is_valid


@dataclass(frozen=True)
class Collector:
    """Takes OTLP over HTTP, in protobuf."""

    url: str
    got: list[tuple[str, str, ExportTraceServiceRequest]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    got: list[tuple[str, str, ExportTraceServiceRequest]] = []

    class Taking(Silent, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with answering(Taking) as url:
        yield Collector(url, got)


@contextmanager
def sending(url: str | None) -> Iterator[Tracing]:
    tracing, said = start_tracing(url)
    assert tracing and not said
    yield tracing
    tracing.stop()


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_real_collector_gets_the_spans(by: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=photos,region=north")
    if by == "environment":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with sending(collector.url if by == "option" else None) as tracing:
        app = Calls(TracedRequests(application(), tracing.tracer), log=False)
        ask(app, lambda client: client.post("/v1/embeddings", content=b"x", headers={"traceparent": PARENT}))

    [(path, kind, message)] = collector.got
    assert (path, kind) == ("/v1/traces", "application/x-protobuf")
    resource = {each.key: each.value.string_value for each in message.resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["region"]) == ("photos", "north")
    spans = {span.name: span for span in message.resource_spans[0].scope_spans[0].spans}
    assert set(spans) == {"read", "decode", "queue", "inference", "POST /v1/embeddings"}
    whole = spans["POST /v1/embeddings"]
    assert whole.kind == whole.SPAN_KIND_SERVER and whole.parent_span_id.hex() == PARENT.split("-")[2]
    assert {span.trace_id.hex() for span in spans.values()} == {PARENT.split("-")[1]}
    assert spans["queue"].parent_span_id == whole.span_id


@pytest.mark.parametrize("how", ["refuses", "never answers"])
def test_a_collector_that_is_away_costs_spans_only(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setattr(logging.getLogger("opentelemetry"), "disabled", True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if how == "refuses":
            silent.close()
        with sending(f"http://127.0.0.1:{port}") as tracing:
            app = Calls(TracedRequests(application(), tracing.tracer), log=False)
            replies = ask(app, *["/thumbnails/1"] * 40)  # more than the queue holds
            begun = time.monotonic()
        stopped = time.monotonic() - begun

    assert {reply.status_code for reply in replies} == {200}
    assert stopped < 20  # 3 s are given; OpenTelemetry's own end would take up to 30


def test_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_tracing(None) == (None, "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert start_tracing(None) == (None, "")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")

    tracing, said = start_tracing(None)
    assert tracing is None and "pip install 'clf-vision[otel]'" in said and "the environment names a collector" in said
    with pytest.raises(MissingExtraError, match=re.escape("clf-vision[otel]")):
        start_tracing("http://localhost:4318")


@pytest.mark.parametrize(
    "url", ["localhost:4318", "grpc://host:4317", "http://", "http://[::1", "http://host:99999", "x"]
)
def test_a_wrong_address_is_told(url: str) -> None:
    with pytest.raises(ServeError, match="is no address of a collector; give one such as http://localhost:4318"):
        start_tracing(url)


@pytest.mark.parametrize("url", ["https://c:4318/", "https://c:4318", "https://c:4318/v1/traces"])
def test_the_path_of_otlp_is_added(url: str) -> None:
    assert traces_url(url) == "https://c:4318/v1/traces"
    assert traces_url("http://c/otlp") == "http://c/otlp/v1/traces"
