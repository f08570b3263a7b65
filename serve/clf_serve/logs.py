"""The log: one line for each event on standard error, as text or as JSON, and never a request that waits for it.

Lines go through a bounded queue to a thread of their own. A disk that is full, a pipe that is closed or one that nobody
reads costs lines, which are counted and told about when writing works again; it costs nothing else. Rotation is the
system's (journald, the container runtime, logrotate with ``copytruncate``).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import typer

from clf_serve.call import Call
from clf_serve.log_format import LogFormat

CAPACITY = 10_000
_GATHER = 0.05  # seconds; a thread that is woken for each line takes the core from the request that wrote it
_BARE = re.compile(r"[^\s\"=\x00-\x1f\x7f-\x9f]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

current: ContextVar[Call | None] = ContextVar("clf_call", default=None)
"""The request at hand, so that whatever is logged in its course carries its id."""


class LineWriter:
    """Writes lines in a thread of its own, those of some hundredths of a second together.

    Args:
        write: takes bytes and says how many of them it has written, as ``os.write``.
        lost_line: the line that says how many lines were lost.
        capacity: lines that may wait; those beyond are lost.
    """

    def __init__(
        self, write: Callable[[bytes], int], lost_line: Callable[[int], str], capacity: int = CAPACITY
    ) -> None:
        self.lost = 0
        self._write = write
        self._lost_line = lost_line
        self._capacity = capacity
        self._waiting: deque[bytes] = deque()
        self._told = 0
        self._torn = False
        self._closing = threading.Event()
        self._something = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clf-log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Never waits, never raises. Callers take turns (a logging handler's lock sees to it)."""
        if len(self._waiting) >= self._capacity:
            self.lost += 1
            return
        self._waiting.append(line.encode("utf-8", "backslashreplace") + b"\n")
        if not self._something.is_set():
            self._something.set()

    def close(self, seconds: float = 2.0) -> None:
        """Writes what waits, for so many seconds at most."""
        self._closing.set()
        self._something.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._something.wait()
            self._closing.wait(_GATHER)
            self._something.clear()
            while self._waiting:
                lines = [self._waiting.popleft() for _ in range(min(256, len(self._waiting)))]
                if self._written(b"".join(lines)):
                    self._tell()
                else:
                    self.lost += len(lines)
            if self._closing.is_set():
                self._tell()
                return

    def _tell(self) -> None:
        """Says how many lines were lost since it was last said."""
        lost = self.lost - self._told
        if lost and self._written(self._lost_line(lost).encode() + b"\n"):
            self._told += lost

    def _written(self, data: bytes) -> bool:
        if self._torn:  # half a line may stand there already
            data = b"\n" + data
        left = memoryview(data)
        while left:
            try:
                done = self._write(left)  # type: ignore[arg-type]  # os.write takes any buffer
            except BlockingIOError:  # somebody made the pipe non-blocking, and it is full
                if self._closing.is_set():
                    return False
                time.sleep(0.02)
            except (OSError, ValueError):
                self._torn = self._torn or len(left) < len(data)
                return False
            else:
                left = left[done:]
        self._torn = False
        return True


class Lines(logging.Formatter):
    """A record as one line. Extras are taken from ``extra={"event": ..., "facts": {...}}`` and nowhere else."""

    def __init__(self, kind: LogFormat) -> None:
        super().__init__()
        self._kind = kind

    def format(self, record: logging.LogRecord) -> str:
        facts = self._facts(record)
        if self._kind is LogFormat.json:
            return json.dumps({name: value for name, value in facts.items() if value is not None}, default=str)
        head = f"{facts.pop('time')} {facts.pop('level'):<7} {_plain(facts.pop('message', None) or facts['event'])}"
        trace = facts.pop("error", None)
        del facts["event"], facts["logger"]
        words = [head, *(f"{name}={_word(value)}" for name, value in facts.items() if value not in (None, "", {}))]
        lines = _CONTROL.sub(_escape_but_newline, trace).split("\n") if trace else []
        return "\n  ".join((" ".join(words), *lines))  # the text of an error cannot look like a line of its own

    def _facts(self, record: logging.LogRecord) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "logger": record.name,
        }
        call = current.get()
        if call is not None:
            facts["request_id"] = call.id
        if not hasattr(record, "event"):
            facts["message"] = record.getMessage()
        facts |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[0] is not None:
            facts["error"] = self.formatException(record.exc_info)
        return facts


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:  # a message that does not fit its arguments is not worth a request
            self._writer.lost += 1


