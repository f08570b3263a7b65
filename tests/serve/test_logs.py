"""The log: what stands in a line, what never does, and that nothing waits for it."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_helpers import KEY, application, ask
from serve_helpers import until

from clf_serve.http.access import Calls, request_id
from clf_serve.logs import Lines, LineWriter, LogFormat, logging_to, rfc3339, speaker

_log = logging.getLogger("clf_serve.somewhere")


@contextmanager
def logged(kind: LogFormat = LogFormat.json) -> Iterator[list[str]]:
    """Lines of the log; complete once the block has ended."""
    lines: list[str] = []
    text = io.BytesIO()
    with logging_to(kind, text.write):
        yield lines
    lines += text.getvalue().decode().splitlines()


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_what_pillow_remarks_on_a_client_s_file_is_left_out() -> None:
    with logged() as lines, warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("PIL.TiffImagePlugin").warning("More samples per pixel than can be decoded: 9")
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, str(Path("x", "PIL", "TiffImagePlugin.py")), 1)
        warnings.warn_explicit("not of Pillow", UserWarning, str(Path("x", "own.py")), 1)

    [event] = events(lines)
    assert "not of Pillow" in event["message"]


def test_a_request_is_one_json_object() -> None:
    with logged() as lines:
        [reply] = ask(Calls(application()), lambda client: client.post("/v1/embeddings", content=b"x" * 70_000))

    [event] = events(lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event.pop("ms") >= 0 and event["stages_ms"].pop("read") >= 0
    assert event == {
        "level": "info",
        "event": "request",
        "logger": "clf_serve.http.access",
        "request_id": reply.headers["X-Request-ID"],
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 200,
        "images": 2,
        "bytes_in": 70_000,
        "model": "tiny",
        "stages_ms": {"decode": 2.0, "queue": 1.0, "inference": 5.0},
    }
    assert reply.json() == {"id": reply.headers["X-Request-ID"]}


def test_as_text_a_request_is_one_line() -> None:
    with logged(LogFormat.text) as lines:
        ask(Calls(application(), clients=True), lambda client: client.post("/v1/embeddings", content=b"xyz"))

    [line] = lines
    words = "method=POST route=/v1/embeddings status=200 ms=T images=2 bytes_in=3 client=127.0.0.1 model=tiny"
    stages = "stages_ms=read:T,decode:2.0,queue:1.0,inference:5.0"
    line = re.sub(r"(ms=|read:)[\d.]+", r"\1T", re.sub("[0-9a-f]{32}", "ID", line))
    assert line.partition(" ")[2] == f"info    request request_id=ID {words} {stages}"


def test_nothing_of_the_clients_gets_into_the_log() -> None:
    secrets = (
        "SECRETQUERY",
        "SECRETFILE",
        "SECRETIMAGE",
        "SECRETPATH",
        "SECRETMETHOD",
        "SECRETHEADER",
        KEY,
        "10.1.2.3",
    )
    file = ("SECRETFILE.png", b"SECRETIMAGE")
    for kind in LogFormat:
        with logged(kind) as lines:
            ask(
                Calls(application()),
                lambda client: client.post("/v1/embeddings?url=http://SECRETQUERY", files={"SECRETFILE": file}),
                "/SECRETPATH?SECRETQUERY",
                "/thumbnails/12345?v=SECRETQUERY",
                lambda client: client.request(
                    "SECRETMETHOD", "/busy", headers={"Authorization": "Bearer SECRETHEADER"}
                ),
            )
        text = "\n".join(lines)
        assert len(lines) == 4 and "/thumbnails/{image_id:int}" in text and "_OTHER" in text
        assert not [word for word in (*secrets, "12345") if word in text]


def test_refusals_and_errors_are_named() -> None:
    with logged() as lines:
        assert [reply.status_code for reply in ask(Calls(application()), "/busy")] == [429]
        assert [reply.status_code for reply in ask(Calls(application()), "/busy", key=None)] == [401]
        [failed] = ask(Calls(application()), "/broken")

    refused, unknown, error, broken = events(lines)
    assert (refused["refusal"], refused["status"], refused["level"]) == ("overloaded", 429, "info")
    assert (unknown["refusal"], "route" in unknown) == ("invalid_api_key", False)
    assert failed.status_code == 500 and failed.json()["error"]["code"] == "internal_error"
    assert error["request_id"] == broken["request_id"] == failed.headers["X-Request-ID"]
    assert "RuntimeError: a bug" in error["error"] and error["message"] == "an error in GET /broken"
    assert (broken["status"], broken["level"]) == (500, "error")


def test_an_error_in_the_middle_of_a_reply_passes_on() -> None:
    with logged() as lines, pytest.raises(RuntimeError, match="in the middle"):
        ask(Calls(application()), "/half")

    assert [(event["route"], event["status"]) for event in events(lines)] == [("/half", 200)]


def test_probes_are_logged_only_when_they_fail() -> None:
    with logged() as lines:
        ask(Calls(application()), "/health/ready", "/health/live")
    assert [event.get("route") for event in events(lines) if event["event"] == "request"] == ["/health/live"]

    with logged() as lines:
        ask(Calls(application(), log=False), "/thumbnails/1")
    assert lines == []


@pytest.mark.parametrize("given", ["abc-1", "Root=1-67891233-abcdef012345678912345678", "x" * 128, "a/b:c.d_e+f@g="])
def test_a_sane_request_id_is_kept(given: str) -> None:
    [reply] = ask(Calls(application()), lambda client: client.get("/busy", headers={"X-Request-ID": given}))
    assert reply.headers.get_list("X-Request-ID") == [given]


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "a\tb", "id status=200", "\xe9", "a,b", "{}", "%0a"])
def test_another_request_id_is_replaced(given: str) -> None:
    headers = {"X-Request-ID": given.encode("latin-1")}
    first, second = ask(Calls(application()), *[lambda client: client.get("/busy", headers=headers)] * 2)
    made = first.headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", made) and made != second.headers["X-Request-ID"]


@given(st.text(st.characters(codec="latin-1")))
def test_a_request_id_is_always_harmless(text: str) -> None:
    assert re.fullmatch(r"[!-~]{1,128}", request_id({"x-request-id": text}))


@given(st.text(), st.text())
def test_no_message_can_forge_a_line(message: str, value: str) -> None:
    for kind in LogFormat:
        with logged(kind) as lines:
            _log.error("%s", message, extra={"event": "e", "facts": {"value": value}})
            _log.error("%s", message)
        assert len(lines) == 2
        if kind is LogFormat.json:
            assert [events(lines)[0]["value"], events(lines)[1]["message"]] == [value, message]


@given(st.text())
def test_no_error_can_forge_a_line(message: str) -> None:
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        facts = {"name": "clf_serve", "levelname": "ERROR", "msg": "failed"}
        record = logging.makeLogRecord({**facts, "exc_info": (RuntimeError, error, error.__traceback__)})
    first, *others = Lines(LogFormat.text).format(record).splitlines()
    assert first.endswith("failed") and all(line.startswith("  ") for line in others)


def test_what_others_say_is_in_the_log_too() -> None:
    with logged() as lines:
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("httpx").info("not worth it")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("an old way", UserWarning, stacklevel=1)
        thread = threading.Thread(target=lambda: 1 / 0, name="worker-7")
        thread.start()
        thread.join()
        _log.info("%d", "not a number")  # lost, and nobody hurt

    invalid, old, ended, lost = events(lines)
    assert invalid["logger"] == "uvicorn.error" and old["logger"] == "py.warnings"
    assert ended["message"] == "the thread worker-7 ended" and "ZeroDivisionError" in ended["error"]
    assert (lost["event"], lost["lines"]) == ("lines_lost", 1)


def test_logging_is_afterwards_as_it_was() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, threading.excepthook, logging.getLogger("clf_serve").level
    with logged():
        assert root.handlers != before[0]
    assert before == (root.handlers[:], root.level, threading.excepthook, logging.getLogger("clf_serve").level)


def test_a_collector_that_is_away_is_told_of_once_a_minute() -> None:
    with logged() as lines:
        for _ in range(50):
            logging.getLogger("opentelemetry.exporter.otlp").warning("Transient error")
        _log.warning("other")
    assert [event["logger"] for event in events(lines)] == ["opentelemetry.exporter.otlp", "clf_serve.somewhere"]


def test_a_full_disk_costs_lines_and_they_are_counted() -> None:
    written = bytearray()
    room = 25

    def write(data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        taken = min(room, len(data))
        written.extend(data[:taken])
        room -= taken
        return taken

    writer = LineWriter(write, lambda n: f"{n} lost")
    writer.put("first line")
    until(lambda: len(written) == 11)
    writer.put("the second line is too long")  # half of it is written
    until(lambda: writer.lost == 1)
    writer.put("third")
    until(lambda: writer.lost == 2)
    room = 10_000
    writer.put("fourth")
    writer.close()

    assert written.decode().splitlines() == ["first line", "the second lin", "fourth", "2 lost"]


def test_lines_that_come_close_together_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is woken for each of them takes the core from the request that wrote it."""
    monkeypatch.setattr("clf_serve.logs._GATHER", 3600)
    written: list[bytes] = []

    def write(data: bytes) -> int:
        written.append(bytes(data))
        return len(data)

    writer = LineWriter(write, lambda n: f"{n} lost")
    for number in range(5):
        writer.put(str(number))
        time.sleep(0.02)
    assert not written
    writer.close(60)  # does not wait for more of them
    assert written == [b"0\n1\n2\n3\n4\n"]