class _Calm(logging.Filter):
    """A collector that is away is worth a line a minute, not one for each attempt to reach it.

    What Pillow remarks on the files of clients, whose content would reach the log that way, is worth none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = -60.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("PIL"):
            return False
        if record.name == "py.warnings" and f"{os.sep}PIL{os.sep}" in record.getMessage():
            return False
        if not record.name.startswith("opentelemetry"):
            return True
        now = time.monotonic()
        if now - self._last < 60:
            return False
        self._last = now
        return True


@contextmanager
def logging_to(
    kind: LogFormat, write: Callable[[bytes], int] | None = None, *, capacity: int = CAPACITY
) -> Iterator[LineWriter]:
    """Sends what all loggers say (warnings and worse; ours and uvicorn's too) to standard error, or to ``write``.

    Python's warnings and errors that end a thread go the same way. At the end everything is as it was before.
    """
    lines = Lines(kind)

    def lost(n: int) -> str:
        facts = {"event": "lines_lost", "facts": {"lines": n}}
        return lines.format(logging.makeLogRecord({"name": __name__, "levelname": "WARNING", **facts}))

    writer = LineWriter(write or standard_error(), lost, capacity)
    handler = _Handler(writer)
    handler.setFormatter(lines)
    handler.addFilter(_Calm())
    root, own = logging.getLogger(), logging.getLogger("clf_serve")
    before = root.handlers[:], root.level, own.level, threading.excepthook
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended
    try:
        yield writer
    finally:
        logging.captureWarnings(False)
        root.handlers[:], level, own_level, threading.excepthook = before
        root.setLevel(level)
        own.setLevel(own_level)
        writer.close()


def speaker(kind: LogFormat) -> Callable[[str], None]:
    """What says a sentence to whoever started the server: on standard output, or in the log where that is JSON."""
    if kind is LogFormat.json:
        return logging.getLogger("clf_serve").info

    def say(line: str) -> None:
        with suppress(OSError, ValueError):  # a full disk or a closed pipe
            typer.echo(line)

    return say


def standard_error() -> Callable[[bytes], int]:
    """Writes to a descriptor of its own for what is standard error now; into nothing where there is none."""
    stream = sys.stderr
    try:
        descriptor = os.dup(stream.fileno())
    except (AttributeError, OSError, ValueError):
        if stream is None:
            return len

        def write(data: bytes) -> int:
            return stream.write(bytes(data).decode()) and len(data)

        return write
    return lambda data: os.write(descriptor, data)


def occupy_standard_descriptors() -> None:
    """Opens /dev/null where a standard descriptor is closed (``clf serve 2>&-``).

    Otherwise the next file or socket gets its number, and what a native library prints goes into a database.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def rfc3339(seconds: float) -> str:
    """A time since the epoch, as in RFC 3339, in UTC and to the millisecond.

    >>> rfc3339(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _thread_ended(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is None or hook.exc_type is SystemExit:
        return
    name = hook.thread.name if hook.thread else "?"
    facts = (hook.exc_type, hook.exc_value, hook.exc_traceback)
    logging.getLogger("clf_serve").error("the thread %s ended", name, exc_info=facts)


def _word(value: object) -> str:
    """One value of ``name=value``, quoted where it would run into the next."""
    if isinstance(value, dict):
        value = ",".join(f"{name}:{item}" for name, item in value.items())
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _plain(text: str) -> str:
    """Without line ends and terminal codes, so that nobody can forge a line by what he sends."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _escape_but_newline(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else repr(found[0])[1:-1]