def test_a_reader_that_has_stopped_costs_lines_and_no_time() -> None:
    let_go = threading.Event()
    written: list[bytes] = []

    def write(data: bytes) -> int:
        let_go.wait()
        written.append(bytes(data))
        return len(data)

    writer = LineWriter(write, lambda n: f"{n} lost", capacity=10)
    for number in range(1000):
        writer.put(str(number))
    writer.close(seconds=0.05)  # does not wait for ever
    assert writer.lost >= 980 and not written
    let_go.set()
    until(lambda: bool(written) and b"lost" in written[-1])


def test_a_sentence_on_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", full := Full())
    speaker(LogFormat.text)("serving")
    monkeypatch.undo()
    assert full.getvalue() == "serving\n"
    with logged() as lines:
        speaker(LogFormat.json)("serving")
    assert [event["message"] for event in events(lines)] == ["serving"]


def test_a_time_is_rfc_3339() -> None:
    assert rfc3339(1_700_000_000.0004) == "2023-11-14T22:13:20.000Z"


SERVER = """
import socket, sys
import uvicorn
from ops_helpers import application
from clf_serve.http.access import Calls
from clf_serve.logs import LogFormat, logging_to, occupy_standard_descriptors
occupy_standard_descriptors()
listener = socket.create_server(("127.0.0.1", 0))
assert listener.fileno() > 2
with logging_to(LogFormat.json):
    config = uvicorn.Config(Calls(application()), log_config=None, access_log=False)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])
"""


@pytest.mark.parametrize("where", ["a full disk", "a closed pipe", "a pipe nobody reads", "nowhere", "a file"])
def test_requests_do_not_depend_on_the_log(where: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER]
    reader, pipe = os.pipe()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    log = tmp_path / "log"
    place: int = {
        "a full disk": os.open("/dev/full", os.O_WRONLY),
        "a file": os.open(log, os.O_WRONLY | os.O_CREAT),
    }.get(where, pipe)
    if where == "a closed pipe":
        os.close(reader)
    if where == "nowhere":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=place, text=True, env=env) as process:
        assert process.stdout is not None
        base = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with httpx.Client(base_url=base, timeout=20, trust_env=False, headers={"X-API-Key": KEY}) as client:
            replies = [client.post("/v1/embeddings", content=b"x") for _ in range(60)]  # the pipe holds some 15 lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    for descriptor in {pipe, place}:
        os.close(descriptor)
    if where != "a closed pipe":
        os.close(reader)

    assert {reply.status_code for reply in replies} == {200}
    if where == "a file":
        lines = events(log.read_text().splitlines())
        assert [line["request_id"] for line in lines if line["event"] == "request"] == [r.json()["id"] for r in replies]
